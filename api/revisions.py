"""The database's tables, brought to what this code expects.

Alembic does the work. Importing it takes longer than all the rest of the start, so it is asked only when there
is work: what the newest revision is stands in the files.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import psycopg2

from .database import Database
from .errors import StartupError

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
VERSIONS = HERE / "migrations" / "versions"
ASSIGNMENT = re.compile(r"^(revision|down_revision)\b[^=\n]*=(.*)$", re.MULTILINE)


def migrate(database: Database, url: str, versions: Path = VERSIONS) -> None:
    """Apply the missing migrations, none if the database is at the newest revision.

    Several processes may do this at once: the migration itself takes a lock (see migrations/env.py).

    :raises StartupError: a migration failed, or the database is at a revision that this code does not have.
    :raises DatabaseUnavailableError: the database does not answer.
    """
    known = revisions(versions)
    head = newest(known)
    current = _current(database)
    if current == head:
        return
    if current is not None and current not in known:
        raise StartupError(
            f"the database is at revision {current!r}, which this code (up to {head!r}) does not have:"
            " newer code has migrated it; run that code, or restore an older backup"
        )
    _upgrade(url)
    log.info("the database was migrated", extra={"fields": {"before": current, "revision": head}})


def revisions(versions: Path) -> dict[str, list[str]]:
    """Each revision and what it builds on, read from the text of the files.

    :raises StartupError: a file that names no revision.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(versions.glob("*.py")):
        names = {
            name: re.findall(r"[\"']([^\"']+)[\"']", value)
            for name, value in ASSIGNMENT.findall(path.read_text("utf-8"))
        }
        if not names.get("revision"):
            raise StartupError(f'the migration {path.name} has no line: revision = "..."')
        found[names["revision"][0]] = names.get("down_revision", [])
    return found


def newest(known: dict[str, list[str]]) -> str:
    """The one revision that no other builds on.

    :raises StartupError: there is none, or more than one.
    """
    heads = sorted(set(known) - {down for downs in known.values() for down in downs})
    if len(heads) != 1:
        raise StartupError(f"the migrations have {len(heads)} newest revisions ({', '.join(heads)}), not one")
    return heads[0]


def _current(database: Database) -> str | None:
    # asked first, so that a new database's log does not begin with an error
    if database.fetch("SELECT to_regclass('alembic_version') AS found")[0]["found"] is None:
        return None
    rows = database.fetch("SELECT version_num FROM alembic_version")
    return rows[0]["version_num"] if rows else None


def _upgrade(url: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    # not from alembic.ini, whose format can't hold every path that this folder may have
    config = Config()
    config.set_main_option("script_location", str(HERE / "migrations").replace("%", "%%"))
    config.attributes["database_url"] = url
    try:
        command.upgrade(config, "head")
    except (SQLAlchemyError, psycopg2.Error, CommandError) as error:
        cause = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise StartupError(f"the database could not be migrated: {cause}") from error
