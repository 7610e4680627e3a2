"""Backups by the clock: what the host's scheduler runs, when, and how it went."""

from __future__ import annotations

import contextlib
import os
import re
import string
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from devstack import console
from devstack.data import catalogue
from devstack.data.cron import Cron, parse
from devstack.data.manifest import now, stamp
from devstack.errors import StackError, UsageError
from devstack.settings import SPECIFIED, URL_VARIABLE, VARIABLE_PREFIXES
from devstack.shell import argv, sh
from devstack.templates import CHECKOUT

if TYPE_CHECKING:
    from devstack.data.schedulers import Scheduler
    from devstack.stack import Stack

LABEL = "scheduled"


class Schedule(Struct, frozen=True, kw_only=True):
    """What was asked for. Times are UTC in ISO 8601."""

    every: str
    """In the user's words: ``daily at 03:00``."""
    expression: str
    installed: str


class Run(Struct, frozen=True, kw_only=True):
    """How the last run went. ``ended`` is empty as long as it has not, or when it was cut off."""

    began: str
    ended: str = ""
    ok: bool = False
    said: str = ""
    pid: int = 0


class Status(Struct, frozen=True, kw_only=True):
    """What there is. ``next`` is local time; ``trouble`` says what keeps backups from being made."""

    schedule: Schedule | None
    where: str = ""
    last: Run | None = None
    next: str = ""
    trouble: str = ""


def when(every: str, at: str) -> tuple[str, Cron]:
    """A frequency in words, and as an expression.

    :raises UsageError: not a frequency, or not a time of day.
    """
    if every not in ("daily", "hourly"):
        if at:
            raise UsageError("--at goes with --every daily", fix="a cron expression has its own time")
        return every, parse(every)
    if every == "hourly":
        if at:
            raise UsageError("--at goes with --every daily", fix=f"write it as a cron expression: '{at[-2:]} * * * *'")
        return every, parse("0 * * * *")
    at = at or "03:00"
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", at, re.ASCII)
    if not match:
        raise UsageError(f"--at {at!r} is not a time of day", fix="write it as 03:00")
    return f"daily at {at}", parse(f"{int(match[2])} {int(match[1])} * * *")


def install(stack: Stack, scheduler: Scheduler, every: str, cron: Cron) -> None:
    """Have the host's scheduler make backups; an earlier schedule is replaced."""
    folder, context = stack.paths.schedule, stack.context
    context.make_dir(folder, 0o700)
    context.write_file(folder / "run.sh", _script(stack), 0o700)
    made = Schedule(every=every, expression=cron.text, installed=stamp(now()))
    scheduler.install(cron, folder / "run.sh")
    context.write_file(folder / "schedule.json", msgspec.json.encode(made).decode() + "\n")


def _script(stack: Stack) -> str:
    """With the variables that this command's settings came from: a scheduler has nearly none of its own."""
    ours = {*SPECIFIED, URL_VARIABLE, "PATH", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "SUDO_UID"}
    given = {k: v for k, v in sorted(stack.environ.items()) if k in ours or k.startswith(VARIABLE_PREFIXES)}
    root = stack.settings.root
    program, bin_ = ("inv", root / ".venv/bin") if root == CHECKOUT else ("nv", Path(sys.executable).parent)
    if not (bin_ / program).exists():  # tests, and those who install it in a place of their own
        bin_ = Path(sys.executable).parent
    values = {
        "root": argv([root]),
        "folder": argv([stack.paths.log]),
        "log": argv([stack.paths.log / "schedule.log"]),
        "python": argv([bin_ / "python"]),
        # nv looks for its invoke.yaml in the folder that it is called in
        "inv": sh("$inv --search-root $root", inv=bin_ / program, root=root)
        if program == "inv"
        else argv([bin_ / program]),
    }
    exports = "\n".join(f"export {name}={argv([value])}" for name, value in given.items())
    template = (stack.settings.templates / "schedule-run.sh").read_text()
    return string.Template(template).substitute(exports=exports, **values)


def remove(stack: Stack, scheduler: Scheduler) -> bool:
    """Take the entry out again; whether there was one. What the last run came to is forgotten."""
    was = scheduler.remove() or read(stack) is not None
    if not stack.context.dry:
        stack.context.host.remove(stack.paths.schedule)
    return was


def run(stack: Stack) -> None:
    """A backup, proven, and a cleanup; how that went is kept. A database that does not run is started for it.

    :raises StackError: it failed.
    """
    from devstack.data import backup, kept, recovery, retention

    began = Run(began=stamp(now()), pid=os.getpid())
    clock = time.monotonic()
    _keep(stack, began)
    ended = msgspec.structs.replace(began, said="it was interrupted")
    ran = stack.context.states(stack.names)[stack.db.name].running
    try:
        if not ran:
            with _stack_held(stack):
                stack.start("db")
        recovery.begin(stack, changes=False)
        stack.hook("pre_backup")
        made = backup.create(stack, backup.Request(label=LABEL))
        stack.hook("post_backup")
        if stack.settings.wrong:  # the age that backups may have could be what is wrong
            removed = "none removed while a setting is wrong"
        else:
            gone = retention.cleanup(stack, days=stack.settings.data.retention_days, keep=1, dry=False)
            removed = f"{len(gone)} removed"
            kept.clean_up(stack)
        said = f"{made.name if made else ''} verified, {removed}, {console.duration(time.monotonic() - clock)}"
        ended = msgspec.structs.replace(began, ok=True, said=said)
        console.out(f"{stamp(now())}  {said}")
    except StackError as error:
        ended = msgspec.structs.replace(began, said=": ".join(filter(None, [error.what, error.why])))
        console.note(stamp(now()))
        raise
    finally:
        _keep(stack, msgspec.structs.replace(ended, ended=stamp(now())))
        if not ran:
            _let_go(stack)


@contextlib.contextmanager
def _stack_held(stack: Stack) -> Iterator[None]:
    """Nobody else starts or stops anything meanwhile. The lock on the data is given up: the other one comes first."""
    stack.data_lock.release()
    stack.lock.acquire()
    try:
        yield
    finally:
        stack.lock.release()


def _let_go(stack: Stack) -> None:
    """Stop a database that was started for a run, unless somebody has begun to use the stack since."""
    try:
        with _stack_held(stack):
            states = stack.context.states(stack.names)
            if not any(states[name].running for name in stack.names if name != stack.db.name):
                stack.stop("db")
    except StackError as error:
        console.note(f"the database was not stopped again: {error.what}")


def _keep(stack: Stack, done: Run) -> None:
    stack.context.make_dir(stack.paths.schedule, 0o700)
    stack.context.write_file(stack.paths.schedule / "last.json", msgspec.json.encode(done).decode() + "\n")


def read(stack: Stack) -> Schedule | None:
    """The schedule that was installed; None if there is none."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((stack.paths.schedule / "schedule.json").read_bytes(), type=Schedule)
    return None


def read_last(stack: Stack) -> Run | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((stack.paths.schedule / "last.json").read_bytes(), type=Run)
    return None


def status(stack: Stack, scheduler: Scheduler) -> Status:
    """What is installed, when it last ran and how that ended, when it runs next."""
    schedule = read(stack)
    if schedule is None:
        return Status(schedule=None)
    last = read_last(stack)
    trouble = ""
    if not scheduler.installed():
        trouble = f"the entry {scheduler.where} is gone: inv data.schedule --every … puts it back"
    elif last and last.ended and not last.ok:
        trouble = f"the last run failed: {last.said}"
    following = next(parse(schedule.expression).after(datetime.now()), None)
    return Status(
        schedule=schedule,
        where=scheduler.where,
        last=last,
        next=f"{following:%Y-%m-%d %H:%M}" if following else "",
        trouble=trouble or scheduler.asleep() or overdue(stack),
    )


def overdue(stack: Stack) -> str:
    """Why the newest verified backup is too old for the schedule, as a sentence; empty if it is not.

    It may be half as old again as the longest gap between two runs, and ten minutes: one that was missed is noticed,
    one that takes long is not.
    """
    schedule = read(stack)
    if schedule is None:
        return ""
    found = catalogue.backups(catalogue.folder_of(stack.settings))
    found = [b for b in found if catalogue.is_own(stack, b) and not b.manifest.origin and not b.manifest.safety]
    whole = [b for b in found if b.manifest.verified and b.manifest.kind not in ("schema", "data") and not b.damage]
    # one from a clock that was ahead is not fresh
    times = [b.manifest.time for b in whole if b.manifest.time <= now() + timedelta(minutes=1)]
    newest = max(times, default=None)
    installed = datetime.fromisoformat(schedule.installed)
    allowed = parse(schedule.expression).gap(datetime.now()) * 1.5 + timedelta(minutes=10)
    if now() - max(filter(None, [newest, installed])) <= allowed:
        return ""
    if newest is None:
        age = console.duration((now() - installed).total_seconds())
        return f"there is no verified backup, and the schedule of {age} ago says {schedule.every}"
    age = console.duration((now() - newest).total_seconds())
    return f"the newest verified backup is {age} old, the schedule says {schedule.every}"
