"""Ordinary text for the second moments: a file, a public data set, or what the model itself writes.

A corpus is a numbered sequence of batches of token ids. Batch `n` is the same whenever it is asked for, so that an interrupted
pass goes on at the batch where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from reviver.editing.generation import sample
from reviver.editing.model import EditableModel
from reviver.errors import CheckpointError, FactsError, ResourceError, UsageError


class Corpus(Protocol):
    """Text in numbered batches."""

    def describe(self) -> dict[str, object]:
        """Return what the statistics' record says about the corpus: equal descriptions mean equal batches."""

    def batches(self, model: EditableModel, first: int, step: int = 1) -> Iterator[Sequence[Sequence[int]]]:
        """Yield batches of token rows: batch `first` and every `step`-th after it."""


class WrittenCorpus:
    """Text that the model writes itself, sampled at temperature 1 with a recorded seed.

    It needs no download, and its moments are those of the distribution that the edits shall leave alone.

    Args:
        seed: of the draws; batch `n` uses `seed + n`.
        length: tokens of a row.
        rows: rows of a batch.
    """

    def __init__(self, *, seed: int, length: int, rows: int = 32) -> None:
        self.seed = seed
        self.length = length
        self.rows = rows

    def describe(self) -> dict[str, object]:
        """Return the recipe."""
        return {"kind": "written by the model", "seed": self.seed, "length": self.length, "rows": self.rows}

    def batches(self, model: EditableModel, first: int, step: int = 1) -> Iterator[Sequence[Sequence[int]]]:
        """Yield what the model writes, without end."""
        start = _opening_token(model)
        length = min(self.length, model.window)
        number = first
        while True:
            yield [
                [start, *row]
                for row in sample(model, [[start]] * self.rows, tokens=length - 1, seed=self.seed + number)
            ]
            number += step


def _opening_token(model: EditableModel) -> int:
    """Return the token that opens a text: the beginning-of-text token, else the end-of-text one, else the first of all."""
    for token in (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


class TextCorpus:
    """Texts from a file or a data set, each cut to a capped length.

    Args:
        texts: yields the texts in order, afresh at each call.
        description: of where they come from.
        length: tokens of a row at most.
        rows: rows of a batch.
    """

    def __init__(self, texts: TextSource, *, length: int, rows: int = 32) -> None:
        self.texts = texts
        self.length = length
        self.rows = rows

    def describe(self) -> dict[str, object]:
        """Return where the texts come from and how they are cut."""
        return {**self.texts.describe(), "length": self.length, "rows": self.rows}

    def batches(self, model: EditableModel, first: int, step: int = 1) -> Iterator[Sequence[Sequence[int]]]:
        """Yield the texts, tokenised; the last batch may be short."""
        length = min(self.length, model.window)
        rows: list[Sequence[int]] = []
        number = 0
        for text in self.texts:
            ids = model.tokenizer(text, truncation=False)["input_ids"]
            for start in range(0, len(ids), length):
                rows.append(ids[start : start + length])
                if len(rows) == self.rows:
                    if number >= first and (number - first) % step == 0:
                        yield rows
                    rows, number = [], number + 1
        if rows and number >= first and (number - first) % step == 0:
            yield rows


class TextSource(Protocol):
    """Texts in a fixed order."""

    def describe(self) -> dict[str, object]:
        """Return what identifies the texts."""

    def __iter__(self) -> Iterator[str]: ...


class TextFile:
    """Paragraphs of a text file (parted by empty lines), or the `text` fields of a JSONL file.

    Args:
        path: the file.
        sha256: of its bytes.
        option: the option that named it, for the hints of errors.
    """

    def __init__(self, path: Path, sha256: str, *, option: str = "--corpus") -> None:
        self.path = path
        self.sha256 = sha256
        self.option = option

    def describe(self) -> dict[str, object]:
        """Return the file's name and hash; its folder is nobody's business."""
        return {"kind": "file", "name": self.path.name, "sha256": self.sha256}

    def __iter__(self) -> Iterator[str]:
        try:
            with self.path.open(encoding="utf-8") as file:
                yield from self._records(file) if self.path.suffix == ".jsonl" else self._paragraphs(file)
        except OSError as error:
            raise ResourceError(
                f"cannot read `{self.path}`: {error.strerror}", hint=f"check `{self.option}`"
            ) from error
        except UnicodeDecodeError as error:
            raise FactsError(
                f"`{self.path}` is not UTF-8 text", hint=f"convert it, or name another `{self.option}`"
            ) from error

    def _records(self, file: Iterator[str]) -> Iterator[str]:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                text = record["text"] if isinstance(record, dict) else record
            except (json.JSONDecodeError, KeyError, RecursionError) as error:
                raise FactsError(
                    f"`{self.path.name}` line {number} is not a JSON object with a `text`",
                    hint=f"`{self.option}` takes plain text, or JSONL whose objects hold `text`",
                ) from error
            if isinstance(text, str) and text.strip():
                yield text

    def _paragraphs(self, file: Iterator[str]) -> Iterator[str]:
        paragraph: list[str] = []
        for line in file:
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield "".join(paragraph)
                paragraph = []
        if paragraph:
            yield "".join(paragraph)


class DataSet:
    """The `text` column of a public data set, streamed; needs the extra `corpus`.

    Args:
        name: `owner/name`, or `owner/name:configuration`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self) -> dict[str, object]:
        """Return the data set's name."""
        return {"kind": "data set", "name": self.name}

    def __iter__(self) -> Iterator[str]:
        try:
            import datasets
        except ImportError as error:
            raise ResourceError(
                f"reading the data set `{self.name}` needs the package `datasets`",
                hint="run `pip install 'reviver[corpus]'`, or give a file as `--corpus`",
            ) from error
        path, _, configuration = self.name.partition(":")
        try:
            records = datasets.load_dataset(path, configuration or None, split="train", streaming=True)
            for record in records:
                if isinstance(record.get("text"), str) and record["text"].strip():
                    yield record["text"]
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"the data set `{self.name}` cannot be read: {str(error).splitlines()[0][:120]}",
                hint="check its name and the network, or give a file as `--corpus`",
            ) from error


def open_corpus(name: str | None, *, seed: int, length: int, sha256: str | None = None) -> Corpus:
    """Return the corpus that `--corpus` names: an existing file, else a data set `owner/name`, else the model's own writing.

    Raises:
        UsageError: the name is neither a file nor the form of a data set's name.
    """
    if name is None:
        return WrittenCorpus(seed=seed, length=length)
    path = Path(name)
    if path.is_file() and sha256 is not None:
        return TextCorpus(TextFile(path, sha256), length=length)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix not in (".txt", ".jsonl"):
        return TextCorpus(DataSet(name), length=length)
    raise UsageError(f"there is no corpus `{name}`", hint="name a text or JSONL file, or a data set as `owner/name`")
