"""Finding a few facts in a normalised file of many, without reading the others field by field.

In the normalised form (`facts_to_jsonl`) the names of a record are sorted, so `prompt`, `subject` and `target_new` stand side
by side. The pattern cannot begin within a text: a quotation mark is escaped there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from reviver.facts.fact import Fact, facts_from_jsonl

_FACT = re.compile(r'"prompt":"([^"\\]*(?:\\.[^"\\]*)*)","subject":"([^"\\]*(?:\\.[^"\\]*)*)","target_new":')


def find_facts(data: bytes, wanted: Callable[[str, str], bool], *, count: int, name: str) -> tuple[Fact, ...]:
    """Return the facts for which `wanted(subject, prompt)` holds, in the file's order; only these are checked.

    Args:
        data: a file of normalised facts. One in another form of JSON is read from end to end.
        wanted: told each fact's subject and prompt.
        count: how many facts the file holds.
        name: of the file, for messages.

    Raises:
        FactsError: a line that is looked at is no normalised fact.
    """
    lines = _lines(data, wanted, count)
    if lines is None:
        return tuple(fact for fact in facts_from_jsonl(data, name=name) if wanted(fact.subject, fact.prompt))
    return facts_from_jsonl("\n".join(lines).encode(), name=name)


def _lines(data: bytes, wanted: Callable[[str, str], bool], count: int) -> list[str] | None:
    """Return the lines of the facts that are wanted; None where the file is not in the form that is searched quickly."""
    try:
        text = data.decode()
        found = []
        seen = 0
        for match in _FACT.finditer(text):
            seen += 1
            prompt, subject = match.groups()
            if "\\" in prompt or "\\" in subject:
                prompt, subject = json.loads(f'["{prompt}","{subject}"]')
            if wanted(subject, prompt):
                end = text.find("\n", match.end())
                found.append(text[text.rfind("\n", 0, match.start()) + 1 : len(text) if end < 0 else end])
    except ValueError:
        return None
    return found if seen == count else None
