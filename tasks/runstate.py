"""State of one command.

A :class:`RunState` is made with the configuration of a command and hangs on it, as a private attribute: a key would be
copied. So every task, and whatever has its context or configuration, finds it with :func:`state_of`. No module holds
state from one task or command to the next.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke import Config, Context

from devstack.errors import UsageError
from devstack.files import read_regular
from devstack.settings import PROJECT_FILES, Entry, check_expansion
from tasks.problems import problem_of

if TYPE_CHECKING:
    from invoke.parser import ParseResult
    from invoke.parser.context import ParserContext

    from devstack.stack import Stack
    from devstack.tolerance import Tolerance
    from tasks.replacement import Restore

CHECKOUT = Path(__file__).resolve().parent.parent


class RunState:
    """What the tasks of one command share."""

    def __init__(self, environ: Mapping[str, str], root: Path | None = CHECKOUT) -> None:
        """
        :param environ: environment that the command was called with.
        :param root: the project's directory; None if there is none.
        """
        from devstack.variables import without_answers

        self.environ = without_answers(environ)
        """The environment of the command, without what the stack itself had answered."""
        self._root = root
        self.untrusted: UsageError | None = None
        """Reason why the project's settings were not loaded, whatever is there by now."""
        self.broken: tuple[UsageError, str] | None = None
        """Reason why the project's settings can't be read, and their text."""
        self.tolerant = False
        """Whether the command goes on while a setting is wrong."""
        self.told_wrong = False
        """Whether the settings were named that the command goes on without."""
        self.env = ""
        """Environment that the flag -e names."""
        self.host = ""
        """Host that ``fab -H`` names."""
        self.core: ParseResult | None = None
        """Parsed flags of the program itself."""
        self.words: list[str] = []
        """Words after ``--``."""
        self.typed: list[str] = []
        """Names of all tasks of the command line."""

        # what belongs to one task of the command line, with its pre- and post-tasks
        self.flags: dict[str, Any] = {}
        """Flags of the typed task, for its pre- and post-tasks, which get none."""
        self.stack: Stack | None = None
        """The stack, once it is opened to be changed: shared for its lock and its timings."""
        self.restore: Restore | None = None
        """What ``data.restore`` is to do."""

    def anew(self) -> RunState:
        """Return the state for another configuration of the same project and environment."""
        return RunState(self.environ, self._root)

    @contextlib.contextmanager
    def task(self, typed: ParserContext) -> Iterator[None]:
        """Run a task of the command line: it hands nothing on to the next one, and leaves its locks and questions."""
        self.flags = typed.as_kwargs
        try:
            yield
        finally:
            stack, self.flags, self.stack, self.restore = self.stack, {}, None, None
            if stack:
                stack.context.withdraw(engine=True)
                with contextlib.suppress(OSError):
                    stack.lock.release()
                    stack.data_lock.release()

    # environment

    def name_environment(self, names: Sequence[str]) -> None:
        """Take the environment that the tasks' flags name, for the whole command and for what hooks run.

        :raises UsageError: they name several.
        """
        for name in names:
            if self.env not in ("", name):
                raise UsageError(
                    f"one command is for one environment, not for {self.env} and {name}",
                    fix="give -e once, or each environment a command of its own",
                )
            self.env = name
            self.environ["NV_ENV"] = name
            self.environ.pop("INVOKE_STACK_ENV", None)

    @property
    def environment(self) -> str:
        """Environment that the command names; empty for the default one."""
        return self.environ.get("INVOKE_STACK_ENV") or self.environ.get("NV_ENV") or ""

    @property
    def given(self) -> list[Entry]:
        """Settings that flags have named: they win over all others."""
        return [Entry("stack.env", self.env, "the flag -e", True)] if self.env else []

    # project

    def work_in(self, root: Path | None) -> None:
        """Take the project's directory; None if there is none."""
        self._root = root

    @property
    def has_root(self) -> bool:
        """Whether there is a project."""
        return self._root is not None

    @property
    def root(self) -> Path:
        """The project's directory.

        :raises UsageError: no directory has a file of settings.
        """
        if self._root is None:
            raise UsageError(
                f"there is no invoke.yaml in {Path.cwd()}, nor in a folder above it",
                why="it says which application this is",
                fix="write one: inv dev.init",
            )
        return self._root

    def distrust(self) -> UsageError | None:
        """Return why the project's files are not obeyed; None if they are."""
        from devstack import trust

        try:
            trust.check(self.root, self.environ)
        except UsageError as error:
            return error
        return None

    def load_project(self, config: Config, load: Callable[[], None]) -> None:
        """Load the project's settings, if it is trusted. What is wrong with the file is kept: a command that stops,
        inspects or backs up what runs may go on without it.

        It is judged before: what is not trusted could be exchanged after it was loaded, what is trusted by nobody else.
        """
        self.untrusted = self.distrust()
        if self.untrusted:
            return
        try:
            check_expansion(self.root)
            load()
        except (OSError, KeyboardInterrupt):
            raise  # who owns it, and whether it says which environment is meant, is not known
        except Exception as error:
            fault = error if isinstance(error, UsageError) else problem_of(error, self._root)
            if not isinstance(fault, UsageError):
                raise
            path = next((path for name in PROJECT_FILES if (path := self.root / name).is_file()), self.root)
            try:
                text = read_regular(path).decode("utf-8", errors="replace")
            except OSError:
                raise error from None
            self.broken = (fault, text)
            for name, value in (("_project", {}), ("_project_path", None), ("_project_found", False)):
                object.__setattr__(config, name, value)
            config.merge()

    def tolerate(self, tolerant: bool) -> None:
        """Take whether the command goes on while a setting is wrong.

        :raises UsageError: it does not, and the project's file can't be read.
        """
        self.tolerant = tolerant
        if self.broken and not tolerant:
            raise self.broken[0]

    @property
    def tolerance(self) -> Tolerance | None:
        """What a command that goes on while a setting is wrong knows; None for another one."""
        from devstack.tolerance import Tolerance

        if not self.tolerant:
            return None
        return Tolerance(*self.broken) if self.broken else Tolerance()


class StackConfig(Config):
    """Invoke's configuration, with the state of the command. Copies of it, such as Fabric's connections make, share
    the state."""

    _run_state: RunState

    def __init__(self, *args: Any, run_state: RunState | None = None, **kwargs: Any) -> None:
        self._set(_run_state=run_state or RunState(os.environ))
        super().__init__(*args, **kwargs)

    @classmethod
    def adopt(cls, config: Config) -> None:
        """Give a state to a configuration that was made before any code of ours was read; Invoke's own becomes one of
        this class."""
        if type(config) is Config:
            object.__setattr__(config, "__class__", cls)
        object.__setattr__(config, "_run_state", RunState(os.environ))

    def load_project(self, merge: bool = True) -> None:
        """Load the project's settings, if it is trusted."""
        self._run_state.load_project(self, partial(super().load_project, merge))

    def clone(self, into: type[Config] | None = None) -> Config:
        """Return a copy with the same state, of whatever class."""
        copy = super().clone(into)
        object.__setattr__(copy, "_run_state", self._run_state)
        return copy


def state_of(c: Context | Config) -> RunState:
    """Return the state of the command that a context or a configuration belongs to."""
    state: RunState = object.__getattribute__(c.config if isinstance(c, Context) else c, "_run_state")
    return state
