"""A place of its own for a run: a copy of the checkout, its state, its cache and free ports. All of it is gone at
the end, however that comes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from devstack import git
from devstack.inherited import LIBPQ_VARIABLES
from devstack.settings import SPECIFIED, URL_VARIABLE
from tests.conftest import user_registry

PATIENCE = 180.0
"""Seconds that a program may take before it is ended: something is wrong with it then."""


class BenchmarkError(Exception):
    """There is nothing to measure; the text says why."""


class Workspace:
    """The folders of one run. Its parents and itself can be entered by PostgreSQL's account."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / "checkout"
        self.output = folder / "output.log"
        """What all commands say; its end is shown when one fails."""

    def environment(self, env: str, ports: Mapping[str, int]) -> dict[str, str]:
        """The variables of ``inv`` for an environment of the stack here, without any settings of the caller."""
        # without bytecode, every start of either side would compile its sources first: not what people have
        ours = {*SPECIFIED, URL_VARIABLE, *LIBPQ_VARIABLES, "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
        kept = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith("INVOKE_")}
        return {
            **kept,
            "NV_ENV": env,
            "INVOKE_STACK_RUNTIME": "native",
            "INVOKE_STACK_STATE_DIR": str(self.folder / "state"),
            "INVOKE_STACK_CACHE_DIR": str(self.folder / "cache"),
            **{f"INVOKE_{service.upper()}_PORT": str(port) for service, port in ports.items()},
        }


class CommandLine:
    """``inv`` in the copied checkout, for one environment of the stack: what a person types, as a process."""

    def __init__(self, workspace: Workspace, env: str, ports: Mapping[str, int]) -> None:
        self.workspace = workspace
        self.env = env
        self.ports = ports
        self.environ = workspace.environment(env, ports)
        self.patience = PATIENCE
        self.peak = 0
        """Bytes of memory that the largest process of the last command had; the services are none of its."""

    @property
    def state(self) -> Path:
        """The environment's own folder, once the first command has made it."""
        (found,) = (self.workspace.folder / "state").glob(f"*/{self.env}")
        return found

    def inv(self, *words: str) -> float:
        """Run it; the seconds that it took.

        :raises BenchmarkError: it failed.
        """
        argv = [sys.executable, "-m", "invoke", *words]
        with self.workspace.output.open("ab") as output:
            began = time.perf_counter()
            process = subprocess.Popen(
                argv,
                cwd=self.workspace.checkout,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            code, self.peak = weigh(process, self.patience)
            seconds = time.perf_counter() - began
        if code != 0:
            tail = self.workspace.output.read_text(errors="replace").splitlines()[-15:]
            raise BenchmarkError("\n".join([f"inv {' '.join(words)} ended with exit code {code}:", *tail]))
        return seconds

    def reset(self) -> None:
        """Remove the environment's state, as on a machine that never had it. The cache stays."""
        shutil.rmtree(self.state)

    def forget_clusters(self) -> None:
        """Remove the prepared clusters, so that the next start from nothing makes one."""
        shutil.rmtree(self.workspace.folder / "cache" / "clusters")


def wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a program's end; its exit code."""
    return weigh(process, PATIENCE)[0]


def weigh(process: subprocess.Popen[bytes], patience: float) -> tuple[int, int]:
    """Wait for a program's end; its exit code, and the bytes of memory that the largest of it and of those that it
    started and waited for had. Without ``wait(timeout=…)``, which looks only every 50 ms."""
    alarm = threading.Timer(patience, process.kill)
    alarm.daemon = True
    alarm.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        alarm.cancel()


@contextlib.contextmanager
def workspace(root: Path) -> Iterator[Workspace]:
    """A workspace with a copy of the checkout.

    :raises BenchmarkError: ``root`` is not a git checkout.
    """
    # a short folder, whose parents everybody may enter: sockets and PostgreSQL's account need that
    folder = Path(tempfile.mkdtemp(prefix="nv-bench-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        here = Workspace(folder)
        _copy_checkout(root, here.checkout)
        yield here
    finally:
        # a second Ctrl-C must not leave half of it behind
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            end_processes(folder)
            shutil.rmtree(folder)
            user_registry().prune()
        finally:
            signal.signal(signal.SIGINT, before)


def _copy_checkout(root: Path, target: Path) -> None:
    """The files that git has or would take, as they are now."""
    names = git.files(root)
    if names is None:
        raise BenchmarkError("the benchmarks copy the checkout with git, which failed: see git status")
    for name in names:
        source, copy = root / name, target / name
        if source.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)


def end_processes(folder: Path) -> None:
    """End what still runs of a workspace, supervisors first: they would start the others again. A run that went well
    left nothing; one that was interrupted may have left ``initdb`` or a half-made start, so it is looked for until
    nothing is found."""
    deadline = time.monotonic() + 30
    while (mine := _processes_of(folder)) and time.monotonic() < deadline:
        supervisors = [process for process, is_supervisor in mine if is_supervisor]
        for process in supervisors or [process for process, _ in mine]:
            with contextlib.suppress(psutil.Error):
                # SIGINT is PostgreSQL's fast shutdown; the others end by it too
                process.send_signal(signal.SIGTERM if supervisors else signal.SIGINT)
        _, stubborn = psutil.wait_procs(supervisors or [process for process, _ in mine], timeout=15)
        for process in stubborn:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _processes_of(folder: Path) -> list[tuple[psutil.Process, bool]]:
    """The processes of a workspace, and whether each is a supervisor: its folder is in their arguments, or in the
    variable that the stack gives to its services."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            named = any(f"{folder}/" in word for word in words) or f"{folder}/" in process.environ().get("NV_STACK", "")
            if named and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, "supervisor.supervisord" in words))
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that clients are given (32768 on Linux, 49152 on macOS)."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 2_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise BenchmarkError("no free ports were found between 20000 and 32000")
