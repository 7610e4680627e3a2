"""Real stacks for the tests: a copy of the project, its own folders and ports, everything ended afterwards."""

from __future__ import annotations

import compileall
import contextlib
import errno
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from devstack.host import Host
from devstack.paths import registry_of
from devstack.registry import Registry

ROOT = Path(__file__).resolve().parent.parent
# who starts the tests in the background may have them ignore Ctrl-C, and so all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
# and what they have started is taken down too when something with a time limit ends them
signal.signal(signal.SIGTERM, signal.default_int_handler)
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "*.egg-info", ".*_cache", "logs", "backups", "results")
COMPILED = [ROOT / "api", ROOT / "devstack", ROOT / "tasks"]
"""What commands import."""


CALM = {"INVOKE_HEALTH_API_RESPONSE_MS": "60000", "INVOKE_HEALTH_QUERY_MS": "60000"}
"""A slow machine is no fault of the stack's."""


def left_out(folder: str, names: list[str]) -> set[str]:
    """What a copy of the project does without, as :func:`shutil.copytree` asks for it."""
    found = LEFT_OUT(folder, names)
    if not any(Path(folder).is_relative_to(path) for path in COMPILED):
        found.add("__pycache__")  # written to meanwhile, by other tests
    return found


def user_registry() -> Registry:
    """Where the environments of whoever runs this are listed."""
    xdg = {name: value for name, value in os.environ.items() if name.startswith("XDG_")}
    return Registry(registry_of(Path.home(), xdg, os.getuid()), Host())


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""The number of this process among those that run tests at the same time."""
FIRST = secrets.randbelow(2_000)
PORTS = itertools.cycle(12_000 + WORKER * 2_000 + (FIRST + number) % 2_000 for number in range(2_000))
"""Each process has its own: below those that the system gives out (32768 on Linux), each given out once a round.
Another run of the tests at the same time begins elsewhere."""


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, on either family of loopback."""
    found: list[int] = []
    while len(found) < count:
        port = next(PORTS)
        if all(_is_free(family, address, port) for family, address in LOOPBACK):
            found.append(port)
    return found


LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def _is_free(family: int, address: str, port: int) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.bind((address, port))
    except OSError as error:
        return error.errno != errno.EADDRINUSE  # no IPv6 is no hindrance
    return True


def pytest_configure(config: pytest.Config) -> None:
    """Compile the sources once: each copy of the project takes the byte code along, as a project that is in use has it.
    Otherwise every command of the tests, of which there are thousands, would compile what it imports."""
    if not hasattr(config, "workerinput"):
        for path in COMPILED:
            compileall.compile_dir(path, quiet=1)
        with contextlib.suppress(ImportError):
            from xdist.workermanage import NodeManager

            # after a Ctrl-C, what the tests have started is taken down: ten seconds are not enough for that
            NodeManager.EXIT_TIMEOUT = 120


LONGEST = ("engines", "test_health_faults.py", "data")
"""Files and folders whose tests take longest: they begin first, so that nobody waits for them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        parts = item.path.relative_to(Path(__file__).parent).parts
        return next((number for number, name in enumerate(LONGEST) if name in parts), len(LONGEST))

    items.sort(key=rank)  # stable: within each, the order stays
    for item in items:
        if not rank(item):
            # what the first of them waits for: an engine, and images built from nothing
            item.add_marker(pytest.mark.timeout(900))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let those of the engines go first, as they all go to one process, and the run is as long as that takes."""
    with contextlib.suppress(PermissionError):  # only root may be sooner again
        os.setpriority(os.PRIO_PROCESS, 0, 0 if "engines" in item.path.parts else 5)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file goes to one process, and all that run container engines to the same: two would choose the same networks,
    and one's rules of the firewall would go with the other's. Those of the native runtime are none of these."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            if "engines/" in nodeid.partition("::")[0]:
                return "native" if "[native" in nodeid else "engines"
            return str(super()._split_scope(nodeid))

    return Scheduling(config, log)


class Project:
    """A copy of the project in a folder of its own, with ports and state of its own."""

    def __init__(self, folder: Path, cache: Path, *, root: Path | None = None, python: str = sys.executable) -> None:
        self.folder = folder
        self.root = root or folder / "project"
        self.python = python
        self.commands: list[subprocess.Popen[str]] = []
        self.user: str | None = None
        """Whom to run as; None for whoever runs the tests."""
        shutil.copytree(ROOT, self.root, ignore=left_out)
        self.state_base = folder / "state"
        self.db_port, self.pgb_port, self.api_port = free_ports(3)
        self.env = self.surroundings(cache)

    def surroundings(self, cache: Path) -> dict[str, str]:
        """The environment of its commands."""
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("INVOKE_", "NV_", "PG", "NINAIVALAIGAL_"))},
            "INVOKE_STACK_RUNTIME": "native",
            "INVOKE_STACK_STATE_DIR": str(self.state_base),
            "INVOKE_STACK_CACHE_DIR": str(cache),
            "INVOKE_DB_PORT": str(self.db_port),
            "INVOKE_PGB_PORT": str(self.pgb_port),
            "INVOKE_API_PORT": str(self.api_port),
            **CALM,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name in ("MEMORY_PROVIDER", "LOG_LEVEL", "RELOAD_ON_CHANGE", "NO_COLOR"):
            env.pop(name, None)
        return env

    # the command line

    def command(self, *args: str) -> list[str]:
        return [self.python, "-m", "invoke", *args]

    def popen(self, *args: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.command(*args),
            cwd=self.root,
            env={**self.env, **env},
            user=self.user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.commands.append(process)
        return process

    def begin(self, *flags: str) -> None:
        """Have the environment's folder, secrets and ports, and nothing running."""
        self.inv("dev.ide", "--variables", *flags)

    def inv(self, *args: str, expect: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a task to its end; the exit code must be as expected."""
        process = self.popen(*args, **env)
        try:
            stdout, stderr = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            raise AssertionError(f"inv {args} did not end:\n{stdout}\n{stderr}") from None
        assert process.returncode == expect, f"inv {args} ended with {process.returncode}:\n{stdout}\n{stderr}"
        assert "Traceback (most recent call last)" not in stderr or expect != 0
        return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)

    # what it made

    @property
    def state(self) -> Path:
        """The environment's state folder."""
        return next(self.state_base.glob("*/dev"))

    @property
    def data(self) -> Path:
        return self.state / "volumes" / "nv-db-data"

    def secrets(self) -> dict[str, str]:
        content: dict[str, str] = json.loads((self.state / "secrets.json").read_text())
        return content

    def log(self, name: str) -> str:
        path = self.root / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def pids(self) -> dict[str, int]:
        """Process ids of the services that run."""
        stdout, _ = self.popen("dev.status", "--json").communicate(timeout=60)
        return {s["service"]: s["pid"] for s in json.loads(stdout)["services"] if s["pid"]}

    def connect(self, port: int | None = None, **kwargs: Any) -> Any:
        import psycopg2

        values = {"user": "nina", "dbname": "nina", "password": self.secrets()["db_password"], "connect_timeout": 5}
        connection = psycopg2.connect(host="127.0.0.1", port=port or self.db_port, **{**values, **kwargs})
        connection.autocommit = True
        return connection

    def query(self, sql: str, port: int | None = None, **kwargs: Any) -> list[tuple[Any, ...]]:
        connection = self.connect(port, **kwargs)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def http(self, path: str, body: object = None, method: str | None = None) -> tuple[int, Any]:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api_port}{path}",
            data=data,
            method=method,
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    # afterwards

    def processes(self) -> list[psutil.Process]:
        """Every process that this project's stack started, by the mark in its environment or its command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                marks = [process.environ().get("NV_STACK", ""), *process.cmdline()]
                if any(str(self.state_base) in mark for mark in marks):
                    found.append(process)
        return found

    def listening(self) -> list[int]:
        return [port for port in (self.db_port, self.pgb_port, self.api_port) if _answers(port)]

    def end(self) -> None:
        """Take the stack down, whatever state it is in; what does not go is killed by its process id."""
        for command in self.commands:
            if command.poll() is None:
                command.kill()
                command.communicate()
        # whose end stops the services in order; a command for it would take more of the processor than most tests
        supervisors = [process for process in self.processes() if "supervisor.supervisord" in _words(process)]
        for supervisor in supervisors:
            with contextlib.suppress(psutil.Error):
                supervisor.terminate()
                supervisor.send_signal(signal.SIGCONT)  # a test may have frozen it
        psutil.wait_procs(supervisors, timeout=60)
        left = self.processes()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(left, timeout=10)


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def workspace() -> Iterator[Path]:
    """A folder that the services' account may enter, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="nv-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    user_registry().prune()  # all of a user's environments are listed in one place


@pytest.fixture(scope="session")
def cache(workspace: Path) -> Path:
    """Where PostgreSQL is unpacked, once for all tests."""
    return workspace / "cache"


@pytest.fixture
def alarm() -> Iterator[None]:
    """End a read that hangs."""
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.fixture
def project(workspace: Path, cache: Path, request: pytest.FixtureRequest) -> Iterator[Project]:
    """A project of this test's own, nothing started yet."""
    folder = Path(tempfile.mkdtemp(dir=workspace))
    folder.chmod(0o755)
    made = Project(folder, cache)
    yield made
    made.end()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def stack(workspace: Path, cache: Path) -> Iterator[Project]:
    """A running stack that a module's tests share; they leave it running."""
    folder = Path(tempfile.mkdtemp(dir=workspace))
    folder.chmod(0o755)
    made = Project(folder, cache)
    try:
        made.inv("dev.up")
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Any, seconds: float = 20) -> Any:
    """Poll until the condition gives something true; its value."""
    import time

    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):
            if value := condition():
                return value
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
