"""How profiles and measurements under load look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from devstack import console
from devstack.errors import addressed
from devstack.escapes import one_line
from tasks.report import COLUMNS, NAME

if TYPE_CHECKING:
    from pathlib import Path

    from devstack.profiling.comparison import Comparison
    from devstack.profiling.flamegraph import Function
    from devstack.profiling.load import Outcome
    from devstack.profiling.sampler import Profile
    from devstack.profiling.window import Statement, Window
    from devstack.stack import Stack

FUNCTIONS = 12
"""How many are shown; the graph has all."""


def show_profile(done: Profile | None, *, as_json: bool) -> None:
    """The functions that took most, and where the flame graph is."""
    if done is None:
        return
    if as_json:
        functions = [
            {
                **msgspec.to_builtins(one),
                "own_ratio": round(one.own / (done.samples - done.waiting), 4),
                "total_ratio": round(one.total / (done.samples - done.waiting), 4),
            }
            for one in done.functions
        ]
        console.data({**msgspec.to_builtins(done, enc_hook=str), "path": str(done.path), "functions": functions})
        return
    lines = [("itself", "in all", "function", "where"), *(_function(done, one) for one in done.functions[:FUNCTIONS])]
    mine = sorted((one for one in done.functions if one.application), key=lambda one: -one.total)[:FUNCTIONS]
    if mine:
        lines += [("", "", "", ""), ("", "", "of your own source", ""), *(_function(done, one) for one in mine)]
    for line in console.table(lines[1:], lines[0], right=(0, 1), limit=COLUMNS):
        console.out(line)
    working = done.samples - done.waiting
    rest = f"; {done.waiting:,} more of threads that wait" if done.waiting else ""
    console.out()
    console.out(f"{working:,} samples of work in {console.duration(done.seconds)}, of pid {done.pid}{rest}")
    console.out(f"flame graph, for a browser: {done.path}")
    for note in done.notes:
        console.note(note)


def _function(done: Profile, one: Function) -> tuple[str, str, str, str]:
    working = done.samples - done.waiting
    ratios = (f"{one.own / working:.1%}", f"{one.total / working:.1%}")
    return (*ratios, console.shorten(one.name, NAME), f"{one.file}:{one.line}")


STATEMENTS = 10
"""How many are in the table; a report has all."""
TEXT = 2000
"""Characters of a statement that are shown above its plan."""


def report_path(stack: Stack, output: str, kind: str) -> Path | None:
    """Where a report goes, if one is asked for."""
    from datetime import datetime, timezone

    from devstack.profiling import files

    return files.destination(stack, output, kind, ".txt", datetime.now(timezone.utc)) if output else None


def show_window(stack: Stack, done: Window | None, path: Path | None, *, top: int, as_json: bool) -> None:
    """What statements took, the plans of the slowest, and a full report where one is asked for."""
    if done is None:
        return
    if path:
        from devstack.profiling import files

        files.write(stack, path, "\n".join(_window(done, len(done.statements), 0)) + "\n")
    if as_json:
        console.data({**msgspec.to_builtins(done, enc_hook=str), "path": str(path) if path else None})
        return
    for line in _window(done, STATEMENTS, COLUMNS):
        console.out(line)
    if path:
        console.out()
        console.out(f"full report: {path}")


def _window(done: Window, most: int, limit: int) -> list[str]:
    """The report as lines; ``limit`` is the width of the table, 0 for whole statements."""
    if not done.statements:
        text = f"no statement of the application's database in {console.duration(done.seconds)}"
        return [text, addressed("give it work meanwhile, in another terminal: inv dev.load"), *done.notes]
    head = (
        f"{console.duration(done.seconds)}: {done.calls:,} calls of {len(done.statements):,} statements took"
        f" {console.milliseconds(done.total_ms)}"
    )
    rows = [_statement_row(number, one, done) for number, one in enumerate(done.statements[:most], 1)]
    header = ("", "calls", "total", "mean", "max", "rows", "share", "statement")
    lines = [head, "", *console.table(rows, header, right=range(7), limit=limit)]
    if len(done.statements) > most:
        lines.append(f"and {len(done.statements) - most} more, see --output and --json")
    for number, one in enumerate(done.statements, 1):
        if one.plan or one.no_plan:
            lines += ["", *_plan(number, one)]
    if any(one.plan for one in done.statements):
        own = addressed("the database's own log (inv db.logs)")
        lines += ["", f"Plans may hold values of the data; {own} has those of logged calls."]
    return [*lines, *(f"note: {note}" for note in done.notes)]


def _statement_row(number: int, one: Statement, done: Window) -> tuple[str, ...]:
    slowest = f"< {done.threshold_ms:g} ms" if one.max_ms is None else console.milliseconds(one.max_ms)
    return (
        str(number),
        f"{one.calls:,}",
        console.milliseconds(one.total_ms),
        console.milliseconds(one.mean_ms),
        slowest,
        f"{one.rows:,}",
        f"{one.share_ratio:.1%}",
        one_line(" ".join(one.statement.split())),
    )


def _plan(number: int, one: Statement) -> list[str]:
    text = one.statement.strip()
    first, *rest = (text if len(text) <= TEXT else text[:TEXT] + " ...").splitlines() or [""]
    lines = [f"{console.paint(f'{number}.', 'bold')} {one_line(first)}", *(f"   {one_line(part)}" for part in rest)]
    if one.plan is None:
        return [*lines, f"   no plan: {one.no_plan}"]
    if one.plan.ms is None:
        lines.append(
            console.paint("   planned afterwards, without its values: no call was slow enough to be logged", "dim")
        )
    else:
        lines.append(console.paint(f"   its slowest call, {console.milliseconds(one.plan.ms)}:", "dim"))
    lines += [f"   {one_line(part)}" for part in one.plan.text]
    return [*lines, *(console.paint(f"   hint: {one_line(hint)}", "warn") for hint in one.plan.hints)]


PERCENTILES = (50, 90, 99)
BAR = 20
"""Columns of the longest bar."""


def show_load(done: Comparison | None, *, as_json: bool) -> None:
    """Latencies under load: a table, a histogram, and where they are drawn."""
    if done is None:
        return
    if as_json:
        plain = {"rps": done.rps, "seconds": done.seconds, "connections": done.connections, "notes": done.notes}
        console.data({**plain, "path": str(done.path), "targets": [_outcome(one) for one in done.outcomes]})
        return
    rows = [
        (
            one.title,
            f"{one.sent:,}",
            f"{one.done:,}",
            f"{one.errors:,}",
            f"{one.unsent:,}",
            f"{one.rps:.1f}",
            *(_latency(one.percentile(percent)) for percent in (*PERCENTILES, 100)),
        )
        for one in done.outcomes
    ]
    header = ("", "sent", "done", "errors", "unsent", "rps", *(f"p{percent}" for percent in PERCENTILES), "max")
    for line in [*console.table(rows, header, right=range(1, len(header))), "", *_histogram(done.outcomes)]:
        console.out(line)
    for line in _compared(done.outcomes):
        console.out(line)
    console.out()
    console.out(f"drawn, for a browser: {done.path}")
    for one in done.outcomes:
        for message, count in one.messages.items():
            console.note(f"{one.title}: {count} times {message}")
        if one.unsent:
            console.note(
                f"{one.title}: {one.unsent} requests were due and not sent, every connection was busy: it does not keep"
                " up with this rate, and what is above leaves them out"
            )
    for note in done.notes:
        console.note(note)


def _outcome(one: Outcome) -> dict[str, object]:
    percentiles = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
    found = {f"{key}_ms": one.percentile(percent) for key, percent in percentiles.items()}
    return {
        "target": one.target,
        "title": one.title,
        "planned": one.planned,
        "sent": one.sent,
        "done": one.done,
        "errors": one.errors,
        "unsent": one.unsent,
        "rps": round(one.rps, 2),
        "seconds": round(one.seconds, 3),
        "mean_ms": round(sum(one.latencies) / one.done, 3) if one.done else None,
        **{key: None if value is None else round(value, 3) for key, value in found.items()},
        "messages": one.messages,
    }


def _latency(value: float | None) -> str:
    return "-" if value is None else console.milliseconds(value)


def _compared(outcomes: list[Outcome]) -> list[str]:
    """What PgBouncer adds, or saves."""
    medians = {one.target: median for one in outcomes if (median := one.percentile(50)) is not None}
    if not {"db", "pgb"} <= medians.keys():
        return []
    direct, pooled = medians["db"], medians["pgb"]
    word = "adds" if pooled >= direct else "saves"
    more = f"{console.milliseconds(abs(pooled - direct))} in the median ({pooled / direct:.2f} times)"
    return ["", f"PgBouncer {word} {more}"]


def _histogram(outcomes: list[Outcome]) -> list[str]:
    """How many answers took how long, a column of bars for each target."""
    steps = [step * 10.0**power for power in range(-3, 6) for step in (1, 2, 5)]
    values = [value for one in outcomes for value in one.latencies]
    if not values:
        return []
    first = max(i for i, step in enumerate(steps) if step <= max(min(values), steps[0]))
    last = next((i for i, step in enumerate(steps) if step > max(values)), len(steps) - 1)
    counts = [
        [sum(1 for value in one.latencies if low <= value < high) for one in outcomes]
        for low, high in zip(steps[first:last], steps[first + 1 : last + 1], strict=True)
    ]
    most = max(max(row) for row in counts)
    block = "█" if console.readable() else "#"
    rows = [
        (f"{steps[first + i]:g} to {steps[first + i + 1]:g} ms", *(_bar(count, most, block) for count in row))
        for i, row in enumerate(counts)
    ]
    return console.table(rows, ("latency", *(one.title for one in outcomes)), right=(0,))


def _bar(count: int, most: int, block: str) -> str:
    return f"{block * max(1, round(count / most * BAR))} {count:,}" if count else ""
