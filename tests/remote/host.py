"""Another machine for the tests: an SSH server with keys and a configuration of its own, in a network of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import WORKER, Project, free_ports

NUMBERS = itertools.count(secrets.randbelow(50))
"""Of networks: 10.213.x.0/30, each process of the tests its own."""


class Host:
    """An SSH server that answers to the name ``box``."""

    def __init__(self, folder: Path, *, address: str, port: int, namespace: str = "") -> None:
        self.folder = folder
        self.address = address
        self.port = port
        self.namespace = namespace
        self.environment = {"HOME": str(folder / "home")}
        """Variables of every session there. Its home is its own: this account's dotfiles are none of the host's."""
        (folder / "home").mkdir(mode=0o700)
        self.server: subprocess.Popen[bytes] | None = None
        for name in ("hostkey", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "id.pub", folder / "authorized")

    @property
    def config(self) -> Path:
        """OpenSSH's configuration for clients, written anew."""
        file = self.folder / "ssh_config"
        file.write_text(
            f"Host box\n  HostName {self.address}\n  Port {self.port}\n  User {psutil.Process().username()}\n"
            f"  IdentityFile {self.folder}/id\n  UserKnownHostsFile {self.known_hosts}\n"
        )
        return file

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def know(self) -> None:
        """Have the host's key be known."""
        key = " ".join((self.folder / "hostkey.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"{self.address if self.port == 22 else f'[{self.address}]:{self.port}'} {key}\n")

    def inside(self, *words: str) -> list[str]:
        """A command line in the host's network."""
        return ["ip", "netns", "exec", self.namespace, *words] if self.namespace else list(words)

    def run(self, *words: str) -> str:
        return subprocess.run(self.inside(*words), capture_output=True, text=True, timeout=60, check=True).stdout

    def start(self) -> None:
        lines = [
            f"Port {self.port}",
            f"ListenAddress {self.address}",
            *(["ListenAddress 127.0.0.1"] if self.namespace else []),
            f"HostKey {self.folder}/hostkey",
            f"AuthorizedKeysFile {self.folder}/authorized",
            f"AllowUsers {psutil.Process().username()}",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "SetEnv " + " ".join(f'"{name}={text}"' for name, text in self.environment.items()),
        ]
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert sshd
        with (self.folder / "sshd.log").open("ab") as log:
            self.server = subprocess.Popen(
                self.inside(sshd, "-D", "-e", "-f", str(self.folder / "sshd_config")), stdout=log, stderr=log
            )
        deadline = time.monotonic() + 10
        while "Server listening" not in (self.folder / "sshd.log").read_text():
            assert self.server.poll() is None, (self.folder / "sshd.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def sessions(self) -> list[psutil.Process]:
        """The processes of the connections that are open."""
        assert self.server is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.server.pid).children(recursive=True)
        return []

    def end_sessions(self) -> None:
        """What a restart of the machine's network would do: each connection's server is killed."""
        assert self.server is not None
        for process in psutil.Process(self.server.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def stop(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait(10)
            (self.folder / "sshd.log").unlink()
            self.server = None

    def link(self, *, up: bool) -> None:
        """Plug in, or pull out, the cable."""
        subprocess.run(["ip", "link", "set", f"{self.namespace}a", "up" if up else "down"], check=True)


def require() -> None:
    """Skip where there can be no other machine."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("sshd", "ssh-keygen", "ip") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"there is no {missing[0]}: tests/engines/install.sh installs it")
    if os.getuid() != 0:
        pytest.skip("only root may make networks")
    Path("/run/sshd").mkdir(exist_ok=True)  # where it separates its privileges, as Debian has it


@contextlib.contextmanager
def apart(folder: Path) -> Iterator[Host]:
    """A host that is reached over a link."""
    require()
    name, number = f"nvt{os.getpid() % 100_000}x{next(NUMBERS)}", next(NUMBERS)
    net = f"10.213.{WORKER % 10 * 25 + number % 25}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no network can be made here: {made.stderr.strip()}")
    try:
        for words in (
            ["ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", "eth0", "netns", name],
            ["ip", "addr", "add", f"{net}.1/30", "dev", f"{name}a"],
            ["ip", "link", "set", f"{name}a", "up"],
            ["ip", "-n", name, "addr", "add", f"{net}.2/30", "dev", "eth0"],
            ["ip", "-n", name, "link", "set", "eth0", "up"],
            ["ip", "-n", name, "link", "set", "lo", "up"],
        ):
            subprocess.run(words, check=True)
        host = Host(folder, address=f"{net}.2", port=22, namespace=name)
        host.known_hosts.unlink(missing_ok=True)
        try:
            host.start()
            yield host
        finally:
            host.end_sessions()
            host.stop()
    finally:
        # its end of the link goes with it, and so does ours
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextlib.contextmanager
def beside(folder: Path, **environment: str) -> Iterator[Host]:
    """A host that is this machine, on a port of loopback."""
    require()
    host = Host(folder, address="127.0.0.1", port=free_ports(1)[0])
    host.environment |= environment
    try:
        host.start()
        yield host
    finally:
        if host.server:
            host.end_sessions()
        host.stop()


class Remote(Project):
    """A project whose stack is on a host."""

    def __init__(self, folder: Path, cache: Path, host: Host, **options: Any) -> None:
        super().__init__(folder, cache, **options)
        self.host = host
        self.there = folder / "there"
        with (self.root / "invoke.yaml").open("a") as file:
            file.write(f"\nssh_config_path: {host.config}\n")
        self.env |= {
            "NV_HOST": "box",
            "INVOKE_REMOTE_DIR": str(self.there),
            "INVOKE_REMOTE_PYTHON": self.python,
            "INVOKE_REMOTE_SILENCE": "3",
            "INVOKE_REMOTE_CONNECT_TIMEOUT": "5",
        }

    @property
    def state(self) -> Path:
        """The stack's, on the host."""
        return next(self.state_base.glob("there-*/dev"))

    @property
    def backups(self) -> list[str]:
        """Names of the backups here, the oldest first."""
        return sorted(path.name for path in (self.root / "backups").glob("backup-*") if path.suffix != ".json")

    @property
    def backups_there(self) -> list[str]:
        return sorted(path.name for path in (self.there / "backups").glob("*"))

    def sql(self, statement: str) -> str:
        """What psql prints on the host."""
        return self.inv("db.shell", "--command", statement).stdout

    def end(self) -> None:
        super().end()
        self.popen("remote.tunnel", "--stop").communicate(timeout=30)
