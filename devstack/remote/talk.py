"""The conversation with :mod:`devstack.remote.agent` on a host."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shlex
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from devstack.errors import StackError
from devstack.files import load_json
from devstack.remote.agent import CHUNK, GREETING, Stream
from devstack.remote.link import Link, LinkLost

if TYPE_CHECKING:
    from paramiko import Channel

Kind = TypeVar("Kind")

AGENT = Path(__file__).with_name("agent.py")
LOADER = (
    "import os,sys;f=lambda a:a[:-1]if a[-1:]==bytes(1)else f(a+(os.read(0,65536)or sys.exit(1)));"
    "exec(f(b'').decode(),{'__name__':'agent'})"
)
"""One line without an exclamation mark: any shell takes it in quotes. It ends where its input does. Nothing is sent
behind the agent until that has greeted."""
NOISE = 1 << 16
"""Bytes that a login may print before the agent greets."""
LONGEST = 64 << 20
"""Bytes of an answer: the names of all files of a project may be in it."""
PYTHONS = ("python3", "python3.13", "python3.12", "python3.11", "python3.10")
NO_PYTHON = 97
PATIENCE = 10.0
"""Seconds beyond those of the link in which the agent greets."""


def command(script: str) -> str:
    """A script of sh(1) as a command line for whatever shell the account has."""
    return f"exec /bin/sh -c {shlex.quote(script)}"


def starter(first: str, code: str = LOADER, *arguments: str) -> str:
    """The command that runs one line of Python on the host; without one, that which the agent is then sent to. The
    ``first`` Python is taken if it is there; of others only one that really runs: version managers have programs that
    only say what to install."""
    words = shlex.join(["-S", "-c", code, *arguments])  # nothing but the standard library is needed: it starts sooner
    if first.startswith("~/"):
        first = f'"$HOME"{shlex.quote(first[1:])}'
    else:  # one that begins with - would be taken for an option of exec
        first = shlex.quote(f"./{first}" if first.startswith("-") else first)
    return command(
        f"PATH=$PATH:/usr/local/bin:/opt/homebrew/bin; if [ -x {first} ]; then exec {first} {words}; fi; "
        f"for p in {' '.join(PYTHONS)}; do "
        f'if "$p" -c "import sys; sys.exit(sys.version_info < (3, 8))" >/dev/null 2>&1; then exec "$p" {words}; fi; '
        f"done; exit {NO_PYTHON}"
    )


class Talk:
    """An agent at work: frames to it, frames from it."""

    def __init__(self, link: Link, python: str) -> None:
        self.link = link
        self.channel = link.open(starter(python))
        self.channel.settimeout(1)
        self._rest = b""
        try:
            self.send_bytes(AGENT.read_bytes() + b"\0")
        except LinkLost:
            raise
        except StackError:
            # a command that ends at once, as where there is no Python, may have closed the channel before it was sent
            # anything: what it said, and its exit code, are still there to be read
            if not self.channel.closed:
                raise
        self._greet()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def _greet(self) -> None:
        seen, deadline = b"", time.monotonic() + self.link.silence + PATIENCE
        while GREETING not in seen:
            part = self.receive(CHUNK, deadline)
            seen += part
            if not part or len(seen) > NOISE:
                raise self._silent(seen)
        self._rest = seen.partition(GREETING)[2]

    def _silent(self, seen: bytes) -> StackError:
        """Why there is no agent."""
        ended = self.channel.status_event.wait(1)
        if ended and exit_code_of(self.link, self.channel) == NO_PYTHON:
            return StackError(
                f"{self.link.host} has no Python",
                why=f"looked for {', '.join(PYTHONS)}",
                fix="install it there: apt-get install python3 python3-venv, dnf install python3.12, …",
            )
        said = [*seen.decode(errors="replace").splitlines()[-5:], *self.complaints()]
        return StackError(
            f"{self.link.host} does not run commands as expected",
            why="this is what it said" if said else "it said nothing: does its login wait for something?",
            evidence=said,
        )

    def complaints(self) -> list[str]:
        """The last lines on its standard error."""
        text = b""
        with contextlib.suppress(Exception):
            while self.channel.recv_stderr_ready() and (part := self.channel.recv_stderr(CHUNK)):
                text += part
        return text.decode(errors="replace").splitlines()[-10:]

    # bytes

    def send_bytes(self, content: bytes) -> None:
        view = memoryview(content)
        with self.link.guarded():
            while view:
                with contextlib.suppress(TimeoutError):  # the link watches over the host's silence
                    view = view[self.channel.send(bytes(view[:CHUNK])) :]

    def receive(self, count: int, deadline: float = math.inf) -> bytes:
        """What comes next, at most so many bytes; nothing at the end, or when it is too late.

        :raises LinkLost: the host is silent.
        """
        if self._rest:
            first, self._rest = self._rest[:count], self._rest[count:]
            return first
        with self.link.guarded():
            while True:
                try:
                    part: bytes = self.channel.recv(count)
                except TimeoutError:
                    if time.monotonic() > deadline:
                        return b""
                    continue  # the link watches over its silence, the agent may have a lot to do
                if not part and not self.link.transport.is_active():
                    raise EOFError
                return part

    def _exactly(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            part = self.receive(count - len(found))
            if not part and self.link.gone():
                raise self.link.loss()
            if not part:
                raise StackError(
                    f"{self.link.host} has ended the conversation",
                    why="what takes part in it there was ended, or is broken",
                    evidence=self.complaints(),
                    fix="try again",
                )
            found += part
        return bytes(found)

    # frames

    def send(self, content: bytes) -> None:
        self.send_bytes(struct.pack("!I", len(content)) + content)

    def frame(self, limit: int = CHUNK) -> bytes:
        """The next frame, of which the host may not make more than ``limit`` bytes."""
        (length,) = struct.unpack("!I", self._exactly(4))
        if length > limit:
            raise self._nonsense(f"it announced {length} bytes where at most {limit} can come")
        return self._exactly(length)

    def _nonsense(self, why: str) -> StackError:
        return StackError(
            f"{self.link.host} does not answer as expected",
            why=why,
            fix="is it the host that you mean? inv remote.check",
        )

    def ask(self, do: str, **values: Any) -> None:
        self.send(json.dumps({"do": do, **values}).encode())

    def answer(self) -> dict[str, Any]:
        """What the agent answers.

        :raises StackError: it refuses.
        """
        try:
            found: dict[str, Any] = load_json(self.frame(LONGEST))
        except ValueError:
            raise self._nonsense("its answer is no JSON") from None
        if not isinstance(found, dict):
            raise self._nonsense("its answer is no object of JSON")
        if "error" in found:
            fix = found.get("fix")
            raise StackError(
                f"{self.link.host}: {found['error']}",
                why=str(found.get("why") or ""),
                fix=[str(line) for line in fix] if isinstance(fix, list) else [],
            )
        return found

    def answer_as(self, kind: type[Kind]) -> Kind:
        """What the agent answers, as a struct.

        :raises StackError: it refuses, or answers something else.
        """
        try:
            return msgspec.convert(self.answer(), kind)
        except msgspec.ValidationError as error:
            raise self._nonsense(f"its answer is another one than was asked for: {error}") from None

    def stream(self) -> Iterator[bytes]:
        """The bytes up to the end of a stream."""
        while part := self.frame():
            yield part

    def take_rest(self) -> bytes:
        """What was received beyond the last frame: a command's output begins there."""
        rest, self._rest = self._rest, b""
        return rest

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Around what is sent: if the agent has stopped to listen, it says why.

        :raises StackError: it does.
        """
        try:
            yield
        except LinkLost:
            raise
        except StackError:
            self.answer()
            raise


def exit_code_of(link: Link, channel: Channel) -> int:
    """A command's exit code, once it has ended.

    :raises LinkLost: nobody knows it.
    """
    with link.guarded():
        while not channel.status_event.wait(0.05):
            if not link.transport.is_active():
                raise EOFError
        code = int(channel.recv_exit_status())
        if code == -1:  # the channel was closed without one: the session was ended from outside
            raise LinkLost(link.host, "the session there was ended")
        return code


class Outgoing(io.RawIOBase):
    """A stream of frames to the agent, as a file."""

    def __init__(self, talk: Talk, counted: Callable[[int], None] | None = None) -> None:
        self.talk = talk
        self.counted = counted

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        view = memoryview(content)
        for at in range(0, len(view), CHUNK):
            part = bytes(view[at : at + CHUNK])
            self.talk.send(part)
            if self.counted:
                self.counted(len(part))
        return len(view)

    def end(self) -> None:
        self.talk.send(b"")


class Incoming(Stream):
    """A stream of frames from the agent, as a file."""

    def __init__(self, talk: Talk, counted: Callable[[int], None], limit: int) -> None:
        super().__init__()
        self.talk = talk
        self.counted = counted
        self.left = limit
        """Bytes that may still come."""

    def frame(self) -> bytes:
        found = self.talk.frame()
        self.counted(len(found))
        self.left -= len(found)
        if self.left < 0:
            raise StackError(f"{self.talk.link.host} sends more than it announced", fix="try again")
        return found
