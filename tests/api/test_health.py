"""Health, and what happens to requests while the database is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
from fastapi.testclient import TestClient

from api import main
from api.database import Database
from api.errors import DatabaseUnavailableError
from tests.api.conftest import Line, Sql


@pytest.fixture
def remote(line: Line, environ: dict[str, str]) -> Iterator[TestClient]:
    """The application at the end of a line that can be cut."""
    with TestClient(main.create_app({**environ, "NINAIVALAIGAL_DATABASE_URL": line.url})) as client:
        yield client


def test_well(client: TestClient) -> None:
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_details(client: TestClient) -> None:
    before = client.get("/health/detailed").json()
    assert before.pop("uptime_s") >= 0
    assert before == {
        "status": "ok",
        "reason": None,
        "db": {"connected": True, "active_connections": 0, "max_connections": main.POOL_SIZE},
        "pgbouncer": {"available": False, "note": "connected to PostgreSQL directly"},
        "memory_provider": {"name": "native", "healthy": True, "memories": 0},
        "latency_ms_p50": None,
        "latency_ms_p95": None,
    }
    client.get("/health")
    client.get("/metrics")
    assert client.get("/health/detailed").json()["latency_ms_p50"] is None
    client.post("/memories", json={"content": "one"})
    after = client.get("/health/detailed").json()
    assert after["memory_provider"]["memories"] == 1
    assert 0 < after["latency_ms_p50"] <= after["latency_ms_p95"]


def test_a_terminated_connection_is_replaced_unnoticed(client: TestClient, sql: Sql) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: client.post("/memories", json={"content": f"{n}"}), range(16)))
    client.get("/health")
    ended = sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'nv-api'")
    assert len(ended) >= 2
    assert client.post("/memories", json={"content": "after"}).status_code == 201
    assert client.get("/memories").json()["total"] == 17
    assert client.get("/health").status_code == 200


def test_database_away_and_back(remote: TestClient, line: Line, database_url: str) -> None:
    password = database_url.split(":")[2].split("@")[0]
    assert remote.post("/memories", json={"content": "kept"}).status_code == 201
    line.cut()
    health = remote.get("/health")
    assert health.json() == {"status": "unavailable", "reason": "the database does not answer"}
    detailed = remote.get("/health/detailed")
    assert (detailed.json()["status"], detailed.json()["db"]["connected"]) == ("unavailable", False)
    assert detailed.json()["memory_provider"] == {"name": "native", "healthy": False, "memories": None}
    request = remote.get("/memories")
    assert request.json() == {"detail": "the database does not answer"}
    assert [answer.status_code for answer in (health, detailed, request)] == [503, 503, 503]
    assert not any(password in a.text or "127.0.0.1" in a.text for a in (health, detailed, request))
    line.mend()
    assert remote.get("/health").status_code == 200
    assert remote.get("/memories").json()["total"] == 1


def test_a_database_that_hangs_is_given_up_in_time(remote: TestClient, line: Line) -> None:
    assert remote.get("/memories").status_code == 200
    line.freeze()
    answers: list[int] = []
    # more than there are threads for requests: health must not wait for any of them
    waiting = [threading.Thread(target=lambda: answers.append(remote.get("/memories").status_code)) for _ in range(45)]
    for thread in waiting:
        thread.start()
    began = time.monotonic()
    health = remote.get("/health")
    assert health.json() == {"status": "unavailable", "reason": "the database does not answer within 2 s"}
    assert time.monotonic() - began < 3
    line.thaw()
    for thread in waiting:
        thread.join(30)
    assert len(answers) == 45
    assert remote.get("/health").status_code == 200
    assert remote.get("/memories").status_code == 200


def test_a_full_pool_waits_then_says_so(database_url: str) -> None:
    database = Database(database_url, size=2, timeout_s=5)
    with database.session(), database.session():
        assert (database.active, database.idle) == (2, 0)
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailableError, match="all 2 database connections are busy"):
            database.fetch("SELECT 1", timeout_s=0.2)
        assert 0.15 < time.monotonic() - began < 1
    assert (database.active, database.idle) == (0, 2)
    with ThreadPoolExecutor(8) as threads:
        assert [r[0]["n"] for r in threads.map(lambda n: database.fetch(f"SELECT {n} AS n"), range(50))] == list(
            range(50)
        )
    assert (database.active, database.idle) == (0, 2)
    database.close()
    assert database.idle == 0


def test_a_statement_that_takes_too_long_costs_its_connection_only(database_url: str) -> None:
    database = Database(database_url, size=1, timeout_s=5)
    with pytest.raises(DatabaseUnavailableError, match=r"does not answer within 0\.2 s"):
        database.fetch("SELECT pg_sleep(2)", timeout_s=0.2)
    assert database.fetch("SELECT 1 AS one") == [{"one": 1}]
    database.close()


def test_a_refused_statement_keeps_the_connection(database_url: str) -> None:
    database = Database(database_url, size=1, timeout_s=5)
    pid = database.fetch("SELECT pg_backend_pid() AS pid")
    with pytest.raises(psycopg2.errors.UndefinedTable):
        database.fetch("SELECT * FROM nowhere")
    with pytest.raises(psycopg2.errors.DivisionByZero):
        database.fetch("CREATE TABLE half (a int); SELECT 1/0")
    assert database.fetch("SELECT to_regclass('half') AS half") == [{"half": None}]
    assert database.fetch("SELECT pg_backend_pid() AS pid") == pid
    database.close()


def test_a_connection_lost_on_the_way_is_not_tried_again(database_url: str) -> None:
    database = Database(database_url, size=1, timeout_s=5)
    with pytest.raises(DatabaseUnavailableError) as caught:
        database.fetch("SELECT pg_terminate_backend(pg_backend_pid())")
    assert "terminating connection" in caught.value.cause
    assert "\n" not in caught.value.cause
    assert database.fetch("SELECT 1 AS one") == [{"one": 1}]
    database.close()


def test_an_unexpected_error_shows_no_traceback(client: TestClient, sql: Sql) -> None:
    sql("ALTER TABLE memories RENAME TO elsewhere")
    try:
        quiet = TestClient(client.app, raise_server_exceptions=False)
        answer = quiet.get("/memories")
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    finally:
        sql("ALTER TABLE elsewhere RENAME TO memories")
