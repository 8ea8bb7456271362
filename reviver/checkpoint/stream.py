"""Bytes on their way to a file: hashed and written at the same time, by threads of their own, in order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, Self

from reviver.files import write_fully

# So many chunks may be on their way: enough to keep both threads busy, few enough to bound the memory.
_IN_FLIGHT = 4


class Sink:
    """Takes chunks in order; hashes them in one thread and writes them in another while the caller makes the next.

    Args:
        file: an unbuffered file, or None to hash only.
        advance: told the size of every chunk that is done, from the caller's thread.
    """

    def __init__(self, file: BinaryIO | None, advance: Callable[[float], None]) -> None:
        self._file = file
        self._advance = advance
        self._digest = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1, "hash")
        self._writer = ThreadPoolExecutor(1, "write")
        self._pending: deque[tuple[int, list[Future[None]]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hasher.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)

    def put_all(self, chunks: Iterable[bytes], also: Callable[[bytes], None] | None = None) -> None:
        """Take every chunk, and give each to `also`, in order, in the hashing thread.

        Raises:
            OSError: an earlier chunk could not be written.
        """
        for chunk in chunks:
            jobs: list[Future[None]] = [self._hasher.submit(self._digest.update, chunk)]
            if also is not None:
                jobs.append(self._hasher.submit(also, chunk))
            if self._file is not None:
                jobs.append(self._writer.submit(write_fully, self._file, chunk))
            self._pending.append((len(chunk), jobs))
            while len(self._pending) > _IN_FLIGHT:
                self._finish_one()

    def drain(self) -> None:
        """Wait until everything that was put is hashed and written."""
        while self._pending:
            self._finish_one()

    def hexdigest(self) -> str:
        """Return the SHA-256 of all that was put; call `drain` first."""
        return self._digest.hexdigest()

    def _finish_one(self) -> None:
        length, jobs = self._pending.popleft()
        for job in jobs:
            job.result()
        self._advance(length)
