"""Settings: precedence, sources, ranges, and errors that name the line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from reviver.errors import SettingsError
from reviver.settings import FILE_NAME, Settings, parse_layers, variable_name


def load(folder: Path, text: str = "", environment: dict[str, str] | None = None, **given: object) -> Settings:
    (folder / FILE_NAME).write_text(text, encoding="utf-8")
    return Settings.load(folder, {name.replace("_", ".", 1): value for name, value in given.items()}, environment or {})


def test_the_nearest_source_wins(tmp_path: Path) -> None:
    text = "[apply]\nround_size = 2\n"
    variable = {"REVIVER_APPLY_ROUND_SIZE": "3"}
    for settings, value, source in (
        (load(tmp_path), 100, "default"),
        (load(tmp_path, text), 2, f"`round_size` in `{FILE_NAME}`"),
        (load(tmp_path, text, variable), 3, "`REVIVER_APPLY_ROUND_SIZE`"),
        (load(tmp_path, text, variable, apply_round_size=4), 4, "`--round-size`"),
        (load(tmp_path, text, variable, apply_round_size=None), 3, "`REVIVER_APPLY_ROUND_SIZE`"),
    ):
        assert settings.apply.round_size == value
        assert settings.source("apply.round_size") == source


def test_a_preset_fills_what_nobody_set(tmp_path: Path) -> None:
    settings = load(tmp_path, "[targets]\nsteps = 7\n").filled({"targets.steps": 25, "targets.clamp": 0.75}, "gpt2-xl")
    assert (settings.targets.steps, settings.targets.clamp) == (7, 0.75)
    assert settings.source("targets.clamp") == "gpt2-xl"
    assert settings.source("targets.steps") == f"`steps` in `{FILE_NAME}`"
    assert settings.source("targets.kl") == "default"
    with pytest.raises(KeyError):
        settings.source("targets.nothing")


def test_rank_and_energy_replace_each_other_across_sources_and_clash_within_one(tmp_path: Path) -> None:
    settings = load(tmp_path, "[apply]\nenergy = 0.5\n", apply_rank=8)
    assert (settings.apply.rank, settings.apply.energy) == (8, None)
    assert settings.source("apply.energy") == "default"
    with pytest.raises(SettingsError, match="`--rank` and `--energy` exclude each other"):
        load(tmp_path, apply_rank=8, apply_energy=0.5)
    with pytest.raises(SettingsError, match=r"`rank` in `reviver\.toml` and `energy` in `reviver\.toml` exclude"):
        load(tmp_path, "[apply]\nenergy = 0.5\nrank = 8\n")


def test_the_default_file_sets_nothing_and_explains_everything(tmp_path: Path) -> None:
    text = Settings.default_toml()
    assert load(tmp_path, text) == Settings()
    settings = Settings()
    examples = tomllib.loads(re.sub(r"(?m)^# (\w+ = )", r"\1", text))
    names = [f"{section}.{key}" for section, table in examples.items() for key in table]
    assert names == [name for name, _, _ in settings.items()]
    for name, default, _ in settings.items():
        section, key = name.split(".")
        assert default in (None, examples[section][key]), f"the file shows another default for {name}"
    del examples["apply"]["energy"]
    every = load(tmp_path, re.sub(r"(?m)^# (\w+ = )", r"\1", text).replace("energy = 0.5", ""))
    assert every.apply.rank == 64
    assert every.model.layers == (4, 5, 6, 7, 8)
    for line in text.splitlines():
        assert len(line) <= 120


def test_every_description_is_full_sentences() -> None:
    blocks = re.findall(r"((?:^# .*\n)+)# \w+ = ", Settings.default_toml(), re.MULTILINE)
    assert len(blocks) == len(list(Settings().items()))
    for block in blocks:
        words = block.replace("\n# ", " ").removeprefix("# ").strip()
        assert words.endswith(".")
        assert words[0].isupper() or words[0] in "λ`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[apply]\nrank = 0", "line 2: `rank` in [apply] must be at least 1, not 0"),
        ("[apply]\nrank = true", "line 2: `rank` in [apply] must be a whole number, not True"),
        ("[apply]\nrank = 8.0", "line 2: `rank` in [apply] must be a whole number, not 8.0"),
        ("[apply]\n\nenergy = 1", "line 3: `energy` in [apply] must be below 1, not 1"),
        ("[targets]\nclamp = nan", "line 2: `clamp` in [targets] must be a finite number, not nan"),
        ("[targets]\nclamp = 1" + "0" * 400, "line 2: `clamp` in [targets] must be a finite number, not 1000"),
        (
            "[apply]\nfilter = 'all'",
            "line 2: `filter` in [apply] must be one of `none`, `revive`, `constrained`, not 'all'",
        ),
        (
            "[apply]\ndevice = 'gpu'",
            "line 2: `device` in [apply] must be `auto`, `cpu`, `cuda` or `cuda:1`, not 'gpu'",
        ),
        ("[apply]\neditor = ''", "line 2: `editor` in [apply] must be a text that can be read, not ''"),
        ("[apply]\nrnak = 8", "line 2: there is no setting `rnak` in [apply]; did you mean `rank`?"),
        ("# x\n[aply]\nrank = 8", "line 2: there is no section [aply]; did you mean [apply]?"),
        ("rank = 8", "line 1: `rank` belongs under [apply]"),
        ("apply = 8", "line 1: `apply` must be a section [apply]"),
        ("apply.rank = -1", "line 1: `rank` in [apply] must be at least 1, not -1"),
        ("[apply\nrank = 8", "cannot be read: Expected"),
        ("[model]\nlayers = []", "line 2: `layers` in [model] must name blocks in ascending order"),
        ("[model]\nlayers = [3, 3]", "line 2: `layers` in [model] must name blocks in ascending order"),
    ],
)
def test_a_wrong_file_names_the_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert caught.value.message.startswith(f"`{FILE_NAME}` {message}")
    assert caught.value.exit_code == 2
    assert caught.value.hint == f"correct `{tmp_path / FILE_NAME}`"


def test_all_problems_of_a_file_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has 2 problems") as caught:
        load(tmp_path, "[apply]\nrank = 0\nround_size = 'x'")
    assert [problem[:6] for problem in caught.value.facts["problems"]] == ["line 2", "line 3"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b"[apply]\nrank = '\xff'", b"#" * 1_000_001, b"a = " + b"[" * 100_000], ids=range(4)
)
def test_a_hostile_file_is_one_error(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(raw)
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.load(tmp_path, environment={})


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"\xef\xbb\xbf[apply]\r\nrank = 2\r\n")
    assert Settings.load(tmp_path, environment={}).apply.rank == 2


def test_an_editors_setting_in_the_environment_is_not_silently_ignored(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no setting `REVIVER_EDITORS_MEMIT_MEMORY`") as caught:
        load(tmp_path, environment={"REVIVER_EDITORS_MEMIT_MEMORY": "keys"})
    assert caught.value.hint == "what an editor is told stands in `reviver.toml` under [editors.NAME]"


def test_a_folder_in_the_file_s_place(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(SettingsError, match="cannot read"):
        Settings.load(tmp_path, environment={})


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("REVIVER_APPLY_RANK", "8", "apply.rank", 8),
        ("REVIVER_APPLY_ENERGY", "0.25", "apply.energy", 0.25),
        ("REVIVER_APPLY_DEVICE", "cuda:1", "apply.device", "cuda:1"),
        ("REVIVER_MODEL_LAYERS", "4-8", "model.layers", (4, 5, 6, 7, 8)),
        ("REVIVER_TARGETS_CLAMP", "4", "targets.clamp", 4.0),
        ("REVIVER_APPLY_ROUND_SIZE", "", "apply.round_size", 100),
    ],
)
def test_variables(variable: str, value: str, name: str, expected: object, tmp_path: Path) -> None:
    settings = load(tmp_path, environment={variable: value})
    assert settings.value(name) == expected
    assert type(settings.value(name)) is type(expected)
    assert variable_name(name) == variable


@pytest.mark.parametrize(
    ("variable", "value", "message", "hint"),
    [
        ("REVIVER_APPLY_RANK", "x", "`REVIVER_APPLY_RANK` must be a whole number, not 'x'", "unset"),
        ("REVIVER_APLY_RANK", "8", "there is no setting `REVIVER_APLY_RANK`", "did you mean `REVIVER_APPLY_RANK`?"),
        ("REVIVER_MODEL_NOTHING", "8", "there is no setting `REVIVER_MODEL_NOTHING`", "see"),
    ],
)
def test_wrong_variables(variable: str, value: str, message: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, environment={variable: value})
    assert caught.value.message == message
    assert hint in str(caught.value.hint)


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    others = {"REVIVER_DEBUG": "1", "REVIVER_DIRECTORY": "x", "REVIVER_JSON": "1", "REVIVER_HOSTNAME": "x"}
    assert load(tmp_path, environment=others) == Settings()


def test_blocks_and_matrix_belong_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="belong together"):
        load(tmp_path, "[model]\nblocks = 'model.layers'")
    settings = load(tmp_path, "[model]\nblocks = 'model.layers'\nmatrix = 'mlp.down_proj'")
    assert settings.model.matrix == "mlp.down_proj"
    with pytest.raises(SettingsError, match="must be a module path such as"):
        load(tmp_path, "[model]\nblocks = '../x'\nmatrix = 'y'")


def test_spans_of_layers() -> None:
    assert parse_layers("4-6") == (4, 5, 6)
    assert parse_layers("0, 3 , 5-6") == (0, 3, 5, 6)
    for wrong in ("", "6-4", "a", "3,3", "5,1", "-1", "4-", "1--2", "٣", "1-99999999999"):
        with pytest.raises(ValueError, match=r".*"):
            parse_layers(wrong)


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = load(tmp_path)
    with pytest.raises(AttributeError):
        settings.apply.rank = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.sources["apply.rank"] = "x"  # type: ignore[index]
