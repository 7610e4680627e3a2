"""Proving a backup: every byte read and judged, or restored into a database of its own and counted."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from devstack import console
from devstack.data import catalogue, failures, load, signing, wal_check
from devstack.data.catalogue import Backup
from devstack.data.manifest import Layout, Manifest, Verified, now, stamp
from devstack.data.reading import NotChecked, Wrong, judged, programs, read_archive, read_directory, read_sql
from devstack.data.sqltext import Outline
from devstack.data.streams import Digested, Meter, Readable, directory_hash, meter, sha256_of
from devstack.errors import ContentError, StackError
from devstack.files import open_plain, read_regular
from devstack.shell import typed

if TYPE_CHECKING:
    from devstack.stack import Stack


MANIFEST_BYTES = 500_000_000
"""Largest list of the files in a copy of a cluster: some 150 bytes for each file."""
SIGNALS = ("recovery.signal", "standby.signal")
"""Files that make a server run commands or follow another; pg_verifybackup does not look at them."""


class Damaged(StackError):
    """A backup is not as it was written."""

    def __init__(self, name: str, why: str, evidence: list[str] | None = None) -> None:
        super().__init__(
            f"{name} is damaged",
            why=why,
            evidence=evidence or [],
            fix="use another one: inv data.list; inv data.verify --all shows which ones are whole",
        )


class Unchecked(StackError):
    """A backup could not be checked: nothing is known to be wrong with it."""

    def __init__(self, name: str, why: str, evidence: list[str] | None = None, fix: list[str] | None = None) -> None:
        super().__init__(
            f"{name} could not be checked",
            why=why,
            evidence=evidence or [],
            fix=fix or "nothing is known to be wrong with it: remove the cause, and check it again",
        )


class Result(Struct, frozen=True):
    """Result of verifying a backup."""

    backup: Backup
    error: StackError | None = None
    """What is wrong with it, or kept it from being checked."""
    unrecorded: str = ""
    """Why the result is not in its manifest; empty if it is, and for a backup that was not found whole."""


class Unrestorable(StackError):
    """A backup is as it was written, and PostgreSQL refuses a statement of it."""


def verify(
    stack: Stack, backup: Backup, *, deep: bool = False, as_superuser: bool = False, trust_cluster: bool = False
) -> Verified:
    """Prove a backup.

    :returns: when and how, for its manifest.
    :raises Damaged: it is not whole, or does not hold what its manifest says.
    :raises Unrestorable: it is whole, and could not be restored; the error has the statement that failed.
    :raises Unchecked: something else is in the way.
    """
    if deep and backup.manifest.layout == "cluster":
        check_trusted(stack, chain_of(backup), trust_cluster=trust_cluster)
    source = load.Source.of(stack, backup)
    if as_superuser:
        source = source.for_superuser()
    check_content(stack, backup.path, backup.manifest)
    if deep and backup.manifest.layout == "cluster":
        from devstack.data import cluster

        cluster.try_chain(stack, backup, trust_cluster=trust_cluster)
    elif deep:
        try:
            with load.scratch(stack, "verify", backup.name) as name:
                manifest = backup.manifest
                try:
                    load.load(stack, source, name, lambda: load.check_counts(stack, manifest, name))
                except ContentError as error:
                    raise Damaged(backup.name, error.why, error.evidence) from None
                except StackError as error:
                    if failures.is_server_gone(error):
                        gone = "its file is whole; the database went away while it was restored"
                        raise Unchecked(backup.name, gone, error.evidence) from None
                    whole = f"its file is whole; {error.why}" if error.why else "its file is whole"
                    raise Unrestorable(error.what, why=whole, evidence=error.evidence, fix=error.fix) from None
        except load.Mismatch as error:
            why = "it was restored, and holds something else than its manifest says"
            raise Damaged(backup.name, why, error.lines) from None
    return Verified(stamp(now()), "restore" if deep else "read")


def _record(stack: Stack, backup: Backup, proof: Verified) -> Result:
    """Write into a backup's manifest that it was found whole. Where that can't be written, it is whole all the same."""
    try:
        return Result(catalogue.change(stack, backup, verified=proof))
    except OSError as error:
        manifest = structs.replace(backup.manifest, verified=proof)
        return Result(Backup(backup.path, manifest), unrecorded=error.strerror or str(error))


def check_content(stack: Stack, path: Path, manifest: Manifest) -> None:
    """Read a dump from beginning to end.

    :raises Damaged: a byte differs from what was written, or it does not end as a dump ends.
    :raises Unchecked: something else is in the way.
    """
    name = manifest.file or "the new backup"
    with explained(name, path), meter(f"verifying {name}", manifest.bytes) as progress, contextlib.ExitStack() as held:
        if manifest.layout != "sql":
            held.enter_context(programs(stack))
        if manifest.layout == "cluster":
            _check_cluster(stack, path, manifest)
        elif manifest.layout == "directory":
            _check_directory(stack, path, manifest, progress)
        else:
            file = held.enter_context(os.fdopen(open_plain(path), "rb"))
            judge(read(stack, file, manifest.layout, progress), manifest)


def check_unchanged(stack: Stack, backup: Backup) -> None:
    """The same before a restore, which reads everything once more: of a file that was proven when it was written, as
    its signed manifest says, it is enough that its bytes are still those.

    :raises Damaged: they are not.
    :raises Unchecked: something else is in the way.
    """
    path, manifest = backup.path, backup.manifest
    if not manifest.verified or not catalogue.is_signed(stack, backup) or manifest.layout not in ("sql", "custom"):
        check_content(stack, path, manifest)
        return
    with explained(manifest.file, path), meter(f"checking {manifest.file}", manifest.bytes) as progress:
        with os.fdopen(open_plain(path), "rb") as file:
            digested = Digested(file, progress)
            digested.rest()
        _judge_bytes(digested.count, digested.sha256, manifest)


@contextlib.contextmanager
def explained(name: str, path: Path | None = None) -> Iterator[None]:
    """Raise what is wrong with a file's content, or kept it from being read, as the error that a person gets.

    :param path: of the backup; a file that is missing in another place says nothing about it.
    :raises Damaged: something is wrong with it.
    :raises Unchecked: nothing is known to be.
    """
    try:
        yield
    except NotChecked as reason:
        raise Unchecked(name, str(reason), reason.evidence, reason.fix) from None
    except Wrong as wrong:
        raise Damaged(name, str(wrong), wrong.evidence) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path and error.filename:
            missing = Path(os.path.abspath(os.fsdecode(error.filename)))
            if missing.is_relative_to(os.path.abspath(path)):
                raise Damaged(name, f"{missing.name} is missing") from None
        raise Unchecked(name, f"{error.filename or name}: {error.strerror or error}") from None


class Seen(Struct, frozen=True):
    """What a file was found to hold, from beginning to end."""

    count: int
    sha256: str
    outline: Outline
    wrong: Wrong | None


def read(stack: Stack, file: Readable, layout: Layout, progress: Meter | None = None) -> Seen:
    """Read a file, whatever is in it."""
    digested = Digested(file, progress)
    wrong: Wrong | None = None
    outline = Outline()
    try:
        if layout == "custom":
            read_archive(stack, digested)
        else:
            read_sql(digested, outline)
    except Wrong as error:
        wrong = error
    digested.rest()
    return Seen(digested.count, digested.sha256, outline, wrong)


def judge(seen: Seen, manifest: Manifest) -> None:
    """:raises Wrong: it is not what the manifest says."""
    # the hash first: what else is wrong follows from it
    _judge_bytes(seen.count, seen.sha256, manifest)
    if seen.wrong:
        raise seen.wrong
    if manifest.layout == "sql":
        if seen.outline.count != manifest.raw_bytes:
            raise Wrong(f"it holds {seen.outline.count} bytes of SQL, its manifest says {manifest.raw_bytes}")
        if problem := seen.outline.problem():
            raise Wrong(problem)


def _judge_bytes(count: int, sha256: str, manifest: Manifest) -> None:
    if count != manifest.bytes:
        raise Wrong(f"it has {count} bytes, its manifest says {manifest.bytes}")
    if sha256 != manifest.sha256:
        raise Wrong("its SHA-256 is not the one in its manifest")


def _check_directory(stack: Stack, path: Path, manifest: Manifest, progress: Meter) -> None:
    there = {file.name for file in path.iterdir()}
    for name in sorted(there ^ manifest.files.keys()):
        raise Wrong(f"{name} is {'missing' if name in manifest.files else 'not in its manifest'}")
    for name, digest in manifest.files.items():
        progress.add((path / name).lstat().st_size)
        if sha256_of(path / name) != digest:
            raise Wrong(f"the SHA-256 of {name} is not the one in its manifest")
    if directory_hash(manifest.files) != manifest.sha256:
        raise Wrong("the manifest contradicts itself")
    read_directory(stack, path)


def chain_of(backup: Backup) -> list[Backup]:
    """Return a cluster's copy and all that it builds on, the full one first.

    :raises StackError: one of them is missing.
    """
    from devstack.data.incremental import chain

    return chain(backup, catalogue.backups(backup.path.parent))


def check_trusted(stack: Stack, members: list[Backup], *, trust_cluster: bool) -> None:
    """Check that the files of a cluster may be given to a server: its superuser and its functions are in them, and
    nothing can tell them from harmless ones.

    :raises StackError: this environment has not made all of them, and nobody said that they are trusted.
    """
    backup = members[-1]
    foreign = [member.name for member in members if not catalogue.is_signed(stack, member)]
    if foreign and not trust_cluster:
        raise StackError(
            f"{foreign[0]} is a cluster's copy that this environment has not signed",
            why="a server started on them obeys all that is in them, such as functions that run as the superuser; made"
            " by another environment, or before signatures existed",
            fix="if you trust whoever made it, and wherever it was kept:"
            f" inv data.restore --file {typed(backup.name)} --trust-cluster",
        )


def _check_cluster(stack: Stack, path: Path, manifest: Manifest) -> None:
    """https://www.postgresql.org/docs/current/app-pgverifybackup.html"""
    check_plain(path)
    logs = {str(file.relative_to(path)) for file in path.glob("pg_wal/*") if file.is_file()}
    noted = {name for name in manifest.files if name.startswith("pg_wal/") and name.count("/") == 1}
    if noted and logs != noted:  # a manifest of before signatures has none
        raise Wrong(f"{min(logs ^ noted)} is {'missing' if noted - logs else 'not in its manifest'}")
    for name, digest in manifest.files.items():
        if sha256_of(path / name) != digest:
            raise Wrong(f"the SHA-256 of {name} is not the one in its manifest")
    own = not manifest.file or signing.is_signed(stack.paths, manifest)
    with judged(stack, "pg_verifybackup found it changed", own=own), stack.db.inward(path, own=own) as inside:
        list_of_files = read_regular(path / "backup_manifest", limit=MANIFEST_BYTES)
        wal_check.check(stack, inside, list_of_files, "verify it", own=own)


def check_plain(path: Path) -> None:
    """Check that a cluster's copy has nothing but directories and files, and none that make a server follow another.

    :raises Wrong: it has.
    """
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            mode = os.lstat(os.path.join(folder, name)).st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                where = os.path.relpath(os.path.join(folder, name), path)
                raise Wrong(f"{where} is neither a file nor a directory: a copy has no links, and no tablespaces")
    for name in SIGNALS:
        if os.path.lexists(path / name):
            raise Wrong(f"{name} is in it, which no copy of this tool has")


def verify_all(
    stack: Stack, found: list[Backup], *, deep: bool, as_superuser: bool = False, trust_cluster: bool = False
) -> list[Result]:
    """Prove each backup, and record in its manifest when and how."""
    results: list[Result] = []
    for backup in found:
        try:
            proof = verify(stack, backup, deep=deep, as_superuser=as_superuser, trust_cluster=trust_cluster)
            results.append(_record(stack, backup, proof))
        except StackError as error:
            console.notes(error.text())
            results.append(Result(backup, error))
    if unrecorded := [result for result in results if result.unrecorded]:
        first = unrecorded[0]
        others = f" and {len(unrecorded) - 1} more" if len(unrecorded) > 1 else ""
        console.note(
            f"the result could not be recorded in the manifest of {first.backup.name}{others}: {first.unrecorded};"
            " data.list goes on to show when they were verified before"
        )
    return results
