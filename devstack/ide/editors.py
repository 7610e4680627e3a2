"""What is done for the editors that are asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.errors import UsageError
from devstack.ide import files, jetbrains, vscode
from devstack.ide.files import Plan
from devstack.ide.project import Project, debug_variables, variables_text

if TYPE_CHECKING:
    from devstack.stack import Stack

EDITORS = {"vscode": vscode.plans, "jetbrains": jetbrains.plans}


def planned(stack: Stack, editors: Sequence[str], folder: str = "") -> list[Plan]:
    """What is to be in the files of these editors, for the folder that they have open: the project's unless given.

    :raises UsageError: a file can't be understood, or the folder is not there.
    """
    place = Path(os.path.abspath(Path(folder).expanduser())) if folder else stack.settings.root
    if not place.is_dir():
        raise UsageError(f"{place} is no folder", why="--folder names it", fix="name the folder that the editor opens")
    project = Project(stack, place)
    plans = [plan for editor in editors for plan in EDITORS[editor](project)]
    root = stack.settings.root
    for plan in plans:
        # where somebody else could exchange the file that is written
        stack.context.host.check_closed(plan.path.parent, "an editor's files", setting="--folder", root=root)
        # a repository may have brought the link
        if not (target := Path(os.path.realpath(plan.path))).is_relative_to(os.path.realpath(place)):
            raise UsageError(
                f"{plan.path} leads out of {place}",
                why=f"it would be {target} that is written; no file was changed",
                fix="replace the link by a file of its own",
            )
    return plans


def write(stack: Stack, plans: Sequence[Plan]) -> None:
    """Write what changes, and the variables that launch configurations refer to; nothing in a dry run."""
    if stack.context.dry:
        return
    files.write(plans, lambda path, content, mode: stack.context.host.write_file(path, content, mode))
    write_variables(stack)


def write_variables(stack: Stack) -> Path:
    """The application's variables with their secrets: in the state folder, for their owner alone."""
    project = Project(stack, stack.settings.root)
    stack.context.write_file(project.variables, variables_text(debug_variables(stack)))
    return project.variables
