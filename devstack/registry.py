"""The list of all environments of this user: of every checkout on this machine, wherever their state is."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct

from devstack.errors import StackError
from devstack.host import Host

PATIENCE = 30.0
"""Seconds that another command may keep the list, which it does for a few milliseconds."""


class Entry(Struct, frozen=True, kw_only=True):
    """An environment, as the last command saw it that started or stopped something in it."""

    root: str
    """The checkout."""
    env: str
    state: str
    """The environment's folder, which nothing else has."""
    ports: Mapping[str, int]
    """By service: ``db``, ``pgb``, ``api``."""


class Registry:
    """One file for each environment. An environment whose folder is gone is gone from the list."""

    def __init__(self, folder: Path, host: Host) -> None:
        self.folder = folder
        self._host = host

    def _file(self, state: str) -> Path:
        return self.folder / f"{hashlib.sha256(state.encode()).hexdigest()[:16]}.json"

    def check_closed(self, root: Path) -> None:
        """Refuse a list that somebody else could write: what it names is looked into, and stopped.

        :param root: the project's directory, which is trusted.
        :raises UsageError: its directory, or one above it, is writable by somebody else.
        """
        self._host.check_closed(self.folder, "the list of environments", setting="XDG_DATA_HOME", root=root)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else chooses ports meanwhile.

        :raises StackError: another command does not let go of the list.
        """
        self._host.make_dir(self.folder, 0o700)
        try:
            with FileLock(self.folder / "lock", timeout=PATIENCE, mode=0o600):
                yield
        except Timeout:
            raise StackError(
                "the ports of this machine's environments are in use",
                why=f"another command has kept {self.folder / 'lock'} for more than {PATIENCE:g} s",
                fix="wait for it, or end it",
            ) from None

    def entries(self) -> list[Entry]:
        """All environments, by checkout and name."""
        found = []
        for file in self.folder.glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                entry = msgspec.json.decode(file.read_bytes(), type=Entry)
                if Path(entry.state).is_dir():
                    found.append(entry)
                else:
                    file.unlink()
        return sorted(found, key=lambda entry: (entry.root, entry.env != "dev", entry.env))

    def prune(self) -> None:
        """Take off the list what is gone, and the list itself when nothing is on it."""
        if self.entries() or not self.folder.is_dir():
            return
        with contextlib.suppress(OSError, Timeout), FileLock(self.folder / "lock", timeout=0, mode=0o600):
            if not self.entries():
                (self.folder / "lock").unlink(missing_ok=True)
                self.folder.rmdir()

    def put(self, entry: Entry) -> None:
        """List an environment, or what has changed of it."""
        content = msgspec.json.encode(entry) + b"\n"
        if self._host.read_file(self._file(entry.state)) != content:
            self._host.make_dir(self.folder, 0o700)
            self._host.write_file(self._file(entry.state), content, 0o600)

    def drop(self, state: Path) -> None:
        """Take an environment off the list."""
        self._file(str(state)).unlink(missing_ok=True)
