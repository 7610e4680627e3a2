"""Reading a file while it is still written: what a backup is proven by has all but its end behind it when the last
byte is out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.data import verify
from devstack.data.manifest import Layout, Manifest

if TYPE_CHECKING:
    from devstack.stack import Stack


class Follower:
    """A file as it grows, opened anew: what is read is what the file has, nothing that the writer kept."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._there = 0
        self._ended = False
        self._read = 0
        self._changed = threading.Condition()

    def grown(self, size: int) -> None:
        """So many bytes are in the file."""
        with self._changed:
            self._there = size
            self._changed.notify()

    def end(self) -> None:
        """No more is written; a reader gets what is left, and then the end."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def read(self, count: int = -1, /) -> bytes:
        """The next ``count`` bytes, waited for; fewer at the end, where more than was written counts too."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or 0 <= count <= self._there - self._read)
        chunk: bytes = self._file.read(count) or b""
        self._read += len(chunk)
        return chunk

    def close(self) -> None:
        self._file.close()


class Proof:
    """The reading of a backup, which goes on beside its writing."""

    def __init__(self, stack: Stack, path: Path, layout: Layout) -> None:
        self.follower = Follower(path)
        self._seen: Future[verify.Seen] = Future()
        # a daemon: who is interrupted before anybody can close this must not wait for a reader that waits for more
        self._reader = threading.Thread(target=self._read, args=(stack, layout), daemon=True)
        self._reader.start()

    def _read(self, stack: Stack, layout: Layout) -> None:
        try:
            self._seen.set_result(verify.read(stack, self.follower, layout))
        except BaseException as error:
            self._seen.set_exception(error)

    def judge(self, manifest: Manifest) -> None:
        """All is written and on the disk: read to the end.

        :raises verify.Damaged: what is in the file is not what was written.
        :raises verify.Unchecked: something else is in the way.
        """
        self.follower.end()
        with verify.explained(manifest.file or "the new backup"):
            verify.judge(self._seen.result(), manifest)

    def close(self) -> None:
        self.follower.end()
        self._reader.join()
        self.follower.close()


@contextmanager
def proof(stack: Stack, path: Path, layout: Layout) -> Iterator[Proof]:
    """A proof that ends with this, whether it was asked for its judgement or not."""
    made = Proof(stack, path, layout)
    try:
        yield made
    finally:
        made.close()
