"""Backups and restores"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from invoke import Context, Exit, task

from devstack import console
from devstack.errors import FAILED, UsageError
from tasks import hooks, inventory, report, session

if TYPE_CHECKING:
    from devstack.stack import Stack


def _stack(c: Context, *, changes: bool = False, running: bool = True) -> Stack:
    """The stack of this command, with the locks on its data."""
    from devstack.data import recovery

    _end_by_exception()
    stack = session.stack(c)
    if running:
        report.require(stack, "db")
    recovery.begin(stack, changes=changes)
    return stack


def _end_by_exception() -> None:
    """Interrupted or told to end, a command first removes what is half made; its exit code is a shell's."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


@task(
    pre=[hooks.pre_backup],
    post=[hooks.post_backup],
    auto_shortflags=False,
    help={
        "schema_only": "tables, functions and so on without rows",
        "data_only": "rows alone",
        "label": "a note to find it by",
        "format": "sql (compressed by gzip), custom or directory",
        "jobs": "processes that dump at the same time, with --format directory",
        "output": "another file or folder to write to",
        "no_verify": "do not read it back",
        "json": "the answer as JSON",
    },
)
def backup(
    c: Context,
    schema_only: bool = False,
    data_only: bool = False,
    label: str = "",
    format: str = "sql",  # noqa: A002
    jobs: int = 1,
    output: str = "",
    no_verify: bool = False,
    json: bool = False,
) -> None:
    """Make a backup of the database, and prove it."""
    from devstack.data import backup as backups

    if schema_only and data_only:
        raise UsageError("--schema-only and --data-only exclude each other", fix="leave both out for everything")
    if format not in backups.SUFFIX:
        raise UsageError(f"--format {format!r} is not known", fix="sql, custom or directory")
    kind = "schema" if schema_only else "data" if data_only else "full"
    request = backups.Request(kind, format, jobs, label, output, not no_verify)  # type: ignore[arg-type]
    request.check()
    stack = _stack(c)
    made = backups.create(stack, request)
    if made and json:
        console.data(inventory.data(made))
    elif made:
        inventory.made(stack, made)


@task(
    auto_shortflags=False,
    help={
        "file": "a backup's name or path, or latest",
        "all": "every backup of this environment",
        "deep": "restore it into a database of its own and count the rows",
        "json": "the answer as JSON",
    },
)
def verify(c: Context, file: str = "latest", all: bool = False, deep: bool = False, json: bool = False) -> None:  # noqa: A002
    """Prove that a backup is whole."""
    from devstack.data import catalogue
    from devstack.data import verify as proof

    stack = _stack(c, running=deep)
    folder = catalogue.prepare(stack)
    found = catalogue.backups(folder) if all else [catalogue.pick(stack.settings, file)]
    results = proof.verify_all(stack, found, deep=deep)
    if not inventory.verified(stack, results, as_json=json):
        raise Exit(code=FAILED)


@task(name="list", help={"json": "the answer as JSON"})
def list_(c: Context, json: bool = False) -> None:
    """Show the backups of this environment."""
    from devstack.data import catalogue

    stack = session.stack(c)
    folder = catalogue.folder_of(stack.settings)
    found = catalogue.backups(folder)
    if json:
        console.data({"folder": str(folder), "backups": [inventory.data(b) for b in found]})
    else:
        inventory.listing(stack, found, folder)
