"""Real engines for the tests, with storage, networks and images of their own, and nothing left of them afterwards.

No registry is asked: the base image is made by mmdebstrap, the database's from the PostgreSQL that the native runtime
unpacks, and what the stack builds itself is built for real once and handed to the other engines.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DOUBLE = Path(os.environ.get("NV_APPLE_DOUBLE") or ROOT.parent / "shared" / "apple-container")
"""A test double of Apple's command line, where there is one."""

BASE, DATABASE = "localhost/nv-test/debian:latest", "localhost/nv-test/postgres:latest"
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"

CONTAINERFILE = f"""\
FROM {BASE}
RUN apt-get update && apt-get install -y --no-install-recommends libossp-uuid16 && rm -rf /var/lib/apt/lists/*
RUN groupadd --system --gid 999 postgres && useradd --system --uid 999 --gid postgres postgres
COPY postgresql /usr/lib/postgresql/here
ENV PATH=/usr/lib/postgresql/here/bin:$PATH LD_LIBRARY_PATH=/usr/lib/postgresql/here/lib
VOLUME /var/lib/postgresql
"""
"""Like the official images as far as the stack relies on it: programs on PATH, an account, a volume in the way."""


@dataclass
class Engine:
    """An engine that works, and what a stack must be told to run on it."""

    name: str
    program: str
    env: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)

    def run(self, *words: str, check: bool = True) -> str:
        """A command of the engine; its output."""
        done = subprocess.run(
            [self.program, *words], env={**os.environ, **self.env}, capture_output=True, text=True, timeout=300
        )
        assert not check or done.returncode == 0, f"{self.program} {words}: {done.stderr}"
        return done.stdout


def require(*programs: str) -> None:
    """Skip where a program is not there."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (tests/engines/install.sh)")
    if os.getuid() != 0:
        pytest.skip("the engines of the tests are run by root")


@contextlib.contextmanager
def podman(folder: Path) -> Iterator[Engine]:
    """Podman with its own storage and networks."""
    require("podman", "runc", "mmdebstrap", "iptables-save")
    storage, networks = folder / "storage", folder / "networks"
    networks.mkdir(parents=True)
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{storage}"\nrunroot = "{folder / "run"}"\n'
    )
    (folder / "containers.conf").write_text(
        # limits that a container without CAP_SYS_RESOURCE may set, and a runtime for any kind of control groups
        '[containers]\ndefault_ulimits = ["nofile=1024:4096", "nproc=4096:8192"]\n'
        # nothing else is moved: what starts a container again after its end reads no file of ours
        '[engine]\nruntime = "runc"\nevents_logger = "file"\n'
        f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{networks}"\n'
    )
    env = {
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(folder / "registries.conf"),
    }
    (folder / "registries.conf").write_text("")
    engine = Engine("podman", "podman", env)
    own = b"NETAVARK" not in rules()
    try:
        yield engine
    finally:
        engine.run("rm", "--all", "--force", "--time", "0", check=False)
        engine.run("volume", "rm", "--all", "--force", check=False)
        engine.run("network", "prune", "--force", check=False)
        engine.run("system", "prune", "--all", "--force", check=False)
        subprocess.run(["umount", "--lazy", storage / "overlay"], stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)
        if own:  # its empty chains stay after the last network
            others = [line for line in rules().splitlines(keepends=True) if b"netavark" not in line.lower()]
            subprocess.run(["iptables-restore"], input=b"".join(others), check=False)


def rules() -> bytes:
    """Return the rules of the firewall, as iptables-restore takes them."""
    return subprocess.run(["iptables-save"], capture_output=True, check=True).stdout


@contextlib.contextmanager
def docker(folder: Path) -> Iterator[Engine]:
    """A dockerd of its own, with a bridge of its own."""
    require("dockerd", "docker", "iptables-save")
    folder.mkdir(parents=True)
    bridge, socket = "nvtest0", folder / "sock"
    before = rules()
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    subprocess.run(["ip", "address", "add", "172.31.253.1/24", "dev", bridge], check=True)
    log = (folder / "log").open("wb")
    daemon = subprocess.Popen(
        [
            "dockerd",
            f"--data-root={folder / 'data'}",
            f"--exec-root={folder / 'exec'}",
            f"--pidfile={folder / 'pid'}",
            f"--host=unix://{socket}",
            f"--bridge={bridge}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    engine = Engine("docker", "docker", {"DOCKER_HOST": f"unix://{socket}"})
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(["docker", "version"], env={**os.environ, **engine.env}, capture_output=True).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not run here: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.1)
        yield engine
    finally:
        if daemon.poll() is None:
            ids = engine.run("ps", "--all", "--quiet", check=False).split()
            if ids:
                engine.run("rm", "--force", "--volumes", *ids, check=False)
            engine.run("network", "prune", "--force", check=False)
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        log.close()
        subprocess.run(["ip", "link", "delete", bridge], check=False)
        subprocess.run(["iptables-restore"], input=before, check=False)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def apple(folder: Path, below: Engine) -> Iterator[Engine]:
    """The double of Apple's container, on the Podman of the tests."""
    if not (DOUBLE / "container").is_file():
        pytest.skip(f"there is no test double of Apple's container in {DOUBLE} (NV_APPLE_DOUBLE)")
    folder.mkdir(parents=True)
    path = os.pathsep.join([str(DOUBLE), os.environ["PATH"]])
    env = {**below.env, "PATH": path, "NV_APPLE_STATE": str(folder)}
    engine = Engine("apple", str(DOUBLE / "container"), env)
    engine.run("system", "start", "--enable-kernel-install")
    try:
        yield engine
    finally:
        engine.run("delete", "--all", "--force", check=False)
        engine.run("volume", "delete", "--all", check=False)
        engine.run("system", "stop", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def make_images(engine: Engine, folder: Path, postgresql: Path) -> None:
    """The images that stand for those of a registry, made with Podman."""
    folder.mkdir(parents=True)
    packed = folder / "root.tar"
    _checked(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(packed), MIRROR])
    engine.run("import", "--quiet", str(packed), BASE)
    packed.unlink()
    context = folder / "postgres"
    context.mkdir()
    shutil.copytree(postgresql, context / "postgresql", symlinks=True)
    (context / "Containerfile").write_text(CONTAINERFILE)
    words = ["--network", "host", "--tag", DATABASE, "--file", str(context / "Containerfile"), str(context)]
    engine.run("build", "--quiet", *words)
    shutil.rmtree(folder)


MIRROR = "http://deb.debian.org/debian"


def _checked(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {(done.stderr or done.stdout)[-2000:]}"


def hand_over(images: list[str], giver: Engine, taker: Engine, folder: Path) -> None:
    """Give images of one engine to another."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        file = folder / f"{number}.tar"
        giver.run("save", "--quiet", "--output", str(file), image)
        taker.run("load", "--input", str(file))
        file.unlink()
