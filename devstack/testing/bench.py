"""What one pytest process works with: the stack on loan, and databases once they are asked for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.testing.databases import Databases
from devstack.testing.loan import Loan
from devstack.testing.project import open_project
from devstack.testing.template import Recipe, prepared, tidy

if TYPE_CHECKING:
    from devstack.stack import Stack


@dataclass(frozen=True)
class RunningStack:
    """A stack that answers. The URLs have the password in them."""

    root: Path
    """The project's folder."""
    env: str
    api_url: str
    database_url: str
    """Through PgBouncer, as the application has it."""
    direct_url: str


@dataclass(frozen=True)
class Options:
    """What the run was told, by its command line and its settings."""

    rootdir: Path
    env: str
    recipe: Recipe
    rebuild: bool
    keep: bool
    """Whether what the tests start goes on running."""


class Bench:
    """The stack and the databases of a process, each made when it is first needed."""

    def __init__(self, options: Options) -> None:
        """:raises UsageError: there is no project, or a setting is wrong."""
        self.options = options
        self.stack: Stack = open_project(options.rootdir, options.env)
        self.loan = Loan(self.stack)
        self._databases: list[Databases] = []

    def running(self) -> RunningStack:
        """:raises StackError: it does not come up."""
        self.loan.need()
        urls = self.stack.api.urls()
        settings = self.stack.settings
        return RunningStack(
            root=settings.root,
            env=settings.stack.env,
            api_url=self.stack.api.address,
            database_url=urls["database_url"],
            direct_url=urls["direct_url"],
        )

    @functools.cached_property
    def databases(self) -> Databases:
        """PostgreSQL alone is needed for these.

        :raises StackError: it does not come up, or the template can't be made.
        """
        self.loan.need(["db"])
        template = prepared(self.loan, self.options.recipe, rebuild=self.options.rebuild)
        self._databases.append(Databases(self.loan, template))
        return self._databases[0]

    def close(self, *, last: bool) -> None:
        """Leave things as they were found; another process gives the stack back unless this is the ``last``.

        :raises StackError: something could not be removed or stopped.
        """
        try:
            for databases in self._databases:
                databases.close()
        finally:
            if last:
                self.give_back()
            else:
                self.loan.leave()

    def give_back(self) -> None:
        """:raises StackError: a service did not stop."""
        try:
            if self._runs("db"):
                tidy(self.loan)
        finally:
            self.loan.give_back(keep=self.options.keep)

    def _runs(self, label: str) -> bool:
        states = self.stack.context.states(self.stack.names)
        return states[self.stack.service(label).name].running
