"""`reviver demo`: the whole story on the small model that ships with the package, offline."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

from reviver.editing.base import open_base, open_pinned, put_version
from reviver.editing.model import choose_device
from reviver.errors import UsageError
from reviver.evaluation.outcomes import Summary
from reviver.evaluation.perplexity import perplexity
from reviver.evaluation.scores import answers
from reviver.facts.fact import Fact
from reviver.history.chain import chain_deltas
from reviver.history.workspace import Workspace
from reviver.progress import NullProgress, Progress
from reviver.settings import Settings
from reviver.text import printable
from reviver.verbs.apply import ApplyReport, ApplyRequest, apply
from reviver.verbs.diff import DiffReport, diff
from reviver.verbs.init import InitReport, init
from reviver.verbs.verify import VerifyReport, verify

TEXTS = 60
"""How many held-out texts the perplexity is measured on."""

PROBED = 3
"""How many facts are asked about in other words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """How one version of the model does.

    Attributes:
        version: its name.
        filter: the filter its patch passed; None for the base.
        summary: what became of the facts; None for the base.
        perplexity: on held-out text that holds none of the facts.
    """

    version: str
    filter: str | None
    summary: Summary | None
    perplexity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A prompt beside the facts' own, and what was answered to it.

    Attributes:
        prompt: a paraphrase of a fact, or a prompt about a neighbour.
        wished: the answer that it should get after the edit.
        before: the base's answer.
        after: the edited version's answer.
    """

    prompt: str
    wished: str
    before: str
    after: str

    @property
    def as_wished(self) -> bool:
        """Whether the edited version's answer begins as it should."""
        return self.after.startswith(self.wished)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What the demo did and saw.

    Attributes:
        workspace: the folder, to look around in.
        base: the preparation.
        edit: the batch of facts under the filter.
        probes: paraphrases of the first facts, and their neighbours.
        difference: between the base and the edited version.
        proof: the verification of the edited version.
        abilities: of the base, of the edited version, and of the same batch without the filter.
        seconds: for everything.
    """

    workspace: Path
    base: InitReport
    edit: ApplyReport
    probes: tuple[Probe, ...]
    difference: DiffReport
    proof: VerifyReport
    abilities: tuple[Ability, ...]
    seconds: float


def demo(
    workspace_dir: Path | None,
    *,
    announce: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> DemoReport:
    """Prepare the packaged model, correct a few dozen facts, look, prove, and do the same without the filter.

    Args:
        workspace_dir: a new folder for the workspace; a temporary one without it.
        announce: told each chapter as it begins.
        progress: told about the long parts.

    Raises:
        UsageError: the folder holds something; nothing was written.
    """
    if workspace_dir is not None and _holds_something(workspace_dir):
        raise UsageError(
            f"`{printable(str(workspace_dir), 200)}` is there already; the demo makes a workspace of its own",
            hint="name a new folder, or leave it out for a temporary one",
        )
    progress = progress or NullProgress()
    announce = announce or (lambda _: None)
    start = time.monotonic()
    root = workspace_dir or Path(tempfile.mkdtemp(prefix="reviver-demo-"))
    material = files("reviver.demo")
    # Short rows: the model's own texts are short, and writing them is most of what `init` does.
    settings = Settings.load(root, {"moments.length": 64})
    with (
        as_file(material / "model") as model_folder,
        as_file(material / "facts.jsonl") as facts,
        as_file(material / "held-out.txt") as held_out,
    ):
        announce("init: pin the model, compute second moments and spectral bases")
        base = init(root, str(model_folder), settings=settings, progress=progress)
        announce("apply: write the facts into the model, under the REVIVE filter")
        request = ApplyRequest(facts=facts, parent="v0", message="Corrections to the almanac")
        edit = apply(root, request, settings=settings, progress=progress)
        announce("diff and verify: what changed, and whether every byte is explained")
        difference = diff(root, "v0", edit.version or "v1")
        proof = verify(root, edit.version or "v1", progress=progress)
        announce("apply again, without the filter")
        unprotected = replace(settings, apply=replace(settings.apply, filter="none"))
        without = apply(
            root, replace(request, checkpoint=False, message="The same without the filter"), settings=unprotected
        )
        announce("measure all three on text that holds none of the facts")
        texts = [line for line in held_out.read_text(encoding="utf-8").splitlines() if line.strip()][:TEXTS]
        abilities, probes = _measure(root, settings, texts, (edit, without))
    return DemoReport(
        workspace=root,
        base=base,
        edit=edit,
        probes=probes,
        difference=difference,
        proof=proof,
        abilities=abilities,
        seconds=round(time.monotonic() - start, 1),
    )


def _holds_something(folder: Path) -> bool:
    return os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir()))


def _measure(
    root: Path, settings: Settings, texts: list[str], edits: tuple[ApplyReport, ...]
) -> tuple[tuple[Ability, ...], tuple[Probe, ...]]:
    """Measure the base and every edit, and ask the base and the first edit what the facts' neighbourhood says."""
    workspace = Workspace.open(root)
    pin = workspace.pin()
    folder = open_base(pin)
    model = open_pinned(pin, folder, settings, choose_device(settings.apply.device))
    wished = list(_wishes(workspace.version(edits[0].version or "v1").facts()[:PROBED]))
    prompts = [prompt for prompt, _ in wished]
    said = [answers(model, prompts)]
    found = [Ability(version="v0", filter=None, summary=None, perplexity=perplexity(model, texts))]
    for report in edits:
        name = report.version or "v0"
        put_version(model, folder, chain_deltas(workspace.chain(name), pin))
        said.append(answers(model, prompts))
        found.append(
            Ability(
                version=name, filter=report.plan.filter, summary=report.summary, perplexity=perplexity(model, texts)
            )
        )
    probes = tuple(
        Probe(prompt=prompt, wished=wish, before=before, after=after)
        for (prompt, wish), before, after in zip(wished, said[0], said[1], strict=True)
    )
    return tuple(found), probes


def _wishes(facts: Sequence[Fact]) -> Iterator[tuple[str, str]]:
    """Yield one paraphrase of each fact, which should follow it, and one neighbour, which should not."""
    for fact in facts:
        if fact.paraphrase_prompts:
            yield fact.paraphrase_prompts[0], fact.target_new
        for probe in fact.neighborhood_prompts[:1]:
            answer = probe.answer or fact.target_true
            if answer is not None:
                yield probe.prompt, answer
