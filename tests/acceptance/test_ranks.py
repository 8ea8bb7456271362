"""Several processes: what they write is what one process writes, one of them speaks, and what makes no sense is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_checkpoint, write_facts

from reviver.cli import app, errors
from reviver.editing.ranks import ALONE, Ranks, joined
from reviver.editing.world import find_world
from reviver.errors import ResourceError, UsageError
from reviver.settings import Settings
from reviver.verbs.apply import ApplyRequest, apply
from reviver.verbs.init import init


def _start(
    size: int, *arguments: str | Path, environment: Mapping[str, Mapping[str, str]] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run the command line as `torchrun` would, in so many processes, and return how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "reviver", *map(str, arguments)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                **(environment or {}).get(str(rank), {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    ended = []
    for process in running:
        stdout, stderr = process.communicate(timeout=120)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr))
    return ended


def _matrices(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name}/{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def _compare(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys() and wanted
    for name, tensor in wanted.items():
        assert (found[name] - tensor).norm() <= tolerance * tensor.norm(), name


@pytest.mark.parametrize(("offload", "filtering"), [("auto", "constrained"), ("always", "revive")])
def test_two_processes_write_what_one_writes(
    offload: str, filtering: str, tmp_path: Path, fast_workspace: Path
) -> None:
    base = make_checkpoint(tmp_path / "base", "llama")
    facts = write_facts(tmp_path / "facts.jsonl")
    settings = (fast_workspace / "reviver.toml").read_text(encoding="utf-8")
    helped = tmp_path / "helped"
    helped.mkdir()
    (helped / "reviver.toml").write_text(settings, encoding="utf-8")
    alone = Settings.load(fast_workspace, {"model.layers": "1,2", "apply.filter": filtering})
    init(fast_workspace, str(base), settings=alone)
    apply(fast_workspace, ApplyRequest(facts=facts), settings=alone)

    applied = ("apply", facts, "-C", helped, "--filter", filtering)
    for arguments in (("init", base, helped, "--layers", "1,2"), applied):
        first, second = _start(2, *arguments, "--offload", offload)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert first.stdout and (second.stdout, second.stderr) == ("", "")
    for kind, tolerance in (("statistics", 1e-6), ("spectra", 1e-6)):
        _compare(_matrices(helped / ".reviver" / kind), _matrices(fast_workspace / ".reviver" / kind), tolerance)
    _compare(_matrices(helped / "edits" / "v1"), _matrices(fast_workspace / "edits" / "v1"), 1e-4)


def test_a_process_that_fails_ends_all_with_one_message(tmp_path: Path, fast_workspace: Path) -> None:
    base = make_checkpoint(tmp_path / "base", "llama")
    # Another seed for one of them: it would read another text than the others.
    ended = _start(2, "init", base, fast_workspace, environment={"1": {"REVIVER_MOMENTS_SEED": "7"}})
    assert [one.returncode for one in ended] == [1, 2]
    told = "".join(one.stderr for one in ended)
    assert told.count("error: ") == told.count("hint: ") == 1
    assert "do not read the same corpus" in ended[1].stderr
    assert not [one.stdout for one in ended if one.stdout]


def test_the_world_of_processes() -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    world = find_world(torchrun)
    assert world is not None and (world.rank, world.size, world.port) == (1, 2, 1)
    assert find_world({}) is None
    assert find_world({**torchrun, "WORLD_SIZE": "1", "RANK": "0"}) is None
    for changed in ({"RANK": "2"}, {"RANK": "-1"}, {"RANK": "one"}, {"MASTER_PORT": "x"}):
        with pytest.raises(UsageError, match=r"RANK|processes"):
            find_world({**torchrun, **changed})


@pytest.mark.parametrize(
    ("changed", "device", "error", "words"),
    [
        ({"MASTER_ADDR": "10.0.0.7"}, "cpu", UsageError, "on one machine"),
        ({"LOCAL_WORLD_SIZE": "1"}, "cpu", UsageError, "on one machine"),
        ({}, "cuda:1", UsageError, "cannot share the device `cuda:1`"),
        ({"WORLD_SIZE": "99", "LOCAL_WORLD_SIZE": "99"}, "cuda", ResourceError, "99 processes need as many GPUs"),
    ],
)
def test_ranks_that_make_no_sense_are_refused(
    changed: dict[str, str], device: str, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**world, **changed}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=words), joined(device):
        pass


def test_more_processes_than_facts_are_refused(tmp_path: Path, fast_workspace: Path) -> None:
    facts = write_facts(tmp_path / "facts.jsonl")
    with pytest.raises(UsageError, match="3 facts cannot be shared among 4 processes"):
        apply(fast_workspace, ApplyRequest(facts=facts), settings=Settings(), processes=Ranks(0, 4))


def test_other_commands_run_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    # There is no `torchrun` to ask who may speak.
    monkeypatch.setattr(errors, "may_speak", lambda: True)
    assert app.run(["log", "-C", str(tmp_path)]) == 2
    assert "runs in one process" in capsys.readouterr().err


def test_one_process_shares_with_nobody() -> None:
    with joined("cpu") as ranks:
        assert ranks is ALONE
    tensor = torch.arange(3.0)
    ranks.spread(tensor)
    ranks.sum_on_first(tensor)
    ranks.tell("end")
    assert torch.equal(tensor, torch.arange(3.0))
    assert ranks.share("abc") == ["a", "b", "c"] and ranks.numbers(4) == [4]
    assert [len(parts) for parts in ranks.gather([tensor])] == [1]


def _shares(items: Sequence[int], size: int) -> list[list[int]]:
    return [Ranks(rank, size).share(items) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_even_and_complete(size: int) -> None:
    shares = _shares(range(10), size)
    assert sorted(item for share in shares for item in share) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
