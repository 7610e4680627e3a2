"""Check a copy of a cluster with PostgreSQL's own programs, none of which starts another by a shell.

``pg_verifybackup`` runs ``pg_waldump`` through a shell, with the copy's directory in double quotes: ``$(…)`` in a name
is executed. So it is told to leave the WAL alone (``-n``), and ``pg_waldump`` is run here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devstack.errors import ContentError
from devstack.files import load_json

if TYPE_CHECKING:
    from devstack.stack import Stack

LSN = re.compile(r"[0-9A-F]{1,8}/[0-9A-F]{1,8}")
"""https://www.postgresql.org/docs/current/datatype-pg-lsn.html"""


def check(stack: Stack, copy: Path, manifest: bytes | str, what: str, *, own: bool) -> None:
    """Check the files of a copy against its manifest, and read the WAL that it needs.

    :param copy: its directory, as PostgreSQL's programs see it.
    :param manifest: the content of its ``backup_manifest``.
    :param what: what is done, as in "could not …".
    :param own: whether this environment has made it.
    :raises StackError: something is missing or changed.
    """
    run, reading = stack.context.run, stack.db.reading
    run(reading(["pg_verifybackup", "-q", "-n", str(copy)], own=own), what)
    for words in wal_ranges(manifest, what):
        run(reading(["pg_waldump", "--quiet", f"--path={copy / 'pg_wal'}", *words], own=own), what)


def wal_ranges(manifest: bytes | str, what: str) -> list[list[str]]:
    """Return pg_waldump's options for each range of WAL in a ``backup_manifest``.

    https://www.postgresql.org/docs/current/backup-manifest-wal-ranges.html

    :raises ContentError: the manifest does not say which.
    """
    try:
        ranges: list[dict[str, Any]] = load_json(manifest)["WAL-Ranges"]
        found = [(one["Timeline"], one["Start-LSN"], one["End-LSN"]) for one in ranges]
    except (ValueError, KeyError, TypeError):
        found = []
    if not found or not all(
        type(line) is int and line > 0 and LSN.fullmatch(str(a)) and LSN.fullmatch(str(b)) for line, a, b in found
    ):
        raise ContentError(
            f"could not {what}", why="its backup_manifest names no WAL", evidence=["its manifest is damaged"]
        )
    return [[f"--timeline={line}", f"--start={begin}", f"--end={end}"] for line, begin, end in found]
