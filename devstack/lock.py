"""One command at a time changes a stack."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from devstack import console
from devstack.errors import StackError, UsageError
from devstack.files import read_regular
from devstack.masking import hide_url_passwords
from devstack.shell import typed
from devstack.wording import wording


def removed() -> StackError:
    return StackError("this environment was removed while this waited for it", fix="inv dev.up makes it anew")


class StackLock:
    """A lock on an environment, held from the first change until :meth:`release` or the process's end.

    The kernel frees it with the process, however that ends; the file that stays behind is no obstacle.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self._lock = FileLock(path, mode=0o600)

    @property
    def _holder(self) -> Path:
        return self.path.with_name(f"{self.path.name}-holder")

    @property
    def held(self) -> bool:
        """Whether this command has the lock."""
        return bool(self._lock.is_locked)

    def acquire(self) -> bool:
        """Take the lock; says what it waits for. Held already is fine.

        :returns: whether another command had it.
        :raises StackError: another command kept it for longer than ``timeout`` seconds.
        """
        if self._lock.is_locked:
            return False
        waited = False
        try:
            self._take(0)
        except Timeout:
            waited = True
            holder = self._describe()
            console.note(f"waiting for {holder}, which is working on this stack (at most {self.timeout:g} s)")
            try:
                self._take(self.timeout)
            except FileNotFoundError:
                raise removed() from None
            except Timeout:
                raise StackError(
                    "this stack is in use",
                    why=f"{holder} has been working on it for more than {self.timeout:g} s",
                    fix="wait for it, or end it; stack.lock_timeout sets how long to wait",
                ) from None
        with contextlib.suppress(OSError):  # a full disk must not keep a cleanup from making room
            self._write_holder()
        return waited

    def _write_holder(self) -> None:
        """Write down which command has the lock, for those that wait for it."""
        # a new file: what has the name may be a link, or have another name elsewhere
        self._holder.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        # words are what the system gave: bytes that are no text too
        with open(os.open(self._holder, flags, 0o600), "w", encoding="utf-8", errors="backslashreplace") as file:
            # a URL among the words may have a password
            file.write(f"{os.getpid()} {hide_url_passwords(' '.join([wording().program, *sys.argv[1:]]))}\n")

    def _take(self, timeout: float) -> None:
        """Take the lock.

        :raises Timeout: another command has it.
        :raises UsageError: the file is a link.
        """
        try:
            self._lock.acquire(timeout=timeout, poll_interval=0.05)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise UsageError(
                f"{self.path} can't be used as a lock",
                why="it is a link, which this tool does not make; nothing was changed",
                fix=f"remove it: rm {typed(self.path)}",
            ) from None

    def try_acquire(self) -> bool:
        """Take the lock if nobody else has it."""
        if not self._lock.is_locked:
            try:
                self._take(0)
            except Timeout:
                return False
        return True

    def release(self) -> None:
        """Let other commands go on; before anything that takes as long as the user likes."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            self._lock.release()

    def discard(self) -> None:
        """Release the lock, and remove its folder if nothing else is in it: that came back with the lock alone."""
        self.release()
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def _read_holder(self) -> str:
        return read_regular(self._holder, follow_symlinks=False).decode(errors="replace").strip()

    def _describe(self) -> str:
        """Who holds the lock: it says so a moment after it took it; one that was killed may have said so before."""
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                pid, _, command = self._read_holder().partition(" ")
                os.kill(int(pid), 0)
                return f"`{command}` (pid {pid})"
            time.sleep(0.01)
        return "another command"
