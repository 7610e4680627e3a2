"""The beginning of every command on the data: its locks, and what a killed one left put right."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from devstack import console
from devstack.data import journal, kept, load, switch
from devstack.data.elsewhere import PASSFILE
from devstack.data.journal import Previous
from devstack.data.manifest import now, stamp
from devstack.errors import StackError
from devstack.guard import Guard, append
from devstack.inherited import take_out, without_foreign
from devstack.services import NotReady, wait_until_answers
from devstack.services.postgres import STAGING
from devstack.settings import VARIABLE_PREFIXES, Entry, check_expansion, entries_of_runtime_file

if TYPE_CHECKING:
    from devstack.stack import Stack

GIVEN = "NV_GUARD_GIVEN"
"""Variable by which the guard gets what flags have set: a command line could be read by everybody."""


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
    if stack.paths.journal.exists() or stack.paths.swap.exists():
        if not changes:
            stack.data_lock.release()
            stack.lock.acquire()
            stack.data_lock.acquire()
        _recover_all(stack)
        if not changes:
            stack.lock.release()


def _recover_all(stack: Stack) -> None:
    if stack.paths.swap.exists():
        from devstack.data import cluster

        cluster.start_again(stack, cluster.put_right(stack))
    if stack.paths.journal.exists():
        recover(stack)


def is_cut_off(stack: Stack) -> bool:
    """Check whether a restore, merge, undo or proof by restore did not end. The stack's lock is held, which all but a
    proof hold to their end."""
    left = journal.read(stack.paths)
    return left is None or left.operation != "verify" or journal.is_abandoned(stack.paths)


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
    if not _finish_or_undo(stack, left) and left.operation != "verify":
        console.note(f"the {left.why} was cut off: the database is as it was before")


def give_up(stack: Stack) -> None:
    """Put right what this command leaves of a restore or an undo that failed. Where the server does not let it, the
    next command does it, and why this one failed is not hidden."""
    left = journal.read(stack.paths)
    try:
        if left:
            _finish_or_undo(stack, left)
    except (StackError, OSError):
        console.note("what is left of it could not be put right now; the next command on the data does it")


def _finish_or_undo(stack: Stack, left: journal.Journal) -> bool:
    """Finish a switch once the new database has the name in use: clients may have written to it. Undo it otherwise.

    :returns: whether it was finished.
    :raises StackError: the database does not let it.
    """
    there = switch.final_databases(stack)
    if left.phase == "switch" and left.incoming not in there and left.outgoing in there:
        switch.open_again(stack)
        settle(stack, left)
        console.note(f"finished the {left.why}, which was cut off after its switch")
        return True
    if left.phase == "switch":
        switch.open_again(stack)
    if left.operation != "undo":  # whose incoming database is what the restore had kept
        load.discard(stack, left.incoming)
    journal.clear(stack)
    return False


def put_right(stack: Stack) -> None:
    """Finish or undo what was cut off, if anything was, for a command that is not about the data itself; the locks are
    free again afterwards.

    :raises StackError: the database does not let it, or another command has the stack for too long.
    """
    if not stack.context.dry and journal.is_abandoned(stack.paths):
        _put_right(stack)


def _put_right(stack: Stack) -> None:
    taken = [lock for lock in (stack.data_lock, stack.lock) if not lock.held]
    try:
        begin(stack, changes=True)
    finally:
        for lock in taken:
            lock.release()


@contextlib.contextmanager
def guarded(stack: Stack) -> Iterator[None]:
    """Have a switch finished or undone at once should this process be killed in the middle: its clients wait."""
    given = [
        *entries_of_runtime_file(stack.context.c.config),  # the file may be gone by then, as it is on another host
        Entry("stack.env", stack.settings.stack.env, "the flag -e", True),
    ]
    env = {**without_foreign(stack.environ), GIVEN: msgspec.json.encode(given).decode()}
    with contextlib.ExitStack() as held:
        log = None
        with contextlib.suppress(OSError):
            log = append(stack.paths.log / "devstack.log")
            held.callback(os.close, log)
        guard = Guard("devstack.data.recovery", [str(stack.settings.root)], env=env, log=log)
    guard.tell(str(os.getpid()))
    try:
        yield
    finally:
        guard.close()


def main(words: list[str]) -> None:
    """Put right what a command has left that was killed in a switch. Called by the guard."""
    root, pid = words
    stack = _open(Path(root), msgspec.json.decode(os.environ.pop(GIVEN), type=list[Entry]))
    left = journal.read(stack.paths) or journal.read_swap(stack.paths)
    if left is None or left.pid != int(pid):
        return  # another command was quicker
    sys.argv = ["inv", f"data.{left.why.partition(' ')[0]}"]  # who waits for the lock is told what has it
    try:
        # a cluster needs no server to be put right, and may have one that is being stopped
        if isinstance(left, journal.Journal) and stack.context.states(stack.names)[stack.db.name].running:
            with contextlib.suppress(NotReady):
                wait_until_answers(stack.db.accepts, seconds=stack.settings.stack.start_timeout, failed=lambda: "")
        _put_right(stack)
    except StackError as error:
        console.note(f"could not put right the {left.why}: {error.what}: {error.why}")


def _open(root: Path, given: list[Entry]) -> Stack:
    """Open the stack of the command that the guard was started by.

    :param given: what its flags have set.
    """
    from invoke import Config, Context

    from devstack import trust
    from devstack.stack import open_stack

    environ = dict(os.environ)
    take_out(os.environ, VARIABLE_PREFIXES)
    os.chdir(root)
    trust.check(root, environ)
    config = Config()
    config.set_project_location(str(root))
    check_expansion(root)
    config.load_project()
    return open_stack(Context(config), root, environ, given=given)


def settle(stack: Stack, done: journal.Journal) -> None:
    """Complete a switch: record the kept database, and remove earlier kept copies."""
    why = done.why
    kept.settle(stack, Previous(name=done.outgoing, of=done.database, when=stamp(now()), why=why))
    journal.clear(stack)
