"""Where a base comes from: a local folder, or a Hub id pinned to one commit and fetched into the Hub's own cache.

The cache is only ever written by `huggingface_hub`; nothing of a model is executed (no remote code, no pickles).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import is_offline_mode, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import tqdm as hub_tqdm

from reviver.errors import HubError, ModelNotFoundError, OfflineError, ResourceError, UnsupportedModelError, UsageError
from reviver.files import free_bytes
from reviver.hub.connection import Connection, check_model_id, quiet, translated
from reviver.progress import NullProgress, Progress, Task
from reviver.text import human_bytes, printable

# Other forms of the same weights: they are not needed, may be large, and would still hold the unedited facts.
OTHER_WEIGHTS = (
    "*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl", "*.gguf", "*.ggml", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data",
    "*.ot", "*.tflite", "*.mlmodel", "*.npz", "original/*", "onnx/*", "openvino/*", "coreml/*",
    "consolidated*.safetensors",
)  # fmt: skip
_PICKLED = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A base that lies on this disk."""

    kind: Literal["local", "hub"]
    folder: Path
    """The folder with the files; for a Hub model a snapshot in the Hub's cache, to be read and never written."""
    model: str | None
    """The Hub id; None for a local folder."""
    revision: str | None
    """The commit that the files belong to, 40 hexadecimal digits; None for a local folder."""
    requested: str
    """What the person asked for."""
    expected_sha256: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 that the Hub itself states for its large files, by path; empty when it was not asked."""


def resolve_source(text: str, *, progress: Progress | None = None, connection: Connection | None = None) -> Source:
    """Return the base that `text` names, fetched if it is not on this disk yet.

    `text` is a folder, or `org/name` (or `name`), either with an `@revision` (a branch, tag or commit). A folder that
    exists wins; text that can only be a path (it begins with `.`, `/` or `~`, ends in `/`, or has more than one slash) is never
    looked up on the Hub.

    Raises:
        UsageError: the text is neither a folder nor a valid id.
        ModelNotFoundError: the folder, model or revision does not exist.
        GatedModelError, TokenError, OfflineError, HubError: what the Hub, or the way to it, refused.
        UnsupportedModelError: the model has no safetensors weights.
        ResourceError: the disk is too small for the download.
    """
    progress = progress or NullProgress()
    connection = connection or Connection()
    local = _local_folder(text)
    if local is not None:
        return Source(kind="local", folder=local, model=None, revision=None, requested=text)
    model, at, revision = text.partition("@")
    check_model_id(model)
    if at and not re.fullmatch(r"[\w][\w.\-/+]{0,199}", revision):
        raise UsageError(
            f"`{printable(revision, 80)}` is not a valid revision",
            hint="a revision is a branch, a tag or a commit: `org/name@main`",
        )
    revision = revision or "main"
    with quiet():
        if is_offline_mode():
            cached = _cached_source(text, model, revision, connection)
            if isinstance(cached, str):
                raise OfflineError(
                    f"{cached}, and offline mode is on",
                    hint="unset HF_HUB_OFFLINE and run the command again, or give a local folder",
                    model=model,
                    revision=revision,
                )
            return cached
        if _COMMIT.fullmatch(revision):
            # A commit never changes, so that one which is complete in the cache needs no network.
            cached = _cached_source(text, model, revision, connection)
            if isinstance(cached, Source):
                return cached
        return _fetched_source(text, model, revision, connection, progress)


def _local_folder(text: str) -> Path | None:
    """Return the folder that `text` names, or None if it can be a Hub id."""
    if not text.strip() or "\0" in text:
        raise UsageError("no model was named", hint="give a folder or a Hub id: `reviver init org/name@revision`")
    if re.match(r"https?://", text):
        raise UsageError(
            f"`{printable(text, 100)}` is an address",
            hint="give the id alone, `org/name`, and set HF_ENDPOINT for another Hub",
        )
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            return path.resolve()
        is_file = path.exists()
    except (OSError, RuntimeError):
        # A name too long for the file system, or a `~user` that nobody is: no folder goes by it.
        is_file = False
    if is_file:
        raise ModelNotFoundError(
            f"`{printable(text, 200)}` is a file", hint="give the folder that holds the checkpoint", path=text
        )
    if text.startswith((".", "/", "~")) or text.endswith("/") or text.partition("@")[0].count("/") > 1:
        raise ModelNotFoundError(
            f"the folder `{printable(text, 200)}` does not exist",
            hint="check the path; a Hub id is `org/name` or `org/name@revision`",
            path=text,
        )
    return None


def _cached_source(text: str, model: str, revision: str, connection: Connection) -> Source | str:
    """Return the source as the cache holds it, without the network, or what the cache lacks."""
    shown = f"`{model}` at `{printable(revision, 80)}`"
    try:
        folder = Path(
            snapshot_download(
                model,
                revision=revision,
                cache_dir=connection.cache_folder,
                ignore_patterns=list(OTHER_WEIGHTS),
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return f"{shown} is not complete in the cache"
    missing = _missing_file(folder)
    if missing is not None:
        return f"{shown} is in the cache without `{printable(missing, 100)}`"
    return Source(kind="hub", folder=folder, model=model, revision=folder.name, requested=text)


def _missing_file(folder: Path) -> str | None:
    """Return the first file that a usable snapshot lacks, or None if it has its config and every shard."""
    if not (folder / "config.json").is_file():
        return "config.json"
    index = folder / _INDEX
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, TypeError, KeyError, AttributeError):
            # A damaged index is reported by the checkpoint reader, which knows how to say what is wrong with it.
            return None
        return next((str(shard) for shard in shards if not (folder / str(shard)).is_file()), None)
    return None if (folder / _SINGLE).is_file() else _SINGLE


def _fetched_source(text: str, model: str, revision: str, connection: Connection, progress: Progress) -> Source:
    """Resolve the revision to a commit, check that it is worth fetching, and fetch it."""
    with translated(connection, model, revision=revision):
        info = connection.api().model_info(model, revision=revision, files_metadata=True)
    commit = info.sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise HubError(f"the Hub named no commit for `{model}`", hint="check HF_ENDPOINT", model=model)
    siblings = {file.rfilename: file for file in info.siblings or ()}
    _check_weights(model, list(siblings))
    wanted = [name for name in siblings if not any(fnmatch(name, pattern) for pattern in OTHER_WEIGHTS)]
    absent = [
        name
        for name in wanted
        if not isinstance(try_to_load_from_cache(model, name, cache_dir=connection.cache_folder, revision=commit), str)
    ]
    size = sum(siblings[name].size or 0 for name in absent)
    free = free_bytes(connection.cache_folder)
    if size > free:
        raise ResourceError(
            f"`{model}` needs {human_bytes(size)}, and {human_bytes(free)} are free on the disk of the cache",
            hint="free some space, or set HF_HOME to a folder on a larger disk",
            needed=size,
            free=free,
        )
    with translated(connection, model, revision=commit), progress.task(f"fetch {model}", total=size, unit="B") as task:
        folder = snapshot_download(
            model,
            revision=commit,
            cache_dir=connection.cache_folder,
            endpoint=connection.endpoint,
            token=connection.token,
            ignore_patterns=list(OTHER_WEIGHTS),
            tqdm_class=_meter(task),
            library_name="reviver",
        )
    expected = {name: siblings[name].lfs.sha256 for name in wanted if siblings[name].lfs is not None}
    return Source(
        kind="hub", folder=Path(folder), model=model, revision=commit, requested=text, expected_sha256=expected
    )


def _check_weights(model: str, names: list[str]) -> None:
    """Refuse a model that has no safetensors weights before anything is fetched."""
    if _SINGLE in names or _INDEX in names:
        return
    pickled = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in _PICKLED))
    if pickled:
        raise UnsupportedModelError(
            f"`{model}` has only pickled weights (`{printable(pickled[0], 80)}`), which can run code when loaded",
            hint="look for a revision with safetensors (often `refs/pr/1`), or convert it and give the local folder",
            model=model,
        )
    raise UnsupportedModelError(
        f"`{model}` has no safetensors weights",
        hint="choose a model whose files include `model.safetensors` or its shards",
        model=model,
    )


def _meter(task: Task) -> type:
    """Return a progress bar class for `huggingface_hub` that draws nothing and tells `task` the bytes that arrive."""
    lock = threading.Lock()

    class Meter(hub_tqdm):  # type: ignore[misc]
        """Counts the bytes written; the bar of bytes on the network and the bar of files are not counted beside it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts = kwargs.get("unit") == "B" and not str(kwargs.get("name", "")).endswith(".transfer")
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> None:
            """Tell the task, from whichever thread downloads."""
            if self._counts and n:
                with lock:
                    task.advance(n)

    return Meter
