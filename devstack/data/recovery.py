"""The beginning of every command on the data: its locks, and what a killed one left put right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devstack import console
from devstack.data import journal, kept, load, switch
from devstack.data.elsewhere import PASSFILE
from devstack.data.journal import Previous
from devstack.data.manifest import now, stamp
from devstack.services.postgres import STAGING

if TYPE_CHECKING:
    from devstack.stack import Stack


def begin(stack: Stack, *, changes: bool) -> None:
    """Nobody else is at the data from here on; with ``changes`` nobody else is at the stack either.

    What was cut off is finished or undone, if the database runs.
    """
    if stack.context.dry:
        return
    if changes:
        stack.lock.acquire()
    stack.data_lock.acquire()
    for left in stack.paths.config.glob(f"{PASSFILE}*"):
        stack.context.host.remove(left)
    for left in stack.paths.state.glob(f"{STAGING}*"):
        stack.context.host.remove(left)
    if stack.paths.journal.exists():
        if not changes:
            stack.data_lock.release()
            stack.lock.acquire()
            stack.data_lock.acquire()
        recover(stack)
        if not changes:
            stack.lock.release()


def is_cut_off(stack: Stack) -> bool:
    """Whether a restore, merge or undo did not end; asked while the stack's lock is held, which they hold to their end.
    A proof by restore does not hold it, and may be going on."""
    left = journal.read(stack.paths)
    return left is None or left.operation != "verify"


def recover(stack: Stack) -> None:
    """Put right what a killed command left; both locks are held.

    :raises StackError: the database does not let it.
    """
    left = journal.read(stack.paths)
    if left is None:
        journal.clear(stack)  # damaged by a full disk: what it was about can't be known
        return
    if not stack.context.states(stack.names)[stack.db.name].running:
        return
    there = switch.databases(stack)
    if left.phase == "switch" and left.incoming not in there and left.outgoing in there:
        switch.open_again(stack)
        settle(stack, left)
        console.note(f"finished the {left.operation} of {left.about}, which was cut off after its switch")
        return
    if left.phase == "switch":
        switch.open_again(stack)
    if left.operation != "undo" and left.incoming in there:
        # of an undo it is what the restore had kept
        load.drop(stack, left.incoming)
    journal.clear(stack)
    if left.operation != "verify":
        console.note(f"the {left.operation} of {left.about} was cut off: the database is as it was before")


def settle(stack: Stack, done: journal.Journal) -> None:
    """After a switch: remember what was put aside, let go of what earlier restores had kept."""
    why = f"{done.operation} of {done.about}"
    kept.settle(stack, Previous(name=done.outgoing, of=done.database, when=stamp(now()), why=why))
    journal.clear(stack)
