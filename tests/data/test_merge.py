"""Merging: rows are added, what is there stays, all or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.data.conftest import Data


def merged(data: Data, *flags: str) -> dict[str, Any]:
    """Rows added and skipped by table, apart from those without either."""
    answer = data.json("data.restore", "--merge", *flags)
    return {t["name"]: (t["added"], t["skipped"]) for t in answer["tables"] if t["added"]}


def test_missing_rows_come_back_and_those_that_are_there_stay(data: Data) -> None:
    data.backup()
    everything = data.rows_of()
    data.sql("""
        DELETE FROM people WHERE id > 450;
        UPDATE people SET age = 99 WHERE id = 7;
        INSERT INTO people (email) VALUES ('new@example.org');
        DELETE FROM events WHERE n < 10;
        DELETE FROM tree WHERE id > 50;
        BEGIN; DELETE FROM hens WHERE id = 3; UPDATE hens SET egg = 1 WHERE egg = 3; DELETE FROM eggs WHERE id = 3;
        DELETE FROM hens WHERE egg = 3; COMMIT;
        ALTER TABLE keyless DISABLE RULE quiet;
        DELETE FROM keyless WHERE word = 'once';
        ALTER TABLE keyless ENABLE RULE quiet;
        DELETE FROM base WHERE a = 1;
        SELECT lo_unlink(424242);
    """)
    done = merged(data)
    assert done["public.people"] == (50, 450)
    assert done["public.events"] == (10, 391)
    assert done["public.tree"] == (50, 50)
    assert done["public.keyless"] == (1, 3)
    assert done["public.base"] == (1, 1)
    assert done["public.eggs"] == (1, 19)
    assert data.query("SELECT age FROM people WHERE id = 7") == [(99,)]
    assert data.query("SELECT count(*) FROM people") == [(501,)]
    assert data.query("SELECT count(*) FROM people WHERE double_age = age * 2") == [(500,)]
    assert data.sql("SELECT count(*) FROM log") == "0", "a trigger ran for rows that had been written before"
    assert data.sql("SELECT count(*) FROM pg_largeobject_metadata") == "1"
    assert data.rows_of() != everything
    assert merged(data) == {}, "a second time adds nothing"
    data.sql(
        "INSERT INTO people (email) VALUES ('newer@example.org'); INSERT INTO vectors (e) SELECT e FROM vectors LIMIT 1"
    )
    assert "nina" in data.databases()
    assert [name for name in data.databases() if name != "nina"] == []


@pytest.mark.slow
def test_sequences_go_past_what_the_backup_had_given_out(data: Data) -> None:
    data.sql(
        "INSERT INTO people (email) SELECT 'x' || g FROM generate_series(1, 50) g; SELECT nextval('free_sequence')"
    )
    data.backup()
    data.sql("""
        DELETE FROM people WHERE id > 400;
        ALTER TABLE people ALTER COLUMN id RESTART WITH 401;
        SELECT setval('free_sequence', 100); SELECT setval('falling', 40);
    """)
    merged(data)
    assert data.query("SELECT last_value FROM people_id_seq") == [(550,)]
    assert data.query("SELECT last_value FROM free_sequence") == [(114,)]
    assert data.query("SELECT last_value FROM falling") == [(40,)]
    data.sql("INSERT INTO people (email) VALUES ('next@example.org')")


@pytest.mark.slow
def test_rows_that_would_refer_to_nothing_are_refused_and_nothing_is_changed(data: Data) -> None:
    data.backup()
    data.sql("""
        DELETE FROM "Mixed Case"."Täble ""quoted"" $(touch PWN); 'x'";
        DELETE FROM people WHERE id = 5; INSERT INTO people (email) VALUES ('p5@example.org');
        DELETE FROM vectors WHERE id > 10;
    """)
    before = data.print_of()
    text = data.refused("data.restore", "--merge", says="would refer to rows that are not in people")
    assert "nothing was changed" in text
    assert data.print_of() == before
    assert data.databases() == ["nina"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("DROP TABLE fast", "table public.fast is not there"),
        ("ALTER TABLE fast DROP COLUMN note", "table public.fast has no column note"),
        (
            "ALTER TABLE vectors ALTER COLUMN id TYPE int",
            "column id of table public.vectors is integer, in the backup bigint",
        ),
        (
            "ALTER TABLE tree ADD COLUMN needed int; UPDATE tree SET needed = 1;"
            " ALTER TABLE tree ALTER COLUMN needed SET NOT NULL; DELETE FROM tree WHERE id = 99",
            "null value in column",
        ),
    ],
)
def test_another_schema_is_refused(data: Data, change: str, says: str) -> None:
    data.backup()
    data.sql(change)
    before = data.print_of()
    data.refused("data.restore", "--merge", "--no-safety-backup", says=says)
    assert data.print_of() == before
    assert data.databases() == ["nina"]


@pytest.mark.slow
def test_what_guards_a_table_is_paused_and_back_afterwards_and_another_role_s_table_is_left_out(data: Data) -> None:
    data.sql("""
        SET ROLE nina;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'a trigger ran'; END$$;
        CREATE TRIGGER on_part BEFORE INSERT ON events_2025 FOR EACH ROW EXECUTE FUNCTION refuse();
        CREATE TRIGGER on_all BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse();
        CREATE TRIGGER off BEFORE INSERT ON base FOR EACH ROW EXECUTE FUNCTION refuse();
        ALTER TABLE base DISABLE TRIGGER off;
        CREATE RULE nothing AS ON INSERT TO keyless DO INSTEAD NOTHING;
        ALTER TABLE people FORCE ROW LEVEL SECURITY;
        DROP POLICY mine ON people;
        CREATE POLICY none ON people USING (false);
    """)
    data.backup()
    schema = data.program("pg_dump", "-s").splitlines()[10:-10]
    data.sql("""
        DELETE FROM people WHERE id > 450; DELETE FROM events WHERE n < 10; DELETE FROM base WHERE a = 1;
        ALTER TABLE keyless DISABLE RULE quiet; DELETE FROM keyless WHERE word = 'once';
        ALTER TABLE keyless ENABLE RULE quiet;
        DELETE FROM of_the_superuser;
    """)
    tables = {t["name"]: t for t in data.json("data.restore", "--merge")["tables"]}
    added = {name: table["added"] for name, table in tables.items() if table["added"]}
    assert added == {
        "public.people": 50,
        "public.events": 10,
        "public.base": 1,
        "public.keyless": 1,
    }
    assert tables["public.of_the_superuser"]["note"] == "left out: it belongs to postgres"
    assert data.program("pg_dump", "-s").splitlines()[10:-10] == schema


def test_a_schema_has_no_rows_to_merge(data: Data) -> None:
    path = data.backup("--schema-only")
    data.refused("data.restore", "--merge", "--file", path.name, says="no rows to merge", code=2)
