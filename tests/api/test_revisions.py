"""Migrations: applied at start, once, and only from what this code knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api import main, revisions
from api.errors import StartupError
from tests.api.conftest import Sql
from tests.conftest import ROOT


def alembic(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NINAIVALAIGAL_")}
    return subprocess.run(
        [sys.executable, "-m", "alembic", *words],
        cwd=ROOT / "api",
        env={**environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
    )


def start(environ: dict[str, str]) -> None:
    with TestClient(main.create_app(environ)):
        pass


def test_a_new_database_gets_its_tables(sql: Sql, environ: dict[str, str]) -> None:
    start(environ)
    assert sql("SELECT version_num FROM alembic_version") == [("0001",)]
    assert sql("SELECT count(*) FROM memories") == [(0,)]


def test_a_second_start_does_not_even_ask_alembic(
    sql: Sql, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(environ)
    sql("INSERT INTO memories (content, embedding) VALUES ('kept', array_fill(1, ARRAY[384])::vector)")
    monkeypatch.setitem(sys.modules, "alembic", None)
    start(environ)
    assert sql("SELECT content FROM memories") == [("kept",)]


def test_two_at_once_migrate_once(sql: Sql, environ: dict[str, str]) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=ROOT / "api",
            env={**os.environ, **environ},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sum("Running upgrade" in text for text in errors) == 1
    assert sql("SELECT version_num FROM alembic_version") == [("0001",)]


def test_a_database_of_newer_code_is_refused(sql: Sql, environ: dict[str, str]) -> None:
    start(environ)
    sql("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(StartupError, match=r"at revision '0999', which this code \(up to '0001'\) does not have"):
        start(environ)
    assert sql("SELECT version_num FROM alembic_version") == [("0999",)]


def test_a_failed_migration_changes_nothing_and_says_why(sql: Sql, environ: dict[str, str]) -> None:
    sql("CREATE TABLE memories (somebody_elses int)")
    with pytest.raises(StartupError, match='could not be migrated: relation "memories" already exists'):
        start(environ)
    assert sql("SELECT to_regclass('alembic_version')") == [(None,)]


def test_alembic_by_hand(sql: Sql, database_url: str) -> None:
    assert alembic(database_url, "upgrade", "head").returncode == 0
    assert alembic(database_url, "current").stdout == "0001 (head)\n"
    assert alembic(database_url, "downgrade", "base").returncode == 0
    assert sql("SELECT to_regclass('memories')") == [(None,)]
    refused = alembic("", "upgrade", "head")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("api.errors.StartupError: NINAIVALAIGAL_DATABASE_URL is not set")


def test_what_alembic_says_of_the_files_is_what_we_read() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(Config(ROOT / "api" / "alembic.ini"))
    known = revisions.revisions(revisions.VERSIONS)
    assert revisions.newest(known) == scripts.get_current_head()
    assert set(known) == {script.revision for script in scripts.walk_revisions()}


def test_files_are_read_in_any_of_alembics_styles(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('revision = "a1"\ndown_revision = None\n')
    (tmp_path / "b.py").write_text("revision: str = 'b2'\ndown_revision: str | None = 'a1'\n")
    (tmp_path / "c.py").write_text("revision: str = 'c3'\ndown_revision: Union[str, None] = 'a1'\n")
    both = revisions.revisions(tmp_path)
    with pytest.raises(StartupError, match=r"2 newest revisions \(b2, c3\)"):
        revisions.newest(both)
    (tmp_path / "d.py").write_text('revision = "d4"\ndown_revision = ("b2", "c3")\n')
    assert revisions.newest(revisions.revisions(tmp_path)) == "d4"
    (tmp_path / "e.py").write_text("nothing = 1\n")
    with pytest.raises(StartupError, match=r"e\.py has no line"):
        revisions.revisions(tmp_path)
