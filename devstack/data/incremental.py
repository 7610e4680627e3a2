"""Copies of the whole cluster's files, and of what changed in them since the last copy: PostgreSQL 17 and later.

https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-INCREMENTAL-BACKUP
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from devstack import console
from devstack.container import CHUNK
from devstack.data import backup, catalogue, signing, verify
from devstack.data.aside import Aside, aside
from devstack.data.catalogue import Backup
from devstack.data.manifest import Manifest, Verified, now, stamp
from devstack.data.session import session
from devstack.data.streams import meter, sha256_of
from devstack.errors import StackError, UsageError
from devstack.services.prepared import LINEAGE
from devstack.shell import Command

if TYPE_CHECKING:
    from devstack.stack import Stack

LIST = "backup_manifest"
"""PostgreSQL's own list of the files in a copy, with their checksums and its own."""


def check_version(stack: Stack) -> None:
    """:raises UsageError: this PostgreSQL is too old."""
    if stack.db.programs.major < 17:
        raise UsageError(
            "--incremental needs PostgreSQL 17 or later",
            why=f"this is {stack.db.programs.version} in {stack.db.programs.bin}",
            fix="leave --incremental out: a dump works with every version",
        )


def create(stack: Stack, request: backup.Request) -> Backup | None:
    """Copy what changed since the last copy, or everything where there is nothing to build on; None in a dry run.

    :raises StackError: it could not be made; nothing is left behind then.
    """
    check_version(stack)
    request.check()
    folder = catalogue.folder_of(stack.settings)
    if stack.context.dry:
        console.command(_command(stack, folder / "backup-base-….cluster", None))
        return None
    catalogue.prepare(stack)
    began, created = time.monotonic(), now()
    with session(stack.db, stack.settings.db.name, "look at the database") as sql:
        about = backup.about_of(sql)
    summarizing = _summarize(stack)
    parent, why = _parent(stack, catalogue.backups(folder), about["system_identifier"])
    if parent and not summarizing:
        parent, why = None, "summarize_wal was off until now"
    try:
        with aside(folder, directory=True) as partial:
            parent = _copy(stack, partial, parent, why)
            saved = _hollow(partial.path)
            made = _manifest(stack, request, partial.path, parent, about, saved)
            if request.verify:
                verify.check_content(stack, partial.path, made)
                made = backup.changed(made, verified=Verified(stamp(now()), "read"))
            sequence = 1 + max((b.manifest.sequence for b in catalogue.backups(folder)), default=0)
            names = backup.names(folder, made.kind, made.layout, now(), own=backup.own_of(stack, folder))
            path, made = partial.publish(
                lambda: next(names),
                lambda file: signing.sign(
                    stack,
                    backup.changed(
                        made, file=file, sequence=sequence, created=stamp(created), seconds=backup.since(began)
                    ),
                ),
            )
    except OSError as error:
        if not backup.is_in(folder, error):
            raise
        raise backup.not_written(folder, error, request) from None
    except StackError as error:
        if full := backup.no_room(error):
            raise backup.not_written(folder, OSError(errno.ENOSPC, full), request) from None
        raise
    return Backup(path, made)


def _summarize(stack: Stack) -> bool:
    """Have the server note which blocks change, from the first copy on; whether it did already.

    :raises UsageError: the settings say that it must not.
    """
    with session(stack.db, "postgres", "have the server note what changes") as sql:
        if sql.value("SELECT current_setting('summarize_wal')") == "on":
            return True
        sql.run("ALTER SYSTEM SET summarize_wal = on")
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            sql.run("SELECT pg_reload_conf()")
            if sql.run("SHOW summarize_wal") == ["on"]:
                return False
            time.sleep(0.02)
    raise UsageError(
        "--incremental needs PostgreSQL's parameter summarize_wal",
        why="db.parameters sets it to off",
        fix=f"take it out of {stack.settings.origin('db.parameters')}, then `inv db.start`",
    )


def _parent(stack: Stack, found: list[Backup], identifier: str) -> tuple[Backup | None, str]:
    """The copy to build on, or why there is none."""
    own = (identifier, lineage(stack))
    copies = [b for b in found if b.manifest.layout == "cluster"]
    copies = [b for b in copies if (b.manifest.system_identifier, b.manifest.lineage) == own]
    if not copies:
        return None, "there is none of this cluster to build on"
    newest = copies[-1]
    try:
        members = chain(newest, found)
        for member in members:
            if member.damage or sha256_of(member.path / LIST) != member.manifest.files[LIST]:
                return None, f"{member.name} is damaged"
    except (OSError, StackError) as error:
        return None, getattr(error, "why", "") or str(error)
    days = stack.settings.data.retention_days
    if now() - members[0].manifest.time > timedelta(days=days):
        return None, f"the last one is more than {days} days old"  # so that a cleanup can let the old chain go
    return newest, ""


def lineage(stack: Stack) -> str:
    """Which cluster is in use; empty for one of an earlier version, if it was not restored since."""
    return stack.db.folders.read(stack.db.data.name, LINEAGE)


def chain(backup: Backup, found: list[Backup]) -> list[Backup]:
    """A copy and all that it builds on, the full one first.

    :raises StackError: one of them is missing.
    """
    named = {b.name: b for b in found}
    members = [backup]
    while parent := members[0].manifest.parent:
        if parent not in named or named[parent] in members:
            raise StackError(
                f"{backup.name} can't be used",
                why=f"it builds on {parent}, which is not there",
                fix="use another one: inv data.list",
            )
        members.insert(0, named[parent])
    return members


def _copy(stack: Stack, partial: Aside, parent: Backup | None, why: str) -> Backup | None:
    """Copy; what it builds on in the end."""
    with meter("copying the cluster"):
        if parent:
            try:
                _run(stack, partial.path, parent)
                return parent
            except StackError as error:
                said = " ".join(error.evidence)
                if "summar" not in said and "timeline" not in said:
                    raise
                why = error.evidence[-1].removeprefix("pg_basebackup: ") if error.evidence else error.why
                for path in partial.path.iterdir():
                    stack.context.host.remove(path)
        console.note(f"everything is copied: {why}; the next one will be incremental")
        free = shutil.disk_usage(partial.path).free
        with session(stack.db, "postgres", "read the cluster's size") as sql:
            needed = sql.value("SELECT sum(pg_database_size(oid))::bigint FROM pg_database")
        if free < needed:
            raise StackError(
                f"there is not enough room in {partial.path.parent}",
                why=f"{console.size(free)} are free, the cluster has {console.size(needed)}",
                fix="free some space: inv data.cleanup",
            )
        _run(stack, partial.path, None)
    return None


def _run(stack: Stack, folder: Path, parent: Backup | None) -> None:
    with contextlib.ExitStack() as passages:
        since = passages.enter_context(stack.db.inward(parent.path / LIST)) if parent else None
        inside, started = passages.enter_context(stack.db.receiving(folder))
        with stack.context.stream_out(started(_command(stack, inside, since)), "copy the cluster"):
            pass


def _hollow(folder: Path) -> int:
    """Let go of the room that the unused end of each WAL file takes: a file has 16 MB, most of them zeros in a copy of
    little. What is read from it stays the same. The bytes that need no room any more.

    https://www.postgresql.org/docs/current/wal-internals.html
    """
    saved = 0
    for path in sorted((folder / "pg_wal").iterdir()):
        if not path.is_file():
            continue
        with path.open("r+b") as file:
            size = path.stat().st_size
            used = _used(file, size)
            if used < size:
                file.truncate(used)
                file.truncate(size)
                os.fsync(file.fileno())
                saved += size - used
    return saved


def _used(file: IO[bytes], size: int) -> int:
    """Where the zeros begin that a file ends with."""
    end = size
    while end:
        begin = max(0, end - CHUNK)
        file.seek(begin)
        if content := file.read(end - begin).rstrip(b"\0"):
            return begin + len(content)
        end = begin
    return 0


def _command(stack: Stack, path: Path, since: Path | None) -> Command:
    """https://www.postgresql.org/docs/current/app-pgbasebackup.html"""
    words = ["pg_basebackup", "-w", "-D", str(path), "-c", "fast", "-X", "stream", "--manifest-checksums=SHA256"]
    if since:
        words.append(f"--incremental={since}")
    return stack.db.as_superuser(words, "postgres")


def _manifest(
    stack: Stack, request: backup.Request, path: Path, parent: Backup | None, about: dict[str, Any], saved: int
) -> Manifest:
    digest = sha256_of(path / LIST)
    # PostgreSQL's list has no checksum of these, and the server obeys what is in the WAL when it starts
    logs = {str(file.relative_to(path)): sha256_of(file) for file in sorted(path.glob("pg_wal/**/*")) if file.is_file()}
    return Manifest(
        file="",
        sequence=0,
        kind="incremental" if parent else "base",
        layout="cluster",
        created=stamp(now()),
        seconds=0,
        label=request.label,
        sha256=digest,
        bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) - saved,
        raw_bytes=0,
        files={LIST: digest, **logs},
        environment=stack.settings.stack.env,
        machine=platform.node(),
        database=stack.settings.db.name,
        tool_version=stack.db.programs.version,
        parent=parent.name if parent else "",
        lineage=lineage(stack),
        **about,
    )
