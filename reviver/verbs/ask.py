"""`reviver ask`: what several versions answer to one prompt, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reviver.editing.versions import VersionModel
from reviver.errors import UsageError
from reviver.evaluation.scores import answers
from reviver.facts.characters import text_fault
from reviver.history.manifest import BASE_NAME
from reviver.history.workspace import Workspace
from reviver.settings import Settings

TOKENS = 20
"""How many tokens an answer has at most, unless asked otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionAnswer:
    """What one version writes after the prompt, greedily, without leading or trailing space."""

    version: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskReport:
    """The answers of several versions.

    Attributes:
        prompt: as given.
        answers: in the order asked for.
        same: whether all versions answer alike.
    """

    prompt: str
    answers: tuple[VersionAnswer, ...]
    same: bool


def ask(
    workspace_dir: Path, prompt: str, names: Sequence[str] = (), *, settings: Settings, tokens: int = TOKENS
) -> AskReport:
    """Let several versions go on from one prompt; the model is loaded once, and nothing is written.

    Args:
        workspace_dir: an initialised workspace.
        prompt: the text to go on from.
        names: versions as a person names them; the base and the head without any.
        settings: device and dtype.
        tokens: length of an answer at most.

    Raises:
        UsageError: the prompt cannot be asked, or the length is below 1.
        FactsError: the prompt is longer than the model's window.
        WorkspaceError, VersionNotFoundError, ManifestError, BaseMismatchError: there is no such version, or it is damaged.
    """
    if fault := text_fault(prompt, several_lines=True):
        raise UsageError(f"the prompt {fault}", hint='give a text, as in `reviver ask "The capital of France is"`')
    if tokens < 1:
        raise UsageError(f"an answer of {tokens} tokens says nothing", hint="give at least 1")
    workspace = Workspace.open(workspace_dir)
    # Asked for twice, by whatever names, a version answers once.
    versions = list(dict.fromkeys(workspace.resolve(name) for name in (names or (BASE_NAME, "head"))))
    for name in versions:
        # A missing parent is told before the model is loaded.
        workspace.chain(name)
    model = VersionModel(workspace, settings)
    said = [
        VersionAnswer(version=name, answer=answers(model.put(name), [prompt], tokens=tokens)[0]) for name in versions
    ]
    return AskReport(prompt=prompt, answers=tuple(said), same=len({one.answer for one in said}) == 1)
