"""Judging a file before anything is touched: what it is, and whether it can be restored here."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from devstack import console
from devstack.data import catalogue, verify
from devstack.data.archives import ROOM, archive, list_file, listed
from devstack.data.catalogue import Backup
from devstack.data.load import Source
from devstack.data.manifest import load, path_of
from devstack.data.reading import Wrong, programs, read_archive, read_directory, sql_chunks
from devstack.data.sqltext import UTF16, Outline
from devstack.data.streams import Digested, meter
from devstack.errors import StackError, UsageError
from devstack.files import NotPlain, follow, open_resolved

if TYPE_CHECKING:
    from devstack.stack import Stack

EXTENSION = re.compile(
    rb'(?:^|;)[ \t]*CREATE\s+EXTENSION\s+(?:IF\s+NOT\s+EXISTS\s+)?("(?:[^"]|"")+"|\w+)(?:\s+WITH)?'
    rb'(?:\s+SCHEMA\s+("(?:[^"]|"")+"|\w+))?[^;]{0,200}(?=;)',
    re.MULTILINE | re.IGNORECASE,
)
LONG = 1 << 10
"""Bytes of a statement that creates an extension, which may begin in one chunk and end in the next."""
OTHER_FORMATS = {
    b"\x89PNG": "a PNG image",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF document",
    b"\x7fELF": "a program",
}


def choose(
    stack: Stack,
    *,
    file: str,
    at: str,
    force: bool,
    as_superuser: bool = False,
    trust_cluster: bool = False,
) -> Source:
    """The dump that is meant, judged as far as that goes without a database.

    :raises StackError: it is not there, not whole, or not trusted.
    """
    folder = catalogue.folder_of(stack.settings)
    if file and at:
        raise UsageError("--file and --at exclude each other", fix="name a file, or a moment")
    if at or file in ("", "latest"):
        backup = catalogue.latest(folder, lambda b: catalogue.is_own(stack, b), at=at)
    else:
        path = _path(stack, folder, file)
        found = catalogue.read(path)
        if found is None:
            if _is_file_of_kind(path):
                _check_manifest(path, force=force)
            foreign = _foreign(stack, path)
            return foreign.for_superuser() if as_superuser else foreign
        backup = found
    source = _own(stack, backup, force=force, trust_cluster=trust_cluster)
    return source.for_superuser() if as_superuser else source


def _path(stack: Stack, folder: Path, file: str) -> Path:
    """Return the path of a dump; of a link, where it leads.

    :raises StackError: it is not there, or somebody else could redirect it.
    """
    for path in (folder / file, Path(os.path.abspath(Path(file).expanduser()))):
        if os.path.lexists(path):
            try:
                real = follow(path, stack.context.host.friends)
            except NotPlain as error:
                raise StackError(
                    f"{path} is not followed", why=error.strerror or "", fix="name the file itself"
                ) from None
            return real if path.is_symlink() else path
    raise StackError(f"there is no file {file}", fix="see inv data.list")


def _own(stack: Stack, backup: Backup, *, force: bool, trust_cluster: bool) -> Source:
    manifest, settings = backup.manifest, stack.settings
    if manifest.layout == "cluster":
        verify.check_trusted(stack, verify.chain_of(backup), trust_cluster=trust_cluster)
    if manifest.database != settings.db.name and not manifest.origin and not force:
        raise StackError(
            f"{backup.name} is a backup of database {manifest.database}, this is {settings.db.name}",
            fix="name another one, or add --force",
        )
    check_major(stack, backup.name, manifest.server_version)
    verify.check_unchanged(stack, backup)
    if not catalogue.is_own(stack, backup):
        console.note(f"{backup.name} is {catalogue.whose(manifest)}")
    return msgspec.structs.replace(Source.of(stack, backup), trust_cluster=trust_cluster)


def check_major(stack: Stack, name: str, version: str) -> None:
    """:raises StackError: a newer PostgreSQL made it, whose dumps this one can't be expected to read."""
    ours = stack.db.programs.version
    with contextlib.suppress(ValueError):
        if int(re.match(r"\d*", version)[0] or 0) > int(ours.split(".")[0]):  # type: ignore[index]
            raise StackError(
                f"{name} was made by PostgreSQL {version}, this is {ours}",
                why="an older PostgreSQL can't be relied on to read a newer one's dump; nothing was touched",
                fix="set db.bin_dir to a PostgreSQL of that version for a new environment: NV_ENV=other inv dev.up",
            )


def _is_file_of_kind(path: Path) -> bool:
    """:raises StackError: no dump can be in it."""
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            if (path / "toc.dat").is_file():
                return True
            raise StackError(f"{path} is a folder, and no dump of pg_dump in it", fix="see inv data.list")
        if not stat.S_ISREG(info.st_mode):
            raise StackError(f"{path} is no regular file", fix="write its content to one first")
        if info.st_size == 0:
            raise StackError(f"{path} is empty", fix="see inv data.list")
        with path.open("rb"):
            return True
    except OSError as error:
        raise StackError(f"{path} can't be read", why=error.strerror or str(error)) from None


def _check_manifest(path: Path, *, force: bool) -> None:
    """:raises StackError: there is none that fits, and nobody said that this is known."""
    try:
        manifest = load(path_of(path))
        why = f"the manifest beside it is of {manifest.file}"
    except FileNotFoundError:
        why = "it has no manifest: this tool did not make it, or did not finish it"
    except OSError as error:
        why = f"its manifest can't be read: {error.strerror or error}"
    except ValueError as error:
        why = f"its manifest is damaged: {error}"
    if not force:
        raise StackError(
            f"{path.name} can't be checked as a backup of this tool",
            why=why,
            fix="add --force: it is checked as far as possible, and loaded by a role that can do nothing else",
        )


def _opened(stack: Stack, path: Path) -> BinaryIO:
    """Open a dump, which is no link by now.

    :raises Wrong: it can't be read any more, or is another file by now."""
    try:
        folder = follow(path.parent, stack.context.host.friends)
        return os.fdopen(open_resolved(folder / path.name), "rb")
    except OSError as error:
        raise Wrong(f"it can't be read: {error.strerror or error}") from None


def _foreign(stack: Stack, path: Path) -> Source:
    """A dump of another tool, or of this one without its manifest.

    :raises StackError: it is cut off, damaged, or something else.
    """
    try:
        if path.is_dir():
            with programs(stack):
                read_directory(stack, path)
                return _with_extensions(stack, Source(path, "directory"))
        with _opened(stack, path) as file, meter(f"reading {path.name}", os.fstat(file.fileno()).st_size) as progress:
            magic = file.read(512)
            file.seek(0)
            if magic.startswith(b"PGDMP"):
                with programs(stack):
                    read_archive(stack, Digested(file, progress))
                    return _with_extensions(stack, Source(path, "custom"))
            if magic[257:262] == b"ustar":
                raise Wrong("it is a tar archive; pg_restore -f FILE.sql makes SQL of one that pg_dump wrote")
            for mark, what in OTHER_FORMATS.items():
                if magic.startswith(mark):
                    raise Wrong(f"it is {what}, not a PostgreSQL dump")
            outline, extensions, before = Outline(), dict[str, str](), b""
            for chunk in sql_chunks(Digested(file, progress)):
                outline.add(chunk)
                extensions.update(_extensions(before + chunk))
                before = chunk[-LONG:]
            if magic.startswith(UTF16):
                console.note(
                    f"{path.name} is UTF-16, as PowerShell's > writes it, and is read as that; PowerShell may have"
                    " changed letters beyond ASCII, which pg_dump -f FILE does not"
                )
    except Wrong as wrong:
        if any("unsupported version" in line for line in wrong.evidence):
            raise StackError(
                f"{path.name} can't be restored",
                why=f"a newer pg_dump made it than pg_restore {stack.db.programs.version} can read",
                evidence=wrong.evidence,
                fix="have it made as plain SQL: pg_dump -Fp; or set db.bin_dir to a newer PostgreSQL",
            ) from None
        raise StackError(f"{path.name} can't be restored", why=str(wrong), evidence=wrong.evidence) from None
    if not outline.count:
        raise StackError(f"{path.name} is empty", why="there is nothing in it but gzip's own bytes")
    if what := outline.other():
        raise StackError(f"{path.name} can't be restored", why=f"it is {what}")
    if outline.from_pg_dump and (problem := outline.problem()):
        raise StackError(f"{path.name} can't be restored", why=problem, fix="use another one: inv data.list")
    check_major(stack, path.name, outline.server_version)
    return Source(path, "sql", extensions=tuple(extensions.items()))


def _extensions(sql: bytes) -> dict[str, str]:
    """Return the extensions that are created in SQL, each with its schema."""
    if b"EXTENSION" not in sql.upper():
        return {}
    return {_name(m[1]): _name(m[2] or b"public") for m in EXTENSION.finditer(sql)}


def _name(quoted: bytes) -> str:
    text = quoted.decode(errors="replace")
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def _with_extensions(stack: Stack, source: Source) -> Source:
    """An archive with the extensions that it wants."""
    contents = listed(stack, source.path)
    check_major(stack, source.name, contents.version)
    if not contents.extensions:
        return source
    with (
        list_file(stack, contents.extensions) as listing,
        archive(stack, source.path, ["-f", "-", "-L", str(listing)], "read the dump's extensions") as out,
    ):
        found = _extensions(out.read(ROOM))
    return msgspec.structs.replace(source, extensions=tuple(found.items()))
