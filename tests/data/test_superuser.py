"""The database's owner can't have the superuser, or anybody but itself, run its code: the attacks themselves."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from devstack.container import Talk
from devstack.data import census
from devstack.data.session import Session, session
from tests.conftest import ROOT, wait_for
from tests.data.conftest import Data, running
from tests.test_testing import Suite

TRAPS = (Path(__file__).parent / "traps.sql").read_text()


def words() -> str:
    """Return every word of the source, as PostgreSQL writes an array: it may be a function's or a relation's name."""
    sources = [*(ROOT / "devstack").rglob("*.py"), *(ROOT / "templates").rglob("*")]
    found = {
        word.lower()
        for path in sources
        if path.is_file()
        for word in re.findall(r"\b[a-z_]+\b", path.read_text(encoding="utf-8"))
    }
    return "{" + ",".join(sorted(found)) + "}"


@pytest.fixture(scope="module")
def trapped(workspace: Path, cache: Path) -> Iterator[Data]:
    """A running stack whose application has left traps for the superuser everywhere."""
    with running(workspace, cache) as made:
        made.inv("data.backup")  # so that pg_stat_statements and the like are there
        made.program("psql", *PLAIN, "-o", "/dev/null", "-f", "-", input=script(), PGUSER="nina")
        yield made


PLAIN = ("-Xq", "-v", "ON_ERROR_STOP=1")


def script() -> str:
    """Return the SQL that sets the traps."""
    return f"SET nv.words = '{words()}';\n{TRAPS}"


def caught(data: Data) -> list[str]:
    return [line for line in data.log("nv-db").splitlines() if "CAUGHT" in line]


def roles(data: Data) -> list[str]:
    return data.sql("SELECT rolname FROM pg_roles WHERE rolsuper ORDER BY 1", "postgres").splitlines()


@pytest.mark.slow
def test_no_command_runs_the_application_s_code_as_the_superuser(trapped: Data) -> None:
    data = trapped
    dump = data.backup()
    later = data.sql("SELECT to_char(now() + interval '1 day', 'YYYY-MM-DD')", "postgres")
    for line in (
        "dev.up",
        "dev.status",
        "db.status",
        "db.stats",
        "pgb.stats",
        "metrics",
        "system-info",
        "data.backup --format custom",
        "data.backup --format directory",
        "data.backup --incremental",
        "data.backup --schema-only",
        "data.list",
        "data.verify --all --deep",
        "data.generate --rows 10",
        "db.profile --seconds 1",
        "dev.bundle",
        f"data.restore --at {later}",
        "data.undo",
        f"data.restore --merge --file {dump.name}",
        "dev.restart",
    ):
        data.inv(*line.split())
        assert caught(data) == [], line
    for line in ("health --details", "dev.heal"):
        data.inv(*line.split(), expect=None)  # the traps may make it unwell
        assert caught(data) == [], line
    assert roles(data) == ["postgres"]
    assert not [name for name in data.databases() if not name.startswith("nina")]


@pytest.mark.slow
def test_no_command_that_fills_or_replaces_the_data_runs_it_either(trapped: Data, tmp_path: Path) -> None:
    data = trapped
    seed = tmp_path / "seed.sql"
    seed.write_text("CREATE TABLE seeded AS SELECT 1 AS n;")
    cluster = next(data.backups.glob("*.cluster"), None) or data.backup("--incremental")
    for line in (
        f"data.seed {seed}",
        "data.migrate --no-backup",
        "data.pin latest",
        "data.unpin latest",
        "pgb.reload",
        "dev.load --seconds 1 --only db --only pgb",
        f"data.restore --file {cluster.name} --no-safety-backup",
        "data.cleanup --days 0",
    ):
        data.inv(*line.split())
        assert caught(data) == [], line
    data.inv("dev.up", INVOKE_DB_EXTENSIONS=json.dumps(["vector", "pg_trgm"]))
    assert ("pg_trgm",) in data.query("SELECT extname FROM pg_extension")
    assert caught(data) == []
    assert roles(data) == ["postgres"]


@pytest.mark.slow
@pytest.mark.parametrize("template", ["data", "migrations"])
def test_the_tests_of_a_project_do_not_run_it_either(trapped: Data, tmp_path: Path, template: str) -> None:
    """With traps in the database that the tests' databases are copies of, and in the one that migrations make."""
    suite = Suite(trapped, tmp_path)
    suite.write("""
        def test_counts(nv_connection):
            with nv_connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM public.traps")
                assert cursor.fetchone() == (100,)
    """)
    file = tmp_path / "traps.sql"
    file.write_text(script())
    words = [str(trapped.bin / "psql"), *PLAIN, "-o", "/dev/null", "-f", str(file)]
    suite.run("--nv-template", template, INVOKE_DATA_MIGRATE=f'{shlex.join(words)} "$DATABASE_URL"')
    assert caught(trapped) == []
    assert roles(trapped) == ["postgres"]


@pytest.mark.slow
def test_the_scripts_of_an_export_do_not_run_it_either(trapped: Data, tmp_path: Path) -> None:
    """Each start of an exported stack has the superuser run them, by a program that is not ours."""
    trapped.inv("dev.export", "--format", "compose", "--output", str(tmp_path / "out"))
    verifier = trapped.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'nina'", "postgres")
    for name, database in (("role", "postgres"), ("database", "nina")):
        file = tmp_path / f"out/db/{name}.sql"
        trapped.program("psql", *PLAIN, "-f", str(file), PGDATABASE=database, NV_VERIFIER=verifier)
        assert caught(trapped) == [], name
    assert roles(trapped) == ["postgres"]


@pytest.mark.slow
def test_a_new_password_is_seen_by_nobody_and_ends_the_sessions_of_the_one_before(fresh: Data) -> None:
    """The role may read what others run: who has its password would learn the next one."""
    fresh.inv("db.start")
    seen: set[str] = set()
    ended = threading.Event()
    connection = fresh.connect()

    def watch() -> None:
        with contextlib.suppress(psycopg2.Error), connection.cursor() as cursor:
            while not ended.is_set():
                cursor.execute("SELECT query FROM pg_stat_activity WHERE query <> ''")
                seen.update(text for (text,) in cursor.fetchall())
        ended.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        fresh.inv("db.start", INVOKE_DB_PASSWORD="BrandNew_9876543210")
        assert ended.wait(10), "its session goes on"
    finally:
        ended.set()
        watcher.join()
        connection.close()
    assert seen
    assert not [text for text in seen if "BrandNew" in text or "SCRAM-SHA" in text]


@pytest.mark.slow
def test_limits_that_the_role_sets_on_its_database_do_not_bind_us(fresh: Data) -> None:
    fresh.inv("dev.up")
    limits = ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout")
    # in one session: they bind the next one of the role
    fresh.query("".join(f"ALTER DATABASE nina SET {limit} = '1ms';" for limit in limits) + "SELECT 1")
    for command in ("data.backup", "db.stats", "data.verify --deep", "data.restore", "db.stop", "db.start"):
        fresh.inv(*command.split())
    fresh.sql("ALTER DATABASE nina SET transaction_timeout = '1ms'", "postgres")  # its own sessions are bound by it
    for command in ("data.backup", "data.verify --deep"):
        fresh.inv(*command.split())


def test_the_reader_reads_every_table_and_does_nothing_else(trapped: Data) -> None:
    def as_reader(statement: str) -> str:
        return trapped.program("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement, PGUSER="nv_reader")

    assert as_reader("SELECT pg_catalog.count(*) FROM public.traps") == "100\n", "a policy hides rows from it"
    for statement, refusal in (
        ("INSERT INTO public.traps (id) VALUES (0)", "permission denied for table traps"),
        ("CREATE TABLE public.t (i int4)", "permission denied for schema public"),
        ("CREATE ROLE r", "permission denied to create role"),
        ("SET ROLE postgres", "permission denied to set role"),
        ("SET ROLE nina", "permission denied to set role"),
        ("COPY (SELECT 1) TO PROGRAM 'id'", "permission denied to COPY to or from an external program"),
        ("SELECT pg_catalog.pg_read_file('PG_VERSION')", "permission denied for function pg_read_file"),
        ("ALTER DATABASE nina SET work_mem = '8MB'", "must be owner of database nina"),
    ):
        with pytest.raises(AssertionError, match=refusal):
            as_reader(statement)
    shown = trapped.inv("db.shell", "--admin", "--command", "SHOW search_path").stdout
    assert "pg_catalog,pg_temp" in shown
    with pytest.raises(psycopg2.OperationalError, match=r"pg_hba\.conf rejects connection"):
        trapped.connect(user="nv_reader")


class Late(Session):
    """A session in which the application makes an index as soon as the tables were looked up."""

    def __init__(self, inner: Session, late: Callable[[], None]) -> None:
        super().__init__(Talk(inner._in, inner._out, inner.kill))
        self.late = late

    def rows(self, query: str) -> list[dict[str, Any]]:
        found = super().rows(query)
        if query == census.TABLES:
            self.late()
        return found


@pytest.mark.slow
def test_counting_runs_nothing_that_is_made_while_it_goes_on(trapped: Data) -> None:
    """An index whose predicate a plan would evaluate: as the reader, which reads the passwords' verifiers."""
    code = """
        CREATE FUNCTION public.late9(n int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
        BEGIN RAISE LOG 'CAUGHT late as %', current_user; RETURN true; END $$;
        CREATE TABLE public.counted9 AS SELECT g AS n FROM generate_series(1, 9) g;
    """
    index = "CREATE INDEX counted9_late9 ON public.counted9 (n) WHERE public.late9(1)"

    def late() -> None:
        trapped.program("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-c", index, PGUSER="nina")

    trapped.program("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-f", "-", input=code, PGUSER="nina")
    with session(trapped.open_stack().db, "nina", "count", role="reader") as sql:
        counted = census.take(Late(sql, late))
    assert counted.tables["public.counted9"] == 9
    trapped.sql("SET log_min_messages = log; DO $$ BEGIN RAISE LOG 'counted to the end'; END $$")
    wait_for(lambda: "counted to the end" in trapped.log("nv-db"))
    assert not [line for line in caught(trapped) if "late as nv_reader" in line]
    assert [line for line in caught(trapped) if "late as nina" in line], "the index's own making does run it"
    trapped.sql("DROP TABLE public.counted9; DROP FUNCTION public.late9")


@pytest.mark.slow
def test_settings_of_the_database_change_no_name_that_is_compared(trapped: Data) -> None:
    trapped.program("psql", "-Xq", "-c", "ALTER DATABASE nina SET quote_all_identifiers = on", PGUSER="nina")
    try:
        made = trapped.backup()
        assert "restored and counted" in trapped.inv("data.verify", "--deep", "--file", made.name).stdout
    finally:
        trapped.program("psql", "-Xq", "-c", "ALTER DATABASE nina RESET quote_all_identifiers", PGUSER="nina")


@pytest.mark.slow
def test_a_warning_at_the_login_is_not_printed(trapped: Data) -> None:
    """libpq prints it as it is, with what a terminal acts on."""
    name = "default_text_search_config"
    trapped.program("psql", "-Xq", "-c", f"ALTER ROLE nina SET {name} = E'\\x1b]52;c;eA==\\x07'", PGUSER="nina")
    try:
        for task in ("dev.status", "db.stats", "metrics"):
            done = trapped.inv(task, expect=None)
            assert "\x1b]" not in done.stdout + done.stderr, task
            assert "52;c;" not in done.stderr, task
    finally:
        trapped.program("psql", "-Xq", "-c", f"ALTER ROLE nina RESET {name}", PGUSER="nina")


@pytest.mark.slow
def test_the_traps_do_catch_a_superuser_who_is_not_careful(trapped: Data) -> None:
    """Otherwise the test above could not fail. The last of this module: it springs them."""
    for careless, trap in (
        ("SELECT pg_catalog.count(*) FROM ONLY public.traps", "an expression"),
        ("SELECT format('%I', 'x'::pg_catalog.name)", "format"),
        ("SELECT 1::int4 = 1::int4", "="),
        ("SELECT 'traps'::regclass", "regclass"),
        ("TABLE pg_database", "pg_database"),
    ):
        before = len(caught(trapped))
        trapped.sql(f"\\set ON_ERROR_STOP off\n{careless};")
        # the log is written by the supervisor, a moment later
        wait_for(lambda: any(f"CAUGHT {trap} as postgres" in line for line in caught(trapped)[before:]))  # noqa: B023


def test_no_command_waits_for_a_transaction_of_the_application(data_with_defaults: Data) -> None:
    """A read-only deferrable transaction waits for every serializable one to end, without a timeout that it heeds."""
    data = data_with_defaults
    held = data.connect()
    held.autocommit = False
    try:
        with held.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ WRITE, NOT DEFERRABLE")
            cursor.execute("SELECT pg_current_xact_id()")
            for line in ("data.backup", "data.verify --all", "db.start", "db.stats"):
                data.inv(*line.split())
            found = json.loads(data.inv("health", "--json", expect=None).stdout)  # a new session of PgBouncer's waits
            assert {one["service"]: one["verdict"] for one in found["services"]}["db"] == "healthy"
    finally:
        held.close()


@pytest.fixture
def data_with_defaults(trapped: Data) -> Iterator[Data]:
    """A database whose owner has chosen what each of its transactions is."""
    names = {"isolation": "serializable", "read_only": "on", "deferrable": "on"}
    for name, value in names.items():
        trapped.sql(f"ALTER DATABASE nina SET default_transaction_{name} = '{value}'", "postgres")
    yield trapped
    for name in names:
        trapped.sql(f"ALTER DATABASE nina RESET default_transaction_{name}", "postgres")


@pytest.mark.slow
def test_a_reset_does_not_run_it_either(trapped: Data) -> None:
    """The last of this module: it removes the traps."""
    before = len(caught(trapped))
    trapped.inv("dev.reset", "--yes")
    assert len(caught(trapped)) == before
    assert roles(trapped) == ["postgres"]
