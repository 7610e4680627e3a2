"""What the tasks of one ``inv`` command share: the environment as it was, and the stack."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from invoke import Context

from devstack import console
from devstack.errors import FAILED, StackError, UsageError, speak_for
from devstack.files import read_regular
from devstack.mishaps import explain as explain_mishap
from devstack.settings import PROJECT_FILES, VARIABLE_PREFIXES, Entry, check_files, project_of

if TYPE_CHECKING:
    from invoke import Config

    from devstack.settings import Settings
    from devstack.stack import Stack
    from devstack.tolerance import Tolerance

CHECKOUT = Path(__file__).resolve().parent.parent
_root = [CHECKOUT]
_environ: dict[str, str] = {}
_named: list[str] = []
"""The environment that a flag names."""
_stack: list[Stack] = []
_broken: list[tuple[UsageError, str]] = []
"""Why the project's settings are not read, and their text."""
_distrusted: list[UsageError] = []
"""Why the project was not trusted when its settings were to be loaded, which they were not."""
_tolerant: list[bool] = []
_said: list[bool] = []
"""Whether it was said what this command goes on without."""


def take_environment(environ: Mapping[str, str]) -> None:
    """Keep the environment as it is."""
    from devstack.variables import without_answers

    _environ.update(without_answers(environ))
    speak_for(_environ.get("INVOKE_STACK_ENV") or _environ.get("NV_ENV") or "")


def clean_environment(environ: MutableMapping[str, str]) -> None:
    """Take out what this process and what it starts would misread, when a command begins to run.

    Invoke casts the variables of our settings by their default's type (``false`` becomes true) and ends in a
    traceback when it can't; the variables of libpq would lead psycopg2 and psql elsewhere, or break them, and those
    of Python every interpreter that is started.
    """
    from devstack.inherited import take_out

    take_out(environ, VARIABLE_PREFIXES)


def heed_the_terminal() -> None:
    """Have the loss of a terminal on a host end a task as Ctrl-C does: it puts things right first."""
    if _environ.get("NV_ON_HOST"):
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def name_environment(name: str) -> None:
    """Take the environment that a task's flag names, for all tasks of this command, and for what hooks run.

    :raises UsageError: another flag has named another one.
    """
    if _named and _named[0] != name:
        raise UsageError(
            f"one command is for one environment, not for {_named[0]} and {name}",
            fix="give -e once, or each environment a command of its own",
        )
    _named[:] = [name]
    speak_for(name)
    _environ["NV_ENV"] = name
    _environ.pop("INVOKE_STACK_ENV", None)


def named() -> str:
    """The environment that a flag names; empty without one."""
    return _named[0] if _named else ""


def given() -> list[Entry]:
    """The settings that flags have named: they win over all others."""
    return [Entry("stack.env", name, "the flag -e", True) for name in _named]


def environment() -> Mapping[str, str]:
    """The environment that ``inv`` was called with, without what the stack itself had answered."""
    return _environ


def work_in(folder: Path) -> None:
    """Have the nearest project of a folder instead of this checkout."""
    found = project_of(folder)
    _root[:] = [found] if found else []


def root() -> Path:
    """The project's folder.

    :raises UsageError: no folder has a file of settings.
    """
    if not _root:
        raise UsageError(
            f"there is no invoke.yaml in {Path.cwd()}, nor in a folder above it",
            why="it says which application this is",
            fix="write one: inv dev.init",
        )
    return _root[0]


def has_root() -> bool:
    """Whether there is a project."""
    return bool(_root)


def distrust() -> UsageError | None:
    """Return why the project's files are not obeyed; None if they are."""
    from devstack import trust

    try:
        trust.check(root(), _environ)
    except UsageError as error:
        return error
    return None


def not_loaded() -> UsageError | None:
    """Return why the project's settings were not loaded, whatever is there by now; None if they were."""
    return _distrusted[0] if _distrusted else None


def load_project(config: Config, load: Callable[[], None]) -> None:
    """Load the project's settings, if it is trusted. What is wrong with the file is kept: a command that stops,
    inspects or backs up what runs may go on without it.

    It is judged before: what is not trusted could be exchanged after it was loaded, what is trusted by nobody else.
    """
    problem = distrust()
    _distrusted[:] = [problem] if problem else []
    if problem:
        return
    try:
        load()
    except (OSError, KeyboardInterrupt):
        raise  # who owns it, and whether it says which environment is meant, is not known
    except Exception as error:
        fault = problem_of(error, error.__traceback__)
        if not isinstance(fault, UsageError):
            raise
        path = next((path for name in PROJECT_FILES if (path := root() / name).is_file()), root())
        try:
            text = read_regular(path).decode("utf-8", errors="replace")
        except OSError:
            raise error from None
        _broken[:] = [(fault, text)]
        for name, value in (("_project", {}), ("_project_path", None), ("_project_found", False)):
            object.__setattr__(config, name, value)
        config.merge()


def tolerate(tolerant: bool) -> None:
    """Take whether this command goes on while a setting is wrong.

    :raises UsageError: it does not, and the project's file can't be read.
    """
    _tolerant[:] = [tolerant]
    if _broken and not tolerant:
        raise _broken[0][0]


def tolerance() -> Tolerance | None:
    """Return what a command that goes on while a setting is wrong knows; None for another one."""
    from devstack.tolerance import Tolerance

    if not (_tolerant and _tolerant[0]):
        return None
    return Tolerance(*_broken[0]) if _broken else Tolerance()


def say_wrong(settings: Settings) -> None:
    """Say, once for each command, which settings it goes on without."""
    if settings.wrong and not _said:
        from devstack.tolerance import note

        _said.append(True)
        console.note(note(settings.wrong))


def take_path(given: list[str], tasks: Collection[str]) -> None:
    """Make ``dev.init PATH`` a flag, in place: Invoke has no argument without one that may be left out."""
    if "dev.init" not in given:
        return
    for at in range(given.index("dev.init") + 1, len(given)):
        if given[at] in tasks:
            return
        if not given[at].startswith("-") and given[at - 1] not in ("--path", "--app", "--env", "-e"):
            given[at] = f"--path={given[at]}"
            return


def words() -> list[str]:
    """The words after ``--``, which Invoke 2 joins to one."""
    return sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []


def stack(c: Context, *, looking: bool = False, begins: bool = True) -> Stack:
    """The stack of this command: made once, so that a task and its pre-tasks share the lock and the timings.
    A task that only looks gets one that makes nothing, not even folders; so does one that reports (not ``begins``) on
    an environment that there is not, which may be a slip of the pen."""
    from devstack.stack import open_stack

    if _stack:
        return _stack[0]
    found = open_stack(c, root(), _environ, looking=looking, begins=begins, given=given(), tolerance=tolerance())
    say_wrong(found.settings)
    if found.looking:
        return found
    _stack.append(found)
    if found.paths.window.exists():
        from devstack.profiling import explain

        explain.put_right(found)
    return found


def on(c: Context, runtime: str) -> Stack:
    """The same environment on a runtime, whatever it is on now."""
    from devstack.stack import open_stack

    return open_stack(c, root(), _environ, runtime=runtime, given=given())


def afresh(c: Context, *, looking: bool = False) -> Stack:
    """The stack of this command as its files are now; one that is only looked at makes nothing.

    :raises UsageError: one of them can't be used.
    """
    from devstack.stack import open_stack

    if problem := distrust() or check_files(root() / name for name in PROJECT_FILES):
        raise problem
    path = object.__getattribute__(c.config, "_runtime_path")
    config = configuration({"run": {"echo": c.config.run.echo}}, runtime=path)
    return open_stack(Context(config), root(), _environ, looking=looking, given=given())


def configuration(overrides: dict[str, Any], *, runtime: Any, **values: Any) -> Config:
    """Return Invoke's configuration of the project, with the file of ``-f``; ``values`` that are not None win.

    :raises UsageError: the project is not trusted.
    """
    from invoke import Config

    given = {name: value for name, value in values.items() if value is not None}
    config = Config(overrides={**overrides, **given}, project_location=root(), runtime_path=runtime)
    load_project(config, config.load_project)
    if problem := not_loaded():
        raise problem
    config.load_runtime()
    return config


def problem_of(error: BaseException, trace: TracebackType | None) -> StackError:
    """What went wrong, for people."""
    return _of_invoke(error, trace) or explain_mishap(error) or _defect(error)


def _defect(error: BaseException) -> StackError:
    return StackError(
        f"{type(error).__name__}: {error}",
        fix="this is a defect of the tool; `inv --debug …` shows where, please report it with `inv dev.bundle`",
    )


def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The last resort: what Invoke lets through, in two lines; the traceback with ``--debug``."""
    if issubclass(kind, KeyboardInterrupt):
        raise SystemExit(130)
    if issubclass(kind, BrokenPipeError):  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141)
    if any(flag in sys.argv for flag in ("--debug", "-d")):
        traceback.print_exception(kind, error, trace)
        raise SystemExit(FAILED)
    problem = problem_of(error, trace)
    console.note(problem.text())
    raise SystemExit(problem.code)


def _of_invoke(error: BaseException, trace: TracebackType | None) -> UsageError | None:
    """What Invoke trips over when it reads its configuration files and the command line."""
    places = {
        (Path(frame.filename).name, frame.name)
        for frame in traceback.extract_tb(trace)
        if "invoke" in Path(frame.filename).parts
    }
    if isinstance(error, ValueError) and ("argument.py", "set_value") in places:
        value = re.search("'.*'$", str(error))
        why = f"{value[0]} is not a whole number" if value else str(error)
        return UsageError("a flag's value is wrong", why=why, fix="inv --help TASK says what it takes")
    if "config.py" not in {file for file, _ in places} or type(error).__module__.startswith("invoke.vendor.yaml"):
        return None
    own = "".join(f"{folder / PROJECT_FILES[0]}, " for folder in _root)
    found = _problem_in(
        folder.with_suffix(f".{ending}")
        for folder in (Path("/etc/invoke"), Path.home() / ".invoke", *(folder / "invoke" for folder in _root))
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
        problem = explain_mishap(error)
        if not isinstance(problem, UsageError):
            raise
        return problem


def _why(error: BaseException) -> str:
    if type(error).__name__ == "AmbiguousMergeError":  # its text has both values, which may be secrets
        return "one of its files has keys below a name that another one gives a value"
    return str(error)


def have_streams() -> None:
    """Where the caller closed a stream, what goes there is lost, but nothing fails for it; nor for a character that
    the stream can't have, which is shown escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
