"""A process that is stopped (SIGSTOP) is named, and goes on before anything is restarted; one that is debugged is not
touched."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import Project, running, wait_for
from tests.test_health_faults import health, well

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def stack(workspace: Path, cache: Path) -> Iterator[Project]:
    """A stack with a reloader."""
    with running(workspace, cache, RELOAD_ON_CHANGE="true") as made:
        yield made


@pytest.fixture(scope="module")
def workers(workspace: Path, cache: Path) -> Iterator[Project]:
    """A stack whose application has two workers."""
    with running(workspace, cache, RELOAD_ON_CHANGE="false", INVOKE_API_WORKERS="2") as made:
        yield made


def supervisord(project: Project) -> psutil.Process:
    return psutil.Process(int((project.state / "run" / "supervisord.pid").read_text()))


def service(name: str) -> Callable[[Project], psutil.Process]:
    return lambda project: psutil.Process(project.pids()[name])


def checkpointer(project: Project) -> psutil.Process:
    children = service("nv-db")(project).children()
    return next(child for child in children if "checkpointer" in " ".join(child.cmdline()))


def reloader(project: Project) -> psutil.Process:
    return next(process for process in project.processes() if "devstack.reload" in process.cmdline())


def worker(project: Project) -> psutil.Process:
    children = service("nv-api")(project).children()
    return next(child for child in children if "spawn_main" in " ".join(child.cmdline()))


PROCESSES = {
    "supervisord": (supervisord, "db", r"supervisord (pid {})"),
    "postmaster": (service("nv-db"), "db", "its process {} is frozen"),
    "checkpointer": (checkpointer, "db", "a part of it is frozen (SIGSTOP): pid {}"),
    "PgBouncer": (service("nv-pgbouncer"), "pgb", "its process {} is frozen"),
    "application": (service("nv-api"), "api", "its process {} is frozen"),
    "reloader": (reloader, "api", "what restarts it when its source changes is frozen (SIGSTOP): pid {}"),
}


@contextlib.contextmanager
def frozen(process: psutil.Process) -> Iterator[psutil.Process]:
    process.suspend()
    wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


@pytest.mark.parametrize("name", PROCESSES)
def test_health_names_it_and_heal_resumes_it_and_restarts_nothing(stack: Project, name: str) -> None:
    find, label, cause = PROCESSES[name]
    before = stack.pids()
    with frozen(find(stack)) as process:
        found = health(stack)
        assert cause.format(process.pid) in found[label]["cause"], found[label]
        assert f"inv dev.heal, or: kill -CONT {process.pid}" in found[label]["fix"]
        assert found[label]["remedy"] == "resume"
        healed = stack.inv("dev.heal")
        assert "what was frozen goes on (SIGCONT)" in healed.stdout
        assert "restarted" not in healed.stdout
        assert healed.stdout.count("(SIGCONT)") == 1
        assert process.status() != psutil.STATUS_STOPPED
    assert stack.pids() == before
    wait_for(lambda: well(stack))


def test_heal_resumes_a_worker_of_several(workers: Project) -> None:
    before = workers.pids()
    with frozen(worker(workers)) as process:
        assert f"a part of it is frozen (SIGSTOP): pid {process.pid}" in health(workers)["api"]["cause"]
        healed = workers.inv("dev.heal")
        assert process.is_running()
        assert process.status() != psutil.STATUS_STOPPED
        assert "restarted" not in healed.stdout
    assert workers.pids() == before


@pytest.mark.parametrize("name", PROCESSES)
def test_dev_up_resumes_it_says_so_and_restarts_nothing(stack: Project, name: str) -> None:
    before = stack.pids()
    with frozen(PROCESSES[name][0](stack)) as process:
        up = stack.inv("dev.up")
        assert f"pid {process.pid} was stopped (SIGSTOP)" in up.stderr
        assert up.stdout.count("already running") == 3
        assert process.status() != psutil.STATUS_STOPPED
    assert stack.pids() == before


@pytest.mark.parametrize("name", PROCESSES)
def test_dev_down_resumes_it_and_ends_it_in_order(stack: Project, name: str) -> None:
    stack.inv("dev.up")
    with frozen(PROCESSES[name][0](stack)) as process:
        down = stack.inv("dev.down")
        assert f"pid {process.pid} was stopped (SIGSTOP)" in down.stderr
    assert stack.processes() == []
    assert "database system was interrupted" not in stack.log("nv-db")
    stack.inv("dev.up")
    assert "database system was not properly shut down" not in stack.log("nv-db")


@pytest.mark.parametrize(
    "command",
    [
        ["data.backup"],
        ["db.shell", "--command", "SELECT 1"],
        ["data.seed", "."],
        ["db.profile"],
        ["db.stats"],
        ["dev.load"],
    ],
)
def test_what_would_wait_for_it_names_it_instead(stack: Project, command: list[str]) -> None:
    with frozen(service("nv-db")(stack)) as process:
        refused = stack.inv(*command, expect=1)
        assert "nv-db is frozen" in refused.stderr
        assert f"pid {process.pid} was stopped (SIGSTOP)" in refused.stderr
        assert "inv dev.heal" in refused.stderr


def test_status_names_it(stack: Project) -> None:
    with frozen(service("nv-db")(stack)) as process:
        out = stack.inv("dev.status", expect=None).stdout
        assert f"pid {process.pid} was stopped (SIGSTOP); inv dev.heal resumes it" in out


def test_logs_do_not_wait_for_it(stack: Project) -> None:
    database = service("nv-db")(stack)
    with frozen(supervisord(stack)), frozen(database):
        assert "database system is ready" in stack.inv("db.logs", "--no-follow", "--tail", "1000").stdout


@pytest.mark.parametrize("command", [["dev.status"], ["data.backup"]])
def test_a_frozen_supervisor_is_named_by_what_only_asks(stack: Project, command: list[str]) -> None:
    with frozen(supervisord(stack)) as process:
        refused = stack.inv(*command, expect=1)
        assert f"its supervisord (pid {process.pid}) is frozen (SIGSTOP)" in refused.stderr
        assert f"inv dev.heal, or: kill -CONT {process.pid}" in refused.stderr


def test_what_an_earlier_run_left_frozen_is_ended(stack: Project) -> None:
    pgb = psutil.Process(stack.pids()["nv-pgbouncer"])
    supervisor = supervisord(stack)
    supervisor.kill()
    supervisor.wait()
    with frozen(pgb):
        up = stack.inv("dev.up")
        assert f"ending pid {pgb.pid}" in up.stderr
        assert not pgb.is_running()
    stack.inv("dev.up")
    wait_for(lambda: well(stack))


def test_a_process_id_that_is_somebody_elses_by_now_is_left_alone(stack: Project) -> None:
    stack.inv("dev.down")
    other = subprocess.Popen(["sleep", "600"])
    try:
        run = stack.state / "run"
        run.mkdir(exist_ok=True)
        (run / "supervisord.pid").write_text(f"{other.pid}\n")
        with frozen(psutil.Process(other.pid)) as process:
            up = stack.inv("dev.up")
            assert "SIGSTOP" not in up.stderr
            assert process.status() == psutil.STATUS_STOPPED
    finally:
        other.kill()
        other.wait()


@pytest.fixture
def debugged(stack: Project) -> Iterator[psutil.Process]:
    """The application, held by a debugger."""
    process = service("nv-api")(stack)
    code = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True); pid = int(sys.argv[1])\n"
        "libc.ptrace(16, pid, None, None) and sys.exit(os.strerror(ctypes.get_errno()))\n"
        "os.waitpid(pid, 0x40000000)\nprint('held', flush=True)\nsys.stdin.read()\n"
        "libc.ptrace(17, pid, None, None)"
    )
    debugger = subprocess.Popen(
        [sys.executable, "-c", code, str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert debugger.stdin
    assert debugger.stdout
    assert debugger.stderr
    try:
        if "held" not in debugger.stdout.readline():
            pytest.skip(f"no process may be debugged here: {debugger.stderr.read().strip()}")
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            debugger.stdin.close()
        debugger.wait(20)
        debugger.stdout.close()
        debugger.stderr.close()


@pytest.mark.skipif(sys.platform != "linux", reason="ptrace as Linux has it")
def test_what_a_debugger_holds_is_named_and_left_alone(stack: Project, debugged: psutil.Process) -> None:
    wait_for(lambda: debugged.status() == psutil.STATUS_TRACING_STOP)
    found = health(stack)["api"]
    assert f"a debugger holds it (pid {debugged.pid})" in found["cause"]
    assert found["remedy"] == ""
    healed = stack.inv("dev.heal", expect=1)
    assert "SIGCONT" not in healed.stdout
    assert "restarted" not in healed.stdout
    refused = stack.inv("dev.up", expect=1)
    assert f"a debugger holds it (pid {debugged.pid}): it was left alone" in refused.stderr
    assert debugged.status() == psutil.STATUS_TRACING_STOP
    assert stack.pids()["nv-api"] == debugged.pid
