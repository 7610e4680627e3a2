"""Bytes on their way: hashed, compressed, counted, never all in memory."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from devstack.console import progress_bar
from devstack.container import CHUNK
from devstack.files import open_plain

LEVEL = 1
"""Of isal's four; the next one takes half as long again for a few percent less."""

FILLING = 0.001
"""Seconds in which a wide pipe is left to fill: pg_dump writes a fifth of one in that time."""


class Meter:
    """Byte counter."""

    def __init__(self, show: Callable[[float], object]) -> None:
        self.count = 0
        self._show = show

    def add(self, count: int) -> None:
        self.count += count
        self._show(count)


@contextlib.contextmanager
def meter(what: str, total: int = 0) -> Iterator[Meter]:
    """Yield a meter that shows a progress bar."""
    with progress_bar(what, total or None, unit="B", unit_scale=True, unit_divisor=1024, delay=0.5) as show:
        yield Meter(show)


class Readable(Protocol):
    """What bytes are read from; fewer than ``count`` is no end, none is."""

    def read(self, count: int = -1, /) -> bytes: ...


class Digested(io.RawIOBase):
    """A file that hashes and counts what is read from it."""

    def __init__(self, file: Readable, progress: Meter | None = None) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._progress = progress
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._file.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._hash.update(chunk)
        self.count += len(chunk)
        if self._progress:
            self._progress.add(len(chunk))
        return len(chunk)

    def rest(self) -> None:
        """Read what the consumer left."""
        while self.read(CHUNK):
            pass

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class Written:
    """What a dump came to on the disk."""

    def __init__(self) -> None:
        self.bytes = 0
        self.raw_bytes = 0
        self._hash = hashlib.sha256()

    def write(
        self,
        source: IO[bytes],
        handle: int,
        *,
        compress: bool,
        progress: Callable[[int], None],
        grown: Callable[[int], None],
    ) -> None:
        """Copy a stream into a file, compressed by gzip if so wanted, and have it on the disk. ``progress`` is told
        what passed, ``grown`` the size of the file.

        :raises OSError: the disk is full, or worse.
        """
        from isal import isal_zlib

        # 31: with gzip's header and trailer, https://docs.python.org/3/library/zlib.html#zlib.compressobj
        packer = isal_zlib.compressobj(LEVEL, wbits=31) if compress else None
        widened = _widen(source)
        read = source.read1 if isinstance(source, io.BufferedReader) else source.read
        while chunk := read(CHUNK):
            if widened and len(chunk) < CHUNK // 2:
                # the writer is the slower one, and puts 4 KB in at a time: to be woken for each takes longer than these
                time.sleep(FILLING)
            self.raw_bytes += len(chunk)
            progress(len(chunk))
            self._store(packer.compress(chunk) if packer else chunk, handle)
            grown(self.bytes)
        if packer:
            self._store(packer.flush(), handle)
        os.fsync(handle)

    def _store(self, content: bytes, handle: int) -> None:
        self._hash.update(content)
        self.bytes += len(content)
        view = memoryview(content)
        while view:
            view = view[os.write(handle, view) :]

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _widen(pipe: IO[bytes]) -> bool:
    """Have a pipe hold more than is read at a time; whether the system lets it."""
    with contextlib.suppress(OSError, AttributeError):  # no pipe, or too many; not Linux: pipe(7)
        return fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, 4 * CHUNK) >= 4 * CHUNK
    return False


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """A file's content in pieces."""
    while chunk := file.read(CHUNK):
        yield chunk


def sha256_of(path: Path) -> str:
    """A file's hash; that of what a link leads to is nobody's.

    :raises OSError: it can't be read, or is no regular file.
    """
    with os.fdopen(open_plain(path), "rb") as file:
        digested = Digested(file)
        digested.rest()
    return digested.sha256


def directory_hash(files: dict[str, str]) -> str:
    """The hash of a directory's files: of what ``sha256sum *`` prints there."""
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()
