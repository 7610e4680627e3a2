"""The steps of a restore and of an undo: tasks that these run in order, not listed themselves."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from invoke import Context, task
from msgspec import Struct

from devstack import console
from tasks import inventory, report, session
from tasks.runstate import state_of

if TYPE_CHECKING:
    from devstack.data.catalogue import Backup
    from devstack.data.load import Source
    from devstack.stack import Stack


class Restore(Struct):
    """A restore that was asked for, its file judged."""

    source: Source
    merge: bool
    backed_up: bool
    as_json: bool
    safety: str = ""

    @property
    def beside(self) -> bool:
        """Whether what is there is backed up at the same time, and not before."""
        return not self.merge and self.source.layout != "cluster"

    def say(self, stack: Stack, made: Backup) -> None:
        if not self.as_json:
            inventory.made(stack, made)


def _wanted(c: Context) -> Restore:
    wanted = state_of(c).restore
    assert wanted
    return wanted


def begin(c: Context, *, changes: bool = False, running: bool = True) -> Stack:
    """The stack of this command, with the locks on its data; ``running``: refused while the database does not run."""
    from devstack.data import recovery

    # interrupted or told to end, a command first removes what is half made; its exit code is a shell's
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    stack = session.stack(c)
    recovery.begin(stack, changes=changes)  # which starts what a restore that was cut off has stopped
    if running:
        report.require(stack, "db")
    return stack


@task
def safety_backup(c: Context) -> None:
    """Back up what is there, before it is changed; where it is replaced by a new database, while that is filled."""
    from devstack.data import restore

    stack, wanted = session.stack(c), _wanted(c)
    if stack.context.dry:
        console.out(f"# back up database {stack.settings.db.name}, labelled {restore.SAFETY}")
        return
    begin(c, changes=True)  # now that the database runs, what an earlier command left can be put right
    restore.check_target(stack, wanted.source)
    if wanted.backed_up and not wanted.beside and (made := restore.back_up_first(stack)):
        wanted.safety = made.name
        wanted.say(stack, made)


@task
def switch_over(c: Context) -> None:
    """Restore beside the database in use, and switch; or merge."""
    from devstack.data import cluster, merge, restore

    stack, wanted = session.stack(c), _wanted(c)
    if stack.context.dry:
        console.out(f"# restore {wanted.source.path} into a new database, compare it with its manifest, switch to it")
    elif wanted.merge:
        inventory.merged(merge.merge(stack, wanted.source, wanted.safety), as_json=wanted.as_json)
    elif wanted.source.layout == "cluster":
        inventory.restored(cluster.replace(stack, wanted.source, wanted.safety), as_json=wanted.as_json)
    else:
        done = restore.replace(
            stack, wanted.source, backed_up=wanted.backed_up, say=lambda made: wanted.say(stack, made)
        )
        inventory.restored(done, as_json=wanted.as_json)


@task
def switch_back(c: Context) -> None:
    """Switch to the database that was put aside."""
    from devstack.data import restore

    stack = session.stack(c)
    if stack.context.dry:
        console.out("# switch back to the database that the last restore put aside")
    else:
        inventory.undone(restore.undo(begin(c, changes=True)), as_json=state_of(c).flags["json"])
