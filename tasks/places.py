"""Where an environment runs: moves between runtimes, the images of those that run containers, exports to others."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from invoke import Context

from devstack import console
from devstack.errors import UsageError, addressed
from tasks import inventory, report, session

if TYPE_CHECKING:
    from devstack.export import Export


def move(c: Context, to: str, *, back: bool, confirm: bool) -> None:
    from devstack import move as moves

    if sum(map(bool, (to, back, confirm))) != 1:
        raise UsageError("dev.move takes one of --to, --back and --confirm", fix="inv dev.move --to docker")
    stack, reopen = session.stack(c), partial(session.on, c)
    if back:
        before = moves.back(stack, reopen)
        console.out(f"back on {before.runtime}, with the data that it had there")
        console.out(addressed(f"those on {stack.context.runtime.name} stay: inv dev.move --confirm removes them"))
    elif confirm:
        before = moves.confirm(stack, reopen)
        console.out(f"removed the data on {before.runtime}")
    else:
        done = moves.move(stack, to, reopen)
        if stack.context.dry:
            return
        if done.backup and done.restored:
            inventory.made(stack, done.backup)
            rows = f"{done.restored.tables} tables, {done.restored.rows:,} rows, as its manifest says"
            console.out(f"moved from {done.source} to {done.target}: {rows}")
        else:
            console.out(f"moved from {done.source} to {done.target}: there were no data yet")
        console.out(
            addressed(f"kept: the data on {done.source}; inv dev.move --confirm removes them, --back returns to them")
        )
        report.endpoints(session.on(c, to))


def images(c: Context, *, save: str, load: str, as_json: bool) -> None:
    from devstack.services.contained import ContainedApi
    from devstack.services.images import Images

    stack = session.stack(c)
    if save and load:
        raise UsageError("dev.images takes --save or --load, not both", fix="inv dev.images --save FILE")
    if not isinstance(stack.api, ContainedApi):
        raise UsageError(
            "there are no images: the services are plain processes here",
            why="the runtime is native",
            fix="INVOKE_STACK_RUNTIME=docker (or podman, apple) inv dev.images",
        )
    found: Images = stack.api.images
    if load:
        found.load(load)
    if save:
        found.save(save)
    rows = found.listing()
    if as_json:
        console.data({"images": [{"service": s, "image": i, "id": k or None} for s, i, k in rows]})
        return
    table = [("service", "image", "here"), *((s, i, k.removeprefix("sha256:")[:12] or "no") for s, i, k in rows)]
    for line in console.table(table):
        console.out(line)


def exported(made: Export, *, dry: bool, as_json: bool) -> None:
    """Where it is, and what to do with it."""
    if as_json:
        files = [{"path": file.path, "secret": file.secret} for file in made.files]
        console.data({"format": made.format, "folder": str(made.folder), "files": files})
        return
    if dry:
        return
    secrets = [file.path for file in made.files if file.secret]
    console.out(f"{made.folder}: {len(made.files)} files")
    console.out(f"with secrets, which only you may read: {', '.join(secrets)}")
    console.out(f"next: {NEXT[made.format]}")


NEXT = {
    "compose": "docker compose up --detach --wait, or podman-compose up --detach, in that folder",
    "quadlet": "the first lines of each .container file say how it is installed",
    "kubernetes": "the first lines of stack.yaml say how it is applied",
}
