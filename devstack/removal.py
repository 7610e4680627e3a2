"""Removing an environment for good. Its backups stay."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from devstack import console, reset
from devstack.errors import StackError

if TYPE_CHECKING:
    from devstack.data.catalogue import Backup
    from devstack.stack import Stack

LABEL = "pre-remove"
"""Of the backup that is made before."""

GOING = ".going"
"""At the end of the name of a state folder that is being removed."""


def check(stack: Stack) -> None:
    """:raises StackError: it has data in another runtime too, which would be left behind."""
    from devstack import move

    if before := move.left(stack):
        raise StackError(
            "the last move of this environment is not confirmed",
            why=f"it was on {before.runtime} before, and its data are still there",
            fix="inv dev.move --confirm removes them, then it can be removed",
        )


def back_up(stack: Stack) -> Backup | None:
    """A proven backup of the database, which is started for it; None if there is none yet.

    :raises StackError: it could not be made.
    """
    return reset.back_up(stack, label=LABEL, command=f"inv dev.remove -e {stack.settings.stack.env}")


def remove(stack: Stack) -> None:
    """Stop everything, then remove data, state, logs, ports, schedule, and the entry in the list of environments.

    One that is cut off is done by the next: what is in the list can be removed again.

    :raises StackError: somebody else uses the volume; nothing is removed then.
    """
    paths, dry = stack.paths, stack.context.dry
    reset.stop_everything(stack)
    stack.db.check_removable()
    _unschedule(stack)
    reset.remove_logs(stack)
    if dry:
        reset.say_what_goes(stack)
        console.out(f"# remove {paths.state}")
        return
    reset.clear(stack)
    # who waits for the lock makes its folder anew again and again: what is removed must not be in its place
    paths.state.rename(paths.state.with_name(f".{paths.state.name}{GOING}"))
    for folder in paths.state.parent.glob(f".*{GOING}"):
        stack.context.host.remove(folder)
    stack.registry.drop(paths.state)
    for folder in (paths.state.parent, paths.log):
        _remove_if_empty(folder)


def _unschedule(stack: Stack) -> None:
    from devstack.data import schedule, schedulers

    if schedule.read(stack):
        schedule.remove(stack, schedulers.find(stack))


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / "devstack.log").unlink(missing_ok=True)
        folder.rmdir()
