"""What leads to the stack: shown, and given to a command."""

from __future__ import annotations

import os
import sys

import msgspec
from invoke import Context

from devstack import children, console
from devstack import variables as given
from devstack.errors import StackError, UsageError
from devstack.inherited import LIBPQ_VARIABLES
from tasks import forwarding, session
from tasks.runstate import state_of

FORMATS = ("shell", "dotenv", "json")
LOGIN = "login"
"""Format in which a host answers a command on another machine: no variable of the host's means anything there."""


def show(c: Context, form: str, *, direct: bool) -> None:
    """Print them, secrets and all: they are what is asked for."""
    if form not in (*FORMATS, LOGIN):
        raise UsageError(f"--format {form!r} is not known", fix=f"one of {', '.join(FORMATS)}")
    state = state_of(c)
    if form == LOGIN:
        print(console.json_of(msgspec.to_builtins(given.login(session.stack(c, looking=True)))), flush=True)
        return
    if forwarding.host_of(c.config):  # a shell evaluates them here
        found = forwarding.variables(c.config, direct=direct, tunnelled=False)
    else:
        found = given.variables(session.stack(c, looking=True), direct=direct)
    if form == "json":
        text = console.json_of(found)
    elif form == "dotenv":
        text = "\n".join(given.dotenv_lines(found))
    else:
        gone = [name for name in LIBPQ_VARIABLES if name in state.environ and name not in found]
        text = "\n".join(given.shell_lines(found, gone))
    print(text, flush=True)  # as it is: no word of a value is a command of ours


def run(c: Context, *, direct: bool) -> None:
    """Become the command after ``--``: its exit code, its terminal and its signals are its own.

    :raises StackError: it is not there, or can't be run.
    """
    state = state_of(c)
    words = state.words
    if not words:
        raise UsageError("dev.exec has no command", why="it is what follows --", fix="inv dev.exec -- python -m pytest")
    if later := state.typed[state.typed.index("dev.exec") + 1 :]:
        raise UsageError(f"{later[0]} would never run", why="dev.exec becomes its command", fix="put dev.exec last")
    if forwarding.host_of(c.config):
        env = given.elsewhere(forwarding.variables(c.config, direct=direct, tunnelled=True), state.environ)
        interpreter = "python"
    else:
        stack = session.stack(c, looking=True)
        env = given.surroundings(stack, state.environ, direct=direct)
        interpreter = stack.api.interpreter
    if c.config.run.dry:
        from devstack.shell import argv

        console.command(argv(words))
        return
    sys.stdout.flush()
    try:
        children.stop()
        os.execvpe(words[0], words, env)  # noqa: S606
    except FileNotFoundError:
        raise StackError(
            f"there is no command {words[0]}",
            why=f"it is in no folder of PATH: {env.get('PATH', '')}",
            fix=f"install it there: {interpreter} -m pip install …",
            code=127,
        ) from None
    except OSError as error:
        raise StackError(f"{words[0]} can't be run", why=error.strerror or str(error), code=126) from None
