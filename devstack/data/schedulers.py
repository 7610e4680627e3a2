"""The host's own schedulers: cron, systemd's user timers, launchd."""

from __future__ import annotations

import os
import re
import shutil
import string
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from xml.sax.saxutils import escape

from devstack import console
from devstack.data.cron import Cron
from devstack.errors import StackError
from devstack.shell import Command, argv, sh

if TYPE_CHECKING:
    from devstack.stack import Stack

DAEMONS = {"cron", "crond", "fcron", "cronie"}


class Scheduler(Protocol):
    """A place for one entry of this environment."""

    where: str
    """As in "in the crontab of nina"."""

    def install(self, cron: Cron, script: Path) -> None:
        """Put the entry in, in place of an earlier one."""

    def remove(self) -> bool:
        """Take the entry out; whether there was one."""

    def installed(self) -> bool: ...

    def asleep(self) -> str:
        """Why it would not run anything; empty if it does."""


def find(stack: Stack) -> Scheduler:
    """The scheduler of this host.

    :raises StackError: there is none.
    """
    if sys.platform == "darwin":
        return Launchd(stack)
    if shutil.which("systemctl") and stack.context.read(sh("systemctl --user show-environment")).ok:
        return Systemd(stack)
    if shutil.which("crontab"):
        return Crontab(stack)
    raise StackError(
        "this host has no scheduler",
        why="no systemd answers for this user, and there is no crontab",
        fix="install cron (apt-get install cron), or run `inv data.backup data.cleanup` from something else",
    )


def name_of(stack: Stack) -> str:
    """What the entry is called: letters, digits and hyphens."""
    return f"nv-devstack-{stack.paths.state.parent.name}-{stack.settings.stack.env}"


def _render(stack: Stack, template: str, **values: str) -> str:
    return string.Template((stack.settings.templates / template).read_text()).substitute(name=name_of(stack), **values)


class Crontab:
    """crontab(1): everything else in it stays byte for byte."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.where = f"in the crontab of {stack.context.host.user}"

    def install(self, cron: Cron, script: Path) -> None:
        # % is a line's end to cron, unless a backslash is before it: crontab(5)
        command = argv([script]).replace("%", r"\%")
        block = _render(self.stack, "schedule.crontab", expression=cron.text, script=command)
        self._write(with_block(self._read(), block.encode(), name_of(self.stack)))

    def remove(self) -> bool:
        before = self._read()
        after = without_block(before, name_of(self.stack))
        if after != before:
            self._write(after)
        return after != before

    def installed(self) -> bool:
        content = self._read()
        return without_block(content, name_of(self.stack)) != content

    def asleep(self) -> str:
        import psutil

        names = {process.info["name"] for process in psutil.process_iter(["name"])}
        return "" if names & DAEMONS else "no cron daemon runs on this host"

    def _read(self) -> bytes:
        try:
            with self.stack.context.stream_out(Command("LC_ALL=C crontab -l"), "read the crontab") as out:
                return out.read()
        except StackError as error:
            if "no crontab for" in "\n".join(error.evidence):
                return b""
            raise

    def _write(self, content: bytes) -> None:
        if self.stack.context.dry:
            console.out(f"# {'write' if content else 'remove'} the crontab ({len(content)} bytes)")
        elif content:
            self.stack.context.stream_in(Command("crontab -"), [content], "write the crontab")
        else:
            self.stack.context.run(Command("crontab -r"), "remove the crontab, in which nothing is left")


def with_block(content: bytes, block: bytes, name: str) -> bytes:
    """A crontab with this entry, where the earlier one was or at the end."""
    if _block(name).search(content):
        return _block(name).sub(lambda _: block, content, count=1)
    return content + (b"" if not content or content.endswith(b"\n") else b"\n") + block


def without_block(content: bytes, name: str) -> bytes:
    return _block(name).sub(b"", content)


def _block(name: str) -> re.Pattern[bytes]:
    mark = re.escape(name.encode())
    return re.compile(rb"^# >>> " + mark + rb":.*\n(?:.*\n)*?# <<< " + mark + rb"\n", re.MULTILINE)


class Systemd:
    """A user's timer: what was missed while the machine was off is made up for."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        base = stack.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        self.folder = Path(base) / "systemd/user"
        self.where = "as a systemd timer of this user"

    def _path(self, kind: str) -> Path:
        return self.folder / f"{name_of(self.stack)}.{kind}"

    def install(self, cron: Cron, script: Path) -> None:
        # systemd.service(5), "Command lines", and systemd.unit(5), "Specifiers"
        quoted = re.sub(r'(["\\])', r"\\\1", str(script)).replace("%", "%%").replace("$", "$$")
        calendar = "\n".join(f"OnCalendar={line}" for line in cron.calendar())
        self.stack.context.write_file(self._path("service"), _render(self.stack, "schedule.service", script=quoted))
        self.stack.context.write_file(self._path("timer"), _render(self.stack, "schedule.timer", calendar=calendar))
        self._tell("daemon-reload")
        self._tell("enable", "--now", self._path("timer").name)
        self._tell("restart", self._path("timer").name)

    def remove(self) -> bool:
        if not self.installed():
            return False
        self._tell("disable", "--now", self._path("timer").name)
        for kind in ("timer", "service"):
            _remove(self.stack, self._path(kind))
        self._tell("daemon-reload")
        return True

    def installed(self) -> bool:
        return self._path("timer").exists()

    def asleep(self) -> str:
        return ""

    def _tell(self, *words: str) -> None:
        self.stack.context.run(argv(["systemctl", "--user", *words]), "tell systemd about the timer")


class Launchd:
    """A user's agent, launchd.plist(5); what was missed while the machine slept is made up for."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.path = Path.home() / "Library/LaunchAgents" / f"{name_of(stack)}.plist"
        self.where = "as a launchd agent of this user"

    def install(self, cron: Cron, script: Path) -> None:
        self.remove()
        intervals = "\n".join(
            f"    <dict>{''.join(f'<key>{key}</key><integer>{value}</integer>' for key, value in one.items())}</dict>"
            for one in cron.intervals()
        )
        content = _render(self.stack, "schedule.plist", script=escape(str(script)), intervals=intervals)
        self.stack.context.write_file(self.path, content)
        domain = f"gui/{os.getuid()}"
        self.stack.context.run(argv(["launchctl", "bootstrap", domain, self.path]), "tell launchd about the schedule")

    def remove(self) -> bool:
        if not self.installed():
            return False
        # it may not be loaded, after a login that failed to
        self.stack.context.read(argv(["launchctl", "bootout", f"gui/{os.getuid()}/{self.path.stem}"]))
        _remove(self.stack, self.path)
        return True

    def installed(self) -> bool:
        return self.path.exists()

    def asleep(self) -> str:
        return ""


def _remove(stack: Stack, path: Path) -> None:
    if stack.context.dry:
        console.out(f"# remove {path}")
    else:
        stack.context.host.remove(path)
