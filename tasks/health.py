"""Is everything well"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from invoke import Context, Exit, task

from devstack import console
from devstack.errors import FAILED
from tasks import report, session

if TYPE_CHECKING:
    from devstack.health import Health
    from devstack.stack import Stack


@task(
    optional=["watch"],
    help={
        "json": "the answer as JSON; docs/health.md explains it",
        "details": "also every single check",
        "watch": report.WATCH_HELP,
        "wait": "seconds to wait at most until everything is healthy",
        "strict": "exit 1 also when something is degraded",
        "plain": "ASCII, without emoji",
    },
    auto_shortflags=False,
)
def health(
    c: Context,
    json: bool = False,
    details: bool = False,
    watch: str | bool = False,
    wait: str = "",
    strict: bool = False,
    plain: bool = False,
) -> None:
    """Show a health summary: what is wrong, why, what mends it."""
    from devstack.health.summary import summary

    # who waits may have called another command to make it
    stack, again = session.stack(c, begins=bool(watch or wait)), report.watch_seconds(watch)
    found = _await(stack, report.seconds("--wait", wait), strict)
    with console.screen(again > 0) as show:
        while True:
            if json:
                import msgspec

                show(console.json_of(msgspec.to_builtins(found)).split("\n"))
            else:
                show(summary(found, plain=plain or not console.readable(), details=details))
            if not again:
                break
            time.sleep(again)
            found = _examine(stack)
    if found.verdict == "degraded" and not strict and not json:
        console.note()
        console.note("Something is degraded and works all the same: exit code 0 (1 with --strict).")
    if not _passes(found, strict):
        raise Exit(code=FAILED)


def _examine(stack: Stack) -> Health:
    from devstack.health import examine

    return examine(stack)


def _passes(found: Health, strict: bool) -> bool:
    return found.verdict == "healthy" or (found.verdict == "degraded" and not strict)


def _await(stack: Stack, seconds: float, strict: bool) -> Health:
    """The first examination that passes, or the last one that fits into the time."""
    deadline = time.monotonic() + seconds
    interval = 0.1
    while True:
        found = _examine(stack)
        if _passes(found, strict) or time.monotonic() + interval > deadline:
            return found
        time.sleep(interval)
        interval = min(interval * 1.5, 1.0)
