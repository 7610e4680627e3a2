"""The flag that every task takes: ``-e NAME``, the environment. Said here once, not in each signature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from invoke import Argument, Call, Collection, Task

from tasks import session


class EnvironmentFlag(Argument):
    """Tells the session what it was given: a pre-task sees no flag of the task that it runs before, and has to
    know the environment all the same."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names=names, help="the environment, as NV_ENV=NAME names it")

    def set_value(self, value: Any, cast: bool = True) -> None:
        super().set_value(value, cast)
        session.name_environment(value)

    @property
    def value(self) -> None:
        """Nothing, whatever was given: Invoke runs a task once only if it is called with the same values each time,
        and pre-tasks are called without."""

    @value.setter
    def value(self, given: Any) -> None:
        self.set_value(given)


class EnvironmentTask(Task[Any]):
    """A task with the flag, which its body does not see."""

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        own = super().get_arguments(ignore_unknown_help)
        taken = {name for argument in own for name in argument.names}
        return [*own, EnvironmentFlag(("env",) if "e" in taken else ("env", "e"))]

    def __call__(self, *args: Any, env: None = None, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def offer(root: Collection) -> None:
    """Have every task of a collection take the flag."""
    tasks = list(_tasks(root))
    for task in tasks:
        task.__class__ = EnvironmentTask
    for task in tasks:
        task.pre, task.post = _as_named(task.pre), _as_named(task.post)


def _as_named(chain: Any) -> list[Any]:
    """Tasks that run before or after another one, called as Invoke calls those that are named on the command line."""
    return [Call(one, kwargs={"env": None}) if isinstance(one, EnvironmentTask) else one for one in chain]


def _tasks(collection: Collection) -> Iterator[Task[Any]]:
    yield from collection.tasks.values()
    for sub in collection.collections.values():
        yield from _tasks(sub)
