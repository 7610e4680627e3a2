"""Crashes, races and leftovers: the next command puts things right, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import psutil
import pytest

from tests.conftest import Project, held_up, wait_for


@pytest.mark.variations
@pytest.mark.parametrize(
    ("name", "check"), [("nv-db", "/memories"), ("nv-pgbouncer", "/memories"), ("nv-api", "/health")]
)
def test_a_killed_service_comes_back_by_itself(stack: Project, name: str, check: str) -> None:
    before = wait_for(lambda: stack.pids()[name])
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: stack.pids().get(name, before) != before)
    # one request may meet the broken connection, then it works
    wait_for(lambda: stack.http(check)[0] == 200)
    stack.inv("dev.status")


@pytest.mark.faults
def test_a_service_that_failed_for_good_shows_so_and_hinders_neither_down_nor_up(project: Project) -> None:
    template = project.root / "templates" / "supervisor-service.conf"
    template.write_text(template.read_text().replace("startretries = 10", "startretries = 0"))
    project.inv("dev.up", RELOAD_ON_CHANGE="false")
    main = project.root / "api" / "main.py"
    source = main.read_text()
    main.write_text("raise SystemExit('broken by the test')\n")
    os.kill(project.pids()["nv-api"], signal.SIGKILL)
    wait_for(lambda: "nv-api" not in project.pids())
    wait_for(lambda: "failed" in project.inv("dev.status", expect=1).stdout)
    project.inv("dev.down")
    assert project.processes() == []
    main.write_text(source)
    project.inv("dev.up", RELOAD_ON_CHANGE="false")


@pytest.mark.faults
def test_two_ups_at_once_both_succeed_and_make_one_stack(project: Project) -> None:
    both = [project.popen("dev.up"), project.popen("dev.up")]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("ready in" in out for out, _ in outputs) == 1
    assert sum("already running" in out for out, _ in outputs) == 1
    waited = next(err for out, err in outputs if "already running" in out)
    assert "waiting for `inv dev.up` (pid " in waited
    servers = [p for p in project.processes() if f"-D {project.data}" in " ".join(p.cmdline())]
    assert len([p for p in servers if p.ppid() not in {q.pid for q in servers}]) == 1
    assert len(project.pids()) == 3


@pytest.mark.faults
def test_up_racing_down_ends_all_up_or_all_down(project: Project) -> None:
    project.inv("dev.up")
    for _ in range(3):
        racers = [project.popen("dev.down"), project.popen("dev.up")]
        for process in racers:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, out + err
        assert len(project.listening()) in (0, 3)


def _killed_up(project: Project, after: float) -> None:
    process = project.popen("dev.up")
    time.sleep(after)
    process.kill()
    process.communicate()


@pytest.mark.faults
def test_up_killed_at_any_moment_is_put_right_by_the_next(project: Project) -> None:
    """From nothing: the unpacked PostgreSQL is there, the data folder not yet."""
    moments = random.Random(17)
    for attempt in range(6):
        _killed_up(project, moments.uniform(0.05, 2.5))
        if attempt % 2:
            project.inv("dev.up")
            assert project.http("/health") == (200, {"status": "ok"})
            project.inv("dev.down")
    project.inv("dev.up")
    assert project.http("/health") == (200, {"status": "ok"})
    assert not list(project.state.rglob("*.partial"))
    project.inv("dev.down")
    assert project.processes() == []


@pytest.mark.faults
def test_an_initdb_that_outlives_its_command_is_no_obstacle(project: Project) -> None:
    project.inv("db.start")
    project.inv("dev.down")
    shutil.rmtree(project.data)
    left = project.state / "volumes" / ".nv-db-data.1234abcd.partial"
    (left / "base").mkdir(parents=True)
    writes = 'i=0; while touch "$0/base/$i" 2>/dev/null; do i=$((i + 1)); done'
    writer = subprocess.Popen(["sh", "-c", writes, str(left)])
    try:
        project.inv("db.start")
        assert writer.wait(10) == 0
        assert not left.exists()
        assert list((project.state / "volumes").glob(".*")) == []
        project.inv("dev.down")
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.faults
def test_what_outlives_a_killed_supervisor_is_ended_by_the_next_up(project: Project) -> None:
    project.inv("dev.up")
    project.http("/memories", {"content": "still here"})
    os.kill(int((project.state / "run" / "supervisord.pid").read_text()), signal.SIGKILL)
    assert len(project.listening()) == 3
    up = project.inv("dev.up")
    assert up.stderr.count("left behind by an earlier run of this stack") == 3
    assert project.http("/memories")[1]["total"] == 1
    project.inv("dev.down")
    wait_for(lambda: project.processes() == [])  # the watcher looks after its supervisor once a second


@pytest.mark.faults
def test_stale_pid_files_and_sockets_do_not_hinder_a_start(project: Project) -> None:
    project.inv("dev.up")
    project.inv("dev.down")
    run = project.state / "run"
    (run / "supervisord.pid").write_text("999999\n")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(run / "supervisor.sock"))
    (run / "db" / f".s.PGSQL.{project.db_port}.lock").write_text("999999\n/nowhere\n1\n")
    (project.data / "postmaster.pid").write_text("999999\n/nowhere\n1\n5433\n/tmp\n127.0.0.1\n1 1\nready\n")
    project.inv("dev.up")
    assert project.http("/health")[0] == 200


@pytest.mark.faults
def test_a_lock_file_naming_another_living_program_is_removed_and_the_program_spared(project: Project) -> None:
    project.inv("db.start")
    project.inv("db.stop")
    owner = (project.data / "PG_VERSION").stat()
    decoy = subprocess.Popen(["sleep", "600"], user=owner.st_uid if os.getuid() == 0 else None, cwd="/")
    try:
        lock = project.data / "postmaster.pid"
        lock.write_text(f"{decoy.pid}\n{project.data}\n1\n{project.db_port}\n\n127.0.0.1\n1 1\nready\n")
        os.chown(lock, owner.st_uid, owner.st_gid)
        project.inv("db.start")
        assert decoy.poll() is None
    finally:
        decoy.kill()
        decoy.wait()


@pytest.mark.faults
def test_a_lock_file_naming_a_thread_is_removed(project: Project) -> None:
    project.inv("db.start")
    project.inv("db.stop")
    owner = (project.data / "PG_VERSION").stat()
    # of the database's account: PostgreSQL takes another account's process for none
    thread = "import os, sys, threading; t = threading.Thread(target=sys.stdin.read); os.setuid(int(sys.argv[1]))"
    decoy = subprocess.Popen(
        [sys.executable, "-c", f"{thread}; t.start(); print(t.native_id, flush=True)", str(owner.st_uid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert decoy.stdin
    assert decoy.stdout
    try:
        lock = project.data / "postmaster.pid"
        lock.write_text(f"{decoy.stdout.readline().strip()}\n{project.data}\n1\n{project.db_port}\n\n\n\nready\n")
        os.chown(lock, owner.st_uid, owner.st_gid)
        left = lock.read_bytes()
        services = json.loads(project.inv("health", "--json", expect=1).stdout)["services"]
        assert {service["service"]: service["verdict"] for service in services}["db"] == "stopped", services
        assert lock.read_bytes() == left
        project.inv("dev.heal")
        assert len(project.pids()) == 3
        assert decoy.poll() is None
    finally:
        decoy.stdin.close()
        decoy.wait()
        decoy.stdout.close()


def is_stopped(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_STOPPED)


@pytest.mark.faults
def test_a_stop_during_crash_recovery_ends_at_once(project: Project) -> None:
    """PostgreSQL 18's fast shutdown does not end then: without the other signal this takes the stop's whole timeout."""
    project.inv("db.start")
    project.query("CREATE TABLE kept AS SELECT generate_series(1, 1000000) AS n; SELECT 1")
    server = psutil.Process(int((project.data / "postmaster.pid").read_text().split()[0]))

    def recovering() -> psutil.Process | None:
        """Crash, and have the recovery stand still, as if it had much to do; it may be over too soon for that."""
        with contextlib.closing(wait_for(project.connect)) as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in server.children():
                    if "startup" in " ".join(child.cmdline()):
                        child.suspend()
                        wait_for(partial(is_stopped, child), 1)  # unless it is gone
                        return child
        return None

    with held_up(wait_for(recovering, 60)):
        project.inv("db.stop")
    assert "received immediate shutdown request" in project.log("nv-db")
    assert project.processes() == []
    project.inv("db.start")
    assert project.query("SELECT count(*) FROM kept") == [(1_000_000,)]


@pytest.mark.faults
def test_an_empty_lock_file_is_removed(project: Project) -> None:
    project.inv("db.start")
    project.inv("db.stop")
    (project.data / "postmaster.pid").write_text("")
    project.inv("db.start")


@pytest.mark.faults
def test_acknowledged_rows_survive_a_kill_of_everything(project: Project) -> None:
    project.inv("dev.up")
    ids = [project.http("/memories", {"content": f"row {i}"})[1]["id"] for i in range(20)]
    for process in project.processes():
        process.kill()
    psutil.wait_procs(project.processes(), timeout=10)
    project.inv("dev.up")
    assert project.http("/memories")[1]["total"] == 20
    assert all(project.http(f"/memories/{one}")[0] == 200 for one in ids)


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A foreign program that listens on a port."""
    code = (
        "import socket, sys, time; s = socket.socket(socket.AF_INET6 if sys.argv[1] == '::1' else socket.AF_INET);"
        "s.bind((sys.argv[1], 0)); s.listen(); print(s.getsockname()[1], flush=True); time.sleep(600)"
    )
    family = "127.0.0.1"
    process = subprocess.Popen([sys.executable, "-c", code, family], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("variable", "name", "path"),
    [
        ("INVOKE_DB_PORT", "nv-db", "db.port"),
        ("INVOKE_PGB_PORT", "nv-pgbouncer", "pgb.port"),
        ("INVOKE_API_PORT", "nv-api", "api.port"),
    ],
)
def test_a_taken_port_names_its_holder_and_the_setting(
    project: Project, holder: subprocess.Popen[str], variable: str, name: str, path: str
) -> None:
    assert holder.stdout is not None
    port = holder.stdout.readline().strip()
    refused = project.inv("dev.up", expect=1, **{variable: port})
    assert f"port {port} of {name} is taken" in refused.stderr
    assert f"(pid {holder.pid})" in refused.stderr
    assert path in refused.stderr
    assert holder.poll() is None


@pytest.mark.faults
def test_a_port_taken_by_another_stack_is_not_taken_from_it(project: Project, stack: Project) -> None:
    before = stack.pids()
    refused = project.inv("db.start", expect=1, INVOKE_DB_PORT=str(stack.db_port))
    assert f"it belongs to the stack in {stack.state}" in refused.stderr
    assert stack.pids() == before
