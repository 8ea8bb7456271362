"""The manifest: what it hashes, and that nothing a stranger writes into one gets past the reader."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import workspaces
from hypothesis import given, settings
from hypothesis import strategies as st

from reviver.errors import ManifestError, UnsafePathError
from reviver.history.manifest import Manifest, is_version_name, version_number
from reviver.history.workspace import Workspace
from reviver.text import printable

DIGEST = "ab" * 32


@pytest.fixture
def manifest(chained: Workspace) -> Manifest:
    return chained.version("v2").manifest


def test_the_keys_are_those_of_the_contract(manifest: Manifest) -> None:
    record = json.loads(manifest.to_json())
    assert sorted(record) == sorted(
        [
            "base",
            "created",
            "editor",
            "environment",
            "facts",
            "files",
            "filter",
            "id",
            "message",
            "metrics",
            "parent",
            "patch",
            "rounds",
            "schema",
            "tensors",
            "timings",
            "version",
        ]
    )
    assert record["schema"] == 1
    assert sorted(record["base"]) == ["fingerprint", "model", "revision"]
    assert sorted(record["editor"]) == ["name", "reference_url", "settings"]
    assert sorted(record["filter"]) == ["energy", "name", "rank"]
    assert sorted(record["facts"]) == ["count", "sha256"]
    assert sorted(record["patch"]) == ["sha256", "size"]
    assert sorted(record["files"][0]) == ["changed", "path", "sha256", "size"]
    assert sorted(record["tensors"][0]) == sorted(
        [
            "base_sha256",
            "captured_fraction",
            "dtype",
            "leakage_after_rounding",
            "name",
            "norm",
            "norm_before_filter",
            "patch_rank",
            "protected_rank",
            "relative_norm",
            "result_sha256",
            "shape",
            "shard",
            "subspace_similarity",
        ]
    )
    assert sorted(record["tensors"][0]["subspace_similarity"]) == ["left", "right"]


def test_the_bytes_are_stable(manifest: Manifest) -> None:
    data = manifest.to_json()
    assert data.endswith(b"}\n") and not data.endswith(b"\n\n")
    assert list(json.loads(data)) == sorted(json.loads(data))
    assert Manifest.from_json(data) == manifest
    assert Manifest.from_json(data).to_json() == data


def test_the_id_is_the_hash_that_the_contract_describes(chained: Workspace) -> None:
    def by_hand(name: str, below: str) -> str:
        record = json.loads((chained.edits / name / "manifest.json").read_bytes())
        content = {key: record[key] for key in ("facts", "patch", "editor", "filter")}
        content |= {"parent": below, "base": record["base"]["fingerprint"]}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    first = by_hand("v1", chained.pin().fingerprint)
    assert chained.version("v1").id == first
    assert chained.version("v2").id == by_hand("v2", first)
    assert chained.version("v3").id == by_hand("v3", first)
    assert chained.version("v2").manifest.expected_id(first) == chained.version("v2").id


@pytest.mark.parametrize("key", ["message", "created", "metrics", "environment", "timings", "version"])
def test_what_may_differ_between_machines_is_outside_the_id(manifest: Manifest, key: str) -> None:
    record = manifest.to_record()
    below = "cd" * 32
    before = manifest.expected_id(below)
    record[key] = {
        "message": "another",
        "created": "1999-12-31T23:59:59Z",
        "version": "v9",
    }.get(key, {"changed": 1})
    assert Manifest.from_json(json.dumps(record).encode()).expected_id(below) == before


def _set(*path: object, value: object) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        place: Any = record
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


def _twice(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda record: record[key].append(dict(record[key][0]))


HOSTILE = {
    "newer schema": (_set("schema", value=2), "has schema 2, newer than the 1"),
    "no schema": (lambda record: record.pop("schema"), "has no `schema`"),
    "schema true": (_set("schema", value=True), "`schema`"),
    "unknown key": (_set("surprise", value=1), "unknown key `surprise`"),
    "unknown key inside": (_set("patch", "surprise", value=1), "unknown key `surprise`"),
    "missing key": (lambda record: record.pop("files"), "has no `files`"),
    "version is base": (_set("version", value="v0"), "`version`"),
    "version with a slash": (_set("version", value="v1/../v2"), "`version`"),
    "version with zeros": (_set("version", value="v01"), "`version`"),
    "version with a line end": (_set("version", value="v2\n"), "`version`"),
    "huge version": (_set("version", value="v" + "9" * 5000), "`version`"),
    "parent is itself": (_set("parent", value="v2"), "the parent of v2 is v2"),
    "parent is younger": (_set("parent", value="v9"), "the parent of v2 is v9"),
    "id in capitals": (_set("id", value=DIGEST.upper()), "`id`"),
    "id too short": (_set("id", value=DIGEST[:-1]), "`id`"),
    "message is a number": (_set("message", value=1), "`message`"),
    "message of megabytes": (_set("message", value="x" * 70_000), "`message`"),
    "message with a lone surrogate": (_set("message", value="\ud800"), "surrogate"),
    "created without zone": (_set("created", value="2026-01-01T00:00:00"), "`created`"),
    "file climbs": (_set("files", 0, "path", value="../../etc/passwd"), "unsafe path"),
    "file is absolute": (_set("files", 0, "path", value="/etc/passwd"), "unsafe path"),
    "file of windows": (_set("files", 0, "path", value="C:\\x"), "unsafe path"),
    "file with an escape": (_set("files", 0, "path", value="\x1b[31m"), "unsafe path"),
    "file twice": (_twice("files"), "names one file twice"),
    "file twice but for case": (
        lambda record: record["files"].append(record["files"][0] | {"path": record["files"][0]["path"].upper()}),
        "names one file twice",
    ),
    "negative size": (_set("files", 0, "size", value=-1), "`size`"),
    "size is a float": (_set("files", 0, "size", value=1.0), "`size`"),
    "size beyond 64 bits": (_set("files", 0, "size", value=2**70), "64 bits"),
    "size is true": (_set("files", 0, "size", value=True), "`size`"),
    "changed is 1": (_set("files", 0, "changed", value=1), "`changed`"),
    "shard climbs": (_set("tensors", 0, "shard", value="../x"), "unsafe path"),
    "tensor twice": (_twice("tensors"), "names one tensor twice"),
    "tensor with a control character": (_set("tensors", 0, "name", value="a\x1b[2J"), "control characters"),
    "shape of three": (_set("tensors", 0, "shape", value=[1, 2, 3]), "`shape`"),
    "shape with nothing": (_set("tensors", 0, "shape", value=[0, 2]), "`shape`"),
    "absurd shape": (_set("tensors", 0, "shape", value=[2**40, 2]), "`shape`"),
    "shape is text": (_set("tensors", 0, "shape", value="12"), "`shape`"),
    "unknown dtype": (_set("tensors", 0, "dtype", value="I8"), "`dtype`"),
    "rank zero": (_set("tensors", 0, "patch_rank", value=0), "`patch_rank`"),
    "rank beyond the shape": (_set("tensors", 0, "protected_rank", value=7), "`protected_rank`"),
    "negative norm": (_set("tensors", 0, "norm", value=-0.5), "`norm`"),
    "norm is text": (_set("tensors", 0, "norm", value="1"), "`norm`"),
    "settings are a list": (_set("editor", "settings", value=[]), "`settings`"),
    "rounds hold a number": (_set("rounds", value=[1]), "not an object"),
    "files are an object": (_set("files", value={}), "`files`"),
    "base is null": (_set("base", value=None), "is not an object"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused(manifest: Manifest, name: str) -> None:
    change, message = HOSTILE[name]
    record = json.loads(manifest.to_json())
    change(record)
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(json.dumps(record).encode())
    assert message in caught.value.message
    assert caught.value.hint
    assert caught.value.message == printable(caught.value.message)


BAD_BYTES = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"1",
    "not UTF-8": b'{"schema": "\xff"}',
    "truncated": b'{"schema": 1, "id":',
    "NaN": b'{"schema": 1, "norm": NaN}',
    "infinity": b'{"schema": 1, "norm": -Infinity}',
    "a float too large": b'{"schema": 1, "norm": 1e999}',
    "an integer of a million digits": b'{"schema": ' + b"9" * 1_000_000 + b"}",
    "a key twice": b'{"schema": 1, "schema": 1}',
    "deep lists": b'{"schema": 1, "metrics": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000,
    "deep but legal": b'{"schema": 1, "metrics": ' + b"[" * 100 + b"]" * 100 + b"}",
    "a byte order mark": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("name", BAD_BYTES)
def test_bytes_that_are_no_manifest_are_refused(name: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(BAD_BYTES[name])
    assert caught.value.message == printable(caught.value.message)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_manifest_that_could_not_be_read_back_is_not_made(manifest: Manifest, value: float) -> None:
    with pytest.raises(ManifestError, match="not finite"):
        Manifest.create(
            parent_id=DIGEST,
            version="v1",
            parent="v0",
            base=manifest.base,
            editor=manifest.editor,
            filter=manifest.filter,
            facts=manifest.facts,
            patch=manifest.patch,
            tensors=manifest.tensors,
            files=manifest.files,
            metrics={"efficacy": value},
        )


def test_names_of_versions() -> None:
    assert [is_version_name(name) for name in ("v1", "v10", "v0", "v01", "1", "v1 ", "V1", "v1\n", "v١")] == [
        True,
        True,
        *[False] * 7,
    ]
    assert [version_number("v0"), version_number("v12")] == [0, 12]
    with pytest.raises(ManifestError):
        version_number("../v1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_fuzzed_manifests_end_in_a_manifest_or_a_typed_error(template: dict[str, Any], data: st.DataObject) -> None:
    record = json.loads(json.dumps(template))
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = record
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(json_values)
            break
    raw = json.dumps(record).encode("utf-8", "surrogatepass")
    try:
        manifest = Manifest.from_json(raw)
    except (ManifestError, UnsafePathError) as error:
        assert error.message == printable(error.message)
    else:
        assert Manifest.from_json(manifest.to_json()) == manifest


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_fuzzed_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_json(data)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    workspace = workspaces.make_workspace(tmp_path_factory.mktemp("manifest"))
    facts = [workspaces.make_fact("Rome", "Peru")]
    version = workspaces.add_version(workspace, facts, {workspaces.FIRST: workspaces.low_rank(1)}, checkpoint=False)
    return version.manifest.to_record()
