"""The health summary: whole screens, with and without colour, and its JSON against the schema."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from devstack.health.records import Check, Health, ServiceHealth, together, worst
from devstack.health.summary import summary
from tests.conftest import Project

ROOT = Path(__file__).resolve().parent.parent
ENDPOINTS = {
    "api": "http://127.0.0.1:13370",
    "health": "http://127.0.0.1:13370/health",
    "metrics": "http://127.0.0.1:13370/metrics",
    "database": "postgresql://nina:***@127.0.0.1:5433/nina",
}
HTTP = Check(name="http", text="/health answers 200 in 45 ms", value=45.2, unit="ms", limit=100)
CONNECTIONS = Check(name="connections", text="3 of 100 connections", value=3, unit="count", limit=80)
DB = ServiceHealth(
    service="db",
    name="nv-db",
    address="192.168.65.200:5432",
    verdict="healthy",
    memory_bytes=128 << 20,
    memory_limit_bytes=256 << 20,
    checks=[Check(name="process", text="running, pid 7, up 3 min"), CONNECTIONS],
)
PGB = msgspec.structs.replace(
    DB, service="pgb", name="nv-pgbouncer", address="192.168.65.206:6432", memory_limit_bytes=0, checks=[]
)
API = msgspec.structs.replace(
    DB, service="api", name="nv-api", address="127.0.0.1:13370", memory_bytes=0, checks=[HTTP]
)


def stack_of(*services: ServiceHealth) -> Health:
    return Health(
        verdict=together(list(services)),
        environment="dev",
        at="2026-11-24T03:39:41+00:00",
        seconds=0.06,
        services=list(services),
        endpoints=ENDPOINTS,
    )


HEALTHY = """\
🏥 NINAIVALAIGAL HEALTH SUMMARY
═══════════════════════════════════════

📊 SYSTEM STATUS
├─ 🗄️  Database (nv-db): ✅ HEALTHY (192.168.65.200:5432)
├─ 🔄 PgBouncer (nv-pgbouncer): ✅ HEALTHY (192.168.65.206:6432)
└─ 🚀 API Server (nv-api): ✅ HEALTHY (localhost:13370)

📈 PERFORMANCE METRICS
├─ API Response Time: 45ms (target: <100ms)
├─ Database Connections: 3/100 active
└─ Memory Usage: 256MB/512MB allocated

🔗 ENDPOINTS
├─ API: http://localhost:13370
├─ Health: http://localhost:13370/health
├─ Metrics: http://localhost:13370/metrics
└─ Database: postgresql://nina:***@localhost:5433/nina"""
"""The specification's own example, section 4.2, to the letter."""


def test_a_healthy_stack_looks_as_the_specification_shows_it() -> None:
    assert "\n".join(summary(stack_of(DB, PGB, API), plain=False)) == HEALTHY


def test_a_degraded_stack_says_why_and_what_helps() -> None:
    slow = Check(
        name="http", verdict="degraded", value=250.0, limit=100, cause="/health took 250 ms", fix="inv metrics"
    )
    memory = Check(name="memory", verdict="degraded", cause="it uses 500 MB", fix="inv metrics shows its use")
    api = msgspec.structs.replace(
        API, verdict="degraded", cause=slow.cause, fix=slow.fix, checks=[slow, memory], memory_bytes=500 << 20
    )
    assert "\n".join(summary(stack_of(DB, PGB, api), plain=True)) == (
        """\
NINAIVALAIGAL HEALTH SUMMARY
=======================================

SYSTEM STATUS
|- Database (nv-db): HEALTHY (192.168.65.200:5432)
|- PgBouncer (nv-pgbouncer): HEALTHY (192.168.65.206:6432)
`- API Server (nv-api): DEGRADED (localhost:13370)
      cause:   /health took 250 ms
      fix:     inv metrics
      also:    it uses 500 MB
      fix:     inv metrics shows its use

PERFORMANCE METRICS
|- API Response Time: 250ms (target: <100ms)
|- Database Connections: 3/100 active
`- Memory Usage: 756MB/512MB allocated

ENDPOINTS
|- API: http://localhost:13370
|- Health: http://localhost:13370/health
|- Metrics: http://localhost:13370/metrics
`- Database: postgresql://nina:***@localhost:5433/nina"""
    )


def test_where_localhost_may_lead_to_another_program_no_address_is_given_by_that_name() -> None:
    cause = "localhost may lead to another program: [::1]:13370 is held by a process of another user"
    check = Check(name="localhost", verdict="degraded", cause=cause, fix="end it")
    api = msgspec.structs.replace(API, verdict="degraded", cause=cause, fix="end it", checks=[HTTP, check])
    lines = summary(stack_of(DB, PGB, api), plain=True)
    assert "`- API Server (nv-api): DEGRADED (127.0.0.1:13370)" in lines
    assert "|- Health: http://127.0.0.1:13370/health" in lines
    assert [line for line in lines if "localhost" in line] == [f"      cause:   {cause}"]


def test_of_a_fault_and_what_follows_from_it_only_the_fault_has_a_fix() -> None:
    db = msgspec.structs.replace(
        DB, verdict="stopped", cause="it is stopped", fix="inv db.start", checks=[], memory_bytes=None
    )
    follows = {"verdict": "unhealthy", "because_of": "nv-db", "cause": "nv-db is stopped", "checks": []}
    pgb = msgspec.structs.replace(PGB, **follows)
    api = msgspec.structs.replace(API, **follows)
    lines = summary(stack_of(db, pgb, api), plain=False)
    assert "\n".join(lines[3:15]) == (
        """\
📊 SYSTEM STATUS
├─ 🗄️  Database (nv-db): ⚪ STOPPED (192.168.65.200:5432)
│     cause:   it is stopped
│     fix:     inv db.start
├─ 🔄 PgBouncer (nv-pgbouncer): ❌ UNHEALTHY (192.168.65.206:6432)
│     because: nv-db is stopped
└─ 🚀 API Server (nv-api): ❌ UNHEALTHY (localhost:13370)
      because: nv-db is stopped

📈 PERFORMANCE METRICS
├─ API Response Time: unknown
├─ Database Connections: unknown"""
    )


def test_details_are_every_check_in_columns() -> None:
    lines = summary(stack_of(DB, PGB, API), plain=True, details=True)
    assert lines[4:7] == [
        "|- Database (nv-db): HEALTHY (192.168.65.200:5432)",
        "|     ok    process               running, pid 7, up 3 min",
        "|     ok    connections           3 of 100 connections",
    ]


def test_of_equal_verdicts_the_first_check_is_the_reason() -> None:
    first = Check(name="a", verdict="degraded")
    bad = Check(name="b", verdict="unhealthy")
    assert worst([Check(name="x"), first, bad, Check(name="c", verdict="unhealthy")]) is bad
    assert worst([Check(name="x"), first]) is first


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (("healthy", "healthy", "healthy"), "healthy"),
        (("healthy", "degraded", "healthy"), "degraded"),
        (("stopped", "stopped", "stopped"), "stopped"),
        (("healthy", "stopped", "healthy"), "unhealthy"),
        (("unhealthy", "degraded", "unknown"), "unhealthy"),
        (("healthy", "degraded", "unknown"), "unknown"),
    ],
)
def test_the_verdict_on_the_whole(verdicts: tuple[str, ...], whole: str) -> None:
    services = [msgspec.structs.replace(DB, verdict=verdict) for verdict in verdicts]
    assert together(services) == whole


# on the real stack


def normalised(project: Project, text: str) -> str:
    text = re.sub(r"\d+ms \(target: <60000ms\)", "45ms (target: <100ms)", text)
    text = re.sub(r"\d+/100 active", "3/100 active", text)
    text = re.sub(r"\d+MB/1600MB", "256MB/512MB", text)
    ports = {project.db_port: "5433", project.pgb_port: "6432", project.api_port: "13370"}
    for port, known in ports.items():
        text = text.replace(f":{port}", f":{known}")
    return text.replace("127.0.0.1:5433", "192.168.65.200:5432").replace("127.0.0.1:6432", "192.168.65.206:6432")


def test_in_a_pipe_there_is_neither_colour_nor_cursor_movement(stack: Project) -> None:
    assert normalised(stack, stack.inv("health").stdout) == HEALTHY + "\n"
    plain = stack.inv("health", "--plain").stdout
    assert plain.isascii()
    assert "\x1b" not in plain


def on_terminal(project: Project, *args: str, interrupt_after: str = "", **env: str) -> str:
    """What a terminal gets; Ctrl-C once it has shown a text."""
    leader, follower = pty.openpty()
    variables = {**project.env, "TERM": "xterm", "LANG": "C.UTF-8", **env}
    process = subprocess.Popen(
        project.command(*args),
        cwd=project.root,
        env=variables,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    text, told = b"", False
    try:
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:
                break
            if not chunk:
                break
            text += chunk
            if interrupt_after and not told and text.decode(errors="replace").count(interrupt_after) >= 2:
                told = True
                process.send_signal(2)
        assert process.wait(60) == 0, text.decode()
    finally:
        os.close(leader)
        if process.poll() is None:
            process.kill()
            process.wait()
    return text.decode().replace("\r\n", "\n")


def test_a_terminal_gets_colour_unless_it_is_not_wanted(stack: Project) -> None:
    coloured = on_terminal(stack, "health")
    assert "✅ \x1b[32mHEALTHY\x1b[0m" in coloured
    assert normalised(stack, re.sub(r"\x1b\[\d*m", "", coloured)) == HEALTHY + "\n"
    assert normalised(stack, on_terminal(stack, "health", NO_COLOR="1")) == HEALTHY + "\n"
    ascii_only = on_terminal(stack, "health", LANG="C", LC_ALL="C", NO_COLOR="1")
    assert ascii_only == on_terminal(stack, "health", "--plain", NO_COLOR="1") or "|- Database" in ascii_only
    assert ascii_only.isascii()


def test_watching_redraws_in_place_and_ends_with_ctrl_c(stack: Project) -> None:
    text = on_terminal(stack, "health", "--watch", "0.2", interrupt_after="ENDPOINTS")
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1
    assert text.count("\x1b[H") >= 2
    assert normalised(stack, re.sub(r"\x1b\[\d*m", "", text.rpartition("\x1b[?25h")[2])).endswith(HEALTHY + "\n")


@pytest.mark.slow
def test_waiting_ends_as_soon_as_everything_is_healthy_and_not_much_later_than_told(stack: Project) -> None:
    stack.inv("api.stop")
    waiting = stack.popen("health", "--wait", "60")
    stack.inv("dev.up")
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, (out, err)
    assert normalised(stack, out) == HEALTHY + "\n"
    stack.inv("api.stop")
    stack.inv("health", "--wait", "0.5", expect=1)
    stack.inv("dev.up")


@pytest.mark.parametrize(
    ("flag", "value"), [("--wait", "soon"), ("--watch", "0"), ("--wait", "-1"), ("--watch", "nan")]
)
def test_what_is_no_number_of_seconds_is_refused(stack: Project, flag: str, value: str) -> None:
    done = stack.inv("health", f"{flag}={value}", expect=2)
    assert f"{flag} {value} is not a number of seconds" in done.stderr


def test_the_json_is_as_its_schema_says_and_the_schema_is_the_records(stack: Project) -> None:
    schema = json.loads((ROOT / "docs" / "health.schema.json").read_text())
    assert schema == msgspec.json.schema(Health)
    answer = stack.inv("health", "--json").stdout
    found = msgspec.json.decode(answer, type=Health)
    assert found.verdict == "healthy"
    assert [service.service for service in found.services] == ["db", "pgb", "api"]
    assert msgspec.to_builtins(found) == json.loads(answer)
    names = {check.name for service in found.services for check in service.checks}
    documented = (ROOT / "docs" / "health.md").read_text()
    assert [name for name in names if f"`{name.split(' ')[0]}" not in documented] == []
