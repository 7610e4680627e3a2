"""Only loopback, no secret where others can read it, and passwords that are really asked for."""

from __future__ import annotations

import contextlib
import os
import stat
import threading

import psutil
import psycopg2
import pytest

from tests.conftest import Project

CANARY = "canary-4711-passphrase"
JWT = "canary-jwt-secret-0815"


@pytest.mark.slow
def test_no_secret_in_ps_output_logs_or_readable_files(project: Project) -> None:
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.003):
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    seen.add(" ".join(process.cmdline()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    env = {"INVOKE_DB_PASSWORD": CANARY, "NINAIVALAIGAL_JWT_SECRET": JWT}
    printed = ""
    old_umask = os.umask(0)
    try:
        for args, expect in (
            (("--dry", "dev.up"), 0),
            (("--echo", "dev.up"), 0),
            (("dev.status",), 0),
            (("pgb.reload",), 0),
            (("system-info",), 0),
            (("db.shell", "--command", "SELECT 1"), 0),
            (("--debug", "dev.up"), 0),
            (("dev.logs", "--tail", "1000"), 0),
            (("--echo", "--dry", "dev.restart"), 0),
        ):
            result = project.inv(*args, expect=expect, **env)
            printed += result.stdout + result.stderr
        broken = {**env, "INVOKE_API_ENV": '{"X": "$database_url"}', "INVOKE_API_APP": "broken:app"}
        (project.root / "api" / "broken.py").write_text("import os\nraise SystemExit(os.environ['X'])\n")
        failed = project.inv("dev.up", expect=1, **broken)
        printed += failed.stdout + failed.stderr
    finally:
        os.umask(old_umask)
        done.set()
        watcher.join()
    logs = [path for path in (project.root / "logs").iterdir() if path.is_file()]
    assert {"devstack.log", "supervisord.log", "nv-db.log", "nv-api.log"} <= {path.name for path in logs}
    assert [path.name for path in logs if stat.S_IMODE(path.stat().st_mode) != 0o600] == []
    secrets = [CANARY, JWT, *project.secrets().values()]
    for secret in secrets:
        assert secret not in printed
        assert not [line for line in seen if secret in line]
        assert secret not in project.log("devstack")
        assert secret not in project.log("nv-db") + project.log("nv-pgbouncer")
    for path in project.folder.rglob("*"):
        if not path.is_file() or path.is_symlink() or "nv-db-data" in str(path):
            continue
        readable = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
        if readable:
            content = path.read_text(errors="replace")
            assert not [secret for secret in secrets if secret in content], f"{path} is readable by others"


def test_everything_listens_on_loopback_only(stack: Project) -> None:
    listening = []
    for process in stack.processes():
        with contextlib.suppress(psutil.Error):
            listening += [
                (c.laddr.ip, c.laddr.port)
                for c in process.net_connections(kind="inet")
                if c.status == psutil.CONN_LISTEN
            ]
    assert {port for _, port in listening} == {stack.db_port, stack.pgb_port, stack.api_port}
    assert {address for address, _ in listening} == {"127.0.0.1"}


def test_private_folders_and_files(stack: Project) -> None:
    assert stat.S_IMODE(stack.data.stat().st_mode) == 0o700
    assert stat.S_IMODE((stack.state / "run" / "db").stat().st_mode) == 0o700
    for path in (stack.state / "config").rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((stack.state / "secrets.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((stack.state / "run" / "supervisor.sock").stat().st_mode) & 0o077 == 0


def test_passwords_are_really_asked_for(stack: Project) -> None:
    for port in (stack.db_port, stack.pgb_port):
        with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
            stack.connect(port, password="wrong")
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        stack.connect(stack.pgb_port, user="nv_admin", dbname="pgbouncer", password="wrong")
    with pytest.raises(psycopg2.OperationalError, match="reject"):
        stack.connect(user="postgres", dbname="postgres", password="x")
    assert stack.query("SELECT rolsuper, rolcreaterole FROM pg_roles WHERE rolname = 'nina'") == [(False, False)]


def test_the_userlist_holds_verifiers_and_no_password(stack: Project) -> None:
    userlist = (stack.state / "config" / "userlist.txt").read_text()
    assert userlist.count('"SCRAM-SHA-256$4096:') == 2
    for secret in stack.secrets().values():
        assert secret not in userlist


@pytest.mark.skipif(os.getuid() != 0, reason="PostgreSQL and PgBouncer have an account of their own as root only")
def test_as_root_postgresql_and_pgbouncer_run_unprivileged(stack: Project) -> None:
    pids = stack.pids()
    for name in ("nv-db", "nv-pgbouncer"):
        assert psutil.Process(pids[name]).uids().real != 0
