"""`inv dev.load`: what is measured is what was waited for, and nothing goes beyond this machine or its bounds."""

from __future__ import annotations

import json
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from devstack.profiling.load import Outcome
from devstack.settings import variable_of
from tests.conftest import Project, wait_for

SVG = "{http://www.w3.org/2000/svg}"
ORDER = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")


def load(stack: Project, *args: str, **env: Any) -> dict[str, Any]:
    """What a load came to."""
    return dict(json.loads(stack.inv("dev.load", "--json", *args, **env).stdout))


def test_the_same_statement_is_compared_directly_and_through_pgbouncer(stack: Project, tmp_path: Path) -> None:
    calls = "SELECT sum(calls) FROM pg_stat_statements WHERE query LIKE '%pg_sleep%'"
    file = tmp_path / "load.svg"
    sql = "SELECT pg_sleep(0.03), 1 < 2; -- a comment"
    done = load(stack, "--rps", "20", "--seconds", "1", "--sql", sql, "--output", str(file))
    assert [one["target"] for one in done["targets"]] == ["db", "pgb", "api"]
    for one in done["targets"]:
        assert (one["planned"], one["sent"], one["done"], one["errors"], one["unsent"]) == (20, 20, 20, 0, 0)
        figures = [one[key] for key in ORDER]
        assert figures == sorted(figures)
        assert one["rps"] <= 20
    direct, pooled, _ = done["targets"]
    assert direct["p50_ms"] > 30
    assert pooled["p50_ms"] > 30
    assert done["notes"] == []
    # of each of the two: a first answer, one of every connection, and what is counted
    assert stack.query(calls, dbname="postgres") == [(2 * (1 + 8 + 20),)]

    drawing = ElementTree.parse(file).getroot()
    texts = [element.text or "" for element in drawing.iter(f"{SVG}text")]
    assert "nv-db: latency under load" in texts
    assert "20 requests a second for 1 s, over 8 connections" in texts
    assert "in a transaction that only reads: SELECT pg_sleep(0.03), 1 < 2; -- a comment" in texts
    assert texts.count("Latency in ms") == 2
    assert {"PostgreSQL directly", "through PgBouncer", "GET /health", "Seconds since the beginning"} <= set(texts)
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_answer_is_a_table_a_histogram_and_a_drawing(stack: Project) -> None:
    shown = stack.inv("dev.load", "--rps", "50", "--seconds", "1").stdout
    lines = shown.splitlines()
    assert lines[0].split() == ["sent", "done", "errors", "unsent", "rps", "p50", "p90", "p99", "max"]
    assert [line[:19].strip() for line in lines[1:4]] == ["PostgreSQL directly", "through PgBouncer", "GET /health"]
    assert lines[5].split() == ["latency", "PostgreSQL", "directly", "through", "PgBouncer", "GET", "/health"]
    counts = [
        int(word)
        for line in lines[6 : lines.index("", 6)]
        for word in line.split(" ms", 1)[1].split()
        if word.isdigit()
    ]
    assert sum(counts) == 150
    assert any(line.startswith("PgBouncer ") and "in the median" in line for line in lines)
    path = Path(lines[-1].removeprefix("drawn, for a browser: "))
    assert path.parent == stack.root / "logs"
    assert path.exists()


@pytest.mark.slow
def test_who_waits_for_a_connection_has_waited_since_it_was_due(stack: Project) -> None:
    sql = "SELECT pg_sleep(0.2)"
    flags = ("--rps", "20", "--seconds", "2", "--connections", "1", "--only", "db")
    done = stack.inv("dev.load", "--json", *flags, "--sql", sql)
    (one,) = json.loads(done.stdout)["targets"]
    assert one["planned"] == 40
    assert 1 <= one["sent"] <= 10
    assert one["unsent"] == 40 - one["sent"]
    # each takes 200 ms and is due 50 ms after the one before: the tenth has waited for more than a second
    assert one["max_ms"] > 200 + 150 * (one["sent"] - 1)
    assert done.stderr == ""
    shown = stack.inv("dev.load", *flags, "--sql", sql)
    assert "it does not keep up with this rate" in shown.stderr


def test_errors_are_counted_and_named(stack: Project) -> None:
    stack.inv("db.shell", "--command", "CREATE TABLE flag AS SELECT 1 AS x")
    sql = "SELECT 1 / x FROM flag"
    process = stack.popen("dev.load", "--json", "--only", "pgb", "--rps", "50", "--seconds", "3", "--sql", sql)
    begun = "SELECT calls >= 30 FROM pg_stat_statements WHERE query LIKE 'SELECT $1 / x%'"
    wait_for(lambda: stack.query(begun, dbname="postgres") == [(True,)])
    stack.inv("db.shell", "--command", "UPDATE flag SET x = 0")
    (one,) = json.loads(process.communicate(timeout=60)[0])["targets"]
    assert one["done"] >= 20
    assert one["errors"] > 0
    assert one["done"] + one["errors"] + one["unsent"] == one["planned"] == 150
    assert one["messages"] == {"division by zero": one["errors"]}


@pytest.mark.slow
def test_ctrl_c_shows_what_there_is_and_leaves_the_rest_out(stack: Project) -> None:
    process = stack.popen(
        "dev.load", "--json", "--rps", "50", "--seconds", "300", "--sql", "SELECT 4711 AS interrupted"
    )
    latest = (
        "SELECT max(query_start) FROM pg_stat_activity WHERE query LIKE '%interrupted%' AND pid <> pg_backend_pid()"
    )
    (opened,) = wait_for(lambda: stack.query(f"{latest} HAVING count(*) >= 8"))[0]
    # each connection has asked once, and the measurement begins
    wait_for(lambda: stack.query(latest)[0][0] > opened + timedelta(seconds=0.5))
    process.send_signal(signal.SIGINT)
    done = json.loads(process.communicate(timeout=30)[0])
    assert process.returncode == 0
    assert [one["target"] for one in done["targets"]] == ["db"]
    assert done["targets"][0]["seconds"] < 100
    assert done["notes"] == ["stopped during PostgreSQL directly"]
    wait_for(lambda: stack.query(latest) == [(None,)])


@pytest.mark.slow
def test_a_connection_for_each_request_is_a_new_one(stack: Project) -> None:
    sessions = "SELECT sessions FROM pg_stat_database WHERE datname = 'nina'"
    before = stack.query(sessions)[0][0]
    done = load(stack, "--only", "db", "--rps", "30", "--seconds", "1", "--reconnect")
    assert done["targets"][0]["done"] == 30
    wait_for(lambda: stack.query(sessions)[0][0] >= before + 30)


@pytest.mark.slow
def test_statements_only_read_unless_told_otherwise(stack: Project) -> None:
    stack.inv("db.shell", "--command", "CREATE TABLE written (x int)")
    write = "INSERT INTO written VALUES (1)"
    said = stack.inv("dev.load", "--sql", write, expect=2).stderr
    assert "cannot execute INSERT in a read-only transaction" in said
    assert "--write" in said
    for sneaky in (f"COMMIT; {write}", f"ROLLBACK; BEGIN; {write}; COMMIT", f"SET TRANSACTION READ WRITE; {write}"):
        assert "does not work" in stack.inv("dev.load", "--sql", sneaky, expect=2).stderr
    assert stack.query("SELECT count(*) FROM written") == [(0,)]
    flags = ("--only", "db", "--rps", "10", "--seconds", "1", "--connections", "2")
    assert load(stack, *flags, "--write", "--sql", write)["targets"][0]["done"] == 10
    assert stack.query("SELECT count(*) FROM written") == [(13,)]  # one ahead, and each connection's first


@pytest.mark.variations
@pytest.mark.parametrize(("path", "bind"), [("db.bind", "0.0.0.0"), ("pgb.bind", "192.0.2.7"), ("api.bind", "::")])
def test_a_stack_that_others_reach_is_refused(stack: Project, path: str, bind: str) -> None:
    said = stack.inv("dev.load", expect=2, **{variable_of(path): bind}).stderr
    assert f"dev.load is for a stack on this machine alone; {path} is {bind}" in said


@pytest.mark.variations
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--rps", "1001"), "--rps 1001 is not possible"),
        (("--rps", "0"), "from 0.1 to 1000"),
        (("--rps", "nan"), "--rps nan is not possible"),
        (("--seconds", "301"), "from 1 to 300"),
        (("--connections", "51"), "from 1 to 50"),
        (("--connections", "21"), "more than PgBouncer's pool has"),
        (("--path", "http://example.com/"), "is not a path of the application"),
        (("--path", "//example.com/"), "is not a path of the application"),
        (("--path", "/a b"), "is not a path of the application"),
        (("--only", "web"), "one of db, pgb, api"),
        (("--sql", "SELEC 1"), 'syntax error at or near "SELEC"'),
        (("--sql", " ; "), "--sql is empty"),
    ],
)
def test_bad_input_is_refused(stack: Project, args: tuple[str, ...], words: str) -> None:
    assert words in stack.inv("dev.load", *args, expect=2).stderr


def test_a_path_that_fails_is_said_before_anything_is_measured(stack: Project) -> None:
    said = stack.inv("dev.load", "--path", "/nothing", "--seconds", "300", expect=1).stderr
    assert "GET /nothing: /nothing answered 404" in said


@pytest.mark.slow
def test_what_does_not_run_is_left_out_unless_it_is_asked_for(project: Project) -> None:
    project.inv("db.start")
    done = load(project, "--rps", "10", "--seconds", "1")
    assert [one["target"] for one in done["targets"]] == ["db"]
    assert done["notes"] == ["left out: nv-pgbouncer is stopped", "left out: nv-api is stopped"]
    assert "inv dev.up" in project.inv("dev.load", "--only", "pgb", expect=1).stderr


def test_a_dry_run_sends_nothing(stack: Project) -> None:
    before = stack.log("nv-api")
    shown = stack.inv("--dry", "dev.load").stdout
    assert shown.splitlines() == [f"# 50 requests a second for 10 s: {key}" for key in ("db", "pgb", "api")]
    assert stack.log("nv-api") == before


def outcome(latencies: list[float]) -> Outcome:
    return Outcome("db", "", len(latencies), len(latencies), 0, 1.0, {}, [0.0] * len(latencies), latencies)


def test_a_percentile_is_an_answer_that_was_measured() -> None:
    hundred = outcome([float(value) for value in range(100, 0, -1)])
    assert [hundred.percentile(p) for p in (50, 90, 99, 99.9, 100)] == [50, 90, 99, 100, 100]
    assert outcome([7.0]).percentile(50) == 7
    assert outcome([]).percentile(99) is None
