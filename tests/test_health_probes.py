"""What probes share: how one slow answer is told from a slow service."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from devstack.health.findings import TRIES, fastest


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], Callable[[], float]]:
    """What is asked, on a clock that only its answers move: each takes as many seconds as the next of a list."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def make(seconds: list[float]) -> Callable[[], float]:
        left = iter(seconds)

        def ask() -> float:
            nonlocal now
            took = next(left)
            now += took
            return took

        return ask

    return make


@pytest.mark.parametrize(
    ("seconds", "last", "fastest_ms"),
    [
        ([0.0], 0.0, 0),
        ([0.2, 0.0], 0.0, 0),
        ([0.2, 0.19, 0.0], 0.0, 0),
        ([0.12, 0.13, 0.14], 0.14, 120),
    ],
    ids=["quick", "slow once", "slow twice", "always slow"],
)
def test_the_fastest_of_three_answers_is_judged(
    answers: Callable[[list[float]], Callable[[], float]], seconds: list[float], last: float, fastest_ms: float
) -> None:
    assert len(seconds) <= TRIES
    answer, ms = fastest(answers(seconds), limit=100, seconds=60)
    assert answer == last
    assert ms == pytest.approx(fastest_ms)


def test_no_try_is_begun_that_could_take_longer_than_there_is_time(
    answers: Callable[[list[float]], Callable[[], float]],
) -> None:
    answer, _ = fastest(answers([0.3]), limit=100, seconds=0.5)
    assert answer == 0.3
