"""Where a profile is written to, and the progress that is shown until it is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.console import progress_bar
from devstack.errors import StackError, UsageError

if TYPE_CHECKING:
    from devstack.stack import Stack

MODE = 0o600
"""Of what is written: statements and their plans hold values out of the database."""


def destination(stack: Stack, output: str, kind: str, suffix: str, now: datetime) -> Path:
    """A file that is not there yet: the one that was asked for, in the folder that was asked for, or in that of logs.

    :raises UsageError: the file is there already, or its folder is not.
    """
    path = Path(output).expanduser().absolute() if output else stack.paths.log
    if output and not path.is_dir():
        if not path.parent.is_dir():
            raise UsageError(f"--output {output}: there is no folder {path.parent}", fix="make it, or name another")
        if os.path.lexists(path):
            raise UsageError(f"--output {output}: it is there already", fix="name another file, or leave out --output")
        return path
    name = f"nv-{kind}-{now:%Y%m%d-%H%M%SZ}"
    names = [f"{name}{suffix}", *(f"{name}-{n}{suffix}" for n in range(2, 100))]
    for candidate in (path / name for name in names):
        if not os.path.lexists(candidate):
            return candidate
    raise UsageError(f"{path} has a hundred files of this second", fix="name a file: --output FILE")


def write(stack: Stack, path: Path, content: str) -> None:
    """Write a profile whole, or not at all.

    :raises StackError: it could not be written.
    """
    try:
        if not path.parent.is_dir():
            stack.context.host.make_dir(path.parent, 0o755)
        stack.context.host.write_file(path, content.encode(), MODE, replace=False)
    except OSError as error:
        raise StackError(
            f"{path} can't be written", why=error.strerror or str(error), fix="name a file elsewhere: --output FILE"
        ) from None


@contextlib.contextmanager
def progress(what: str, seconds: float) -> Iterator[Callable[[float], None]]:
    """Show a progress bar over a number of seconds. Yield a function that takes the seconds passed so far."""
    form = "{desc} {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s"
    with progress_bar(what, seconds, bar_format=form, dynamic_ncols=True) as add:
        shown = 0.0

        def show(passed: float) -> None:
            nonlocal shown
            add(min(passed, seconds) - shown)
            shown = min(passed, seconds)

        yield show
