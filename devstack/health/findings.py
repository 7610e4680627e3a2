"""Probes at work: each in a thread of its own, with what it has found so far and what it waits for."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from devstack.health.records import Check
from devstack.threads import run_at_once

TRIES = 3
"""Answers of which the fastest is judged: that one of them is slow can be the machine's doing."""

T = TypeVar("T")


class Findings:
    """What one probe has found, and what it is doing now; complete once it has ended."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.doing = ""

    def add(self, check: Check) -> None:
        self.checks.append(check)

    def extend(self, checks: Iterable[Check]) -> None:
        self.checks.extend(checks)

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Say what is being waited for, should it never come."""
        self.doing = what
        try:
            yield
        finally:
            self.doing = ""


Probe = Callable[[Findings], None]


def run_all(probes: Sequence[Probe], seconds: float) -> list[Findings]:
    """Run all probes at once and wait until they end, at most ``seconds``. What hangs is left behind: its thread ends
    with this process, and its findings say what it waits for."""
    found = [Findings() for _ in probes]
    run_at_once([functools.partial(_run, *pair) for pair in zip(probes, found, strict=True)], seconds)
    return found


def _run(probe: Probe, findings: Findings) -> None:
    try:
        probe(findings)
    except Exception as error:  # a defect of one probe must not hide what the others found
        text = f"{type(error).__name__}: {error}".strip()
        cause = f"it could not be examined: {text}"
        findings.add(Check(name="probe", verdict="unknown", cause=cause, fix="inv --debug health shows where"))


def fastest(ask: Callable[[], T], limit: float, seconds: float) -> tuple[T, float]:
    """Ask until an answer takes at most ``limit`` milliseconds, but no more than :data:`TRIES` times, and stop as soon
    as another try could take the whole time beyond ``seconds``.

    :return: the last answer, and the milliseconds that the fastest one took
    """
    best = float("inf")
    started = time.perf_counter()
    for tried in range(1, TRIES + 1):
        began = time.perf_counter()
        answer = ask()
        now = time.perf_counter()
        best = min(best, (now - began) * 1000)
        if best <= limit or now - started + (now - began) > seconds or tried == TRIES:
            break
    return answer, best
