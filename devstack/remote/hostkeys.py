"""Which hosts are known: the files that OpenSSH keeps (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramiko.client import MissingHostKeyPolicy, SSHClient
from paramiko.ssh_exception import SSHException

if TYPE_CHECKING:
    from fabric import Connection
    from paramiko import PKey

SYSTEM = (Path("/etc/ssh/ssh_known_hosts"), Path("/etc/ssh/ssh_known_hosts2"))


class UnknownHost(SSHException):
    """A host whose key is in none of the files. ``name`` is as they have it: ``box``, or ``[box]:2222``."""

    def __init__(self, name: str, key: PKey, file: Path) -> None:
        super().__init__(f"the host key of {name} is not known")
        self.name = name
        self.key = key
        self.file = file


class _Refuse(MissingHostKeyPolicy):
    """Fabric's own policy takes any key it does not know."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def missing_host_key(self, client: SSHClient, hostname: str, key: PKey) -> None:
        raise UnknownHost(hostname, key, self.file)


def files_of(ssh_config: Mapping[str, Any]) -> list[Path]:
    """The user's files of known hosts, the first is where new ones go (ssh_config(5), UserKnownHostsFile)."""
    given = [name for name in str(ssh_config.get("userknownhostsfile", "")).split() if name != "none"]
    return [Path(name).expanduser() for name in given] or [Path.home() / ".ssh/known_hosts"]


def check(connection: Connection) -> None:
    """Have a connection refuse who is not known."""
    files = files_of(connection.ssh_config)
    for file in (*SYSTEM, *files):
        if file.is_file():
            connection.client.load_system_host_keys(str(file))
    connection.client.set_missing_host_key_policy(_Refuse(files[0]))


def revoked(connection: Connection) -> set[str]:
    """The keys that are marked so, in Base64: Paramiko skips those lines."""
    found = set()
    for file in (*SYSTEM, *files_of(connection.ssh_config)):
        with contextlib.suppress(OSError):
            lines = (line.split() for line in file.read_text(errors="replace").splitlines())
            found |= {words[3] for words in lines if words[:1] == ["@revoked"] and len(words) > 3}
    return found


def accept(unknown: UnknownHost) -> None:
    """Add a key to the user's file of known hosts.

    :raises OSError: it can't be written.
    """
    unknown.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = f"{unknown.name} {unknown.key.get_name()} {unknown.key.get_base64()}\n".encode()
    handle = os.open(unknown.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with open(handle, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
