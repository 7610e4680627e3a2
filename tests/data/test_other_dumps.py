"""Dumps of other tools, and of databases that pg_dump alone can't restore."""

from __future__ import annotations

import codecs
import gzip
import re
from pathlib import Path

import pytest

from devstack.services.postgres import Postgres
from tests.data.conftest import Data
from tests.data.test_url import DEBIANS

DUMPS = Path(__file__).parent / "dumps"
PLAIN = (DUMPS / "comment-on-extension.sql").read_bytes()

UNQUALIFIED = """
SET ROLE nina;
CREATE SCHEMA app;
CREATE FUNCTION app.plain(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower(t)';
CREATE FUNCTION slug(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN RETURN replace(plain(t), ' ', '-'); END $$;
CREATE TABLE rate (code text PRIMARY KEY);
INSERT INTO rate VALUES ('a');
CREATE FUNCTION known(c text) RETURNS boolean LANGUAGE plpgsql STABLE AS
    $$ BEGIN RETURN EXISTS (SELECT FROM rate WHERE code = c); END $$;
CREATE FUNCTION own_path(t text) RETURNS text LANGUAGE sql IMMUTABLE SET search_path = app AS 'SELECT plain(t)';
CREATE TABLE post (
    id int PRIMARY KEY, title text, code text CHECK (known(code)),
    slug text GENERATED ALWAYS AS (slug(title)) STORED
);
CREATE INDEX ON post (slug(title));
CREATE STATISTICS titles ON slug(title), id FROM post;
INSERT INTO post (id, title, code) VALUES (1, 'Hello World', 'a'), (2, 'Second Post', 'a');
CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.title := plain(NEW.title); RETURN NEW; END $$;
CREATE TRIGGER fill BEFORE INSERT ON post FOR EACH ROW EXECUTE FUNCTION fill();
"""


def restored(data: Data, path: Path, *flags: str) -> str:
    return data.inv("data.restore", "--force", "--no-safety-backup", "--file", str(path), *flags).stderr


@pytest.mark.variations
@pytest.mark.parametrize("layout", ["sql", "custom", "directory"])
def test_functions_that_name_others_without_their_schema_restore(data: Data, layout: str) -> None:
    data.sql('ALTER DATABASE nina SET search_path = "$user", public, app', "postgres")
    data.sql(UNQUALIFIED)
    before = data.print_of()
    done = data.inv("data.backup", "--format", layout, "--json")
    assert "without their schema: public.known, public.slug;" in done.stderr
    assert "restored and counted" in data.inv("data.verify", "--deep").stdout
    data.sql('ALTER DATABASE nina SET search_path = "$user", public', "postgres")
    data.inv("data.restore", "--no-safety-backup")
    data.sql('ALTER DATABASE nina SET search_path = "$user", public, app', "postgres")
    assert data.print_of() == before
    path = next(p for p in data.backups.iterdir() if p.suffix != ".json")
    Path(f"{path}.json").unlink()
    rows = data.rows_of()
    restored(data, path)
    assert data.rows_of() == rows
    assert data.sql("SELECT proname FROM pg_proc WHERE proconfig IS NOT NULL") == "own_path"


CHECKED = """
SET ROLE nina;
CREATE TABLE rate (code text PRIMARY KEY);
INSERT INTO rate VALUES ('a');
CREATE FUNCTION known(c text) RETURNS boolean LANGUAGE plpgsql STABLE AS
    $$ BEGIN RETURN EXISTS (SELECT FROM rate WHERE code = c); END $$;
CREATE TABLE part (code text CONSTRAINT known CHECK (known(code)), n int) PARTITION BY RANGE (n);
COMMENT ON CONSTRAINT known ON part IS 'of all partitions';
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_2 (code text, n int, CONSTRAINT known CHECK (known(code)), CONSTRAINT own CHECK (known(code)));
ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (10) TO (20);
INSERT INTO part VALUES ('a', 1), ('a', 11);
CREATE TABLE ancestor (code text CHECK (known(code)), n int CHECK (known('a')) NO INHERIT);
CREATE TABLE heir (more int) INHERITS (ancestor);
INSERT INTO heir VALUES ('a', 1, 2);
CREATE DOMAIN code AS text CONSTRAINT known CHECK (known(VALUE));
COMMENT ON CONSTRAINT known ON DOMAIN code IS 'of the domain';
CREATE TABLE of_domain (code code);
INSERT INTO of_domain VALUES ('a');
"""


@pytest.mark.variations
@pytest.mark.parametrize("layout", ["sql", "custom", "directory"])
def test_checks_of_partitions_heirs_and_domains_that_read_a_later_table_restore(data: Data, layout: str) -> None:
    data.sql(CHECKED)
    before = data.print_of()
    made = data.backup("--format", layout)
    data.inv("data.restore", "--file", made.name, "--no-safety-backup")
    assert data.print_of() == before
    for row in ("part VALUES ('b', 1)", "part VALUES ('b', 11)", "heir VALUES ('b')", "of_domain VALUES ('b')"):
        with pytest.raises(AssertionError, match="violates check constraint"):
            data.sql(f"INSERT INTO {row}")


@pytest.mark.slow
def test_functions_that_name_others_without_their_schema_restore_as_the_superuser(data: Data) -> None:
    data.sql('ALTER DATABASE nina SET search_path = "$user", public, app', "postgres")
    data.sql(UNQUALIFIED)
    data.sql("ALTER FUNCTION slug(text) OWNER TO postgres")
    before = data.print_of(owners=True)
    data.inv("data.backup")
    data.inv("data.restore", "--no-safety-backup", "--as-superuser")
    assert data.print_of(owners=True) == before


@pytest.mark.variations
@pytest.mark.parametrize("name", ["extension-schema.sql", "extension-schema.dump"])
def test_extensions_in_a_schema_of_their_own_restore(data: Data, name: str) -> None:
    said = restored(data, DUMPS / name)
    assert data.sql("SELECT count(*), min(emb::text) FROM notes") == "2|[1,2,3]"
    assert data.sql("SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'vector'") == "extensions"
    assert f"created for {name}: extension pgcrypto in schema extensions" in said
    assert "left out, as only a superuser may create it: event trigger watch_ddl" in said
    assert "left out, as the role is not there: policy own on public.notes (for authenticated)" in said
    data.backup()
    assert "restored and counted" in data.inv("data.verify", "--deep").stdout


FORMS = {
    "CRLF": PLAIN.replace(b"\n", b"\r\n"),
    "plain": PLAIN,
    "gzip": gzip.compress(PLAIN),
    "BOM": codecs.BOM_UTF8 + PLAIN,
    "UTF-16": PLAIN.decode().replace("\n", "\r\n").encode("utf-16"),
}


@pytest.mark.variations
@pytest.mark.parametrize("form", FORMS)
def test_a_comment_on_an_extension_restores_in_every_form_of_text(data: Data, form: str, tmp_path: Path) -> None:
    path = tmp_path / "form.sql"
    path.write_bytes(FORMS[form])
    said = restored(data, path)
    assert data.sql("SELECT count(*), max(name) FROM item") == data.sql("SELECT 50, 'thing 9'")
    assert ("is UTF-16" in said) == (form == "UTF-16")


CLEAN = [
    ["--clean"],
    ["--clean", "--if-exists"],
    ["--clean", "--create"],
    ["--clean", "--if-exists", "--create", "--inserts"],
    ["-n", "public", "--clean"],
    ["--use-set-session-authorization", "--inserts", "--rows-per-insert=100"],
]


@pytest.mark.variations
@pytest.mark.parametrize("flags", CLEAN, ids=" ".join)
def test_what_pg_dump_writes_for_a_database_in_use_restores(data: Data, flags: list[str], tmp_path: Path) -> None:
    """The new one is empty, and has the name that it is to have."""
    data.sql('DROP TABLE "Mixed Case"."Täble ""quoted"" $(touch PWN); \'x\'"; DROP SCHEMA tools CASCADE')
    if "-n" in flags:
        data.sql("SELECT lo_unlink(424242)")  # which is in no schema
    data.sql("CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END;")
    rows = data.rows_of()
    path = tmp_path / "dump.sql"
    path.write_text(data.program("pg_dump", *flags))
    data.sql("DELETE FROM log; DELETE FROM people WHERE id > 10")
    restored(data, path)
    assert data.rows_of() == rows


MINE = """\
create extension if not exists "uuid-ossp";
/* what
   was there */
drop table if exists mine;
create extension pgcrypto; create extension earthdistance cascade; create extension no_such;
create type c as (n int); create table mine (id uuid default uuid_generate_v4(), t text, drop_me int);
grant all on mine to somebody; insert into mine (t) values ('a;b'), ('c');
alter table mine
    drop column drop_me;
comment on extension pgcrypto is 'x';
drop table if exists other;
"""


def test_sql_that_a_person_has_written_restores(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "mine.sql"
    path.write_text(MINE)
    said = restored(data, path)
    assert "left out, as this PostgreSQL does not have it: extension no_such" in said
    assert "left out, as only a superuser may create it: extension earthdistance" in said
    assert data.sql("SELECT count(*) FROM pg_extension WHERE extname IN ('cube', 'earthdistance', 'pgcrypto')") == "2"
    assert data.sql("SELECT count(*), count(id), string_agg(t, ',') FROM mine") == "2|2|a;b,c"
    assert data.sql("SELECT attname FROM pg_attribute WHERE attrelid = 'mine'::regclass AND attnum = 3") != "drop_me"


ERRORS = {
    "CREATE TABLE t (\n  n int\n);\nINSERT INTO t\nVALUES ('x');\n": (
        r"bad.sql:5: ERROR: .*invalid input syntax[^$]*STATEMENT:  INSERT INTO t",
        "correct it there",
    ),
    "COMMENT ON EXTENSION vector IS 'of\nthree\nlines';\nSELEC 1;\n": (
        r"bad.sql:4: ERROR:  syntax error[^$]*STATEMENT:  SELEC 1;",
        "correct it there",
    ),
    "CREATE TABLE t AS SELECT 1 AS n;\nCREATE INDEX ON nowhere.t (n);\n": (
        r'cause: the dump uses the schema nowhere[^$]*bad.sql:2: ERROR:  schema "nowhere" does not exist',
        "pg_dump without -n",
    ),
    "SET no_such_setting = 0;\n": (r"does not know no_such_setting[^$]*bad.sql:1:", "take that line out"),
    "CREATE USER MAPPING FOR nina SERVER s OPTIONS (user 'x', password 'hunter2');\n": (
        r"bad.sql:1: ERROR[^$]*password '\*\*\*'",
        "correct it there",
    ),
    f"CREATE TABLE t (n int);\nINSERT INTO t VALUES ({'1' * 100_000}, 'x');\n": (r"bad.sql:2: ERROR", "correct it"),
}


@pytest.mark.variations
@pytest.mark.parametrize("text", ERRORS, ids=range(len(ERRORS)))
def test_an_error_names_the_statement_and_the_line_of_the_file(data: Data, text: str, tmp_path: Path) -> None:
    path, (says, fix) = tmp_path / "bad.sql", ERRORS[text]
    path.write_text(text)
    said = data.refused("data.restore", "--force", "--no-safety-backup", "--file", str(path), says=says)
    assert re.search(f"fix: .*{fix}", said), said
    assert max(map(len, said.splitlines())) < 400
    assert "hunter2" not in said


def test_rows_that_the_owner_does_not_see_are_said(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "hidden.sql"
    path.write_text(
        "CREATE TABLE secret (n int);\nINSERT INTO secret VALUES (1);\nALTER TABLE secret ENABLE ROW LEVEL SECURITY;\n"
        "ALTER TABLE secret FORCE ROW LEVEL SECURITY;\nCREATE POLICY p ON secret TO nobody_here, nina USING (true);\n"
        "CREATE POLICY q ON secret TO nobody_here;\n"
    )
    said = restored(data, path)
    assert "row-level security is forced on public.secret: nina, the owner, sees only" in said
    assert "policy p on secret (for nobody_here), policy q on secret (for nobody_here)" in said
    assert (
        data.sql("SELECT polname, polroles::regrole[] FROM pg_policy WHERE polrelid = 'secret'::regclass") == "p|{nina}"
    )


def test_an_index_is_built_in_the_shared_memory_that_there_is(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container has 64 MB by default, and the build of an HNSW index by several processes fails then."""
    path = tmp_path / "settings.sql"
    path.write_text(
        "CREATE TABLE used AS SELECT current_setting('max_parallel_maintenance_workers') AS workers,"
        " current_setting('maintenance_work_mem') AS memory;\n"
    )
    for room, workers in ((64 << 20, "0"), (1 << 30, "2")):
        monkeypatch.setattr(Postgres, "shared_memory", lambda self, room=room: room)
        restored(data, path)
        assert data.sql("TABLE used") == f"{workers}|256MB"


SUPABASE = """
CREATE ROLE boss LOGIN SUPERUSER PASSWORD 'secret';
CREATE ROLE authenticated;
CREATE DATABASE supa;
"""
SUPA = """
CREATE SCHEMA extensions;
CREATE EXTENSION pgcrypto SCHEMA extensions;
CREATE EXTENSION vector SCHEMA extensions;
CREATE FUNCTION code(n int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN RETURN encode(digest(n::text, 'md5'), 'hex'); END $$;
CREATE TABLE notes (
    id int PRIMARY KEY, emb extensions.vector(3), code text GENERATED ALWAYS AS (code(id)) STORED
);
CREATE INDEX ON notes USING hnsw (emb extensions.vector_l2_ops);
INSERT INTO notes (id, emb) VALUES (1, '[1,2,3]'), (2, '[3,2,1]');
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON notes TO authenticated USING (true);
COMMENT ON POLICY own ON notes IS 'theirs';
"""


@pytest.mark.variations
@pytest.mark.parametrize("layout", ["sql", "custom", "directory"])
def test_a_database_with_extensions_in_their_own_schema_moves_into_the_stack(data: Data, layout: str) -> None:
    try:
        data.sql(SUPABASE, "postgres")
        data.sql('ALTER DATABASE supa SET search_path = "$user", public, extensions', "postgres")
        data.sql(f"SET search_path = public, extensions; {SUPA}", "supa")
        codes = data.sql("SELECT string_agg(code, ' ' ORDER BY id) FROM notes", "supa")
        url = f"postgresql://boss:secret@127.0.0.1:{data.db_port}/supa"
        path = data.backup("--url", url, "--format", layout)
    finally:
        data.sql("DROP DATABASE supa; DROP ROLE boss; DROP ROLE authenticated", "postgres")
    assert "restored and counted" in data.inv("data.verify", "--deep", "--file", path.name).stdout
    said = data.inv("data.restore", "--file", path.name, "--no-safety-backup").stderr
    assert "left out, as the role is not there: policy own on public.notes (for authenticated)" in said
    assert data.sql("SELECT string_agg(code, ' ' ORDER BY id) FROM notes") == codes
    assert data.sql("SELECT count(*) FROM pg_proc WHERE proname = 'code' AND proconfig IS NULL") == "1"


def test_what_is_whole_and_does_not_restore_is_not_called_damaged(data: Data) -> None:
    data.sql("CREATE FUNCTION fast(text) RETURNS int LANGUAGE internal STRICT IMMUTABLE AS 'textlen'")
    data.inv("data.backup")
    done = data.inv("data.verify", "--deep", expect=1)
    assert "whole, could not be restored" in done.stdout
    assert "damaged" not in done.stdout + done.stderr
    assert "STATEMENT:  CREATE FUNCTION public.fast(text)" in done.stderr
    (backup,) = data.json("data.verify", "--deep", expect=1)["backups"]
    assert backup["state"] == "unrestorable"


NEWER = """\
--
-- PostgreSQL database dump
--

-- Dumped from database version 15.1
-- Dumped by pg_dump version 18.1

SET statement_timeout = 0;
SET transaction_timeout = 0;
SELECT pg_catalog.set_config('search_path', '', false);

CREATE SCHEMA public;
ALTER SCHEMA public OWNER TO pg_database_owner;
COMMENT ON SCHEMA public IS 'standard public schema';
CREATE TABLE public.t (n integer);
COPY public.t (n) FROM stdin;
1
\\.
SELECT * FROM pg_catalog.pg_restore_relation_stats(
    'version', '150001'::integer,
    'schemaname', 'public',
    'relname', 't'
);

--
-- PostgreSQL database dump complete
--
"""


@pytest.mark.slow
@pytest.mark.skipif(not DEBIANS.is_dir(), reason="needs an older PostgreSQL")
def test_an_older_server_restores_what_a_newer_pg_dump_wrote_for_it(fresh: Data, tmp_path: Path) -> None:
    fresh.env |= {"INVOKE_DB_BIN_DIR": str(DEBIANS), "INVOKE_DB_EXTENSIONS": "[]"}
    fresh.inv("db.start")
    path = tmp_path / "newer.sql"
    path.write_text(NEWER)
    # the default application needs pgvector, which that server does not have
    done = fresh.inv("data.restore", "--force", "--no-safety-backup", "--file", str(path), expect=None)
    assert "nina is newer.sql: 1 table, 1 row" in done.stdout
    assert fresh.sql("SELECT count(*) FROM t") == "1"
    archive = str(DUMPS / "extension-schema.dump")
    fresh.refused("data.restore", "--force", "--file", archive, says="a newer pg_dump made")
    fresh.sql('ALTER DATABASE nina SET search_path = "$user", public, app', "postgres")
    fresh.sql(UNQUALIFIED)
    for layout in ("sql", "custom"):
        fresh.backup("--format", layout)
        assert "restored and counted" in fresh.inv("data.verify", "--deep").stdout
