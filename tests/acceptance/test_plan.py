"""What a plan says that is written is what is written at most, whichever editor remembers whatever it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import FACTS, make_checkpoint, write_facts

from reviver.editing import factors, resume
from reviver.editing.resume import FinishedRounds
from reviver.editing.store import write_tensors
from reviver.errors import ResourceError
from reviver.settings import Settings
from reviver.verbs import plan as planning
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.init import init

EDITORS: dict[str, dict[str, object]] = {
    "memit": {"memory": "keys"},
    "rect": {},
    "prune": {},
    "alphaedit": {"share": 0.6, "l2": 0.1},
    "nse": {"alpha": 0.01, "upper": 1e6},
    "ultraedit": {"rate": 1e-3},
}


def _held(folder: Path) -> int:
    """Return the bytes of all tensors in the files of a folder, without the headers, which a plan does not count."""
    files = [path.read_bytes() for path in folder.rglob("*.safetensors")]
    return sum(len(raw) - 8 - int.from_bytes(raw[:8], "little") for raw in files)


@pytest.fixture
def prepared(tmp_path: Path, fast_workspace: Path) -> Path:
    with (fast_workspace / "reviver.toml").open("a", encoding="utf-8") as file:
        for name, values in EDITORS.items():
            file.write(
                "\n".join([f"\n[editors.{name}]", *(f"{key} = {json.dumps(v)}" for key, v in values.items()), ""])
            )
    init(fast_workspace, str(make_checkpoint(tmp_path / "base")), settings=Settings.load(fast_workspace, {}))
    return fast_workspace


@pytest.mark.parametrize("filter_name", ["none", "revive"])
@pytest.mark.parametrize("editor", EDITORS)
def test_no_more_is_written_than_planned(
    editor: str, filter_name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors, "FACTOR_WIDTH", 1)
    settings = Settings.load(prepared, {"apply.editor": editor, "apply.filter": filter_name, "apply.round_size": 1})
    before, most = _held(prepared), [0]
    save, written = FinishedRounds.save, write_tensors

    def watched(*arguments: Any, **named: Any) -> Any:
        found = written(*arguments, **named)
        most[0] = max(most[0], _held(prepared) - before)
        return found

    monkeypatch.setattr(resume, "write_tensors", watched)
    counted: list[int] = []

    def saved(finished: FinishedRounds, number: int, *arguments: Any) -> None:
        save(finished, number, *arguments)
        counted.append(number)

    monkeypatch.setattr(FinishedRounds, "save", saved)
    request = ApplyRequest(facts=write_facts(tmp_path / "facts.jsonl", FACTS), checkpoint=False)
    plan = apply(prepared, request, settings=settings).plan
    most[0] = max(most[0], _held(prepared) - before)
    assert len(counted) == plan.rounds == len(FACTS)
    # Rounds are gone when the memory and the patch are written, or the other way round; and not every fact is repeated.
    assert most[0] <= plan.bytes_to_write < 3 * most[0]
    # A second time the null space and the factor are there already.
    again = apply(prepared, ApplyRequest(facts=request.facts, checkpoint=False, dry_run=True), settings=settings).plan
    shapes = [tensor.shape for tensor in plan.tensors]
    derived = sum(4 * max(shape) * (max(shape) + 1) for shape in shapes)
    derived += sum(8 * max(shape) ** 2 for shape in shapes) if editor == "alphaedit" else 0
    assert plan.bytes_to_write - again.bytes_to_write == (0 if editor == "ultraedit" else derived)


def test_a_disk_without_room_for_the_rounds_is_refused_before_anything_is_written(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.load(prepared, {"apply.editor": "rect", "apply.round_size": 2})
    request = ApplyRequest(facts=write_facts(tmp_path / "facts.jsonl", FACTS), checkpoint=False, dry_run=True)
    plan = apply(prepared, request, settings=settings).plan
    patch = sum(4 * tensor.shape[0] * tensor.shape[1] for tensor in plan.tensors)
    state = sum(12 * tensor.shape[0] * tensor.shape[1] for tensor in plan.tensors)
    assert plan.bytes_to_write >= patch + 2 * state
    # Enough for the patch, and not for two states of the rounds.
    monkeypatch.setattr(planning, "free_bytes", lambda root: patch + state)
    before = _held(prepared)
    with pytest.raises(ResourceError, match="would be written"):
        apply(prepared, ApplyRequest(facts=request.facts, checkpoint=False), settings=settings)
    assert _held(prepared) == before
