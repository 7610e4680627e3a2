"""Execution of a command: here or on the stack's host, each typed task with its own pre- and post-tasks."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from invoke import Executor, Exit, UnexpectedExit
from invoke.exceptions import ParseError
from invoke.parser.context import ParserContext

from devstack import console
from devstack.errors import StackError
from devstack.inherited import take_out
from devstack.settings import VARIABLE_PREFIXES
from devstack.wording import worded
from tasks import forwarding
from tasks.problems import problem_of
from tasks.runstate import RunState, state_of
from tasks.tolerated import are_tolerant

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that a task may handle in its own way."""


class StackExecutor(Executor):
    """Runs each typed task whole. Invoke runs a task once in a command, however often it is typed or follows from
    others: ``dev.up dev.down dev.up`` would end down. Here that holds within one typed task."""

    def execute(self, *tasks: Any) -> dict[Any, Any]:
        """Run the tasks of a command line.

        :raises Exit: one has failed; the message is worded as the user types commands.
        """
        state = state_of(self.config)
        state.core = self.core
        state.name_environment([name for task in tasks if (name := task.args["env"].value)])
        with worded(environment=state.environment), _handlers_kept():
            try:
                return self._execute(state, tasks)
            except (UnexpectedExit, ParseError, BrokenPipeError):
                raise
            except Exit as error:
                raise _told(error) from error
            except Exception as error:
                if self.args.debug.value:
                    raise
                raise _told(problem_of(error, state.root if state.has_root else None)) from error

    def _execute(self, state: RunState, tasks: tuple[ParserContext, ...]) -> dict[Any, Any]:
        if state.has_root and (problem := state.untrusted or state.distrust()):
            raise problem
        state.typed = [str(task.name) for task in tasks]
        state.tolerate(are_tolerant(tasks))
        clean_environment()
        if state.environ.get("NV_ON_HOST") and _in_main_thread():
            # the loss of a terminal on a host ends a task as Ctrl-C does: it puts things right first
            signal.signal(signal.SIGHUP, signal.default_int_handler)
        results: dict[Any, Any] = {}
        for host in forwarding.hosts_of(self) or [""]:
            state.host = host
            if forwarding.host_of(self.config):
                forwarding.execute(self, tasks)
            else:
                results |= self.execute_here(tasks)
        return results

    @property
    def args(self) -> Any:
        """Parsed flags of the program itself."""
        assert self.core
        return self.core[0].args

    def execute_here(self, tasks: Any) -> dict[Any, Any]:
        """Run tasks on this machine."""
        state = state_of(self.config)
        results: dict[Any, Any] = {}
        for task in tasks:
            with _handlers_kept(), state.task(task):
                results |= super().execute(task)
        return results


def _told(error: Exit) -> Exit:
    """Return the end of the program, worded while it is known how the user types commands."""
    message = error.text() if isinstance(error, StackError) else error.message
    return Exit(console.spoken(message) if message else None, error.code)


def clean_environment() -> None:
    """Take out what this process and what it starts would misread, when a command begins to run.

    Invoke casts the variables of our settings by their default's type (``false`` becomes true) and ends in a
    traceback when it can't; the variables of libpq would lead psycopg2 and psql elsewhere, or break them, and those
    of Python every interpreter that is started.
    """
    take_out(os.environ, VARIABLE_PREFIXES)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Have the signals handled afterwards as they were before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if _in_main_thread():
            for number, handler in before.items():
                if handler is not None:  # None is one that Python has not set
                    signal.signal(number, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
