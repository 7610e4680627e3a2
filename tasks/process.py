"""A process that is for one command: ``inv``, ``fab`` or ``nv``. Importing the tasks changes nothing of the kind."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any

from invoke import Collection

from tasks.commandline import StackProgram
from tasks.executor import StackExecutor
from tasks.runstate import StackConfig, state_of
from tasks.session import configuration


def own(program: StackProgram) -> None:
    """Have a program own the process: its streams, and what is said of an error that nobody handles."""
    have_streams()
    sys.excepthook = program.explain
    program.owns_process = True


def adopt(collection: Collection) -> None:
    """Have ``inv`` be a :class:`StackProgram` from here on.

    Invoke prints what its parser has no idea of and ends with 1 before any hook of ours is asked. Its program and the
    configuration of the command are objects that are made before it reads this collection; what it does next are
    methods meant to be overridden (https://docs.pyinvoke.org/en/stable/concepts/library.html), so both get the classes
    that they would have had. What goes wrong before that, such as ``inv -f`` without a file, is still said in Invoke's
    words.
    """
    for name, make in MAKERS.items():
        if module := sys.modules.get(name):
            program: Any = module.program
            program.__class__ = make(module)
            program.executor_class = StackExecutor
            if hasattr(program, "core"):  # it is the one that runs: it has split its words, and reads the settings next
                own(program)
                StackConfig.adopt(program.config)
                program.take_path(collection.task_names)


def _fab(fab: Any) -> type[StackProgram]:
    class StackFab(StackProgram, fab.Fab):  # type: ignore[misc]
        """``fab -c tasks -H HOST``. Fabric's own configuration is in files of other names: the project's is read
        instead, and what Fabric's flags say wins over it."""

        def execute(self) -> None:
            self.config = configuration(
                state_of(self.config),
                {**object.__getattribute__(self.config, "_overrides")},
                runtime=self.args.config.value,
                ssh_config_path=self.args["ssh-config"].value,
            )
            super().execute()

    return StackFab


MAKERS: dict[str, Callable[[Any], type[StackProgram]]] = {
    "invoke.main": lambda _: StackProgram,
    "fabric.main": _fab,
}
"""What makes the class of the program in a module."""


def have_streams() -> None:
    """Where the caller closed a stream, what goes there is lost, but nothing fails for it; nor for a character that
    the stream can't have, which is shown escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
