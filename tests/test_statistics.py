"""`inv db.stats` and `inv pgb.stats` on the real thing: each figure is what was done to the database before."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Project, wait_for


def stats(project: Project, what: str = "db.stats", **env: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(project.inv(what, "--json", **env).stdout)
    return answer


def row(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The one row with these values."""
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def in_maintenance(project: Project, sql: str) -> list[tuple[Any, ...]]:
    return project.query(sql, dbname="postgres")


def loaded(project: Project) -> str:
    text: str = project.query("SHOW shared_preload_libraries")[0][0]
    return text


# pg_stat_statements


def test_statements_are_counted_where_no_dump_of_the_user_s_database_has_it(stack: Project) -> None:
    assert loaded(stack) == "pg_stat_statements,auto_explain"
    assert in_maintenance(stack, "SELECT count(*) FROM pg_extension WHERE extname = 'pg_stat_statements'") == [(1,)]
    assert stack.query("SELECT pg_has_role('nina', 'pg_monitor', 'member')") == [(True,)]

    choices = json.loads((stack.state / "choices.json").read_text())
    dump = subprocess.run(
        [f"{choices['postgres_bin']}/pg_dump", "-h", "127.0.0.1", "-p", str(stack.db_port), "-U", "nina", "nina"],
        env={"PGPASSWORD": stack.secrets()["db_password"], "LD_LIBRARY_PATH": f"{choices['postgres_bin']}/../lib"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "CREATE TABLE public.memories" in dump
    assert "pg_stat_statements" not in dump
    assert "pg_monitor" not in dump


def test_no_password_is_among_the_statements_that_are_kept(stack: Project) -> None:
    stack.inv("db.shell", "--admin", "--command", "ALTER ROLE nina VALID UNTIL 'infinity'")
    texts = [text for (text,) in in_maintenance(stack, "SELECT query FROM pg_stat_statements")]
    assert [text for text in texts if "alembic_version" in text]
    assert [text for text in texts if "ALTER ROLE" in text or stack.secrets()["db_password"] in text] == []


@pytest.mark.slow
def test_the_user_s_own_libraries_are_loaded_too_and_none_twice(project: Project) -> None:
    for theirs, all_of_them in (
        ("auto_explain", "pg_stat_statements,auto_explain"),
        ("auto_explain, pg_stat_statements", "auto_explain, pg_stat_statements"),
        ("", "pg_stat_statements,auto_explain"),
    ):
        project.inv("db.start", INVOKE_DB_PARAMETERS=json.dumps({"Shared_Preload_Libraries": theirs}))
        assert loaded(project) == all_of_them


@pytest.mark.slow
def test_statistics_without_counted_statements_say_why(project: Project) -> None:
    off: dict[str, Any] = {"INVOKE_DB_TRACK_STATEMENTS": "false"}
    project.inv("db.start", **off)
    assert loaded(project) == ""
    reason = "not counted: db.track_statements is false, from variable INVOKE_DB_TRACK_STATEMENTS"
    answer = stats(project, **off)
    assert answer["missing"] == {"statements_by_total_time": reason, "statements_by_mean_time": reason}
    assert answer["statements_by_total_time"] == []
    assert f"Statements by their time altogether\n{reason}\n" in project.inv("db.stats", **off).stdout
    metrics = json.loads(project.inv("metrics", "--json", **off).stdout)
    assert metrics["postgres"]["statements_missing"] == reason
    assert metrics["postgres"]["total"]["transactions"] > 0

    # before the restart that loads it, and after that
    assert "inv db.start loads pg_stat_statements" in stats(project)["missing"]["statements_by_total_time"]
    project.inv("db.shell", "--admin", "--command", "REVOKE pg_monitor FROM nina")
    project.inv("db.start")
    assert stats(project)["missing"] == {}
    assert project.query("SELECT pg_has_role('nina', 'pg_monitor', 'member')") == [(True,)]


# the database


@pytest.fixture(scope="module")
def table(stack: Project) -> Iterator[str]:
    """A table of 100 rows, of which nobody but the test takes care."""
    stack.inv(
        *("db.shell", "--command"),
        "CREATE TABLE counted (id int PRIMARY KEY, v int) WITH (autovacuum_enabled = off);"
        "INSERT INTO counted SELECT n, n FROM generate_series(1, 100) n;"
        "CREATE INDEX counted_v ON counted (v); CREATE UNIQUE INDEX counted_u ON counted (id, v)",
    )
    yield "public.counted"
    stack.inv("db.shell", "--command", "DROP TABLE counted")


def test_dead_rows_are_shown_until_they_are_vacuumed(stack: Project, table: str) -> None:
    stack.inv("db.shell", "--command", "DELETE FROM counted WHERE id > 60")
    dead = wait_for(lambda: [t for t in stats(stack)["tables"] if t["table"] == table and t["dead_rows"]])[0]
    assert (dead["rows"], dead["dead_rows"], dead["dead_ratio"], dead["vacuum_age_s"]) == (60, 40, 0.4, None)
    assert dead["size_bytes"] == dead["table_bytes"] + dead["index_bytes"]
    assert dead["index_bytes"] == 3 * 16384

    stack.inv("db.shell", "--command", "VACUUM counted")
    vacuumed = wait_for(lambda: [t for t in stats(stack)["tables"] if t["table"] == table and not t["dead_rows"]])[0]
    assert vacuumed["rows"] == 60
    assert 0 <= vacuumed["vacuum_age_s"] < 60


def test_an_index_is_unused_until_it_is_used_and_a_unique_one_has_a_task_anyway(stack: Project, table: str) -> None:
    unused = {index["index"] for index in stats(stack)["unused_indexes"]}
    assert "public.counted_v" in unused
    assert unused.isdisjoint({"public.counted_pkey", "public.counted_u"})
    kinds = {index["index"]: index["kind"] for index in stats(stack)["indexes"]}
    assert (kinds["public.counted_v"], kinds["public.counted_pkey"]) == ("btree", "primary key")

    stack.inv("db.shell", "--command", "SET enable_seqscan = off; SELECT count(*) FROM counted WHERE v = 7")
    wait_for(lambda: "public.counted_v" not in {index["index"] for index in stats(stack)["unused_indexes"]})


def test_cache_hits_of_a_table(stack: Project, table: str) -> None:
    cache = wait_for(lambda: row(stats(stack)["cache"], table=table))
    assert cache["table_hit_ratio"] == 1.0
    assert cache["hit_bytes"] > 0 == cache["hit_bytes"] % 8192
    assert cache["read_bytes"] % 8192 == 0


def test_statements_are_counted_by_their_shape_without_our_own(stack: Project, table: str) -> None:
    for n in range(5):
        stack.query(f"SELECT id, v FROM counted WHERE v = {n} ORDER BY 1")
    stack.query("SELECT pg_sleep(0.2)")
    answer = stats(stack)
    counted = row(answer["statements_by_total_time"], statement="SELECT id, v FROM counted WHERE v = $1 ORDER BY 1")
    assert (counted["calls"], counted["rows"], counted["user"]) == (5, 4, "nina")
    assert counted["total_ms"] == pytest.approx(5 * counted["mean_ms"], abs=0.01)
    assert counted["max_ms"] >= counted["mean_ms"] > 0
    totals = [s["total_ms"] for s in answer["statements_by_total_time"]]
    means = [s["mean_ms"] for s in answer["statements_by_mean_time"]]
    assert (totals, means) == (sorted(totals, reverse=True), sorted(means, reverse=True))
    assert "pg_sleep" in answer["statements_by_mean_time"][0]["statement"]
    assert sum(s["share_ratio"] for s in answer["statements_by_total_time"]) == pytest.approx(1, abs=0.05)
    texts = [s["statement"] for s in stats(stack)["statements_by_total_time"]]
    assert [text for text in texts if "pg_stat_user_tables" in text] == []


@contextlib.contextmanager
def transaction(project: Project, sql: str, **kwargs: Any) -> Iterator[int]:
    """A transaction that did something and is left open; its process id."""
    connection = project.connect(**kwargs)
    try:
        cursor = connection.cursor()
        cursor.execute(f"BEGIN; {sql}")
        yield connection.info.backend_pid
    finally:
        connection.close()


def test_who_waits_for_a_lock_is_shown_with_who_holds_it(stack: Project, table: str) -> None:
    change = "UPDATE counted SET v = v + 1 WHERE id = 1"
    waiting = stack.connect(application_name="waiter")
    waiter = threading.Thread(target=lambda: waiting.cursor().execute(change))
    with transaction(stack, change, application_name="holder") as holder:
        waiter.start()
        blocked = wait_for(lambda: stats(stack)["blocking"])
        shown = stack.inv("db.stats").stdout
        answer = stats(stack)
    waiter.join(20)
    pid = waiting.info.backend_pid
    waiting.close()

    assert [(b["pid"], b["blocked_by"], b["table"], b["blocker"]) for b in blocked] == [
        (pid, holder, "counted", "holder")
    ]
    assert (blocked[0]["lock"], blocked[0]["blocker_state"]) == ("ShareLock", "idle in transaction")
    assert blocked[0]["statement"] == change
    assert blocked[0]["blocker_statement"] == f"BEGIN; {change}"
    line = rf"{pid} +\d+ s  ShareLock  counted +{holder}  holder +idle in transaction  {re.escape(change)}"
    assert re.search(f"^ *{line}$", shown, re.M)

    assert row(answer["transactions"], pid=holder)["state"] == "idle in transaction"
    assert row(answer["transactions"], pid=pid)["waits_for"] == "Lock: transactionid"
    assert row(answer["locks"], object="counted", mode="RowExclusiveLock")["held"] == 2
    assert row(answer["locks"], object="transactionid", mode="ShareLock") == {
        "object": "transactionid",
        "mode": "ShareLock",
        "held": 0,
        "waiting": 1,
    }
    assert row(answer["connections_by_state"], state="idle in transaction")["connections"] == 1
    assert row(answer["connections_by_application"], application="holder")["busy"] == 1
    wait_for(lambda: stats(stack)["blocking"] == [])


def test_a_table_that_somebody_has_for_himself_is_shown_without_its_size(stack: Project, table: str) -> None:
    with transaction(stack, "LOCK TABLE counted IN ACCESS EXCLUSIVE MODE", application_name="alone"):
        answer = stats(stack)
    locked = row(answer["tables"], table=table)
    assert (locked["size_bytes"], locked["table_bytes"], locked["index_bytes"]) == (None, None, None)
    assert row(answer["tables"], table="public.memories")["size_bytes"] > 0
    assert row(answer["locks"], object="counted", mode="AccessExclusiveLock")["held"] == 1
    with transaction(stack, "REINDEX INDEX counted_v"):
        answer = stats(stack)
    assert row(answer["indexes"], index="public.counted_v")["size_bytes"] is None
    assert row(answer["indexes"], index="public.counted_pkey")["size_bytes"] == 16384
    assert row(answer["tables"], table=table)["size_bytes"] is None


def test_a_password_in_a_running_statement_is_not_shown(stack: Project) -> None:
    with transaction(stack, "ALTER ROLE nina PASSWORD 'it''s geheim'") as pid:
        answer = stats(stack)
    assert row(answer["transactions"], pid=pid)["statement"] == "BEGIN; ALTER ROLE nina PASSWORD '***'"
    assert "geheim" not in json.dumps(answer)


def normalised(text: str) -> str:
    """Without what differs from run to run: every number is 0, without a unit, and columns are one space apart."""
    text = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", text)
    text = re.sub(r"\d+([.,]\d+)*(%| (kB|MB|B|ms|s|min)\b)?", "0", text)
    return "\n".join(re.sub(r" +", " ", line).strip() for line in text.splitlines())


DATABASE = """\
Database
database nina
server version 0
uptime 0
size 0
connections 0
max connections 0
commits 0
rollbacks 0
cache hit 0
temp 0
deadlocks 0
stats reset -

Tables
table size table index rows dead rows vacuumed analyzed
public.one 0 0 0 0 0 never never

Indexes
index table size scans kind
public.one_pkey one 0 0 primary key

Indexes that were never used
none

Cache hits
table table hit index hit hit read
public.one 0 0 0 0

Statements by their time altogether
calls total mean max rows statement
0 0 0 0 0 INSERT INTO one SELECT n, $0 FROM generate_series($0, $0) n WHERE n > $0 AND n …

Statements by their time for one call
calls total mean max rows statement
0 0 0 0 0 INSERT INTO one SELECT n, $0 FROM generate_series($0, $0) n WHERE n > $0 AND n …

Connections by state
none

Connections by application
none

Open transactions
none

Who waits for whom
none

Locks
none

Extensions
extension version
plpgsql 0
uuid-ossp 0
vector 0
"""


def test_the_display_of_a_database_as_a_whole(project: Project) -> None:
    project.inv("db.start")
    in_maintenance(project, "SELECT 1")
    project.query("CREATE TABLE one (id int PRIMARY KEY, text text) WITH (autovacuum_enabled = off); SELECT 1")
    project.query(
        "INSERT INTO one SELECT n,\n 'some text' FROM generate_series(1, 50) n WHERE n > 0 AND n < 90 AND n <> 91"
        " AND n <> 92 AND n <> 93 RETURNING 1"
    )
    shown = wait_for(lambda: "public.one_pkey" in (text := project.inv("db.stats").stdout) and text)
    statement = r"^ *\d+ .* SELECT \$1$\n|^ *\d+ .*  (SELECT|CREATE|SHOW)\b.*\n"
    assert normalised(re.sub(statement, "", shown, flags=re.M)) + "\n" == DATABASE
    assert max(map(len, shown.splitlines())) == 120
    assert "\x1b" not in shown


def test_a_long_table_is_cut_for_people_and_whole_for_programs(stack: Project) -> None:
    stack.inv(
        "db.shell", "--command", "CREATE SCHEMA many; " + "".join(f"CREATE TABLE many.t{n} ();" for n in range(12))
    )
    try:
        tables = len(stats(stack)["tables"])
        shown = stack.inv("db.stats").stdout.split("\n\n")[1].splitlines()
        assert tables >= 14
        assert (len(shown), shown[-1]) == (2 + 10 + 1, f"and {tables - 10} more, see --json")
    finally:
        stack.inv("db.shell", "--command", "DROP SCHEMA many CASCADE")


# the pooler


@pytest.fixture
def pooler(project: Project) -> Project:
    """PgBouncer with one connection to the database, and no application."""
    project.env["INVOKE_PGB_DEFAULT_POOL_SIZE"] = "1"
    project.inv("pgb.start")
    return project


POOLER = """\
Pools
database user pool mode pool size servers active used clients active clients waiting longest wait
nina nina session 0 0 0 0 0 0

Databases
database server name there pool size reserve size max connections connections paused disabled
nina ADDRESS nina 0 0 - 0 no no

Traffic
database transactions queries received sent recent transaction recent query recent wait total wait
nina 0 0 0 0 0 0 0 0

Clients
user database application address state connected last request wait
nina nina held ADDRESS active 0 ago 0 ago 0

Servers
user database application address state connected last request wait server pid
nina nina held ADDRESS active 0 ago 0 ago 0 0

Lists
databases 0
users 0
pools 0
free clients 0
used clients 0
login clients 0
free servers 0
used servers 0
dns names 0
dns zones 0
dns queries 0
dns pending 0
"""


@pytest.mark.slow
def test_a_full_pool_is_shown_with_who_waits(pooler: Project) -> None:
    before = stats(pooler, "pgb.stats")
    with transaction(pooler, "SELECT 1", port=pooler.pgb_port, application_name="held"):
        shown = pooler.inv("pgb.stats").stdout
        alone = stats(pooler, "pgb.stats")
        waiter = threading.Thread(target=lambda: pooler.query("SELECT 2", port=pooler.pgb_port))
        waiter.start()
        full = wait_for(lambda: (s := stats(pooler, "pgb.stats")) and s["pools"][0]["clients_waiting"] and s)
    waiter.join(20)

    assert normalised(shown) + "\n" == POOLER
    assert max(map(len, shown.splitlines())) <= 120
    (pool,) = alone["pools"]
    assert (pool["pool_size"], pool["servers"], pool["servers_active"], pool["used_ratio"]) == (1, 1, 1, 1.0)
    assert (pool["clients_active"], pool["clients_waiting"], pool["longest_wait_s"]) == (1, 0, 0)
    (pool,) = full["pools"]
    assert (pool["clients_active"], pool["clients_waiting"]) == (1, 1)
    assert pool["longest_wait_s"] > 0
    assert sorted(client["state"] for client in full["clients"]) == ["active", "waiting"]
    assert len(full["servers"]) == 1
    assert 0 <= full["clients"][0]["request_age_s"] <= full["clients"][0]["connect_age_s"] < 60
    assert full["lists"][0]["used_servers"] == 1

    after = stats(pooler, "pgb.stats")["traffic"][0]
    queries = {row["database"]: row["queries"] for row in before["traffic"]}
    assert after["queries"] - queries.get("nina", 0) == 2
    assert after["total_wait_ms"] > 0
    assert after["received_bytes"] > 0 < after["sent_bytes"]


@pytest.mark.variations
@pytest.mark.parametrize(("what", "service"), [("db.stats", "nv-db does not answer"), ("pgb.stats", "nv-pgbouncer")])
def test_statistics_of_what_does_not_run_say_how_to_start_it(project: Project, what: str, service: str) -> None:
    failed = project.inv(what, expect=1)
    assert failed.stdout == ""
    assert service in failed.stderr
    assert re.search(r"^fix: +inv (db|pgb)\.start$", failed.stderr, re.M)
