"""How profiles and measurements under load look."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from devstack import console
from tasks.report import COLUMNS, NAME

if TYPE_CHECKING:
    from pathlib import Path

    from devstack.profiling.flamegraph import Function
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
                **dataclasses.asdict(one),
                "own_ratio": round(one.own / done.samples, 4),
                "total_ratio": round(one.total / done.samples, 4),
            }
            for one in done.functions
        ]
        console.data({**dataclasses.asdict(done), "path": str(done.path), "functions": functions})
        return
    lines = [("itself", "in all", "function", "where"), *(_function(done, one) for one in done.functions[:FUNCTIONS])]
    mine = sorted((one for one in done.functions if one.application), key=lambda one: -one.total)[:FUNCTIONS]
    if mine:
        lines += [("", "", "", ""), ("", "", "of your own source", ""), *(_function(done, one) for one in mine)]
    for line in console.table(lines[1:], lines[0], right=(0, 1), limit=COLUMNS):
        console.out(line)
    console.out(f"\n{done.samples} samples in {console.duration(done.seconds)} of pid {done.pid}")
    console.out(f"flame graph, for a browser: {done.path}")
    for note in done.notes:
        console.note(note)


def _function(done: Profile, one: Function) -> tuple[str, str, str, str]:
    ratios = (f"{one.own / done.samples:.1%}", f"{one.total / done.samples:.1%}")
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
        console.data({**dataclasses.asdict(done), "path": str(path) if path else None})
        return
    for line in _window(done, STATEMENTS, COLUMNS):
        console.out(line)
    if path:
        console.out(f"\nfull report: {path}")


def _window(done: Window, most: int, limit: int) -> list[str]:
    """The report as lines; ``limit`` is the width of the table, 0 for whole statements."""
    if not done.statements:
        text = f"no statement of the application's database in {console.duration(done.seconds)}"
        return [text, "give it work meanwhile, in another terminal: inv dev.load", *done.notes]
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
        lines += [
            "",
            "Plans may hold values of the data; the database's own log (inv db.logs) has those of logged calls.",
        ]
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
        " ".join(one.statement.split()),
    )


def _plan(number: int, one: Statement) -> list[str]:
    text = one.statement.strip()
    shown = text if len(text) <= TEXT else text[:TEXT] + " ..."
    lines = [console.paint(f"{number}.", "bold") + " " + shown.replace("\n", "\n   ")]
    if one.plan is None:
        return [*lines, f"   no plan: {one.no_plan}"]
    if one.plan.ms is None:
        lines.append(
            console.paint("   planned afterwards, without its values: no call was slow enough to be logged", "dim")
        )
    else:
        lines.append(console.paint(f"   its slowest call, {console.milliseconds(one.plan.ms)}:", "dim"))
    lines += [f"   {line}" for line in one.plan.text]
    return [*lines, *(console.paint(f"   hint: {hint}", "warn") for hint in one.plan.hints)]
