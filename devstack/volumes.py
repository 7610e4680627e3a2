"""The volumes of container engines: where the data are when no container is there."""

from __future__ import annotations

from devstack.container import ContainerContext
from devstack.errors import StackError
from devstack.runtimes.containers import Containers


def _engine(context: ContainerContext) -> Containers:
    assert isinstance(context.runtime, Containers)
    return context.runtime


def is_there(context: ContainerContext, name: str) -> bool:
    """Whether the engine has a volume of this name that is ours."""
    found = context.read(_engine(context).volume(name))
    return bool(found.ok) and not _engine(context).whose(_engine(context).volume_labels(found.stdout))


def make(context: ContainerContext, name: str) -> bool:
    """Have a volume; whether it was made just now.

    :raises StackError: somebody else has one of this name; it is not touched.
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
    return False


def remove(context: ContainerContext, name: str) -> None:
    """Remove a volume of ours; none there is fine.

    :raises StackError: a container uses it.
    """
    if is_there(context, name):
        context.run(_engine(context).volume_remove(name), f"remove the volume {name}")
