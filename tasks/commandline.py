"""Invoke's program with a table of contents, and an answer for who mistypes a task or a flag."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Collection as AnyOf
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from invoke import Collection, Exit, Program
from invoke.exceptions import ParseError
from invoke.parser import Parser, ParseResult
from invoke.parser.argument import Argument
from invoke.util import helpline

from devstack import console
from devstack.errors import FAILED, UsageError
from devstack.masking import hide_url_passwords
from devstack.wording import worded
from tasks.executor import StackExecutor
from tasks.problems import problem_of
from tasks.runstate import RunState, StackConfig, state_of


def _mask(record: Any) -> bool:
    """Hide URLs' passwords in what ``--debug`` logs: each word of the command line, and the settings."""
    record.msg, record.args = hide_url_passwords(record.getMessage()), None
    return True


def _mask_debug_logs() -> None:
    """Mask what is logged from here on. With ``INVOKE_DEBUG`` Invoke logs the command line before it reads any code of
    ours."""
    import logging

    for handler in logging.root.handlers:
        handler.addFilter(_mask)


class _Parser(Parser):
    """Invoke copies the flags of every task for each command, which takes as long as reading all tasks' modules: those
    of the tasks that are named are enough."""

    def parse_argv(self, argv: list[str]) -> ParseResult:
        named = {self.contexts[word].name: self.contexts[word] for word in argv if word in self.contexts}
        parsed: ParseResult = Parser(named.values(), self.initial).parse_argv(argv)
        return parsed


class StackProgram(Program):
    """Invoke's program, with three differences: wrong input ends with exit code 2 and the nearest valid name, lists
    have headings, and each typed task runs with its own pre- and post-tasks."""

    typed_name = "inv"
    """Name of the program on the command line."""
    owns_process = False
    """Whether the process ends with this command."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(executor_class=StackExecutor, config_class=StackConfig, **kwargs)

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:  # noqa: A002
        try:
            super().run(argv, exit)
        except Exception as error:
            self.explain(type(error), error, error.__traceback__)

    def explain(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Say what Invoke lets through in two lines, with ``--debug`` by its traceback; the last resort."""
        if issubclass(kind, KeyboardInterrupt):
            raise SystemExit(130)
        if issubclass(kind, BrokenPipeError):  # the reader of a pipe has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141)
        if any(flag in (self.argv or sys.argv) for flag in ("--debug", "-d")):
            traceback.print_exception(kind, error, trace)
            raise SystemExit(FAILED)
        with self._worded() as state:
            problem = problem_of(error, state.root if state.has_root else None)
            console.notes(problem.text())
        raise SystemExit(problem.code)

    @contextlib.contextmanager
    def _worded(self) -> Iterator[RunState]:
        """Word commands as the user types them; gives the state of the command."""
        config = getattr(self, "config", None)  # which can be what is wrong
        state = state_of(config) if config else RunState(os.environ)
        with worded(program=self.typed_name, environment=state.environment):
            yield state

    def take_path(self, tasks: AnyOf[str]) -> None:
        """Make ``dev.init PATH`` a flag: Invoke has no argument without one that may be left out."""
        given = self.core.unparsed
        if "dev.init" not in given:
            return
        for at in range(given.index("dev.init") + 1, len(given)):
            if given[at] in tasks:
                return
            if not given[at].startswith("-") and given[at - 1] not in ("--path", "--app", "--env", "-e"):
                given[at] = f"--path={given[at]}"
                return

    def parse_tasks(self) -> None:
        _mask_debug_logs()
        try:
            super().parse_tasks()
        except ParseError as error:
            raise self._explained(error) from None

    def _make_parser(self) -> Parser:
        whole = super()._make_parser()
        return _Parser(whole.contexts.values(), whole.initial)

    def parse_cleanup(self) -> None:
        namespace = self.args.list.value
        if isinstance(namespace, str) and namespace not in namespaces(self.collection):
            raise not_known(f"there is no namespace {namespace}", namespace, namespaces(self.collection), self._inv)
        try:
            super().parse_cleanup()
        except ParseError as error:  # of --help NAME
            raise self._explained(error) from None

    def print_task_help(self, name: str) -> None:
        """What a flag is when it is not given is said too; commands are those that the user types."""
        for argument in self.parser.contexts[name].args.values():
            if default := default_of(argument):
                argument.help = f"{argument.help} ({default} if not given)"
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            super().print_task_help(name)
        with self._worded():
            print(console.spoken(text.getvalue()), end="")

    def no_tasks_given(self) -> None:
        """``inv`` alone: a screen that says what there is."""
        print("\n".join(contents(self.collection, self._inv)))
        raise Exit

    def list_flat(self) -> None:
        if self.list_root or self.list_depth:
            super().list_flat()
        else:
            print("\n".join(listing(self.collection)))

    def execute(self) -> None:
        if self.owns_process:
            gc.freeze()
            gc.enable()  # tasks.py has turned it off
        state_of(self.config).words = self.argv[self.argv.index("--") + 1 :] if "--" in self.argv else []
        try:
            with worded(program=self.typed_name):
                super().execute()
        finally:
            if self.owns_process:
                # that nothing is looked through for cycles once more saves a command 25 ms
                gc.freeze()

    @property
    def _inv(self) -> str:
        """The program's name, as one would type it."""
        return self.called_as if re.fullmatch(r"[a-z]+", self.called_as) else "inv"

    def _explained(self, error: ParseError) -> UsageError:
        """What the parser could not take, in the form of our errors."""
        with self._worded():
            return self._understood(error)

    def _understood(self, error: ParseError) -> UsageError:
        said, name = str(error), (error.context.name if error.context else None) or ""
        if token := re.fullmatch(r"No idea what '(.*)' is!", said, re.DOTALL):
            return self._flag(token[1], name) if token[1].startswith("-") else self._task(token[1], name)
        see = f"{self._inv} --help {name}".rstrip()
        if missing := re.fullmatch(r"'.*' did not receive required positional arguments: (.*)", said):
            needed = missing[1].replace("'", "").upper()
            return UsageError(f"{name} needs {needed}", fix=[f"{self._inv} {name} {needed.replace(',', '')}", see])
        if flag := re.fullmatch(r"Flag <\w+: ([\w-]+).*> (needed value|doesn't take any value).*!", said):
            needs = "needs a value" if flag[2] == "needed value" else "takes no value"
            return UsageError(f"--{flag[1].replace('_', '-')} {needs}", fix=see)
        if word := re.match(r"'(.*)' is ambiguous", said):
            why = "the flag before it may have a value, so this could be that or a task"
            return UsageError(f"{word[1]} could mean two things", why=why, fix=f"write --flag={word[1]}; {see}")
        return UsageError(said, fix=see)

    def _task(self, word: str, after: str) -> UsageError:
        tasks, inside = list(self.parser.contexts), namespaces(self.collection)
        if word in inside:
            return UsageError(
                f"{word} is a namespace, not a task", fix=f"{self._inv} --list {word} shows what is in it"
            )
        why = f"what follows {after} is the next task; a value goes with its flag, as in --flag=VALUE"
        return not_known(
            f"there is no task {word}", word, tasks, self._inv, why=why if after and not nearest(word, tasks) else ""
        )

    def _flag(self, word: str, task: str) -> UsageError:
        core = self.initial_context.flag_names()
        if not task:
            return not_known(f"{self._inv} has no flag {word}", word, core, self._inv, see="--help shows all")
        own = self.parser.contexts[task].flag_names()
        others = [name for name, context in self.parser.contexts.items() if word in context.flags]
        return not_known(
            f"{task} has no flag {word}",
            word,
            [*own, *core],
            self._inv,
            why=f"it is a flag of {', '.join(others[:3])}" if others else "",
            see=f"--help {task} shows all",
        )


def default_of(argument: Argument) -> str:
    """What is taken without the flag, where that is a value; 0 and -1 stand for what the flag's help names."""
    value = argument.default
    return (
        ""
        if not value or isinstance(value, bool) or value == -1
        else f"{value:g}"
        if type(value) is float
        else str(value)
    )


def not_known(
    what: str, word: str, known: Iterable[str], inv: str, *, why: str = "", see: str = "--list shows all"
) -> UsageError:
    """The error on a word that there is not, with those that come near."""
    close = nearest(word, list(known))
    mean = f"did you mean {' or '.join(close)}?" if close else ""
    return UsageError(what, why=why, fix=list(filter(None, [mean, f"{inv} {see}"])))


def nearest(word: str, known: Sequence[str]) -> list[str]:
    """Up to three of the known words: those spelled with other marks (``dev-up``), those that end in it (``up``), or
    those that differ in a letter or two."""
    import difflib

    def plain(name: str) -> str:
        return re.sub("[._-]+", "-", name.lower()).strip("-")

    whole = {plain(name): name for name in known}
    if plain(word) in whole:
        return [whole[plain(word)]]
    last = [name for name in known if name.rpartition(".")[2] == word.lower()]
    if last:
        return last[:3]
    if close := difflib.get_close_matches(plain(word), whole, n=3, cutoff=0.75):
        return [whole[name] for name in close]
    ends = {plain(name.rpartition(".")[2]): name for name in reversed(known)}
    return [ends[name] for name in difflib.get_close_matches(plain(word), ends, n=1, cutoff=0.75)]


def namespaces(collection: Collection) -> list[str]:
    """The names that tasks are below."""
    return list(collection.collections)


def contents(collection: Collection, inv: str) -> list[str]:
    """A table of contents that fits into 24 lines of 80 columns."""
    columns = min(shutil.get_terminal_size().columns, 100)
    lines = [f"Usage: {inv} [options] TASK [flags] [TASK [flags] ...]", ""]
    wide = max(len(name) for name in collection.collections) + 2
    for name, below in collection.collections.items():
        verbs = textwrap.wrap(" ".join(below.tasks), columns - wide - 2, break_long_words=False, break_on_hyphens=False)
        lines += [
            f"  {name + '.':<{wide}}{line}" if not i else f"{'':<{wide + 2}}{line}" for i, line in enumerate(verbs)
        ]
    width = max(len(name) for name in collection.tasks)
    lines += ["", *(f"  {name:<{width}}  {helpline(task)}" for name, task in collection.tasks.items())]
    ways = {
        f"{inv} --list": "every task, and what it does",
        f"{inv} --help TASK": "the flags of a task",
        f"{inv} --help": "the options that every task has, such as --dry and --debug",
    }
    width = max(map(len, ways))
    return [*lines, "", *(f"{way:<{width}}  {what}" for way, what in ways.items())]


def listing(collection: Collection) -> list[str]:
    """Every task below the heading of its namespace, in the order of a day's work rather than the alphabet."""
    groups: list[tuple[str, dict[str, Any]]] = [
        *(
            (helpline(below) or name, {f"{name}.{verb}": task for verb, task in below.tasks.items()})
            for name, below in collection.collections.items()
        ),
        ("Health and the machine", dict(collection.tasks)),
    ]
    names = [name for _, tasks in groups for name in tasks]
    width = max(map(len, names))
    lines = []
    for title, tasks in groups:
        lines += [title, *(f"  {name:<{width}}  {helpline(task) or ''}".rstrip() for name, task in tasks.items()), ""]
    return lines[:-1]
