"""What a command on the host prints and asks, here."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from devstack.remote.agent import CHUNK
from devstack.remote.link import Link
from devstack.remote.talk import Talk, exit_code_of

if TYPE_CHECKING:
    from paramiko import Channel

Sink = Callable[[bytes], Any]
LOOK = 0.5
"""Seconds between looks at what no file descriptor tells: that the link is closed."""


def is_one() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def follow(talk: Talk, out: Sink | None = None) -> int:
    """Pass on what the agent's command prints until it ends; its exit code. Ctrl-C goes there, and its answer is
    waited for; the third one is the last.

    :raises LinkLost: the host is gone.
    """
    out = out or _to(sys.stdout)
    if rest := talk.take_rest():
        out(rest)
    alive, interrupts = time.monotonic(), 0
    while True:
        try:
            if _pass_on(talk.link, talk.channel, out):
                return exit_code_of(talk.link, talk.channel)
            if time.monotonic() - alive > talk.link.silence / 4:
                alive = time.monotonic()
                talk.send_bytes(b".")
        except KeyboardInterrupt:
            interrupts += 1
            if interrupts > 2:
                raise
            talk.send_bytes(b"I")


def follow_channel(link: Link, channel: Channel) -> int:
    """The same for a command without an agent, which ends with its channel."""
    try:
        while not _pass_on(link, channel, _to(sys.stdout)):
            pass
        return exit_code_of(link, channel)
    finally:
        channel.close()


def _pass_on(link: Link, channel: Channel, out: Sink) -> bool:
    """Whether the command has ended, and all that it printed has been passed on."""
    with link.guarded():
        select.select([channel], [], [], LOOK)
        ended = channel.exit_status_ready()
        printed = channel.recv(CHUNK) if channel.recv_ready() else b""
        complained = channel.recv_stderr(CHUNK) if channel.recv_stderr_ready() else b""
        if not printed and not complained and not link.transport.is_active():
            raise EOFError
    if complained:
        _to(sys.stderr)(complained)
    if printed:
        out(printed)
    # its exit code comes after its output, but before what its children still print
    return ended and not (printed or complained or channel.recv_ready() or channel.recv_stderr_ready())


def _to(stream: TextIO) -> Sink:
    def write(content: bytes) -> None:
        stream.flush()
        stream.buffer.write(content)
        stream.buffer.flush()

    return write


def attach(link: Link, command: str) -> int:
    """Give this terminal to a command on the host; its exit code.

    :raises LinkLost: the host is gone.
    """
    size = shutil.get_terminal_size()
    channel = link.open(command, terminal=(os.environ.get("TERM", "xterm"), size.columns, size.lines))
    keyboard, out = sys.stdin.fileno(), _to(sys.stdout)

    def resize(*_: object) -> None:
        now = shutil.get_terminal_size()
        with contextlib.suppress(Exception):
            channel.resize_pty(now.columns, now.lines)

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        with _raw(keyboard):
            watched: list[Any] = [channel, keyboard]
            while True:
                with link.guarded():
                    ready, _, _ = select.select(watched, [], [], LOOK)
                    if keyboard in ready:
                        if typed := os.read(keyboard, 1024):
                            channel.sendall(typed)
                        else:
                            watched.remove(keyboard)
                    ended = channel.exit_status_ready()
                    printed = channel.recv(CHUNK) if channel.recv_ready() else b""
                    if not printed and not link.transport.is_active():
                        raise EOFError
                if printed:
                    out(printed)
                elif ended:
                    return exit_code_of(link, channel)
    finally:
        signal.signal(signal.SIGWINCH, before)
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
