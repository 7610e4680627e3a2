"""Values as YAML and as units of systemd: never anything but what they are, whatever they look like."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from devstack.errors import UsageError

Value: TypeAlias = "str | int | bool | Sequence[Value] | Mapping[str, Value]"

_BREAKS = "\u2028\u2029\ufeff"
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"}


def text(value: str) -> str:
    """A double-quoted scalar, which YAML 1.1 and 1.2 read alike (https://yaml.org/spec/1.2.2/#57-escaped-characters):
    without quotes, ``on`` would be true, ``1e3`` a number, and ``~`` nothing."""
    return '"' + "".join(_SHORT.get(c) or (c if _printable(c) else _escape(c)) for c in value) + '"'


def _printable(c: str) -> bool:
    # https://yaml.org/spec/1.2.2/#51-character-set, less what a reader takes for a line's end or a byte order mark
    return " " <= c <= "~" or ("\xa0" <= c <= "\ufffd" and not "\ud800" <= c <= "\udfff" and c not in _BREAKS)


def _escape(c: str) -> str:
    code = ord(c)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def scalar(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else text(value)


def block(value: Value, indent: int) -> str:
    """Lines for a place of their own in a template, each indented."""
    pad = " " * indent
    if isinstance(value, str | int):
        return pad + scalar(value)
    if not value:
        return pad + ("{}" if isinstance(value, Mapping) else "[]")
    if isinstance(value, Mapping):
        return "\n".join(f"{pad}{_key(key)}:{_below(inner, indent)}" for key, inner in value.items())
    return "\n".join(f"{pad}- {block(inner, indent + 2).lstrip()}" for inner in value)


def _below(value: Value, indent: int) -> str:
    if isinstance(value, str | int) or not value:
        return " " + block(value, 0)
    return "\n" + block(value, indent + 2)


_NAME = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def _key(name: str) -> str:
    return name if _NAME.fullmatch(name) and name.lower() not in _WORDS else text(name)


def unit(value: str, what: str) -> str:
    """A value of a unit (https://www.freedesktop.org/software/systemd/man/systemd.syntax.html): a percent sign begins
    a specifier.

    :raises UsageError: it has a character that a path in a unit can't have.
    """
    bad = sorted({c for c in value if c in "\"'\\$:;, \t" or ord(c) < 32 or ord(c) == 127})
    if bad:
        raise UsageError(
            f"{what} {value!r} can't be named in a unit",
            why=f"it has {' '.join(map(repr, bad))}, which systemd or Podman would take for something else",
            fix="use a folder whose name has none of them",
        )
    return value.replace("%", "%%")
