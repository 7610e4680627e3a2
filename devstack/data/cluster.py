"""Restoring a copy of the cluster: combined and tried in a folder of its own, then put in the place of the one in use.

A record on the disk (``swap.json``) says what is going on before anything is; the next command puts right what was cut
off. The folder before stays, for the way back, until the next restore has succeeded.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, field

from devstack import console
from devstack.data import catalogue, census, journal, verify
from devstack.data.catalogue import Backup
from devstack.data.incremental import LINEAGE, chain
from devstack.data.journal import Previous
from devstack.data.manifest import now, stamp
from devstack.data.restore import Restored, Undone
from devstack.data.session import Session
from devstack.errors import StackError
from devstack.shell import Command, argv, sh

if TYPE_CHECKING:
    from devstack.data.load import Source
    from devstack.stack import Stack


class Swap(Struct, frozen=True, kw_only=True):
    """Folders' names beside the data folder."""

    incoming: str
    outgoing: str
    why: str
    pid: int = field(default_factory=os.getpid)


def check(stack: Stack, backup: Backup) -> list[Backup]:
    """Prove every member of the chain: a damaged one would be combined without a word.

    :raises StackError: one is missing or damaged, or of another major version.
    """
    members = chain(backup, catalogue.backups(backup.path.parent))
    for member in members:
        verify.check_content(stack, member.path, member.manifest)
    major = backup.manifest.server_version.split(".")[0]
    if major != str(stack.db.programs.major):
        raise StackError(
            f"{backup.name} was made by PostgreSQL {major}, this is {stack.db.programs.version}",
            why="a copy of a cluster's files can be read by the same major version alone; nothing was touched",
            fix=f"set db.bin_dir to a PostgreSQL {major}, or use a dump: inv data.list",
        )
    return members


def replace(stack: Stack, source: Source, safety: str) -> Restored:
    """Combine a chain, try it, and put it in the place of the cluster in use.

    :raises StackError: it could not be done; the cluster in use is as it was then.
    """
    began = now()
    backup = catalogue.read(source.path)
    assert backup
    members = check(stack, backup)
    data = stack.db.data
    plan = Swap(
        incoming=f".{data.name}.incoming",
        outgoing=f"{data.name}-{now():%Y%m%d-%H%M%S}",
        why=f"restore of {source.name}",
    )
    _write(stack, plan)
    try:
        counted = _combine_and_try(stack, members, data.with_name(plan.incoming))
        outage = _exchange(stack, plan)
    except BaseException:
        recover(stack)
        raise
    _settle(stack, plan)
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
    if not data.with_name(previous.name).is_dir():
        raise StackError("there is nothing to undo", why=f"{previous.name} is gone", fix="see inv data.list")
    plan = Swap(incoming=previous.name, outgoing=f"{data.name}-{now():%Y%m%d-%H%M%S}", why=f"undo of {previous.why}")
    _write(stack, plan)
    try:
        outage = _exchange(stack, plan)
    except BaseException:
        recover(stack)
        raise
    _settle(stack, plan)
    return Undone(previous.why, plan.outgoing, outage)


def try_chain(stack: Stack, backup: Backup) -> census.Census:
    """Combine a chain and start it, then let it go: a deep verification.

    :raises StackError: it is not whole.
    """
    members = check(stack, backup)
    plan = Swap(incoming=f".{stack.db.data.name}.incoming", outgoing="", why="verification")
    _write(stack, plan)
    try:
        return _combine_and_try(stack, members, stack.db.data.with_name(plan.incoming))
    finally:
        recover(stack)


def put_right(stack: Stack) -> None:
    """What another command left, with both locks held."""
    plan = _read(stack)
    if plan is None or plan.pid != os.getpid():
        recover(stack)


def recover(stack: Stack) -> None:
    """Put right what was cut off: the data folder is the old one or the new one, whole; the rest goes."""
    plan = _read(stack)
    data = stack.db.data
    if plan is None:
        stack.context.host.remove(stack.paths.swap)
        return
    incoming, outgoing = data.with_name(plan.incoming), data.with_name(plan.outgoing or "none")
    if not data.is_dir() and outgoing.is_dir():
        outgoing.rename(data)
        console.note(f"the {plan.why} was cut off: the database is as it was before")
    elif outgoing.is_dir() and not incoming.is_dir():
        _settle(stack, plan)
        console.note(f"the {plan.why} was cut off after its switch, and is finished")
        return
    if plan.incoming.startswith(".") and incoming.is_dir():
        stack.context.read(stack.context.runtime.as_account(_pg_ctl(stack, incoming, ["-m", "immediate", "stop"])))
        stack.context.host.remove(incoming)
    stack.context.host.remove(stack.paths.swap)


def _combine_and_try(stack: Stack, members: list[Backup], target: Path) -> census.Census:
    context, programs = stack.context, stack.db.as_superuser
    context.host.remove(target)
    words = ["pg_combinebackup", "-o", str(target), *(str(member.path) for member in members)]
    context.run(programs(words, "postgres"), f"combine {len(members)} backups")
    context.run(programs(["pg_verifybackup", "-q", str(target)], "postgres"), "verify the combined backup")
    context.host.write_file(target / LINEAGE, f"{secrets.token_hex(16)}\n".encode(), 0o600)
    if context.host.is_root:
        context.run(sh("chown -R $account: $target", account=context.host.account, target=target), "hand it over")
    return _try(stack, target)


def _try(stack: Stack, target: Path) -> census.Census:
    """Start it for itself alone, and read every row."""
    context = stack.context
    sockets = context.paths.run / "try"
    context.make_run_dir()
    context.make_dir(sockets, 0o700, account=True)
    own = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={sockets}"]
    options = argv([*stack.db.spec().argv[3:], *own])
    seconds = str(int(stack.settings.stack.start_timeout))
    start = _pg_ctl(stack, target, ["-w", "-t", seconds, "-l", str(sockets / "log"), "-o", options, "start"])
    stop = _pg_ctl(stack, target, ["-w", "-m", "fast", "stop"])
    try:
        try:
            context.run(context.runtime.as_account(start), "start the restored cluster")
        except StackError as error:
            log = (context.host.read_file(sockets / "log") or b"").decode(errors="replace").splitlines()[-10:]
            raise StackError(error.what, why="nothing was changed", evidence=[*error.evidence, *log]) from None
        words = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        psql = stack.db.as_superuser(words, stack.settings.db.name, {"PGHOST": str(sockets)})
        with context.talk(psql, "read the restored cluster") as (stdin, stdout):
            counted = census.take(Session(stdin, stdout))
        context.run(context.runtime.as_account(stop), "stop the restored cluster")
        return counted
    finally:
        context.host.remove(sockets)


def _pg_ctl(stack: Stack, target: Path, words: list[str]) -> Command:
    program = stack.db.programs.path("pg_ctl")
    return stack.context.exec(stack.db.name, [program, "-D", str(target), *words], stack.db.programs.env)


def _exchange(stack: Stack, plan: Swap) -> float:
    """Stop, rename, start; the seconds in which there was no database.

    :raises StackError: the new one does not start; the old one is in its place again then.
    """
    data = stack.db.data
    incoming, outgoing = data.with_name(plan.incoming), data.with_name(plan.outgoing)
    began = time.monotonic()
    for service in reversed(stack.services):
        stack.stop(service.label)
    data.rename(outgoing)
    incoming.rename(data)
    _sync(data.parent)
    try:
        stack.start("db")
    except BaseException:
        with contextlib.suppress(StackError):
            stack.stop("db")
        data.rename(incoming)
        outgoing.rename(data)
        with contextlib.suppress(StackError):
            for service in stack.services:
                stack.start(service.label)
        raise
    return round(time.monotonic() - began, 3)


def _settle(stack: Stack, plan: Swap) -> None:
    """Remember what was put aside, let go of what an earlier restore had kept."""
    was = journal.read_previous(stack.paths)
    journal.write_previous(
        stack,
        Previous(name=plan.outgoing, of=stack.settings.db.name, when=stamp(now()), why=plan.why, directory=True),
    )
    if was and was.directory and was.name not in (plan.outgoing, plan.incoming):
        stack.context.host.remove(stack.db.data.with_name(was.name))
    stack.context.host.remove(stack.paths.swap)


def _write(stack: Stack, plan: Swap) -> None:
    stack.context.host.write_file(stack.paths.swap, msgspec.json.encode(plan) + b"\n", 0o600)


def _read(stack: Stack) -> Swap | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(stack.paths.swap.read_bytes(), type=Swap)
    return None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
