"""The main job: the stack comes up in order, works, goes down, and is found as it was."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest

from devstack.services.configuration import Applied
from tests.conftest import Project, wait_for


def test_up_works_for_real_and_down_leaves_only_the_data(project: Project) -> None:
    up = project.inv("dev.up")
    assert re.findall(r"^(nv-\S+) +ready in \d+(?:\.\d+)? s$", up.stdout, re.M) == ["nv-db", "nv-pgbouncer", "nv-api"]
    assert f"http://127.0.0.1:{project.api_port}/health" in up.stdout

    assert project.http("/health") == (200, {"status": "ok"})
    status, made = project.http("/memories", {"content": "The pooler sits before the database"})
    assert status == 201
    project.http("/memories", {"content": "Bananas are yellow"})
    _, found = project.http("/memories/search?q=which+pooler+is+before+the+database")
    assert found["items"][0]["id"] == made["id"]
    assert project.query(f"SELECT content FROM memories WHERE id = '{made['id']}'") == [
        ("The pooler sits before the database",)
    ]

    project.inv("dev.down")
    assert project.listening() == []
    assert project.processes() == []

    project.inv("dev.up")
    assert project.http(f"/memories/{made['id']}")[1]["content"] == "The pooler sits before the database"


@pytest.mark.slow
def test_each_service_starts_only_after_the_one_before_is_ready(project: Project) -> None:
    project.inv("dev.up")
    ready = re.search(r"^(\S+ \S+) UTC \[\d+\] LOG: +database system is ready", project.log("nv-db"), re.M)
    bouncer = re.search(r"^(\S+ \S+) UTC \[\d+\] LOG process up", project.log("nv-pgbouncer"), re.M)
    assert ready is not None
    assert bouncer is not None
    api = json.loads(project.log("nv-api").splitlines()[0])["time"].replace("T", " ")
    assert ready[1] < bouncer[1] < api


@pytest.mark.slow
def test_a_second_up_changes_nothing(project: Project) -> None:
    project.inv("dev.up")
    before = project.pids()
    files = {p: p.stat().st_mtime_ns for p in project.state.rglob("*") if p.is_file() and "nv-db-data" not in str(p)}
    second = project.inv("dev.up")
    assert second.stdout.count("already running") == 3
    assert project.pids() == before
    after = {p: p.stat().st_mtime_ns for p in project.state.rglob("*") if p.is_file() and "nv-db-data" not in str(p)}
    ignored = {project.state / "lock-holder", project.state / "lock"}
    assert {p: t for p, t in after.items() if p not in ignored} == {p: t for p, t in files.items() if p not in ignored}


@pytest.mark.slow
def test_up_on_a_partly_running_stack_starts_what_is_missing_and_says_what_was_there(project: Project) -> None:
    project.inv("db.start")
    database = project.pids()["nv-db"]
    up = project.inv("dev.up")
    assert re.search(rf"^nv-db +already running  \(pid {database},", up.stdout, re.M)
    assert re.findall(r"^(nv-\S+) +ready in", up.stdout, re.M) == ["nv-pgbouncer", "nv-api"]


def test_the_specifications_sequences(project: Project) -> None:
    for label, name, count in (("db", "nv-db", 1), ("pgb", "nv-pgbouncer", 2), ("api", "nv-api", 3)):
        start = project.inv(f"{label}.start")
        assert start.stdout.count("ready in") + start.stdout.count("already running") == count
        assert re.search(rf"^{name} +running", project.inv(f"{label}.status").stdout, re.M)
        assert re.search(rf"^{name} +stopped in", project.inv(f"{label}.stop").stdout, re.M)
    project.inv("dev.up")
    before = project.pids()
    project.inv("dev.status")
    project.inv("dev.restart")
    after = project.pids()
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())
    down = project.inv("dev.down")
    stopped = re.findall(r"^(nv-\S+) +stopped in", down.stdout, re.M)
    assert stopped == ["nv-api", "nv-pgbouncer", "nv-db"]
    assert project.processes() == []


@pytest.mark.slow
def test_stopping_the_database_stops_what_depends_on_it_first(project: Project) -> None:
    project.inv("dev.up")
    stop = project.inv("db.stop")
    assert re.findall(r"^(nv-\S+) +stopped in", stop.stdout, re.M) == ["nv-api", "nv-pgbouncer", "nv-db"]
    assert project.listening() == []


@pytest.mark.slow
def test_timing_shows_offset_and_time_to_ready(project: Project) -> None:
    up = project.inv("dev.up", "--timing")
    rows = re.findall(r"^(nv-\S+) +@(\d+\.\d+) s +\+(\d+\.\d+) s +started$", up.stdout, re.M)
    offsets = [float(offset) for _, offset, _ in rows]
    assert [name for name, _, _ in rows] == ["nv-db", "nv-pgbouncer", "nv-api"]
    assert offsets == sorted(offsets)


def test_changed_settings_restart_just_the_services_concerned(project: Project) -> None:
    project.inv("dev.up")
    before = project.pids()
    up = project.inv("dev.up", INVOKE_PGB_DEFAULT_POOL_SIZE="7")
    changed = r"its configuration changed \(pgbouncer.ini default_pool_size is 20, not 7\)"
    assert re.search(rf"^nv-pgbouncer +restarted, ready in .*{changed}", up.stdout, re.M)
    after = project.pids()
    assert after["nv-db"] == before["nv-db"]
    assert after["nv-pgbouncer"] != before["nv-pgbouncer"]
    assert after["nv-api"] == before["nv-api"]


@pytest.mark.slow
def test_what_somebody_changed_in_the_database_is_put_right_at_the_next_start(project: Project) -> None:
    project.inv("dev.up")
    note = project.state / "config" / "db.verifier"
    noted = note.read_text()
    project.inv("dev.down")
    project.inv("dev.up")
    assert note.read_text() == noted, "a start that finds everything as it was asks for nothing as the superuser"
    # the same password again has another verifier: the noted one lets PgBouncer in no more
    same = f"ALTER ROLE nina PASSWORD '{project.secrets()['db_password']}'; DROP EXTENSION \"uuid-ossp\""
    project.inv("db.shell", "--admin", "--command", same)
    project.inv("dev.down")
    project.inv("dev.up")
    assert project.query("SELECT count(*) FROM pg_extension WHERE extname = 'uuid-ossp'", project.pgb_port) == [(1,)]
    project.inv("db.shell", "--admin", "--command", same.partition(";")[0])
    project.inv("dev.down")
    project.inv("dev.up")
    assert note.read_text() != noted
    assert project.query("SELECT 1", project.pgb_port) == [(1,)]


def test_a_change_of_the_source_restarts_the_application(project: Project) -> None:
    project.inv("dev.up")
    before = project.pids()["nv-api"]
    wait_for(lambda: [p for p in project.processes() if "devstack.reload" in p.cmdline()])
    wait_for(lambda: _touch_until_restarted(project, before))
    wait_for(lambda: project.http("/health") == (200, {"status": "ok"}))


def _touch_until_restarted(project: Project, before: int) -> bool:
    """The watcher may need a moment before it sees changes: touch again until it did."""
    main = project.root / "api" / "main.py"
    main.write_text(main.read_text() + "\n# changed\n")
    return project.pids().get("nv-api", before) != before


@pytest.mark.slow
def test_reload_on_change_false_has_no_watcher(project: Project) -> None:
    project.inv("dev.up", RELOAD_ON_CHANGE="false")
    assert not [p for p in project.processes() if "devstack.reload" in p.cmdline()]


class TestReading:
    """Commands that only look, on one running stack."""

    def test_status_as_json_has_stable_keys(self, stack: Project) -> None:
        services = json.loads(stack.inv("dev.status", "--json").stdout)["services"]
        assert [s["service"] for s in services] == ["nv-db", "nv-pgbouncer", "nv-api"]
        for service in services:
            assert set(service) == {"service", "state", "answers", "pid", "started", "uptime_s", "address", "reason"}
            assert (service["state"], service["answers"], service["reason"]) == ("running", True, None)

    def test_output_in_a_pipe_has_no_colour(self, stack: Project) -> None:
        for task in ("dev.status", "db.stats", "pgb.stats", "system-info", "dev.logs"):
            assert "\x1b" not in stack.inv(task).stdout

    def test_logs_of_all_services_with_prefixes_end_in_a_pipe(self, stack: Project) -> None:
        lines = stack.inv("dev.logs", "--tail", "2").stdout.splitlines()
        assert {line.split(" │ ")[0].strip() for line in lines} == {"nv-db", "nv-pgbouncer", "nv-api"}
        assert len(lines) <= 6

    def test_logs_since_a_moment_leave_out_what_is_older(self, stack: Project) -> None:
        assert "ready to accept connections" in stack.inv("db.logs", "--since", "1h").stdout
        assert "ready to accept connections" not in stack.inv("db.logs", "--since", "0s").stdout

    def test_logs_follow_what_comes(self, stack: Project) -> None:
        process = stack.popen("dev.logs", "--follow", "--tail", "0")
        enough = threading.Event()

        def ask() -> None:
            """Again and again: what was logged before its log is followed is not shown."""
            while not enough.wait(0.2):
                stack.http("/memories/00000000-0000-0000-0000-000000000000")

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            assert process.stdout is not None
            # PostgreSQL may log a checkpoint of its own first
            line = next(line for line in process.stdout if line.startswith("nv-api       │ "))
            assert "/memories/" in line
        finally:
            enough.set()
            asking.join()
            process.terminate()
            process.wait(10)
            process.communicate()
        wait_for(lambda: not _tails(stack))

    def test_database_statistics(self, stack: Project) -> None:
        stats = json.loads(stack.inv("db.stats", "--json").stdout)
        assert stats["database"][0]["max_connections"] == 100
        assert {e["extension"] for e in stats["extensions"]} >= {"vector", "uuid-ossp"}
        assert "public.memories" in {t["table"] for t in stats["tables"]}

    def test_pool_statistics(self, stack: Project) -> None:
        stats = json.loads(stack.inv("pgb.stats", "--json").stdout)
        assert stats["pools"][0]["database"] == "nina"
        assert stats["pools"][0]["pool_mode"] == "session"

    def test_shell_runs_sql_as_the_role_or_as_superuser(self, stack: Project) -> None:
        as_role = stack.inv("db.shell", "--command", "SELECT current_user, current_setting('is_superuser')")
        assert re.search(r"nina +\| off", as_role.stdout)
        as_admin = stack.inv("db.shell", "--admin", "--command", "SELECT current_user, current_setting('is_superuser')")
        assert re.search(r"postgres +\| on", as_admin.stdout)
        stack.inv("db.shell", "--command", "SELECT nonsense", expect=1)

    def test_reload_reads_the_configuration_again(self, stack: Project) -> None:
        before = stack.pids()["nv-pgbouncer"]
        stack.inv("pgb.reload", INVOKE_PGB_DEFAULT_POOL_SIZE="9")
        assert stack.pids()["nv-pgbouncer"] == before
        password = stack.secrets()["pgbouncer_password"]
        rows = stack.query("SHOW CONFIG", port=stack.pgb_port, user="nv_admin", password=password, dbname="pgbouncer")
        assert ("default_pool_size", "9") in {row[:2] for row in rows}
        stack.inv("pgb.reload")

    def test_system_info_names_the_provider_and_why_others_were_passed_over(self, stack: Project) -> None:
        facts = json.loads(stack.inv("system-info", "--json").stdout)
        assert facts["can_start"] is True
        providers = [f for f in facts["facts"] if f["topic"] == "PostgreSQL"]
        assert [f for f in providers if f["ok"]]
        for passed_over in (f for f in providers if f["ok"] is False):
            assert re.search(r"has no |needs |can't enter|too old|does not run", passed_over["value"])

    def test_every_log_line_of_a_command_has_duration_and_exit_code(self, stack: Project) -> None:
        lines = [line for line in stack.log("devstack").splitlines() if re.match(r"\d{4}-", line)]
        assert lines
        assert all(re.match(r"\S+ \S+  \[\d+\] +\d+\.\d+ s  exit \d+ +\S", line) for line in lines)


def _tails(stack: Project) -> list[str]:
    result = subprocess.run(["ps", "-e", "-o", "args="], capture_output=True, text=True, check=True)
    return [line for line in result.stdout.splitlines() if line.startswith("tail ") and str(stack.root) in line]


def test_dry_run_prints_the_sequence_and_touches_nothing(project: Project) -> None:
    dry = project.inv("--dry", "dev.up")
    order = ["initdb", "supervisord", "nv-db.xml", "psql", "nv-pgbouncer.xml", "nv-api.xml"]
    positions = [dry.stdout.index(word) for word in order]
    assert positions == sorted(positions)
    assert not project.state_base.exists()
    assert not (project.root / "logs").exists()
    assert project.processes() == []


@pytest.mark.parametrize("task", ["db.status", "dev.status"])
def test_status_of_a_stopped_stack_ends_with_1(project: Project, task: str) -> None:
    status = project.inv(task, expect=1)
    assert re.search(r"^nv-db +stopped +- +- ", status.stdout, re.M)
    assert status.stderr == ""


@pytest.mark.slow
def test_another_terminal_s_path_is_no_change_and_a_changed_secret_is_not_shown(project: Project) -> None:
    project.inv("dev.up")
    before = project.pids()
    other = {
        "PATH": f"/somewhere/else:{os.environ['PATH']}",
        "VIRTUAL_ENV": "/somewhere/venv",
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "C",
        "TERM": "vt100",
        "TMPDIR": str(project.folder),
        "SSH_AUTH_SOCK": "/somewhere/agent",
        "PWD": "/somewhere",
        "HTTP_PROXY": "http://proxy:3128",
    }
    health = json.loads(project.inv("health", "--json", expect=0, **other).stdout)
    assert health["verdict"] == "healthy", health
    assert "already running" in project.inv("dev.up", expect=0, **other).stdout
    assert project.pids() == before
    secret = "another-secret-of-the-test-0815"
    found = json.loads(project.inv("health", "--json", expect=None, NINAIVALAIGAL_JWT_SECRET=secret).stdout)
    (api,) = [service for service in found["services"] if service["service"] == "api"]
    assert "(env NINAIVALAIGAL_JWT_SECRET has changed)" in api["cause"]
    assert secret not in json.dumps(found)
    recorded = (project.state / "applied" / "nv-api").read_text()
    assert not [value for value in project.secrets().values() if value in recorded]


def test_values_of_the_application_s_own_variables_are_in_no_record(tmp_path: Path) -> None:
    applied = Applied(tmp_path / "nv-api", str, {"env TOKEN"})
    applied.path.write_text(applied.content({"env TOKEN": "canary-1", "env LOG_LEVEL": "INFO"}))
    assert "canary" not in applied.path.read_text()
    now = {"env TOKEN": "canary-2", "env LOG_LEVEL": "DEBUG"}
    assert applied.differences(now) == ["env TOKEN has changed", "env LOG_LEVEL is INFO, not DEBUG"]


@pytest.mark.slow
def test_no_message_shows_a_value_of_the_application_s_own_variables(stack: Project) -> None:
    (stack.root / ".env").write_text("KEY=${CALLERS}\n")
    first = stack.inv("dev.up", INVOKE_API_ENV='{"TOKEN": "canary-1"}', CALLERS="canary-2")
    answer = stack.inv("health", INVOKE_API_ENV='{"TOKEN": "canary-3"}', CALLERS="canary-4")
    second = stack.inv("dev.up", INVOKE_API_ENV='{"TOKEN": "canary-3"}', CALLERS="canary-4")
    (stack.root / ".env").unlink()
    stack.inv("dev.up")
    assert "env KEY has changed" in answer.stdout
    assert "canary" not in "".join(done.stdout + done.stderr for done in (first, answer, second))
