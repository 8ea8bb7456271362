"""The registry: built-in editors, editors of other packages, and what goes wrong with them."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from reviver.editing.editors import Editor, editor_names, get_editor
from reviver.errors import EditorError, SettingsError, UsageError
from reviver.settings import describe

BUILT_IN = ("memit", "rect", "prune", "alphaedit", "nse", "ultraedit")

PLUGIN = """
from dataclasses import dataclass
import torch
from reviver.editing.editors import DenseUpdate, Editor, LayerProblem, Solution, setting

@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    gain: float = setting(2.0, "how much", least=0.0)

def solve(problem, settings):
    return Solution(DenseUpdate(settings.gain * problem.residual_ON.double() @ problem.keys_IN.double().T))

EDITOR = Editor(name="outer", title="Outer product", reference_url="https://example.org/outer", solve=solve,
                settings_type=Settings, factored=False, facts_apart=False, needs_second_moment=False)
"""


def install(folder: Path, package: str, source: str, entry: str) -> None:
    """Lay a package down as an installer would: a module and its metadata, on a folder of the path."""
    (folder / f"{package}.py").write_text(source)
    information = folder / f"{package}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[reviver.editors]\n{entry}\n")


def test_the_built_in_editors() -> None:
    assert editor_names()[: len(BUILT_IN)] == BUILT_IN
    for name in BUILT_IN:
        editor = get_editor(name)
        assert isinstance(editor, Editor)
        assert editor.name == name
        assert editor.reference_url.startswith("https://arxiv.org/abs/")
        for each in fields(editor.settings_type):
            assert each.metadata["description"]
        assert editor.settings() == editor.settings_type()
        assert f"`{name}`" in describe("apply.editor")


def test_listing_imports_no_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "reviver_unread", "raise SystemExit('imported')", "unread = reviver_unread:EDITOR")
    monkeypatch.syspath_prepend(tmp_path)
    assert editor_names() == (*BUILT_IN, "unread")
    assert "reviver_unread" not in sys.modules


def test_an_editor_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from reviver.editing.editors import LayerProblem

    install(tmp_path, "reviver_outer", PLUGIN, "outer = reviver_outer:EDITOR")
    monkeypatch.syspath_prepend(tmp_path)
    assert editor_names() == (*BUILT_IN, "outer")
    editor = get_editor("outer")
    assert editor.title == "Outer product"
    problem = LayerProblem(keys_IN=torch.ones(3, 2), residual_ON=torch.ones(4, 2))
    assert editor.solve(problem, editor.settings({"gain": 5})).update.dense().tolist() == [[10.0] * 3] * 4


@pytest.mark.parametrize(
    ("source", "entry", "words"),
    [
        (
            "import a_package_that_is_not_there",
            "broken = reviver_broken:EDITOR",
            "cannot be imported: ModuleNotFoundError",
        ),
        (
            "raise RuntimeError('first\\nsecond \x1b[31m')",
            "broken = reviver_broken:EDITOR",
            "cannot be imported: RuntimeError: first",
        ),
        ("x = 1", "broken = reviver_broken:EDITOR", "cannot be imported: AttributeError"),
        ("EDITOR = 3", "broken = reviver_broken:EDITOR", "does not name an editor"),
        (PLUGIN, "broken = reviver_broken:EDITOR", "does not name an editor"),
    ],
)
def test_a_broken_package_is_one_error_and_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, entry: str, words: str
) -> None:
    install(tmp_path, "reviver_broken", source, entry)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "reviver_broken", raising=False)
    assert "broken" in editor_names()
    with pytest.raises(EditorError) as caught:
        get_editor("broken")
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message
    assert caught.value.hint
    assert get_editor("memit").name == "memit"
    monkeypatch.delitem(sys.modules, "reviver_broken", raising=False)


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "reviver_first", PLUGIN, "outer = reviver_first:EDITOR")
    install(tmp_path, "reviver_second", PLUGIN, "outer = reviver_second:EDITOR")
    monkeypatch.syspath_prepend(tmp_path)
    assert editor_names().count("outer") == 1
    with pytest.raises(EditorError, match="reviver_first, reviver_second"):
        get_editor("outer")


def test_a_package_cannot_replace_a_built_in_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "reviver_other", PLUGIN, "memit = reviver_other:EDITOR")
    monkeypatch.syspath_prepend(tmp_path)
    assert get_editor("memit").title == "MEMIT"
    assert editor_names() == BUILT_IN


def test_an_editor_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="no editor `mmeit`") as caught:
        get_editor("mmeit")
    assert caught.value.hint == "did you mean `memit`?"
    with pytest.raises(UsageError) as caught:
        get_editor("\x1b[31mzzz")
    assert "\x1b" not in caught.value.message
    assert "`ultraedit`" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("editor", "values", "words"),
    [
        ("rect", {"keeep": 0.4}, "has no setting `keeep`"),
        ("rect", {"keep": "much"}, "must be a number"),
        ("rect", {"keep": True}, "must be a number"),
        ("rect", {"keep": float("nan")}, "must be a number"),
        ("rect", {"keep": 1.5}, "must be at most 1"),
        ("rect", {"keep": -0.1}, "must be at least 0"),
        ("memit", {"memory": "all"}, "must be `none` or `keys`"),
        ("memit", {"memory": 3}, "must be `none` or `keys`"),
        ("alphaedit", {"threshold": -1}, "must be at least 0"),
    ],
)
def test_settings_are_checked(editor: str, values: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        get_editor(editor).settings(values)
    assert words in caught.value.message
    assert caught.value.hint


def test_settings_take_plain_values() -> None:
    assert get_editor("rect").settings({"keep": 1}).keep == 1.0
    assert get_editor("alphaedit").settings({"threshold": None}).threshold is None
    assert get_editor("alphaedit").settings({"threshold": 0.02}).threshold == 0.02
