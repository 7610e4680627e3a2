"""The volumes of container engines: where the data are when no container is there."""

from __future__ import annotations

from collections.abc import Sequence

from devstack.container import ContainerContext
from devstack.errors import StackError
from devstack.runtimes.containers import Containers
from devstack.shell import Command


def _engine(context: ContainerContext) -> Containers:
    assert isinstance(context.runtime, Containers)
    return context.runtime


def questions(context: ContainerContext, name: str) -> Sequence[Command]:
    """What :func:`make` will read."""
    return [_engine(context).volume(name), _engine(context).volume_users(name)]


def is_there(context: ContainerContext, name: str) -> bool:
    """Whether the engine has a volume of this name that is ours."""
    found = context.read(_engine(context).volume(name))
    return bool(found.ok) and not _engine(context).whose(_engine(context).volume_labels(found.stdout))


def make(context: ContainerContext, name: str, *, user: str) -> bool:
    """Have a volume for the container ``user``; whether it was made just now.

    :raises StackError: somebody else has one of this name, or another container runs on ours; it is not touched.
    """
    engine = _engine(context)
    found = context.read(engine.volume(name))
    if not found.ok:
        context.run(engine.volume_create(name), f"create the volume {name}")
        return True
    if owner := engine.whose(engine.volume_labels(found.stdout)):
        raise StackError(
            f"there is a volume {name} already",
            why=f"it belongs to {owner}, and may hold data: it was not touched",
            fix=[
                f"look at it: {engine.volume(name)}",
                "give this stack other names: NV_ENV=mine inv dev.up; or remove it yourself",
            ],
        )
    # each in a world of its own, two servers do not see each other's lock on the same files
    _check_unused(context, name, user=user, running=True)
    return False


def check_removable(context: ContainerContext, name: str, *, user: str) -> None:
    """Before what ``user`` has there goes.

    :raises StackError: another container has the volume, running or not: the engine would keep it.
    """
    _check_unused(context, name, user=user, running=False)


def _check_unused(context: ContainerContext, name: str, *, user: str, running: bool) -> None:
    engine = _engine(context)
    answer = context.read(engine.volume_users(name))
    users = engine.parse_users(answer.stdout, name) if answer.ok else {}
    others = [other for other, runs in users.items() if other != user and (runs or not running)]
    if others:
        raise StackError(
            f"the volume {name} is in use",
            why=f"container {', '.join(others)} has it{' and runs' if running else ''}: nothing was touched",
            fix=[str(engine.remove(other)).removesuffix(" >/dev/null") for other in others],
        )


def remove(context: ContainerContext, name: str) -> None:
    """Remove a volume of ours; none there is fine.

    :raises StackError: a container has it.
    """
    if is_there(context, name):
        _check_unused(context, name, user="", running=False)
        context.run(_engine(context).volume_remove(name), f"remove the volume {name}")
