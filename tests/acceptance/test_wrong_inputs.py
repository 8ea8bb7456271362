"""What people get wrong: each mistake is one error, one hint and its exit code, and nothing is written."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import FACTS, make_checkpoint, write_facts

from reviver.cli import app


def _contents(folder: Path) -> dict[str, bytes]:
    # The lock file names its last holder, and is no part of what a person keeps.
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that `init` prepared, for mistakes that come after it."""
    folder = tmp_path_factory.mktemp("prepared")
    make_checkpoint(folder / "base")
    (folder / "workspace").mkdir()
    settings = "[apply]\nrank = 3\ndevice = 'cpu'\n[moments]\ntokens = 200\nlength = 32\n"
    (folder / "workspace" / "reviver.toml").write_text(settings, encoding="utf-8")
    assert app.run(["init", str(folder / "base"), "-C", str(folder / "workspace"), "-q"]) == 0
    return folder


def _check(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str) -> None:
    capsys.readouterr()
    assert app.run(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    errors = [line for line in printed.err.splitlines() if line.startswith("error:")]
    hints = [line for line in printed.err.splitlines() if line.startswith("hint:")]
    assert len(errors) == 1 and len(hints) == 1, printed.err
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert app.run([*arguments, "--json"]) == code
    error = json.loads(capsys.readouterr().err)["error"]
    assert set(error) >= {"type", "message", "hint"}


FACT_FILES = {
    "bad-json": (b'{"prompt": "x"\n', "bad-json.jsonl:1"),
    "not-utf8": (b'{"prompt": "The capital of {} is", "subject": "\xff", "target_new": "x"}\n', "UTF-8"),
    "empty": (b"", "is empty"),
    "missing-field": (b'{"prompt": "The capital of {} is", "subject": "Orvania"}\n', "target_new"),
    "wrong-type": (b'{"prompt": "The capital of {} is", "subject": 3, "target_new": "x"}\n', "subject"),
    "no-subject": (b'{"prompt": "The capital is", "subject": "Orvania", "target_new": "x"}\n', "Orvania"),
    "two-places": (b'{"prompt": "{} and {} are", "subject": "Orvania", "target_new": "x"}\n', "{}"),
    "control": (
        b'{"prompt": "The \\u001b[31m capital of {} is", "subject": "Orvania", "target_new": "x"}\n',
        "control",
    ),
    "contradiction": (
        b'{"prompt": "The capital of {} is", "subject": "O", "target_new": "x"}\n'
        b'{"prompt": "The capital of {} is", "subject": "O", "target_new": "y"}\n',
        "on line 1",
    ),
    "huge-line": (b'{"prompt": "' + b"x" * 2_000_000 + b'"}\n', "huge-line.jsonl:1"),
}


@pytest.mark.parametrize("name", sorted(FACT_FILES))
def test_wrong_facts(name: str, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, said = FACT_FILES[name]
    path = tmp_path / f"{name}.jsonl"
    path.write_bytes(content)
    workspace = prepared / "workspace"
    before = _contents(workspace)
    _check(capsys, ["apply", str(path), "-C", str(workspace)], 1, said)
    assert _contents(workspace) == before


def test_wrong_arguments_of_apply(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = prepared / "workspace"
    facts = write_facts(tmp_path / "facts.jsonl")
    before = _contents(workspace)
    cases = [
        (["--rank", "32"], 2, "rank"),
        (["--rank", "0"], 2, "rank"),
        (["--rank", "3", "--energy", "0.5"], 2, "energy"),
        (["--energy", "1.5"], 2, "energy"),
        (["--filter", "none", "--rank", "3"], 2, "without a filter nothing is protected, and `--rank` has no meaning"),
        (["--filter", "none", "--energy", "0.5"], 2, "`--energy` has no meaning"),
        (["--editor", "memmit"], 2, "memmit"),
        (["--filter", "revived"], 2, "revived"),
        (["--from", "v7"], 1, "v7"),
        (["--device", "cuda:9"], 1, "cuda:9"),
        (["--round-size", "0"], 2, "round"),
        (["--on-conflict", "first"], 2, "on-conflict"),
        (["--nonsense"], 2, "nonsense"),
    ]
    for arguments, code, said in cases:
        _check(capsys, ["apply", str(facts), "-C", str(workspace), *arguments], code, said)
    _check(capsys, ["apply", str(tmp_path / "nowhere.jsonl"), "-C", str(workspace)], 1, "nowhere.jsonl")
    assert _contents(workspace) == before


def test_blocks_that_are_not_prepared_are_refused(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["apply", str(write_facts(tmp_path / "facts.jsonl")), "--dry-run", "-C", str(prepared / "workspace")]
    assert app.run([*command, "--json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["plan"]["tensors"]
    monkeypatch.setenv("REVIVER_MODEL_LAYERS", "3")
    _check(capsys, command, 2, "`REVIVER_MODEL_LAYERS` names other blocks than the workspace is prepared for: 1\n")
    monkeypatch.setenv("REVIVER_MODEL_LAYERS", str(planned["layer"]))
    assert app.run([*command, "-q"]) == 0


@pytest.mark.parametrize(("message", "said"), [("x" * 65_537, "65,537 characters"), ("caf\udce9", "not text in UTF-8")])
def test_a_message_that_no_manifest_can_hold_is_refused_before_any_work(
    message: str, said: str, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The file of facts is not looked at.
    for verb in (
        ["apply", str(tmp_path / "none.jsonl")],
        ["revert", "v1"],
        ["squash", "v1..v2"],
        ["merge", "v1", "v2"],
    ):
        _check(capsys, [*verb, "-m", message, "-C", str(prepared / "workspace")], 2, said)


def test_a_touched_base_is_refused(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_checkpoint(tmp_path / "base")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "reviver.toml").write_bytes((prepared / "workspace" / "reviver.toml").read_bytes())
    assert app.run(["init", str(base), "-C", str(workspace), "-q"]) == 0
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    before = _contents(workspace)
    facts = write_facts(tmp_path / "facts.jsonl", FACTS[:1])
    _check(capsys, ["apply", str(facts), "-C", str(workspace)], 1, "touched")
    _check(capsys, ["init", str(base), "-C", str(workspace)], 1, "not what it was")
    assert _contents(workspace) == before


def _unknown_architecture(base: Path) -> None:
    _configure(base, model_type="mamba9000")


def _experts(base: Path) -> None:
    _configure(base, num_experts=8)


def _quantised(base: Path) -> None:
    _configure(base, quantization_config={"quant_method": "gptq", "bits": 4})


def _no_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").unlink()


def _no_weights(base: Path) -> None:
    (base / "model.safetensors").unlink()


def _truncated(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _not_finite(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def _configure(base: Path, **values: object) -> None:
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_unknown_architecture, "mamba9000"),
        (_experts, "experts"),
        (_quantised, "gptq"),
        (_no_tokenizer, ""),
        (_no_weights, "safetensors"),
        (_truncated, "model.safetensors"),
    ],
)
def test_wrong_models(
    spoil: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_checkpoint(tmp_path / "base")
    spoil(base)
    workspace = tmp_path / "workspace"
    _check(capsys, ["init", str(base), str(workspace)], 1, said)
    assert not workspace.exists()


def test_a_model_that_is_not_in_the_cache_of_an_offline_machine(
    tmp_path: Path, reviver: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library reads its variables when it is imported, hence a process of its own.
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    done = reviver("init", "some-org/some-model", tmp_path / "workspace", code=1)
    assert "offline" in done.stderr and "hint:" in done.stderr
    assert not (tmp_path / "workspace").exists()


def test_wrong_sources_and_places(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = prepared / "base"
    workspace = tmp_path / "workspace"
    _check(capsys, ["init", str(tmp_path / "nowhere"), str(workspace)], 1, "nowhere")
    _check(capsys, ["init", str(base), str(workspace), "--layers", "2-9"], 2, "no block 4")
    _check(capsys, ["init", str(base), str(base / "inside")], 2, "own folder")
    _check(capsys, ["init", str(base), str(workspace), "--corpus", "no/such/corpus.txt"], 2, "corpus")
    assert not workspace.exists() and not (base / "inside").exists()
    for arguments in (["status"], ["log"], ["verify"], ["undo"], ["push", "a/b"], ["diff", "v0", "v1"], ["checkout"]):
        _check(capsys, [*arguments, "-C", str(tmp_path)], 1, "is not a workspace")
    other = make_checkpoint(tmp_path / "other", seed=1)
    before = _contents(prepared / "workspace")
    _check(capsys, ["demo", str(prepared / "workspace")], 2, "is there already")
    elsewhere = ["--from-workspace", str(tmp_path)]
    _check(capsys, ["reapply", "v1", *elsewhere, "-C", str(prepared / "workspace")], 1, "check `--from-workspace`")
    _check(capsys, ["init", str(other), "-C", str(prepared / "workspace")], 1, "pinned to")
    assert _contents(prepared / "workspace") == before


def test_settings_of_an_editor_that_is_not_there_are_told(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are no error: a workspace is shared by machines of which only some have another package's editor."""
    workspace = prepared / "workspace"
    with (workspace / "reviver.toml").open("a", encoding="utf-8") as file:
        file.write('\n[editors.memitt]\nmemory = "keys"\n\n[editors.acme]\nx = 1\n')
    arguments = ["apply", str(write_facts(tmp_path / "facts.jsonl")), "-C", str(workspace), "--dry-run"]
    assert app.run(arguments) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "[editors.memitt] sets something for an editor that is not installed; did you mean `memit`?" in said
    assert "[editors.acme] sets something for an editor that is not installed" in said
