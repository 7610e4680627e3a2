"""How the answers on migrations, fixtures and generated rows look, and what their flags mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from devstack import console
from devstack.errors import UsageError
from tasks import inventory

if TYPE_CHECKING:
    from devstack.data import generate
    from devstack.data.catalogue import Backup
    from devstack.data.fixtures import Applied
    from devstack.data.migrations import Request
    from devstack.stack import Stack


def migration(*, status: bool, down: str | bool | None, no_backup: bool) -> Request:
    """What `data.migrate` is asked for. ``down`` is True where the flag came without a number.

    :raises UsageError: its flags contradict each other.
    """
    from devstack.data.migrations import Request

    if status and down is not None:
        raise UsageError("--status and --down exclude each other")
    if status:
        return Request("status", backup=False)
    if down is None:
        return Request("up", backup=not no_backup)
    text = "1" if down is True else str(down)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 10_000):
        raise UsageError(f"--down {down!r} is not a number of migrations", fix="1 or more")
    return Request("down", int(text), backup=not no_backup)


def backed_up(stack: Stack, request: Request) -> Backup | None:
    """The backup before a migration, said in a line; None where none was asked for or there is nothing yet."""
    from devstack.data import migrations

    if request.action == "status":
        return None
    if not request.backup:
        console.note("no backup is made of what is there: --no-backup")
        return None
    if stack.context.dry:
        console.out(f"# back up database {stack.settings.db.name}, labelled {migrations.LABEL}")
        return None
    made = migrations.back_up_first(stack)
    if made:
        inventory.made(stack, made)
    return made


def migrated(stack: Stack, request: Request) -> None:
    """That it is done: many a tool is silent."""
    done = {"up": "the migrations are applied", "down": "the migrations are taken back"}.get(request.action)
    if done and not stack.context.dry:
        console.note(done)


def seeded(applied: list[Applied], *, as_json: bool) -> None:
    """What became of each fixture."""
    if as_json:
        console.data({"files": [msgspec.structs.asdict(one) for one in applied]})
        return
    width = max((console.width(one.file) for one in applied), default=0)
    for one in applied:
        rows = "" if one.rows is None else f"{one.rows:,} row{'' if one.rows == 1 else 's'}, "
        said = "already applied" if one.did == "unchanged" else f"{one.did}, {rows}{console.duration(one.seconds)}"
        console.out(f"{console.pad(one.file, width)}  {said}")


def request(*, rows: str, seed: str, table: str, all_tables: bool) -> generate.Request:
    """What `data.generate` is asked for.

    :raises UsageError: a flag's value can't be used.
    """
    from devstack.data.generate import Request

    made = Request(_number("--rows", rows), _number("--seed", seed) if seed else None, table, all_tables)
    made.check()
    return made


def _number(flag: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UsageError(f"{flag} {text!r} is not a number", fix="write digits only")
    return int(text)


def generated(made: generate.Generated, *, as_json: bool) -> None:
    """What each table got."""
    if as_json:
        console.data(msgspec.to_builtins(made))
        return
    for filled in made.tables:
        text = f"{filled.rows:,} row{'' if filled.rows == 1 else 's'} in {console.duration(filled.seconds)}"
        if filled.index_seconds:
            text += f", {console.duration(filled.index_seconds)} of it for its indexes"
        console.out(f"{filled.table}  {text}")
    console.out(f"the same rows again, in an empty table: --seed {made.seed}")
