"""What is opened is what was asked for, it is said, and a page from elsewhere does not get in by its name."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import psutil
import psycopg2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.hosts import KnownHosts
from tests.conftest import Project


@pytest.fixture(scope="module")
def open_stack(stack: Project) -> Project:
    """A stack whose application is open, by the setting that once opened all of it."""
    stack.env["INVOKE_STACK_BIND"] = "0.0.0.0"
    said = stack.inv("dev.up").stdout
    assert "nv-api is open beyond this machine: api.bind is 0.0.0.0, from variable INVOKE_STACK_BIND" in said
    assert "the default application has no login" in said
    assert "nv-db is" not in said
    assert "nv-pgbouncer is" not in said
    return stack


def addresses(stack: Project) -> dict[int, str]:
    """Where each port of a stack listens."""
    found: dict[int, str] = {}
    for process in stack.processes():
        found |= {
            connection.laddr.port: connection.laddr.ip
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        }
    return found


def test_opening_the_application_opens_nothing_else(open_stack: Project) -> None:
    stack = open_stack
    assert addresses(stack) == {stack.db_port: "127.0.0.1", stack.pgb_port: "127.0.0.1", stack.api_port: "0.0.0.0"}


def test_health_and_the_system_information_say_what_is_open(open_stack: Project) -> None:
    said = open_stack.inv("health", "--plain").stdout
    assert said.count("open beyond this machine") == 1
    assert "note:    open beyond this machine: api.bind is 0.0.0.0" in said
    services = json.loads(open_stack.inv("health", "--json").stdout)["services"]
    checks = {s["service"]: next(c for c in s["checks"] if c["name"] == "exposure") for s in services}
    assert {label: check["value"] for label, check in checks.items()} == {"db": False, "pgb": False, "api": True}
    assert {check["verdict"] for check in checks.values()} == {"healthy"}
    facts = json.loads(open_stack.inv("system-info", "--json").stdout)["facts"]
    ports = {fact["number"]: fact["value"] for fact in facts if fact["topic"] == "ports"}
    assert "in use by nv-api; open beyond this machine" in ports[open_stack.api_port]
    assert "open" not in ports[open_stack.db_port] + ports[open_stack.pgb_port]


def status(stack: Project, path: str, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", stack.api_port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.slow
def test_a_page_that_has_its_name_lead_here_reads_nothing(open_stack: Project) -> None:
    port = open_stack.api_port
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        for path in ("/memories", "/health", "/metrics", "/docs"):
            assert status(open_stack, path, host) == 400, (path, host)
    for host in (
        f"localhost:{port}",
        "LOCALHOST",
        f"127.0.0.1:{port}",
        f"[::1]:{port}",
        "10.1.2.3",
        socket.gethostname(),
    ):
        for path in ("/memories", "/health", "/metrics"):
            assert status(open_stack, path, host) == 200, (path, host)


@pytest.mark.slow
def test_the_database_alone_can_be_opened_and_the_commands_reach_it_all_the_same(open_stack: Project) -> None:
    stack = open_stack
    env = {"INVOKE_STACK_BIND": "", "INVOKE_DB_BIND": "0.0.0.0", "INVOKE_API_HOSTS": "box.example"}
    said = stack.inv("dev.up", expect=0, **env).stdout
    assert "nv-db is open beyond this machine: db.bind is 0.0.0.0, from variable INVOKE_DB_BIND" in said
    assert "nv-api is open" not in said
    assert addresses(stack) == {stack.db_port: "0.0.0.0", stack.pgb_port: "127.0.0.1", stack.api_port: "127.0.0.1"}
    for command in ("db.stats", "pgb.stats", "health", "dev.status"):
        stack.inv(command, expect=0, **env)
    assert status(stack, "/memories", "box.example") == 200  # by api.hosts
    assert status(stack, "/memories", socket.gethostname()) == 400  # which nobody can reach it by


@pytest.mark.slow
def test_pgbouncer_alone_can_be_opened_and_the_commands_reach_it_all_the_same(open_stack: Project) -> None:
    stack = open_stack
    env: dict[str, Any] = {"INVOKE_STACK_BIND": "", "INVOKE_PGB_BIND": "0.0.0.0"}
    said = stack.inv("dev.up", **env).stdout
    assert "nv-pgbouncer is open beyond this machine: pgb.bind is 0.0.0.0, from variable INVOKE_PGB_BIND" in said
    assert "nv-db is open" not in said
    assert "nv-api is open" not in said
    assert addresses(stack) == {stack.db_port: "127.0.0.1", stack.pgb_port: "0.0.0.0", stack.api_port: "127.0.0.1"}
    for command in ("pgb.stats", "pgb.reload", "health", "dev.status"):
        stack.inv(command, **env)
    assert stack.query("SELECT 1", stack.pgb_port) == [(1,)]
    with pytest.raises(psycopg2.OperationalError, match="SASL authentication failed"):
        stack.query("SELECT 1", stack.pgb_port, password="wrong")


def test_nothing_opens_with_an_example_secret(open_stack: Project) -> None:
    said = open_stack.inv("dev.up", expect=2, NINAIVALAIGAL_JWT_SECRET="development-jwt-secret-key").stderr
    assert "api.jwt_secret: the example secret can't be used while api.bind is 0.0.0.0" in said
    assert "development-jwt-secret-key" not in said


@pytest.mark.parametrize(
    ("names", "host", "answer"),
    [
        ([], "localhost", 200),
        ([], "localhost.", 200),
        ([], "[::1]", 200),
        ([], "[fe80::1]:80", 200),
        ([], "[::1", 400),
        ([], "2130706433", 400),  # a browser would have written it as 127.0.0.1
        ([], "a.box.example", 400),
        (["Box.Example"], "box.EXAMPLE:80", 200),
        (["box.example"], "a.box.example", 400),
        (["*.box.example"], "a.b.box.example", 200),
        (["*.box.example"], "box.example", 400),
        (["*.box.example"], "evilbox.example", 400),
        (["*"], "evil.example", 200),
        ([], "[::1].evil.example", 400),
        ([], "[::1].evil.example:80", 400),
        ([], "[::1]evil", 400),
        ([], "evil.example[::1]", 400),
        ([], "[127.0.0.1]", 400),
        ([], "[evil.example]", 400),
        ([], "127.0.0.1.evil.example", 400),
        ([], "localhost.evil.example", 400),
        ([], "localhost:80:evil.example", 400),
        ([], "localhost:evil", 400),
        ([], "localhost/evil.example", 400),
        ([], "localhost?evil.example", 400),
        ([], "evil.example#@localhost", 400),
        ([], "evil.example\\@localhost", 400),
        ([], "evil.example, localhost", 400),
        ([], "", 400),
        (["*"], "", 200),
        (["a"], "user@a", 400),
    ],
)
def test_hosts_that_are_known(names: list[str], host: str, answer: int) -> None:
    app = FastAPI()
    app.add_middleware(KnownHosts, names=names)
    app.get("/")(lambda: "here")
    assert TestClient(app).get("/", headers={"Host": host}).status_code == answer
