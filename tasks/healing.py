"""What ``inv dev.heal`` does and says."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from devstack import console
from devstack.errors import FAILED, addressed
from devstack.escapes import one_line

if TYPE_CHECKING:
    from devstack.health import Health
    from devstack.health.heal import Repair
    from devstack.stack import Stack

LONGEST_PAUSE = 300.0
"""Seconds between two tries at what did not get better."""


def heal(stack: Stack, *, every: float) -> int:
    """Repair once, or with ``every`` again and again until Ctrl-C, with longer pauses as long as it does not help."""
    from devstack.health import examine
    from devstack.health.heal import examine_again
    from devstack.health.heal import heal as repairs

    pause = every
    shown = ""
    if every:
        console.note(f"looking every {every:g} s until Ctrl-C; what a command stops meanwhile stays stopped")
    with contextlib.suppress(KeyboardInterrupt):
        found = examine(stack)

        def repaired() -> Iterator[Repair]:
            nonlocal found
            found = yield from repairs(stack, found, asked=not every)

        while True:
            done = []
            for repair in repaired():
                done.append(repair)
                _say(stack, repair)
            if stack.context.dry:
                return 0
            if done:
                found = examine_again(stack)
            verdict = _verdict(found)
            if done or verdict != shown:
                console.lines(verdict)
                shown = verdict
            if not every:
                return 0 if found.verdict in ("healthy", "degraded") else FAILED
            pause = every if found.verdict in ("healthy", "degraded") else min(pause * 2, LONGEST_PAUSE)
            time.sleep(pause)
            found = examine(stack)
    return 0


def _say(stack: Stack, repair: Repair) -> None:
    if stack.context.dry:
        return
    width = max(map(len, stack.names))
    console.out(f"{repair.name:<{width}}  {one_line(repair.cause)}")
    failure = one_line(f"not repaired: {repair.failure}")
    done = console.paint(repair.did, "good") if repair.did else console.paint(failure, "bad")
    console.out(f"{'':<{width}}  {done}")


def _verdict(found: Health) -> str:
    """What is left for a person."""
    if found.verdict == "healthy":
        return "everything is healthy"
    lines = []
    for service in found.services:
        if service.verdict != "healthy":
            fix = f"; {addressed(service.fix)}" if service.fix else ""
            lines.append(one_line(f"{service.name} is {service.verdict}: {service.cause}{fix}"))
    return "\n".join(lines)
