"""The services' logs: the last lines of several merged by time, or followed as they grow."""

from __future__ import annotations

import contextlib
import heapq
import os
import queue
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

from msgspec import Struct

from devstack import children
from devstack.container import ContainerContext
from devstack.errors import UsageError

TIMESTAMP = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[T ](?P<time>\d\d:\d\d:\d\d)"
    r"(?:[.,](?P<fraction>\d{1,6})\d*)? ?(?P<zone>Z|UTC|GMT|[+-]\d\d(?::?\d\d)?(?!\d))?"
)
"""As PostgreSQL, PgBouncer and JSON logs have it, near the line's beginning."""

UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
LONGEST = 20_000
"""Characters of a line that are shown."""


class Line(Struct, frozen=True):
    """A log line. ``when`` is None as long as nothing before it, or in it, had a time."""

    service: str
    when: datetime | None
    text: str


def parse_since(text: str, now: datetime) -> datetime:
    """A point in time from ``10m``, ``2h``, ``14:30`` (today, local) or ``2026-11-23 14:30``.

    :raises UsageError: none of these.
    """
    try:
        if match := re.fullmatch(r"(\d+)([smhd])", text.strip()):
            return now - timedelta(**{UNITS[match[2]]: int(match[1])})
        if re.fullmatch(r"\d{1,2}:\d\d(:\d\d)?", text.strip()):
            hour, minute, *second = (int(part) for part in text.split(":"))
            return now.astimezone().replace(hour=hour, minute=minute, second=second[0] if second else 0, microsecond=0)
        when = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        return when if when.tzinfo else when.astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"--since {text!r} is not a time",
            fix="write it as 30s, 10m, 2h, 1d, 14:30 or '2026-11-23 14:30'",
        ) from None


def time_of(text: str) -> datetime | None:
    """The time in a line's first characters; without a zone it is UTC, as our own services write it."""
    match = TIMESTAMP.search(text, 0, 120)
    if not match:
        return None
    fraction = (match["fraction"] or "0").ljust(6, "0")
    zone = match["zone"] or "Z"
    offset = "+00:00" if zone in ("Z", "UTC", "GMT") else f"{zone[:3]}:{zone[3:].lstrip(':') or '00'}"
    try:
        return datetime.fromisoformat(f"{match['day']}T{match['time']}.{fraction}{offset}")
    except ValueError:
        return None


def clean(raw: bytes) -> str:
    """A line fit for any terminal: no escapes, no control characters, no invalid UTF-8."""
    text = raw[: LONGEST * 4].decode(errors="replace").rstrip("\r\n")
    text = UNPRINTABLE.sub("", text)
    return text if len(text) <= LONGEST else text[:LONGEST] + " … (cut)"


def recent(context: ContainerContext, names: list[str], *, tail: int, since: datetime | None) -> Iterator[Line]:
    """The last lines of each service, in order of time."""
    far = datetime.min.replace(tzinfo=timezone.utc)
    return heapq.merge(*(_recent(context, name, tail, since) for name in names), key=lambda line: line.when or far)


def _recent(context: ContainerContext, name: str, tail: int, since: datetime | None) -> Iterator[Line]:
    when: datetime | None = None
    with context.stream_out(context.runtime.logs(name, tail=tail, follow=False), f"read the log of {name}") as stream:
        for raw in iter(lambda: stream.readline(LONGEST * 8), b""):
            text = clean(raw)
            # a line without a time of its own, such as a traceback's, belongs to the one before
            when = time_of(text) or when
            if since is None or when is None or when >= since:
                yield Line(name, when, context.mask(text))


def follow(context: ContainerContext, names: list[str], *, tail: int) -> Iterator[Line]:
    """The last lines of each service and whatever comes, until the caller stops."""
    lines: queue.Queue[Line | None] = queue.Queue(maxsize=10_000)
    processes = []
    guards = contextlib.ExitStack()

    def read(name: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for raw in iter(lambda: stream.readline(LONGEST * 8), b""):
                text = clean(raw)
                lines.put(Line(name, time_of(text), context.mask(text)))
        lines.put(None)

    try:
        for name in names:
            command = context.runtime.logs(name, tail=tail, follow=True)
            children.prepare()
            process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that what the command starts ends with it
            )
            processes.append(process)
            guards.enter_context(context.guarded(process))
            threading.Thread(target=read, args=(name, process), daemon=True).start()
        ended = 0
        while ended < len(processes):
            line = lines.get()
            if line is None:
                ended += 1
            else:
                yield line
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        guards.close()
