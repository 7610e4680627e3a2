"""Read a ``.env`` file as python-dotenv reads it: https://saurabh-kumar.com/python-dotenv/reference/

Parser and interpolation are python-dotenv's own. The values are those of its ``dotenv_values()``: ``${NAME}`` and
``${NAME:-default}`` take what an earlier line says before what the caller's environment says, as the application gets
the file's variables rather than those of a terminal. What the stack itself gives to the application wins over both, as
it would with ``load_dotenv()`` in the application. Stricter than the library: a line that it would skip is refused.
"""

from __future__ import annotations

import io
import os
import pwd
import re
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from msgspec import Struct, field

from devstack.errors import UsageError
from devstack.files import MAX_BYTES, read_regular
from devstack.inherited import without_foreign

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What a shell takes for a variable's name."""

TERMINALS = frozenset(
    {
        *("PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "PWD", "OLDPWD", "SHLVL", "_", "SHELL", "TMPDIR"),
        *("TERM", "TERM_PROGRAM", "TERM_SESSION_ID", "COLORTERM", "COLUMNS", "LINES", "TMUX", "TMUX_PANE", "STY"),
        *("SSH_AUTH_SOCK", "SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY", "DISPLAY", "WAYLAND_DISPLAY", "WINDOWID"),
    }
)
"""Variables that differ from one terminal to the next. Nothing is restarted because such a variable differs."""

MAX_BLANKS = 1_000
"""Blanks in a row that are not read: python-dotenv's patterns take quadratic time."""


class Problem(Struct, frozen=True):
    """A line that can't be used."""

    error: UsageError
    """Refusal of the line, by its number alone: any part of it may be the secret."""
    text: str
    """The line as it is: never shown."""


class EnvFile(Struct, frozen=True):
    """A ``.env`` file, as it was read."""

    lines: list[tuple[str, str | None]] = field(default_factory=list)
    """Names and values in their order, nothing filled in; None for a name alone, which gives nothing."""
    outside: Mapping[str, str] = field(default_factory=dict)
    """Variables of the caller that values are filled in from."""
    left_out: frozenset[str] = frozenset()
    """Names that the application does not get: they are settings."""
    problems: list[Problem] = field(default_factory=list)
    """Lines that can't be used, in their order."""

    @property
    def values(self) -> dict[str, str]:
        """Variables that the file gives by itself."""
        return self.filled({})

    def filled(self, fixed: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that the file gives.

        :param fixed: variables that win over those of the file wherever a value uses them.
        :raises UsageError: the values are too long.
        """
        known: dict[str, str | None] = {}
        variables = _chain(fixed, known, self.outside)
        room = MAX_BYTES
        for name, value in self.lines:
            known[name] = None if value is None else _fill(value, variables, room)
            room -= len(known[name] or "")
        return {name: value for name, value in known.items() if value is not None and name not in self.left_out}

    def of_terminal(self) -> dict[str, str]:
        """Return the variables whose values depend on the caller's terminal, with the values as they are written."""
        found: dict[str, str] = {}
        known: set[str] = set()
        for name, value in self.lines:
            used = _used(value or "")
            depends = bool(used & found.keys() or (used & TERMINALS) - known)
            found.pop(name, None)
            if depends and value is not None:
                found[name] = value
            known.add(name)
        return found


def read_env_file(path: Path, environ: Mapping[str, str], *, within: Path | None = None) -> EnvFile:
    """Return a ``.env`` file; an empty one if there is none, or a directory, as some name a virtual environment.

    :param environ: the caller's variables.
    :param within: a directory that the file must be in.
    :raises UsageError: the file can't be read. Lines that can't be used are left to :func:`checked`.
    """
    try:
        content = read_regular(path, within=within)
    except (FileNotFoundError, IsADirectoryError):
        return EnvFile()
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"{path} can't be read", why=why, fix="correct the file, or move it away") from None
    return parse_env_file(content, environ, path)


def checked(found: EnvFile) -> EnvFile:
    """Return a file if all of its lines can be used.

    :raises UsageError: a line can't be used.
    """
    if found.problems:
        raise found.problems[0].error
    return found


def parse_env_file(content: bytes, environ: Mapping[str, str], path: Path = Path(".env")) -> EnvFile:
    """Return a ``.env`` file by its content.

    :raises UsageError: it has more blanks in a row than are read.
    """
    from dotenv.parser import parse_stream

    if re.search(rb"[^\S\r\n]{%d}" % MAX_BLANKS, content):
        why = f"it has {MAX_BLANKS} blanks in a row or more"
        raise UsageError(f"{path} can't be read", why=why, fix="take them out")
    found = EnvFile(outside=surroundings(environ))
    known: dict[str, str | None] = {}
    variables = _chain(known, found.outside)
    room = MAX_BYTES
    # as python-dotenv opens it: \r\n ends a line, too
    for binding in parse_stream(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="surrogateescape")):
        name, value, text = binding.key, binding.value, binding.original.string
        place = f"{path}:{binding.original.line + text[: len(text) - len(text.lstrip())].count(chr(10))}"
        problem, filled = None, None
        if binding.error:
            problem = _malformed(place, "it is not NAME=value")
        elif name is not None and value is not None:
            problem, filled = _value(place, name, value, variables, room)
            room -= len(filled or "")
        if problem:
            found.problems.append(Problem(problem, text))
        elif name is not None:
            known[name] = filled
            found.lines.append((name, value))
    return found


def _chain(*layers: Mapping[str, str | None]) -> Mapping[str, str | None]:
    """Return several mappings as one: earlier ones win. None is a name without a value."""
    return ChainMap(*(cast(dict[str, "str | None"], layer) for layer in layers))


def _value(
    place: str, name: str, value: str, variables: Mapping[str, str | None], room: int
) -> tuple[UsageError | None, str | None]:
    """Return why a variable can't be given to a program, if it can't be, and its value otherwise."""
    if not VARIABLE_NAME.fullmatch(name):  # it becomes a word of the launcher's `export`
        return _malformed(place, "its name has more than letters, digits and _"), None
    try:
        filled = _fill(value, variables, room)
        filled.encode()
    except UnicodeEncodeError:
        return _malformed(place, "it is not valid UTF-8"), None
    except UsageError:
        return _malformed(place, f"the file's values have more than {MAX_BYTES} characters, all filled in"), None
    if "\0" in filled:
        return _malformed(place, "it has a NUL character"), None
    return None, filled


def _malformed(place: str, why: str) -> UsageError:
    return UsageError(
        f"{place} is malformed",
        why=why,
        fix="write one NAME=value a line; quote a value that has spaces, quotes or a #",
    )


def surroundings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that values are filled in from.

    Those that nothing may inherit count as not set. Who one is, is known also where no terminal says so, as in a job of
    cron: otherwise such a command would see other values.
    """
    try:
        account = pwd.getpwuid(os.getuid())
        known = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    except KeyError:
        known = {}
    return {**known, **without_foreign(environ)}


def _fill(value: str, variables: Mapping[str, str | None], room: int) -> str:
    """Return a value with its variables filled in.

    :raises UsageError: it would be longer than ``room``: a few lines that repeat each other stand for gigabytes.
    """
    from dotenv.variables import parse_variables

    parts: list[str] = []
    for atom in parse_variables(value):
        parts.append(atom.resolve(variables))
        room -= len(parts[-1])
        if room < 0:
            raise UsageError("the values of .env are too long", why=f"they have more than {MAX_BYTES} characters")
    return "".join(parts)


def _used(value: str) -> set[str]:
    """Return the names of the variables that a value uses."""
    from dotenv.variables import Variable, parse_variables

    return {atom.name for atom in parse_variables(value) if isinstance(atom, Variable)}


def literal(value: str) -> str:
    """Return a value in which python-dotenv fills in nothing. It has no escape for a dollar sign, in no quotes; the
    default of a variable without a name stands for one."""
    return re.sub(r"\$(?=\{[^}:]*(:-[^}]*)?\})", "${:-$}", value)
