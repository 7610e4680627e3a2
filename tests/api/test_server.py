"""The application as the stack runs it: uvicorn in a process of its own, also behind a real PgBouncer."""

from __future__ import annotations

import json
import logging
import re
import time
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api.logs import JsonFormatter
from tests.api.conftest import JWT_SECRET, Serve, Server, Sql
from tests.conftest import Project


def ready(server: Server, seconds: float = 20) -> Server:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.process.poll() is None, server.log()
        try:
            if httpx.get(f"{server.url}/health", trust_env=False).status_code == 200:
                return server
        except httpx.TransportError:
            time.sleep(0.02)
    raise AssertionError(server.log())


def lines(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


def test_from_start_to_end_every_line_is_json_without_secrets(sql: Sql, environ: dict[str, str], serve: Serve) -> None:
    server = ready(serve({**environ, "NINAIVALAIGAL_DEBUG": "1"}))
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        created = client.post("/memories", json={"content": "over the wire"})
        found = client.get("/memories/search", params={"q": "private words"})
        assert (created.status_code, found.status_code) == (201, 200)
        client.get("/a%0Ab%22")
        assert server.end() in (0, -15)
    log = server.log()
    logged = lines(log)
    for line in logged:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert {"level", "logger", "message"} <= set(line)
    requests = [line for line in logged if line["message"] == "request" and line["path"] != "/health"]
    assert [(line["method"], line["path"], line["status"], line["level"]) for line in requests] == [
        ("POST", "/memories", 201, "INFO"),
        ("GET", "/memories/search", 200, "INFO"),
        ("GET", '/a\nb"', 404, "INFO"),
    ]
    assert all(0 < line["duration_ms"] < 10_000 for line in requests)
    messages = [line["message"] for line in logged]
    assert "the database was migrated" in messages
    assert "Application startup complete." in messages
    assert messages[-1].startswith("Finished server process")
    password = urlsplit(environ["NINAIVALAIGAL_DATABASE_URL"]).password
    assert password
    for secret in (password, JWT_SECRET, "private"):
        assert secret not in log
    assert sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nv-api'") == [(0,)]


@pytest.mark.slow
def test_two_that_start_at_once_both_become_ready(sql: Sql, environ: dict[str, str], serve: Serve) -> None:
    both = [serve(environ), serve(environ)]
    logs = "".join(ready(server).log() for server in both)
    assert logs.count("Running upgrade") == 1
    assert sql("SELECT version_num FROM alembic_version") == [("0001",)]


def test_a_failed_start_is_one_line_without_a_traceback(environ: dict[str, str], serve: Serve) -> None:
    server = serve({**environ, "NINAIVALAIGAL_JWT_SECRET": ""})
    assert server.process.wait(20) != 0
    errors = [line for line in lines(server.log()) if line["level"] == "ERROR"]
    assert [line["message"] for line in errors] == [
        "NINAIVALAIGAL_JWT_SECRET is not set: set it to a long random text",
        "Application startup failed. Exiting.",
    ]
    assert "Traceback" not in server.log()


def test_an_exceptions_traceback_is_a_field_of_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "f", 1, "it %s", ("broke",), (ValueError, error, error.__traceback__)
        )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "it broke"
    assert json.loads(line)["traceback"].endswith("ValueError: two\nlines")


def test_pgbouncer_is_recognised_and_may_cut_its_clients_off(
    database: Project, pooled_url: str, environ: dict[str, str], serve: Serve
) -> None:
    secret = database.secrets()["pgbouncer_password"]
    server = ready(serve({**environ, "NINAIVALAIGAL_DATABASE_URL": pooled_url}))
    with (
        httpx.Client(base_url=server.url, trust_env=False) as client,
        closing(database.connect(database.pgb_port, user="nv_admin", password=secret, dbname="pgbouncer")) as console,
    ):
        assert client.get("/health/detailed").json()["pgbouncer"]["available"] is True
        assert client.post("/memories", json={"content": "pooled"}).status_code == 201
        for command in ("KILL nina", "RESUME nina"):
            console.cursor().execute(command)
        assert client.get("/memories").json()["total"] == 1
        assert client.get("/health").status_code == 200
        assert client.get("/memories/search", params={"q": "pooled"}).json()["items"][0]["content"] == "pooled"
