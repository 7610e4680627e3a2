"""The database's statements in a window of time: what they took, and how the slowest were carried out."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field
from msgspec.structs import replace

from devstack import console
from devstack.errors import StackError, UsageError
from devstack.profiling import explain, files, plans, serverlog
from devstack.profiling.serverlog import Logged
from devstack.providers import PLANS
from devstack.services.postgres import MAINTENANCE
from devstack.services.statistics import read_statements, why_no_statements
from devstack.threads import run_at_once

if TYPE_CHECKING:
    from devstack.stack import Stack

LONGEST = 3600
"""Seconds."""
LOG_ROOM = 8_000_000
"""Bytes that plans may take in the server's log, which is rotated at ten megabytes; then fewer are logged."""
PLANNABLE = ("select", "insert", "update", "delete", "merge", "with", "values", "table")
PLANNING_SECONDS = 5.0
"""For planning a statement: longer than its statement_timeout, for when the statement does not heed that."""
GENERIC = 16
"""The first PostgreSQL that plans a statement without its values: EXPLAIN (GENERIC_PLAN)."""


class Plan(Struct, frozen=True):
    """How a statement is carried out."""

    source: str
    """``auto_explain``: of its slowest call that was logged; ``generic``: planned afterwards, without its values."""
    ms: float | None
    """What that call took."""
    text: list[str]
    hints: list[str]
    json: Any


class Statement(Struct, frozen=True):
    """What a statement took in the window. ``max_ms`` is None where no call in it was the slowest one ever, or slow
    enough to be logged."""

    id: str
    user: str
    calls: int
    total_ms: float
    mean_ms: float
    max_ms: float | None
    rows: int
    share_ratio: float
    statement: str
    plan: Plan | None = None
    no_plan: str = ""


class Window(Struct, frozen=True):
    """All statements, by the time that they took altogether; plans for the first of them."""

    seconds: float
    threshold_ms: float
    calls: int
    total_ms: float
    statements: list[Statement]
    notes: list[str] = field(default_factory=list)
    path: Path | None = None


Rows = dict[tuple[str, str], dict[str, Any]]


def profile(stack: Stack, *, seconds: float, top: int, threshold_ms: float, timing: bool) -> Window | None:
    """Watch the database for some seconds, fewer on Ctrl-C; None in a dry run. The server's settings are afterwards as
    they were.

    :raises UsageError: a flag's value is wrong.
    :raises StackError: the database does not run, or does not count statements.
    """
    if not 1 <= seconds <= LONGEST:
        raise UsageError(f"--seconds {seconds:g} is not possible", fix=f"from 1 to {LONGEST}")
    if not 0 <= top <= 100:
        raise UsageError(f"--top {top} is not possible", fix="from 0 to 100 statements with their plans")
    if not 0 <= threshold_ms <= 60_000:
        raise UsageError(f"--slower-than {threshold_ms:g} is not possible", fix="from 0 to 60000 milliseconds")
    if stack.context.dry:
        for name, value in explain.settings(threshold_ms, timing=timing).items():
            console.out(f"# ALTER SYSTEM SET {PLANS}.{name} = {value}, for {seconds:g} s")
        return None
    state = stack.context.states(stack.names)[stack.db.name]
    if not state.running:
        raise StackError(f"{stack.db.name} is {state.status}", why=state.detail, fix="inv dev.up")
    held = explain.lock(stack)
    held.acquire()
    try:
        return _watch(stack, seconds, top, threshold_ms, timing=timing)
    finally:
        held.release()


def _watch(stack: Stack, seconds: float, top: int, threshold_ms: float, *, timing: bool) -> Window:
    mark = f"db.profile {secrets.token_hex(4)}"
    offset = stack.context.log_size(stack.db.name)
    notes: list[str] = []
    with explain.switched_on(stack, threshold_ms, timing=timing) as problem:
        before = _statements(stack)
        serverlog.mark(stack, f"{mark} begins")
        began = time.monotonic()
        last = _wait(stack, seconds, threshold_ms, offset, notes, logging=not problem)
        took = time.monotonic() - began
        after = _statements(stack)
    serverlog.mark(stack, f"{mark} ends")
    logged: list[Logged] = []
    if problem:
        notes.append(f"no plan was logged: {problem}")
    elif lost := serverlog.read(stack, f"{mark} begins", f"{mark} ends", offset, logged):
        notes.append(lost)
    calls: dict[str, list[Logged]] = defaultdict(list)
    for one in logged:
        calls[one.id].append(one)
        calls[serverlog.shape(one.statement)].append(one)
    found = list(_differences(before, after, notes))
    total = sum(one.total_ms for one in found)
    found = [
        replace(one, share_ratio=round(one.total_ms / total, 4) if total else 0.0, max_ms=_max(one, _calls(one, calls)))
        for one in sorted(found, key=lambda one: (-one.total_ms, one.statement))
    ]
    with _planner(stack) as generic:
        planned = [_planned(stack, one, _calls(one, calls), last, generic) for one in found[:top]]
    return Window(
        seconds=round(took, 2),
        threshold_ms=last,
        calls=sum(one.calls for one in found),
        total_ms=round(total, 3),
        statements=[*planned, *found[top:]],
        notes=notes,
    )


def _wait(stack: Stack, seconds: float, threshold_ms: float, offset: int, notes: list[str], *, logging: bool) -> float:
    """Let the time pass; the threshold in the end, which goes up where plans would fill the log."""
    began = time.monotonic()
    room = LOG_ROOM
    try:
        with files.progress(f"watching {stack.db.name}", seconds) as show:
            while (passed := time.monotonic() - began) < seconds:
                show(passed)
                time.sleep(min(0.25, seconds - passed))
                if logging and stack.context.log_size(stack.db.name) - offset > room:
                    threshold_ms, room = max(1.0, threshold_ms) * 10, room + LOG_ROOM // 4
                    explain.raise_threshold(stack, threshold_ms)
                    notes.append(
                        f"plans took {LOG_ROOM // 1_000_000} MB of the log after {passed:.0f} s:"
                        f" from then on only those of calls from {threshold_ms:g} ms on"
                    )
    except KeyboardInterrupt:
        notes.append("stopped before the time was over")
    return threshold_ms


def _statements(stack: Stack) -> Rows:
    """All statements of the application's database, since they are counted."""
    import psycopg2

    found: Rows = {}
    try:
        connection = stack.db.connect(database=MAINTENANCE)
        try:
            for row in read_statements(stack.db, connection, None):
                # one and the same is there twice where functions' own statements are counted apart
                key = (row["id"], row["user"] or "")
                known = found.setdefault(key, {**row, "calls": 0, "total_ms": 0.0, "rows": 0})
                for figure in ("calls", "total_ms", "rows"):
                    known[figure] += row[figure]
                known["max_ms"] = max(known["max_ms"], row["max_ms"])
        finally:
            connection.close()
    except psycopg2.OperationalError as error:
        raise StackError(f"{stack.db.name} does not answer", why=str(error).strip(), fix="inv db.start") from None
    except psycopg2.Error as error:
        raise StackError(
            "statements are not counted",
            why=why_no_statements(stack.db, error),
            fix="db.track_statements: true in invoke.yaml, then inv db.start",
        ) from None
    return found


def _differences(before: Rows, after: Rows, notes: list[str]) -> Iterator[Statement]:
    """What was added in the window."""
    reset = False
    for (id_, user), now in after.items():
        was = before.get((id_, user), {"calls": 0, "total_ms": 0.0, "rows": 0, "max_ms": -1.0})
        if now["calls"] < was["calls"]:
            reset, was = True, {"calls": 0, "total_ms": 0.0, "rows": 0, "max_ms": -1.0}
        if not (calls := now["calls"] - was["calls"]):
            continue
        total = now["total_ms"] - was["total_ms"]
        slowest = now["max_ms"] if now["max_ms"] > was["max_ms"] else None
        yield Statement(
            id=id_,
            user=user,
            calls=calls,
            total_ms=round(total, 3),
            mean_ms=round(total / calls, 3),
            max_ms=slowest,
            rows=now["rows"] - was["rows"],
            share_ratio=0.0,
            statement=now["statement"],
        )
    if reset:
        notes.append("the counters were reset in the window: what came before is missing")


# plans


def _calls(one: Statement, calls: dict[str, list[Logged]]) -> list[Logged]:
    return calls.get(one.id) or calls.get(serverlog.shape(one.statement), [])


def _max(one: Statement, calls: list[Logged]) -> float | None:
    return max([*(call.ms for call in calls), *([one.max_ms] if one.max_ms is not None else [])], default=None)


def _planned(
    stack: Stack, one: Statement, calls: list[Logged], threshold_ms: float, generic: Callable[[str], Any]
) -> Statement:
    """The statement with its plan: that of its slowest call, or else what the server plans for it without values."""
    if calls:
        slowest = max(calls, key=lambda call: call.ms)
        return replace(one, plan=_plan("auto_explain", slowest.ms, slowest.plan))
    quick = f"no call took {threshold_ms:g} ms"
    try:
        return replace(one, plan=_plan("generic", None, generic(one.statement)))
    except StackError as error:
        return replace(one, no_plan=f"{quick}, and {stack.context.mask(error.what)}")


def _plan(source: str, ms: float | None, node: Any) -> Plan:
    return Plan(source, ms, list(plans.lines(node)), plans.hints(node), node)


@contextlib.contextmanager
def _planner(stack: Stack) -> Iterator[Callable[[str], Any]]:
    """Asks the server for the plan of a statement without its values, as the application's role; nothing is run.

    It raises StackError where there is none.
    """
    import psycopg2

    connection = stack.db.connect()

    def plan(statement: str) -> Any:
        with_values = "$1" in statement
        first = statement.lstrip(" \n\t(").lower()
        if not first.startswith(PLANNABLE):
            raise StackError("it is nothing that is planned")
        if with_values and connection.server_version < GENERIC * 10_000:
            raise StackError(f"only PostgreSQL {GENERIC} and later plans it without its values")
        options = "GENERIC_PLAN, FORMAT JSON" if with_values else "FORMAT JSON"
        found: list[Any] = []

        def ask() -> None:
            try:
                with connection.cursor() as cursor:
                    cursor.execute("BEGIN READ ONLY; SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '3s'")
                    cursor.execute(f"EXPLAIN ({options}) {statement}")
                    ((answer,),) = cursor.fetchall()
                    found.append(plans.checked(answer[0]["Plan"]))
            except (psycopg2.Error, ValueError, KeyError, TypeError, RecursionError) as error:
                found.append(StackError(f"it can't be planned afterwards ({str(error).partition(chr(10))[0]})"))
            finally:
                with contextlib.suppress(psycopg2.Error), connection.cursor() as cursor:
                    cursor.execute("ROLLBACK")

        # planning calls functions of the application, which can catch what statement_timeout raises
        run_at_once([ask], PLANNING_SECONDS)
        if not found:
            sql = f"SELECT pg_terminate_backend({connection.info.backend_pid})"
            stack.context.read(stack.db.ask(MAINTENANCE, sql))
            raise StackError(f"its planning took more than {PLANNING_SECONDS:g} s")
        if isinstance(found[0], StackError):
            raise found[0]
        return found[0]

    try:
        yield plan
    finally:
        connection.close()
