"""Plans in the server's log, as auto_explain writes them: JSON on lines of its own, each begun by a tab."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

ENTRY = re.compile(r"duration: (?P<ms>\d+\.\d+) ms\s+plan:\s*$")
LITERAL = re.compile(r"'(?:[^']|'')*'|\$\d+|\b\d+(?:\.\d+)?\b")


@dataclass(frozen=True)
class Logged:
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
    try:
        entry = json.loads("\n".join(text), strict=False)
        return Logged(ms, str(entry["Query Text"]), str(entry.get("Query Identifier", "")), entry["Plan"])
    except (ValueError, KeyError, TypeError):
        return None


def shape(statement: str) -> str:
    """A statement without its values, as far as that can be told from its text."""
    return " ".join(LITERAL.sub("?", statement).split()).rstrip("; ").lower()
