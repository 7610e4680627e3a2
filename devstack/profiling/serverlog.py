"""Plans in the server's log, as auto_explain writes them: JSON on lines of its own, each begun by a tab."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from devstack.files import load_json
from devstack.profiling import explain, plans

if TYPE_CHECKING:
    from devstack.stack import Stack

ENTRY = re.compile(r"duration: (?P<ms>\d+\.\d+) ms\s+plan:\s*$")
LITERAL = re.compile(r"'(?:[^']|'')*'|\$\d+|\b\d+(?:\.\d+)?\b")
FLUSH = 5.0
"""Seconds until what the server has written is in its log."""
LINES = 1_000_000
"""Of the log, at most."""


class Logged(Struct, frozen=True):
    """A call that was logged; ``id`` is pg_stat_statements' own of the statement, empty before PostgreSQL 16."""

    ms: float
    statement: str
    id: str
    plan: dict[str, Any]


def entries(lines: Iterable[str], begin: str, end: str) -> Iterator[Logged | None]:
    """The plans between two marks; None for each that can't be read: two servers have written at once."""
    inside = False
    ms = 0.0
    text: list[str] = []
    for line in lines:
        if begin in line:
            inside = True
        if text and not line.startswith("\t"):
            yield _read(ms, text)
            text = []
        if end in line:
            break
        if inside and (match := ENTRY.search(line)):
            ms, text = float(match["ms"]), [""]
        elif text:
            text.append(line[1:])
    if text:
        yield _read(ms, text)


def _read(ms: float, text: list[str]) -> Logged | None:
    """Return what an entry says; None if it is not as the server writes it.

    The application's role can write such lines too: RAISE LOG.
    """
    try:
        entry = load_json("\n".join(text), strict=False)
        plan = plans.checked(entry["Plan"])
        return Logged(ms, str(entry["Query Text"]), str(entry.get("Query Identifier", "")), plan)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def shape(statement: str) -> str:
    """A statement without its values, as far as that can be told from its text."""
    return " ".join(LITERAL.sub("?", statement).split()).rstrip("; ").lower()


def mark(stack: Stack, text: str) -> None:
    """A line in the log, to know what is between two of them."""
    say = f"DO $$BEGIN RAISE LOG 'nv-devstack: {text}'; END$$"
    stack.context.read(explain.admin(stack, *explain.QUIET, say))


def read(stack: Stack, begin: str, end: str, offset: int, found: list[Logged]) -> str:
    """Read the plans between two marks, in what was logged after so many bytes; why there may be some missing."""
    name, context = stack.db.name, stack.context
    deadline = time.monotonic() + FLUSH
    while not any(end in line for line in context.log_tail(name, 500)):
        if time.monotonic() > deadline:
            return f"the server does not log to {stack.paths.log / name}.log, so there are no plans of it"
        time.sleep(0.05)
    unreadable = 0
    for entry in entries(_lines(stack, offset), begin, end):
        if entry is None:
            unreadable += 1
        else:
            found.append(entry)
    return f"{unreadable} plans in the log can't be read: several were written at once" if unreadable else ""


def _lines(stack: Stack, offset: int) -> Iterator[str]:
    """What was logged since; also where the log was rotated meanwhile."""
    context, name = stack.context, stack.db.name
    file = context.runtime.log_file(name)
    if file and context.log_size(name) < offset:
        with file.with_name(f"{file.name}.1").open("rb") as rotated:
            rotated.seek(offset)
            for raw in rotated:
                yield context.mask(raw.decode(errors="replace").rstrip("\r\n"))
        offset = 0
    command = context.runtime.logs(name, tail=LINES, follow=False, skip=offset)
    with context.stream_out(command, f"read the log of {name}") as stream:
        for raw in stream:
            yield context.mask(raw.decode(errors="replace").rstrip("\r\n"))
