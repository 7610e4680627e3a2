"""The program's name and the environment, for commands in messages.

Texts name commands as ``inv`` has them. What is printed while a command runs is worded for that command alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple


class Wording(NamedTuple):
    """Words of the commands that are shown."""

    program: str = "inv"
    """``nv`` where it is installed as a program of its own."""
    environment: str = ""
    """Environment that a command has to name; empty for the default one."""


DEFAULT = Wording()
_wording = ContextVar("wording", default=DEFAULT)


def wording() -> Wording:
    """Return the wording of the command that runs."""
    return _wording.get()


@contextlib.contextmanager
def worded(**changes: str) -> Iterator[None]:
    """Change the wording for a block; two commands in one process don't see each other's."""
    token = _wording.set(wording()._replace(**changes))
    try:
        yield
    finally:
        _wording.reset(token)
