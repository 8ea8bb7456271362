"""`reviver adopt CHECKPOINT`: somebody's edited model of the same base becomes a patch, to be compared, merged, taken back.

The patch rebuilds the adopted tensors to the byte. It was not made under the filter: how much of it lies in the base's protected
directions, and would have been removed, is reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reviver.checkpoint.delta import Delta
from reviver.checkpoint.fitting import Goal, delta_to
from reviver.checkpoint.floats import decode
from reviver.checkpoint.folder import CheckpointFolder
from reviver.checkpoint.rewrite import WrittenCheckpoint
from reviver.errors import (
    BaseMismatchError,
    CheckFailedError,
    NumericsError,
    ReviverError,
    UsageError,
    WorkspaceError,
)
from reviver.history.algebra import Contribution
from reviver.history.chain import result_hashes
from reviver.history.contributions import NO_FILTER
from reviver.history.untrusted import problem_of, shown
from reviver.history.workspace import Workspace
from reviver.progress import Progress
from reviver.settings import Settings
from reviver.text import plural
from reviver.verbs.made import MadeReport, MakeChoice
from reviver.verbs.remake import Recipe, Remaker

if TYPE_CHECKING:
    import torch

    from reviver.editing.preparation import Preparation

# What differs between two saves of one model without being another model.
_IDLE_KEYS = frozenset(("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"))
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Protected:
    """What the filter would have done to one tensor of the adopted patch.

    Attributes:
        name: of the tensor.
        edited: whether it is one of those that `apply` edits.
        rank: the protected rank k that was compared with; None where there is none.
        removed: ‖Δ − Δ_safe‖ / ‖Δ‖, the share of the norm that the filter would have taken away; None where it cannot be told.
    """

    name: str
    edited: bool
    rank: int | None
    removed: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptReport(MadeReport):
    """What was adopted.

    Attributes:
        source: the folder that was adopted.
        compared: how many tensors were compared.
        protected: what the filter would have removed, by tensor; empty where nothing was measured.
    """

    source: Path
    compared: int
    protected: tuple[Protected, ...]


def adopt(
    workspace_dir: Path,
    checkpoint: Path,
    *,
    settings: Settings,
    parent: str = "base",
    choice: MakeChoice | None = None,
    progress: Progress | None = None,
) -> AdoptReport:
    """Make a version of the tensors in which another checkpoint differs.

    Args:
        checkpoint: a folder in the layout of `transformers` with the base's tensors; it is only read.
        parent: the version to stand on, on which its tensors were edited.

    Raises:
        CheckpointError: the folder is no checkpoint.
        BaseMismatchError: a tensor is missing, surplus, or of another dtype or shape.
        UnsupportedModelError: a tensor differs that no version may change.
        NumericsError: no patch leads to the adopted bytes.
        WorkspaceError: nothing differs.
        ManifestError: a version is not what it was.
        ResourceError: the disk is too small.
        LockedError: another process is writing.
    """
    workspace = Workspace.open(workspace_dir)
    choice = choice or MakeChoice()
    with workspace.lock("adopt"):
        remaker = Remaker(workspace, workspace.resolve(parent), settings, choice, progress)
        other = CheckpointFolder.open(checkpoint)
        _check_alike(remaker.folder, other)
        wanted, whole = _different(remaker, other)
        deltas = {name: _delta(remaker, other, name) for name in wanted}
        remaker.warnings.extend(_configuration_warning(remaker.folder, other))
        remaker.warnings.extend(_twin_warning(remaker, wanted))
        protected = _protected(remaker, deltas) if choice.measure else ()
        report = remaker.make(
            Recipe(
                verb="adopt",
                parts=[Contribution(deltas=deltas, labels=None)],
                facts=(),
                takes=(),
                settings={"source": other.root.name, "tensors": len(other.tensors), "tensors_sha256": whole},
                filter=NO_FILTER,
                protected={},
                message=choice.message or f"Adopt {other.root.name}",
                nothing=f"`{shown(other.root)}` holds the same weights as {remaker.parent}",
            ),
            check=lambda written: _check_bytes(written, wanted),
        )
    return AdoptReport(**report.values(), source=other.root, compared=len(other.tensors), protected=protected)


def _check_alike(base: CheckpointFolder, other: CheckpointFolder) -> None:
    """Refuse a checkpoint with other tensors than the base, each by its name."""
    problems = [f"`{shown(name)}` is missing" for name in base.tensors.keys() - other.tensors.keys()]
    problems += [f"`{shown(name)}` is not in the base" for name in other.tensors.keys() - base.tensors.keys()]
    for name in base.tensors.keys() & other.tensors.keys():
        here, there = base.tensors[name], other.tensors[name]
        if (here.dtype, here.shape) != (there.dtype, there.shape):
            problems.append(
                f"`{shown(name)}` is {there.dtype} {list(there.shape)}, in the base {here.dtype} {list(here.shape)}"
            )
    if problems:
        raise BaseMismatchError(
            f"`{shown(other.root)}` is not a model of this base: {_listed(sorted(problems))}",
            hint="adopt a checkpoint that was edited from this base and saved in its dtype",
            path=other.root,
        )


def _different(remaker: Remaker, other: CheckpointFolder) -> tuple[dict[str, str], str]:
    """Return the hashes of the tensors that differ from the parent's, and one over all tensors.

    Raises:
        WorkspaceError: none differs.
        UnsupportedModelError: one of them cannot be edited; all of these are named.
    """
    known = {**remaker.pin.tensor_sha256, **result_hashes(remaker.chain)}
    digest, wanted = hashlib.sha256(), {}
    with remaker.progress.task("compare the tensors", total=len(other.tensors), unit="tensors") as task:
        for name in sorted(other.tensors):
            sha256 = hashlib.sha256(other.read_tensor(name)).hexdigest()
            digest.update(f"{name}\0{sha256}\n".encode())
            if sha256 != known[name]:
                wanted[name] = sha256
            task.advance()
    if not wanted:
        raise WorkspaceError(
            f"`{shown(other.root)}` holds the same weights as {remaker.parent}", hint="there is nothing to adopt"
        )
    refused: list[ReviverError] = []
    for name in wanted:
        try:
            remaker.folder.check_editable(name)
        except ReviverError as error:
            refused.append(error)
    if refused:
        more = f" (and {plural(len(refused) - 1, 'other tensor')} that cannot)" if len(refused) > 1 else ""
        raise type(refused[0])(refused[0].message + more, hint="only matrices of the model can be adopted")
    return wanted, digest.hexdigest()


def _delta(remaker: Remaker, other: CheckpointFolder, name: str) -> Delta:
    """Return the patch of one tensor, which rebuilds it to the byte."""
    entry = remaker.folder.entry(name)
    target = other.read_tensor(name)
    shape = (entry.shape[0], entry.shape[1])
    if not np.isfinite(decode(target, entry.dtype, shape)).all():
        raise NumericsError(
            f"`{shown(name)}` of `{shown(other.root)}` holds NaN or an infinity", hint="the checkpoint is damaged"
        )
    goal = Goal(
        base=remaker.folder.read_tensor(name),
        target=target,
        dtype=entry.dtype,
        shape=shape,
        deltas=remaker.deltas.get(name, ()),
    )
    delta, missed = delta_to(goal)
    if delta is None or missed:
        raise NumericsError(
            f"no patch leads to {plural(missed, 'entry', 'entries')} of `{shown(name)}`, such as a zero with a minus sign",
            hint="save the checkpoint again with its negative zeros made positive (`weight + 0.0`)",
            tensor=name,
        )
    return delta


def _check_bytes(written: WrittenCheckpoint, wanted: Mapping[str, str]) -> None:
    """Refuse a version whose tensors are not the adopted ones, to the byte."""
    for name, sha256 in wanted.items():
        if written.tensor_sha256[name] != sha256:
            raise CheckFailedError(
                f"the patch of `{shown(name)}` does not give the adopted bytes",
                hint="the checkpoint may have been changed while it was read; run it again",
                tensor=name,
            )


def _configuration_warning(base: CheckpointFolder, other: CheckpointFolder) -> Iterator[str]:
    keys = (base.config.keys() | other.config.keys()) - _IDLE_KEYS
    changed = sorted(key for key in keys if base.config.get(key) != other.config.get(key))
    if changed:
        names = _listed([f"`{shown(key)}`" for key in changed])
        yield f"its `config.json` differs in {names}; only the weights are adopted"


def _twin_warning(remaker: Remaker, wanted: Mapping[str, str]) -> Iterator[str]:
    """Say that the history holds these weights already, and with what was done to come to them."""
    base = remaker.pin.tensor_sha256
    adopted = {**base, **result_hashes(remaker.chain), **wanted}
    for name in remaker.workspace.version_names():
        try:
            last = remaker.workspace.version(name).manifest.tensors
            if any(adopted.get(tensor.name) != tensor.result_sha256 for tensor in last):
                continue
            same = adopted == {**base, **result_hashes(remaker.workspace.chain(name))}
        except ReviverError:
            # A version that cannot be read is no reason to adopt nothing.
            continue
        if same:
            yield f"{name} holds the same weights, with its facts: `reviver apply FACTS --from {name}` goes on from there"
            return


def _protected(remaker: Remaker, deltas: Mapping[str, Delta]) -> tuple[Protected, ...]:
    """Return what the filter, as the settings have it, would have removed from each tensor; warn of those that cannot be told."""
    from reviver.editing.base import saved_preset
    from reviver.editing.model import choose_device
    from reviver.editing.preparation import Preparation

    pin, wanted = remaker.pin, remaker.settings.apply
    if not pin.edited:
        return ()
    device = choose_device(wanted.device)
    preparation = Preparation(remaker.workspace, pin, remaker.folder)
    rank = None if wanted.energy is not None else wanted.rank or saved_preset(pin, remaker.folder).rank
    found: list[Protected] = []
    untold: dict[str, list[str]] = {}
    with remaker.progress.task("compare with the filter", total=len(deltas), unit="tensors") as task:
        for name, delta in deltas.items():
            chosen = removed = None
            try:
                chosen, removed = _share(preparation, name, delta, rank, wanted.energy, device)
            except (UsageError, NumericsError) as error:
                untold.setdefault(problem_of(error), []).append(f"`{shown(name)}`")
            found.append(Protected(name=name, edited=name in pin.edited, rank=chosen, removed=removed))
            task.advance()
    for reason, names in untold.items():
        remaker.warnings.append(f"what the filter would have removed cannot be told for {_listed(names)}: {reason}")
    return tuple(found)


def _share(
    preparation: Preparation, name: str, delta: Delta, rank: int | None, energy: float | None, device: torch.device
) -> tuple[int, float]:
    """Return the protected rank of a tensor and the share of a delta's norm that the filter would remove.

    Raises:
        UsageError, NumericsError: the tensor has no directions to protect, or none beside them.
    """
    import torch

    from reviver.spectral.basis import choose_rank
    from reviver.spectral.filter import filter_dense

    sides = min(delta.shape)
    if rank is not None and rank >= sides:
        raise UsageError(f"rank {rank} leaves none of {plural(sides, 'direction')} to edit")
    basis = preparation.basis(name, max(1, rank or 0, preparation.basis_width(name)), device)
    chosen = choose_rank(basis.singular_values, rank=rank, energy=energy, frobenius=basis.frobenius).rank
    delta_DE = torch.from_numpy(delta.product()).to(device)
    change = float(
        torch.linalg.matrix_norm(delta_DE - filter_dense(delta_DE, preparation.basis(name, chosen, device), chosen))
    )
    return chosen, change / float(torch.linalg.matrix_norm(delta_DE))


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
