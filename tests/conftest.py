"""Real stacks for the tests: projects with directories and ports of their own, and everything ended afterwards."""

from __future__ import annotations

import compileall
import contextlib
import errno
import hashlib
import itertools
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import psutil
import pytest
from invoke import Config, Context

from devstack.host import Host
from devstack.paths import registry_of
from devstack.registry import Registry
from devstack.stack import Stack, open_stack

ROOT = Path(__file__).resolve().parent.parent
# who starts the tests in the background may have them ignore Ctrl-C, and so all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
# and what they have started is taken down too when something with a time limit ends them
signal.signal(signal.SIGTERM, signal.default_int_handler)
PROJECT = ("invoke.yaml", "tasks.py", "templates", "api")
"""What a project consists of."""
PROGRAM = ("devstack", "tasks", "scripts/bootstrap.sh", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")
"""What it is run by, as it is sent to other hosts. It cannot be shared: a project is found by where its tasks are."""
NO_BYTE_CODE = shutil.ignore_patterns("__pycache__")
COMPILED = [ROOT / "api", ROOT / "devstack", ROOT / "tasks"]
"""What commands import."""


CALM = {"INVOKE_HEALTH_API_RESPONSE_MS": "60000", "INVOKE_HEALTH_QUERY_MS": "60000"}
"""A slow machine is no fault of the stack's."""


def user_registry() -> Registry:
    """Where the environments of whoever runs this are listed."""
    xdg = {name: value for name, value in os.environ.items() if name.startswith("XDG_")}
    return Registry(registry_of(Path.home(), xdg, os.getuid()), Host())


THREADS = set(threading.enumerate())
"""Threads of pytest and its plugins."""


def other_threads() -> set[threading.Thread]:
    """What runs beside the thread of the tests, apart from pytest's own."""
    return set(threading.enumerate()) - THREADS


def is_alone() -> bool:
    """Check that this thread has the process to itself.

    :raises AssertionError: it has not.
    """
    assert not (others := other_threads()), f"{others} are left by this test or an earlier one"
    return True


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""The number of this process among those that run tests at the same time."""
FIRST = secrets.randbelow(2_000)  # not from the seed: a run with the seed of another one begins elsewhere too
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--campaign", action="store_true", help="run all rounds of the random tests, not a part of them")


SEED = pytest.StashKey[int]()
"""The seed of all chance in the tests."""
TIDYING = 300
"""Seconds for a run that is interrupted to take down what it has started."""
CACHE = pytest.StashKey[Path]()
"""The cache of all projects of a run."""


def pytest_configure(config: pytest.Config) -> None:
    """Compile the sources once: each project takes the byte code along, as a project that is in use has it.
    Otherwise every command of the tests, of which there are thousands, would compile what it imports."""
    worker = getattr(config, "workerinput", None)
    if worker is None:
        for path in COMPILED:
            compileall.compile_dir(path, quiet=1)
    with contextlib.suppress(ImportError):
        _have_time_to_tidy()
    config.stash[CACHE] = Path(worker["cache"]) if worker else new_directory() / "cache"
    given = os.environ.get("NV_TEST_SEED") or secrets.randbelow(1_000_000_000)
    config.stash[SEED] = int(worker["seed"] if worker else given)
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = config.stash[SEED]
    hypothesis.settings.register_profile("part", print_blob=True)
    hypothesis.settings.register_profile("campaign", print_blob=True, max_examples=1_000)
    hypothesis.settings.load_profile("campaign" if config.getoption("campaign") else "part")


def _have_time_to_tidy() -> None:
    """After a Ctrl-C, what the tests have started is taken down: ten seconds are not enough for that.

    pytest-xdist kills a worker then, and execnet, which runs it, ends it in the middle.
    """
    from execnet.gateway_base import WorkerPool
    from xdist.workermanage import NodeManager

    NodeManager.EXIT_TIMEOUT = TIDYING
    wait = WorkerPool.waitall

    def wait_longer(pool: WorkerPool, timeout: float | None = None) -> bool:
        return wait(pool, TIDYING if timeout == 10 else timeout)

    WorkerPool.waitall = wait_longer  # type: ignore[assignment, method-assign]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a worker of pytest-xdist the seed and the cache of the run."""
    node.workerinput["seed"] = node.config.stash[SEED]
    node.workerinput["cache"] = str(node.config.stash[CACHE])


def pytest_unconfigure(config: pytest.Config) -> None:
    if CACHE in config.stash and not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[CACHE].parent, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show the seed of a random test that failed."""
    report = yield
    if report.failed and ("chance" in getattr(item, "fixturenames", ()) or item.get_closest_marker("hypothesis")):
        report.sections.append(("seed", f"NV_TEST_SEED={item.config.stash[SEED]} repeats it"))
    return report


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The only source of random choices in tests: the same for the same seed and test. A failure shows the seed."""
    return random.Random(f"{request.config.stash[SEED]} {request.node.nodeid}")


class Rounds:
    """How often a random test repeats what it does."""

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole

    def __call__(self, count: int, *, share: int = 10) -> range:
        """Return all of ``count`` rounds in a campaign, otherwise one in ``share`` of them: where a round takes
        seconds, a tenth is too much for every run of the tests."""
        return range(count if self.whole else max(1, count // share))


@pytest.fixture(scope="session")
def rounds(pytestconfig: pytest.Config) -> Rounds:
    return Rounds(whole=pytestconfig.getoption("campaign"))


MEMORY = Path("/dev/shm")
ROOM = 12 << 30
"""Bytes of memory that must be free for the tests to have their files there: a third of it is what they need."""

LONGEST = ("engines", "test_health_faults.py", "data")
"""Files and folders whose tests take longest: they begin first, so that nobody waits for them in the end."""


NEEDED = {"hosts": {"box", "beside"}, "engines": {"engine", "podman", "docker", "apple"}}
"""Markers, and the fixtures whose tests get them."""
COLLECTED = pytest.StashKey[dict[str, set[str]]]()
"""The markers of every test that was collected, also of those that are deselected then."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        parts = item.path.relative_to(Path(__file__).parent).parts
        return next((number for number, name in enumerate(LONGEST) if name in parts), len(LONGEST))

    items.sort(key=rank)  # stable: within each, the order stays
    tried: set[str] = set()
    for item in items:
        if item.get_closest_marker("variations"):
            name = item.nodeid.partition("[")[0]
            if name in tried:
                item.add_marker("slow")
            tried.add(name)
        for marker, fixtures in NEEDED.items():
            if fixtures & set(getattr(item, "fixturenames", ())):
                item.add_marker(marker)
        if item.get_closest_marker("engines"):
            # what the first of them waits for: an engine, and images built from nothing
            item.add_marker(pytest.mark.timeout(900))
        elif config.getoption("campaign"):
            item.add_marker(pytest.mark.timeout(7_200))  # ten times the rounds
    config.stash[COLLECTED] = {item.nodeid: {mark.name for mark in item.iter_markers()} for item in items}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let those of the engines go first, as they all go to one process, and the run is as long as that takes."""
    with contextlib.suppress(PermissionError):  # only root may be sooner again
        os.setpriority(os.PRIO_PROCESS, 0, 0 if item.get_closest_marker("engines") else 5)


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
    """A project in a directory of its own, with ports and state of its own.

    :param also: what a test needs of the checkout beyond a project, as paths in it; its program is there then too.
    """

    patched = False
    """Whether the test may have patched modules of this process: its commands run here then, after threads that earlier
    commands have left."""
    own_program = False
    """Whether its commands are always run by the copy of the program in its directory: what they do depends on where
    that is."""

    def __init__(
        self,
        folder: Path,
        cache: Path,
        *,
        root: Path | None = None,
        python: str = sys.executable,
        also: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.root = root or folder / "project"
        self.python = python
        self.commands: list[subprocess.Popen[str]] = []
        self.user: str | None = None
        """Whom to run as; None for whoever runs the tests."""
        self._copy(*PROJECT, *also)
        if also:
            self.have_program()
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

    def _copy(self, *names: str) -> None:
        """Copy files and directories of the checkout into the project."""
        for name in names:
            source, target = ROOT / name, self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                # other byte code may be written at this moment, by other tests
                ignore = None if source in COMPILED else NO_BYTE_CODE
                shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)

    def have_program(self) -> None:
        """Have a copy of the program in the project, as ``inv`` in a process of its own needs it there."""
        if not (self.root / "devstack").exists():
            self._copy(*PROGRAM)

    # the command line

    def command(self, *args: str) -> list[str]:
        self.have_program()
        return [self.python, "-m", "invoke", *args]

    def code(self, source: str, *args: str) -> list[str]:
        """Return the command that runs source code, which may import the program, in the project's directory."""
        self.have_program()
        return [self.python, "-c", source, *args]

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

    def inv(self, *args: str, expect: int | None = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a task to its end; the exit code must be as expected, and there is never a traceback of its own.

        It runs in the process of the tests where that is the same. Where the process is what is tested, use
        :meth:`process`.
        """
        if self.patched and self._is_this_program:
            wait_for(is_alone, 10)
        if not self._shares_process or "dev.exec" in args:  # which becomes the command
            return self.process(*args, expect=expect, **env)
        from tests import runner

        return _checked(runner.run(*args, directory=self.root, env={**self.env, **env}), expect)

    @property
    def _shares_process(self) -> bool:
        """Whether a command can run in the process of the tests, not beside another thread of a test: a process has
        one environment and directory, and libpq crashes when it reads the environment while that changes."""
        return self._is_this_program and not other_threads()

    @property
    def _is_this_program(self) -> bool:
        """Whether its commands are this checkout's program, as the user who runs the tests."""
        ours = (self.user, self.python, self.own_program) == (None, sys.executable, False)
        return ours and type(self).command is Project.command

    def open_stack(self) -> Stack:
        """Open the stack in this process, as a command does."""
        config = Config(project_location=self.root)
        config.load_project()
        return open_stack(Context(config), self.root, self.env)

    def process(self, *args: str, expect: int | None = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a task to its end as :meth:`inv` does, in a process of its own."""
        process = self.popen(*args, **env)
        try:
            stdout, stderr = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            raise AssertionError(f"inv {args} did not end:\n{stdout}\n{stderr}") from None
        return _checked(subprocess.CompletedProcess(args, process.returncode, stdout, stderr), expect)

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
        return {s["service"]: s["pid"] for s in self.status() if s["pid"]}

    def status(self) -> list[dict[str, Any]]:
        """What ``dev.status`` says of the services, whether they run or not."""
        services: list[dict[str, Any]] = json.loads(self.inv("dev.status", "--json", expect=None).stdout)["services"]
        return services

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

    def run(self) -> dict[str, object]:
        """What tells one run of the stack from the next: its processes, and what they were started with."""
        started = [process for process in self.processes() if "supervisor.supervisord" in _words(process)]
        for supervisor in list(started):
            with contextlib.suppress(psutil.NoSuchProcess):
                started += supervisor.children()
        found: dict[str, object] = {}
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                frozen = process.status() == psutil.STATUS_STOPPED
                found[str(process.pid)] = (process.create_time(), frozen)
        files = [self.state / "secrets.json", *(self.state / "config").rglob("*")]
        return found | {str(path): path.read_bytes() for path in files if path.is_file()}

    def answers(self) -> bool:
        """Whether each service answers a real request."""
        with contextlib.suppress(Exception):
            direct, pooled = self.query("SELECT 1"), self.query("SELECT 1", self.pgb_port)
            return direct == pooled == [(1,)] and self.http("/health")[0] == 200
        return False

    def listening(self) -> list[int]:
        return [port for port in (self.db_port, self.pgb_port, self.api_port) if _answers(port)]

    def end(self) -> None:
        """Take the stack down, whatever state it is in, and without order: nobody needs its data any more."""
        for command in self.commands:
            if command.poll() is None:
                command.kill()
                command.communicate()
            for stream in (command.stdout, command.stderr):
                if stream is not None:
                    stream.close()
        left = self.processes()
        # the supervisor first, which would start the others again
        for process in sorted(left, key=lambda process: "supervisor.supervisord" not in _words(process)):
            with contextlib.suppress(psutil.Error):
                # PostgreSQL gives its shared memory back, which it would leave behind if it was killed
                process.send_signal(signal.SIGQUIT if process.name() == "postgres" else signal.SIGKILL)
                process.send_signal(signal.SIGCONT)  # a test may have frozen it
        for process in _left(left, 10):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        _left(left, 10)
        for directory in self.socket_directories():
            shutil.rmtree(directory, ignore_errors=True)

    def socket_directories(self) -> list[Path]:
        """Directories for the sockets of environments whose state has too long a path for them."""
        digests = [hashlib.sha256(os.fsencode(state)).hexdigest()[:12] for state in self.state_base.glob("*/*")]
        shared = Path(tempfile.gettempdir())
        return [found for digest in digests for found in shared.glob(f"nv-*-{digest}*")]


def _checked(done: subprocess.CompletedProcess[str], expect: int | None) -> subprocess.CompletedProcess[str]:
    """Return a command that ended as expected; None expects nothing of its exit code."""
    said = f"{done.stdout}\n{done.stderr}"
    assert expect in (None, done.returncode), f"inv {done.args} ended with {done.returncode}:\n{said}"
    # at the beginning of a line: a log that is shown as evidence is indented
    assert not re.search(r"^Traceback \(most recent call last\)", done.stderr, re.MULTILINE), done.stderr
    return done


def _left(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for processes to end; those that have not. A zombie has: its new parent may take a second to notice."""
    deadline = time.monotonic() + seconds
    while processes := [process for process in processes if _lives(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return processes


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(autouse=True)
def patches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the commands of a test that may patch modules run in its process."""
    Project.patched = "monkeypatch" in request.fixturenames
    yield
    Project.patched = False


def new_directory() -> Path:
    """Make a directory for stacks, which the services' account may enter. It is in memory where there is plenty of it
    and TMPDIR names no other place: a third of the processor's time would go into files otherwise."""
    folder = Path(tempfile.mkdtemp(prefix="nv-test-", dir=None if "TMPDIR" in os.environ else _in_memory()))
    folder.chmod(0o755)
    return folder


def _in_memory() -> Path | None:
    with contextlib.suppress(OSError):
        found = os.statvfs(MEMORY)
        room = min(found.f_bavail * found.f_frsize, psutil.virtual_memory().available)
        if room > ROOM and not found.f_flag & os.ST_NOEXEC:
            return MEMORY
    return None


@pytest.fixture(scope="session")
def workspace() -> Iterator[Path]:
    """A folder that the services' account may enter, gone at the end."""
    folder = new_directory()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    user_registry().prune()  # all of a user's environments are listed in one place


@pytest.fixture(scope="session")
def cache(pytestconfig: pytest.Config) -> Path:
    """Where PostgreSQL is unpacked and its clusters are prepared, once for all tests of a run."""
    return pytestconfig.stash[CACHE]


@pytest.fixture
def alarm() -> Iterator[None]:
    """End a read that hangs."""
    signal.alarm(120)
    yield
    signal.alarm(0)


P = TypeVar("P", bound=Project)


@contextlib.contextmanager
def directory_of_its_own(workspace: Path, prefix: str = "tmp") -> Iterator[Path]:
    """Give out a directory that the services' account may enter, gone afterwards."""
    folder = Path(tempfile.mkdtemp(dir=workspace, prefix=prefix))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ended(project: P) -> Iterator[P]:
    """Take a project's stack down afterwards."""
    try:
        yield project
    finally:
        project.end()


@contextlib.contextmanager
def running(workspace: Path, cache: Path, **env: str) -> Iterator[Project]:
    """Run a stack, with variables of its own."""
    with directory_of_its_own(workspace) as folder, ended(Project(folder, cache)) as made:
        made.env |= env
        made.inv("dev.up")
        yield made


@pytest.fixture
def project(workspace: Path, cache: Path) -> Iterator[Project]:
    """A project of this test's own, nothing started yet."""
    with directory_of_its_own(workspace) as folder, ended(Project(folder, cache)) as made:
        yield made


@pytest.fixture(scope="module")
def stack(workspace: Path, cache: Path) -> Iterator[Project]:
    """A running stack that a module's tests share; they leave it running."""
    with running(workspace, cache) as made:
        yield made


@contextlib.contextmanager
def held_up(process: psutil.Process) -> Iterator[None]:
    """Let a process make no progress, though a command resumes what it finds stopped, until it is killed."""
    enough = threading.Event()

    def hold() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while not enough.wait(0.005):
                process.suspend()

    holding = threading.Thread(target=hold, daemon=True)
    holding.start()
    try:
        yield
    finally:
        enough.set()
        holding.join()


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Poll until the condition gives something true; its value. What it raises means: not yet."""
    deadline = time.monotonic() + seconds
    while True:
        last: object
        error = None
        try:
            if last := condition():
                return last
        except Exception as raised:
            last = error = raised
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s, at last: {last!r}") from error
        time.sleep(0.05)
