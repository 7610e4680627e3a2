"""Extensions whose scripts name a function without its schema: none of the application's is taken for it.

CREATE EXTENSION runs a script as the superuser, with the extension's schema in the search path
(https://www.postgresql.org/docs/current/extend-extensions.html, Security Considerations for Extension Scripts).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.data.conftest import Data, running
from tests.data.test_url import serving
from tests.test_testing import Suite

SCRIPT = """
CREATE TABLE {name}_rows (id serial, n int);
-- PostgreSQL's own function takes a regclass; one for texts is a better match
SELECT pg_relation_size('{name}_rows');
SELECT pg_catalog.pg_extension_config_dump('{name}_rows', '');
SELECT pg_catalog.pg_extension_config_dump('{name}_rows_id_seq', '');
"""
MOVABLE, FIXED = "careless", "careless_and_fixed"
CONTROL = "default_version = '1.0'\nrelocatable = {relocatable}\n"

PLANT = """
CREATE OR REPLACE FUNCTION public.pg_relation_size(text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RAISE LOG 'PLANTED runs as %', current_user;
    EXECUTE 'ALTER ROLE nina SUPERUSER';
    RETURN 0;
EXCEPTION WHEN OTHERS THEN RETURN 0;
END $$
"""


@pytest.fixture(scope="module")
def careless(workspace: Path, cache: Path) -> Iterator[Data]:
    """A running stack with such an extension, and a server that has another one."""
    with running(workspace, cache) as made:
        share = Path(made.program("pg_config", "--sharedir").strip()) / "extension"
        files = {}
        for name, relocatable in ((MOVABLE, "true"), (FIXED, "false")):
            files[share / f"{name}.control"] = CONTROL.format(relocatable=relocatable)
            files[share / f"{name}--1.0.sql"] = SCRIPT.format(name=name)
        try:
            for path, text in files.items():
                path.write_text(text)
                path.chmod(0o644)
            made.env["INVOKE_DB_EXTENSIONS"] = json.dumps(["vector", MOVABLE])
            made.inv("dev.restart")
            yield made
        finally:
            for path in files:
                path.unlink(missing_ok=True)


class Lurker:
    """Logs in to every new database as the application does, as soon as it may, and plants the function."""

    def __init__(self, port: int, password: str, *, user: str = "nina") -> None:
        self.about: dict[str, Any] = {"host": "127.0.0.1", "port": port, "user": user, "password": password}
        self.refused: set[str] = set()
        """Databases that it was refused."""
        self.met: dict[str, set[str]] = {}
        """Extensions that were there when it got into a database, by its name."""
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._lurk, daemon=True)

    def __enter__(self) -> Lurker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _lurk(self) -> None:
        while not self._enough.is_set():
            # a restore may end every session of its role
            with contextlib.suppress(psycopg2.Error), contextlib.closing(self._log_in("postgres")) as connection:
                cursor = connection.cursor()
                while not self._enough.is_set():
                    cursor.execute("SELECT datname FROM pg_database WHERE datallowconn AND datname ~ '_[0-9a-f]{8}'")
                    for name in {name for (name,) in cursor.fetchall()} - self.met.keys():
                        self._plant(name)
                        # its owner may change a limit, also from outside
                        with contextlib.suppress(psycopg2.Error):
                            cursor.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')

    def _log_in(self, database: str) -> Any:
        connection = psycopg2.connect(**self.about, dbname=database)
        connection.autocommit = True
        return connection

    def _plant(self, name: str) -> None:
        try:
            with contextlib.closing(self._log_in(name)) as connection:
                cursor = connection.cursor()
                cursor.execute("SELECT extname FROM pg_extension")
                self.met[name] = {extension for (extension,) in cursor.fetchall()}
                if MOVABLE not in self.met[name]:  # it would be in the way of the dump's own later
                    cursor.execute(PLANT)
        except psycopg2.Error:
            self.refused.add(name)


def superusers(data: Data) -> str:
    return data.sql("SELECT rolname FROM pg_roles WHERE rolsuper", "postgres")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "data.verify --deep --file {}",
        "data.restore --file {}",
        "data.restore --file {} --as-superuser",
        "data.restore --merge",
    ],
)
def test_nobody_is_in_a_new_database_before_its_extensions_are(careless: Data, command: str) -> None:
    data = careless
    backup = data.backup()
    with Lurker(data.db_port, data.secrets()["db_password"]) as lurker:
        data.inv(*command.format(backup.name).split())
    assert lurker.refused, "it did not meet the new database while that was closed"
    assert all(MOVABLE in extensions for extensions in lurker.met.values()), lurker.met
    assert superusers(data) == "postgres"
    assert "LOG:  PLANTED" not in data.log("nv-db")


@pytest.mark.slow
def test_nor_in_that_of_a_project_s_tests(careless: Data, tmp_path: Path) -> None:
    suite = Suite(careless, tmp_path)
    suite.write("def test_it(nv_connection):\n    pass\n")
    with Lurker(careless.db_port, careless.secrets()["db_password"]) as lurker:
        suite.run("--nv-template", "empty")
    assert lurker.refused
    assert superusers(careless) == "postgres"
    assert "LOG:  PLANTED" not in careless.log("nv-db")


@pytest.mark.slow
def test_nor_in_one_on_another_server(careless: Data, workspace: Path) -> None:
    backup = careless.backup()
    with serving(workspace, careless.bin) as server:
        for user in ("boss", "maker"):
            if user == "maker":  # no superuser: it can't create pgvector, which comes first
                server.sql(
                    "CREATE ROLE maker LOGIN CREATEDB PASSWORD 'canary-/-elsewhere-0815' IN ROLE app", "postgres"
                )
            with Lurker(server.port, "canary-/-elsewhere-0815", user="app") as lurker:
                expect = 0 if user == "boss" else 1
                careless.inv(
                    "data.restore", "--url", server.url(user=user), "--file", backup.name, "--yes", expect=expect
                )
            assert lurker.refused
            assert server.sql("SELECT rolname FROM pg_roles WHERE rolsuper", "postgres") == [("boss",)]
            assert "LOG:  PLANTED" not in (server.folder / "log").read_text()
        assert len([name for name in server.databases() if name.startswith("shop")]) == 2


@pytest.mark.parametrize("layout", ["sql", "custom", "directory"])
def test_what_a_dump_has_of_an_extension_s_tables_is_in_nobody_s_way(careless: Data, layout: str) -> None:
    """pg_dump writes a COPY for each of its configuration tables, also without rows; only a superuser may load them."""
    data = careless
    data.sql("DELETE FROM careless_rows")
    empty = data.backup("--format", layout)
    assert "rows of" not in data.inv("data.restore", "--file", empty.name, "--no-safety-backup").stderr
    data.sql("INSERT INTO careless_rows (n) VALUES (1), (2)")
    filled = data.backup("--format", layout)
    said = data.inv("data.restore", "--file", filled.name, "--no-safety-backup").stderr
    assert f"as only a superuser may write them: rows of public.careless_rows (extension {MOVABLE})" in said
    assert data.sql("SELECT count(*) FROM careless_rows") == "0"
    data.inv("data.restore", "--file", filled.name, "--no-safety-backup", "--as-superuser")
    assert data.sql("SELECT n FROM careless_rows ORDER BY 1") == "1\n2"


@pytest.mark.parametrize("words", [["-Fp"], ["-Fc"], ["-Fp", "--rows-per-insert=2"]])
def test_nor_is_it_where_rows_are_statements(careless: Data, words: list[str]) -> None:
    data = careless
    data.sql("DELETE FROM careless_rows; INSERT INTO careless_rows (n) VALUES (1), (2), (3)")
    path = data.folder / "inserts.sql"
    path.write_bytes(
        subprocess.run(
            [data.bin / "pg_dump", "--inserts", *words],
            env={**data.env, **data.superuser()},
            check=True,
            capture_output=True,
        ).stdout
    )
    said = data.inv("data.restore", "--file", str(path), "--force", "--no-safety-backup").stderr
    assert f"as only a superuser may write them: rows of public.careless_rows (extension {MOVABLE})" in said
    assert data.sql("SELECT count(*) FROM careless_rows") == "0"
    data.inv("data.undo")
    data.sql("DELETE FROM careless_rows")


@pytest.fixture
def replanted(careless: Data) -> Iterator[Data]:
    """The application has removed its schema with the extensions in it, and made it anew with the function."""
    careless.query("DROP SCHEMA public CASCADE; CREATE SCHEMA public; SELECT 1")
    careless.query(f"{PLANT}; SELECT 1")
    yield careless
    careless.query("DROP FUNCTION public.pg_relation_size; SELECT 1")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["dev.heal", "dev.restart"])
def test_an_extension_that_is_made_again_does_not_meet_the_application(replanted: Data, command: str) -> None:
    data = replanted
    data.inv(command)
    assert set(
        data.query(f"SELECT extname, extnamespace::regnamespace::text FROM pg_extension WHERE extname ~ '^{MOVABLE}'")
    ) == {(MOVABLE, "public")}
    assert data.query("SELECT to_regclass('public.careless_rows') IS NOT NULL") == [(True,)]
    assert data.query("SELECT count(*) FROM pg_namespace WHERE nspname = 'nv_extension'") == [(0,)]
    assert superusers(data) == "postgres"
    assert "LOG:  PLANTED" not in data.log("nv-db")


@pytest.mark.slow
def test_one_that_would_meet_it_is_refused_with_the_way_to_allow_it(replanted: Data) -> None:
    data = replanted
    wanted = json.dumps(["vector", MOVABLE, FIXED])
    create = f"CREATE EXTENSION {FIXED} SCHEMA public CASCADE"
    refused = data.inv("dev.restart", expect=1, INVOKE_DB_EXTENSIONS=wanted).stderr
    assert f"extension {FIXED} can't be created safely in a database that the application has been in" in refused
    assert f"fix:   if you trust all of those: inv db.shell --admin --command '{create}'" in refused
    assert superusers(data) == "postgres"
    data.query("DROP FUNCTION public.pg_relation_size; SELECT 1")
    data.inv("db.shell", "--admin", "--command", create)
    data.inv("dev.restart", INVOKE_DB_EXTENSIONS=wanted)
    data.query(f"{PLANT}; SELECT 1")
    data.inv("dev.restart")


@pytest.mark.slow
def test_a_database_that_is_made_again_has_nothing_of_template1(fresh: Data, careless: Data) -> None:
    """Up to PostgreSQL 14 everybody may create there, and after an upgrade of such a cluster too."""
    fresh.env["INVOKE_DB_EXTENSIONS"] = json.dumps(["vector", MOVABLE])
    fresh.inv("db.start")
    fresh.sql("GRANT CREATE ON SCHEMA public TO PUBLIC", "template1")
    with contextlib.closing(fresh.connect(dbname="template1")) as connection, connection.cursor() as cursor:
        cursor.execute(PLANT)
        cursor.execute("DROP DATABASE nina WITH (FORCE)")
    fresh.inv("db.start")
    assert (MOVABLE,) in fresh.query("SELECT extname FROM pg_extension")
    assert superusers(fresh) == "postgres"
    assert "LOG:  PLANTED" not in fresh.log("nv-db")


def test_a_first_start_has_both_before_the_application(fresh: Data, careless: Data) -> None:
    """Whoever made the cluster."""
    fresh.env["INVOKE_DB_EXTENSIONS"] = json.dumps(["vector", MOVABLE, FIXED])
    fresh.env["INVOKE_DB_PREPARED"] = "false"
    fresh.inv("db.start")
    assert {(MOVABLE,), (FIXED,)} <= set(fresh.query("SELECT extname FROM pg_extension"))
    assert fresh.query("SELECT pg_get_userbyid(datdba), datconnlimit FROM pg_database WHERE datname = 'nina'") == [
        ("nina", -1)
    ]
