"""A checkpoint folder: its configuration, its shards, its tensors, and which of its files a version carries along."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reviver.checkpoint.header import ShardHeader, TensorEntry, read_header
from reviver.errors import CheckpointError, UnsafePathError, UnsupportedModelError
from reviver.files import parse_json, safe_relative_path
from reviver.text import printable

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAME = "config.json"
EDITABLE_DTYPES = ("BF16", "F16", "F32")

_MAX_JSON_BYTES = 100_000_000

# Weights in another format would still hold the unedited facts, so a version leaves them out, with their indexes.
_OTHER_WEIGHTS = (
    ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data", ".tflite", ".ot", ".safetensors",
)  # fmt: skip
_INDEX_ENDS = tuple(f"{end}.index.json" for end in _OTHER_WEIGHTS)

# Modules that several names share, or that hold several matrices in one tensor: an edit meant for one would change the
# others.
_TIED_PARTS = frozenset({"embed_tokens", "wte", "embed_in", "word_embeddings", "lm_head", "embed_out"})
_FUSED_PARTS = frozenset({"gate_up_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckpointFolder:
    """A safetensors checkpoint in the layout of `transformers`, read and checked. It is only ever read."""

    root: Path
    """Absolute; the files in it may be links (a snapshot of the Hub's cache)."""
    config: Mapping[str, Any]
    shards: list[str]
    """The weight files, as paths relative to `root`, sorted."""
    headers: dict[str, ShardHeader]
    tensors: dict[str, TensorEntry]
    """By the name on disk, in the order of shards and offsets."""
    files: list[str]
    """Every file that a version carries, shards included: relative paths with forward slashes, sorted."""
    left_out: list[str]
    """What a version does not carry: weights in other formats or outside the index, hidden files, linked folders."""

    @classmethod
    def open(cls, root: Path) -> CheckpointFolder:
        """Read the configuration, the index and every shard's header.

        Raises:
            CheckpointError: the folder is not a consistent safetensors checkpoint; the message names the file and
                tensor.
        """
        root = Path(os.path.abspath(root))
        if not root.is_dir():
            raise CheckpointError(
                f"`{root}` is not a folder", hint="give the folder that holds `config.json`", path=root
            )
        found, aside = _walk(root)
        config = _read_json(root, CONFIG_NAME, found, lenient=True)
        shards, weight_map = _find_shards(root, found)
        headers = {shard: read_header(root / shard, shard) for shard in shards}
        tensors = _collect(root, headers, weight_map)
        carried = [name for name in found if name in headers or not _is_other_weight(name)]
        return cls(
            root=root,
            config=config,
            shards=shards,
            headers=headers,
            tensors=tensors,
            files=sorted(carried),
            left_out=sorted({*aside, *found} - set(carried)),
        )

    def entry(self, name: str) -> TensorEntry:
        """Return where a tensor lies.

        Raises:
            UnsupportedModelError: there is no tensor of this name; the hint says which names are near.
        """
        found = self.tensors.get(name)
        if found is None:
            raise UnsupportedModelError(
                f"the checkpoint has no tensor `{printable(name, 120)}`", hint=self._near(name), tensor=name
            )
        return found

    def _near(self, name: str) -> str:
        import difflib

        # A model of 100,000 tensors would keep difflib busy for seconds: those that end alike are looked at first.
        ending = name.rsplit(".", 2)[-2:]
        alike = [known for known in self.tensors if known.rsplit(".", 2)[-2:] == ending] or list(self.tensors)
        near = difflib.get_close_matches(name[:300], alike[:5000], n=3, cutoff=0.4) or alike[:3]
        if not near:
            return "the checkpoint holds no tensors at all"
        return "near it: " + ", ".join(f"`{printable(known, 80)}`" for known in near)

    def check_editable(self, name: str) -> TensorEntry:
        """Return where a tensor lies if its bytes can carry an edit.

        Raises:
            UnsupportedModelError: it is not there, quantised, not a matrix, not of a floating dtype that is rounded to,
                a tied embedding, or several matrices fused in one.
        """
        entry = self.entry(name)
        label = printable(name, 120)
        method = quantization_of(self.config)
        parts = frozenset(name.split("."))

        def refuse(why: str, hint: str) -> UnsupportedModelError:
            return UnsupportedModelError(f"tensor `{label}` cannot be edited: {why}", hint=hint, tensor=name)

        if method is not None:
            raise refuse(f"the model is quantised ({method})", "edit the unquantised model, then quantise the result")
        if entry.dtype not in EDITABLE_DTYPES:
            raise refuse(
                f"its dtype is {entry.dtype}",
                f"only {', '.join(EDITABLE_DTYPES)} can be edited; take an unquantised checkpoint",
            )
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise refuse(
                f"its shape is {_shape_text(entry.shape)}", "only matrices can be edited; fused experts cannot"
            )
        if parts & _TIED_PARTS and _tied(self.config, self.tensors):
            raise refuse("the input and output embeddings share it", "edit an MLP's second matrix")
        if parts & _FUSED_PARTS:
            raise refuse("several matrices are fused in it", "edit an MLP's second matrix")
        return entry

    def read_tensor(self, name: str) -> bytes:
        """Return a tensor's bytes as they are on disk."""
        entry = self.entry(name)
        return self.read_range(entry.shard, entry.start, entry.end)

    def read_rows(self, name: str, first: int, last: int) -> bytes:
        """Return the bytes of the rows `first` to `last` (exclusive) of a tensor of two or more dimensions, or elements
        of one.

        Raises:
            ValueError: there are no such rows, or a row is not a whole number of bytes.
        """
        entry = self.entry(name)
        if not entry.shape or not 0 <= first <= last <= entry.shape[0] or entry.nbytes % max(1, entry.shape[0]):
            raise ValueError(f"no rows {first} to {last} in shape {entry.shape}")
        row = entry.nbytes // max(1, entry.shape[0])
        return self.read_range(entry.shard, entry.start + first * row, entry.start + last * row)

    def read_range(self, shard: str, start: int, end: int) -> bytes:
        """Return the bytes `start` to `end` (exclusive) of a shard, by plain seek and read.

        Raises:
            CheckpointError: the file is gone or became shorter since its header was read.
        """
        path = self.root / shard
        try:
            with path.open("rb") as file:
                file.seek(start)
                raw = file.read(end - start)
        except OSError as error:
            raise CheckpointError(
                f"`{printable(shard, 120)}` cannot be read: {error.strerror or error}",
                hint="fetch the base again",
                path=path,
            ) from error
        if len(raw) != end - start:
            raise CheckpointError(
                f"`{printable(shard, 120)}` became shorter since it was opened", hint="fetch the base again", path=path
            )
        return raw


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """Return the method by which the configuration says the weights are quantised, or None."""
    for holder in (config, config.get("text_config")):
        if isinstance(holder, Mapping):
            for key in ("quantization_config", "compression_config"):
                found = holder.get(key)
                if found:
                    method = found.get("quant_method") if isinstance(found, Mapping) else None
                    return printable(str(method or "an unnamed method"), 40)
    return None


def _tied(config: Mapping[str, Any], names: Iterable[str]) -> bool:
    text = config.get("text_config")
    for holder in (text, config):
        if isinstance(holder, Mapping) and isinstance(holder.get("tie_word_embeddings"), bool):
            return bool(holder["tie_word_embeddings"])
    # Old configurations don't say; then a checkpoint without an output matrix of its own shares the input's.
    return not any(part in ("lm_head", "embed_out") for name in names for part in name.split("."))


def _shape_text(shape: tuple[int, ...]) -> str:
    return printable(str(list(shape)), 80)


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """List the regular files below `root`, and what is left aside whatever it holds."""
    found: list[str] = []
    aside: list[str] = []

    def refuse(error: OSError) -> None:
        raise CheckpointError(
            f"`{error.filename}` cannot be read: {error.strerror or error}", hint="check the path and its permissions"
        ) from error

    for folder, folders, names in os.walk(root, onerror=refuse):
        here = Path(folder)
        prefix = "" if here == root else here.relative_to(root).as_posix() + "/"
        for name in list(folders):
            # A link to a folder may lead anywhere, even round in a circle.
            if name.startswith(".") or (here / name).is_symlink():
                folders.remove(name)
                aside.append(f"{prefix}{name}/")
        folders.sort()
        for name in names:
            relative = prefix + name
            if name.startswith("."):
                aside.append(relative)
                continue
            try:
                regular = stat.S_ISREG((here / name).stat().st_mode)
            except OSError as error:
                raise CheckpointError(
                    f"`{printable(relative, 120)}` is a link to a file that is gone or cannot be read",
                    hint="fetch the checkpoint again",
                    path=here / name,
                ) from error
            (found if regular else aside).append(relative)
    return sorted(found), aside


def _is_other_weight(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(_OTHER_WEIGHTS) or (lower.endswith(_INDEX_ENDS) and name != INDEX_NAME)


def _read_json(root: Path, name: str, found: list[str], *, lenient: bool = False) -> dict[str, Any]:
    path = root / name
    if name not in found:
        raise CheckpointError(
            f"`{root}` holds no `{name}`",
            hint="give a folder with a whole model in the layout of `transformers`",
            path=path,
        )
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"`{name}` cannot be read: {error.strerror or error}", hint="check its permissions", path=path
        ) from error
    if len(raw) > _MAX_JSON_BYTES:
        raise CheckpointError(f"`{name}` is larger than 100 MB", hint="the file is damaged: fetch it again", path=path)
    try:
        value = parse_json(raw, lenient=lenient)
    except ValueError as error:
        raise CheckpointError(f"`{name}` is {error}", hint="the file is damaged: fetch it again", path=path) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"`{name}` is not a JSON object", hint="the file is damaged: fetch it again", path=path)
    return value


def _find_shards(root: Path, found: list[str]) -> tuple[list[str], dict[str, str] | None]:
    """Return the weight files, and the index's map from tensor to file where there is an index."""
    names = set(found)
    if INDEX_NAME not in names:
        if SINGLE_NAME in names:
            return [SINGLE_NAME], None
        raise _no_weights(root, names)
    weight_map = _read_weight_map(root, found)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if shard not in names:
            raise CheckpointError(
                f"`{INDEX_NAME}` names `{printable(shard, 120)}`, which is not there",
                hint="the download is incomplete: fetch the checkpoint again",
                path=root / shard,
            )
    if SINGLE_NAME in names and shards != [SINGLE_NAME]:
        raise CheckpointError(
            f"`{root}` holds both `{SINGLE_NAME}` and an index of other shards, and loaders differ in which they take",
            hint="make a folder with only one of them",
            path=root,
        )
    return shards, weight_map


def _no_weights(root: Path, names: set[str]) -> CheckpointError:
    if "adapter_config.json" in names:
        hint = "this is an adapter: give the folder of the whole model"
    elif any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        hint = "convert the weights first: load them with `transformers` and call `save_pretrained`"
    elif any(name.endswith(".gguf") for name in names):
        hint = "GGUF files cannot be edited: give the checkpoint that they were made from"
    else:
        hint = "give a folder with a whole model in the layout of `transformers`"
    return CheckpointError(f"`{root}` holds neither `{SINGLE_NAME}` nor `{INDEX_NAME}`", hint=hint, path=root)


def _read_weight_map(root: Path, found: list[str]) -> dict[str, str]:
    path = root / INDEX_NAME
    weight_map = _read_json(root, INDEX_NAME, found).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"`{INDEX_NAME}` has no `weight_map`", hint="the file is damaged: fetch it again", path=path
        )
    safe: set[str] = set()
    for name, shard in weight_map.items():
        if isinstance(shard, str) and shard in safe:
            continue
        try:
            safe.add(str(safe_relative_path(shard)))
        except UnsafePathError as error:
            raise CheckpointError(
                f"`{INDEX_NAME}` gives tensor `{printable(name, 120)}` an {error.message}",
                hint=error.hint,
                path=path,
                tensor=name,
            ) from None
        if not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"`{INDEX_NAME}` puts tensor `{printable(name, 120)}` into `{printable(shard, 120)}`, no safetensors file",
                hint="give a checkpoint in safetensors form",
                path=path,
                tensor=name,
            )
    return weight_map


def _collect(root: Path, headers: dict[str, ShardHeader], weight_map: dict[str, str] | None) -> dict[str, TensorEntry]:
    """Join the shards' tensors, and check that shards and index tell the same."""
    tensors: dict[str, TensorEntry] = {}
    hint = "the shards do not belong together: fetch the checkpoint again"
    for shard, header in headers.items():
        for entry in header.tensors:
            label, other = printable(entry.name, 120), tensors.get(entry.name)
            if other is not None:
                raise CheckpointError(
                    f"tensor `{label}` is both in `{printable(other.shard, 120)}` and in `{printable(shard, 120)}`",
                    hint=hint,
                    path=root / shard,
                    tensor=entry.name,
                )
            if weight_map is not None and weight_map.get(entry.name) != shard:
                raise CheckpointError(
                    f"tensor `{label}` is in `{printable(shard, 120)}` and `{INDEX_NAME}` does not say so",
                    hint=hint,
                    path=root / shard,
                    tensor=entry.name,
                )
            tensors[entry.name] = entry
    for name, shard in (weight_map or {}).items():
        if name not in tensors:
            raise CheckpointError(
                f"`{INDEX_NAME}` puts tensor `{printable(name, 120)}` into `{printable(shard, 120)}`, which does not hold it",
                hint=hint,
                path=root / shard,
                tensor=name,
            )
    return tensors
