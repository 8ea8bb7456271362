"""`reviver doctor`: the machine, or whether a model is fit to be edited, at which blocks and with which λ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from reviver.checkpoint.folder import CheckpointFolder
from reviver.editing.advice import Advice, advise
from reviver.editing.architecture import disk_name, inner_side, model_shape
from reviver.editing.base import chosen_family, corpus_of, open_base, open_model
from reviver.editing.corpus import Corpus
from reviver.editing.fitness import BlockFitness, measure_fitness
from reviver.editing.model import EditableModel, choose_device
from reviver.editing.presets import Preset, find_preset
from reviver.editing.subjects import draw_facts, subjects_of_facts, subjects_of_text
from reviver.editing.targets import target_settings
from reviver.errors import UsageError
from reviver.facts.reader import read_facts
from reviver.history.workspace import Workspace
from reviver.hub.source import resolve_source
from reviver.progress import NullProgress, Progress
from reviver.settings import Settings
from reviver.text import printable
from reviver.verbs.machine import MachineReport, look_at_machine, machine_verdict

SUBJECTS = 64
"""How many subjects the keys are compared of."""

PROBES = 12
"""For how many facts targets are sought."""

TOKENS_A_FEATURE = 4
"""How many tokens of ordinary text are read for each input feature of the MLP's second matrix."""

LEAST_TOKENS = 4096
"""How many are read in any case, so that names turn up in them."""

ROW = 128
"""The length of a row of that text in tokens."""

FEW_SUBJECTS = 16
"""Below so many subjects, what is said of keys is a guess."""

_SEED = 0
_BASE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """What was measured of a model.

    Attributes:
        model: the Hub id or the folder's name.
        family: the architecture.
        depth: how many blocks it has.
        preset: the name of its hyperparameters; `derived` where none was published.
        preset_layers, preset_weight: the blocks and the λ that `init` would take.
        tokens: of ordinary text that were read.
        subjects: how many keys were compared.
        facts: for how many facts targets were sought.
        blocks: every block but the last, behind which no target can be sought.
        advice: the blocks and the λ to take.
    """

    model: str
    family: str
    depth: int
    preset: str
    preset_layers: tuple[int, ...]
    preset_weight: float
    tokens: int
    subjects: int
    facts: int
    blocks: tuple[BlockFitness, ...]
    advice: Advice


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """What `doctor` found.

    Attributes:
        machine: what reviver runs on.
        model: what was measured of the model, if one was named.
        verdict: the same in plain words, a line each.
        warnings: what a person should know.
    """

    machine: MachineReport
    model: ModelReport | None
    verdict: tuple[str, ...]
    warnings: tuple[str, ...]


def doctor(
    workspace_dir: Path,
    model: str | None = None,
    *,
    settings: Settings,
    facts: Path | None = None,
    progress: Progress | None = None,
) -> DoctorReport:
    """Look at the machine and, if one is named, at a model; nothing is written.

    Args:
        workspace_dir: the workspace, if there is one; its disk is looked at.
        model: a folder, a Hub id with `@revision` if wanted, or `base` for the workspace's own, which facts alone mean.
        settings: corpus, device, dtype, targets.
        facts: facts whose subjects and targets are tried; without, names in ordinary text stand in for subjects.
        progress: told about the long parts.

    Raises:
        UsageError: facts are given without a model, outside of a workspace.
        FactsError: the facts cannot be used.
        ReviverError: the model cannot be had or cannot be edited at all; see `resolve_source`, `find_family`, `load_model`.
    """
    if facts is not None and model is None:
        if not Workspace(workspace_dir).private.is_dir():
            raise UsageError("facts are tried on a model", hint="name it: `reviver doctor MODEL --facts FILE`")
        model = _BASE
    given = None if facts is None else read_facts(facts)
    machine = look_at_machine(workspace_dir)
    if model is None:
        return DoctorReport(machine=machine, model=None, verdict=machine_verdict(machine), warnings=())
    progress = progress or NullProgress()
    # Rows shorter than those of `init`: the model may have to write them, and fewer tokens are needed.
    short = replace(settings, moments=replace(settings.moments, length=min(ROW, settings.moments.length)))
    corpus = corpus_of(short)
    name, folder = _find_model(workspace_dir, model, progress)
    loaded, preset = _open_all_blocks(folder, settings)
    wanted = max(LEAST_TOKENS, TOKENS_A_FEATURE * loaded.inner_width(0))
    text = _text(loaded, corpus, wanted, progress)
    drawn = draw_facts(given.facts, SUBJECTS, seed=_SEED) if given is not None else []
    subjects = subjects_of_facts(loaded, drawn) if drawn else subjects_of_text(loaded, text, SUBJECTS)
    probes = drawn[:PROBES]
    blocks = measure_fitness(
        loaded, text, subjects, probes, target_settings(settings.targets, preset), progress=progress
    )
    depth = len(loaded.blocks)
    advice = advise(blocks, depth)
    report = ModelReport(
        model=name,
        family=loaded.family.name,
        depth=depth,
        preset=preset.name,
        preset_layers=preset.layers,
        preset_weight=preset.moment_weight,
        tokens=sum(map(len, text)),
        subjects=len(subjects),
        facts=len(probes),
        blocks=tuple(blocks),
        advice=advice,
    )
    warnings = [*([] if given is None else given.warnings), *_doubts(report, wanted)]
    return DoctorReport(machine=machine, model=report, verdict=_model_verdict(report), warnings=tuple(warnings))


def _find_model(workspace_dir: Path, model: str, progress: Progress) -> tuple[str, CheckpointFolder]:
    if model == _BASE and not Path(model).is_dir():
        pin = Workspace.open(workspace_dir).pin()
        return pin.model, open_base(pin)
    source = resolve_source(model, progress=progress)
    return source.model or source.folder.name, CheckpointFolder.open(source.folder)


def _open_all_blocks(folder: CheckpointFolder, settings: Settings) -> tuple[EditableModel, Preset]:
    """Load a model with every block but the last as an edited one."""
    family = chosen_family(folder, settings)
    shape = model_shape(folder.config)
    layers = range(max(1, shape.layers - 1))
    names = {layer: disk_name(family, layer, folder.tensors) for layer in layers}
    for name in names.values():
        folder.check_editable(name)
    preset = find_preset(folder.config, inner_side(folder.entry(names[0]).shape, shape.hidden))
    return open_model(folder, family, names, settings, choose_device(settings.apply.device)), preset


def _text(model: EditableModel, corpus: Corpus, tokens: int, progress: Progress) -> list[tuple[int, ...]]:
    """Return rows of ordinary text, about as many tokens as wanted."""
    rows: list[tuple[int, ...]] = []
    held = 0
    with progress.task("text", total=tokens, unit="tokens") as task:
        for batch in corpus.batches(model, 0):
            for row in batch:
                if held < tokens and len(row) > 1:
                    rows.append(tuple(row))
                    held += len(row)
                    task.advance(len(row))
            if held >= tokens:
                break
    return rows


def _model_verdict(report: ModelReport) -> tuple[str, ...]:
    advice = report.advice
    lines = []
    where = f"block{'s' if len(advice.layers) > 1 else ''} {span(advice.layers)}"
    with_weight = "" if advice.weight is None else f" with λ = {advice.weight:g}"
    if advice.fit:
        lines.append(f"fit to be edited at {where}{with_weight}")
    elif advice.fit is None:
        lines.append(f"nothing speaks against {where}{with_weight}; whether facts are in reach there was not tried")
    else:
        lines.append("not fit to be edited: something speaks against every block")
    if advice.sequence_weight != advice.weight:
        lines.append(
            f"for a thousand edits and more, batch after batch, λ = {advice.sequence_weight:g} wears it down less"
        )
    lines += [f"block {layer} is left out: {'; '.join(why)}" for layer, why in advice.reasons.items()]
    if advice.layers and (advice.layers, advice.weight) != (report.preset_layers, report.preset_weight):
        lines.append(
            f"`init` would take blocks {span(report.preset_layers)} and λ = {report.preset_weight:g} "
            f"({'from its size alone' if report.preset == 'derived' else 'its preset'})"
        )
    return tuple(lines)


def _doubts(report: ModelReport, wanted: int) -> list[str]:
    found = []
    if report.subjects < 2:
        found.append("the text holds no names whose keys could be compared: give facts with `--facts FILE`")
    elif report.subjects < FEW_SUBJECTS:
        found.append(f"only {report.subjects} subjects were found: take the numbers of keys with care")
    if report.tokens < wanted:
        found.append(f"the text has {report.tokens:,} tokens of {wanted:,} wanted: take the numbers of keys with care")
    return found


def span(layers: tuple[int, ...]) -> str:
    """Return consecutive blocks as `2-4`, a single one as `2`, others as a list."""
    if len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return printable(", ".join(map(str, layers)))
