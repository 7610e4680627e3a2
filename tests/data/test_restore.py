"""Restores: exact, refused where they must be, and never a danger to what is there."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from devstack.data import load, restore, switch
from devstack.data.journal import Journal
from devstack.services import NotReady
from devstack.stack import Stack
from tests.conftest import wait_for
from tests.data import manifests
from tests.data.conftest import Data
from tests.data.test_backup import FILL, small_disk

CHANGE = """
DELETE FROM people WHERE id % 3 = 0;
INSERT INTO log (what) VALUES ('later');
DROP VIEW adults;
CREATE TABLE newer (id int);
SELECT nextval('free_sequence');
SELECT lo_unlink(424242);
"""


@pytest.fixture(autouse=True)
def same_afterwards(request: pytest.FixtureRequest) -> object:
    """The shared database is left as it was."""
    if "rich" not in request.fixturenames:
        yield
        return
    rich: Data = request.getfixturevalue("rich")
    before = rich.print_of()
    yield
    assert rich.print_of() == before
    assert [name for name in rich.databases() if not name.startswith("nina_old_")] == ["nina"]


@pytest.mark.variations
@pytest.mark.parametrize("layout", ["sql", "custom", "directory"])
def test_a_round_trip_is_exact_and_so_is_the_way_back(rich: Data, layout: str) -> None:
    before = rich.print_of()
    path = rich.backup("--format", layout)
    rich.sql(CHANGE)
    changed = rich.print_of()
    assert changed != before
    done = rich.json("data.restore", "--file", path.name)
    assert rich.print_of() == before
    assert done["compared"]
    assert done["kept"] in rich.databases()
    rich.inv("data.undo")
    assert rich.print_of() == changed
    rich.inv("data.undo")
    assert rich.print_of() == before
    assert len(rich.databases()) == 2
    rich.inv("data.verify", "--file", done["safety"])


PRIVILEGED = """
CREATE FUNCTION guard() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER guards ON ddl_command_end EXECUTE FUNCTION guard();
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE PUBLICATION chosen FOR TABLE people;
CREATE CAST (mood AS text) WITH INOUT AS ASSIGNMENT;
GRANT SELECT ON of_the_superuser TO nina WITH GRANT OPTION;
SET ROLE nina; GRANT SELECT ON of_the_superuser TO "other Role"; RESET ROLE;
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_notify(text, text) FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE "other Role" GRANT SELECT ON TABLES TO nina;
ALTER LARGE OBJECT 424242 OWNER TO postgres;
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sql", "custom", "directory"])
def test_what_takes_a_superuser_is_said_left_out_and_restored_where_that_is_asked_for(data: Data, layout: str) -> None:
    data.sql(PRIVILEGED)
    before = data.print_of(owners=True)
    done = data.inv("data.backup", "--format", layout, "--json")
    made = json.loads(done.stdout)
    assert {
        "event trigger guards (owner postgres)",
        "function public.guard() (owner postgres)",
        "table public.of_the_superuser (owner postgres)",
        "schema tools (owner postgres)",
        "publication everything (owner postgres)",
        "privileges on function pg_notify(text,text)",
        "default privileges of role other Role",
        "1 large object (owner postgres)",
    } <= {line.replace("(superuser, ", "(") for line in made["needs_superuser"]}
    assert "a restore gives to nina, or leaves out: " in done.stderr
    said = data.inv("data.restore", "--file", made["file"], "--no-safety-backup").stderr
    assert "left out, as only a superuser may create it: event trigger guards" in said
    assert "given to nina, or left out" in said
    assert data.sql("SELECT count(*) FROM pg_event_trigger") == "0"
    assert data.sql("SELECT pubname FROM pg_publication") == "chosen"
    assert data.sql("SELECT DISTINCT relowner::regrole FROM pg_class WHERE relname IN ('of_the_superuser')") == "nina"
    assert data.sql("SELECT has_table_privilege('other Role', 'people', 'SELECT')") == "t"
    data.inv("data.undo")
    data.sql(CHANGE.replace("SELECT lo_unlink(424242);", ""))
    assert "restored and counted" in data.inv("data.verify", "--deep", "--as-superuser", "--file", made["file"]).stdout
    data.inv("data.restore", "--as-superuser", "--file", made["file"], "--no-safety-backup")
    assert data.print_of(owners=True) == before


@pytest.mark.slow
def test_what_postgresql_refuses_the_owner_is_said_with_the_way_on(data: Data) -> None:
    data.sql("CREATE FUNCTION fast(text) RETURNS int LANGUAGE internal STRICT IMMUTABLE AS 'textlen'")
    before = data.print_of()
    made = data.json("data.backup")
    assert "function public.fast(text) (language internal, owner postgres)" in made["needs_superuser"]
    said = data.refused("data.restore", says="who may not do this")
    assert f"inv data.restore --file {made['file']} --as-superuser" in said
    assert data.print_of() == before
    data.inv("data.restore", "--as-superuser", "--file", made["file"])
    assert data.print_of() == before


@pytest.mark.slow
def test_latest_means_the_newest_full_one_that_no_restore_made(rich: Data) -> None:
    wanted = rich.backup()
    rich.backup("--schema-only")
    assert rich.json("data.restore")["source"] == wanted.name
    assert rich.json("data.restore")["source"] == wanted.name
    assert rich.json("data.restore", "--no-safety-backup", "--latest")["safety"] == ""
    moment = time.strftime("%Y-%m-%d %H:%M:%S+00:00", time.gmtime(time.time() + 1))
    assert rich.json("data.restore", "--at", moment)["source"] > wanted.name
    rich.refused("data.restore", "--at", "2001-01-01", says="no full backup from before")
    rich.refused("data.restore", "--at", "yesterday-ish", says="is not a moment", code=2)


def test_rows_alone_go_into_the_schema_that_is_there(rich: Data) -> None:
    path = rich.backup("--data-only")
    rows = rich.rows_of()
    rich.sql("DELETE FROM log; DELETE FROM vectors WHERE id > 5")
    rich.inv("data.restore", "--file", path.name, "--no-safety-backup")
    assert rich.rows_of() == rows


# refusals


def refusals(data: Data, folder: Path) -> dict[str, tuple[Path, str, bool]]:
    """Files with what is said of them, and whether --force is given."""
    text = data.program("pg_dump")
    packed = gzip.compress(text.encode())
    data.program("pg_dump", "-Fc", "-f", str(folder / "custom.dump"))
    custom = (folder / "custom.dump").read_bytes()
    newer = re.sub(r"(Dumped from database version )\d+", r"\g<1>99", text)
    contents: dict[str, tuple[bytes, str, bool]] = {
        "no-manifest.sql": (text.encode(), "no manifest.*\n.*add --force", False),
        "empty": (b"", "is empty", True),
        "empty.gz": (gzip.compress(b""), "is empty", True),
        "random": (random.Random(1).randbytes(5000), "unknown kind", True),
        "image.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 900, "a PNG image", True),
        "cut.sql": (text[: len(text) // 2].encode(), "cut off", True),
        "cut-last.sql": (text.rstrip()[:-60].encode(), "cut off", True),
        "cut.sql.gz": (packed[: len(packed) // 2], "compression is broken", True),
        "flipped.sql.gz": (packed[:3000] + bytes([packed[3000] ^ 1]) + packed[3001:], "compression is broken", True),
        "cut.dump": (custom[: len(custom) // 2], "pg_restore can't read it", True),
        "newer.sql": (newer.encode(), "made by PostgreSQL 99", True),
        "cluster.sql": (b"--\n-- PostgreSQL database cluster dump\n--\n", "whole cluster", True),
        "mysql.sql": (b"-- MySQL dump 10.13\nCREATE TABLE `x` (id int);\n", "MySQL", True),
    }
    made: dict[str, tuple[Path, str, bool]] = {}
    for name, (content, says, force) in contents.items():
        (folder / name).write_bytes(content)
        made[name] = (folder / name, says, force)
    (folder / "folder").mkdir()
    made["folder"] = (folder / "folder", "no dump of pg_dump", True)
    os.mkfifo(folder / "fifo")
    made["fifo"] = (folder / "fifo", "no regular file", True)
    made["zero"] = (Path("/dev/zero"), "no regular file", True)
    made["absent"] = (folder / "absent", "there is no file", True)
    return made


@pytest.mark.slow
def test_what_can_not_be_restored_is_refused_before_anything_is_touched(rich: Data, tmp_path: Path) -> None:
    files, databases = rich.files(), rich.databases()
    for path, says, force in refusals(rich, tmp_path).values():
        rich.refused("data.restore", "--file", str(path), *(["--force"] if force else []), says=says)
    assert (rich.files(), rich.databases()) == (files, databases)


@pytest.mark.slow
def test_a_backup_that_is_not_as_its_manifest_says_is_refused_with_force_too(rich: Data, tmp_path: Path) -> None:
    import json

    path = rich.backup()
    manifest = json.loads(Path(f"{path}.json").read_text())
    wrong: list[tuple[dict[str, object], str]] = [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"bytes": 5}, "its manifest says 5"),
        ({"server_version": "99.1"}, "made by PostgreSQL 99.1"),
        ({"extensions": {"no_such_thing": "1"}}, "needs the extension no_such_thing"),
    ]
    for number, (changes, says) in enumerate(wrong):
        copy = tmp_path / f"{number}.sql.gz"
        shutil.copy(path, copy)
        manifests.write(copy, {**manifest, "file": copy.name, **changes})
        rich.refused("data.restore", "--force", "--file", str(copy), says=says)
    manifests.write(copy, {**manifest, "file": copy.name, "database": "other"})
    rich.refused("data.restore", "--file", str(copy), says="a backup of database other")
    tables = {**manifest["tables"], "public.people": 499}
    manifests.write(copy, {**manifest, "file": copy.name, "tables": tables})
    rich.refused("data.restore", "--file", str(copy), says="public.people has 500 rows, not 499")
    rich.refused("data.verify", "--deep", "--file", str(copy), says="public.people has 500 rows, not 499")
    Path(f"{copy}.json").write_text("{")
    rich.refused("data.restore", "--file", str(copy), says="its manifest is damaged")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--clean", "--merge"], "exclude each other"),
        (["--latest", "--file", "x"], "exclude each other"),
        (["--choose"], "no terminal"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(rich: Data, flags: list[str], says: str) -> None:
    rich.refused("data.restore", *flags, says=says, code=2)


@pytest.mark.slow
def test_rows_alone_do_not_go_into_an_empty_database(data: Data) -> None:
    path = data.backup("--data-only")
    data.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION nina")
    data.refused("data.restore", "--file", path.name, says="their tables are not in database nina")


@pytest.mark.slow
def test_a_foreign_dump_is_restored_as_the_application_s_role(data: Data, tmp_path: Path) -> None:
    """Plain, compressed and custom, with what only a superuser might do left out."""
    data.sql("DROP TABLE of_the_superuser; DROP EXTENSION pg_trgm; SELECT lo_unlink(424242)")
    rows = data.rows_of()
    text = data.program("pg_dump", "--no-owner", "--no-privileges", "--no-comments")
    (tmp_path / "f.sql").write_text(text)
    (tmp_path / "f.sql.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "old.sql").write_text(re.sub(r"^\\(un)?restrict .*\n", "", text, flags=re.MULTILINE))
    (tmp_path / "windows.sql").write_text(
        "CREATE TABLE hand_made (x int);\r\nINSERT INTO hand_made VALUES (1), (2);\r\n"
    )
    data.program("pg_dump", "-Fc", "-f", str(tmp_path / "f.dump"))
    for name in ("f.sql", "f.sql.gz", "old.sql", "f.dump"):
        data.sql("DELETE FROM log; DELETE FROM vectors")
        data.inv("data.restore", "--force", "--no-safety-backup", "--file", str(tmp_path / name))
        assert data.rows_of() == rows, name
    data.inv("data.restore", "--force", "--no-safety-backup", "--file", str(tmp_path / "windows.sql"))
    assert data.query("SELECT count(*) FROM hand_made") == [(2,)]
    data.inv("data.undo")
    assert data.rows_of() == rows


@pytest.mark.variations
@pytest.mark.parametrize(
    "line",
    [
        r"\! touch PWN",
        r"SELECT 1 \! touch PWN",
        r"\copy people to program 'touch PWN'",
        r"\o |touch PWN",
        r"\unrestrict x" + "\n" + r"\! touch PWN",
        "SELECT '\n" + r"\unrestrict TOKEN" + "\n';\n" + r"\! touch PWN",
        "CREATE TABLE t (a text);\nCOPY t FROM stdin;\n\\.\n" + r"\! touch PWN",
        "COPY people TO PROGRAM 'touch PWN';",
        "SET ROLE postgres; CREATE TABLE x ();",
    ],
)
def test_commands_in_a_foreign_dump_are_not_obeyed(rich: Data, line: str, tmp_path: Path) -> None:
    text = rich.program("pg_dump", "-s", "-t", "tree")
    token = re.search(r"\\restrict (\w+)", text)[1]  # type: ignore[index]
    hostile = tmp_path / "hostile.sql"
    hostile.write_text(
        text.replace("SET statement_timeout", line.replace("TOKEN", token) + "\nSET statement_timeout", 1)
    )
    databases = rich.databases()
    rich.refused("data.restore", "--force", "--no-safety-backup", "--file", str(hostile), says="could not restore")
    assert not list(rich.folder.rglob("PWN"))
    assert not Path("PWN").exists()
    assert rich.databases() == databases


@pytest.mark.slow
def test_a_name_that_hides_a_command_is_harmless(data: Data) -> None:
    data.sql(
        'CREATE TABLE "x\n\\! touch PWN\n" (a int); COMMENT ON TABLE "x\n\\! touch PWN\n" IS E\'\\n\\\\! touch PWN\';'
    )
    before = data.schema_of()
    data.backup()
    data.inv("data.restore")
    assert data.schema_of() == before
    assert not list(data.folder.rglob("PWN"))


# faults


def states(data: Data, old: str, new: str) -> str:
    """Which of the two the database is; nothing else may it be."""
    content = data.rows_of()
    assert content in (old, new)
    return "old" if content == old else "new"


AT = """
import os, signal, sys
import psutil
from devstack.data import {module}
original = {module}.{name}
def stop(*args, **kwargs):
    {after}
    for child in psutil.Process().children() if {alone} else []:
        if any("devstack.data.recovery" in word for word in child.cmdline()):
            child.kill()
    os.kill(os.getpid(), signal.SIGKILL)
{module}.{name} = stop
sys.path.insert(0, os.getcwd())
from invoke.main import program
program.run(["inv", *sys.argv[1:]])
"""
STEPS = {
    "in a new empty database": ("load", "load", "", "old"),
    "loaded": ("restore", "compared", "", "old"),
    "clients cut off": ("switch", "_rename", "", "old"),
    "closed": ("switch", "_empty", "", "old"),
    "renamed": ("switch", "_rename", "original(*args, **kwargs)", "new"),
    "switched": ("switch", "_answers", "", "new"),
    "before the old one goes": ("restore", "settle", "", "new"),
    "with it noted": ("journal", "clear", "", "new"),
}
SWITCHING = list(STEPS)[2:]


def killed(data: Data, command: str, step: str, *, alone: bool, given: Path | None = None) -> tuple[str, str, str]:
    """Kill a restore or an undo at a step, with the guard that would put it right if it is to be ``alone``.

    :param given: a file that has the database's port, for that command alone; it is gone afterwards.
    :returns: the rows of the database before it and of the other one, and which of them are to be there.
    """
    module, name, after, expected = STEPS[step]
    data.sql("DELETE FROM log")
    new = data.rows_of()
    path = data.backup()
    flags = ["--file", path.name, "--no-safety-backup"]
    data.sql("INSERT INTO log (what) VALUES ('here')")
    old = data.rows_of()
    if command == "data.undo":
        data.inv("data.restore", *flags)
        old, new, flags = new, old, []
    env, core = dict(data.env), []
    if given:
        given.write_text(f"db:\n  port: {env.pop('INVOKE_DB_PORT')}\n")
        after, core = f"os.remove({str(given)!r}); {after}", ["-f", str(given)]
    source = AT.format(module=module, name=name, after=after or "pass", alone=alone)
    done = subprocess.run(
        data.code(source, *core, command, *flags), cwd=data.root, env=env, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    return old, new, expected


@pytest.mark.faults
@pytest.mark.parametrize(
    ("command", "step"),
    [*(("data.restore", step) for step in STEPS), *(("data.undo", step) for step in SWITCHING)],
)
def test_killed_at_a_step_it_is_finished_or_undone(data: Data, command: str, step: str) -> None:
    old, new, expected = killed(data, command, step, alone=True)
    note = data.inv("dev.up").stderr
    assert states(data, old, new) == expected, note
    assert ("finished" in note or "cut off" in note) or step == "with it noted"
    assert data.query("SELECT 1", data.pgb_port) == [(1,)]
    assert len(data.databases()) <= 2


@pytest.mark.faults
@pytest.mark.parametrize(
    ("command", "step"), [*(("data.restore", step) for step in SWITCHING), ("data.undo", "closed")]
)
def test_killed_in_its_switch_it_keeps_no_client_waiting_for_a_person(data: Data, command: str, step: str) -> None:
    check_clients_go_on(data, command, step)


@pytest.mark.faults
@pytest.mark.slow
def test_killed_while_pgbouncer_pauses_it_keeps_no_client_waiting_for_a_person(data: Data) -> None:
    with pool_mode(data, "transaction"):
        check_clients_go_on(data, "data.restore", "closed")


@pytest.mark.faults
@pytest.mark.slow
def test_what_puts_it_right_has_the_settings_of_a_file_that_is_gone(data: Data, tmp_path: Path) -> None:
    check_clients_go_on(data, "data.restore", "closed", given=tmp_path / "given.yaml")


def check_clients_go_on(data: Data, command: str, step: str, *, given: Path | None = None) -> None:
    """Kill a command at a step, and check that clients are served without another one."""
    old, new, expected = killed(data, command, step, alone=False, given=given)
    began = time.monotonic()
    assert data.query("SELECT 1", data.pgb_port, connect_timeout=30) == [(1,)]
    assert time.monotonic() - began < 20
    wait_for(lambda: not (data.state / "journal.json").exists())
    assert states(data, old, new) == expected
    assert data.json("health")["verdict"] == "healthy"
    log = (data.root / "logs" / "devstack.log").read_text()
    assert re.search(r"^(finished )?the \w+ of .* was cut off", log, re.MULTILINE)
    wait_for(lambda: guards(data) == [])


def guards(data: Data) -> list[list[str]]:
    """Return the command lines of the guards of the project's restores."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if str(data.root) in words and process.status() != psutil.STATUS_ZOMBIE:
                found.append(words)
    return found


@pytest.mark.faults
@pytest.mark.parametrize("step", ["closed", "renamed"])
@pytest.mark.parametrize("fix", ["dev.heal", "data.list"])
def test_what_health_names_puts_a_switch_right_that_nobody_guarded(data: Data, fix: str, step: str) -> None:
    old, new, expected = killed(data, "data.restore", step, alone=True)
    found = data.json("health", expect=1)["services"][0]
    assert (found["verdict"], found["remedy"]) == ("unhealthy", "recover")
    assert "it was cut off" in found["cause"]
    assert found["fix"] == "inv dev.heal finishes or undoes it; so do inv dev.up and inv data.list"
    data.inv(fix)
    assert data.query("SELECT 1", data.pgb_port) == [(1,)]
    assert states(data, old, new) == expected
    assert data.json("health")["verdict"] == "healthy"


@pytest.mark.faults
def test_a_renaming_that_is_still_on_its_way_does_not_overtake_what_puts_it_right(data: Data) -> None:
    """The server carries out what it was sent, whether or not its client is still there."""
    old, new, _ = killed(data, "data.restore", "closed", alone=True)
    incoming = json.loads((data.state / "journal.json").read_text())["incoming"]
    late = subprocess.Popen(
        [str(data.bin / "psql"), "-XqAt", "-d", "postgres"],
        env={**data.env, **data.superuser(), "PGDATABASE": "postgres"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert late.stdin
    assert late.stdout
    late.stdin.write(f"SET application_name = '{switch.RENAMING}'; BEGIN; ALTER DATABASE nina RENAME TO other;\n")
    late.stdin.write(f"ALTER DATABASE {incoming} RENAME TO nina; SELECT 'sent';\n")
    late.stdin.flush()
    assert late.stdout.readline() == "sent\n"
    data.inv("data.list")
    late.communicate("COMMIT;\n")
    assert states(data, old, new) == "old"
    assert data.databases() == ["nina"]


@pytest.mark.parametrize(("error", "code"), [(NotReady("it says nothing"), 0), (SystemExit(143), 143)])
def test_rows_that_are_written_after_the_switch_stay_whatever_fails_then(
    data: Data, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(_: Stack) -> None:
        data.sql("INSERT INTO log (what) VALUES ('after the switch')")
        raise error

    path = data.backup()
    data.sql("DELETE FROM log; INSERT INTO log (what) VALUES ('before')")
    monkeypatch.setattr(switch, "_answers", fail)
    said = data.inv("data.restore", "--file", path.name, "--no-safety-backup", expect=code).stderr
    monkeypatch.undo()
    assert ("clients do not reach it yet: it says nothing" in said) == (code == 0)
    assert data.sql("SELECT what FROM log ORDER BY 1 LIMIT 1") == "after the switch"
    data.inv("data.undo")
    assert data.sql("SELECT what FROM log") == "before"
    assert len(data.databases()) == 2


def test_a_restored_database_that_does_not_let_the_application_in_is_not_put_in_use(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(_: Stack, made: Journal) -> None:
        data.sql(f'ALTER DATABASE "{made.incoming}" CONNECTION LIMIT 0', "postgres")

    path = data.backup()
    data.sql("DELETE FROM log; INSERT INTO log (what) VALUES ('before')")
    monkeypatch.setattr(restore, "copy_properties", close)
    data.refused("data.restore", "--file", path.name, "--no-safety-backup", says="could not log in to the restored")
    assert data.sql("SELECT what FROM log") == "before"
    assert data.databases() == ["nina"]


@pytest.mark.faults
def test_a_killed_proof_leaves_no_database_behind_after_the_next_start(data: Data) -> None:
    data.backup()
    source = AT.format(module="load", name="load", after="pass", alone=False)
    done = subprocess.run(
        data.code(source, "data.verify", "--deep"), cwd=data.root, env=data.env, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert len(data.databases()) == 2
    data.inv("dev.up")
    assert data.databases() == ["nina"]


@pytest.mark.faults
def test_a_server_that_goes_away_during_a_proof_says_nothing_about_the_backup(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = load._fill

    def crash(*args: Any) -> None:
        psutil.Process(int((data.data / "postmaster.pid").read_text().split()[0])).kill()
        fill(*args)

    path = data.backup()
    monkeypatch.setattr(load, "_fill", crash)
    said = data.refused("data.verify", "--deep", says=f"{path.name} could not be checked")
    assert "its file is whole; the database went away while it was restored" in said
    monkeypatch.undo()
    data.inv("dev.up")
    data.inv("data.verify", "--deep")
    assert data.databases() == ["nina"]


MERGING = {
    "in a new empty database": ("load", "load", "", "old"),
    "loaded": ("merge", "_check_shape", "", "old"),
    "with a table's rows": ("merge", "_merge_table", "original(*args, **kwargs)", "old"),
    "with every row": ("merge", "_check_references", "", "old"),
    "with the sequences": ("merge", "_advance_sequences", "original(*args, **kwargs)", "old"),
    "done": ("load", "abandon", "", "new"),
    "with its own database gone": ("journal", "clear", "", "new"),
}


@pytest.mark.faults
@pytest.mark.parametrize("step", MERGING)
def test_a_merge_killed_at_a_step_has_added_all_or_nothing(data: Data, step: str) -> None:
    module, name, after, expected = MERGING[step]
    path = data.backup()
    new = data.rows_of(sequences=False)
    data.sql("DELETE FROM people WHERE id > 450; DELETE FROM vectors")
    old = data.rows_of(sequences=False)
    assert old != new
    source = AT.format(module=module, name=name, after=after or "pass", alone=False)
    flags = ["--merge", "--file", path.name, "--no-safety-backup"]
    done = subprocess.run(
        data.code(source, "data.restore", *flags),
        cwd=data.root, env=data.env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    # what it had open in the server ends on its own, a moment later
    note = data.inv("dev.up").stderr
    assert "the merge of" in note
    assert data.rows_of(sequences=False) == (new if expected == "new" else old)
    assert data.databases() == ["nina"]
    data.inv("data.restore", *flags)
    assert data.rows_of(sequences=False) == new


def ask(data: Data, answer: bytes, *flags: str) -> tuple[int, str]:
    """A restore by a list on a terminal, and what is typed there."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        data.command("data.restore", "--choose", *flags), cwd=data.root, env=data.env, stdin=slave,
        stdout=slave, stderr=slave, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(slave)
        said = b""
        with contextlib.suppress(OSError):  # Linux: the other side is closed
            while chunk := os.read(master, 4096):
                said += chunk
                if answer and b"which one?" in said:
                    os.write(master, answer)
                    answer = b""
        code = process.wait(60)
    os.close(master)
    return code, said.decode()


@pytest.mark.slow
def test_one_is_chosen_on_a_terminal(data: Data) -> None:
    data.sql("DELETE FROM log; INSERT INTO log (what) VALUES ('first')")
    first = data.backup("--label", "the first")
    data.sql("UPDATE log SET what = 'second'")
    second = data.backup()
    data.sql("UPDATE log SET what = 'now'")
    for answer in (b"no such\n", b"3\n", b"0\n", b"\n", b"\x04"):
        code, said = ask(data, answer)
        assert code == 2, said
        assert "no backup was chosen" in said
        assert "Traceback" not in said
        assert "the first" in said
    assert data.sql("SELECT what FROM log") == "now"
    assert ask(data, b"2\n", "--no-safety-backup")[0] == 0
    assert data.sql("SELECT what FROM log") == "first"
    assert ask(data, f"{second.name}\n".encode(), "--no-safety-backup")[0] == 0
    assert data.sql("SELECT what FROM log") == "second"
    assert first.exists()
    data.refused("data.restore", "--choose", says="there is no terminal", code=2)
    data.refused("data.restore", "--choose", "--json", says="exclude each other", code=2)


@pytest.mark.faults
@pytest.mark.parametrize("after", [0.0, 0.3])
def test_when_postgres_is_killed_during_a_restore_the_old_database_is_there(data: Data, after: float) -> None:
    data.sql(f"ALTER TABLE fast SET LOGGED; {FILL}")  # a crash empties an unlogged one
    path = data.backup("--no-verify")
    data.sql("DELETE FROM bulk WHERE id > 10; DELETE FROM log")
    old = data.rows_of(sequences=False)
    process = data.popen("data.restore", "--file", path.name, "--no-safety-backup")
    wait_for(lambda: (data.state / "journal.json").exists())
    time.sleep(after)
    psutil.Process(int((data.data / "postmaster.pid").read_text().split()[0])).kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "defect" not in err
    data.inv("db.start")
    assert data.rows_of(sequences=False) == old
    data.inv("data.restore", "--file", path.name)
    assert data.sql("SELECT count(*) FROM bulk") == "200000"


@contextlib.contextmanager
def pool_mode(data: Data, mode: str) -> Iterator[None]:
    """Have PgBouncer in a mode for the time being."""
    data.env["INVOKE_PGB_POOL_MODE"] = mode
    try:
        data.inv("dev.up")
        yield
    finally:
        del data.env["INVOKE_PGB_POOL_MODE"]
        data.inv("dev.up")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_clients_wait_a_moment_and_see_the_new_rows(data: Data, mode: str) -> None:

    with pool_mode(data, mode):
        data.sql("DELETE FROM log; INSERT INTO log (what) VALUES ('backed up')")
        path = data.backup()
        data.sql("UPDATE log SET what = 'in use'")
        stop = threading.Event()
        broken: list[str] = []
        seen: list[tuple[float, str]] = []

        def ask() -> None:
            connection = data.connect(data.pgb_port)
            while not stop.is_set():
                try:
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT what FROM log")
                        seen.append((time.monotonic(), cursor.fetchall()[0][0]))
                except psycopg2.Error as error:
                    broken.append(str(error))
                    with contextlib.suppress(psycopg2.Error):
                        connection = data.connect(data.pgb_port)
                time.sleep(0.002)

        client = threading.Thread(target=ask)
        client.start()
        wait_for(lambda: seen)
        done = data.json("data.restore", "--file", path.name)
        wait_for(lambda: seen[-1][1] == "backed up")
        stop.set()
        client.join()
        words = [word for _, word in seen]
        assert words == sorted(words, key=["in use", "backed up"].index), "it went back and forth"
        times = [when for when, _ in seen]
        gap = max(after - before for before, after in itertools.pairwise(times))
        print(f"{mode}: longest wait of a client {gap:.3f} s, {len(broken)} broken, outage {done['outage']} s")
        assert len(broken) <= 1, broken


@pytest.mark.slow
def test_a_backup_waits_for_a_restore_and_a_restore_for_another(data: Data) -> None:
    data.sql(FILL)
    path = data.backup("--no-verify")
    first = data.popen("data.restore", "--file", path.name, "--no-safety-backup")
    wait_for(lambda: (data.state / "journal.json").exists())
    first.send_signal(signal.SIGSTOP)  # until both others are there
    try:
        others = [data.popen("data.backup"), data.popen("data.restore", "--file", path.name, "--no-safety-backup")]
        for process in others:
            assert process.stderr
            assert "waiting for" in process.stderr.readline()
    finally:
        first.send_signal(signal.SIGCONT)
    for process in [first, *others]:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
    data.inv("data.verify", "--all")


@pytest.mark.faults
@pytest.mark.skipif(os.getuid() != 0, reason="a small file system can be mounted by root alone")
def test_a_disk_that_fills_during_a_restore_costs_nothing(fresh: Data, tmp_path: Path) -> None:
    with small_disk(fresh.folder / "small", "400m") as disk:
        fresh.state_base = disk
        fresh.env["INVOKE_STACK_STATE_DIR"] = str(disk)
        try:
            fresh.inv("db.start")
            fresh.sql("CREATE TABLE precious AS SELECT 42 AS answer")
            big = tmp_path / "big.sql"
            big.write_text("CREATE TABLE b AS SELECT repeat(md5(g::text), 20) FROM generate_series(1, 2000000) g;\n")
            fresh.refused("data.restore", "--force", "--file", str(big), says="could not restore big.sql")
            fresh.inv("db.start")  # a full disk takes the server down, too
            assert fresh.sql("SELECT answer FROM precious") == "42"
            fresh.inv("data.backup")
            assert fresh.databases() == ["nina"]
        finally:
            fresh.inv("dev.down", expect=None)


@pytest.mark.slow
def test_the_sequence_of_the_specification(data: Data) -> None:
    path = data.backup()
    data.inv("dev.down")
    assert "database nina is stopped" not in data.refused("data.backup", says="nv-db is stopped")
    rows = data.inv("data.restore").stdout
    assert path.name in rows
    data.inv("dev.status")
    assert data.http("/health")[0] == 200


@pytest.mark.slow
def test_hooks_run_around(data: Data) -> None:
    points = ["pre_backup", "post_backup", "pre_restore", "post_restore"]
    data.env.update({f"INVOKE_HOOKS_{point.upper()}": f'["echo {point} >> trace"]' for point in points})
    data.inv("data.backup")
    data.inv("data.restore")
    assert (data.root / "trace").read_text().split() == points
    data.refused("data.restore", says="hook pre_restore failed", INVOKE_HOOKS_PRE_RESTORE='["false"]')


def test_a_dry_run_changes_nothing(rich: Data) -> None:
    rich.backup()
    files, databases = rich.files(), rich.databases()
    shown = rich.inv("--dry", "data.restore").stdout
    assert "# restore" in shown
    rich.inv("--dry", "data.undo")
    assert (rich.files(), rich.databases()) == (files, databases)


def test_nothing_to_undo_is_said(data: Data) -> None:
    data.refused("data.undo", says="there is nothing to undo")


@pytest.mark.slow
def test_health_is_told_what_is_going_on(rich: Data) -> None:
    from types import SimpleNamespace

    from devstack.data.journal import restoring

    paths = SimpleNamespace(journal=rich.state / "journal.json", swap=rich.state / "swap.json")
    assert restoring(paths) == ""  # type: ignore[arg-type]
    path = rich.backup()
    process = rich.popen("data.restore", "--file", path.name, "--no-safety-backup")
    sentence = wait_for(lambda: restoring(paths))  # type: ignore[arg-type]
    assert re.fullmatch(rf"restoring {path.name} since \d\d:\d\d:\d\d UTC", sentence)
    process.send_signal(signal.SIGSTOP)
    try:
        found = json.loads(rich.inv("health", "--json", expect=None).stdout)
    finally:
        process.send_signal(signal.SIGCONT)
    (check,) = (check for check in found["services"][0]["checks"] if check["name"] == "restore")
    assert (check["verdict"], check["cause"]) == ("degraded", sentence)
    assert check["fix"] == "wait for it: inv health --wait 600"
    process.communicate(timeout=60)
    assert restoring(paths) == ""  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="a small file system can be mounted by root alone")
def test_when_what_is_there_can_not_be_backed_up_it_is_not_replaced(data: Data, tmp_path: Path) -> None:
    path = data.backup()
    data.sql(f"DELETE FROM log; {FILL}")
    before = data.print_of()
    with small_disk(tmp_path / "disk", "4m") as disk:
        shutil.copy(path, disk)
        shutil.copy(f"{path}.json", disk)
        data.env["INVOKE_DATA_DIR"] = str(disk)
        data.refused("data.restore", "--file", path.name, says="the backup could not be written")
        assert sorted(p.name for p in disk.iterdir()) == [path.name, f"{path.name}.json"]
    assert data.databases() == ["nina"]
    assert not (data.state / "journal.json").exists()
    assert data.print_of() == before


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_the_database_in_use_and_no_other(data: Data, number: signal.Signals) -> None:
    data.sql(FILL)
    path = data.backup()
    before = data.print_of()
    process = data.popen("data.restore", "--file", path.name)
    wait_for(lambda: list(data.backups.glob(".nv-*.partial")))
    assert (data.state / "journal.json").exists()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert data.databases() == ["nina"]
    assert not (data.state / "journal.json").exists()
    assert sorted(p.name for p in data.backups.iterdir()) == [path.name, f"{path.name}.json"]
    assert data.print_of() == before
