"""The tasks that a wrong setting does not keep from their work: those that stop, inspect or back up what runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

ALWAYS = {
    *("dev.down", "db.stop", "pgb.stop", "api.stop"),
    *("dev.status", "dev.logs", "dev.list", "dev.env", "dev.exec", "dev.bundle", "health", "metrics", "system-info"),
    *("db.status", "db.logs", "db.stats", "db.shell", "pgb.status", "pgb.logs", "pgb.stats", "api.status", "api.logs"),
    *("data.list", "data.backup", "data.verify", "remote.check"),
}

Flags = Callable[[str], Any]

SOMETIMES: dict[str, Callable[[Flags], bool]] = {
    "data.migrate": lambda flag: bool(flag("status")),
    "data.schedule": lambda flag: not (flag("every") or flag("remove")),
    "remote.tunnel": lambda flag: bool(flag("status") or flag("stop")),
    "dev.images": lambda flag: not (flag("save") or flag("load")),
}
"""Tasks that only some of their flags make such a task."""


def are_tolerant(contexts: Sequence[Any]) -> bool:
    """Check whether all tasks of a command go on while a setting is wrong: one that does not refuses the command
    before anything is stopped.

    :param contexts: the tasks as Invoke has parsed them.
    """
    return bool(contexts) and all(_is_tolerant(context) for context in contexts)


def _is_tolerant(context: Any) -> bool:
    def flag(name: str) -> Any:
        return context.args[name].value if name in context.args else None

    if context.name in SOMETIMES:
        return SOMETIMES[context.name](flag)
    return context.name in ALWAYS
