"""The application's migrations: past the pooler, behind a backup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import Project

TABLE = "SELECT to_regclass('memories') IS NOT NULL"
SHOWN = 'echo "$DATABASE_URL $direct_url $database_url $db_port $steps $PWD"'


@pytest.fixture
def migrated(stack: Project) -> Project:
    if stack.query(TABLE) == [(False,)]:
        stack.inv("data.migrate", "--no-backup")
    return stack


def backups(project: Project) -> list[Path]:
    return sorted((project.root / "backups").glob("backup-*.gz"))


def test_down_and_up_again_each_behind_a_proven_backup(migrated: Project) -> None:
    migrated.http("/memories", {"content": "kept in the backup"})
    before = len(backups(migrated))
    done = migrated.inv("data.migrate", "--down")
    assert "Running downgrade 0001 ->" in done.stdout
    assert "verified" in done.stdout
    assert migrated.query(TABLE) == [(False,)]
    manifest = json.loads(Path(f"{backups(migrated)[-1]}.json").read_text())
    assert (manifest["label"], manifest["tables"]["public.memories"], len(backups(migrated))) == (
        "pre-migrate",
        1,
        before + 1,
    )
    assert "(current)" not in migrated.inv("data.migrate", "--status").stdout
    migrated.inv("data.migrate")
    assert migrated.query(TABLE) == [(True,)]
    status = migrated.inv("data.migrate", "--status").stdout
    assert "0001 (head) (current)" in status
    assert len(backups(migrated)) == before + 2


def test_no_backup_is_said_out_loud(migrated: Project) -> None:
    before = backups(migrated)
    done = migrated.inv("data.migrate", "--no-backup")
    assert done.stderr == "no backup is made of what is there: --no-backup\nthe migrations are applied\n"
    assert backups(migrated) == before


@pytest.mark.slow
def test_a_failure_passes_its_code_shows_its_lines_and_the_way_back(migrated: Project) -> None:
    command = "echo first; echo 'the column is gone' >&2; exit 7"
    done = migrated.inv("data.migrate", expect=7, INVOKE_DATA_MIGRATE=command)
    assert "first\nthe column is gone\n" in done.stdout
    assert re.search(r"exit code 7.*\n +\| first\n +\| the column is gone\n", done.stderr)
    assert f"inv data.restore --file {backups(migrated)[-1].name}" in done.stderr
    migrated.inv("data.migrate", "--down", "9", "--no-backup", expect=255)
    assert migrated.query(TABLE) == [(True,)]


def test_a_command_of_the_user_s_own_gets_urls_past_the_pooler_and_shows_no_password(migrated: Project) -> None:
    done = migrated.inv("data.migrate", "--down", "3", "--no-backup", INVOKE_DATA_MIGRATE_DOWN=SHOWN)
    url = f"postgresql://nina:***@127.0.0.1:{migrated.db_port}/nina"
    assert done.stdout == f"{url} {url} {url} {migrated.db_port} 3 {migrated.root / 'api'}\n"
    check = (
        "python -c \"import os, psycopg2; print(psycopg2.connect(os.environ['MINE']).get_dsn_parameters()['port'])\""
    )
    mine = '{"MINE": "$database_url"}'
    done = migrated.inv("data.migrate", "--status", INVOKE_DATA_MIGRATE_STATUS=check, INVOKE_API_ENV=mine)
    assert done.stdout == f"{migrated.db_port}\n"


@pytest.mark.slow
def test_what_can_not_be_run_is_refused_before_the_backup(migrated: Project) -> None:
    before = backups(migrated)
    for flags, env, says in (
        (["--status", "--down"], {}, "exclude each other"),
        (["--down", "x"], {}, "not a number of migrations"),
        (["--down", "0"], {}, "not a number of migrations"),
        ([], {"INVOKE_API_DIR": "templates"}, "data.migrate is empty"),
        (["--down"], {"INVOKE_API_DIR": "templates"}, "data.migrate_down is empty"),
        ([], {"INVOKE_API_PYTHON": "nowhere/python"}, "can't be run"),
    ):
        assert says in migrated.inv("data.migrate", *flags, expect=2, **env).stderr
    assert backups(migrated) == before
    shown = migrated.inv("--dry", "data.migrate").stdout.splitlines()
    assert shown[0] == "# back up database nina, labelled pre-migrate"
    assert shown[1].endswith(" -m alembic upgrade head")
