"""The link to a host: a :class:`fabric.Connection` whose host is known, and whose silence has an end."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devstack.errors import StackError, UsageError
from devstack.remote import hostkeys
from devstack.shell import typed

if TYPE_CHECKING:
    from fabric import Connection
    from paramiko import Channel, Transport

FABRICS = ("authentication", "connect_kwargs", "forward_agent", "gateway", "port", "ssh_config_path", "user")
"""Root keys of Fabric in ``invoke.yaml`` (https://docs.fabfile.org/en/stable/concepts/configuration.html)."""

MOMENT = 0.5
"""Seconds between the end of a channel and that of its link, if both end for one reason."""


class LinkLost(StackError):
    """The host does not answer any more. What runs there ends by itself."""

    def __init__(self, host: str, why: str) -> None:
        super().__init__(
            f"the link to {host} is lost",
            why=why,
            fix=[
                "what ran there was told to stop, and leaves nothing half-done; the stack there goes on",
                "try again: inv remote.check",
            ],
        )


@dataclass
class Link:
    """An open connection. Several threads may use it."""

    host: str
    """As the user names it."""
    transport: Transport
    connection: Connection
    silence: float
    """Seconds without an answer after which the host counts as gone."""
    _heard: float = field(default_factory=time.monotonic)
    _closed: threading.Event = field(default_factory=threading.Event)
    lost: bool = False

    def __post_init__(self) -> None:
        self._listen()
        for work in (self._ask, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def _listen(self) -> None:
        """Each packet that comes is a sign of life, whatever it is about. Paramiko has no place to ask for the last."""
        packetizer = self.transport.packetizer
        read = packetizer.read_message

        def reading() -> Any:
            message = read()
            self._heard = time.monotonic()
            return message

        packetizer.read_message = reading  # type: ignore[method-assign]

    def _ask(self) -> None:
        """Paramiko's own keep-alive does not look at answers."""
        while not self._closed.wait(min(self.silence / 4, 5)):
            with contextlib.suppress(Exception):
                # refused by servers that do not know it, which is an answer too
                self.transport.global_request("keepalive@openssh.com", wait=True)

    def _watch(self) -> None:
        while not self._closed.wait(min(self.silence / 10, 0.5)):
            if not self.transport.is_active():
                return
            if time.monotonic() - self._heard > self.silence:
                self.lost = True
                # whoever waits for it is woken
                self.transport.close()
                return

    def open(self, command: str, *, terminal: tuple[str, int, int] | None = None) -> Channel:
        """Run a command on the host; ``terminal`` has its kind, columns and lines.

        :raises LinkLost: the host is not there any more.
        """
        with self.guarded():
            channel = self.transport.open_session(timeout=self.silence)
            if terminal:
                kind, columns, lines = terminal
                channel.get_pty(kind, columns, lines)
            channel.exec_command(command)
            return channel

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """:raises LinkLost: for whatever Paramiko raises when the host is gone."""
        from paramiko import SSHException

        try:
            yield
        except (SSHException, OSError, EOFError) as error:
            if self.gone() or isinstance(error, EOFError):
                raise self.loss() from None
            raise StackError(f"{self.host} refuses", why=str(error) or type(error).__name__) from None

    def gone(self) -> bool:
        """Whether the link is closed; its channels are a moment before it is."""
        deadline = time.monotonic() + MOMENT
        while self.transport.is_active():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def loss(self) -> LinkLost:
        """How it broke."""
        silent = f"nothing has come from it for {self.silence:g} s"
        return LinkLost(self.host, silent if self.lost else "the host, or something on the way, has closed it")

    def close(self) -> None:
        self._closed.set()
        _close(self.connection)


def connect(host: str, config: Any, *, timeout: float, silence: float) -> Link:
    """Connect as OpenSSH's configuration, keys and agent say; ``config`` has Fabric's own keys, ``timeout`` is for
    the whole of it, in seconds.

    :raises StackError: it is not possible, or the host is not known.
    """
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # what it would print, our errors say
    connection = connection_to(host, config, timeout=timeout)
    try:
        with _explained(host, connection, timeout):
            _open(connection, timeout)
        transport = connection.transport
        assert transport is not None
        with contextlib.suppress(OSError, AttributeError):
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Link(host, transport, connection, silence)
    except BaseException:
        _close(connection)
        raise


def _open(connection: Connection, timeout: float) -> None:
    """Open a connection, and before it those that it goes through, each within its time: Paramiko would wait an hour
    for what is behind a jump host."""
    if connection.gateway and not isinstance(connection.gateway, str):
        _open(connection.gateway, timeout)
        connection.gateway.transport.channel_timeout = timeout
    hostkeys.check(connection)
    connection.open()
    if connection.transport.get_remote_server_key().get_base64() in hostkeys.revoked(connection):
        from paramiko import SSHException

        raise SSHException("its host key is marked as revoked")


def _close(connection: Connection) -> None:
    """Close a connection and those that it goes through, also half-open ones, of which Fabric knows nothing."""
    if transport := connection.client.get_transport():
        with contextlib.suppress(Exception):
            transport.sock.shutdown(socket.SHUT_RDWR)  # its thread would look up only after a tenth of a second
    connection.close()
    connection.client.close()
    if connection.gateway and not isinstance(connection.gateway, str):
        _close(connection.gateway)


def accept_key(host: str, config: Any, fingerprint: str, *, timeout: float) -> tuple[Path | None, str]:
    """Take the key of a host for known, if it has this fingerprint; the file it went to, None if it was known, and the
    host's name there.

    :raises StackError: it has another one, or does not answer.
    """
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    connection = connection_to(host, config, timeout=timeout)
    try:
        with _explained(host, connection, timeout, unknown=True):
            _open(connection, timeout)
    except hostkeys.UnknownHost as unknown:
        if unknown.key.fingerprint != fingerprint:
            raise StackError(
                f"{unknown.name} has another key",
                why=f"it shows {unknown.key.get_name()} {unknown.key.fingerprint}, not {fingerprint}",
                fix="compare it on the host: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
            ) from None
        hostkeys.accept(unknown)
        return unknown.file, unknown.name
    finally:
        _close(connection)
    return None, str(connection.host)


def fabrics_of(config: Any) -> dict[str, Any]:
    """Fabric's own keys of a configuration, as plain values."""
    return {key: _plain(config[key]) for key in FABRICS if config.get(key) not in (None, "")}


def _plain(values: Any) -> Any:
    """Without the proxies that Invoke's configuration gives out."""
    return {key: _plain(value) for key, value in values.items()} if hasattr(values, "items") else values


def connection_to(host: str, config: Any, *, timeout: float) -> Connection:
    """Fabric's connection, not opened yet.

    :raises UsageError: not a host, or Fabric's settings can't be used.
    """
    from fabric import Config, Connection

    try:
        overrides = fabrics_of(config)
        path = overrides.pop("ssh_config_path", None)
        fabrics = Config(overrides=overrides, runtime_ssh_path=path)
        connection = Connection(host, config=fabrics, connect_timeout=max(1, math.ceil(timeout)))
        one = connection
        while one and not isinstance(one, str):
            one.connect_timeout = connection.connect_timeout
            one.connect_kwargs.setdefault("banner_timeout", timeout)
            one.connect_kwargs.setdefault("auth_timeout", timeout)
            one = one.gateway
    except Exception as error:
        raise UsageError(
            f"{host!r} can't be connected to", why=str(error), fix="write stack.host as user@host, or user@host:port"
        ) from None
    return connection


@contextlib.contextmanager
def _explained(host: str, connection: Connection, timeout: float, *, unknown: bool = False) -> Iterator[None]:
    """What goes wrong between here and a shell on the host, for people; with ``unknown``, not that it is not known."""
    from paramiko import (
        AuthenticationException,
        BadHostKeyException,
        PasswordRequiredException,
        ProxyCommandFailure,
        SSHException,
    )
    from paramiko.ssh_exception import NoValidConnectionsError

    where = f"{connection.host} port {connection.port}"
    try:
        yield
    except hostkeys.UnknownHost as problem:
        if unknown:
            raise
        kind, fingerprint = problem.key.get_name(), problem.key.fingerprint
        raise StackError(
            f"the host key of {host} is not known",
            why=f"{problem.name} shows the {kind} key {fingerprint}, and {problem.file} has none of it",
            fix=[
                "compare it, on the host: for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $key; done",
                f"if it is the same: inv remote.accept {fingerprint}",
            ],
        ) from None
    except BadHostKeyException as error:
        name = connection.host if connection.port == 22 else f"[{connection.host}]:{connection.port}"
        known = hostkeys.files_of(connection.ssh_config)[0]
        raise StackError(
            f"the host key of {host} is another one than before",
            why=f"it shows {error.key.get_name()} {error.key.fingerprint}, known is "
            f"{error.expected_key.get_name()} {error.expected_key.fingerprint}: "
            "the host was set up anew, or somebody stands in between",
            fix=[
                "ask who keeps the host",
                f"if it was set up anew: ssh-keygen -R {typed(name)} -f {typed(known)}",
            ],
        ) from None
    except PasswordRequiredException:
        raise StackError(
            f"{host} can't be logged in to", why="the key has a passphrase", fix="ssh-add, which asks for it once"
        ) from None
    except AuthenticationException as error:
        raise StackError(
            f"{host} does not let {connection.user} in",
            why=str(error).rstrip("."),
            fix=[
                f"ssh -p {connection.port} {connection.user}@{connection.host} must work without a question",
                f"give it your key: ssh-copy-id -p {connection.port} {connection.user}@{connection.host}",
            ],
        ) from None
    except socket.gaierror:
        raise StackError(
            f"there is no host {connection.host}",
            why=f"its name has no address (from {host!r})",
            fix="correct stack.host, or give it a HostName in ~/.ssh/config",
        ) from None
    except TimeoutError:
        raise StackError(
            f"{host} does not answer",
            why=f"nothing came from {where} in {timeout:g} s",
            fix="is it up, and is there a way to it? remote.connect_timeout is how long to wait",
        ) from None
    except NoValidConnectionsError as error:
        reasons = {str(getattr(problem, "strerror", "") or problem) for problem in error.errors.values()}
        raise StackError(
            f"{host} can't be reached",
            why=f"{where}: {', '.join(sorted(reasons)).lower()}",
            fix="is an SSH server running there, on this port?",
        ) from None
    except (SSHException, ProxyCommandFailure, OSError, EOFError) as error:
        raise StackError(
            f"{host} can't be connected to",
            why=f"{where}: {str(error) or type(error).__name__}",
            fix=f"ssh -v -p {connection.port} {connection.user}@{connection.host} shows more",
        ) from None
