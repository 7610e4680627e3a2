"""The flag that every task takes: ``-e NAME``, the environment. Said here once, not in each signature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from invoke import Argument, Collection, Task


class EnvironmentTask(Task[Any]):
    """A task with the flag, which its body does not see: the executor takes it for the whole command."""

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        kept = dict(self.help)  # Invoke takes the flags' help out as it is asked for; the next command wants it too
        own = super().get_arguments(ignore_unknown_help)
        self.help = kept
        taken = {name for argument in own for name in argument.names}
        names = ("env",) if "e" in taken else ("env", "e")
        return [*own, Argument(names=names, help="the environment, as NV_ENV=NAME names it")]

    def __call__(self, *args: Any, env: str | None = None, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def offer(root: Collection) -> None:
    """Have every task of a collection take the flag."""
    for task in _tasks(root):
        task.__class__ = EnvironmentTask


def _tasks(collection: Collection) -> Iterator[Task[Any]]:
    yield from collection.tasks.values()
    for sub in collection.collections.values():
        yield from _tasks(sub)
