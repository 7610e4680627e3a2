"""The stack's ports on loopback here, through SSH, as long as the tunnel's process lives."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, field

from devstack.errors import StackError
from devstack.remote.agent import CHUNK
from devstack.remote.link import Link, connect

if TYPE_CHECKING:
    from paramiko import Channel

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between attempts to connect again: twice as many each time."""
PATIENCE = 15.0
"""Seconds that a tunnel's process gets beyond those of the connection, to begin and to end."""


class Forward(Struct):
    """One port: here, and on the host."""

    service: str
    here: int
    there: int


class Tunnel(Struct):
    """What the tunnel's process says of itself, in a file."""

    host: str
    forwards: list[Forward]
    pid: int = 0
    created: float = 0.0
    """When the process was made, as psutil has it: a pid alone may be another's by now."""
    up: bool = False
    since: float = 0.0
    """Seconds since the epoch at which it came up, or was lost."""
    lost: int = 0
    """How often the link broke so far."""
    why: str = ""
    """Why it is not up."""
    fix: list[str] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        import psutil

        try:
            process = psutil.Process(self.pid or -1)
            return process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, ValueError):
            return False


def read(file: Path) -> Tunnel | None:
    """The tunnel whose process lives; None if there is none."""
    try:
        values = json.loads(file.read_text())
        found = Tunnel(**{**values, "forwards": [Forward(**one) for one in values["forwards"]]})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if found.alive else None


def start(
    host: str,
    config: Mapping[str, Any],
    forwards: list[Forward],
    *,
    file: Path,
    log: Path,
    timeout: float,
    silence: float,
) -> Tunnel:
    """Start a process that holds the tunnel, and wait until it is up.

    :raises StackError: it does not come up.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    request = {
        "host": host,
        "config": dict(config),
        "forwards": [msgspec.to_builtins(one) for one in forwards],
        "file": str(file),
        "log": str(log),
        "timeout": timeout,
        "silence": silence,
    }
    root = Path(__file__).resolve().parent.parent.parent
    code = f"import sys; sys.path[0] = {str(root)!r}; from devstack.remote.tunnel import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd="/",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # what may be secret in Fabric's settings is in no list of processes
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        ready, _, _ = select.select([process.stdout], [], [], timeout + PATIENCE)
        said = process.stdout.readline() if ready else b""
        answer: dict[str, Any] = json.loads(said) if said.startswith(b"{") else _ended(said)
        if "error" in answer:
            raise StackError(answer["error"], why=answer["why"], fix=answer["fix"])
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        process.stdout.close()
    process.returncode = 0  # it lives on: not ours to wait for
    found = read(file)
    assert found is not None
    return found


def _ended(said: bytes) -> dict[str, Any]:
    return {"error": "the tunnel's process has ended", "why": said.decode(errors="replace").strip(), "fix": []}


def stop(tunnel: Tunnel, file: Path) -> None:
    """End the tunnel's process."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(tunnel.pid)
        process.terminate()
        try:
            process.wait(PATIENCE)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE)
    file.unlink(missing_ok=True)


# the process


class Holder:
    """Listens here, and connects through a link that it makes anew when it breaks."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self.file = Path(request["file"])
        self.state = Tunnel(request["host"], [Forward(**one) for one in request["forwards"]])
        self.link: Link | None = None
        self.ended = threading.Event()
        self.log = logging.getLogger("tunnel")

    def note(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self.state, name, value)
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(msgspec.to_builtins(self.state)))
        new.rename(self.file)

    def connect(self) -> None:
        self.link = connect(
            self.request["host"],
            self.request["config"],
            timeout=self.request["timeout"],
            silence=self.request["silence"],
        )

    def listen(self) -> list[tuple[socket.socket, Forward]]:
        """:raises StackError: a port is taken."""
        found = []
        for one in self.state.forwards:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", one.here))
            except OSError as error:
                raise StackError(
                    f"port {one.here} is taken here, by which {one.service} on {self.state.host} is to be reached",
                    why=error.strerror or str(error),
                    fix=[
                        "is a stack running here? stop it: NV_HOST= inv dev.down",
                        f"or set {one.service}.port to another one, for both sides",
                    ],
                ) from None
            listener.listen(64)
            found.append((listener, one))
        return found

    def serve(self, listener: socket.socket, forward: Forward) -> None:
        while not self.ended.is_set():
            try:
                client, peer = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(client, peer, forward), daemon=True).start()

    def carry(self, client: socket.socket, peer: tuple[str, int], forward: Forward) -> None:
        """One connection, until either end closes it."""
        with client:
            link = self.link
            if link is None or not link.transport.is_active():
                return
            try:
                channel = link.transport.open_channel(
                    "direct-tcpip", ("127.0.0.1", forward.there), peer, timeout=self.request["timeout"]
                )
            except Exception as error:
                self.log.info("%s: not connected: %s", forward.service, error)
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self.back, args=(client, channel), daemon=True)
            back.start()
            try:
                while part := client.recv(CHUNK):
                    channel.sendall(part)
                channel.shutdown_write()
                back.join()
            except OSError:
                pass
            finally:
                channel.close()

    def back(self, client: socket.socket, channel: Channel) -> None:
        try:
            while part := channel.recv(CHUNK):
                client.sendall(part)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            if channel.closed:
                # nothing that the client still says would arrive
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Until it is told to stop."""
        while not self.ended.wait(0.2):
            if self.link is not None and self.link.transport.is_active():
                continue
            lost = self.link is not None and self.link.lost
            self.note(
                up=False, since=time.time(), lost=self.state.lost + 1, why="the host is silent" if lost else "closed"
            )
            self.log.info("the link is lost: %s", self.state.why)
            self.again()

    def again(self) -> None:
        pause = FIRST_PAUSE
        while not self.ended.wait(pause):
            pause = min(2 * pause, LONGEST_PAUSE)
            if self.link is not None:
                self.link.close()
                self.link = None
            try:
                self.connect()
            except StackError as error:
                self.note(why=error.why or error.what, fix=error.fix)
                self.log.info("not connected: %s: %s", error.what, error.why)
                continue
            except Exception as error:  # whatever it is, the next attempt may go well
                self.note(why=str(error) or type(error).__name__, fix=[])
                self.log.exception("not connected")
                continue
            self.note(up=True, since=time.time(), why="", fix=[])
            self.log.info("connected again")
            return


def main() -> None:
    """The tunnel's process: a request on its input, an answer when it is up, then nothing more."""
    import psutil

    holder = Holder(json.load(sys.stdin))
    try:
        listeners = holder.listen()
        holder.connect()
    except StackError as error:
        print(json.dumps({"error": error.what, "why": error.why, "fix": error.fix}), flush=True)
        return
    handler = logging.handlers.RotatingFileHandler(holder.request["log"], maxBytes=1 << 20, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    holder.log.addHandler(handler)
    holder.log.setLevel(logging.INFO)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: holder.ended.set())
    for listener, forward in listeners:
        threading.Thread(target=holder.serve, args=(listener, forward), daemon=True).start()
    process = psutil.Process()
    holder.note(pid=process.pid, created=process.create_time(), up=True, since=time.time())
    holder.log.info("connected to %s", holder.state.host)
    print("{}", flush=True)
    # nobody reads any more
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    try:
        holder.hold()
    finally:
        holder.file.unlink(missing_ok=True)
        if holder.link is not None:
            holder.link.close()
        holder.log.info("ended")
