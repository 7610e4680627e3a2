"""What a command on the host prints and asks, here."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import shutil
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from paramiko import SSHException

from devstack.errors import StackError
from devstack.escapes import COMMANDS
from devstack.remote.agent import CHUNK
from devstack.remote.link import Link
from devstack.remote.talk import Talk, exit_code_of

if TYPE_CHECKING:
    from paramiko import Channel

Sink = Callable[[bytes], Any]
REST = 2.0
"""Seconds without output after a command's end."""
LOOK = 0.5
"""Seconds between looks at what no file descriptor tells: that the link is closed."""


def is_one() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class Presence:
    """Tells the agent that somebody is here, whatever the thread that prints is held up by, and passes on what else it
    is to hear."""

    def __init__(self, talk: Talk, *, given: bool) -> None:
        self.talk = talk
        self._ended = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._live, daemon=True).start()
        if given:
            threading.Thread(target=self._feed, daemon=True).start()

    def say(self, words: bytes) -> None:
        with self._lock:
            self.talk.send_bytes(words)

    def _live(self) -> None:
        with contextlib.suppress(StackError):
            while not self._ended.wait(self.talk.link.silence / 4):
                self.say(b".")

    def _feed(self) -> None:
        """Our own input is the command's."""
        with contextlib.suppress(StackError, OSError, ValueError):
            while not self._ended.is_set():
                part = os.read(sys.stdin.fileno(), CHUNK)
                self.say(b"D" + struct.pack("!I", len(part)) + part)
                if not part:
                    return

    def end(self) -> None:
        self._ended.set()


def follow(talk: Talk, out: Sink | None = None, *, given: bool = False) -> int:
    """Pass on what the agent's command prints until it ends; its exit code. With what is ``given`` to this program, it
    gets that. Ctrl-C goes there, and its answer is waited for; the third one is the last.

    :raises LinkLost: the host is gone.
    """
    out = out or _to(sys.stdout)
    if rest := talk.take_rest():
        out(rest)
    presence, interrupts = Presence(talk, given=given), 0
    printed = Printed(talk.link, talk.channel, out)
    try:
        while True:
            try:
                while not printed.pass_on():
                    pass
                return exit_code_of(talk.link, talk.channel)
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 2:
                    raise
                presence.say(b"I")
    finally:
        presence.end()


def follow_channel(link: Link, channel: Channel) -> int:
    """The same for a command without an agent, which ends with its channel."""
    printed = Printed(link, channel, _to(sys.stdout))
    try:
        while not printed.pass_on():
            pass
        return exit_code_of(link, channel)
    finally:
        channel.close()


class Printed:
    """What a command prints, on both of its streams."""

    def __init__(self, link: Link, channel: Channel, out: Sink) -> None:
        self.link, self.channel, self.out = link, channel, out
        self.complain = _to(sys.stderr)
        self.last = time.monotonic()

    def pass_on(self) -> bool:
        """Wait for something, and pass it on; whether that was all. A command has ended with its output: its exit code
        may come before. Of one whose children hold it, nothing more is waited for after :data:`REST`."""
        channel = self.channel
        with self.link.guarded():
            select.select([channel], [], [], LOOK)
            printed = channel.recv(CHUNK) if channel.recv_ready() else b""
            complained = channel.recv_stderr(CHUNK) if channel.recv_stderr_ready() else b""
            if not printed and not complained and not self.link.transport.is_active():
                raise EOFError
        if complained:
            self.complain(complained)
        if printed:
            self.out(printed)
        now = time.monotonic()
        if printed or complained or channel.recv_ready() or channel.recv_stderr_ready():
            self.last = now
            return False
        if not channel.exit_status_ready():
            return False
        return bool(channel.eof_received or channel.closed) or now - self.last > REST


class Harmless:
    """Yield what a host prints, without what makes a terminal do more than show text: it may be sent in any pieces.

    Left are colours, and what our displays and progress bars need: to move the cursor and to erase.
    """

    KEPT = re.compile(r"\x1b\[[0-9;]{0,32}[ABCDGHJKm]|\x1b\[\?(?:25|1049)[hl]|[\t\n\r\b]")
    BEGUN = re.compile(r"\x1b(?:\[[0-9;?]{0,32})?\Z")
    ACTED_ON = re.compile(rf"({KEPT.pattern})|{COMMANDS}|[\x00-\x1f\x7f-\x9f]")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def __call__(self, content: bytes) -> bytes:
        text = self._rest + self._decoder.decode(content)
        begun = self.BEGUN.search(text, max(0, len(text) - 40))
        self._rest = begun[0] if begun else ""
        text = text[: begun.start()] if begun else text
        return self.ACTED_ON.sub(lambda found: found[1] or "", text).encode()


class WithoutStrings:
    """Yield what a program prints that takes the whole terminal, such as psql with its pager, without the sequences
    that have a text for the terminal itself: its clipboard, its title, files, the text that a key types.

    https://invisible-island.net/xterm/ctlseqs/ctlseqs.html: OSC, DCS, APC, PM, SOS, and screen's title
    """

    INTRODUCERS = "\x90\x98\x9d\x9e\x9f"
    STRING = re.compile(rf"\x1b[\x1b{INTRODUCERS}]*[\]P_^Xk]|[{INTRODUCERS}]")
    BEGUN = re.compile(rf"\x1b[\x1b{INTRODUCERS}]*\Z")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def __call__(self, content: bytes) -> bytes:
        text = self._rest + self._decoder.decode(content)
        begun = self.BEGUN.search(text)
        self._rest = text[begun.start() :] if begun else ""
        return self.STRING.sub("", text[: begun.start()] if begun else text).encode()


def _to(stream: TextIO, *, raw: bool = False) -> Sink:
    """Write to a stream what comes from a host; where it is a terminal, without what that would act on. ``raw`` is for
    a program that takes the whole terminal."""
    harmless = (WithoutStrings() if raw else Harmless()) if stream.isatty() else None

    def write(content: bytes) -> None:
        stream.flush()
        stream.buffer.write(harmless(content) if harmless else content)
        stream.buffer.flush()

    return write


def attach(link: Link, command: str, presence: Talk | None = None, *, raw: bool = False) -> int:
    """Give this terminal to a command on the host; its exit code. An agent that is present there ends it when we are
    gone. ``raw`` is for a program that takes the whole terminal, such as psql.

    :raises LinkLost: the host is gone.
    """
    size = shutil.get_terminal_size()
    channel = link.open(command, terminal=(os.environ.get("TERM", "xterm"), size.columns, size.lines))
    keyboard, printed = sys.stdin.fileno(), Printed(link, channel, _to(sys.stdout, raw=raw))

    def resize(*_: object) -> None:
        now = shutil.get_terminal_size()
        with contextlib.suppress(Exception):
            channel.resize_pty(now.columns, now.lines)

    def typing() -> None:
        with contextlib.suppress(OSError, ValueError, SSHException):
            while typed := os.read(keyboard, 1024):
                channel.sendall(typed)
            channel.sendall(b"\x04")  # Ctrl-D, which is the end of input at a terminal

    before = signal.signal(signal.SIGWINCH, resize)
    alive = Presence(presence, given=False) if presence else None
    try:
        with _raw(keyboard):
            threading.Thread(target=typing, daemon=True).start()
            while not printed.pass_on():
                pass
            return exit_code_of(link, channel)
    finally:
        signal.signal(signal.SIGWINCH, before)
        if alive:
            alive.end()
        channel.close()


@contextlib.contextmanager
def _raw(keyboard: int) -> Iterator[None]:
    """What is typed goes through as it is: the terminal on the host makes signals and echoes of it."""
    import termios
    import tty

    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard)
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
