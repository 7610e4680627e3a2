"""The application's own migrations, on the database itself: a pooler would take their locks and settings apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from devstack import console
from devstack.data import backup, census
from devstack.data.session import session
from devstack.errors import StackError, UsageError
from devstack.shell import sh, typed

if TYPE_CHECKING:
    from devstack.data.catalogue import Backup
    from devstack.stack import Stack

Action = Literal["up", "status", "down"]

SETTING = {"up": "data.migrate", "status": "data.migrate_status", "down": "data.migrate_down"}
ALEMBIC = {"up": "upgrade head", "status": "history --indicate-current", "down": "downgrade -$steps"}
"""https://alembic.sqlalchemy.org/en/latest/tutorial.html"""
LABEL = "pre-migrate"
MISSING = "No module named alembic"


class Request(Struct, frozen=True):
    """What is asked for; ``steps`` only counts for ``down``."""

    action: Action = "up"
    steps: int = 1
    backup: bool = True


def command_of(stack: Stack, action: Action) -> str:
    """The shell command for an action.

    :raises UsageError: no setting names one, and the application has no Alembic.
    """
    field = SETTING[action].partition(".")[2]
    command: str = getattr(stack.settings.data, field)
    if command:
        return command
    if (stack.api.folder / "alembic.ini").is_file():
        return sh("$python -m alembic ", python=stack.api.python) + ALEMBIC[action]
    raise UsageError(
        "how the application migrates its database is not known",
        why=f"{SETTING[action]} is empty, and {stack.api.folder} has no alembic.ini",
        fix=f"set {SETTING[action]} in invoke.yaml to the command, such as: python manage.py migrate",
    )


def check(stack: Stack, request: Request) -> None:
    """Refuse what can't be run, before a backup is made for it.

    :raises UsageError: the command, its folder or its interpreter is not there.
    """
    stack.api.check_files()
    command_of(stack, request.action)


def back_up_first(stack: Stack) -> Backup | None:
    """A proven backup of what is there; None if there is nothing yet.

    :raises StackError: it could not be made; then nothing is migrated.
    """
    with session(stack.db, stack.settings.db.name, "look at the database") as sql:
        if not census.table_names(sql):
            return None
    return backup.create(stack, backup.Request(label=LABEL))


def run(stack: Stack, request: Request, made: Backup | None) -> None:
    """Run the application's command, its output on the screen; ``made`` is the way back if it fails.

    :raises StackError: it failed; with its own exit code.
    """
    command = command_of(stack, request.action)
    if stack.context.dry:
        console.command(f"{sh('cd $folder', folder=stack.api.folder)} && {command}")
        return
    extra = {**stack.api.peer_urls(direct=True), "steps": str(request.steps)}
    with stack.api.beside(command, stack.environ, extra) as beside:
        code, lines = stack.context.watch(beside.command, folder=beside.folder, env=beside.env)
    if code:
        raise _failure(stack, request, made, code, lines)


def _failure(stack: Stack, request: Request, made: Backup | None, code: int, lines: list[str]) -> StackError:
    fix = []
    if any(MISSING in line for line in lines):
        fix.append(f"install it there: {stack.api.python} -m pip install alembic")
    elif request.action != "status":
        fix.append("mend the migration, and try again")
    if made:
        fix.append(f"back to the database as it was before: inv data.restore --file {typed(made.name)}")
    return StackError(
        {
            "up": "the migrations were not applied",
            "status": "the state of the migrations could not be read",
            "down": "the migrations were not taken back",
        }[request.action],
        why=f"the command ended with exit code {code}; what it had committed by then stays"
        if request.action != "status"
        else f"the command ended with exit code {code}",
        evidence=lines[-5:],
        fix=fix,
        code=code if 0 < code < 256 else 1,
    )
