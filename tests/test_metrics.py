"""`inv metrics` on the real thing: so many requests are so many more in the figures."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import threading
import urllib.request
from collections import Counter
from typing import Any

import psycopg2.errors
import pytest
from prometheus_client.parser import text_string_to_metric_families

from devstack.metrics import application, display, exposition
from devstack.metrics.application import Requests
from devstack.metrics.sampling import Sample
from devstack.runtimes import ServiceState
from tests.conftest import Project, wait_for

NOBODY = "00000000-0000-0000-0000-000000000000"


def metrics(project: Project, *flags: str, expect: int = 0, **env: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(project.inv("metrics", "--json", *flags, expect=expect, **env).stdout)
    return answer


# the application


def test_requests_are_counted_exactly_without_those_that_only_ask_how_it_is(stack: Project) -> None:
    before = metrics(stack)["api"]["total"]
    for _ in range(7):
        assert stack.http(f"/memories/{NOBODY}")[0] == 404
    for _ in range(5):
        assert stack.http("/memories", {"content": "something to remember"})[0] == 201
    for path in ("/health", "/health/detailed"):
        stack.http(path)
    after = metrics(stack)["api"]["total"]
    assert after["requests"] - before["requests"] == 12
    assert after["errors_4xx"] - before["errors_4xx"] == 7
    assert after["errors_5xx"] == before["errors_5xx"] == 0
    assert after["errors_4xx_ratio"] == pytest.approx(after["errors_4xx"] / after["requests"], abs=0.0001)
    assert 0 < after["p50_ms"] <= after["p95_ms"] <= after["p99_ms"] <= 10_000


def test_what_happens_now_is_apart_from_the_total(stack: Project) -> None:
    stack.http(f"/memories/{NOBODY}")
    quiet = metrics(stack, "--interval", "0.3")
    assert quiet["api"]["now"]["requests"] == 0
    assert (quiet["api"]["now"]["requests_per_s"], quiet["api"]["now"]["p50_ms"]) == (0, None)
    assert quiet["api"]["total"]["requests"] > 0

    enough = threading.Event()
    traffic = threading.Thread(target=lambda: [stack.http(f"/memories/{NOBODY}") for _ in iter(enough.is_set, True)])
    traffic.start()
    watching = stack.popen("metrics", "--watch", "0.3", "--json")
    try:
        assert watching.stdout is not None
        busy = next(
            reading for line in watching.stdout if (reading := json.loads(line))["api"]["now"]["errors_4xx_ratio"] == 1
        )
    finally:
        enough.set()
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=20)
        traffic.join(20)
    now = busy["api"]["now"]
    assert now["requests_per_s"] > 0 < now["p99_ms"]
    assert now["requests"] == now["errors_4xx"] < busy["api"]["total"]["requests"]
    assert busy["pgbouncer"]["now"]["queries_per_s"] > 0


APPLICATIONS = {
    "prometheus-client": """
# TYPE http_requests_total counter
http_requests_total{method="GET",path="/x",status="200"} 6
http_requests_total{method="GET",path="/x",status="404"} 3
http_requests_total{method="GET",path="/x",status="503"} 1
http_requests_total{method="GET",path="/health",status="200"} 90
""",
    "prometheus-fastapi-instrumentator": """
# TYPE http_requests_total counter
http_requests_total{handler="/x",method="GET",status="2xx"} 6
http_requests_total{handler="/x",method="GET",status="4xx"} 3
http_requests_total{handler="/x",method="GET",status="5xx"} 1
http_requests_total{handler="/health",method="GET",status="2xx"} 90
# TYPE http_requests_created gauge
http_requests_created{handler="/x",method="GET",status="2xx"} 1.7e9
# TYPE http_requests_inprogress gauge
http_requests_inprogress{handler="/x",method="GET"} 2
""",
    "starlette_exporter": """
# TYPE starlette_requests_total counter
starlette_requests_total{app_name="x",method="GET",path="/x",status_code="200"} 6
starlette_requests_total{app_name="x",method="GET",path="/x",status_code="404"} 3
starlette_requests_total{app_name="x",method="GET",path="/x",status_code="503"} 1
# TYPE starlette_requests_in_progress gauge
starlette_requests_in_progress{app_name="x",method="GET"} 2
""",
}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_requests_are_found_as_several_instrumentations_name_them(name: str) -> None:
    found = application.parse(APPLICATIONS[name], {"/health"})
    assert found.requests is not None
    assert found.requests.by_class == {"2": 6, "4": 3, "5": 1}
    assert found.in_progress == (None if name == "prometheus-client" else 2)


def test_an_application_that_counts_no_requests_says_so() -> None:
    found = application.parse("# TYPE python_info gauge\npython_info 1\n", set())
    assert found.requests is None
    assert found.families == {"python_info"}
    assert found.missing == "it counts no requests by status, as http_requests_total would"


@pytest.mark.parametrize(
    ("share", "seconds"), [(0.25, 0.05), (0.5, 0.1), (0.6, 0.325), (0.75, 0.6625), (0.9, 1.0), (0.99, 1.0)]
)
def test_a_percentile_is_interpolated_within_its_bucket_as_prometheus_does(share: float, seconds: float) -> None:
    # 10 of 20 up to 0.1 s, 8 more up to 1 s, 2 longer than that
    requests = Requests(0, {"2": 20}, {0.1: 10, 1.0: 18, math.inf: 20})
    assert requests.quantile(share) == pytest.approx(seconds)


def test_there_is_no_percentile_of_nothing() -> None:
    assert Requests(0, {}, {}).quantile(0.5) is None
    assert Requests(0, {}, {1.0: 0, math.inf: 0}).quantile(0.5) is None


def test_what_another_process_counted_is_not_compared() -> None:
    earlier = Requests(100, {"2": 20}, {math.inf: 20})
    assert Requests(100, {"2": 25, "4": 1}, {math.inf: 26}).since(earlier) == Requests(
        100, {"2": 5, "4": 1}, {math.inf: 6}
    )
    assert Requests(101, {"2": 25}, {math.inf: 25}).since(earlier) is None
    assert Requests(100, {"2": 5}, {math.inf: 5}).since(earlier) is None


# the database, the pooler, the processes


@pytest.mark.slow
def test_what_reads_the_database_is_not_in_its_figures(stack: Project) -> None:
    # what others did before, PostgreSQL may count up to a minute later: once, not again and again
    for attempt in ("first", "second", "third"):
        added, after = written(stack, f"written_{attempt}")
        if added["transactions"] < 8:
            break
    # besides the rows, those of the catalogue; the connection's own start is a transaction
    assert 100 <= added["rows_written"] < 150
    # and a worker of autovacuum may come by meanwhile
    assert 1 <= added["transactions"] < 8
    assert 0.5 < after["total"]["cache_hit_ratio"] <= 1
    assert after["size_bytes"] > 5_000_000
    assert (after["max_connections"], after["total"]["deadlocks"]) == (100, 0)
    assert "INSERT INTO written" in "".join(s["statement"] for s in after["statements"])


def written(stack: Project, table: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A hundred rows in a new table: what they add to the totals, and all figures afterwards."""
    wait_for(lambda: metrics(stack)["postgres"]["total"] == metrics(stack)["postgres"]["total"])
    before = metrics(stack)["postgres"]
    stack.query(f"CREATE TABLE {table} (n int); INSERT INTO {table} SELECT generate_series(1, 100) RETURNING n")
    after = wait_for(lambda: (m := metrics(stack)["postgres"])["total"] != before["total"] and m)
    stack.inv("db.shell", "--command", f"DROP TABLE {table}")
    return {name: after["total"][name] - before["total"][name] for name in ("rows_written", "transactions")}, after


def test_a_connection_and_its_queries_through_pgbouncer(stack: Project) -> None:
    before = metrics(stack)
    connection = stack.connect(stack.pgb_port)
    try:
        with connection.cursor() as cursor:
            for n in range(9):
                cursor.execute("SELECT pg_sleep(%s)", (0.02 if n else 0.2,))
        after = metrics(stack)
    finally:
        connection.close()
    total, earlier = after["pgbouncer"]["total"], before["pgbouncer"]["total"]
    assert total["queries"] - earlier["queries"] == 9
    assert total["transactions"] - earlier["transactions"] == 9
    assert total["received_bytes"] - earlier["received_bytes"] > 9 * len("SELECT pg_sleep(0.02)")
    spent = total["query_ms"] * total["queries"] - earlier["query_ms"] * earlier["queries"]
    assert spent == pytest.approx(360, rel=0.5)
    assert after["pgbouncer"]["clients_active"] == before["pgbouncer"]["clients_active"] + 1
    assert after["pgbouncer"]["pool_size"] == 20


def test_processor_time_and_memory_of_each_service(stack: Project) -> None:
    quiet = metrics(stack)
    assert [s["service"] for s in quiet["services"]] == ["nv-db", "nv-pgbouncer", "nv-api"]
    assert all(s["up"] and s["state"] == "running" and s["reason"] == "" for s in quiet["services"])
    assert all(s["memory_bytes"] > 1 << 20 and s["processes"] >= 1 for s in quiet["services"])
    assert all(0 <= s["cpu_ratio"] < 8 and 0 <= s["uptime_s"] < 3600 for s in quiet["services"])

    connection = stack.connect()

    def work() -> None:
        with contextlib.suppress(psycopg2.errors.QueryCanceled):
            connection.cursor().execute("SELECT count(*) FROM generate_series(1, 10000000000)")

    worker = threading.Thread(target=work)
    worker.start()
    try:
        wait_for(lambda: metrics(stack)["services"][0]["cpu_ratio"] > 0.2)
    finally:
        connection.cancel()
        worker.join(20)
        connection.close()


# what is not there


@pytest.mark.variations
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "it has no metrics (api.metrics_path is empty)"),
        ("/nothing", "/nothing answered 404; set api.metrics_path, empty if there is none"),
        ("/health", "/health is not in Prometheus' text format: "),
    ],
)
def test_an_application_without_metrics_leaves_out_its_part_and_says_so(stack: Project, path: str, reason: str) -> None:
    answer = metrics(stack, INVOKE_API_METRICS_PATH=path)
    assert answer["api"]["missing"].startswith(reason)
    assert answer["api"]["total"] is None
    assert [service["up"] for service in answer["services"]] == [True, True, True]
    assert answer["postgres"]["total"]["transactions"] > 0
    shown = stack.inv("metrics", INVOKE_API_METRICS_PATH=path).stdout
    assert f"\nnv-api: {reason}" in shown
    assert "requests" not in shown
    families = exposed(stack, INVOKE_API_METRICS_PATH=path)
    assert values(families, "nv_service_up") == {"nv-db": 1, "nv-pgbouncer": 1, "nv-api": 1}


STOPPED = """\
TIME

service state CPU memory processes up
nv-db stopped - - - -
nv-pgbouncer stopped - - - -
nv-api stopped - - - -
"""


@pytest.mark.slow
def test_a_service_that_is_down_does_not_stop_the_rest(project: Project) -> None:
    nothing = project.inv("metrics", expect=1)
    assert normalised(nothing.stdout) == STOPPED
    assert nothing.stderr == "there is nothing to read; inv dev.up starts the stack\n"
    assert metrics(project, expect=1)["postgres"]["total"] is None

    project.inv("pgb.start")
    answer = metrics(project)
    assert [(s["state"], s["up"]) for s in answer["services"]] == [("running", True)] * 2 + [("stopped", False)]
    assert answer["api"]["total"] is None
    assert answer["pgbouncer"]["total"]["queries"] >= 0

    database = project.pids()["nv-db"]
    os.kill(database, signal.SIGSTOP)
    try:
        answer = metrics(project)
        families = exposed(project)
        shown = project.inv("metrics").stdout
    finally:
        os.kill(database, signal.SIGCONT)
    assert [service["up"] for service in answer["services"]] == [False, True, False]
    assert answer["postgres"]["total"] is None
    assert answer["pgbouncer"]["now"]["queries"] == 0
    assert re.search(r"^nv-db +not answering ", shown, re.M)
    assert re.search(rf"^nv-db: .*(timeout|no answer within).*pid {database} was stopped \(SIGSTOP\)", shown, re.M)
    assert values(families, "nv_service_up") == {"nv-db": 0, "nv-pgbouncer": 1, "nv-api": 0}


# for Prometheus


def exposed(project: Project, **env: Any) -> dict[str, Any]:
    text = project.inv("metrics", "--prometheus", **env).stdout
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    for what in ("HELP", "TYPE"):
        said = re.findall(rf"^# {what} (\S+)", text, re.M)
        assert len(said) == len(set(said)) == len(families)
    samples = [(s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples]
    assert len(samples) == len(set(samples))
    return {family.name: family for family in families}


def values(families: dict[str, Any], name: str) -> dict[str, float]:
    return {next(iter(s.labels.values()), ""): s.value for s in families[name].samples}


def test_one_exposition_has_all_three_services(stack: Project) -> None:
    stack.http(f"/memories/{NOBODY}")
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.api_port}/metrics") as response:
        theirs = {f.name: f for f in text_string_to_metric_families(response.read().decode())}
    families = exposed(stack)
    assert theirs.keys() == {name for name in families if not name.startswith("nv_")}
    for name in ("http_requests", "http_request_duration_seconds"):
        assert {(s.name, *s.labels.values()) for s in families[name].samples} >= {
            (s.name, *s.labels.values()) for s in theirs[name].samples
        }
    not_found = [s.value for s in families["http_requests"].samples if s.labels.get("status") == "404"]
    assert sum(not_found) == metrics(stack)["api"]["total"]["errors_4xx"]

    assert values(families, "nv_service_up") == {"nv-db": 1, "nv-pgbouncer": 1, "nv-api": 1}
    assert all(value > 1 << 20 for value in values(families, "nv_service_memory_bytes").values())
    assert values(families, "nv_service_cpu_seconds").keys() == {"nv-db", "nv-pgbouncer", "nv-api"}
    assert values(families, "nv_postgres_max_connections") == {"": 100}
    assert values(families, "nv_postgres_transactions")["commit"] > 0
    assert values(families, "nv_pgbouncer_pool_size") == {"nina": 20}
    assert {families[name].type for name in ("nv_pgbouncer_queries", "nv_postgres_statement_calls")} == {"counter"}
    read = metrics(stack)["pgbouncer"]["total"]["queries"]
    assert values(exposed(stack), "nv_pgbouncer_queries") == {"nina": read}


def test_an_application_s_own_family_of_the_same_name_is_the_one_that_stays() -> None:
    theirs = "# HELP nv_service_up Theirs.\n# TYPE nv_service_up gauge\nnv_service_up 7.0"
    states = {"db": ServiceState("nv-db", "running", 1, 100.0)}
    text = exposition.render(Sample({}, states, {}, application.parse(theirs, set()), None, None, {}))
    assert text == (
        f"{theirs}\n"
        "# HELP nv_service_start_time_seconds When it was started, since the epoch.\n"
        "# TYPE nv_service_start_time_seconds gauge\n"
        'nv_service_start_time_seconds{service="nv-db"} 100.0\n'
    )


# for people


def normalised(text: str) -> str:
    """Without what differs from run to run: every number is 0, without a unit, and columns are one space apart."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", text)
    text = re.sub(r"\d+([.,]\d+)*(%| (kB|MB|B|ms|s|min)\b)?", "0", text)
    return "".join(re.sub(r" +", " ", line).strip() + "\n" for line in text.splitlines())


WHOLE = """\
TIME over 0

service state CPU memory processes up
nv-db running 0 0 0 0
nv-pgbouncer running 0 0 0 0
nv-api running 0 0 0 0

API now total PostgreSQL now total PgBouncer now total
requests 0/s 0 transactions 0/s 0 queries 0/s 0
client errors (0xx) - 0 rolled back - 0 received 0/s 0
server errors (0xx) - 0 cache hits - 0 sent 0/s 0
latency p0 - 0 rows read 0 0 time of a query - 0
latency p0 - 0 rows written 0 0 wait for a server - 0
latency p0 - 0 deadlocks 0 0 clients 0
connections lent 0 of 0 connections 0 of 0 clients waiting 0
of these active 0 longest wait 0
database size 0 servers in use 0 of 0

share total mean calls statement
"""


def test_the_display_as_a_whole(stack: Project) -> None:
    stack.http(f"/memories/{NOBODY}")
    wait_for(lambda: metrics(stack)["postgres"]["now"]["transactions"] == 0)
    shown = wait_for(lambda: (t := stack.inv("metrics").stdout) and " -  " in t.split("cache hits")[1][:20] and t)
    assert normalised(shown).startswith(WHOLE)
    assert len(shown.splitlines()) == len(WHOLE.splitlines()) + display.STATEMENTS
    assert max(map(len, shown.splitlines())) <= 120
    assert "\x1b" not in shown


@pytest.fixture
def watched(stack: Project) -> str:
    """Three screens in a pipe, ended by Ctrl-C."""
    process = stack.popen("metrics", "--watch", "0.3", "--plain")
    assert process.stdout is not None
    lines: list[str] = []
    try:
        while sum(line.startswith("20") for line in lines) < 4:
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    return "".join(lines[:-1])


@pytest.mark.slow
def test_in_a_pipe_screens_follow_one_another_without_escapes_and_in_ascii(watched: str) -> None:
    assert "\x1b" not in watched
    assert watched.isascii()
    screens = re.split(r"\n\n(?=20)", watched.rstrip("\n"))
    assert len(screens) == 3
    for count, screen in enumerate(screens, start=1):
        memory = re.search(r"^nv-db +running +\S+ +[_.:=+*# -]+ +\d+ MB +([_.:=+*#-]+) ", screen, re.M)
        assert memory is not None
        assert len(memory[1]) == count


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([0, 0, 0], "▁▁▁"),
        ([5, None, 10], "▅ █"),
        ([None, None], "  "),
        ([], ""),
    ],
)
def test_a_sparkline_has_the_highest_value_full_and_a_blank_for_none(values: list[float | None], line: str) -> None:
    assert display.sparkline(values, display.BARS) == line
    assert display.sparkline(values, display.PLAIN_BARS).isascii()


@pytest.mark.variations
@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        (["--watch", "0.1"], "error: --watch 0.1 is not a number of seconds"),
        (["--watch", "often"], "error: --watch often is not a number of seconds"),
        (["--interval", "nan"], "error: --interval nan is not a number of seconds"),
        (["--interval", "0"], "error: --interval 0 is not a number of seconds"),
        (["--prometheus", "--json"], "error: --prometheus and --json exclude each other"),
        (["--prometheus", "--watch"], "error: --prometheus and --watch exclude each other"),
    ],
)
def test_flags_that_make_no_sense_are_refused(stack: Project, flags: list[str], refused: str) -> None:
    answer = stack.inv("metrics", *flags, expect=2)
    assert answer.stdout == ""
    assert answer.stderr.splitlines()[0] == refused
