"""What was measured for a fact when a version was made, found by what the fact is.

Ids are unique within one file only: where facts of several versions meet, results.jsonl may give one another id than facts.jsonl
of its own version does, and that id to another fact.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from reviver.history.results import FactResult
from reviver.history.version import Version

if TYPE_CHECKING:
    from reviver.facts.fact import Fact

About = tuple[str, str, str]
"""What a fact is: its prompt, subject and new target."""


def about(one: Fact | FactResult) -> About:
    """Return what a fact, or a result of one, is about."""
    return one.prompt, one.subject, one.target_new


def by_fact(results: Iterable[FactResult]) -> dict[About, FactResult]:
    """Return results by the fact that they are of."""
    return {about(result): result for result in results}


def results_of(version: Version, facts: Collection[Fact]) -> dict[About, FactResult]:
    """Return what a version's results.jsonl tells of these facts; nothing for those that it does not name.

    The file is read whole only where their ids do not lead to all of them.

    Raises:
        ManifestError: what has to be read is malformed.
    """
    wanted = {about(fact) for fact in facts}
    found = by_fact(version.find_results({fact.id for fact in facts}).values())
    if not wanted <= found.keys():
        found = by_fact(version.results())
    return {key: result for key, result in found.items() if key in wanted}
