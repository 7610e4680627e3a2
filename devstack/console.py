"""Everything that is printed.

Answers go to stdout; what is going on and what went wrong go to stderr, so that a pipe gets the answer
alone. Colour appears on a terminal only, never under ``NO_COLOR``.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from colorama import Fore, Style, just_fix_windows_console

just_fix_windows_console()

COLOURS = {
    "good": Fore.GREEN,
    "warn": Fore.YELLOW,
    "bad": Fore.RED,
    "dim": Style.DIM,
    "bold": Style.BRIGHT,
    "db": Fore.CYAN,
    "pgb": Fore.MAGENTA,
    "api": Fore.BLUE,
}


def colourful(stream: TextIO) -> bool:
    """Whether colour is welcome on this stream (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Text in one of :data:`COLOURS`, or as it is where colour is not welcome."""
    if not text or not colourful(stream or sys.stdout):
        return text
    return f"{COLOURS[colour]}{text}{Style.RESET_ALL}"


def width(text: str) -> int:
    """Columns that a terminal uses for the text: wide characters take two, combining ones none."""
    wide = sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text if not unicodedata.combining(c))
    return wide - sum(1 for c in text if c == "\ufe0f")


def pad(text: str, columns: int) -> str:
    """The text with spaces up to a width in columns."""
    return text + " " * max(0, columns - width(text))


def out(text: str = "") -> None:
    """A line of the answer."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line on what is going on, apart from the answer."""
    print(text, file=sys.stderr, flush=True)


def data(value: Any) -> None:
    """The answer as JSON."""
    out(json.dumps(value, indent=2, ensure_ascii=False))


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = (), *, right: Iterable[int] = ()) -> list[str]:
    """Rows as aligned lines; ``right`` names the columns aligned to the right. The header is dim."""
    body = [[str(cell) for cell in row] for row in rows]
    everything = [list(header), *body] if header else body
    if not everything:
        return []
    columns = [max(width(row[i]) for row in everything) for i in range(len(everything[0]))]
    flush_right = set(right)

    def line(row: Sequence[str]) -> str:
        cells = [
            " " * (columns[i] - width(cell)) + cell if i in flush_right else pad(cell, columns[i])
            for i, cell in enumerate(row)
        ]
        return "  ".join(cells).rstrip()

    lines = [line(row) for row in body]
    return [paint(line(header), "dim"), *lines] if header else lines


def duration(seconds: float) -> str:
    """A duration for people: ``0.42 s``, ``38 s``, ``5 min``, ``3 h 20 min``, ``4 d 2 h``."""
    if seconds < 10:
        return f"{max(seconds, 0):.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def size(count: float) -> str:
    """Bytes for people, in powers of 1024 as PostgreSQL's pg_size_pretty does: ``12 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"
