"""The findings as a commented ``invoke.yaml``."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from devstack.adoption.findings import Findings, Found
from devstack.settings import SECTIONS

HEADER = """\
# Settings of the local stack: PostgreSQL, PgBouncer and this application. `nv dev.up` starts them.
# Written by `nv dev.init` on what it found here; it is yours to change. What is left out keeps its default:
# `nv system-info` shows every setting with its value and its origin.
"""
PLAIN = re.compile(r"[A-Za-z_./$][\w./:$+@()-]*", re.ASCII)
WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", "none", "~"}
COLUMNS = 110


def document(found: Findings) -> str:
    """The whole file."""
    blocks = [HEADER]
    for title, lines in (("Not found", _missing(found)), ("Seen", [_comment(note, "#   ") for note in found.notes])):
        if text := "".join(lines):
            blocks.append(f"# {title}:\n{text}")
    for section in SECTIONS:
        if lines := list(_section(section, found.settings)):
            blocks.append("\n".join([f"{section}:", *lines]) + "\n")
    return "\n".join(blocks)


def _missing(found: Findings) -> Iterator[str]:
    for one in found.missing:
        yield _comment(one.what, "#   ") + f"#     fix: {' '.join(one.fix.split())}\n"  # in one line, to be copied


def _comment(text: str, indent: str) -> str:
    line = " ".join(text.split())
    return textwrap.fill(line, COLUMNS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False) + "\n"


def _section(section: str, settings: list[Found]) -> Iterator[str]:
    rows: list[tuple[str, str]] = []
    for one in settings:
        where, key, *rest = one.path.split(".")
        if where != section or rest:
            continue
        rows.append((f"  {key}: {scalar(one.value)}", one.why))
    within = [one for one in settings if one.path.startswith(f"{section}.env.")]
    if within:
        rows.append(("  env:", ""))
        rows += [(f"    {one.path.split('.', 2)[2]}: {scalar(one.value)}", one.why) for one in within]
    width = max((len(text) for text, _ in rows if len(text) < 60), default=0)
    for text, why in rows:
        yield f"{text:<{width}}  # {' '.join(why.split())}" if why else text


def scalar(value: Any) -> str:
    """A value as YAML; text in quotes where it could be taken for something else."""
    if isinstance(value, list):
        return f"[{', '.join(map(scalar, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    plain = PLAIN.fullmatch(value) and value.lower() not in WORDS and not value.endswith(":")
    return value if plain else json.dumps(value, ensure_ascii=False)
