"""A bounded load at a steady rate, and how long each answer took.

The load is open: what is due is due, whether or not the ones before are answered, as with people who do not wait for
each other. What waits for a free connection has been waiting since it was due, and that counts: an average over what
could be sent would hide just the moments in which nothing went (http://highscalability.com/blog/2015/10/5/your-load-generator-is-probably-lying-to-you-take-the-red-pi.html).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

RPS = (0.1, 1000)
SECONDS = (1, 300)
CONNECTIONS = (1, 50)
"""Bounds of what is asked for: more would measure this program, which is on the same machine."""
REQUEST_SECONDS = 10
"""That an answer may take."""
LAST_SECONDS = REQUEST_SECONDS + 2.0
"""For what is on its way in the end."""
MESSAGES = 5
"""Different errors that are told."""


class Channel(Protocol):
    """A connection to a target."""

    def send(self) -> None:
        """A request and its answer.

        :raises Exception: it failed.
        """

    def cancel(self) -> None:
        """Have the request that is on its way end early."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Target:
    """What is put under load."""

    key: str
    title: str
    connect: Callable[[], Channel]


@dataclass(frozen=True)
class Outcome:
    """What a target made of the load. Latencies in milliseconds, at the seconds since the beginning when they were
    due."""

    target: str
    title: str
    planned: int
    done: int
    errors: int
    seconds: float
    messages: dict[str, int]
    at: Sequence[float] = field(repr=False)
    latencies: Sequence[float] = field(repr=False)

    @property
    def sent(self) -> int:
        return self.done + self.errors

    @property
    def unsent(self) -> int:
        """Those that were due, while every connection was busy until the end."""
        return self.planned - self.sent

    @property
    def rps(self) -> float:
        """Answers a second."""
        return self.done / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float) -> float | None:
        """The latency that so many percent of the answers did not exceed: one that was measured."""
        ordered = self.ordered
        return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else None

    @property
    def ordered(self) -> list[float]:
        return sorted(self.latencies)


class Load:
    """One target under load, by as many threads as there are connections."""

    def __init__(self, target: Target, rps: float, seconds: float, connections: int, *, reconnect: bool) -> None:
        self.target = target
        self.rps = rps
        self.seconds = seconds
        self.connections = connections
        self.reconnect = reconnect
        self._stop = threading.Event()
        self._next = itertools.count()
        self._lock = threading.Lock()
        self._at = array("d")
        self._latencies = array("d")
        self._messages: Counter[str] = Counter()
        self._began = 0.0
        self._ended = 0.0
        self._passed = seconds
        """Seconds in which requests were due."""
        self._cancelled = 0
        self._channels: set[Channel] = set()

    def run(self, show: Callable[[float], None]) -> tuple[Outcome, bool]:
        """Put the target under load; the outcome, and whether Ctrl-C has ended it early. ``show`` is told the seconds
        that have passed.

        :raises Exception: there is no first answer; it is the target's own.
        """
        opened: list[Channel] = []
        try:
            for _ in range(1 if self.reconnect else self.connections):
                opened.append(self._open())
                opened[-1].send()  # what only the first one has to do is not measured
        except BaseException:
            for channel in opened:
                self._close(channel)
            raise
        if self.reconnect:
            self._close(opened.pop())
        self._began = time.monotonic()
        threads = [
            threading.Thread(target=self._work, args=(opened[i] if opened else None,), daemon=True)
            for i in range(self.connections)
        ]
        for thread in threads:
            thread.start()
        interrupted = self._wait(threads, show)
        return self._outcome(), interrupted

    def _wait(self, threads: list[threading.Thread], show: Callable[[float], None]) -> bool:
        deadline = self._began + self.seconds + LAST_SECONDS
        interrupted = False
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            try:
                show(time.monotonic() - self._began)
                for thread in threads:
                    thread.join(0.2 / len(threads))
            except KeyboardInterrupt:
                interrupted = True
                self._passed = min(self.seconds, time.monotonic() - self._began)
                self._stop.set()
                deadline = min(deadline, time.monotonic() + 2)
                self._cancel()
        self._stop.set()
        self._cancel()
        return interrupted

    def _cancel(self) -> None:
        with self._lock:
            channels = list(self._channels)
        for channel in channels:
            with contextlib.suppress(Exception):
                channel.cancel()

    def _open(self) -> Channel:
        channel = self.target.connect()
        with self._lock:
            self._channels.add(channel)
        return channel

    def _close(self, channel: Channel) -> None:
        with self._lock:
            self._channels.discard(channel)
        with contextlib.suppress(Exception):
            channel.close()

    def _work(self, channel: Channel | None) -> None:
        """Take what is due next, until the time is over."""
        end = self._began + self.seconds
        try:
            while not self._stop.is_set():
                with self._lock:
                    due = self._began + next(self._next) / self.rps
                now = time.monotonic()
                if due >= end or now >= end:
                    return
                if now < due:
                    if self._stop.wait(due - now):
                        return
                    # it was free in time: how late this thread wakes up is not the target's doing
                    due = time.monotonic()
                error = ""
                try:
                    channel = channel or self._open()
                    channel.send()
                except Exception as failure:
                    error = (str(failure).strip() or type(failure).__name__).splitlines()[0]
                answered = time.monotonic()
                if channel and (error or self.reconnect):
                    self._close(channel)
                    channel = None
                    answered = time.monotonic() if self.reconnect else answered
                self._note(due, answered, error)
        finally:
            if channel:
                self._close(channel)

    def _note(self, due: float, answered: float, error: str) -> None:
        with self._lock:
            self._ended = max(self._ended, answered)
            if error and self._stop.is_set():
                self._cancelled += 1
                return
            if error:
                self._messages[error] += 1
                return
            self._at.append(due - self._began)
            self._latencies.append((answered - due) * 1000)

    def _outcome(self) -> Outcome:
        with self._lock:
            answered = len(self._at) + sum(self._messages.values())
            due = math.ceil(round(self._passed * self.rps, 6)) - self._cancelled
            return Outcome(
                target=self.target.key,
                title=self.target.title,
                planned=max(answered, due),
                done=len(self._at),
                errors=answered - len(self._at),
                seconds=max(self._passed, self._ended - self._began),
                messages=dict(self._messages.most_common(MESSAGES)),
                at=self._at[:],
                latencies=self._latencies[:],
            )
