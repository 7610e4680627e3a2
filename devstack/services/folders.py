"""The folders beside the data folder, where a copy of the cluster is put together before it takes its place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.errors import StackError
from devstack.shell import Command, chain, sh

if TYPE_CHECKING:
    from devstack.services.contained import ContainedPostgres
    from devstack.services.postgres import Postgres


class Folders:
    """On this machine."""

    def __init__(self, db: Postgres) -> None:
        self.db = db
        self.context = db.context

    def path(self, name: str) -> Path:
        return self.db.data.with_name(name)

    def names(self) -> set[str]:
        """The folders that are there, the data folder among them."""
        parent = self.db.data.parent
        return {path.name for path in parent.iterdir() if path.is_dir()} if parent.is_dir() else set()

    def move(self, *pairs: tuple[str, str]) -> None:
        """Rename folders, one after another; on the disk when this returns."""
        for old, new in pairs:
            self.path(old).rename(self.path(new))
        handle = os.open(self.db.data.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def make(self, name: str, *, account: bool) -> None:
        """Make an empty directory.

        :param account: whether it belongs to the server's account, whose programs fill it, or is ours until
            :meth:`finish`: what we write there nobody must be able to exchange for links.
        """
        self.context.make_dir(self.path(name), 0o700, account=account)

    def remove(self, name: str, *, last: str = "") -> None:
        """Remove a folder; none there is fine.

        :param last: the file in it that is removed after all others.
        """
        path, host = self.path(name), self.context.host
        if last and path.is_dir() and not path.is_symlink():
            for inside in sorted(path.iterdir()):
                if inside.name != last:
                    host.remove(inside)
        host.remove(path)

    def size(self, name: str) -> int:
        """Bytes that a folder takes on the disk."""
        total = 0
        for folder, _, files in os.walk(self.path(name)):
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(os.path.join(folder, file)).st_blocks * 512
        return total

    def read(self, name: str, file: str) -> str:
        """A file's content; empty if there is none."""
        return (self.context.host.read_file(self.path(name) / file) or b"").decode(errors="replace").strip()

    def finish(self, name: str, file: str, content: str) -> None:
        """Put a file into a folder that PostgreSQL's programs made, and have it belong to the server's account."""
        target, host = self.path(name), self.context.host
        host.write_file(target / file, content.encode(), 0o600, account=True)
        if host.is_root and target.lstat().st_uid == host.uid:
            command = sh("chown -R -h $account: $target", account=host.account, target=target)
            self.context.run(command, "hand it over")

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Make an empty directory of the server's account, gone at the end: for a server that is tried."""
        path = self.context.paths.run / name
        self.context.make_run_dir()
        self.context.host.remove(path)
        self.context.make_dir(path, 0o700, account=True)
        try:
            yield path
        finally:
            self.context.host.remove(path)
            self.context.leave_run_dir()

    def log(self, sockets: Path) -> list[str]:
        """What a server that was tried has said."""
        return (self.context.host.read_file(sockets / "log") or b"").decode(errors="replace").splitlines()

    def pg_ctl(self, name: str, words: list[str]) -> Command:
        """https://www.postgresql.org/docs/current/app-pg-ctl.html, on the data in a folder."""
        programs = self.db.programs
        # it starts the server through a shell, with the directory in double quotes: from inside, that is a dot
        inside = self.context.exec(self.db.name, [programs.path("pg_ctl"), "-D", ".", *words], programs.env)
        return self.context.runtime.as_account(chain(sh("cd $data", data=self.path(name)), inside))


class VolumeFolders(Folders):
    """In the volume of a container engine. Where the database's container does not run, one is made for the moment."""

    def __init__(self, db: ContainedPostgres) -> None:
        super().__init__(db)
        self.inside = db

    def _run(self, script: str, *words: str, what: str) -> str:
        argv = ["sh", "-c", script, "sh", *words]
        if self.context.states([self.db.name])[self.db.name].running:
            result = self.context.run(self.context.exec(self.db.name, argv, user=self.db.account), what)
        else:
            with self.context.one_off(self.inside.helper(argv)) as command:
                result = self.context.run(command, what)
        return result.stdout if result else ""

    def names(self) -> set[str]:
        script = 'cd "$1" && for name in * .[!.]*; do [ ! -d "$name" ] || echo "$name"; done'
        return set(self._run(script, str(self.db.data.parent), what="look into the volume").splitlines())

    def move(self, *pairs: tuple[str, str]) -> None:
        script = 'cd "$1" && shift && while [ $# -gt 1 ]; do mv -T "$1" "$2" || exit 1; shift 2; done; sync'
        words = [name for pair in pairs for name in pair]
        self._run(script, str(self.db.data.parent), *words, what="rename folders in the volume")

    def make(self, name: str, *, account: bool) -> None:
        """Let the programs make it: here they run as the server's account."""

    def remove(self, name: str, *, last: str = "") -> None:
        script = (
            'if [ -n "$2" ] && cd "$1" 2>/dev/null; then find . -mindepth 1 ! -path "./$2" -delete; fi; rm -rf "$1"'
        )
        self._run(script, str(self.path(name)), last, what="remove a folder in the volume")

    def size(self, name: str) -> int:
        said = self._run('du -sk "$1"', str(self.path(name)), what="measure a folder in the volume").split()
        return int(said[0]) << 10 if said and said[0].isdecimal() else 0

    def read(self, name: str, file: str) -> str:
        script = '[ ! -e "$1" ] || cat "$1"'
        return self._run(script, str(self.path(name) / file), what="read a file in the volume").strip()

    def finish(self, name: str, file: str, content: str) -> None:
        self.context.write_inside(self.db.name, self.path(name) / file, content, user=self.db.account)

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        path = self.db.sockets.with_name(name)
        make = 'rm -rf "$1" && mkdir -m 700 "$1"'
        exec_ = self.context.exec
        what = "make a folder in the container"
        self.context.run(exec_(self.db.name, ["sh", "-c", make, "sh", str(path)], user=self.db.account), what)
        try:
            yield path
        finally:
            with contextlib.suppress(StackError):
                self.context.run(exec_(self.db.name, ["rm", "-rf", str(path)], user=self.db.account), what)

    def log(self, sockets: Path) -> list[str]:
        answer = self.context.read(self.context.exec(self.db.name, ["cat", str(sockets / "log")], user=self.db.account))
        return answer.stdout.splitlines()

    def pg_ctl(self, name: str, words: list[str]) -> Command:
        argv = [self.db.programs.path("pg_ctl"), "-D", str(self.path(name)), *words]
        return self.context.exec(self.db.name, argv, user=self.db.account)
