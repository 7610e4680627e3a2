"""What editors need to know of a stack."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack.services.api import Api
from devstack.templates import CHECKOUT

if TYPE_CHECKING:
    from devstack.stack import Stack

MARK = "nv-devstack"
"""Is in every entry that this tool makes: one of the same name without it is somebody's own."""
DEBUG_PORT = 5678
"""The usual one of debugpy."""


class Command(Struct, frozen=True):
    """Something that an editor offers to run."""

    name: str
    words: tuple[str, ...]
    """After the program."""
    about: str
    env: Mapping[str, str]


class Project(Struct, frozen=True):
    """A stack, as seen from the folder that the editor has open."""

    stack: Stack
    folder: Path

    @property
    def program(self) -> tuple[str, ...]:
        """What runs the tasks, to be called in the project's folder: only the checkout has them there for ``inv``."""
        if self.root == CHECKOUT:
            return sys.executable, "-m", "invoke"
        # not `python -m`, which would look into that folder first: it may have a tasks.py of its own
        return (str(Path(sys.executable).parent / "nv"),)

    @property
    def root(self) -> Path:
        return self.stack.settings.root

    @property
    def api(self) -> Api:
        """The application as it would run on this machine, also where it runs in a container."""
        return api_here(self.stack)

    @property
    def contained(self) -> bool:
        return self.stack.context.runtime.contained

    @property
    def prefix(self) -> str:
        """What the names of entries begin with: each environment has its own."""
        env = self.stack.settings.stack.env
        return "nv" if env == "dev" else f"nv {env}"

    def name(self, text: str) -> str:
        return f"{self.prefix}: {text}"

    @property
    def variables(self) -> Path:
        """The application's variables, for a debugger that starts it: outside of the project, for its owner alone."""
        return self.stack.paths.config / "ide.env"

    @property
    def debug_port(self) -> int:
        return self.stack.settings.api.debug_port or DEBUG_PORT

    def path(self, path: Path | str, open_folder: str) -> str:
        """A path for the editor's files: from the folder it has open if it is in there, so that they can be shared."""
        place = Path(path)
        if place == self.folder:
            return open_folder
        return f"{open_folder}/{place.relative_to(self.folder)}" if place.is_relative_to(self.folder) else str(place)

    def command(self, name: str, words: str, about: str, **env: str) -> Command:
        own = self.stack.settings.stack.env
        return Command(
            self.name(name),
            tuple(words.split()),
            about,
            {**({"NV_ENV": own} if own != "dev" else {}), **env},
        )

    @property
    def commands(self) -> list[Command]:
        return [
            self.command("up", "dev.up", "start the stack"),
            self.command("down", "dev.down", "stop the stack; the data stay"),
            self.command("restart", "dev.restart", "stop and start the stack"),
            self.command("health", "health", "is everything well, and if not: why"),
            self.command("logs", "dev.logs --follow", "all logs, followed"),
            self.command("migrate", "data.migrate", "apply the application's migrations"),
        ]

    @property
    def listen(self) -> Command:
        """Have the running application listen for a debugger; nothing changes if it does."""
        port = str(self.debug_port)
        return self.command(
            "let a debugger in", "dev.up", "the stack with a debugger's port", INVOKE_API_DEBUG_PORT=port
        )

    @property
    def make_room(self) -> Command:
        """The database and PgBouncer up, the application's port free, its variables written."""
        words = "pgb.start api.stop dev.ide --variables"
        return self.command("make room for the debugger", words, "the stack without its application")

    @property
    def debugging(self) -> list[Command]:
        """What goes before a debugger; in a container none finds the running application."""
        return [self.make_room] if self.contained else [self.listen, self.make_room]

    @property
    def uvicorn(self) -> list[str]:
        """The arguments of uvicorn. Its own reloader is fine below a debugger, which follows into the new process."""
        words = self.api.server_words()
        return [*words, "--reload", "--reload-dir", str(self.api.folder)] if self.api.settings.api.reload else words


def variables_text(env: Mapping[str, str]) -> str:
    """Lines of an .env file, as VS Code's and PyCharm's readers and python-dotenv take them."""
    return "".join(f"{name}={_quoted(value)}\n" for name, value in sorted(env.items()))


def _quoted(value: str) -> str:
    if "'" not in value and "\n" not in value:
        return f"'{value}'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def api_here(stack: Stack) -> Api:
    return Api(stack.context, stack.settings, stack.api.credentials)


def debug_variables(stack: Stack) -> dict[str, str]:
    """What the application gets from the stack, for whoever starts it in its place on this machine."""
    env = api_here(stack).environment()
    return {name: value for name, value in env.items() if name != "PATH"}
