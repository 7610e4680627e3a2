"""Moving an environment with its data to another runtime; where it was before stays until that is confirmed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from devstack import console, engines
from devstack.choices import Choices
from devstack.errors import StackError, UsageError

if TYPE_CHECKING:
    from devstack.data.catalogue import Backup
    from devstack.data.restore import Restored
    from devstack.stack import Stack

LABEL = "pre-move"
"""Of the backup that takes the data over."""


class Left(Struct, frozen=True, kw_only=True):
    """Where the environment was before, with its data."""

    runtime: str
    choices: Choices


class Moved(Struct, frozen=True):
    """What a move came to. ``restored`` is None where there were no data yet."""

    source: str
    target: str
    backup: Backup | None
    restored: Restored | None


Reopen = Callable[[str], "Stack"]
"""Opens the same environment on a runtime."""


def left(stack: Stack) -> Left | None:
    """Where the environment was before its last move; None if there was none, or it is confirmed."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(_record(stack).read_bytes(), type=Left)
    return None


def _record(stack: Stack) -> Path:
    return stack.paths.state / "moved.json"


def move(stack: Stack, target: str, reopen: Reopen) -> Moved:
    """Back up, start there, restore, compare with the manifest.

    :raises StackError: it could not be done; the environment then runs where it was.
    """
    source = stack.context.runtime.name
    _check(stack, source, target)
    other = _same_locks(stack, reopen(target))
    if other.db.data_is_there():
        raise StackError(
            f"there are data of this environment on {target} already",
            why=f"{other.db.place}: they were not touched",
            fix=f"remove them if nobody needs them, or use that environment: NV_ENV=other, stack.runtime: {target}",
        )
    if stack.context.dry:
        console.out(f"# back up, stop on {source}, start on {target}, restore, compare")
        return Moved(source, target, None, None)
    _check_target(stack, other, Choices(runtime=target), fresh=True)
    made = _back_up(stack)
    for service in reversed(stack.services):
        stack.stop(service.label)
    before = Left(runtime=source, choices=stack.chosen)
    _write(stack, before, Choices(runtime=target))
    try:
        other.renew()
        restored = _fill(other, made)
    except BaseException:
        _return(other, stack, before)
        raise
    return Moved(source, target, made, restored)


def _check(stack: Stack, source: str, target: str) -> None:
    known = ("native", *(engine.name for engine in engines.ENGINES))
    if target not in known:
        raise UsageError(f"there is no runtime {target!r}", fix=f"--to takes one of {', '.join(known)}")
    if target == source:
        raise UsageError(f"this environment runs on {source} already", fix="name another one with --to")
    if before := left(stack):
        raise StackError(
            "the last move is not confirmed",
            why=f"the environment was on {before.runtime} before, and its data are still there",
            fix=["inv dev.move --confirm removes them", "or go back there: inv dev.move --back"],
        )
    engines.check(target, stack.environ)


def _check_target(stack: Stack, other: Stack, choices: Choices, *, fresh: bool) -> None:
    """Check that the environment could be started there, before anything is stopped here.

    :raises StackError: it could not; what runs was not touched.
    """
    if stack.context.dry:
        return
    stack.lock.acquire()
    stack.check_ports()  # which are the same there: what has them now is stopped by then
    other.assume(choices)
    try:
        other.check([service.label for service in other.services], fresh=fresh, ports=False)
    except StackError as error:
        raise error.adding("what runs was not touched") from None
    finally:
        other.renew()
        if not other.context.runtime.contained:  # made to try a server, which nobody runs there
            other.context.host.remove(other.paths.run)


def _same_locks(stack: Stack, other: Stack) -> Stack:
    """One command holds the environment, whatever it runs on."""
    other.lock, other.data_lock = stack.lock, stack.data_lock
    other.quiet = stack.quiet
    return other


def _back_up(stack: Stack) -> Backup | None:
    from devstack.data import backup, census, recovery
    from devstack.data.session import session

    if not stack.db.data_is_there():
        return None
    stack.start("db")
    recovery.begin(stack, changes=True)
    with session(stack.db, stack.settings.db.name, "look at the database") as sql:
        if not census.table_names(sql):
            return None
    return backup.create(stack, backup.Request(label=LABEL))


def _fill(other: Stack, made: Backup | None) -> Restored | None:
    from devstack.data import restore
    from devstack.data.load import Source

    for service in other.services if made is None else other.services[:2]:
        other.start(service.label)
    if made is None:
        return None
    source = Source.of(other, made)
    restore.check_target(other, source)
    done = restore.replace(other, source, backed_up=False, say=lambda _: None)
    other.start("api")
    return done


def _return(other: Stack, stack: Stack, before: Left) -> None:
    """After a move that failed: nothing there, everything as it was here."""
    with contextlib.suppress(StackError):
        for service in reversed(other.services):
            other.stop(service.label)
        _remove_data(other)
    _choose(stack, before.choices)
    stack.context.host.remove(_record(stack))
    console.note(f"the move failed: the environment is on {before.runtime} as before")
    stack.forget()
    with contextlib.suppress(StackError):
        for service in stack.services:
            stack.start(service.label)


def _remove_data(stack: Stack) -> None:
    if stack.context.runtime.contained:
        stack.db.remove_data()
    else:
        stack.context.host.remove(stack.paths.volumes)


def _write(stack: Stack, before: Left, choices: Choices) -> None:
    """The record first: whatever is cut off afterwards, the way back is known."""
    stack.context.write_file(_record(stack), msgspec.json.encode(before).decode() + "\n")
    _choose(stack, choices)


def _choose(stack: Stack, choices: Choices) -> None:
    stack.context.write_file(stack.paths.choices, msgspec.json.encode(choices).decode() + "\n")


def back(stack: Stack, reopen: Reopen) -> Left:
    """Return to where the environment was, with the data that it had there; those of here stay until confirmed.

    :raises UsageError: there is nothing to return to.
    """
    before = _required(stack)
    stack.lock.acquire()
    other = _same_locks(stack, reopen(before.runtime))
    _check_target(stack, other, before.choices, fresh=False)
    for service in reversed(stack.services):
        stack.stop(service.label)
    _write(stack, Left(runtime=stack.context.runtime.name, choices=stack.chosen), before.choices)
    other.renew()
    for service in other.services:
        other.start(service.label)
    return before


def confirm(stack: Stack, reopen: Reopen) -> Left:
    """Remove the data where the environment was before.

    :raises UsageError: there was no move.
    """
    before = _required(stack)
    stack.lock.acquire()
    _remove_data(_same_locks(stack, reopen(before.runtime)))
    stack.context.host.remove(_record(stack))
    return before


def _required(stack: Stack) -> Left:
    before = left(stack)
    if before is None:
        raise UsageError("there is no move to confirm or to go back from", fix="inv dev.move --to docker")
    return before
