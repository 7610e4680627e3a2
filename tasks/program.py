"""``nv``: the tasks as a program of its own, for any folder with an ``invoke.yaml``."""

from __future__ import annotations

import sys
from pathlib import Path

from invoke import Exit

from devstack import __version__, console
from tasks import ns, session
from tasks.commandline import StackProgram


class Nv(StackProgram):
    """Works on the nearest project, from its folder or one below."""

    def parse_collection(self) -> None:
        # as in tasks.py: what Invoke turns off would be compiled anew at every command
        sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
        session.work_in(Path.cwd())
        # what is not trusted is not read either; execute() says so, where it is not only about the tasks' help
        if session.has_root():
            # a Program with tasks of its own reads no file of the project by itself
            self.config.set_project_location(session.root())
            session.load_project(self.config, self.config.load_project)
        super().parse_collection()
        session.take_path(self.core.unparsed, ns.task_names)

    def execute(self) -> None:
        try:
            super().execute()
        except Exit as error:
            error.message = console.spoken(error.message or "") or None
            raise


def main() -> None:
    """The console script."""
    console.program = "nv"
    Nv(version=__version__, namespace=ns, name="nv", binary="nv", binary_names=["nv"]).run()
