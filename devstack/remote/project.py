"""A project on its host: its files there, its tasks run there."""

from __future__ import annotations

import getpass
import platform
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct

from devstack.errors import StackError
from devstack.remote import files, terminal
from devstack.remote.link import Link
from devstack.remote.talk import LONGEST, Outgoing, Talk, command, exit_code_of, starter
from devstack.settings import Settings
from devstack.templates import CHECKOUT

RUNNER = "import json,os,sys;p=sys.argv[1];c=json.load(open(p));os.unlink(p);os.chdir(c['folder'])"
RUNNER += ";print(os.getpid(),file=open(p+'.pid','w'));os.execve(c['argv'][0],c['argv'],c['env'])"
"""Runs the command that the agent left, with a terminal: neither it nor its variables are in a list of processes."""
ELSEWHERE = "import sys;sys.path[0]=sys.argv.pop(1);sys.argv[0]='nv';from tasks.program import main;main()"
"""Runs the tasks from the folder that is its argument: the project may have a package ``tasks`` of its own."""
MARK = "client"
"""The file in the project's state here that says which checkout it is: two of the same name don't take turns."""
CARRIED = ("INVOKE_", "NINAIVALAIGAL_", "NO_COLOR", "FORCE_COLOR", "MEMORY_PROVIDER", "LOG_LEVEL", "RELOAD_ON_CHANGE")
CARRIED_NAMES = ("NV_ENV", "TERM", "LANG", "LC_ALL")
KEPT = ("INVOKE_STACK_HOST", "INVOKE_REMOTE_")
"""Settings of this side."""
HERE = "NV_ON_HOST"
"""Set for the tasks that run on the host: the settings that came along name it, and they are there."""


class Place(NamedTuple):
    """Folders on the host."""

    base: str
    """The project's."""
    home: str
    """The account's."""


class Synced(Struct):
    """Answer of a host's agent to a request to synchronize the project's files."""

    need: list[str]
    """Names of the files that it lacks."""
    removed: list[str]
    base: str
    home: str

    @property
    def place(self) -> Place:
        return Place(self.base, self.home)


class Prepared(Struct):
    """Answer of a host's agent to a request to run a command on a terminal."""

    command: str
    """Path of the file there that has it."""


def sent_of(settings: Settings) -> list[files.Sent]:
    """The files of a project that belong on its host, with this program's own where the project is another one."""
    made = [settings.root / folder for folder in (settings.data.dir, settings.stack.log_dir)]
    found = files.files_of(settings.root, without=made)
    return found if settings.root == CHECKOUT else [*found, *files.program_files()]


class Remote(Struct):
    """The project of some settings on a host."""

    link: Link
    settings: Settings
    environ: Mapping[str, str]
    state: Path
    """The project's state here."""
    looked: Future[list[files.Sent]] | None = None
    """The files as they are looked at while the connection is made; for the first command."""

    @property
    def folder(self) -> str:
        """The project's on the host; from the home there, unless it is absolute."""
        given = self.settings.remote.dir
        return given or f"nv-devstack/{self.settings.root.name}"

    @property
    def is_checkout(self) -> bool:
        """Whether the project is this program's own checkout, which then is what runs there."""
        return self.settings.root == CHECKOUT

    @property
    def python(self) -> str:
        """The Python that has the program's packages; from the home on the host, unless it is absolute."""
        below = "" if self.is_checkout else f"{files.PROGRAM}/"
        return self.settings.remote.python or f"{self.folder}/{below}.venv/bin/python"

    def program(self, place: Place) -> list[str]:
        """The tasks' command line on the host, without tasks."""
        python = self.settings.remote.python.replace("~", place.home, 1) or f"{self.home(place)}/.venv/bin/python"
        return [python, *(("-m", "invoke") if self.is_checkout else ("-c", ELSEWHERE, self.home(place)))]

    def home(self, place: Place) -> str:
        """The folder of this program on the host."""
        return place.base if self.is_checkout else f"{place.base}/{files.PROGRAM}"

    def mine(self) -> str:
        """The mark of this checkout, made when it is first sent."""
        file = self.state / MARK
        try:
            return file.read_text()
        except FileNotFoundError:
            file.parent.mkdir(parents=True, exist_ok=True)
            mark = secrets.token_hex(8)
            aside = file.with_suffix(f".{mark}")
            aside.write_text(mark)
            aside.rename(file)
            return mark

    def sent(self) -> list[files.Sent]:
        """The files that belong on the host."""
        looked, self.looked = self.looked, None
        return looked.result() if looked else sent_of(self.settings)

    # one conversation each

    @contextmanager
    def talk(self) -> Iterator[Talk]:
        with Talk(self.link, self.python) as talk:
            yield talk

    def sync(self, talk: Talk) -> Place:
        """Have the host have the project's files."""
        sent = self.sent()
        talk.ask(
            "sync",
            dir=self.folder,
            owner=self.mine(),
            **{"from": f"{self.settings.root} of {getpass.getuser()} on {platform.node()}"},
            files=[one[:4] for one in sent],
        )
        found = talk.answer_as(Synced)
        needed = set(found.need)
        if needed or found.removed:
            outgoing = Outgoing(talk)
            with talk.explained():
                files.pack([one for one in sent if one.name in needed], outgoing)
                outgoing.end()
            talk.answer()
        return found.place

    def request(self, place: Place, words: Sequence[str], *, folder: str = ".", settings: str = "") -> dict[str, Any]:
        """What the agent needs to run tasks. ``settings`` is the text of a file of them, that of ``inv -f``."""
        return {
            "dir": self.folder,
            "argv": [*self.program(place), *(("-f", "{given}") if settings else ()), *words],
            "setup": "" if self.settings.remote.python else f"{self.home(place)}/scripts/bootstrap.sh",
            "folder": folder,
            "env": self.carried(),
            "given": settings,
            "silence": self.settings.remote.silence,
        }

    def carried(self) -> dict[str, str]:
        """The variables that mean something to the tasks."""
        return {
            **{
                name: text
                for name, text in self.environ.items()
                if (name.startswith(CARRIED) or name in CARRIED_NAMES) and not name.startswith(KEPT)
            },
            HERE: "1",
        }

    def run(self, words: Sequence[str], *, given: bool = False, raw: bool = False, **options: Any) -> int:
        """Run tasks on the host, their output here as it comes; the exit code. They read what is ``given`` to this
        program, if they are to. ``raw`` ones take the whole terminal.

        :raises LinkLost: the link broke; the tasks were interrupted.
        """
        if terminal.is_one():
            with self.talk() as talk:
                talk.ask("prepare", **self.request(self.sync(talk), words, **options))
                path = talk.answer_as(Prepared).command
                return terminal.attach(self.link, starter(self.python, RUNNER, path), talk, raw=raw)
        with self.talk() as talk:
            talk.ask("run", **self.request(self.sync(talk), words, **options), input=given)
            talk.answer()
            return terminal.follow(talk, given=given)

    def output(self, words: Sequence[str], **options: Any) -> tuple[int, bytes]:
        """Run tasks on the host; the exit code and what they print, their complaints go where ours go."""
        with self.talk() as talk:
            talk.ask("run", **self.request(self.sync(talk), words, **options), input=False)
            talk.answer()
            printed = bytearray()

            def keep(part: bytes) -> None:
                printed.extend(part)
                if len(printed) > LONGEST:
                    raise StackError(f"{self.link.host} does not end its answer", fix="inv remote.check")

            return terminal.follow(talk, keep), bytes(printed)

    def has(self, program: str) -> bool:
        """Whether a program is there."""
        channel = self.link.open(command(f"test -x {shlex.quote(program)}"))
        return exit_code_of(self.link, channel) == 0

    def set_up(self) -> int:
        """Install what the program needs on the host, with what that says; the exit code. Where a person is at a
        terminal, the host may ask for a password."""
        with self.talk() as talk:
            place = self.sync(talk)
        line = command(f"cd {shlex.quote(self.home(place))} && bash scripts/bootstrap.sh run")
        if terminal.is_one():
            return terminal.attach(self.link, line)
        return terminal.follow_channel(self.link, self.link.open(line))
