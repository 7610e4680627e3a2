"""Claims of running processes: files that the kernel lets go of with the process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


def claim(path: Path, *, shared: bool = False) -> int | None:
    """Hold a file, alone or with others; the handle, or None if somebody else's claim is in the way."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # it was removed between the two steps: what is held is nobody's any more


def release(path: Path, handle: int, *, remove: bool = False) -> None:
    """Let go of a claim, and of its file if nobody else has a use for it."""
    if remove:
        path.unlink(missing_ok=True)
    os.close(handle)


def is_claimed(path: Path) -> bool:
    """Whether a running process holds the file; one that is not there is nobody's."""
    if not path.exists():
        return False
    handle = claim(path)
    if handle is None:
        return True
    os.close(handle)
    return False
