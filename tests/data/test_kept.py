"""What restores keep for the way back: none is forgotten, and nothing else is ever removed."""

from __future__ import annotations

import json
import signal
import subprocess

import psycopg2
import pytest

from devstack.data.kept import DATABASES, PARAMETER
from tests.conftest import wait_for
from tests.data.conftest import Data
from tests.data.test_restore import AT


def restore(data: Data, name: str) -> str:
    """Restore without a safety backup; the name of the database that was kept."""
    kept: str = data.json("data.restore", "--file", name, "--no-safety-backup")["kept"]
    return kept


def listed(data: Data) -> dict[str, str]:
    """What is said of each kept copy."""
    kinds = ("for_undo", "left_over")
    found = data.json("data.list", "--kept")["kept"]
    return {copy["name"]: next((kind for kind in kinds if copy[kind]), "unknown") for copy in found}


def test_what_could_not_be_dropped_is_listed_named_by_health_and_removed_later(data: Data) -> None:
    path = data.backup()
    assert data.inv("data.list", "--kept").stdout == "no restore has kept anything that is still there\n"
    data.sql("CREATE SUBSCRIPTION away CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false)")
    first = restore(data, path.name)
    assert listed(data) == {first: "for_undo"}
    done = data.inv("data.restore", "--file", path.name, "--no-safety-backup")
    assert f"{first}, which an earlier restore kept, could not be removed" in done.stderr
    assert "logical replication subscription" in done.stderr
    (second,) = [name for name in data.databases() if name not in ("nina", first)]
    assert listed(data) == {first: "left_over", second: "for_undo"}
    shown = data.inv("data.list", "--kept").stdout
    assert f"restore of {path.name}" in shown
    assert "left over: inv data.cleanup removes it" in shown
    checks = json.loads(data.inv("health", "--json", expect=None).stdout)["services"][0]["checks"]
    (check,) = (check for check in checks if check["name"] == "kept")
    assert (check["verdict"], check["cause"].startswith(first)) == ("degraded", True)
    assert check["value"] > 1_000_000
    assert "could not be removed" in data.inv("data.cleanup").stderr
    assert "data.cleanup" not in data.inv("--dry", "data.cleanup").stderr
    assert listed(data)[first] == "left_over"
    data.sql(f'ALTER DATABASE "{first}" ALLOW_CONNECTIONS true')
    data.sql("ALTER SUBSCRIPTION away SET (slot_name = NONE); DROP SUBSCRIPTION away", first)
    assert (
        f"{first}  would be removed  (kept by the restore of {path.name}"
        in data.inv("data.cleanup", "--dry-run").stdout
    )
    assert f"{first}  removed" in data.inv("data.cleanup").stdout
    assert data.databases() == ["nina", second]
    data.inv("data.undo")
    checks = json.loads(data.inv("health", "--json", expect=None).stdout)["services"][0]["checks"]
    assert [check for check in checks if check["name"] == "kept"] == []


@pytest.mark.faults
def test_killed_while_the_earlier_one_is_dropped_it_goes_with_the_next_command(data: Data) -> None:
    path = data.backup()
    first = restore(data, path.name)
    source = AT.format(module="kept", name="_remove", after="pass", alone=True)
    words = data.code(source, "data.restore", "--file", path.name, "--no-safety-backup")
    done = subprocess.run(words, cwd=data.root, env=data.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert first in data.databases()
    (data.state / "journal.json").unlink()  # what it says is not needed for that
    # as PostgreSQL leaves it when it is killed in the middle of a DROP DATABASE
    data.sql(f"UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{first}'", "postgres")
    assert listed(data)[first] == "left_over"
    data.inv("data.cleanup")
    assert first not in data.databases()
    data.inv("data.undo")


def test_without_its_record_the_last_one_is_still_found(data: Data) -> None:
    data.sql("DELETE FROM log; INSERT INTO log (what) VALUES ('backed up')")
    path = data.backup()
    data.sql("UPDATE log SET what = 'in use'")
    kept = restore(data, path.name)
    (data.state / "previous.json").unlink()
    assert listed(data) == {kept: "for_undo"}
    data.inv("data.cleanup")
    assert kept in data.databases()
    assert f"before the restore of {path.name}" in data.inv("data.undo").stdout
    assert data.sql("SELECT what FROM log") == "in use"
    (data.state / "previous.json").write_text("{}")
    data.inv("data.undo")
    assert data.sql("SELECT what FROM log") == "backed up"
    assert len(data.databases()) == 2


def test_a_database_with_a_forged_mark_or_a_kept_one_s_name_is_not_removed(data: Data) -> None:
    path = data.backup()
    kept = restore(data, path.name)
    (mark,) = (row.split("|")[3] for row in data.sql(DATABASES).splitlines() if f"|{kept}|" in row)
    others = [f"nina_old_2020010{n}_000000" for n in range(4)]
    for name in others:
        data.sql(f'CREATE DATABASE "{name}" OWNER nina', "postgres")
    marks = [mark, json.dumps({**json.loads(mark), "signature": "0" * 64}), "{", ""]
    for name, forged in zip(others, marks, strict=True):
        data.sql(f"""ALTER DATABASE "{name}" SET {PARAMETER} = '{forged.replace("'", "''")}'""", "postgres")
    # and one with the very mark that it had, under another name, and the one in use
    data.sql(f"ALTER DATABASE nina SET {PARAMETER} = '{mark}'", "postgres")
    assert listed(data) == {kept: "for_undo", **dict.fromkeys(others, "unknown")}
    assert "not removed by any command" in data.inv("data.list", "--kept").stdout
    data.sql(f'ALTER DATABASE "{kept}" RENAME TO nina_old_20200109_000000', "postgres")
    second = restore(data, path.name)
    data.inv("data.cleanup", "--days", "0")
    assert data.databases() == sorted(["nina", second, *others, "nina_old_20200109_000000"])
    assert data.sql(f"SELECT count(*) FROM pg_db_role_setting WHERE setconfig::text LIKE '%{PARAMETER}%'") == "6"


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_database_that_is_being_created_when_its_command_is_ended_is_not_left(
    data: Data, number: signal.Signals
) -> None:
    """The server carries out what it was sent, whether or not the command is still there."""
    path = data.backup()
    creating = "SELECT query FROM pg_stat_activity WHERE query LIKE 'CREATE DATABASE %'"
    as_superuser = data.superuser()
    other = psycopg2.connect(host=as_superuser["PGHOST"], port=data.db_port, user="postgres", dbname="postgres")
    try:
        with other.cursor() as cursor:
            cursor.execute("ALTER DATABASE template0 RENAME TO template9")  # whoever copies it waits
        process = data.popen("data.restore", "--file", path.name, "--no-safety-backup")
        wait_for(lambda: data.sql(creating, "postgres"))
        process.send_signal(number)
        process.communicate()
        data.inv("data.list")
        data.inv("data.backup")
    finally:
        other.close()
    wait_for(lambda: not data.sql(creating, "postgres"))
    assert data.databases() == ["nina"]
