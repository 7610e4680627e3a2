"""Making a backup: pg_dump's output through this process, in the snapshot that the rows are counted in."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from devstack import console
from devstack.data import catalogue, census, extensions, following, load, privileged, search_paths, signing, verify
from devstack.data.aside import Aside, aside, sweep
from devstack.data.catalogue import Backup
from devstack.data.manifest import STAMPED, SUFFIX, Kind, Layout, Manifest, Verified, is_file_name, now, stamp
from devstack.data.session import Session, background, session
from devstack.data.streams import Meter, Written, directory_hash, meter, sha256_of
from devstack.errors import CommandError, StackError, UsageError
from devstack.services.postgres import literal
from devstack.shell import Command

if TYPE_CHECKING:
    from devstack.stack import Stack

FORMATS = ("sql", "custom", "directory")

AHEAD = timedelta(minutes=1)
"""Time by which a name may be ahead of the clock without a note, as after several backups within a second."""
LAST_YEAR = 9999
"""Last year that fits into a name. Backups of it do not count, as no later name could follow."""

ABOUT = """
SELECT pg_database_size(oid) AS database_bytes, pg_get_userbyid(datdba) AS owner,
       split_part(current_setting('server_version'), ' ', 1) AS server_version
  FROM pg_database WHERE datname = current_database()
"""

IDENTIFIER = "SELECT system_identifier::text FROM pg_control_system()"
ASKED_BY_ALL = "SELECT has_function_privilege('pg_control_system()', 'EXECUTE')"
"""Not everywhere: whoever runs a server for others may have taken it from them."""


class Request(Struct, frozen=True):
    """What is asked for. ``output`` is a file or an existing folder; empty: the environment's folder."""

    kind: Kind = "full"
    layout: Layout = "sql"
    jobs: int = 1
    label: str = ""
    output: str = ""
    verify: bool = True
    safety: bool = False
    incremental: bool = False

    def check(self) -> None:
        """:raises UsageError: it contradicts itself."""
        if self.jobs < 1 or (self.jobs > 1 and self.layout != "directory"):
            raise UsageError(
                f"--jobs {self.jobs} can't be used here",
                why="pg_dump writes one file by one process; several need a folder",
                fix="add --format directory",
            )
        if (
            any(ord(c) < 32 or 127 <= ord(c) < 160 or "\ud800" <= c <= "\udfff" for c in self.label)
            or len(self.label) > 200
        ):
            raise UsageError("the label can't be kept", why="it is longer than 200 characters, or not plain text")


def create(stack: Stack, request: Request) -> Backup | None:
    """Make a backup and prove it; None in a dry run.

    :raises StackError: it could not be made; nothing is left behind then.
    """
    request.check()
    folder, name = _target(stack, request)
    if stack.context.dry:
        console.command(_dump(stack, request, "SNAPSHOT", folder / name()))
        console.out(f"# write {folder / name()} and its manifest")
        return None
    if catalogue.prepare(stack) != folder:
        catalogue.check_closed(stack.context.host, stack.settings, folder, "--output")
        for line in sweep(folder):
            console.note(line)
    began, created = time.monotonic(), now()
    try:
        with contextlib.ExitStack() as held:
            partial = held.enter_context(aside(folder, directory=request.layout == "directory"))
            proof = None
            if request.verify and request.layout != "directory":
                proof = held.enter_context(following.proof(stack, partial.path, request.layout))
            grown = proof.follower.grown if proof else lambda size: None
            manifest = _write(stack, request, partial, began, created, grown)
            if request.verify:
                if proof:
                    proof.judge(manifest)
                else:
                    verify.check_content(stack, partial.path, manifest)
                manifest = changed(manifest, verified=Verified(stamp(now()), "read"))
            sequence = 1 + max((b.manifest.sequence for b in catalogue.backups(folder)), default=0)
            path, manifest = partial.publish(
                name,
                lambda file: signing.sign(stack, changed(manifest, file=file, sequence=sequence, seconds=since(began))),
            )
        if manifest.needs_superuser and not (request.safety or stack.db.origin):
            console.note(
                f"a restore gives to {manifest.owner}, or leaves out: {privileged.shown(manifest.needs_superuser)};"
                " inv data.restore --as-superuser restores it as it was"
            )
    except FileExistsError as error:
        raise UsageError(f"{error.filename or error} exists", fix="name another file; none is replaced") from None
    except OSError as error:
        if not is_in(folder, error):
            raise
        raise not_written(folder, error, request) from None
    except StackError as error:
        if full := no_room(error):  # where pg_dump writes itself
            raise not_written(folder, OSError(errno.ENOSPC, full), request) from None
        raise
    return Backup(path, manifest)


FULL = os.strerror(errno.ENOSPC)
OF_SERVER = ("ERROR: ", "FATAL: ", "PANIC: ")
TOO_FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a directory that can't be written to."""


def is_in(folder: Path, error: OSError) -> bool:
    """Check whether an error is about a directory or something in it; one that names no file is taken for that."""
    if not error.filename:
        return True
    path = Path(os.fsdecode(error.filename))
    return folder in (path, *path.parents)


def no_room(error: StackError) -> str:
    """Return what one of PostgreSQL's programs says of a full disk that it writes to; empty if it says nothing, or
    passes on what the server says of its own disk."""
    full = [line for line in error.evidence if FULL in line and not any(text in line for text in OF_SERVER)]
    return "\n".join(error.evidence) if full and isinstance(error, CommandError) else ""


def not_written(folder: Path, error: OSError, request: Request) -> StackError:
    """Return what to say of a backup that the system did not let us write."""
    other = "set data.dir to another directory"
    if request.output:
        other = "name another place with --output"
    elif not (request.safety or request.incremental):
        other += ", or write this backup to another directory: inv data.backup --output DIRECTORY"
    return StackError(
        f"the backup could not be written to {folder}",
        why=f"{error.strerror or error}; nothing is left of it, earlier backups are as they were",
        fix=[
            f"make {folder} writable for you"
            if error.errno in CLOSED
            else f"free some space in {folder}: inv data.cleanup"
            if error.errno in TOO_FULL
            else f"see what is wrong with the disk of {folder}",
            f"or {other}",
        ],
    )


def changed(manifest: Manifest, **changes: object) -> Manifest:
    import msgspec

    return msgspec.structs.replace(manifest, **changes)


def about_of(sql: Session) -> dict[str, Any]:
    """The database and its server, as a manifest has them."""
    (about,) = sql.rows(ABOUT)
    return {**about, "system_identifier": sql.value(IDENTIFIER) if sql.value(ASKED_BY_ALL) else ""}


def since(began: float) -> float:
    return round(time.monotonic() - began, 3)


def _write(
    stack: Stack, request: Request, partial: Aside, began: float, created: datetime, grown: Callable[[int], None]
) -> Manifest:
    db, name = stack.db, stack.settings.db.name
    written, files = Written(), {}
    compress = request.layout == "sql" and not request.output.endswith(".sql")
    with (
        session(db, name, f"read database {name}") as sql,
        session(db, name, f"count the rows of {name}", role="reader") as reader,
        background(reader) as counter,
        meter(f"dumping {name}") as progress,
    ):
        sql.run("BEGIN ISOLATION LEVEL REPEATABLE READ")
        about = about_of(sql)
        about["extension_schemas"] = {row["name"]: row["schema"] for row in sql.rows(extensions.IN_USE)}
        about["needs_superuser"] = privileged.found(sql, about["owner"])
        about["search_path"] = load.search_path_in_use(stack, sql)
        if request.kind != "data" and not request.safety and (found := search_paths.unqualified(sql)):
            console.note(
                f"functions that run during a restore name others without their schema: {privileged.shown(found)};"
                " inv data.restore lends them this database's search path, psql and pg_restore alone fail:"
                " ALTER FUNCTION … SET search_path = … makes them safe"
            )
        if request.kind != "schema":
            _check_room(partial.path.parent, request.layout, about["database_bytes"], db.origin)
        for table in census.table_names(sql):  # as pg_dump does: nobody may drop one between the two
            sql.run(f"LOCK TABLE ONLY {table} IN ACCESS SHARE MODE")
        snapshot = sql.run("SELECT pg_export_snapshot()")[0]
        reader.run(f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {literal(snapshot)}")
        counting = counter.submit(census.take, reader)
        if request.layout == "directory":
            files = _dump_directory(stack, request, snapshot, partial, progress)
            written.bytes = sum((partial.path / file).stat().st_size for file in files)
        else:
            command = _dump(stack, request, snapshot, partial.path)
            with stack.context.stream_out(command, f"dump database {name}") as source:
                written.write(source, partial.handle, compress=compress, progress=progress.add, grown=grown)
        counted = counting.result()
        after = census.sequence_values(sql)
        sql.run("COMMIT")
    # of a sequence in use, nobody knows which value the dump has
    still = {name: value for name, value in counted.sequences.items() if after.get(name) == value}
    # what the dump does not hold is not claimed of it
    if request.kind == "schema":
        counted, still = census.Census(tables=dict.fromkeys(counted.tables, 0), extensions=counted.extensions), {}
    return Manifest(
        file="",
        sequence=0,
        kind=request.kind,
        layout=request.layout,
        created=stamp(created),
        seconds=since(began),
        label=request.label,
        safety=request.safety,
        sha256=directory_hash(files) if files else written.sha256,
        bytes=written.bytes,
        raw_bytes=written.raw_bytes if request.layout == "sql" else 0,
        files=files,
        environment=stack.settings.stack.env,
        machine=platform.node(),
        origin=db.origin,
        database=name,
        tool_version=db.programs.version,
        tables=counted.tables,
        sequences=still,
        extensions=counted.extensions,
        large_objects=counted.large_objects,
        **about,
    )


def _dump(stack: Stack, request: Request, snapshot: str, path: Path) -> Command:
    """pg_dump on the database itself, never through the pooler: https://www.postgresql.org/docs/current/app-pgdump.html"""
    words = ["pg_dump", "-w", "--lock-wait-timeout=60000", f"--snapshot={snapshot}"]
    words += {"schema": ["--schema-only"], "data": ["--data-only"]}.get(request.kind, [])
    if request.kind == "full" and stack.db.programs.major >= 18 and not stack.db.origin:  # an older server lacks them
        words.append("--statistics")  # the planner's figures: a restore need not make them anew
    words += {
        "sql": ["-Fp"],
        "custom": ["-Fc", "-Z1"],
        "directory": ["-Fd", "-Z1", "-j", str(request.jobs), "-f", str(path)],
    }[request.layout]
    return stack.db.as_superuser(words, stack.settings.db.name)


def _dump_directory(stack: Stack, request: Request, snapshot: str, partial: Aside, progress: Meter) -> dict[str, str]:
    with stack.db.outward(partial.path) as inside:
        command = _dump(stack, request, snapshot, inside)
        with stack.context.stream_out(command, f"dump database {stack.settings.db.name}"):
            pass
    files = {}
    for path in sorted(partial.path.iterdir()):
        path.chmod(0o600)
        files[path.name] = sha256_of(path)
        progress.add(path.stat().st_size)
    return files


def _check_room(folder: Path, layout: Layout, database_bytes: int, origin: str) -> None:
    """Compare the free bytes with what the last such backup came to, or a third of the database.

    :raises StackError: the disk is clearly too full: a tenth of the database, or half of what is expected.
    """
    free, expected = shutil.disk_usage(folder).free, database_bytes // 3
    last = [b.manifest for b in catalogue.backups(folder) if b.manifest.kind == "full" and b.manifest.layout == layout]
    last = [m for m in last if m.origin == origin]
    if last and last[-1].database_bytes:
        expected = last[-1].bytes * database_bytes // last[-1].database_bytes
    if free < min(database_bytes // 10, expected // 2):
        raise StackError(
            f"there is not enough room in {folder}",
            why=f"{console.size(free)} are free, the database has {console.size(database_bytes)}",
            fix="free some space: inv data.cleanup; or name another place with --output",
        )
    if free < expected:
        console.note(
            f"the room in {folder} may not be enough: {console.size(free)} are free, the backup may have"
            f" {console.size(expected)}"
        )


def _target(stack: Stack, request: Request) -> tuple[Path, Callable[[], str]]:
    """The folder to write into, and the names to try there."""
    folder = catalogue.folder_of(stack.settings)
    if request.output:
        path = Path(os.path.abspath(Path(request.output).expanduser()))
        if not path.is_dir():
            if not path.parent.is_dir():
                raise UsageError(
                    f"the folder {path.parent} does not exist", fix="make it, or name another with --output"
                )
            if not is_file_name(path.name):
                raise UsageError(
                    f"{path.name!a} can't be the name of a backup",
                    why="its manifest could not name it: it has a control character, or is not UTF-8",
                    fix="name another file with --output",
                )
            if os.path.lexists(path) or os.path.lexists(f"{path}.json"):
                raise UsageError(f"{path} exists", fix="name another file; none is replaced")
            return path.parent, lambda: path.name
        folder = path
    stamped = names(folder, request.kind, request.layout, now(), own=own_of(stack, folder))
    return folder, lambda: next(stamped)


def own_of(stack: Stack, folder: Path) -> list[Path]:
    """Return the backups in a directory that this environment has made, on this machine."""
    return [b.path for b in catalogue.backups(folder) if catalogue.is_own(stack, b)]


def names(folder: Path, kind: Kind, layout: Layout, moment: datetime, *, own: Iterable[Path] = ()) -> Iterator[str]:
    """Yield names by the second, in UTC, each later than those that are there: they sort as the backups were made,
    whatever the clock did. When one was really made is in its manifest.

    :param own: the environment's own backups. Names of others count only as far as a clock may differ by a time zone,
        so that one with a name of the far future is not followed for ever.
    """
    near = (time for time in _times(folder.glob("backup-*")) if time <= moment + timedelta(days=1))
    newest = max([*_times(own), *near], default=moment - timedelta(days=1))
    if newest >= moment.replace(microsecond=0):
        if newest - moment > AHEAD:
            console.note(
                f"the newest name in {folder} is of {newest:%Y-%m-%d %H:%M:%S}, which this machine's clock has not"
                " reached: the new one is named after it, so that names sort as the backups were made; data.list shows"
                " when that was"
            )
        moment = newest + timedelta(seconds=1)
    prefix = "backup-" if kind == "full" else f"backup-{kind}-"
    while True:
        yield f"{prefix}{moment:%Y%m%d-%H%M%S}.{SUFFIX[layout]}"
        moment += timedelta(seconds=1)


def _times(paths: Iterable[Path]) -> Iterator[datetime]:
    """Yield the times in the names of backups."""
    for path in paths:
        if stamped := STAMPED.fullmatch(path.name):
            with contextlib.suppress(ValueError):  # digits, but no time
                made = datetime.strptime(f"{stamped[2]}+0000", "%Y%m%d-%H%M%S%z")
                if made.year < LAST_YEAR:
                    yield made
