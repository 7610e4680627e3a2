"""How the tasks' answers look."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from invoke import Exit

from devstack import console
from devstack.errors import FAILED, StackError, UsageError, addressed
from tasks.inventory import shown

if TYPE_CHECKING:
    from devstack.reset import Doomed
    from devstack.services.pgbouncer import PgBouncer
    from devstack.services.postgres import Postgres
    from devstack.services.statistics import Table
    from devstack.stack import ServiceStatus, Stack, Started

COLOUR = {"running": "good", "starting": "warn", "stopping": "warn", "stopped": "dim"}


WATCH_HELP = "show it again every so many seconds (2 if not given) until Ctrl-C"


def watch_seconds(watch: str | bool, *, default: float = 2.0) -> float:
    """The seconds between two displays that ``--watch [SECONDS]`` asks for; 0 without it.

    :raises UsageError: not a number of seconds from 0.2 to a day.
    """
    if isinstance(watch, bool):
        return default if watch else 0.0
    return seconds("--watch", watch, least=0.2)


def seconds(flag: str, text: str, *, least: float = 0.0) -> float:
    """The seconds that a flag has; 0 where it is not given.

    :raises UsageError: not a number from ``least`` to a day.
    """
    try:
        value = float(text or 0)
    except ValueError:
        value = -1.0
    if text and not least <= value <= 86_400:
        raise UsageError(f"{flag} {text} is not a number of seconds", fix=f"from {least:g} on, as in {flag} 5")
    return value


def only(flag: str, others: Mapping[str, bool]) -> None:
    """Refuse flags that another one leaves no room for.

    :raises UsageError: one of them is given.
    """
    for other, given in others.items():
        if given:
            raise UsageError(f"{flag} and {other} exclude each other", fix=f"leave out {other}")


def started(stack: Stack, done: Started) -> None:
    """One line: what happened to a service."""
    if stack.context.dry or (stack.quiet and done.did == "running"):
        return
    width = max(map(len, stack.names))
    if done.did == "running" and done.state:
        text = f"already running  (pid {done.state.pid}, up {_age(done.state.started)})"
    else:
        verb = "ready" if done.did == "started" else "restarted, ready"
        because = f"  ({done.why})" if done.why else ""
        text = f"{verb} in {console.duration(done.seconds)}{because}"
    mark = console.paint("✓", "good") if console.colourful(sys.stdout) else ""
    say = console.note if stack.quiet else console.out
    say(f"{mark + ' ' if mark else ''}{done.name:<{width}}  {text}")


def stopped(stack: Stack, label: str, was: str, seconds: float) -> None:
    if stack.context.dry:
        return
    width = max(map(len, stack.names))
    text = "was not running" if was == "stopped" else f"stopped in {console.duration(seconds)}"
    console.out(f"{stack.service(label).name:<{width}}  {text}")


def doomed(stack: Stack, going: list[Doomed], *, backup: bool, logs: bool) -> list[str]:
    """What a reset will remove, and what it leaves."""
    from devstack.data.catalogue import folder_of

    if not going:
        return ["there is nothing to remove"]
    rows = [(item.what, _size(item), item.place) for item in going]
    where = f"{shown(stack, folder_of(stack.settings))}/"
    first = f"first, a verified backup is made in {where}" if backup else "no backup is made: the data are lost"
    stays = where if logs else f"{where} and {shown(stack, stack.paths.log)}/"
    return [
        "this will be removed:",
        *(f"  {line}" for line in console.table(rows, right=(1,))),
        first,
        f"kept: {stays}",
    ]


def ask_first(stack: Stack, lines: list[str], *, task: str, yes: bool) -> None:
    """Go on only if a person on the terminal says yes to what is about to happen, or ``--yes`` has.

    :raises UsageError: there is nobody to ask.
    """
    if yes or stack.context.dry:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{task} asks, and there is no terminal", evidence=lines, fix="add --yes")
    for line in lines:
        console.out(line)
    if not _confirmed():
        raise Exit(message="nothing was changed", code=FAILED)


def _confirmed() -> bool:
    try:
        return input("go on? (yes or no) ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def removed(stack: Stack, item: Doomed) -> None:
    if not stack.context.dry:
        size = _size(item)
        console.out(f"removed {item.what}{size and f', {size}'}: {item.place}")


def _size(item: Doomed) -> str:
    return "" if item.bytes is None else console.size(item.bytes)


def endpoints(stack: Stack) -> None:
    """Where to go once everything is up."""
    if stack.context.dry:
        return
    from devstack.settings import database_url, reachable_address
    from devstack.system.machine import own_account

    db, api = stack.settings.db, stack.api.address

    def url(service: Postgres | PgBouncer) -> str:
        return database_url("postgresql", db.user, "***", reachable_address(service.bind), service.port, db.name)

    rows = [
        ("API", api),
        ("Health", api + stack.settings.api.health_path),
        ("PgBouncer", url(stack.pgb)),
        ("Database", url(stack.db)),
    ]
    console.out()
    for line in console.table(rows):
        console.out(line)
    if stack.context.runtime.name == "native" and (advice := own_account(stack)):
        account = stack.context.host.account
        console.note(f"PostgreSQL and PgBouncer run as {account}, as other servers of this machine may; {advice}")
    for service in stack.services:
        if exposure := stack.settings.exposure(service.label):
            console.out(console.paint(f"{service.name} is {exposure}", "warn"))


def timing(stack: Stack) -> None:
    """Each service's offset from the command's start and its time to ready, as process-compose shows them."""
    rows = [(d.name, f"@{d.offset:.3f} s", f"+{d.seconds:.3f} s", d.did) for d in stack.started]
    console.out()
    for line in console.table(rows, ("service", "offset", "to ready", ""), right=(1, 2)):
        console.out(line)


def status_rows(statuses: list[ServiceStatus]) -> list[str]:
    rows = []
    for s in statuses:
        word = console.paint(s.word, COLOUR.get(s.word, "bad"))
        pid = str(s.state.pid) if s.state.running else "-"
        up = _age(s.state.started) if s.state.running else "-"
        rows.append((s.state.name, s.word, word, pid, up, s.address))
    widths = [max(len(row[i]) for row in [*rows, ("service", "state", "", "pid", "up", "address")]) for i in range(6)]
    lines = [
        f"{name:<{widths[0]}}  {word}{' ' * (widths[1] - len(plain))}  {pid:>{widths[3]}}  {up:>{widths[4]}}  {address}"
        for name, plain, word, pid, up, address in rows
    ]
    header = f"{'service':<{widths[0]}}  {'state':<{widths[1]}}  {'pid':>{widths[3]}}  {'up':>{widths[4]}}  address"
    return [console.paint(header, "dim"), *lines]


def status_data(s: ServiceStatus) -> dict[str, Any]:
    """A service's status as JSON. ``started`` is in seconds since the epoch."""
    return {
        "service": s.state.name,
        "state": s.word,
        "answers": s.answers,
        "pid": s.state.pid or None,
        "started": s.state.started or None,
        "uptime_s": round(time.time() - s.state.started) if s.state.started else None,
        "address": s.address,
        "reason": s.reason or None,
    }


def show_status(statuses: list[ServiceStatus], *, as_json: bool) -> int:
    """Print the statuses; the exit code: 0 only if all of them run and answer."""
    if as_json:
        console.data({"services": [status_data(s) for s in statuses]})
    else:
        for line in status_rows(statuses):
            console.out(line)
        for s in statuses:
            if s.reason and not s.answers and s.state.status != "stopped":
                console.out()
                console.out(f"{s.state.name}: {s.reason}")
    return 0 if all(s.answers for s in statuses) else FAILED


def _age(started: float) -> str:
    return console.duration(max(0, int(time.time() - started))).replace(".00", "") if started else "-"


LOGS_HELP = {
    "tail": "lines of each service to begin with",
    "since": "only what is newer: 30s, 10m, 2h, 1d, 14:30 or '2026-11-23 14:30'",
    "follow": "go on with what comes, also in a pipe",
    "no_follow": "end after what is there, also on a terminal",
}


def following(follow: bool, no_follow: bool) -> bool:
    """Whether to go on with what comes: on a terminal, unless a flag says otherwise."""
    return follow or (sys.stdout.isatty() and not no_follow)


def logs(stack: Stack, labels: list[str], *, tail: int, since: str, follow: bool) -> None:
    """Print logs, each line with its service's name where there are several."""
    import contextlib
    from datetime import datetime, timezone

    from devstack import logs as log

    stack.lock.release()
    if tail < 0:
        raise UsageError(f"--tail {tail} is not a number of lines", fix="0 or more")
    begin = log.parse_since(since, datetime.now(timezone.utc)) if since else None
    services = [stack.service(label) for label in labels]
    states = stack.context.states(stack.names) if stack.context.runtime.contained else {}
    running = {name for name, state in states.items() if state.defined and not state.foreign}
    names = [s.name for s in services if s.name in running or (stack.paths.log / f"{s.name}.log").exists()]
    colours = {s.name: s.label for s in services}
    width = max(len(s.name) for s in services)
    if not names:
        raise StackError("there is no log yet", fix="inv dev.up" if len(labels) > 1 else f"inv {labels[0]}.start")

    def show(line: log.Line) -> None:
        prefix = console.paint(f"{line.service:<{width}} │ ", colours[line.service]) if len(labels) > 1 else ""
        console.out(prefix + line.text)

    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        for line in log.recent(stack.context, names, tail=10**9 if begin and tail == 0 else tail, since=begin):
            show(line)
        if follow:
            for line in log.follow(stack.context, names, tail=0):
                show(line)


def require(stack: Stack, label: str) -> None:
    """Refuse what needs a running service.

    :raises StackError: it does not run.
    """
    service = stack.service(label)
    state = stack.context.states(stack.names)[service.name]
    if not state.running and not stack.context.dry:
        raise StackError(f"{service.name} is {state.status}", why=state.detail, fix=f"inv {label}.start")
    stack.check_goes_on(service, state)


def require_not_frozen(stack: Stack, label: str) -> None:
    """Refuse to wait for a service that does nothing.

    :raises StackError: some of its processes are frozen.
    """
    service = stack.service(label)
    stack.check_goes_on(service, stack.context.states(stack.names)[service.name])


def service_status(stack: Stack, label: str, *, as_json: bool, tail: int) -> None:
    """A service's status, and the end of its log."""
    statuses = [s for s in stack.status() if s.label == label]
    code = show_status(statuses, as_json=as_json)
    name = statuses[0].state.name
    if tail > 0 and not as_json and (stack.paths.log / f"{name}.log").exists():
        console.out()
        for line in stack.context.log_tail(name, tail):
            console.out(line)
    if code:
        raise Exit(code=code)


COLUMNS = 120
"""The width that tables of figures keep to."""
ROWS = 10
"""How many rows of a table are shown; JSON has all."""
NAME = 40
"""Columns of a name or another text inside a table."""


def statistics(tables: list[Table], *, as_json: bool) -> None:
    """Tables of figures."""
    if as_json:
        missing = {table.key: table.missing for table in tables if table.missing}
        console.data({**{table.key: table.rows for table in tables}, "missing": missing})
        return
    for i, table in enumerate(tables):
        if i:
            console.out()
        console.out(console.paint(table.title, "bold"))
        for line in table_lines(table):
            console.out(line)


def table_lines(table: Table) -> list[str]:
    """A table for people."""
    if not table.rows:
        return [table.missing or "none"]
    keys = table.shown or list(table.rows[0])
    if table.upright:
        return console.table([(_title(k), console.figure(k, table.rows[0][k])) for k in keys])
    body = [[console.shorten(_cell(k, row[k]), COLUMNS if k == keys[-1] else NAME) for k in keys] for row in table.rows]
    right = [i for i, key in enumerate(keys) if all(isinstance(row[key], int | float | None) for row in table.rows)]
    lines = console.table(body[:ROWS], [_title(key) for key in keys], right=right, limit=COLUMNS)
    lines = [console.crop(line, COLUMNS) for line in lines]
    return [*lines, f"and {len(body) - ROWS} more, see --json"] if len(body) > ROWS else lines


AGES = {
    "vacuum_age_s": "vacuumed",
    "analyze_age_s": "analyzed",
    "connect_age_s": "connected",
    "request_age_s": "last request",
}


def _title(key: str) -> str:
    if key in AGES:
        return AGES[key]
    for unit in ("_bytes", "_ratio", "_ms", "_s"):
        key = key.removesuffix(unit)
    return key.replace("_", " ")


def _cell(key: str, value: Any) -> str:
    if key in AGES:
        return "never" if value is None else f"{console.figure(key, value)} ago"
    # a process id has no thousands
    return str(value) if key in ("pid", "blocked_by", "server_pid") else console.figure(key, value)


def show_metrics(stack: Stack, *, span: float, watch: float, as_json: bool, plain: bool) -> int:
    """Readings of all services, once or again and again; exit code 1 when nothing can be read."""
    import json

    from devstack.metrics import display
    from devstack.metrics.figures import Reading
    from devstack.metrics.reading import readings

    history: list[Reading] = []
    with console.screen(bool(watch) and not as_json) as show:
        for reading in readings(stack, span=min(span, watch or span), every=watch):
            history = [*history, reading][-display.HISTORY :]
            if not as_json:
                show(display.screen(history, plain=plain, watch=bool(watch)))
            elif watch:
                console.out(json.dumps(msgspec.to_builtins(reading), ensure_ascii=False))
            else:
                console.data(msgspec.to_builtins(reading))
    if watch or not history[-1].empty:
        return 0
    console.note(addressed("there is nothing to read; inv dev.up starts the stack"))
    return FAILED


def show_exposition(stack: Stack) -> int:
    """All services' metrics in Prometheus' text format; exit code 1 when nothing can be read."""
    from devstack.metrics import exposition, sampling

    sample = sampling.take(stack)
    console.lines(exposition.render(sample).rstrip("\n"))
    return FAILED if sample.empty else 0
