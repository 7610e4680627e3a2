"""The environments as people see them: the list, and what stops or removes them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
from invoke import Context, Exit

from devstack import console
from devstack.errors import FAILED, UsageError
from tasks import inventory, report, session
from tasks.runstate import state_of

if TYPE_CHECKING:
    from devstack.environments import Environment

COLOUR = {"healthy": "good", "partial": "warn", "unhealthy": "bad", "unknown": "warn", "stopped": "dim"}


def show_list(c: Context, *, everywhere: bool, as_json: bool) -> None:
    from devstack.environments import look_at_all

    found = look_at_all(session.stack(c, looking=True), everywhere=everywhere)
    if as_json:
        console.data({"environments": [_data(one) for one in found]})
    elif not found:
        console.out("there is no environment yet; inv dev.up makes one")
    else:
        for line in _lines(found, everywhere=everywhere):
            console.out(line)


def _data(one: Environment) -> dict[str, Any]:
    age = None if one.created is None else max(0, round(time.time() - one.created))
    return {**msgspec.to_builtins(one), "runtime": one.runtime or None, "reason": one.reason or None, "age_s": age}


def _lines(found: list[Environment], *, everywhere: bool) -> list[str]:
    header = ("environment", "runtime", "health", "api", "pgbouncer", "database", "memory", "disk", "age")
    lines = console.table([_row(one) for one in found], header, right=range(3, 9))
    head, body = lines[0], [_painted(line, one) for line, one in zip(lines[1:], found, strict=True)]
    if everywhere:
        shown: list[str] = []
        for root in dict.fromkeys(one.checkout for one in found):
            shown += ["", console.paint(root, "bold")] if shown else [head, console.paint(root, "bold")]
            shown += [line for line, one in zip(body, found, strict=True) if one.checkout == root]
    else:
        shown = [head, *body]
    at = {one.state: f" in {one.checkout}" if everywhere else "" for one in found}
    reasons = [f"{one.name}{at[one.state]}: {one.reason}" for one in found if one.reason]
    running = [one for one in found if one.memory_bytes]
    total = f", {console.size(sum(one.memory_bytes or 0 for one in running))} of memory" if running else ""
    count = f"{len(found)} environment{'' if len(found) == 1 else 's'}, {len(running)} running{total}"
    return [*shown, "", *reasons, count]


def _row(one: Environment) -> tuple[str, ...]:
    ports = [str(one.ports.get(label, "-")) for label in ("api", "pgb", "db")]
    sizes = ["-" if size is None else console.size(size) for size in (one.memory_bytes or None, one.disk_bytes)]
    age = "-" if one.created is None else console.duration(max(0, int(time.time() - one.created))).replace(".00", "")
    return (f"{'*' if one.current else ' '} {one.name}", one.runtime or "-", one.health, *ports, *sizes, age)


def _painted(line: str, one: Environment) -> str:
    return line.replace(f"  {one.health}", f"  {console.paint(one.health, COLOUR[one.health])}", 1)


def stop_others(c: Context) -> None:
    """Stop the other environments of this checkout too."""
    from devstack.environments import known, stop_all

    here = session.stack(c, looking=True)
    here.lock.release()
    others = [entry for entry in known(here) if entry.state != str(here.paths.state)]
    problems = stop_all(
        here, others, lambda stack, label, was, seconds: report.stopped(stack, label, was.status, seconds)
    )
    for problem in problems:
        console.notes(problem.text())
    if problems:
        raise Exit(code=FAILED)


def remove(c: Context, *, yes: bool, no_backup: bool) -> None:
    from devstack import removal, reset
    from devstack.environments import known

    name = state_of(c).env
    looked = session.stack(c, looking=True)
    there = [entry.env for entry in known(looked)]
    if not name:
        raise UsageError("dev.remove wants to be told which environment", fix=f"inv dev.remove -e {_one_of(there)}")
    if name not in there:
        raise UsageError(f"there is no environment {name}", fix=f"there are: {', '.join(there) or 'none'}")
    stack = session.stack(c)
    removal.check(stack)
    going = reset.doomed(stack, logs=True)
    report.ask_first(stack, report.doomed(stack, going, backup=not no_backup, logs=True), task="dev.remove", yes=yes)
    stack.hook("pre_down")
    if no_backup:
        console.note("no backup is made of the data: --no-backup")
    elif made := removal.back_up(stack):
        inventory.made(stack, made)
    removal.remove(stack)
    for item in going:
        report.removed(stack, item)
    if not stack.context.dry:
        console.out(f"environment {name} is gone; its backups, if any, stay")


def _one_of(there: list[str]) -> str:
    return next((name for name in there if name != "dev"), "NAME")
