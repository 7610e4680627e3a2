"""Restoring a copy of the cluster: combined and tried in a folder of its own, then put in the place of the one in use.

A record on the disk (``swap.json``) says what is going on before anything is; the next command puts right what was cut
off. The folder before stays, for the way back, until the next restore has succeeded.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from devstack import console
from devstack.data import catalogue, census, journal, kept, verify, wal_check
from devstack.data.catalogue import Backup
from devstack.data.journal import Previous, Swap
from devstack.data.manifest import now, stamp
from devstack.data.recovery import guarded
from devstack.data.restore import Restored, Undone
from devstack.data.session import PIN, Session
from devstack.errors import StackError
from devstack.files import is_private
from devstack.services.postgres import MAINTENANCE, PINNING, PSQL, reader_script, staged
from devstack.services.prepared import LINEAGE
from devstack.shell import argv

if TYPE_CHECKING:
    from devstack.data.load import Source
    from devstack.stack import Stack


SETTINGS = """\
# as initdb writes it; the environment's own settings are in db.parameters of invoke.yaml
datestyle = 'iso, mdy'
default_text_search_config = 'pg_catalog.english'
"""
"""Label of a restored cluster, where there was none before."""

MOST = 1 << 16
"""Bytes of a configuration file that are looked at."""


@contextlib.contextmanager
def checked(stack: Stack, backup: Backup, *, trust_cluster: bool) -> Iterator[list[Backup]]:
    """Yield every member of the chain, proven where nobody else can change it: a damaged one would be
    combined without a word.

    :raises StackError: one is missing, damaged or not trusted, or of another major version.
    """
    members = verify.chain_of(backup)
    verify.check_trusted(stack, members, trust_cluster=trust_cluster)
    with contextlib.ExitStack() as held:
        settled = []
        for member in members:
            path = member.path if is_private(member.path) else held.enter_context(staged(stack.context, member.path))
            verify.check_content(stack, path, member.manifest)
            settled.append(Backup(path, member.manifest))
        major = backup.manifest.server_version.split(".")[0]
        if major != str(stack.db.programs.major):
            raise StackError(
                f"{backup.name} was made by PostgreSQL {major}, this is {stack.db.programs.version}",
                why="a copy of a cluster's files can be read by the same major version alone; nothing was touched",
                fix=f"set db.bin_dir to a PostgreSQL {major}, or use a dump: inv data.list",
            )
        yield settled


def replace(stack: Stack, source: Source, safety: str) -> Restored:
    """Combine a chain, try it, and put it in the place of the cluster in use.

    :raises StackError: it could not be done; the cluster in use is as it was then.
    """
    began = now()
    assert source.manifest
    backup = Backup(source.path, source.manifest)
    with checked(stack, backup, trust_cluster=source.trust_cluster) as members:
        return _replace(stack, source, safety, members, began)


def _replace(stack: Stack, source: Source, safety: str, members: list[Backup], began: datetime) -> Restored:
    stack.check_restart()
    data = stack.db.data
    plan = Swap(
        incoming=f".{data.name}.incoming",
        outgoing=f"{data.name}-{now():%Y%m%d-%H%M%S}",
        why=f"restore of {source.name}",
    )
    journal.write_swap(stack, plan)
    try:
        counted = _combine_and_try(stack, members, plan.incoming)
        with guarded(stack):
            outage = _exchange(stack, plan)
            _settle(stack, plan)
    except BaseException:
        _give_up(stack)
        raise
    return Restored(
        source=source.name,
        database=stack.settings.db.name,
        tables=len(counted.tables),
        rows=sum(counted.tables.values()),
        kept=plan.outgoing,
        safety=safety,
        outage=outage,
        seconds=round((now() - began).total_seconds(), 3),
        compared=False,
    )


def undo(stack: Stack, previous: Previous) -> Undone:
    """Put back the cluster that was put aside.

    :raises StackError: it is gone, or does not start.
    """
    data = stack.db.data
    if previous.name not in stack.db.folders.names():
        raise StackError("there is nothing to undo", why=f"{previous.name} is gone", fix="see inv data.list")
    stack.check_restart()
    plan = Swap(incoming=previous.name, outgoing=f"{data.name}-{now():%Y%m%d-%H%M%S}", why=f"undo of {previous.why}")
    journal.write_swap(stack, plan)
    try:
        with guarded(stack):
            outage = _exchange(stack, plan)
            _settle(stack, plan)
    except BaseException:
        _give_up(stack)
        raise
    return Undone(previous.why, plan.outgoing, outage)


def try_chain(stack: Stack, backup: Backup, *, trust_cluster: bool) -> census.Census:
    """Combine a chain and start it, then let it go: a deep verification.

    :raises StackError: it is not whole.
    """
    with checked(stack, backup, trust_cluster=trust_cluster) as members:
        plan = Swap(incoming=f".{stack.db.data.name}.incoming", outgoing="", why="verification")
        journal.write_swap(stack, plan)
        try:
            return _combine_and_try(stack, members, plan.incoming)
        finally:
            recover(stack)


def put_right(stack: Stack) -> list[str]:
    """Put right what another command left; both locks are held.

    :returns: labels of the services that it has stopped and would have started again.
    """
    plan = journal.read_swap(stack.paths)
    if plan and plan.pid == os.getpid():
        return []
    recover(stack)
    return plan.stopped if plan else []


def _give_up(stack: Stack) -> None:
    """Put right what this command leaves of a restore or an undo that failed, and start what it has stopped."""
    left = journal.read_swap(stack.paths)
    recover(stack)
    if left:
        with contextlib.suppress(StackError):
            start_again(stack, left.stopped)


def start_again(stack: Stack, labels: Sequence[str]) -> None:
    """Start those of the services that do not run.

    :raises StackError: one does not become ready.
    """
    for service in stack.services:
        if service.label in labels and not stack.context.states(stack.names)[service.name].running:
            stack.start(service.label)


def recover(stack: Stack) -> None:
    """Put right what was cut off: the data folder is the old one or the new one, whole; the rest goes."""
    plan = journal.read_swap(stack.paths)
    data, folders = stack.db.data.name, stack.db.folders
    if plan is None:
        journal.clear_swap(stack)
        return
    there = folders.names()
    if data not in there and plan.outgoing in there:
        folders.move((plan.outgoing, data))
        console.note(f"the {plan.why} was cut off: the database is as it was before")
    elif plan.outgoing in there and plan.incoming not in there:
        _settle(stack, plan)
        console.note(f"the {plan.why} was cut off after its switch, and is finished")
        return
    if plan.incoming.startswith(".") and plan.incoming in there:
        if not stack.context.runtime.contained or stack.context.states([stack.db.name])[stack.db.name].running:
            stack.context.read(folders.pg_ctl(plan.incoming, ["-m", "immediate", "stop"]))
        folders.remove(plan.incoming)
    journal.clear_swap(stack)


def _combine_and_try(stack: Stack, members: list[Backup], incoming: str) -> census.Census:
    context, folders = stack.context, stack.db.folders
    own = all(catalogue.is_signed(stack, member) for member in members)
    folders.remove(incoming)
    folders.make(incoming, account=not own)
    target = str(folders.path(incoming))
    with contextlib.ExitStack() as passages:
        inside = [str(passages.enter_context(stack.db.inward(member.path, own=own))) for member in members]
        words = ["pg_combinebackup", "-o", target, *inside]
        context.run(stack.db.reading(words, own=own), f"combine {len(members)} backups")
    manifest = folders.read(incoming, "backup_manifest")
    wal_check.check(stack, folders.path(incoming), manifest, "verify the combined backup", own=own)
    folders.finish(incoming, LINEAGE, f"{secrets.token_hex(16)}\n")
    _take_own_settings(stack, members[-1], incoming)
    return _try(stack, incoming)


def _take_own_settings(stack: Stack, backup: Backup, incoming: str) -> None:
    """Have the cluster start with this environment's settings alone: those in a copy name libraries and commands, and
    no checksum covers them."""
    folders = stack.db.folders
    own = folders.read(stack.db.data.name, "postgresql.conf") if stack.db.data_is_there() else ""
    lines = [line for line in own.splitlines() if not re.match(r"\s*include", line)]
    folders.finish(incoming, "postgresql.conf", "\n".join(lines or [SETTINGS]) + "\n")
    dropped = _set_in(backup.path / "postgresql.auto.conf")
    folders.finish(incoming, "postgresql.auto.conf", "")
    if dropped - {"summarize_wal"}:
        names = ", ".join(sorted(dropped))
        console.note(f"not taken over from {backup.manifest.file}: what ALTER SYSTEM has set there ({names})")


def _set_in(path: Path) -> set[str]:
    """Names of the parameters that a configuration file sets."""
    try:
        text = path.read_bytes()[:MOST].decode(errors="replace")
    except OSError:
        return set()
    return set(re.findall(r"^[ \t]*([A-Za-z_][\w.]{0,62})[ \t]*=", text, re.MULTILINE))


def _try(stack: Stack, incoming: str) -> census.Census:
    """Start it for itself alone, and read every row."""
    context, folders = stack.context, stack.db.folders
    with folders.scratch("try") as sockets:
        own = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={sockets}"]
        options = argv([*stack.db.spec().argv[3:], *own])
        seconds = str(int(stack.settings.stack.start_timeout))
        words = ["-w", "-t", seconds, "-l", str(sockets / "log"), "-o", options, "start"]
        try:
            context.run(folders.pg_ctl(incoming, words), "start the restored cluster")
        except StackError as error:
            log = folders.log(sockets)[-10:]
            raise StackError(error.what, why="nothing was changed", evidence=[*error.evidence, *log]) from None
        here = {"PGHOST": str(sockets)}
        make = stack.db.as_superuser([*PSQL, "-f", "-"], MAINTENANCE, here)
        context.stream_in(
            make, [f"{PINNING};\n{reader_script()}".encode()], "make the role that reads the restored cluster"
        )
        psql = stack.db.as_reader(PSQL, stack.settings.db.name, here)
        with context.talk(psql, "read the restored cluster") as talk:
            sql = Session(talk)
            if stack.db.restricts:
                sql.restrict()
            sql.run(PIN)
            sql.run("BEGIN READ ONLY")
            counted = census.take(sql)
        context.run(folders.pg_ctl(incoming, ["-w", "-m", "fast", "stop"]), "stop the restored cluster")
        return counted


def _exchange(stack: Stack, plan: Swap) -> float:
    """Stop, rename, start; the seconds in which there was no database.

    :raises StackError: the new one does not start; the old one is in its place again then.
    """
    data, folders = stack.db.data.name, stack.db.folders
    kept.mark_directory(stack, data, plan.outgoing, plan.why)  # while it has its old name the mark means nothing
    states = stack.context.states(stack.names)
    stopped = [service.label for service in stack.services if states[service.name].running]
    journal.write_swap(stack, msgspec.structs.replace(plan, stopped=stopped))
    began = time.monotonic()
    for service in reversed(stack.services):
        stack.stop(service.label)
    folders.move((data, plan.outgoing), (plan.incoming, data))
    try:
        stack.start("db")
    except BaseException:
        with contextlib.suppress(StackError):
            stack.stop("db")
        folders.move((data, plan.incoming), (plan.outgoing, data))
        raise
    outage = round(time.monotonic() - began, 3)
    with contextlib.suppress(StackError):  # the restore is done; the task that starts them says why they do not
        start_again(stack, stopped)
    return outage


def _settle(stack: Stack, plan: Swap) -> None:
    """Record the kept directory, and remove the copies that earlier restores kept, including databases that were
    already kept in the cluster when it was copied."""
    kept.settle(
        stack, Previous(name=plan.outgoing, of=stack.settings.db.name, when=stamp(now()), why=plan.why, directory=True)
    )
    journal.clear_swap(stack)
