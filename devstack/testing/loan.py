"""A stack on loan to test runs: what does not run is started, and goes when the last of them leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.errors import StackError
from devstack.testing.claims import claim, release
from devstack.testing.project import surroundings

if TYPE_CHECKING:
    from devstack.services import Service
    from devstack.stack import Stack

TURN = 600.0
"""Seconds to wait for other runs, which may be at their migrations."""
ALL = ("db", "pgb", "api")


class Loan:
    """What the processes of test runs share on one environment: a folder of claims and notes, and their turns."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.folder: Path = stack.paths.state / "testing"
        for folder in (self.folder, self.folder / "runs", self.folder / "templates"):
            stack.context.host.make_dir(folder, 0o700)
        self._claim: int | None = None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """One process at a time.

        :raises StackError: another one took longer than :data:`TURN`.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "lock", mode=0o600)
        try:
            lock.acquire(timeout=TURN, poll_interval=0.02)
        except Timeout:
            raise StackError(
                "another test run keeps this stack to itself",
                why=f"it has been starting it, or making a template, for more than {TURN:g} s",
                fix="end that run",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def need(self, labels: Sequence[str] = ALL) -> None:
        """Have these services running. What runs and answers is left as it is, also if the settings have changed.

        :raises StackError: one did not become ready.
        """
        with self.turn(), surroundings():
            started = self._started()
            if self._claim is None:
                self._claim = claim(self._users, shared=True)
            down = [status.label for status in self.stack.status() if not status.answers and status.label in labels]
            try:
                if down and set(labels) == set(ALL):
                    self.stack.hook("pre_up")
                for label in down:
                    self._start(label, started)
                if down and set(labels) == set(ALL):
                    self.stack.hook("post_up")
            finally:
                self.stack.forget()

    def _start(self, label: str, started: dict[str, int]) -> None:
        done = self.stack.start(label)
        if done.did == "started":
            started[label] = self._ready(self.stack.service(label))
            self._note(started)

    def leave(self) -> None:
        """Have no more use for it; somebody else gives it back."""
        if self._claim is not None:
            release(self._users, self._claim)
            self._claim = None

    def give_back(self, *, keep: bool) -> None:
        """Leave. The last one stops what test runs have started, unless it is to be kept.

        :raises StackError: a service did not stop.
        """
        with self.turn(), surroundings():
            self.leave()
            alone = claim(self._users)
            if alone is None:
                return
            try:
                if not keep:
                    self._stop(self._started())
                self._notes.unlink(missing_ok=True)
            finally:
                self.stack.forget()
                release(self._users, alone)

    def _stop(self, started: dict[str, int]) -> None:
        running = {status.label: status.state.running for status in self.stack.status()}
        for label in reversed(ALL):
            if not running[label]:
                continue
            if label not in started:
                return  # somebody else's, and it needs those before it
            self.stack.stop(label)

    # notes

    @property
    def _users(self) -> Path:
        return self.folder / "users"

    @property
    def _notes(self) -> Path:
        return self.folder / "started.json"

    def _ready(self, service: Service) -> int:
        """When a command last made it ready, in nanoseconds: who starts it again has made it theirs."""
        try:
            return (self.stack.paths.applied / service.name).stat().st_mtime_ns
        except OSError:
            return 0

    def _started(self) -> dict[str, int]:
        """The services that test runs have started, and nobody else since."""
        import msgspec

        try:
            notes = msgspec.json.decode(self._notes.read_bytes(), type=dict[str, int])
        except (OSError, msgspec.MsgspecError):
            return {}
        return {label: when for label, when in notes.items() if self._ready(self.stack.service(label)) == when}

    def _note(self, started: dict[str, int]) -> None:
        import msgspec

        self.stack.context.host.write_file(self._notes, msgspec.json.encode(started), 0o600)
