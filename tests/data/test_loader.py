"""A dump that this environment has not made reaches no database, no role and no setting but those of its own load.

The filter of statements (:mod:`devstack.data.ownership`) is no boundary: these are written as it does not know them.
"""

from __future__ import annotations

import gzip
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from devstack.data import load
from devstack.data.manifest import decode, encode
from devstack.data.streams import sha256_of
from devstack.services.postgres import LOADER
from devstack.stack import Stack
from tests.data import manifests
from tests.data.conftest import Data, running
from tests.data.test_url import DEBIANS, PASSWORD, Server, serving

STATEMENTS = {
    "drop": 'DROP/**/DATABASE "LIVE" WITH (FORCE);',
    "password": "ALTER/**/ROLE nina PASSWORD 'x';",
    "role's setting": "ALTER/**/ROLE nina SET search_path TO planted;",
    "database's setting": 'ALTER/**/DATABASE "LIVE" SET search_path TO planted;',
    "owner": "SET/**/ROLE nina;",
    "membership": "GRANT/**/nina TO CURRENT_USER;",
    "comment": """COMMENT/**/ON DATABASE "LIVE" IS 'planted';""",
    "template": "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I IS_TEMPLATE true', current_database()); END $$;",
    "own setting": "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem TO 99', current_database()); END $$;",
    "own comment": "DO $$ BEGIN EXECUTE format('COMMENT ON DATABASE %I IS NULL', current_database()); END $$;",
    "new database": "CREATE/**/DATABASE planted;",
}
"""Statements that a dump may not do; ``LIVE`` stands for the database in use."""

LURKING = """
CREATE FUNCTION public.act() RETURNS int LANGUAGE plpgsql AS $f$
BEGIN
    BEGIN EXECUTE 'ALTER ROLE nina PASSWORD ''x'''; EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN EXECUTE 'ALTER ROLE nina SET search_path TO planted'; EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN EXECUTE 'ALTER DATABASE "LIVE" SET search_path TO planted'; EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN EXECUTE 'GRANT ALL ON DATABASE "LIVE" TO PUBLIC'; EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN EXECUTE 'SET ROLE nina'; EXCEPTION WHEN OTHERS THEN NULL; END;
    RETURN 1;
END $f$;
CREATE FUNCTION public.pure(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    $f$ BEGIN PERFORM public.act(); RETURN n; END $f$;
CREATE MATERIALIZED VIEW public.seen AS SELECT public.act() AS one;
CREATE TABLE public.lurking (id int CHECK (public.pure(id) > 0), text text);
INSERT INTO public.lurking SELECT g, 'note ' || g FROM generate_series(1, 30) g;
CREATE INDEX ON public.lurking (public.pure(id));
CREATE STATISTICS public.figures ON (public.pure(id)), text FROM public.lurking;
"""
"""What a dump has that is evaluated when it is loaded and analyzed. Its failures are not seen."""


def state(data: Data | Server, database: str) -> str:
    """All that a dump could change outside of its own database."""
    return repr(
        [
            rows_of(data, query)
            for query in (
                "SELECT rolname, rolpassword, rolsuper, rolcreatedb, rolcreaterole, rolconnlimit, rolvaliduntil"
                " FROM pg_authid WHERE rolname !~ '^pg_' ORDER BY 1",
                "SELECT pg_get_userbyid(roleid), pg_get_userbyid(member) FROM pg_auth_members ORDER BY 1, 2",
                "SELECT setrole::regrole::text, d.datname, setconfig FROM pg_db_role_setting LEFT JOIN pg_database d"
                f" ON d.oid = setdatabase WHERE setdatabase = 0 OR datname = '{database}' ORDER BY 1, 2",
                "SELECT datname, pg_get_userbyid(datdba), coalesce(datacl, acldefault('d', datdba)), datconnlimit,"
                " shobj_description(oid, 'pg_database') FROM pg_database"
                f" WHERE datname !~ '^{database}_old' ORDER BY 1",
            )
        ]
    )


def rows_of(data: Data | Server, query: str) -> Any:
    return data.sql(query, "postgres")


@pytest.fixture(scope="module")
def mine(workspace: Path, cache: Path) -> Iterator[Data]:
    """A running stack with a table of notes, and a backup of it."""
    with running(workspace, cache) as made:
        made.backup()
        yield made


def model(data: Data) -> Path:
    """The backup of the fixture."""
    return min(data.backups.glob("backup-2*.sql.gz"))


def shop_dump(data: Data, shop: Server) -> Path:
    return data.backup("--url", shop.url())


def forged(
    data: Data,
    backup: Path,
    statement: str,
    database: str = "nina",
    *,
    rows: dict[str, int] | None = None,
    extensions: dict[str, str] | None = None,
) -> Path:
    """A backup with a statement of somebody else's at its end, and a manifest that says the same, unsigned."""
    manifest: dict[str, Any] = json.loads(Path(f"{backup}.json").read_text())
    text = gzip.decompress(backup.read_bytes()).decode()
    mark = "-- PostgreSQL database dump complete"
    statement = statement.replace("LIVE", database)
    text = text.replace(mark, f"{statement}\n{mark}", 1)
    path = data.backups / f"forged-{secrets.token_hex(4)}.sql"
    path.write_text(text)
    size, tables = len(text.encode()), {**manifest["tables"], **(rows or {})}
    changes = {"file": path.name, "sha256": sha256_of(path), "bytes": size, "raw_bytes": size, "tables": tables}
    manifests.write(path, {**manifest, **changes, "extensions": {**manifest["extensions"], **(extensions or {})}})
    return path


COMMANDS = {
    "verify": ("data.verify", "--deep", "--file", "FILE"),
    "restore": ("data.restore", "--file", "FILE"),
    "merge": ("data.restore", "--merge", "--file", "FILE"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_on_anything_else_is_refused(mine: Data, command: str, statement: str) -> None:
    path = forged(mine, model(mine), STATEMENTS[statement])
    before, rows = state(mine, "nina"), mine.print_of()
    words = [path.name if word == "FILE" else word for word in COMMANDS[command]]
    said = mine.inv(*words, expect=1).stderr
    assert state(mine, "nina") == before
    assert mine.print_of() == rows
    assert re.search("permission denied|must be owner|must have", said), said


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_evaluated_while_it_is_loaded_reaches_nothing_else(mine: Data, command: str) -> None:
    path = forged(mine, model(mine), LURKING, rows={"public.lurking": 30})
    before = state(mine, "nina")
    words = [path.name if word == "FILE" else word for word in COMMANDS[command]]
    mine.inv(*words, expect=int(command == "merge"))  # which finds tables that are not there
    assert state(mine, "nina") == before
    if command != "restore":
        return
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname IN ('lurking', 'seen')"
    assert mine.sql(owners) == "nina"
    mine.inv("data.undo")


@pytest.fixture(scope="module")
def server(mine: Data, workspace: Path) -> Iterator[Server]:
    """An external server, whose role ``app`` may make roles, and is no superuser."""
    with serving(workspace, mine.bin) as made:
        made.sql("ALTER ROLE app CREATEROLE", "postgres")
        yield made


@pytest.fixture
def shop(server: Server) -> Iterator[Server]:
    """As it was at first, for each test."""
    yield server
    server.reset()


@pytest.mark.parametrize("user", ["app", "boss"])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_on_an_external_server_too(mine: Data, shop: Server, statement: str, user: str) -> None:
    path = forged(mine, shop_dump(mine, shop), STATEMENTS[statement].replace("nina", "app"), "shop")
    before, rows = state(shop, "shop"), shop.rows()
    words = ("data.restore", "--url", shop.url(user=user), "--yes", "--file", path.name)
    said = mine.inv(*words, expect=1).stderr
    assert state(shop, "shop") == before
    assert shop.rows() == rows
    assert re.search("permission denied|must be owner|must have", said), said


@pytest.mark.parametrize("user", ["app", "boss"])
def test_what_is_evaluated_there_reaches_nothing_else_either(mine: Data, shop: Server, user: str) -> None:
    path = forged(mine, shop_dump(mine, shop), LURKING.replace("nina", "app"), "shop", rows={"public.lurking": 30})
    before = state(shop, "shop")
    mine.inv("data.restore", "--url", shop.url(user=user), "--yes", "--file", path.name)
    assert state(shop, "shop") == before
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname IN ('lurking', 'items')"
    assert shop.sql(owners) == [("app",)]


@pytest.mark.parametrize("major", [15, 18])
def test_a_role_that_is_only_a_member_of_the_owner_gives_it_all(mine: Data, workspace: Path, major: int) -> None:
    """Who takes an object must be allowed to create one in its schema, where the giver is no superuser."""
    if major == 15 and not DEBIANS.is_dir():
        pytest.skip("there is no PostgreSQL 15 here")
    with serving(workspace, DEBIANS if major == 15 else mine.bin) as there:
        there.sql("CREATE ROLE deployer LOGIN CREATEDB CREATEROLE IN ROLE app", "postgres")
        there.sql(f"ALTER ROLE deployer PASSWORD '{PASSWORD}'", "postgres")
        rows, made = there.rows(), shop_dump(mine, there)
        words = ("--yes", "--file", forged(mine, made, "").name)
        mine.inv("data.restore", "--url", there.url(user="deployer"), *words)
        assert there.rows() == rows
        assert there.sql("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == [("app",)]
        assert there.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '^nv_load'") == []


POLICY = """
CREATE FUNCTION public.act() RETURNS boolean LANGUAGE plpgsql AS $f$
BEGIN
    RAISE LOG 'POLICY evaluated as %', current_user;
    RETURN true;
END $f$;
CREATE TABLE public.hidden (id int);
INSERT INTO public.hidden VALUES (1);
CREATE POLICY acting ON public.hidden USING (public.act());
ALTER TABLE public.hidden ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
"""


def test_no_policy_of_a_dump_is_evaluated_as_the_role_of_the_url(mine: Data, shop: Server) -> None:
    path = forged(mine, shop_dump(mine, shop), POLICY, rows={"public.hidden": 1})
    words = ("data.restore", "--url", shop.url(), "--yes", "--file", path.name)
    mine.refused(*words, says="row-level security")
    assert "POLICY evaluated as app" not in (shop.folder / "log").read_text().replace("STATEMENT", "")


@pytest.mark.slow
@pytest.mark.skipif(not DEBIANS.is_dir(), reason="there is no PostgreSQL 15 here")
@pytest.mark.parametrize("user", ["app", "boss"])
def test_on_an_older_server_roles_are_made_by_its_rules(mine: Data, workspace: Path, user: str) -> None:
    """Up to PostgreSQL 15 a role that may make others may do all with them."""
    with serving(workspace, DEBIANS) as older:
        older.sql("ALTER ROLE app CREATEROLE", "postgres")
        rows, made = older.rows(), shop_dump(mine, older)
        restore = ("data.restore", "--url", older.url(user=user), "--yes", "--file")
        mine.inv(*restore, forged(mine, made, "").name)
        assert older.rows() == rows
        before = state(older, "shop")
        drop = STATEMENTS["drop"].replace("nina", "app")
        mine.refused(*restore, forged(mine, made, drop, "shop").name, says="must be owner of database shop")
        assert (state(older, "shop"), older.rows()) == (before, rows)
        assert older.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '^nv_load'") == []


@pytest.mark.parametrize("user", ["app", "boss"])
def test_no_role_is_left_there_that_the_dump_has_given_a_password(mine: Data, shop: Server, user: str) -> None:
    path = forged(mine, shop_dump(mine, shop), "ALTER ROLE CURRENT_USER PASSWORD 'known'; SELECT 1/0;")
    words = ("data.restore", "--url", shop.url(user=user), "--yes", "--file", path.name)
    mine.refused(*words, says="division by zero")
    assert shop.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '^nv_load'") == []


def test_what_is_in_use_there_is_not_there_for_a_dump_of_others(mine: Data, shop: Server) -> None:
    """By dblink it could log in to the database in use, by the password that it gives its role."""
    shop.sql("CREATE EXTENSION dblink")
    path = forged(mine, shop_dump(mine, shop), "")
    words = ("data.restore", "--url", shop.url(user="boss"), "--yes", "--file", path.name)
    said = mine.refused(*words, says="needs the extension dblink")
    assert "add it to db.extensions" in said


def test_a_role_that_can_make_none_loads_no_dump_of_others(mine: Data, shop: Server) -> None:
    path = forged(mine, shop_dump(mine, shop), "", "shop")
    before = state(shop, "shop")
    shop.sql("ALTER ROLE app NOCREATEROLE", "postgres")
    try:
        words = ("data.restore", "--url", shop.url(), "--yes", "--file", path.name)
        said = mine.refused(*words, says="was not made by this environment, of its own database or of that one")
    finally:
        shop.sql("ALTER ROLE app CREATEROLE", "postgres")
    assert "CREATEROLE" in said
    assert state(shop, "shop") == before


EXTENSIONS = """
CREATE EXTENSION dblink;
CREATE EXTENSION earthdistance CASCADE;
CREATE EXTENSION hstore;
CREATE TABLE kept (pair public.hstore);
"""


@pytest.mark.parametrize("command", ["verify", "merge"])
def test_what_is_only_tried_or_merged_is_the_owner_s_at_no_time(
    mine: Data, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The server evaluates the indexes of an owner's tables by itself, as that owner: autovacuum."""
    owners: list[str] = []
    real = load.drop

    def drop(stack: Stack, name: str) -> None:
        owners.extend(
            mine.sql(
                "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'm')"
                " AND relname <> 'nv_staging'",
                name,
            ).splitlines()
        )
        real(stack, name)

    mine.patched = True
    monkeypatch.setattr(load, "drop", drop)
    path = forged(mine, model(mine), "")
    mine.inv(*[path.name if word == "FILE" else word for word in COMMANDS[command]])
    assert owners == [LOADER]


@pytest.mark.slow
def test_a_dump_of_many_tables_is_given_to_the_owner(mine: Data) -> None:
    """Each that changes its owner takes locks, of which one transaction can have some thousand."""
    path = mine.folder / "many.sql"
    path.write_text("".join(f"CREATE TABLE t{n} (id serial PRIMARY KEY, a text UNIQUE);\n" for n in range(3_000)))
    mine.inv("data.restore", "--force", "--no-safety-backup", "--file", str(path))
    assert mine.sql("SELECT DISTINCT relowner::regrole FROM pg_class WHERE relname ~ '^t[0-9]+'") == "nina"
    mine.inv("data.undo")


ROWS_HIDDEN = """
CREATE TABLE hidden (p int);
INSERT INTO hidden SELECT generate_series(1, 500);
ALTER TABLE hidden ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY few ON hidden FOR SELECT USING (p <= 100);
CREATE POLICY more ON hidden FOR SELECT TO nina USING (p <= 300);
CREATE MATERIALIZED VIEW shown AS SELECT count(*) AS n FROM hidden;
SELECT 1
"""


@pytest.mark.parametrize("layout", ["sql", "custom", "directory"])
@pytest.mark.parametrize("own", [True, False])
def test_a_materialized_view_is_filled_with_what_the_owner_s_policies_show(mine: Data, layout: str, own: bool) -> None:
    mine.query(ROWS_HIDDEN)
    try:
        made = mine.backup("--format", layout)
        manifest = Path(f"{made}.json")
        if not own:
            manifest.write_bytes(encode(structs.replace(decode(manifest.read_bytes()), signature="")))
        mine.inv("data.restore", "--file", made.name, "--no-safety-backup")
        assert mine.sql("SELECT n FROM shown") == "300"
        policies = "SELECT polname, array_to_string(polroles::regrole[], ' ') FROM pg_policy WHERE polname = 'more'"
        assert mine.sql(policies) == "more|nina"
    finally:
        mine.query("DROP MATERIALIZED VIEW shown; DROP TABLE hidden; SELECT 1")


def test_a_database_that_its_owner_has_made_a_template_can_be_dropped(mine: Data) -> None:
    mine.inv("data.restore", "--no-safety-backup")
    (kept,) = (name for name in mine.databases() if name.startswith("nina_old"))
    mine.query(f'ALTER DATABASE "{kept}" IS_TEMPLATE true; SELECT 1')
    mine.inv("data.restore", "--no-safety-backup")
    assert kept not in mine.databases()


@pytest.mark.slow
def test_a_prepared_transaction_in_a_dump_keeps_nothing(mine: Data) -> None:
    prepared = '{"max_prepared_transactions": 2}'
    mine.inv("dev.restart", INVOKE_DB_PARAMETERS=prepared)
    try:
        path = forged(mine, model(mine), "BEGIN; CREATE TABLE public.held (n int); PREPARE TRANSACTION 'mine';")
        mine.inv("data.verify", "--deep", "--file", path.name, expect=None, INVOKE_DB_PARAMETERS=prepared)
        assert mine.sql("SELECT count(*) FROM pg_prepared_xacts") == "0"
        assert [name for name in mine.databases() if "verify" in name] == []
    finally:
        mine.inv("dev.restart")


def test_a_role_of_somebody_s_with_that_name_is_not_dropped_with_what_it_has(mine: Data) -> None:
    mine.sql(
        f"CREATE ROLE {LOADER}; CREATE TABLE somebodys (n int); ALTER TABLE somebodys OWNER TO {LOADER}", "postgres"
    )
    try:
        said = mine.refused(
            "data.verify", "--deep", "--file", forged(mine, model(mine), "").name, says="something belongs to it"
        )
        assert "ALTER ROLE … RENAME TO" in said
        assert mine.sql("SELECT count(*) FROM somebodys", "postgres") == "0"
    finally:
        mine.sql(f"DROP OWNED BY {LOADER}; DROP ROLE {LOADER}", "postgres")


def test_only_extensions_that_an_owner_may_create_or_that_are_asked_for_are_created(mine: Data) -> None:
    path = mine.folder / "foreign.sql"
    path.write_text(f"SET statement_timeout = 0;\n{EXTENSIONS}")
    restore = ("data.restore", "--force", "--no-safety-backup", "--file", str(path))
    said = mine.inv(*restore).stderr
    assert "created for foreign.sql: extension hstore in schema public" in said
    assert "left out, as only a superuser may create it: extension dblink, earthdistance" in said
    assert "db.extensions in invoke.yaml: [vector, uuid-ossp, dblink, earthdistance]" in said
    assert mine.sql("SELECT extname FROM pg_extension WHERE extname IN ('dblink', 'hstore')") == "hstore"
    mine.inv("data.undo")
    asked = json.dumps(["vector", "uuid-ossp", "dblink", "earthdistance"])
    said = mine.inv(*restore, INVOKE_DB_EXTENSIONS=asked).stderr
    assert "left out" not in said
    assert (
        mine.sql("SELECT count(*) FROM pg_extension WHERE extname IN ('dblink', 'hstore', 'cube', 'earthdistance')")
        == "4"
    )
    mine.inv("data.undo")


def test_a_backup_that_needs_another_one_is_refused_before_anything_is_touched(mine: Data) -> None:
    path = forged(mine, model(mine), "", extensions={"dblink": "1.2"})
    before, kept = mine.databases(), sorted(mine.backups.iterdir())
    for words in (("data.restore", "--file"), ("data.verify", "--deep", "--file")):
        said = mine.refused(*words, path.name, says="needs the extension dblink")
        assert "add it to db.extensions" in said
    assert (mine.databases(), sorted(mine.backups.iterdir())) == (before, kept)


def test_rows_alone_go_into_the_tables_of_the_database_in_use_with_its_privileges(mine: Data) -> None:
    """What the owner has granted is granted by the owner again, and not by the role that loads the rows."""
    mine.sql(
        "REVOKE ALL ON people FROM nina; GRANT SELECT, INSERT, TRIGGER ON people TO nina;"
        " GRANT SELECT ON eggs TO PUBLIC;"
        " ALTER DEFAULT PRIVILEGES FOR ROLE nina IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC"
    )
    made = mine.backup("--data-only")
    path = forged(mine, made, "")
    before = mine.print_of()
    mine.inv("data.restore", "--file", path.name)
    assert mine.print_of() == before
    mine.inv("data.undo")


def test_a_server_that_was_started_before_there_was_the_role_lets_it_in(mine: Data) -> None:
    config = mine.state / "config"
    was = {name: (config / name).read_text() for name in ("pg_hba.conf", "pg_ident.conf")}
    older = {
        "pg_hba.conf": was["pg_hba.conf"].replace(f",{LOADER}", ""),
        "pg_ident.conf": re.sub(rf".* {LOADER}\n", "", was["pg_ident.conf"]),
    }
    assert all(LOADER not in text for text in older.values())
    for name, text in older.items():
        (config / name).write_text(text)
    mine.sql("SELECT pg_reload_conf()")
    mine.inv("data.verify", "--deep", "--file", forged(mine, model(mine), "").name)
    assert {name: (config / name).read_text() for name in was} == was


def test_nothing_of_the_role_is_left(mine: Data) -> None:
    """Nor does what one dump has set on it reach the next one."""
    mine.inv("data.verify", "--deep", "--file", forged(mine, model(mine), "ALTER ROLE CURRENT_USER PASSWORD 'x';").name)
    assert mine.sql(f"SELECT count(*) FROM pg_roles WHERE rolname = '{LOADER}'", "postgres") == "0"
    mine.sql(f"CREATE ROLE {LOADER} SUPERUSER IN ROLE nina PASSWORD 'x'", "postgres")
    said = mine.inv("data.verify", "--deep", "--file", forged(mine, model(mine), STATEMENTS["drop"]).name, expect=1)
    assert "must be owner" in said.stderr
    assert mine.sql(f"SELECT count(*) FROM pg_roles WHERE rolname = '{LOADER}'", "postgres") == "0"
    assert mine.databases()[0] == "nina"
