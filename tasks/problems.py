"""Convert exceptions of Invoke and Python to errors with a cause and a fix."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from pathlib import Path

from devstack.errors import StackError, UsageError
from devstack.mishaps import explain
from devstack.settings import PROJECT_FILES, check_files


def problem_of(error: BaseException, root: Path | None) -> StackError:
    """Return what went wrong, for people.

    :param root: the project's directory, whose files are looked at.
    """
    if isinstance(error, StackError):
        return error
    return _of_invoke(error, root) or explain(error) or _defect(error)


def _defect(error: BaseException) -> StackError:
    return StackError(
        f"{type(error).__name__}: {error}",
        fix="this is a defect of the tool; `inv --debug …` shows where, please report it with `inv dev.bundle`",
    )


def _of_invoke(error: BaseException, root: Path | None) -> UsageError | None:
    """Return the error for an exception that Invoke raised while it read configuration files or the command line; None
    for any other exception."""
    places = {
        (Path(frame.filename).name, frame.name)
        for frame in traceback.extract_tb(error.__traceback__)
        if "invoke" in Path(frame.filename).parts
    }
    if isinstance(error, ValueError) and ("argument.py", "set_value") in places:
        value = re.search("'.*'$", str(error))
        why = f"{value[0]} is not a whole number" if value else str(error)
        return UsageError("a flag's value is wrong", why=why, fix="inv --help TASK says what it takes")
    if "config.py" not in {file for file, _ in places} or type(error).__module__.startswith("invoke.vendor.yaml"):
        return None
    roots = [root] if root else []
    own = "".join(f"{folder / PROJECT_FILES[0]}, " for folder in roots)
    found = _problem_in(
        folder.with_suffix(f".{ending}")
        for folder in (Path("/etc/invoke"), Path.home() / ".invoke", *(folder / "invoke" for folder in roots))
        for ending in ("yaml", "yml", "json")
    )
    if found is None and any(name.startswith(("load_", "_load_")) for _, name in places):
        return UsageError(
            "Invoke can't take its configuration",
            why=_why(error),
            fix=f"look at {own}~/.invoke.yaml, /etc/invoke.yaml, and at the file of -f",
        )
    return found


def _problem_in(files: Iterable[Path]) -> UsageError | None:
    try:
        return check_files(files)
    except Exception as error:  # of YAML
        problem = explain(error)
        if not isinstance(problem, UsageError):
            raise
        return problem


def _why(error: BaseException) -> str:
    if type(error).__name__ == "AmbiguousMergeError":  # its text has both values, which may be secrets
        return "one of its files has keys below a name that another one gives a value"
    return str(error)
