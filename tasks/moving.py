"""Backups and restores of a database elsewhere, which ``--url`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke import Context
from msgspec import Struct

from devstack import console
from devstack.errors import UsageError
from tasks import inventory, replacement, session
from tasks.runstate import state_of

if TYPE_CHECKING:
    from devstack.data.address import Address
    from devstack.data.backup import Request
    from devstack.data.catalogue import Backup
    from devstack.stack import Stack


class Wanted(Struct, frozen=True):
    """A restore that is asked for: which backup, and how."""

    file: str
    at: str
    choose: bool
    force: bool
    backed_up: bool
    as_json: bool


def address(c: Context, url: str) -> Address | None:
    """What ``--url`` says; None if that is this environment's own database.

    :raises UsageError: it is no address of a database.
    """
    from devstack.data import elsewhere
    from devstack.data.address import address_of

    found, stack = address_of(url, state_of(c).environ), session.stack(c)
    if not elsewhere.is_own(stack, found):
        return found
    console.note(f"{found} is this environment's own database: all goes on as without --url")
    return None


def _begin(c: Context) -> Stack:
    """In a container, PostgreSQL's programs are there only while it runs."""
    return replacement.begin(c, running=session.stack(c).context.runtime.contained)


def backup(c: Context, address: Address, request: Request) -> Backup | None:
    """A backup of a database elsewhere, which is only read."""
    from devstack.data import backup as backups
    from devstack.data import elsewhere

    with elsewhere.opened(_begin(c), address) as there:
        if not there.context.dry:
            elsewhere.check_readable(there)
        return backups.create(there, request)


def restore(c: Context, address: Address, wanted: Wanted, *, yes: bool, allow_remote: bool) -> None:
    """Restore into a database elsewhere; the one that is there is kept.

    :raises UsageError: nobody said that it may be replaced.
    """
    from devstack.data import elsewhere, source, transfer

    elsewhere.check_allowed(address, yes=yes, allow_remote=allow_remote)
    stack = _begin(c)
    picked = inventory.choose(stack) if wanted.choose else wanted.file
    found = source.choose(stack, file=picked, at=wanted.at, force=wanted.force)
    if found.kind == "data" or found.layout == "cluster":
        what = "rows alone" if found.kind == "data" else "a whole cluster's files"
        raise UsageError(f"{found.name} has {what}, and --url takes dumps with tables", fix="name a full backup")
    if not wanted.backed_up:
        console.note("no backup is made of what is there: --no-safety-backup")
    with elsewhere.opened(stack, address, fills=True) as there:
        if stack.context.dry:
            console.out(f"# restore {found.path} into a new database on {address.server}, compare it, rename both")
            return
        transfer.check(there, found)

        def say(made: Backup) -> None:
            if not wanted.as_json:
                inventory.made(stack, made)

        done = transfer.replace(there, found, backed_up=wanted.backed_up, say=say)
        inventory.moved(done, as_json=wanted.as_json)
