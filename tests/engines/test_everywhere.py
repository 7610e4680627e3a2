"""The same commands with the same words on every engine: native, Podman, Docker, the double of Apple's container.

A test of the contract runs on all of them, or on those that its marker names: every verb, the specification's
sequences, backup and restore, persistence, and what each engine says in its own way. The others run on Podman.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import tarfile
import termios
import threading
from pathlib import Path

import psutil
import pytest

from devstack.runtimes.containers import NOBODY, USAGE
from tests.conftest import free_ports, held_up, wait_for
from tests.engines.conftest import Running
from tests.test_connections import listening, secrets_in

SERVICES = ("nv-db", "nv-pgbouncer", "nv-api")
CONTAINERS = ("podman", "docker", "apple")


@pytest.fixture(autouse=True)
def whole(up: Running) -> None:
    """Each test begins with a stack that works: one that the test before has broken is brought up again."""
    if not up.answers():
        up.inv("dev.up")


def make(project: Running, target: str, expect: int = 0) -> str:
    """A target of the Makefile, as the task that it stands for: setting up is not what is tried here."""
    task = {"backup": "data.backup", "restore": "data.restore", "health": "health"}.get(
        target, target.replace("-", ".")
    )
    return project.inv(task, expect=expect).stdout


@pytest.mark.contract
def test_the_specifications_sequences(up: Running) -> None:
    for target in ("dev-up", "health", "dev-down"):
        make(up, target)
    for service in ("db", "pgb", "api"):
        make(up, f"{service}-start")
        assert "running" in make(up, f"{service}-status")
        make(up, f"{service}-stop")
    for target in ("dev-up", "backup", "dev-down", "restore", "health"):
        make(up, target)
    assert up.http("/health")[0] == 200


@pytest.mark.contract
def test_a_second_up_changes_nothing_and_says_so(up: Running) -> None:
    before = up.runs()
    assert len(before) == 3
    again = up.inv("dev.up").stdout
    assert again.count("already running") == 3
    assert up.runs() == before


@pytest.mark.contract
def test_data_stay_over_down_and_up_and_down_leaves_nothing_else(up: Running) -> None:
    up.query("CREATE TABLE IF NOT EXISTS kept (n int); INSERT INTO kept VALUES (7); SELECT 1")
    up.inv("dev.down")
    assert up.listening() == []
    if up.contained:
        assert [name for name in up.containers() if name.startswith("nv-")] == []
        assert up.networks() == []
        assert up.volumes() == ["nv-db-data"]
    else:
        assert up.processes() == []
    assert "stopped" in up.inv("dev.status", expect=1).stdout
    up.inv("dev.up")
    assert up.query("SELECT max(n) FROM kept") == [(7,)]


def test_a_restart_keeps_the_order(up: Running) -> None:
    text = up.inv("dev.restart", "--timing").stdout
    stopped = [line.split()[0] for line in text.splitlines() if " stopped in " in line]
    ready = [line.split()[0] for line in text.splitlines() if " ready in " in line]
    assert (stopped, ready[:3]) == ([*reversed(SERVICES)], [*SERVICES])
    services = json.loads(up.inv("dev.status", "--json").stdout)["services"]
    assert [service["state"] for service in services] == ["running"] * 3


@pytest.mark.contract
def test_health_and_status_say_the_same_everywhere(up: Running) -> None:
    found = up.health()
    assert {name: service["verdict"] for name, service in found.items()} == dict.fromkeys(found, "healthy"), found
    expected = {"process", "disk", "query", "settings"}
    if up.engine.name != "apple":  # whose answer takes two seconds, nearly as long as health waits
        expected.add("memory")
        assert all(service["memory_bytes"] for service in found.values())
    assert {check["name"] for check in found["db"]["checks"]} >= expected  # type: ignore[attr-defined]
    text = up.inv("health").stdout
    assert f"🗄️  Database (nv-db): ✅ HEALTHY (127.0.0.1:{up.db_port})" in text
    up.inv("metrics")
    up.inv("system-info")


def test_an_engine_that_is_slow_is_no_fault_of_the_database(up: Running, tmp_path: Path) -> None:
    program = up.engine.name
    real = shutil.which(program, path=up.env["PATH"])
    slow = tmp_path / program
    slow.write_text(f'#!/bin/sh\ncase " $* " in *" df "*) sleep 20;; esac\nexec {real} "$@"\n')
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    slow.chmod(0o755)
    answer = up.inv("health", "--json", PATH=f"{tmp_path}:{up.env['PATH']}")
    (db,) = (service for service in json.loads(answer.stdout)["services"] if service["service"] == "db")
    (disk,) = (check for check in db["checks"] if check["name"] == "disk")
    assert db["verdict"] == "healthy", db
    assert "did not say in time" in disk["text"]


@pytest.mark.contract
def test_a_backup_restores_exactly_and_undo_takes_it_back(up: Running) -> None:
    """As bytes that go in and out."""
    restored_exactly(up, "custom")


def test_a_directory_restores_exactly_and_undo_takes_it_back(up: Running) -> None:
    """As files that go in and out."""
    restored_exactly(up, "directory")


def restored_exactly(up: Running, layout: str) -> None:
    up.query(
        "DROP TABLE IF EXISTS round;"
        " CREATE TABLE round AS SELECT g, md5(g::text) FROM generate_series(1, 500) g; SELECT 1"
    )
    made = json.loads(up.inv("data.backup", "--format", layout, "--json").stdout)
    up.query("DELETE FROM round WHERE g > 10; SELECT 1")
    up.inv("data.verify", "--file", made["file"], "--deep")
    up.inv("data.restore", "--file", made["file"])
    assert up.query("SELECT count(*), max(g) FROM round", up.pgb_port) == [(500, 500)]
    up.inv("data.undo")
    assert up.query("SELECT count(*) FROM round", up.pgb_port) == [(10,)]
    up.inv("data.restore", "--file", made["file"], "--merge")
    assert up.query("SELECT count(*) FROM round", up.pgb_port) == [(500,)]
    assert up.http("/health")[0] == 200


def test_a_copy_of_the_cluster_and_what_changed_since(up: Running) -> None:
    up.query("DROP TABLE IF EXISTS copied; CREATE TABLE copied AS SELECT 1 AS n; SELECT 1")
    up.inv("data.backup", "--incremental")
    up.query("INSERT INTO copied VALUES (2); SELECT 1")
    made = json.loads(up.inv("data.backup", "--incremental", "--json").stdout)
    assert made["kind"] == "incremental"
    up.query("DROP TABLE copied; SELECT 1")
    up.inv("data.restore", "--file", made["file"])
    assert up.query("SELECT sum(n)::int FROM copied") == [(3,)]
    up.inv("data.undo")
    assert up.query("SELECT to_regclass('copied')") == [(None,)]


@pytest.mark.contract("podman", "docker")
def test_backups_are_checked_while_the_database_is_down(up: Running) -> None:
    """By programs in a container of their own. Where there can be none, nothing goes, as nothing is known to be bad."""
    shutil.rmtree(up.root / "backups", ignore_errors=True)
    layouts = (["--format", "custom"], ["--format", "directory"], ["--incremental"])
    made = [json.loads(up.inv("data.backup", *words, "--json").stdout)["file"] for words in layouts]
    up.inv("db.stop")
    before = up.containers()
    try:
        states = json.loads(up.inv("data.verify", "--all", "--json").stdout)["backups"]
        assert {one["file"]: one["state"] for one in states} == dict.fromkeys(made, "whole")
        copy = up.root / "backups" / made[2] / "base" / "1"
        damaged = max((path for path in copy.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert "checksum mismatch" in up.inv("data.verify", "--file", made[2], expect=1).stderr
        damaged.write_bytes(content)
        done = up.inv("data.cleanup", "--days", "0", "--dry-run", "--json")
        assert [one["file"] for one in json.loads(done.stdout)["removed"]] == made[:1]  # there is a newer dump
        assert "could not be checked" not in done.stderr
        assert up.containers() == before
        if up.engine.name == "docker":  # whose daemon can be away
            check_nothing_is_called_damaged(up, made, DOCKER_HOST="unix:///nowhere.sock")
        nowhere = "localhost/not-there:1"
        done = up.inv("data.verify", "--all", expect=1, INVOKE_DB_IMAGE=nowhere)
        assert done.stdout.count("could not be checked") == len(made)
        assert "damaged" not in done.stdout
        done = up.inv("data.cleanup", "--days", "0", INVOKE_DB_IMAGE=nowhere)
        assert "nothing to remove" in done.stdout
        assert done.stderr.count("is kept, as it could not be checked") == len(made)
        assert up.containers() == before
        up.inv("data.restore", "--file", made[2], "--no-safety-backup")
    finally:
        up.inv("dev.up")
        shutil.rmtree(up.root / "backups")


def check_nothing_is_called_damaged(up: Running, made: list[str], **away: str) -> None:
    """Check that all backups stay while the engine does not answer."""
    done = up.inv("data.verify", "--all", expect=1, **away)
    assert done.stdout.count("could not be checked") == len(made)
    assert "damaged" not in done.stdout + done.stderr
    done = up.inv("data.cleanup", "--days", "0", expect=None, **away)
    assert [line for line in done.stdout.splitlines() if "removed" in line] == [], done
    refused = up.inv("data.restore", "--file", made[-1], "--no-safety-backup", expect=1, **away)
    assert "damaged" not in refused.stderr
    assert re.search("could not be checked|docker does not answer", refused.stderr), refused
    assert [one["file"] for one in json.loads(up.inv("data.list", "--json").stdout)["backups"]] == made


@pytest.mark.contract
def test_the_applications_own_commands_run_beside_it(up: Running) -> None:
    up.inv("data.migrate", "--status")
    up.inv("data.migrate")
    text = up.inv("data.generate", "--rows", "50", "--seed", "1")
    assert "can't be used" not in text.stderr  # its vectors come from the application
    assert up.query("SELECT count(*) >= 50 FROM memories") == [(True,)]
    assert up.inv("db.shell", "--command", "SELECT 6 * 7").stdout.split()[2] == "42"
    assert up.inv("db.shell", "--admin", "--command", "SELECT current_user").stdout.split()[2] == "postgres"


def test_a_change_of_the_source_is_served(up: Running) -> None:
    main = up.root / "api" / "main.py"
    before = main.read_text()
    main.write_text(before.replace("app = create_app()", 'app = create_app()\napp.get("/changed")(lambda: {"new": 1})'))
    try:
        wait_for(lambda: up.http("/changed") == (200, {"new": 1}), 40)
    finally:
        main.write_text(before)
    wait_for(lambda: up.http("/changed")[0] == 404, 40)


def test_logs_of_what_ran_before_are_there(up: Running) -> None:
    mark = f"no_such_table_{os.getpid()}"
    with pytest.raises(Exception, match=mark):
        up.query(f"SELECT * FROM {mark}")
    assert mark in up.inv("db.logs").stdout
    up.inv("dev.down")
    assert mark in up.inv("db.logs", "--tail", "200").stdout
    up.inv("dev.up")


@pytest.mark.contract
def test_logs_are_followed_and_nothing_is_left_of_that(up: Running) -> None:
    process = up.popen("db.logs", "--follow", "--tail", "1")
    mark = f"no_such_column_{os.getpid()}"
    assert process.stdout
    assert process.stdout.readline()
    seen = threading.Event()

    def cause() -> None:
        """What is said before the following has begun is not followed."""
        while not seen.wait(0.3):
            with contextlib.suppress(Exception):
                up.query(f"SELECT {mark}")

    asking = threading.Thread(target=cause, daemon=True)
    asking.start()
    try:
        while mark not in (line := process.stdout.readline()):
            assert line, "the log ended"
    finally:
        seen.set()
        asking.join()
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    psutil.wait_procs(children, timeout=20)
    assert [child for child in children if child.is_running()] == []


@pytest.mark.contract
def test_a_shell_on_a_terminal(up: Running) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(
        slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0)
    )  # where an answer fits: psql would start a pager
    process = subprocess.Popen(up.command("db.shell"), cwd=up.root, env=up.env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    try:
        read_until(master, "nina=>")  # which psql shows to a person alone
        os.write(master, b"SELECT 6 * 7 AS answer;\n")
        read_until(master, r"42\s(.|\s)*nina=>")  # what is typed before psql is ready again may be lost
        os.write(master, b"\\q\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def read_until(terminal: int, pattern: str) -> None:
    shown = b""
    while not re.search(pattern.encode(), shown):
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, f"{pattern!r} did not come after {shown!r}"
        shown += os.read(terminal, 4096)


@pytest.mark.contract
def test_a_killed_service_comes_back(up: Running) -> None:
    """By the engine, or where it has no restart policy by dev.heal."""
    pid = up.pids().get("nv-pgbouncer")
    if up.engine.name == "apple":
        up.engine.run("kill", "nv-pgbouncer")
        assert up.health(expect=1)["pgb"]["verdict"] != "healthy"
        assert "nv-pgbouncer" in up.inv("dev.heal").stdout
    else:
        assert pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: up.pids()["nv-pgbouncer"] not in (0, pid), 30)
    wait_for(lambda: up.health()["pgb"]["verdict"] == "healthy", 30)
    assert up.query("SELECT 1", up.pgb_port) == [(1,)]


@pytest.mark.contract("podman", "docker")
def test_a_stop_during_crash_recovery_ends_at_once(up: Running) -> None:
    """PostgreSQL 18's fast shutdown does not end then: without the other signal the engine kills it after a minute."""
    rows = 1_000_000  # enough for the recovery to be seen
    up.query(f"DROP TABLE IF EXISTS recovered; CREATE TABLE recovered AS SELECT generate_series(1, {rows}); SELECT 1")
    server = psutil.Process(up.pids()["nv-db"])

    def children(title: str) -> list[psutil.Process]:
        return [child for child in server.children(recursive=True) if title in " ".join(child.cmdline())]

    connection = up.connect()
    children("nina nina")[0].kill()
    with held_up(*wait_for(lambda: children("startup"))):
        up.inv("db.stop")
    connection.close()
    assert "nv-db" not in up.containers()
    stopped = up.inv("db.logs", "--tail", "100").stdout.rpartition("all server processes terminated; reinitializing")[2]
    assert "received immediate shutdown request" in stopped
    up.inv("db.start")
    assert up.query("SELECT count(*) FROM recovered") == [(rows,)]
    up.query("DROP TABLE recovered; SELECT 1")
    up.inv("dev.up")


@pytest.mark.contract("podman", "apple")
def test_a_database_with_another_address_is_found_again(up: Running) -> None:
    if up.contained:
        # Apple's knows no signal of the container's own: its usual one waits for clients, then kills
        quickly = ["--signal", "SIGINT"] if up.engine.name == "apple" else []
        up.engine.run("stop", *quickly, "nv-db")
        blocker = "nv-test-blocker"
        words = ["--network", up.networks()[0]] if up.networks() else []
        # it takes the address that the database had
        up.engine.run(
            "run", "--detach", "--name", blocker, *words, "--entrypoint", "sleep", up.env["INVOKE_DB_IMAGE"], "600"
        )
        try:
            up.engine.run("start", "nv-db")
            up.inv("dev.heal")
        finally:
            up.engine.run("rm", "--force", blocker)
    else:
        up.inv("db.stop")
        up.inv("dev.heal")
    wait_for(lambda: up.query("SELECT 1", up.pgb_port) == [(1,)], 30)
    up.health()


def test_a_frozen_service_goes_on(up: Running) -> None:
    up.engine.run("pause", "nv-pgbouncer")
    found = up.health(expect=1)["pgb"]
    assert "frozen" in str(found["cause"])
    up.inv("dev.heal")
    up.health()


def test_a_stopped_process_of_a_service_is_named_and_goes_on(up: Running) -> None:
    before = up.runs()
    process = psutil.Process(up.pids()["nv-db"]).children(recursive=True)[-1]
    process.suspend()
    try:
        found = up.health(expect=None)["db"]
        assert f"a part of it is frozen (SIGSTOP): pid {process.pid}" in str(found["cause"])
        assert "restarted" not in up.inv("dev.heal").stdout
        assert process.status() != psutil.STATUS_STOPPED
    finally:
        process.resume()
    assert up.runs() == before
    up.health()


def test_what_is_frozen_is_resumed_to_be_stopped(up: Running) -> None:
    up.engine.run("pause", "nv-pgbouncer")
    assert "resumed nv-pgbouncer" in up.inv("dev.down").stderr
    up.inv("dev.up")
    up.health()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("INVOKE_DB_PARAMETERS", '{"wal_level": "minimal"}', 'requires "?wal_level"?'),
        ("INVOKE_DB_PARAMETERS", '{"work_memory": "1MB"}', "unrecognized configuration parameter"),
        ("INVOKE_PGB_PARAMETERS", '{"nosuch": 1}', "unknown parameter: pgbouncer/nosuch"),
        ("INVOKE_API_APP", "nosuch:app", "module nosuch was not found"),
        ("INVOKE_API_DIR", "nowhere", "nowhere does not exist"),
        ("INVOKE_DB_EXTENSIONS", "nosuch", "nosuch"),
    ],
)
def test_what_is_refused_stops_nothing(up: Running, variable: str, value: str, says: str) -> None:
    before = up.runs()
    # in containers, extensions are no part of how a database is started: one that runs stays as it is
    stays = up.contained and variable == "INVOKE_DB_EXTENSIONS"
    for task in ("dev.restart",) if stays else ("dev.restart", "dev.up"):
        done = up.inv(task, expect=None, **{variable: value})
        assert done.returncode in (1, 2), done
        assert re.search(says, done.stderr), done
        assert "not touched" in done.stderr
        assert up.runs() == before


def test_rules_of_access_that_are_wrong_stop_nothing(up: Running) -> None:
    path = up.root / "templates/pg_hba.conf"
    text, before = path.read_text(), up.runs()
    path.write_text(f"{text}host all all nonsense\n")
    try:
        assert "PostgreSQL refuses its pg_hba.conf" in up.inv("dev.restart", expect=1).stderr
    finally:
        path.write_text(text)
    assert up.runs() == before
    assert "already running" in up.inv("dev.up").stdout


def test_two_environments_at_once(up: Running) -> None:
    ports = {name: up.env.pop(name) for name in ("INVOKE_DB_PORT", "INVOKE_PGB_PORT", "INVOKE_API_PORT")}
    try:
        up.inv("dev.up", "-e", "review", expect=0)
        text = up.inv("dev.status", "-e", "review", expect=0).stdout
        assert text.count("running") == 3
        assert "nv-review-db" in text
        found = {one["name"]: one for one in json.loads(up.inv("dev.list", "--json").stdout)["environments"]}
        assert [found[name]["health"] for name in ("dev", "review")] == ["healthy", "healthy"]
        assert {one["runtime"] for one in found.values()} == {up.engine.name}
        assert found["dev"]["ports"] == {"db": up.db_port, "pgb": up.pgb_port, "api": up.api_port}
        assert len({port for one in found.values() for port in one["ports"].values()}) == 6
        assert all(one["memory_bytes"] > 20 << 20 and one["disk_bytes"] > 10 << 20 for one in found.values()), found
    finally:
        up.inv("dev.remove", "-e", "review", "--yes", "--no-backup", expect=0)
        up.env.update(ports)
    assert "nv-review-db-data" not in (up.volumes() if up.contained else [])
    assert up.health()["api"]["verdict"] == "healthy"


def test_settings_are_applied_while_it_runs(up: Running) -> None:
    file, runs = up.root / "invoke.yaml", up.runs()
    content, output = file.read_text(), up.folder / "watch.log"

    def said(text: str, after: str) -> None:
        wait_for(lambda: text in output.read_text().removeprefix(after), 60)

    with output.open("w") as stream:
        process = subprocess.Popen(up.command("dev.watch"), cwd=up.root, env=up.env, stdout=stream, stderr=stream)
    try:
        said("watching", "")
        file.write_text(content.replace("default_pool_size: 20 ", "default_pool_size: 9 "))
        said("nv-pgbouncer  configuration reloaded", "")
        assert up.runs() == runs
        before = output.read_text()
        file.write_text(content.replace("log_level: INFO ", "log_level: WARNING "))
        said("nv-api        restarted, ready", before)
        said("nv-pgbouncer  configuration reloaded", before)
        after = up.runs()
        assert after.pop("nv-api") != runs.pop("nv-api")
        assert after == runs
    finally:
        file.write_text(content)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, output.read_text()
    assert "error" not in output.read_text()


@pytest.mark.contract
def test_a_taken_port_is_named_and_nothing_is_left(up: Running) -> None:
    for port, name in ((up.pgb_port, "nv-pgbouncer"), (up.db_port, "nv-db")):
        up.inv("dev.down")
        with socket.socket() as holder:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", port))
            holder.listen()
            answer = up.inv("dev.up", expect=1)
        assert f"port {port} of {name} is taken" in answer.stderr
        assert f"pid {os.getpid()}" in answer.stderr
    if up.contained:
        assert up.networks() == []
    up.inv("dev.up")


@pytest.mark.contract
def test_a_server_that_ends_at_once_shows_its_last_words(up: Running) -> None:
    # valid as far as PostgreSQL can say without a start
    wrong = {"INVOKE_DB_PARAMETERS": '{"unix_socket_group": "nosuch"}'}
    answer = up.inv("dev.up", expect=1, **wrong)
    assert "nv-db did not become ready" in answer.stderr
    assert 'group "nosuch" does not exist' in answer.stderr
    assert "inv db.logs" in answer.stderr
    up.inv("dev.up")


@pytest.mark.contract
def test_no_secret_is_on_a_command_line(up: Running) -> None:
    up.inv("data.backup")
    log = (up.root / "logs" / "devstack.log").read_text()
    for secret in up.secrets().values():
        assert secret not in log
    assert not list(Path(up.state).rglob("*.env"))


def test_where_the_time_goes(up: Running) -> None:
    up.query("CREATE TABLE IF NOT EXISTS planted AS SELECT g AS n FROM generate_series(1, 100000) g; SELECT 1")
    window = up.popen("db.profile", "--seconds", "600", "--slower-than", "0", "--json")
    wait_for(lambda: up.query("SHOW auto_explain.log_analyze", dbname="postgres") == [("on",)])
    wait_for(lambda: "db.profile" in up.inv("db.logs", "--tail", "50").stdout)
    up.query("SELECT count(*) FROM planted WHERE n = -1", up.pgb_port)
    window.send_signal(signal.SIGINT)
    done = json.loads(window.communicate(timeout=60)[0])
    (found,) = [one for one in done["statements"] if "FROM planted WHERE" in one["statement"]]
    assert (found["calls"], found["plan"]["source"]) == (1, "auto_explain"), done["notes"]
    assert "Rows Removed by Filter: 100000" in "\n".join(found["plan"]["text"])
    assert up.query("SHOW auto_explain.log_analyze", dbname="postgres") == [("off",)]

    work = up.popen("dev.load", "--path", "/memories", "--rps", "100", "--seconds", "300", "--only", "api", "--json")
    wait_for(lambda: '"/memories"' in up.inv("api.logs", "--tail", "5").stdout)

    def sampled() -> set[str]:
        done = json.loads(up.inv("api.profile", "--seconds", "2", "--json").stdout)
        return {one["file"] for one in done["functions"] if one["application"]}

    # two hundred samples, on a busy machine only some of them while the application works
    wait_for(lambda: "api/memories.py" in sampled(), seconds=60)
    work.send_signal(signal.SIGINT)
    (target,) = json.loads(work.communicate(timeout=60)[0])["targets"]
    assert target["errors"] == 0
    assert target["done"] > 0


@pytest.mark.contract("apple")
def test_processes_in_a_virtual_machine_are_not_sampled(up: Running) -> None:
    refused = up.inv("api.profile", "--seconds", "2", expect=1)
    assert "runs its containers in a virtual machine" in refused.stderr


@pytest.mark.contract
def test_reset_leaves_nothing_of_the_old_data(up: Running) -> None:
    up.query("CREATE TABLE IF NOT EXISTS doomed (n int); SELECT 1")
    up.inv("dev.reset", "--yes")
    assert up.query("SELECT to_regclass('doomed')") == [(None,)]
    assert up.health()["db"]["verdict"] == "healthy"
    up.inv("data.restore")
    assert up.query("SELECT to_regclass('doomed')::text", up.pgb_port) == [("doomed",)]
    up.inv("data.undo")


class TestContainers:
    """What only an engine of containers can get wrong."""

    @pytest.mark.contract(*CONTAINERS)
    def test_a_foreign_container_of_the_name_is_refused_and_stays(self, up: Running) -> None:
        up.inv("dev.down")
        up.engine.run(
            "run", "--detach", "--name", "nv-pgbouncer", "--entrypoint", "sleep", up.env["INVOKE_DB_IMAGE"], "600"
        )
        try:
            answer = up.inv("dev.up", expect=1)
            assert "the name nv-pgbouncer is taken" in answer.stderr
            assert "somebody else" in answer.stderr
            up.inv("dev.down")
            assert "nv-pgbouncer" in up.containers()
            assert up.networks() == []
        finally:
            up.engine.run("rm", "--force", "nv-pgbouncer")
        up.inv("dev.up")

    def test_another_database_is_reached_from_the_container_or_refused(self, up: Running) -> None:
        def admin(*commands: str) -> None:
            for command in commands:
                up.inv("db.shell", "--admin", "--command", command)

        password = up.secrets()["db_password"]
        url = f"postgresql://nina:{password}@localhost:{{}}/other"
        admin("ALTER ROLE nina CREATEDB", "CREATE DATABASE other OWNER nina")
        try:
            up.query("CREATE TABLE far AS SELECT g FROM generate_series(1, 300) g; SELECT 1", dbname="other")
            words = ("data.backup", "--url", url.format(up.db_port), "--format", "directory", "--json")
            made = json.loads(up.inv(*words).stdout)
            assert (made["origin"], made["tables"]) == (f"localhost:{up.db_port}/other", {"public.far": 300})
            up.query("DELETE FROM far; SELECT 1", dbname="other")
            flags = ("--yes", "--file", made["file"], "--json")
            done = json.loads(up.inv("data.restore", "--url", url.format(up.db_port), *flags).stdout)
            assert up.query("SELECT count(*) FROM far", dbname="other") == [(300,)]
            assert password not in (up.root / "logs" / "devstack.log").read_text()
            refused = up.inv("data.backup", "--url", url.format(free_ports(1)[0]), expect=1)
            assert "can't be reached from nv-db" in refused.stderr
            admin(f'DROP DATABASE "{done["kept"]}"')
        finally:
            admin("DROP DATABASE IF EXISTS other WITH (FORCE)", "ALTER ROLE nina NOCREATEDB")

    @pytest.mark.contract(*CONTAINERS)
    def test_a_foreign_volume_is_not_used(self, up: Running) -> None:
        other = {"NV_ENV": "vol", "INVOKE_DB_PORT": str(free_ports(1)[0])}
        up.engine.run("volume", "create", "nv-vol-db-data")
        try:
            answer = up.inv("db.start", expect=1, **other)
            assert "there is a volume nv-vol-db-data already" in answer.stderr
            assert not [name for name in up.networks() if "vol" in name]
        finally:
            up.engine.run("volume", "rm", "nv-vol-db-data")

    def test_a_volume_in_use_gets_no_second_server_and_is_not_removed(self, up: Running) -> None:
        up.query("DROP TABLE IF EXISTS shared; CREATE TABLE shared AS SELECT 1 AS n; SELECT 1")
        up.inv("dev.down")
        mount = ("--volume", "nv-db-data:/data", "--entrypoint", "sleep", up.env["INVOKE_DB_IMAGE"], "600")
        up.engine.run("run", "--detach", "--name", "guest", *mount)
        try:
            refused = up.inv("dev.up", expect=1)
            assert "the volume nv-db-data is in use" in refused.stderr
            assert "container guest has it and runs" in refused.stderr
            assert up.networks() == []
            refused = up.inv("dev.reset", "--yes", "--no-backup", expect=1)
            assert "the volume nv-db-data is in use" in refused.stderr
            assert "nv-db-data" in up.volumes()
        finally:
            up.engine.run("rm", "--force", "guest")
        up.inv("dev.up")
        assert up.query("SELECT n FROM shared") == [(1,)]

    def test_an_image_for_another_processor_is_named(self, up: Running, place: Path) -> None:
        image = "localhost/nv-test/other:1"
        packed = place / f"other-{up.engine.name}.tar"
        with tarfile.open(packed, "w") as tar:
            # an ELF header of a processor that nobody has any more: EM_M32, 1 in e_machine (System V ABI, chapter 4)
            program = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x01\x00\x01\x00\x00\x00" + bytes(100)
            entry = tarfile.TarInfo("bin/sh")
            entry.size, entry.mode = len(program), 0o755
            tar.addfile(entry, io.BytesIO(program))
        up.engine.run("import", str(packed), image)
        packed.unlink()
        other = {"NV_ENV": "cpu", "INVOKE_DB_PORT": str(free_ports(1)[0])}
        try:
            refused = up.inv("db.start", expect=1, INVOKE_DB_IMAGE=image, **other)
            assert f"PostgreSQL does not run from the image {image}" in refused.stderr
            assert "the image is for another processor" in refused.stderr
            assert "nv-cpu-db-data" not in up.volumes()
        finally:
            up.engine.run("rmi", "--force", image)

    def test_a_missing_image_says_how_to_bring_it(self, up: Running) -> None:
        up.inv("dev.down")
        records = {path: path.read_bytes() for path in up.state.glob("*.json")}
        answer = up.inv("dev.up", expect=1, INVOKE_DB_IMAGE="localhost/nv-test/none:1")
        assert {path: path.read_bytes() for path in up.state.glob("*.json")} == records
        assert "there is no image localhost/nv-test/none:1 here, and it can't be pulled" in answer.stderr
        assert "inv dev.images --save" in answer.stderr
        assert up.networks() == []
        up.inv("dev.up")

    @pytest.mark.contract("docker", "apple")
    def test_an_engine_that_does_not_answer_is_named(self, up: Running) -> None:
        if up.engine.name == "docker":
            answer = up.inv("dev.status", expect=1, DOCKER_HOST="unix:///nowhere.sock")
            assert "docker does not answer" in answer.stderr
        else:
            answer = up.inv("dev.status", expect=1, NV_APPLE_STATE=str(up.folder / "down"))
            assert "apple does not answer" in answer.stderr
            assert "container system start" in answer.stderr

    def test_another_runtime_is_refused_for_an_environment_with_data(self, up: Running) -> None:
        answer = up.inv("dev.up", expect=2, INVOKE_STACK_RUNTIME="native")
        assert f"this environment runs on {up.engine.name}, not on native" in answer.stderr
        assert "inv dev.move --to native" in answer.stderr

    @pytest.mark.contract(*CONTAINERS)
    def test_an_environment_moves_with_its_data_and_back(self, up: Running) -> None:
        up.query("DROP TABLE IF EXISTS moved; CREATE TABLE moved AS SELECT 1 AS n; SELECT 1")
        free = {"INVOKE_STACK_RUNTIME": "auto"}
        assert f"moved from {up.engine.name} to native" in up.inv("dev.move", "--to", "native", expect=0, **free).stdout
        try:
            assert up.query("SELECT n FROM moved", up.pgb_port) == [(1,)]
            assert [name for name in up.containers() if name.startswith("nv-")] == []
            assert "nv-db-data" in up.volumes()
            up.query("INSERT INTO moved VALUES (2); SELECT 1")
            refused = up.inv("dev.move", "--to", up.engine.name, expect=1, **free)
            assert "the last move is not confirmed" in refused.stderr
        finally:
            up.inv("dev.move", "--back", expect=0, **free)
        assert up.query("SELECT n FROM moved", up.pgb_port) == [(1,)]
        up.inv("dev.move", "--confirm", expect=0, **free)
        assert not list((up.state / "volumes").glob("*"))
        assert up.query("SELECT n FROM moved", up.pgb_port) == [(1,)]

    def test_a_move_that_is_refused_there_stops_nothing_here(self, up: Running) -> None:
        before = up.runs()
        free = {"INVOKE_STACK_RUNTIME": "auto", "INVOKE_PGB_BINARY": "/nowhere/pgbouncer"}
        answer = up.inv("dev.move", "--to", "native", expect=1, **free)
        assert "PgBouncer was not found at /nowhere/pgbouncer" in answer.stderr
        assert "what runs was not touched" in answer.stderr
        assert up.runs() == before
        assert up.health()["api"]["verdict"] == "healthy"
        assert not list((up.state / "volumes").glob("*"))

    @pytest.mark.contract(*CONTAINERS)
    def test_images_are_shown_saved_and_read(self, up: Running) -> None:
        shown = json.loads(up.inv("dev.images", "--json").stdout)["images"]
        assert [image["service"] for image in shown] == ["db", "pgb", "api"]
        assert all(image["id"] for image in shown)
        if up.engine.name != "podman":
            return  # hundreds of megabytes: once is enough
        file = up.folder / "images.tar"
        up.inv("dev.images", "--save", str(file))
        again = up.inv("dev.images", "--save", str(file), expect=2)
        assert "it exists" in again.stderr
        pooler = shown[1]["image"]
        up.inv("dev.down")
        up.engine.run("rmi", pooler)
        up.inv("dev.images", "--load", str(file))
        assert json.loads(up.inv("dev.images", "--json").stdout)["images"] == shown
        file.unlink()

    def test_a_code_change_builds_nothing_and_a_requirement_does(self, up: Running) -> None:
        before = json.loads(up.inv("dev.images", "--json").stdout)["images"]
        (up.root / "api" / "extra.py").write_text("x = 1\n")
        assert json.loads(up.inv("dev.images", "--json").stdout)["images"] == before
        file = up.root / "api" / "requirements.txt"
        text = file.read_text()
        file.write_text(f"{text}anyio\n")
        try:
            after = json.loads(up.inv("dev.images", "--json").stdout)["images"]
        finally:
            file.write_text(text)
        assert after[:2] == before[:2]
        assert (after[2]["image"] != before[2]["image"], after[2]["id"]) == (True, None)

    @pytest.mark.contract(*CONTAINERS)
    def test_published_on_loopback_alone(self, up: Running) -> None:
        for line in (up.root / "logs" / "devstack.log").read_text().splitlines():
            for published in re.findall(r"--publish=(\S+)", line):
                assert published.startswith("127.0.0.1:")

    @pytest.mark.contract(*CONTAINERS)
    def test_services_do_not_run_as_root(self, up: Running) -> None:
        for name, of in (("nv-db", "postgres"), ("nv-pgbouncer", "pgbouncer"), ("nv-api", "python")):
            status = up.engine.run("exec", name, "cat", "/proc/1/status")
            assert re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)[1] != "0", of  # type: ignore[index]
            if up.engine.name != "apple":  # whose containers are machines of their own
                assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE), of

    @pytest.mark.contract("podman", "docker")
    def test_what_runs_has_the_rights_and_mounts_that_are_promised(self, up: Running) -> None:
        volume = [("/var/lib/nv-db", "nv-db-data", True)]
        source = [("/srv/app/api", str(up.root / "api"), False)]
        # CAP_CHOWN, CAP_SETGID and CAP_SETUID (linux/capability.h)
        promised = {"nv-db": (1 << 0 | 1 << 6 | 1 << 7, volume), "nv-pgbouncer": (0, []), "nv-api": (0, source)}
        for found in json.loads(up.engine.run("inspect", "--type", "container", *SERVICES)):
            name, host = found["Name"].removeprefix("/"), found["HostConfig"]
            rights, mounts = promised.pop(name)
            assert any("no-new-privileges" in option for option in host["SecurityOpt"]), name
            assert (host["Privileged"], host["Devices"] or []) == (False, []), name
            assert "host" not in {host["PidMode"], host["IpcMode"], host["NetworkMode"], host["UTSMode"]}, name
            # Podman's CapAdd has only what goes beyond its own defaults
            kept = found["BoundingCaps"] if up.engine.name == "podman" else host["CapAdd"]
            given = {capability.removeprefix("CAP_") for capability in kept or ()}
            assert given == ({"CHOWN", "SETGID", "SETUID"} if rights else set()), name
            assert host["CapDrop"], name
            # a volume without a name is one that the image declares
            named = [one for one in found["Mounts"] if not re.fullmatch(r"[0-9a-f]{64}", one.get("Name") or "")]
            assert [(m["Destination"], m.get("Name") or m["Source"], m["RW"]) for m in named] == mounts, name
            assert {m["Destination"] for m in found["Mounts"] if m not in named} <= {"/var/lib/postgresql"}, name
            status = dict(
                line.split(":\t", 1) for line in Path(f"/proc/{found['State']['Pid']}/status").read_text().splitlines()
            )
            assert status["NoNewPrivs"] == "1", name
            assert int(status["CapBnd"], 16) == rights, name
            assert {status[kind] for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}, name
        assert promised == {}

    @pytest.mark.contract("podman", "docker")
    def test_commands_do_not_enter_the_database_as_root(self, up: Running) -> None:
        log = up.root / "logs" / "devstack.log"
        before = log.stat().st_size
        for task in ("health", "metrics", "db.status", "data.backup", "dev.list"):
            up.inv(task)
        entered = re.findall(r" exec -i (.*?)nv-db ", log.read_text()[before:])
        assert entered
        for name in SERVICES:  # what is asked where the engine's processes can't be seen from here
            said = up.engine.run("exec", "--user", NOBODY, name, "sh", "-c", USAGE)
            assert not said or int(said.split()[0]) > 1 << 20, "nothing with control groups of the first version"
        assert [words for words in entered if not words.startswith(("--user postgres ", f"--user {NOBODY} "))] == []

    @pytest.mark.parametrize(
        "script",
        [
            "mv /tmp/nv/run /tmp/nv/old; ln -s /etc /tmp/nv/run",
            "mv /tmp/nv/pg_ident.conf /tmp/nv/old; ln -s /etc/shadow /tmp/nv/pg_ident.conf.new",
            "mv /tmp/nv /tmp/old; ln -s /etc /tmp/nv",
        ],
        ids=["directory", "file", "both"],
    )
    def test_root_follows_no_link_of_the_databases_account(self, up: Running, script: str) -> None:
        """The superuser of PostgreSQL may run programs as the account. These wait for the next start."""
        etc = Path(up.engine.run("mount", "nv-db").strip()) / "etc"

        def look() -> dict[Path, tuple[int, int, int, bytes]]:
            paths = [etc, *(path for path in etc.rglob("*") if not path.is_symlink())]
            found = {path: (path.stat(), path.read_bytes() if path.is_file() else b"") for path in paths}
            return {path: (info.st_uid, info.st_gid, info.st_mode, text) for path, (info, text) in found.items()}

        def restarts() -> int:
            return int(up.engine.run("inspect", "--format", "{{.RestartCount}}", "nv-db"))

        try:
            before = look()
            up.engine.run("exec", "--user", "postgres", "nv-db", "sh", "-c", script)
            assert restarts() == 0
            os.kill(up.pids()["nv-db"], signal.SIGKILL)
            # it ends again where a link is in its own way
            wait_for(lambda: restarts() > 1 or (restarts() == 1 and up.answers()), 60)
            assert {path: found for path, found in look().items() if found != before.get(path)} == {}
        finally:
            up.engine.run("umount", "nv-db")
            up.inv("dev.down")
            up.inv("dev.up")

    @pytest.mark.contract("podman", "docker")
    def test_a_listener_in_the_place_of_the_database_gets_nothing(self, up: Running, workspace: Path) -> None:
        """Also where a container of the name was made, and the engine could not start it for the listener."""
        folder = workspace / f"listener-{up.engine.name}"
        folder.mkdir()
        folder.chmod(0o755)
        up.inv("dev.down")
        label, port = f"--label=nv-devstack.stack={up.state}", f"--publish=127.0.0.1:{up.db_port}:5432"
        try:
            with listening(folder, "cleartext", up.db_port) as (listener,):
                for made in (False, True):
                    if made:
                        up.engine.run("create", "--name=nv-db", label, port, up.env["INVOKE_DB_IMAGE"], "sleep", "600")
                        up.engine.run("start", "nv-db", check=False)
                        state = json.loads(up.engine.run("inspect", "--type", "container", "nv-db"))[0]["State"]
                        assert (state["Status"], state["Running"]) == ("created", False)
                    for task in ("db.stats", "health", "data.backup"):
                        done = up.inv(task, expect=None)
                        assert done.returncode != 0, (task, done)
                        assert secrets_in(up, listener.seen()) == [], (task, done)
                    said = up.inv("db.stats", expect=1).stderr
                    assert f"what listens on 127.0.0.1:{up.db_port} has not proven to be nv-db" in said
                    assert f"pid {listener.process.pid}" in said
                    assert listener.seen() == b""
                assert "is taken" in up.inv("dev.up", expect=1).stderr
            up.inv("dev.down")
            assert "nv-db" not in up.containers()
        finally:
            up.engine.run("rm", "--force", "nv-db", check=False)
            up.inv("dev.up")


def test_tests_get_fresh_databases_with_the_migrations(up: Running, tmp_path: Path) -> None:
    folder = up.root / "service"
    folder.mkdir(exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(
        "import pytest\n\n@pytest.mark.parametrize('n', range(3))\ndef test_it(nv_stack, nv_connection, n):\n"
        "    cursor = nv_connection.cursor()\n"
        "    cursor.execute('SELECT count(*) FROM memories; CREATE TABLE mine ()')\n"
        "    nv_connection.commit()\n"
    )
    command = [up.python, "-m", "pytest", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, cwd=tmp_path, env=up.env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    left = up.query("SELECT datname FROM pg_database WHERE datname LIKE 'nv\\_test\\_%'")
    assert [name for (name,) in left if not name.startswith("nv_test_template_")] == []
