"""The same load on PostgreSQL directly, through PgBouncer, and on the application: one after another, so that they do
not disturb each other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack import console
from devstack.errors import StackError, UsageError
from devstack.profiling import chart, files, load
from devstack.profiling.load import Load, Outcome, Target

if TYPE_CHECKING:
    from devstack.stack import Stack


class Wanted(Struct, frozen=True):
    """What is asked for."""

    rps: float
    seconds: float
    connections: int
    sql: str = "SELECT 1"
    path: str = ""
    only: Sequence[str] = ()
    write: bool = False
    reconnect: bool = False


class Comparison(Struct, frozen=True):
    """What came of it."""

    path: Path
    rps: float
    seconds: float
    connections: int
    outcomes: list[Outcome]
    notes: list[str]


def compare(stack: Stack, wanted: Wanted, output: str, now: datetime) -> Comparison | None:
    """Put every target under load, until Ctrl-C at the latest; None in a dry run.

    :raises UsageError: a flag's value is wrong, or the stack is open to other machines.
    :raises StackError: nothing runs that could be put under load, or it does not answer.
    """
    from devstack.profiling import targets

    _check(wanted)
    targets.check_bind(stack)
    path = wanted.path or stack.settings.api.health_path
    targets.check_path(path)
    file = files.destination(stack, output, "load", ".svg", now)
    sql = wanted.sql.strip().rstrip(";").strip()
    if not sql:
        raise UsageError("--sql is empty", fix="leave it out for SELECT 1")
    if stack.context.dry:
        for key in wanted.only or targets.KEYS:
            console.out(f"# {wanted.rps:g} requests a second for {wanted.seconds:g} s: {key}")
        return None
    notes: list[str] = []
    keys = _running(stack, wanted.only, targets.KEYS, notes)
    if "pgb" in keys:
        _check_pool(stack, wanted)
    if "db" in keys or "pgb" in keys:
        targets.check_sql(stack, sql, write=wanted.write)
    asked = {*wanted.only, *(["api"] if wanted.path else [])}
    answering = []
    for target in targets.of(stack, keys, sql, path, write=wanted.write):
        try:
            _try(stack, target)
            answering.append(target)
        except StackError as error:
            if target.key in asked or len(keys) == 1:
                raise
            notes.append(f"left out: {error.what}{error.why and f' ({error.why})'}")
    outcomes: list[Outcome] = []
    for target in answering:
        outcome, interrupted = _run(stack, target, wanted)
        outcomes.append(outcome)
        if interrupted:
            notes.append(f"stopped during {target.title}")
            break
    files.write(stack, file, chart.draw(outcomes, *_titles(stack, wanted, sql, outcomes)))
    return Comparison(file, wanted.rps, wanted.seconds, wanted.connections, outcomes, notes)


def _check(wanted: Wanted) -> None:
    for flag, value, (least, most) in (
        ("--rps", wanted.rps, load.RPS),
        ("--seconds", wanted.seconds, load.SECONDS),
        ("--connections", wanted.connections, load.CONNECTIONS),
    ):
        if not least <= value <= most:
            raise UsageError(f"{flag} {value:g} is not possible", fix=f"from {least:g} to {most:g}")


def _check_pool(stack: Stack, wanted: Wanted) -> None:
    """In session mode a client keeps its server connection: what the pool has not, would wait for ever."""
    pgb = stack.settings.pgb
    if pgb.pool_mode == "session" and not wanted.reconnect and wanted.connections > pgb.default_pool_size:
        raise UsageError(
            f"--connections {wanted.connections} is more than PgBouncer's pool has",
            why=f"pgb.default_pool_size is {pgb.default_pool_size}, and in pool mode session each keeps one",
            fix=[f"--connections {pgb.default_pool_size // 2}, as the application needs some too", "or --reconnect"],
        )


def _running(stack: Stack, only: Sequence[str], keys: Sequence[str], notes: list[str]) -> list[str]:
    """The targets that run; those that are asked for must."""
    for key in only:
        if key not in keys:
            raise UsageError(f"--only {key} is no target", fix=f"one of {', '.join(keys)}")
    states = stack.context.states(stack.names)
    found = []
    for key in keys:
        service = stack.service(key)
        state = states[service.name]
        needed = [state, states[stack.db.name]] if key == "pgb" else [state]
        if only and key not in only:
            continue
        if all(one.running for one in needed):
            found.append(key)
        elif only:
            raise StackError(f"{service.name} is {state.status}", why=state.detail, fix="inv dev.up")
        else:
            notes.append(f"left out: {service.name} is {state.status}")
    if not found:
        raise StackError("nothing runs that could be put under load", fix="inv dev.up")
    return found


def _titles(stack: Stack, wanted: Wanted, sql: str, outcomes: Sequence[Outcome]) -> list[str]:
    """What was measured, as lines."""
    over = f"at most {wanted.connections} at a time, each over a new connection"
    kept = f"over {wanted.connections} connection{'s' if wanted.connections > 1 else ''}"
    how = f"{wanted.rps:g} requests a second for {wanted.seconds:g} s, {over if wanted.reconnect else kept}"
    tried = {outcome.target for outcome in outcomes} & {"db", "pgb"}
    what = [f"in a transaction that {'writes' if wanted.write else 'only reads'}: {console.shorten(sql, 80)}"]
    return [f"{stack.db.name if tried else stack.api.name}: latency under load", how, *(what if tried else [])]


def _try(stack: Stack, target: Target) -> None:
    """:raises StackError: it does not give a first answer."""
    with _explained(stack, target):
        channel = target.connect()
        try:
            channel.send()
        finally:
            channel.close()


def _run(stack: Stack, target: Target, wanted: Wanted) -> tuple[Outcome, bool]:
    """:raises StackError: it gives no answer any more."""
    one = Load(target, wanted.rps, wanted.seconds, wanted.connections, reconnect=wanted.reconnect)
    with _explained(stack, target), files.progress(target.title, wanted.seconds) as show:
        return one.run(show)


@contextlib.contextmanager
def _explained(stack: Stack, target: Target) -> Iterator[None]:
    try:
        yield
    except StackError as error:
        raise StackError(f"{target.title}: {error.what}", fix="name another path: --path /...") from None
    except Exception as error:
        raise StackError(
            f"{target.title}: there is no answer",
            why=stack.context.mask((str(error).strip() or type(error).__name__).splitlines()[0]),
            fix=[
                "inv health says what is wrong with it",
                *(["or PgBouncer's pool is in use: fewer --connections"] if target.key == "pgb" else []),
            ],
        ) from None
