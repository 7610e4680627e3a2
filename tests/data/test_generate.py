"""Made-up rows: what a server takes, what a search finds, and that a seed means the same rows."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Project, wait_for

SHOP = """
DROP SCHEMA IF EXISTS shop CASCADE; CREATE SCHEMA shop; SET search_path = shop, public;
CREATE TYPE mood AS ENUM ('sad', 'o''k "x"', 'a\\b', 'NULL');
CREATE DOMAIN percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE TABLE customers (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), email varchar(24) NOT NULL UNIQUE, full_name text NOT NULL,
    age int CHECK (age > 17 AND age < 67), state text NOT NULL CHECK (state IN ('it''s new', 'gold')), mood mood,
    moods mood[] NOT NULL, ip inet, born date, seen timestamptz DEFAULT now(), at timestamp, raw bytea, raws bytea[],
    facts jsonb NOT NULL, loose json, discount percent NOT NULL, code char(3) NOT NULL,
    short text CHECK (char_length(short) BETWEEN 3 AND 5), amount numeric(6, 2) NOT NULL CHECK (amount > 0),
    ratio float8 CHECK (ratio >= 0 AND ratio < 1), small smallint NOT NULL, big bigint, flag bool, gap interval,
    grown int GENERATED ALWAYS AS (age + 1) STORED, "Odd ""Näme" text NOT NULL, v vector(3), nums int[] NOT NULL);
CREATE UNIQUE INDEX ON customers (lower(full_name));
CREATE TABLE orders (
    id bigserial PRIMARY KEY, customer uuid NOT NULL REFERENCES customers, number int NOT NULL UNIQUE,
    parent bigint REFERENCES orders);
CREATE TABLE tags (id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name varchar(10) UNIQUE NOT NULL);
CREATE TABLE order_tags (o bigint REFERENCES orders, t smallint REFERENCES tags, PRIMARY KEY (o, t));
CREATE TABLE details (customer uuid PRIMARY KEY REFERENCES customers, day date UNIQUE, note text);
CREATE TABLE switches (a bool, b mood, PRIMARY KEY (a, b));
CREATE TABLE pairs (a int NOT NULL, b int NOT NULL, CONSTRAINT "a is twice b" CHECK (a = 2 * b));
CREATE TABLE shapes (p point NOT NULL);
CREATE TABLE hens (id int PRIMARY KEY, egg int NOT NULL);
CREATE TABLE eggs (id int PRIMARY KEY, hen int NOT NULL REFERENCES hens);
ALTER TABLE hens ADD FOREIGN KEY (egg) REFERENCES eggs;
CREATE TABLE measured (at date NOT NULL, n int) PARTITION BY RANGE (at);
CREATE TABLE measured_all PARTITION OF measured DEFAULT;
"""
FILLABLE = ("customers", "orders", "tags", "order_tags", "details", "measured")


@pytest.fixture
def shop(stack: Project) -> Iterator[Project]:
    run(stack, SHOP)
    yield stack
    run(stack, "DROP SCHEMA shop CASCADE; TRUNCATE memories")


def run(project: Project, sql: str) -> None:
    connection = project.connect()
    with connection.cursor() as cursor:
        cursor.execute(sql)
    connection.close()


def count(project: Project, table: str) -> int:
    number: int = project.query(f"SELECT count(*) FROM {table}")[0][0]
    return number


def digest(project: Project, table: str) -> str:
    text: str = project.query(f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t")[0][0]
    return text


def generate(project: Project, *args: str) -> Any:
    return json.loads(project.inv("data.generate", *args, "--json").stdout)


def test_a_search_of_the_application_finds_generated_memories(shop: Project) -> None:
    made = generate(shop, "--rows", "400", "--seed", "7")
    assert (made["seed"], made["tables"][0]["table"], made["tables"][0]["rows"]) == (7, "public.memories", 400)
    page = shop.http("/memories?limit=10")[1]
    assert page["total"] == 400
    for memory in page["items"]:
        found = shop.http(f"/memories/search?limit=3&q={urllib.parse.quote(memory['content'])}")[1]["items"]
        assert found[0]["content"] == memory["content"]
        assert found[0]["score"] > 0.9
        assert len(memory["content"].split()) > 4
    assert len({memory["content"] for memory in page["items"]}) == 10


@pytest.mark.slow
def test_a_seed_gives_the_same_rows_to_the_byte_another_one_others(shop: Project) -> None:
    seen = []
    for seed in ("1", "1", "2"):
        run(shop, "TRUNCATE memories, shop.customers CASCADE")
        generate(shop, "--rows", "1200", "--seed", seed)
        generate(shop, "--rows", "300", "--seed", seed, "--table", "shop.customers")
        seen.append((digest(shop, "memories"), digest(shop, "shop.customers")))
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[2][0]
    assert seen[0][1] != seen[2][1]


def test_rows_are_written_one_after_the_other_as_those_of_a_life_are(shop: Project) -> None:
    run(
        shop,
        "CREATE TABLE shop.notes (made timestamptz NOT NULL DEFAULT now(), read timestamp DEFAULT CURRENT_TIMESTAMP,"
        " day date DEFAULT timezone('utc', now())::date, due timestamptz NOT NULL)",
    )
    generate(shop, "--rows", "500", "--seed", "5", "--table", "shop.notes")
    found = shop.query("SELECT made AT TIME ZONE 'UTC', read, day, due FROM shop.notes ORDER BY ctid")
    made = [row[0] for row in found]
    assert made == sorted(made) != [made[0]] * 500
    assert (made[0].year, made[0].month, made[-1].year, made[-1].month) == (2024, 1, 2025, 12)
    assert all(read == row and day == row.date() for row, read, day, _ in found)
    assert (due := [row[3] for row in found]) != sorted(due)


@pytest.mark.slow
def test_the_same_seed_twice_is_refused_whole_and_no_seed_is_another_one(shop: Project) -> None:
    generate(shop, "--rows", "50", "--seed", "3")
    done = shop.inv("data.generate", "--rows", "200", "--seed", "3", expect=1)
    assert "memories_pkey" in done.stderr
    assert "take another --seed" in done.stderr
    assert count(shop, "memories") == 50
    assert generate(shop, "--rows", "50")["seed"] != generate(shop, "--rows", "50")["seed"]
    assert count(shop, "memories") == 150


@pytest.mark.slow
def test_the_indexes_are_there_afterwards_as_they_were(shop: Project) -> None:
    indexes = "SELECT indexdef FROM pg_indexes WHERE tablename = 'memories' ORDER BY 1"
    before = shop.query(indexes)
    assert generate(shop, "--rows", "1500")["tables"][0]["index_seconds"] > 0
    assert generate(shop, "--rows", "20")["tables"][0]["index_seconds"] == 0
    assert shop.query(indexes) == before
    assert len(before) == 4


def test_what_can_not_fit_on_the_disk_is_refused_before_a_row_is_made(shop: Project) -> None:
    run(shop, "CREATE TABLE shop.wide (v vector(16000))")
    done = shop.inv("data.generate", "--table", "shop.wide", "--rows", "50000000", expect=1)
    assert "there is not enough room for 50,000,000 rows" in done.stderr
    assert "the rows alone take more than" in done.stderr
    assert count(shop, "shop.wide") == 0


def test_an_index_that_can_not_be_made_again_as_it_was_stays(shop: Project) -> None:
    run(
        shop,
        "CREATE TABLE shop.parts (day date NOT NULL, v vector(3)) PARTITION BY RANGE (day);"
        " CREATE TABLE shop.part PARTITION OF shop.parts DEFAULT; CREATE INDEX ON shop.parts (day)",
    )
    indexes = (
        "SELECT i.indexrelid, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
        " WHERE relname IN ('part', 'parts') ORDER BY 1"
    )
    before = shop.query(indexes)
    assert [valid for _, valid in before] == [True, True]
    generate(shop, "--table", "shop.parts", "--rows", "1500")
    assert shop.query(indexes) == before


@pytest.mark.slow
def test_every_table_again_and_again_with_every_constraint_kept(shop: Project) -> None:
    run(shop, "DROP TABLE shop.pairs, shop.shapes, shop.switches; DROP TABLE shop.hens, shop.eggs")
    for rows in (300, 40, 40):
        shop.inv("data.generate", "--all", "--rows", str(rows))
    assert {table: count(shop, f"shop.{table}") for table in FILLABLE} == dict.fromkeys(FILLABLE, 380)
    assert count(shop, "memories") == 380
    (row,) = shop.query(
        "SELECT min(age), max(age), min(discount), max(discount), count(DISTINCT state), count(DISTINCT mood),"
        " min(amount) > 0, max(ratio) < 1, min(char_length(short)), max(char_length(short)), count(*) - count(age),"
        " count(DISTINCT nums), bool_and(seen BETWEEN '2024-01-01' AND '2026-01-02'),"
        " bool_and(abs(vector_norm(v) - 1) < 1e-5) FROM shop.customers"
    )
    assert row[:2] >= (18,)
    assert row[1] <= 66
    assert (row[2] >= 0, row[3] <= 100, row[4], row[5]) == (True, True, 2, 4)
    assert (row[6], row[7], row[8] >= 3, row[9] <= 5) == (True, True, True, True)
    assert 0 < row[10] < 120
    assert row[11] > 100
    assert row[12:] == (True, True)
    assert shop.query("SELECT count(DISTINCT o), count(DISTINCT t) FROM shop.order_tags")[0] > (100, 100)
    assert shop.query("SELECT version_num FROM alembic_version") == [("0001",)]


@pytest.mark.slow
def test_a_row_that_is_refused_is_explained_and_nothing_is_left(shop: Project) -> None:
    for flags, says in (
        (["--table", "shop.pairs"], "constraint a is twice b"),
        (["--table", "shop.shapes"], "column p has type point"),
        (["--table", "shop.orders"], "its foreign key needs rows of shop.customers"),
        (["--table", "shop.switches"], "can't take 10 more rows"),
        (["--table", "shop.nowhere"], "there is no table shop.nowhere"),
        (["--all"], "hens"),
    ):
        done = shop.inv("data.generate", "--rows", "10", *flags, expect=1 if "pairs" in flags[-1] else 2)
        assert says in done.stderr
        assert "fix:" in done.stderr
    for table in (*FILLABLE, "pairs"):
        assert count(shop, f"shop.{table}") == 0
    generate(shop, "--rows", "8", "--table", "switches")
    assert count(shop, "shop.switches") == 8


@pytest.mark.variations
@pytest.mark.parametrize("flags", [["--rows", "0"], ["--rows", "50000001"], ["--rows", "x"], ["--seed", "-1"]])
def test_what_can_not_be_made_is_refused(stack: Project, flags: list[str]) -> None:
    assert "error: --" in stack.inv("data.generate", *flags, expect=2).stderr


def test_an_application_without_such_a_function_gets_random_vectors_and_is_told(shop: Project) -> None:
    done = shop.inv("data.generate", "--rows", "5", INVOKE_DATA_EMBED="nowhere:embed")
    assert "No module named 'nowhere'; the vectors are random" in done.stderr
    assert count(shop, "memories") == 5


@pytest.mark.faults
def test_an_interruption_leaves_no_row_and_the_next_one_works(shop: Project) -> None:
    process = shop.popen("data.generate", "--rows", "3000000")
    busy = "SELECT FROM pg_stat_activity WHERE datname = 'nina' AND query ~ 'nv_rows' AND pid <> pg_backend_pid()"
    try:
        wait_for(lambda: shop.query(busy), 60)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()  # its transaction would keep everybody else waiting
        process.wait()
    assert process.returncode == 130
    wait_for(lambda: not shop.query(busy))
    assert count(shop, "memories") == 0
    generate(shop, "--rows", "3")
    assert count(shop, "memories") == 3


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal_only(shop: Project) -> None:
    assert shop.inv("data.generate", "--rows", "900").stderr == ""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        shop.command("data.generate", "--rows", "900"), cwd=shop.root, env=shop.env, stdout=slave, stderr=slave
    )
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:
        pass  # the terminal's end, on Linux
    os.close(master)
    assert process.wait() == 0
    assert b"memories:" in shown
    assert b"900 rows in" in shown
