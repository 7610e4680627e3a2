"""Tab completion: scripts for three shells, and the table of tasks and flags that they read.

Invoke's own completion runs ``inv --complete`` at each tab, which reads all tasks: a quarter of a second. Here the
shell asks ``candidates.sh``, which reads a table that is made anew when the tasks are newer: ten milliseconds, and
never out of date. The table comes from the live collection, so a task that is added needs nothing here.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from invoke import Collection, Config, Context
from invoke.parser.argument import Argument
from invoke.parser.context import ParserContext

from devstack.errors import StackError, UsageError

SHELLS = ("bash", "zsh", "fish")
HERE = Path(__file__).parent

BACKUPS = "@backups"
"""The names of the backups of the environment (``NV_ENV``), looked up when the key is pressed."""
ENVIRONMENTS = "@environments"

VALUES: dict[str, tuple[str, ...]] = {
    "--list-format": ("flat", "nested", "json"),
    "data.backup --format": ("sql", "custom", "directory"),
    "data.restore --file": (BACKUPS,),
    "data.verify --file": (BACKUPS, "latest"),
    "data.pin name": (BACKUPS, "latest"),
    "data.unpin name": (BACKUPS, "latest"),
    "data.schedule --every": ("daily", "hourly"),
    "dev.completion shell": SHELLS,
    "dev.env --format": ("shell", "dotenv", "json"),
    "dev.export --format": ("compose", "quadlet", "kubernetes"),
    "dev.load --only": ("db", "pgb", "api"),
    "dev.move --to": ("apple", "docker", "podman", "native"),
    **{f"{name}.logs --since": ("30s", "10m", "2h", "1d") for name in ("dev", "db", "pgb", "api")},
}
"""What a flag or an argument takes, where that can be said; elsewhere the shell offers files."""
NAMED = {"--env": (ENVIRONMENTS,)}
"""The same by the flag's name, whatever the task."""
WORDS = {("dev.init", "path")}
"""Flags whose value may be a word of its own."""


def answer(c: Context, shell: str) -> str:
    """The script for a shell, or for ``table`` what these scripts read.

    :raises UsageError: there is none for it.
    """
    if shell != "table":
        return script(shell, programs())
    from tasks import ns
    from tasks.runstate import state_of

    state = state_of(c)
    assert state.core
    contexts = {"": state.core[0], **{str(context.name): context for context in ns.to_contexts()}}
    root = state.root if state.has_root else Path.cwd()
    return table(ns, contexts, c.config, root, state.environ)


def script(shell: str, programs: list[str]) -> str:
    """The completion script for a shell.

    :raises UsageError: there is none for it.
    """
    if shell not in SHELLS:
        raise UsageError(f"there is no completion for the shell {shell!r}", fix="inv dev.completion bash, zsh or fish")
    candidates = (HERE / "candidates.sh").read_text(encoding="utf-8")
    quoted = shlex.quote(candidates)
    if shell == "fish":  # https://fishshell.com/docs/current/language.html#quotes
        quoted = "'" + candidates.replace("\\", "\\\\").replace("'", "\\'") + "'"
    text = (HERE / f"completion.{shell}").read_text(encoding="utf-8")
    return text.replace("@PROGRAMS@", " ".join(programs)).replace("@CANDIDATES@", quoted)


def programs() -> list[str]:
    """The names that the tasks are called by: Invoke's, and the project's own where it is installed."""
    return ["inv", "invoke", *(["nv"] if (Path(sys.executable).parent / "nv").exists() else [])]


def table(
    collection: Collection,
    contexts: Mapping[str, ParserContext],
    config: Config,
    root: Path,
    environ: Mapping[str, str],
) -> str:
    """What candidates.sh reads: folders, tasks, and the flags and arguments of each, with tabs between the columns.
    Those that all tasks have are under the empty name."""
    rows: list[tuple[str, ...]] = [("folder", "tasks", str(HERE.parent))]
    rows += [("folder", *row) for row in _folders(config, root, environ)]
    for name in collection.task_names:
        doc = (collection[name].__doc__ or "").strip().splitlines()
        rows.append(("task", name, doc[0] if doc else ""))
    for task, context in contexts.items():
        rows += _arguments(task, context)
    return "\n".join("\t".join(" ".join(cell.split()) for cell in row) for row in rows)


def _arguments(task: str, context: ParserContext) -> Iterator[tuple[str, ...]]:
    positional = {argument.name for argument in context.positional_args}
    for name in context.flag_names():
        inverse = name in context.inverse_flags
        argument: Argument = context.flags[context.inverse_flags[name] if inverse else name]
        takes = ("maybe" if argument.optional else "value") if argument.takes_value and not inverse else "nothing"
        values = _values(task, f"--{(argument.name or '').replace('_', '-')}")  # of -e as well
        yield "flag", task, name, takes, values, argument.help or ""
        if (argument.name in positional or (task, argument.name) in WORDS) and name.startswith("--"):
            yield "flag", task, str(argument.name), "word", _values(task, str(argument.name)), argument.help or ""


def _values(task: str, name: str) -> str:
    known: tuple[str, ...] = VALUES.get(f"{task} {name}".strip(), ())
    return " ".join(known or NAMED.get(name, ()))


def _folders(config: Config, root: Path, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Where the names of backups and environments are; nothing of the kind while a setting is wrong."""
    from devstack.paths import paths_of
    from devstack.settings import from_invoke

    try:
        settings = from_invoke(config, root, environ)
        xdg = {name: value for name, value in environ.items() if name.startswith("XDG_")}
        paths = paths_of(settings, home=Path.home(), xdg=xdg, uid=os.getuid())
    except (StackError, RuntimeError):
        return
    yield "environment", settings.stack.env
    yield "backups", str(settings.root / Path(settings.data.dir).expanduser())
    yield "environments", str(paths.state.parent)
