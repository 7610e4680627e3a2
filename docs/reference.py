"""docs/tasks/: a page for each namespace, from the tasks themselves and from what calls them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from invoke import Collection, Task
from invoke.parser.argument import Argument
from invoke.parser.context import ParserContext
from invoke.util import helpline

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGE = "root"
MADE = "<!-- Made from the tasks by `make docs`: what is changed here is lost. -->"


def pages(collection: Collection) -> dict[str, str]:
    """The text of each page by its name in docs/tasks, the index among them."""
    names = {task: name for name in collection.task_names for task in [collection[name]]}
    contexts = {str(context.name): context for context in collection.to_contexts()}
    aliases = _aliases()
    groups: list[tuple[str, str, dict[str, Any]]] = [
        *(
            (name, helpline(below) or name, {f"{name}.{verb}": task for verb, task in below.tasks.items()})
            for name, below in collection.collections.items()
        ),
        (ROOT_PAGE, "Health and the machine", dict(collection.tasks)),
    ]
    made = {"README.md": _index(groups)}
    for page, title, tasks in groups:
        lines = [MADE, f"# {title}", "", *_table(tasks)]
        for name, task in tasks.items():
            lines += ["", f"## {name}", "", *_task(name, task, contexts[name], names, aliases.get(name, []))]
        made[f"{page}.md"] = "\n".join(lines) + "\n"
    return made


def _index(groups: list[tuple[str, str, dict[str, Any]]]) -> str:
    lines = [
        MADE,
        "# All tasks",
        "",
        "`inv TASK` runs one, `inv --help TASK` shows what is said here, `make TARGET` is the same where a target is",
        'named beside it (flags go in `ARGS="…"`). Several run one after the other: `inv data.backup dev.down`.',
        "",
        "Before the task's name, for every one: `--dry` shows the commands and runs none, `--echo` shows them as they",
        "run, `--debug` shows where something fails. Exit codes: 0, 1 (failed, or not healthy), 2 (a flag or a setting",
        "is wrong).",
    ]
    for page, title, tasks in groups:
        lines += ["", f"## [{title}]({page}.md)", "", *_table(tasks, f"{page}.md")]
    return "\n".join(lines) + "\n"


def _table(tasks: dict[str, Any], page: str = "") -> list[str]:
    rows = [f"| [`{name}`]({page}#{_slug(name)}) | {_cell(helpline(task) or '')} |" for name, task in tasks.items()]
    return ["| | |", "|---|---|", *rows]


def _task(
    name: str, task: Task[Any], context: ParserContext, names: dict[Task[Any], str], aliases: list[str]
) -> Iterator[str]:
    from tasks.commandline import default_of

    yield from (_plain(line) for line in (inspect.getdoc(task) or "").splitlines())
    arguments = [a for a in context.args.values() if a.name not in {p.name for p in context.positional_args}]
    words = [str(a.name).upper() for a in context.positional_args]
    yield from ("", f"    {' '.join(['inv', name, *words, *(['[flags]'] if arguments else [])])}")
    if aliases:
        yield from ("", f"The same: {', '.join(f'`{alias}`' for alias in aliases)}")
    if words or arguments:
        yield from ("", "| flag | default | |", "|---|---|---|")
    for argument in context.positional_args:
        yield f"| `{str(argument.name).upper()}` | | {_cell(argument.help or '')} |"
    for argument in arguments:
        default = default_of(argument)
        yield f"| {_flag(argument, context)} | {f'`{default}`' if default else ''} | {_cell(argument.help or '')} |"
    order = list(dict.fromkeys(_step(one, names) for one in _in_order(task)))
    if len(order) > 1:
        yield from ("", f"In this order: {' → '.join(order)}")


def _flag(argument: Argument, context: ParserContext) -> str:
    """Its long name, what it takes, its other names."""
    long, *others = sorted((_dashed(name) for name in argument.names), key=len, reverse=True)
    takes = {int: "N", float: "N"}.get(argument.kind, "TEXT") if argument.takes_value else ""
    value = f"[={takes}]" if takes and argument.optional else f" {takes}" if takes else ""
    inverse = [name for name, of in context.inverse_flags.items() if of in (long, *others)]
    return ", ".join([f"`{long}{value}`", *(f"`{name}`" for name in [*others, *inverse])])


def _dashed(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"


def _in_order(task: Task[Any]) -> list[Task[Any]]:
    """The task with what runs before and after it, each once, as Invoke's executor does it."""

    def walk(one: Any) -> Iterator[Task[Any]]:
        called = getattr(one, "task", one)
        for before in called.pre:
            yield from walk(before)
        yield called
        for after in called.post:
            yield from walk(after)

    return list(dict.fromkeys(walk(task)))


def _step(task: Task[Any], names: dict[Task[Any], str]) -> str:
    if task in names:
        return f"`{names[task]}`"
    if re.match(r"(pre|post)_", task.name):
        return f"hook `{task.name}`"
    said = (inspect.getdoc(task) or task.name).splitlines()[0].rstrip(".")
    return _plain(said[0].lower() + said[1:])


def _aliases() -> dict[str, list[str]]:
    """The make targets and scripts of each task, with the flags that a script adds."""
    found: dict[str, list[str]] = {}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = dict(re.findall(r"^([a-z-]+): +TASK = (\S+)", makefile, re.MULTILINE))
    project = set(re.findall(r"^PROJECT := (.*)", makefile, re.MULTILINE)[0].split())
    for target in re.findall(r"^([a-z-]+): *##", makefile, re.MULTILINE):
        if target not in project:
            found.setdefault(named.get(target, target.replace("-", ".")), []).append(f"make {target}")
    for script in sorted((ROOT / "scripts").glob("*.sh")):
        if task := re.search(r'/_task\.sh" (\S+)( .+)? "\$@"$', script.read_text(encoding="utf-8"), re.MULTILINE):
            note = f" (with {task[2].strip()})" if task[2] else ""
            found.setdefault(task[1], []).append(f"scripts/{script.name}{note}")
    return found


def _plain(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text)


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9-]", "", name.lower())
