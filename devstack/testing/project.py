"""The stack of the project that a pytest run belongs to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.errors import UsageError

if TYPE_CHECKING:
    from devstack.stack import Stack

OF_THE_RUN = ("PYTEST_", "COV_CORE_")
"""What the variables of a test run begin with: a stack that outlives the run, or a migration, is no part of it."""


def root_of(folder: Path) -> Path:
    """The nearest project upward.

    :raises UsageError: there is none.
    """
    from devstack.settings import PROJECT_FILES, project_of

    if found := project_of(folder):
        return found
    raise UsageError(
        "no stack belongs to these tests",
        why=f"neither {folder}, pytest's rootdir, nor a folder above it has an {PROJECT_FILES[0]}",
        fix=f"put the project's {PROJECT_FILES[0]} there, or run pytest with --rootdir in the project",
    )


@contextlib.contextmanager
def surroundings() -> Iterator[None]:
    """For a while, an environment without what is not for us: libpq's variables, Python's, Invoke's, the run's own."""
    from devstack.inherited import take_out
    from devstack.settings import VARIABLE_PREFIXES

    gone = take_out(os.environ, (*VARIABLE_PREFIXES, *OF_THE_RUN))
    try:
        yield
    finally:
        os.environ.update(gone)


def open_project(rootdir: Path, env: str) -> Stack:
    """The stack of the project above ``rootdir``; of another environment if one is named. To be called in
    :func:`surroundings`' place: it reads the environment itself.

    :raises UsageError: there is no project, or a setting is wrong.
    """
    from invoke import Config, Context

    from devstack import trust
    from devstack.settings import Entry, check_expansion
    from devstack.stack import open_stack
    from devstack.variables import without_answers

    root = root_of(rootdir)
    trust.check(root, os.environ)
    # what `inv dev.exec -- pytest` has given is no setting
    environ = without_answers({k: v for k, v in os.environ.items() if not k.startswith(OF_THE_RUN)})
    if env:
        environ.pop("INVOKE_STACK_ENV", None)
        environ["NV_ENV"] = env
    config = Config()
    config.set_project_location(str(root))
    check_expansion(root)
    config.load_project()
    with surroundings():
        given = [Entry("stack.env", env, "--nv-env, or nv_env in pytest's settings", True)] if env else []
        return open_stack(Context(config), root, environ, given=given)


def stack_on(stack: Stack, database: str) -> Stack:
    """The same stack as if ``database`` were the application's: its variables, URLs and commands lead there."""
    import msgspec

    from devstack.stack import Stack

    settings = msgspec.structs.replace(stack.settings, db=msgspec.structs.replace(stack.settings.db, name=database))
    return Stack(stack.context, settings, stack.environ, stack.registry, looking=True)
