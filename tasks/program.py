"""``nv``: the tasks as a program of its own, for any folder with an ``invoke.yaml``."""

from __future__ import annotations

import sys
from pathlib import Path

from devstack import __version__
from devstack.settings import project_of
from tasks import ns
from tasks.commandline import StackProgram
from tasks.process import own
from tasks.runstate import state_of


class Nv(StackProgram):
    """Works on the nearest project, from its folder or one below."""

    typed_name = "nv"

    def __init__(self) -> None:
        name = self.typed_name
        super().__init__(version=__version__, namespace=ns, name=name, binary=name, binary_names=[name])

    def find_project(self) -> Path | None:
        """Return the nearest project's directory; None if there is none."""
        return project_of(Path.cwd())

    def parse_collection(self) -> None:
        # as in tasks.py: what Invoke turns off would be compiled anew at every command
        sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
        state = state_of(self.config)
        state.work_in(self.find_project())
        # what is not trusted is not read either; the executor says so, where it is not only about the tasks' help
        if state.has_root:
            # a Program with tasks of its own reads no file of the project by itself
            self.config.set_project_location(state.root)
            self.config.load_project()
        super().parse_collection()
        self.take_path(ns.task_names)


def main() -> None:
    """The console script."""
    program = Nv()
    own(program)
    program.run()
