"""Shell commands as quoted templates: no value reaches a shell unquoted.

>>> sh("psql -U $user $args", user="o'hara", args=["-c", "SELECT 1"])
"psql -U 'o'\\"'\\"'hara' -c 'SELECT 1'"
"""

from __future__ import annotations

import shlex
import string
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from devstack.escapes import is_shown

Word = str | int | float | PurePath
Value = Word | Iterable[Word]


class Command(str):
    """A shell command whose every substitution was quoted. Made by :func:`sh` and the combinators only."""

    __slots__ = ()


class Request(Command):
    """A command that posts to an HTTP server on a unix socket. As text it is curl's command line, for people, logs and
    other hosts; on this one the host sends it itself, in a tenth of the time."""

    socket: PurePath
    url: str
    body: str
    timeout: int


CANNOT_CONNECT, TIMED_OUT = 7, 28
"""curl's exit codes for a server that is not there, or did not answer in time (https://curl.se/docs/manpage.html)."""


class _Quoted(Mapping[str, str]):
    """A view of values as shell words; a :class:`Command` is already quoted and goes in as it is."""

    def __init__(self, values: Mapping[str, Value]):
        self._values = values

    def __getitem__(self, name: str) -> str:
        value = self._values[name]
        if isinstance(value, Command):
            return value
        return words([value]) if isinstance(value, str | int | float | PurePath) else words(value)

    def __iter__(self) -> Iterable[str]:  # type: ignore[override]
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def words(values: Iterable[Word]) -> str:
    """Shell words, each quoted, joined by spaces.

    :raises ValueError: a value holds a NUL byte, which no command line can carry.
    """
    texts = [str(value) for value in values]
    for text in texts:
        if "\0" in text:
            raise ValueError(f"a NUL byte can't be part of a command: {text!r}")
    return " ".join(shlex.quote(text) for text in texts)


UNTYPED = "(a name that is not shown as it is)"
"""In place of a word that nobody could type: no shell takes it in a command."""


def typed(*values: Word) -> str:
    """Return words of a command for a person to paste. Where one would become another on its way through the terminal,
    there is no command: as a part of a path, a control character could lead it to a place of somebody else's choice.
    """
    return " ".join(shlex.quote(text) if is_typed(text) else UNTYPED for text in map(str, values))


def is_typed(text: str) -> bool:
    """Check whether a text reaches a shell as it is. What looks like a command of ours is not printed as it is either:
    it gets the name that our program is called by."""
    return is_shown(text) and "inv " not in text


def sh(template: str, /, **values: Value) -> Command:
    """Fill a :class:`string.Template` with quoted values; a list becomes several words, ``$$`` a dollar sign.

    :raises KeyError: the template names a value that was not given.
    :raises ValueError: a value that was given is not in the template, or holds a NUL byte.
    """
    parsed = string.Template(template)
    names = {m["named"] or m["braced"] for m in parsed.pattern.finditer(template)} - {None}
    if unused := values.keys() - names:
        raise ValueError(f"not in the template {template!r}: {', '.join(sorted(unused))}")
    return Command(parsed.substitute(_Quoted(values)))


def argv(values: Iterable[Word]) -> Command:
    """One command from its words."""
    return Command(words(values))


def post(socket: PurePath, url: str, body: str, *, file: PurePath | None = None, timeout: int = 30) -> Request:
    """Post XML, which ``file`` holds too if given; ``timeout`` is in seconds."""
    line = sh(
        "curl -sS -m $timeout --unix-socket $socket -H 'Content-Type: text/xml' --data $data $url",
        timeout=timeout,
        socket=socket,
        data=f"@{file}" if file else body,
        url=url,
    )
    request = Request(line)
    request.socket, request.url, request.body, request.timeout = socket, url, body, timeout
    return request


def chain(*commands: Command) -> Command:
    """Commands one after another, as long as each succeeds."""
    return Command(" && ".join(commands))
