"""What the stack does on its host besides running commands: files, folders, ports, accounts."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from invoke.runners import Result
from msgspec import Struct

from devstack import trust
from devstack.errors import StackError, UsageError
from devstack.files import NotPlain, follow, open_directory, read_regular
from devstack.runtimes import Usage
from devstack.shell import CANNOT_CONNECT, TIMED_OUT, Request

if TYPE_CHECKING:
    import psutil

    from devstack.paths import Paths

ACCOUNT = "nv-devstack"
"""The account for PostgreSQL and PgBouncer when run as root; scripts/bootstrap.sh makes it."""
SHARED = ("postgres", "pgbouncer", "_postgres", "nobody")
"""Accounts to fall back to, in order of preference. Others use them too: a server or a daemon of the machine."""
FRESH = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags for a file that nobody else has made, nor a link."""
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors by which a file system says that it has no hard links, as FAT has none."""
STILL_WRITTEN = 5.0
"""Seconds for a program to end that writes into a directory that is removed."""
READ_BYTES = 100_000_000
"""Largest file that is read whole: a log of a server that was tried."""


class PortHolder(Struct, frozen=True):
    """Who listens on a port. ``pid`` is 0 and ``command`` empty where this user may not know."""

    address: str
    port: int
    pid: int = 0
    command: str = ""
    stack: str = ""
    """State directory of the stack that started the process, from its ``NV_STACK`` variable; empty if the process
    belongs to another user, who can give it any."""

    def __str__(self) -> str:
        who = f"{self.command} (pid {self.pid})" if self.pid else "a process of another user"
        place = f"[{self.address}]" if ":" in self.address else self.address
        return f"{place}:{self.port} is held by {who}"


class Host:
    """The machine this runs on."""

    def __init__(self, account: str = "", friends: Collection[int] = ()) -> None:
        """
        :param account: the account that the settings name for the services.
        :param friends: user ids whose directories are taken for ours, besides root's.
        """
        self.uid = os.getuid()
        self._friends = {self.uid, 0, *friends}
        self._wanted = account
        self._account: pwd.struct_passwd | None = None

    @property
    def friends(self) -> Collection[int]:
        """User ids whose directories and links are taken for ours."""
        return self._friends

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    @property
    def user(self) -> str:
        """The name of the user that this runs as.

        :raises UsageError: it has none, as in a container with a user id of its own.
        """
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            raise UsageError(
                f"user id {self.uid} has no name here",
                why="PostgreSQL refuses to run as a user that is not in the list of users",
                fix=f"add it: echo 'me:x:{self.uid}:{os.getgid()}::/tmp:/bin/sh' >>/etc/passwd; or run as another user",
            ) from None

    @property
    def account(self) -> str:
        """The account for services that refuse to run as root; empty when not root.

        :raises UsageError: the configured account does not exist, is root, or none is there.
        """
        return self._entry().pw_name if self.is_root else ""

    def _entry(self) -> pwd.struct_passwd:
        if self._account is None:
            for name in (self._wanted,) if self._wanted else (ACCOUNT, *SHARED):
                with contextlib.suppress(KeyError):
                    self._account = pwd.getpwnam(name)
                    break
            else:
                raise UsageError(
                    f"there is no account {self._wanted!r}" if self._wanted else "there is no unprivileged account",
                    why="PostgreSQL and PgBouncer refuse to run as root, they need an account of their own",
                    fix=f"create one: useradd --system {ACCOUNT}; or name one in stack.account",
                )
            if self._account.pw_uid == 0:
                raise UsageError("stack.account can't be root", fix="leave it out, or name an unprivileged account")
        return self._account

    def keep_account(self, data: Path) -> None:
        """Keep the account that an environment's data belong to, if it is one that was taken before there was
        :data:`ACCOUNT`, and the settings name none: PostgreSQL reads its own data only."""
        if self.is_root and not self._wanted:
            with contextlib.suppress(OSError, KeyError):
                entry = pwd.getpwuid(data.lstat().st_uid)
                if entry.pw_name in SHARED:
                    self._account = entry

    @property
    def has_account(self) -> bool:
        """Whether this machine has :data:`ACCOUNT`."""
        with contextlib.suppress(KeyError):
            return bool(pwd.getpwnam(ACCOUNT).pw_uid)
        return False

    @property
    def shares_account(self) -> bool:
        """Whether the services run under an account that others use too, though nobody has asked for it."""
        return self.is_root and not self._wanted and self.account in SHARED

    def own(self, path: Path | int, *, account: bool) -> None:
        """Give a path, or an open file, to the services' account; it is ours otherwise."""
        if self.is_root and account:
            entry = self._entry()
            if isinstance(path, int):
                os.fchown(path, entry.pw_uid, entry.pw_gid)
            else:
                os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)

    def lend(self, path: Path) -> None:
        """Let the services' account read a file or directory of ours."""
        entry = self._entry()
        os.chown(path, -1, entry.pw_gid, follow_symlinks=False)
        os.chmod(path, 0o750 if path.is_dir() else 0o640)

    def take(self, path: Path | int) -> None:
        """Have a path, or an open file, belong to us; a link itself, not what it leads to."""
        if isinstance(path, int):
            os.fchown(path, os.geteuid(), os.getegid())
        else:
            os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)

    def make_dir(self, path: Path, mode: int, *, account: bool = False, keep_mode: bool = False) -> None:
        """Make a directory with its parents, and give it mode and owner; existing parents keep theirs.

        Mode and owner are those of the directory that was opened and looked at, whatever its name leads to by then.
        Links are followed if nobody else can have put them there, as :func:`~devstack.files.follow` judges it.

        :param keep_mode: whether one that is there already keeps its mode: it may be anybody's choice.
        :raises UsageError: somebody else's directory is in its place, or his link on the way.
        """
        try:
            path = follow(path, self._friends)
        except NotPlain as error:
            raise UsageError(
                f"{path} belongs to somebody else",
                why=f"{error.strerror}; this runs as uid {self.uid}; nothing was changed",
                fix="remove it, or name another directory in the settings",
            ) from None
        for parent in reversed([parent for parent in path.parents if not parent.exists()]):
            self._make_dir(parent, 0o755 if self.is_root else 0o700)
        self._make_dir(path, mode, account=account, keep_mode=keep_mode)

    def _make_dir(self, path: Path, mode: int, *, account: bool = False, keep_mode: bool = False) -> None:
        made = True
        folder = open_directory(path.parent, search=True)
        try:
            try:
                os.mkdir(path.name or ".", 0o700, dir_fd=folder)
            except FileExistsError:
                made = False
                if not path.is_dir():
                    raise
            handle = os.open(
                path.name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
            )
            try:
                info = os.fstat(handle)
                if not self._is_ours(info, os.fstat(folder)):
                    raise self._planted(path)
                if info.st_mode & 0o7777 != mode and (made or not keep_mode):
                    os.fchmod(handle, mode)
                if self.is_root and account:
                    entry = self._entry()
                    if (info.st_uid, info.st_gid) != (entry.pw_uid, entry.pw_gid):
                        os.fchown(handle, entry.pw_uid, entry.pw_gid)
            finally:
                os.close(handle)
        except OSError as error:
            error.filename = str(path)
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise self._planted(path) from None
            raise
        finally:
            os.close(folder)

    def _is_ours(self, info: os.stat_result, parent: os.stat_result) -> bool:
        """Check whether a directory belongs to us, a friend or the services' account, or is in a directory where nobody
        else can have put it."""
        if info.st_uid in self._friends or (self.is_root and info.st_uid == self._entry().pw_uid):
            return True
        return parent.st_uid in self._friends and not parent.st_mode & 0o022

    def _planted(self, path: Path) -> UsageError:
        info = path.lstat()
        kind = "a link" if stat.S_ISLNK(info.st_mode) else "a directory"
        return UsageError(
            f"{path} belongs to somebody else",
            why=f"it is {kind} of uid {info.st_uid}, this runs as uid {self.uid}; nothing was changed",
            fix="remove it, or name another directory in the settings",
        )

    def write_file(
        self,
        path: Path,
        content: bytes,
        mode: int,
        *,
        account: bool = False,
        replace: bool = True,
        folder: int | None = None,
    ) -> None:
        """Write aside, flush, rename: a file with its final name is whole, and was never readable by others.

        Mode and owner are given to the file that was made, in the directory that was opened: whoever else may write
        there can't have them given to another one.

        :param folder: a descriptor of the directory, where that is open; otherwise its name is followed.
        :raises FileExistsError: it is there already and must not be replaced.
        """
        if folder is None:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self.write_file(path, content, mode, account=account, replace=replace, folder=folder)
            finally:
                os.close(folder)
            return
        aside = f".{path.name}.{secrets.token_hex(4)}"
        try:
            handle = os.open(aside, FRESH, 0o600, dir_fd=folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fchmod(handle, mode)
                    self.own(handle, account=account)
                    os.fsync(handle)
                if replace:
                    os.replace(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
                else:
                    _rename_new(aside, path.name, folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(aside, dir_fd=folder)
                raise
        except OSError as error:
            for attribute in ("filename", "filename2"):
                if name := getattr(error, attribute):
                    setattr(error, attribute, str(path.parent / name))
            error.filename = error.filename or str(path)  # what is written to an open file fails without a name
            raise

    def holds(self, path: Path, content: bytes, mode: int, *, account: bool = False) -> bool:
        """Whether the file is already as :meth:`write_file` would leave it."""
        try:
            if self.read_file(path) != content:
                return False
        except NotPlain:
            return False
        info = path.lstat()
        owner = self._entry().pw_uid if self.is_root and account else self.uid
        return info.st_mode & 0o7777 == mode and info.st_uid == owner

    def read_file(self, path: Path) -> bytes | None:
        """Return the content; None if there is no such file.

        It may be in a directory of the services' account, which could have put a FIFO there, or a link to what only we
        can read: neither is opened.

        :raises NotPlain: it is no regular file, or a link.
        """
        try:
            return read_regular(path, limit=READ_BYTES, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def size(self, path: Path) -> int:
        """Bytes of a file; 0 if there is none."""
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0

    def remove(self, path: Path, *, seconds: float = STILL_WRITTEN) -> None:
        """Remove a file, link or folder; none there is fine. For ``seconds`` others may still write in a folder: what
        a command has started that was killed ends a moment later."""
        deadline = time.monotonic() + seconds
        while path.is_dir() and not path.is_symlink():
            try:
                shutil.rmtree(path)
            except RecursionError:  # as deep as only somebody else can have made it
                subprocess.run(["rm", "-rf", "--", path], check=True)  # noqa: S607
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        path.unlink(missing_ok=True)

    def link(self, path: Path, target: Path) -> None:
        """Make ``path`` a symbolic link to ``target``."""
        if path.is_symlink() and path.readlink() == target:
            return
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.replace(path)

    def check_own(self, path: Path) -> None:
        """Refuse a folder that somebody else put in our place: the one for sockets may be in a shared /tmp.

        :raises UsageError: it belongs to another user, or is a link.
        """
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid not in self._friends:
            raise UsageError(
                f"the folder for sockets {path} belongs to somebody else",
                why=f"its owner is uid {info.st_uid}, this runs as uid {self.uid}",
                fix="remove it, or set stack.state_dir to a folder with a shorter path",
            )

    def check_places(self, paths: Paths) -> None:
        """Refuse the state of an environment, or a cache of programs, that somebody else could exchange: what is
        recorded there names programs, and is obeyed.

        :raises UsageError: one of the directories, or one above it, is writable by somebody else.
        """
        for folder, what, setting in (
            (paths.state, "an environment's state", "stack.state_dir"),
            (paths.cache, "PostgreSQL's programs", "stack.cache_dir"),
        ):
            self.check_closed(folder, what, setting=setting, root=paths.root)

    def check_closed(self, folder: Path, what: str, *, setting: str, root: Path, sticky: bool = False) -> None:
        """Refuse a directory in which somebody else could exchange what we write, before anything is made there.

        :param what: what is kept in it.
        :param setting: where it is chosen.
        :param root: the project's directory, which is trusted.
        :param sticky: whether others may write into it if they can't rename what is not theirs, as in /tmp.
        :raises UsageError: it, or one above it, is such a directory.
        """
        if why := trust.intruders(folder, self._friends, root=root, sticky=sticky):
            raise UsageError(
                f"{what} can't be kept in {folder}",
                why=f"{why}, who could put other files in their place; this runs as uid {self.uid}",
                fix=f"choose a directory of your own that nobody else may write to: {setting}",
            )

    def check_writable(self, path: Path) -> None:
        """Ask whether a file could be written, before a program that writes it fails in words of its own.

        :raises OSError: it could not, as the system would say.
        """
        there = path if os.path.lexists(path) else path.parent
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not os.access(there, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def check_reachable(self, path: Path) -> None:
        """As root: refuse a folder that the services' account can't enter, before it fails half-way.

        :raises UsageError: names the parent that is closed to the account.
        """
        if not self.is_root:
            return
        if closed := self.closed_to_account(path):
            raise UsageError(
                f"account {self.account} can't reach {path}",
                why=f"{closed} is closed to it (mode {closed.stat().st_mode & 0o777:o})",
                fix="set stack.state_dir to a folder that others may enter; the default is /var/lib/nv-devstack",
            )

    def closed_to_account(self, path: Path) -> Path | None:
        """The first existing parent that the services' account can't enter; None if the way is open."""
        if not self.is_root:
            return None
        entry = self._entry()
        groups = set(os.getgrouplist(entry.pw_name, entry.pw_gid))
        for folder in reversed([path, *path.parents]):
            if not folder.is_dir():
                continue
            info = folder.stat()
            if info.st_uid == entry.pw_uid:
                allowed = info.st_mode & 0o100
            elif info.st_gid in groups:
                allowed = info.st_mode & 0o010
            else:
                allowed = info.st_mode & 0o001
            if not allowed:
                return folder
        return None

    def send(self, request: Request) -> Result:
        """Post a request, with the answers and exit codes that its command line would have."""
        import http.client

        connection = http.client.HTTPConnection("localhost", timeout=request.timeout)
        try:
            self.check_own(Path(request.socket.parent))
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(request.timeout)
            connection.sock.connect(str(request.socket))
            connection.request("POST", urlsplit(request.url).path, request.body.encode(), {"Content-Type": "text/xml"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except TimeoutError:
            return Result(stderr=f"no answer within {request.timeout} s at {request.socket}", exited=TIMED_OUT)
        except (OSError, http.client.HTTPException) as error:
            return Result(stderr=f"{request.socket}: {error}", exited=CANNOT_CONNECT)
        finally:
            connection.close()
        return Result(stdout=text, exited=0)

    def usage(self, pids: Mapping[str, int], helpers: Mapping[str, Sequence[int]] | None = None) -> dict[str, Usage]:
        """Return what these processes use with all that they started; those that have ended are left out. ``helpers``
        run beside them: of these only those that do nothing are told."""
        import psutil

        children: dict[int, list[psutil.Process]] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                children.setdefault(process.ppid(), []).append(process)
        found = {}
        for name, pid in pids.items():
            with contextlib.suppress(psutil.Error):
                beside = _processes((helpers or {}).get(name, ()))
                found[name] = _usage(psutil.Process(pid), children, beside)
        return found

    def is_here(self, pid: int, container: str) -> bool:
        """Whether a container's process is one of this machine's: an engine may run in a virtual machine, and its
        process ids mean something else here."""
        try:
            return container in Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            return False

    def stopped(self, pids: Iterable[int]) -> list[int]:
        """Return those of these processes, and of all that they started, that a signal such as SIGSTOP has stopped. One
        that a debugger holds is none of them."""
        return [process.pid for process in _trees(pids) if _held(process) == STOPPED]

    def traced(self, pids: Iterable[int]) -> list[int]:
        """Return those that a debugger holds."""
        return [process.pid for process in _trees(pids) if _held(process) == TRACED]

    def resume(self, pids: Iterable[int]) -> None:
        """Have processes go on that are stopped (SIGCONT).

        :raises StackError: one belongs to another user.
        """
        import psutil

        for process in _processes(pids):
            try:
                process.resume()
            except psutil.NoSuchProcess:
                continue
            except psutil.AccessDenied:
                raise StackError(
                    f"could not resume pid {process.pid}",
                    why="it belongs to another user",
                    fix=f"sudo kill -CONT {process.pid}",
                ) from None

    def has_word(self, pid: int, word: str) -> bool:
        """Whether a process was started with this word on its command line."""
        return any(word in _words(process) for process in _processes([pid]))

    def runs(self, pid: int) -> bool:
        """Whether there is a process of this id that has not ended; one that nobody has waited for has."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        return False

    def works_in(self, pid: int, folder: Path) -> bool:
        """Check whether a process has this folder as its current one, or names it if that can't be seen. A thread's id
        is no process's, though a signal reaches it."""
        import psutil

        if not psutil.pid_exists(pid):
            return False
        try:
            process = psutil.Process(pid)
            with contextlib.suppress(psutil.AccessDenied):
                return Path(process.cwd()) == folder.resolve()
            return any(str(folder) in word for word in process.cmdline())
        except psutil.NoSuchProcess:
            return False

    def end(self, pid: int, signal_name: str, seconds: float) -> None:
        """End a process of an earlier run that its supervisor did not survive; killed after ``seconds``."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.send_signal(getattr(signal, f"SIG{signal_name}"))
            self.resume(self.stopped([pid]))  # one that is stopped would heed the signal only then
            try:
                process.wait(seconds)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(seconds)

    def listens(self, pid: int, address: str, port: int) -> bool:
        """Check whether a process listens on a port of an address.

        Where this user may not look into it, as root in a container without further capabilities, whoever listens
        there has to be of the process's own account.
        """
        import psutil

        try:
            process = psutil.Process(pid)
            try:
                return not {address, *WILDCARDS}.isdisjoint(_listening(process, port))
            except psutil.AccessDenied:
                return _accounts_at(port) == {process.uids().real}
        except psutil.Error:
            return False

    def port_holder(self, bind: str, port: int) -> PortHolder | None:
        """Who keeps a service from this port on ``bind`` or on localhost's other family; None if it is free."""
        taken = [a for a in dict.fromkeys((bind, "127.0.0.1", "::1")) if _is_taken(a, port)]
        return _holder(taken[0], port, self._believed()) if taken else None

    def stranger_on_ipv6(self, port: int, pid: int) -> PortHolder | None:
        """Return the foreign listener on ``::1`` at a port that a process of ours has on 127.0.0.1; None if there is
        none. What our process has started is not foreign."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("::1", port)) == 0:
                holder = _holder("::1", port, self._believed(), at=("::1", "::"))
                ours = {process.pid for process in _trees([pid])} if pid else set()
                return None if holder.pid in ours else holder
        return None

    def _believed(self) -> set[int]:
        """Return the user ids whose processes are believed what they say of themselves."""
        found = set(self._friends)
        if self.is_root:
            with contextlib.suppress(UsageError):
                found.add(self._entry().pw_uid)
        return found

    def check_address(self, address: str, *, setting: str) -> None:
        """:raises StackError: this machine does not have the address, so nothing can listen on it."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((address, 0))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise StackError(
                    f"no service can listen on {address}",
                    why=f"this machine does not have that address; {setting} names it",
                    fix=f"correct {setting}, or leave it out for 127.0.0.1",
                ) from None

    def is_free(self, bind: str, port: int) -> bool:
        """Whether a service could have this port on ``bind``, as :meth:`port_holder` judges it."""
        return not any(_is_taken(a, port) for a in dict.fromkeys((bind, "127.0.0.1", "::1")))


STOPPED, TRACED = "stopped", "tracing-stop"
"""How psutil calls the states T and t of a process, where the system tells them apart (proc(5))."""


def _held(process: psutil.Process) -> str:
    """Return the state of a process; empty if it has ended."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return str(process.status())
    return ""


def _words(process: psutil.Process) -> list[str]:
    import psutil

    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def _processes(pids: Iterable[int]) -> list[psutil.Process]:
    """Return the processes that there are."""
    import psutil

    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def _trees(pids: Iterable[int]) -> list[psutil.Process]:
    """Return the processes with all that they started."""
    import psutil

    found = []
    for process in _processes(pids):
        found.append(process)
        with contextlib.suppress(psutil.Error):
            found += process.children(recursive=True)
    return found


def _usage(
    root: psutil.Process, children: Mapping[int, list[psutil.Process]], helpers: Sequence[psutil.Process]
) -> Usage:
    import psutil

    times = root.cpu_times()
    # a backend that has ended is in the times of the server that waited for it
    memory, cpu, count = _memory(root), times.user + times.system + times.children_user + times.children_system, 1
    below = list(children.get(root.pid, ()))
    for process in below:
        below += children.get(process.pid, ())
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            memory, cpu, count = memory + _memory(process), cpu + times.user + times.system, count + 1
    return Usage(
        memory,
        cpu,
        count,
        frozen=_held(root) == STOPPED,
        frozen_below=tuple(process.pid for process in below if _held(process) == STOPPED),
        frozen_helpers=tuple(process.pid for process in helpers if _held(process) == STOPPED),
        traced=tuple(process.pid for process in (root, *below, *helpers) if _held(process) == TRACED),
    )


def _memory(process: psutil.Process) -> int:
    """The process's share: PostgreSQL's shared buffers would otherwise count once for each connection."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        full = process.memory_full_info()
        return int(getattr(full, "pss", 0) or full.uss)
    return int(process.memory_info().rss)  # of a process that this user may not look into


def _is_taken(address: str, port: int) -> bool:
    """Whether something listens there: it answers (macOS binds beside a wildcard listener), or can't be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.2)
            if probe.connect_ex((address, port)) == 0:
                return True
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        if error.errno == errno.EACCES:
            raise StackError(
                f"this user may not listen on port {port}",
                why="ports below 1024 are root's",
                fix="choose a port above 1023",
            ) from None
        return error.errno == errno.EADDRINUSE  # another one, such as no IPv6, is no conflict
    return False


WILDCARDS = ("0.0.0.0", "::")
"""Addresses that stand for every address of the machine."""


def _listening(process: psutil.Process, port: int) -> Iterator[str]:
    """The addresses on which a process listens on a port."""
    import psutil

    connections = getattr(process, "net_connections", None) or process.connections
    for connection in connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
            yield connection.laddr.ip


def _accounts_at(port: int) -> set[int]:
    """The accounts whose sockets listen on a port, as Linux tells everybody (proc_net_tcp.rst of its documentation)."""
    found = set()
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(file).read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                    found.add(int(rest[3]))
    return found


def _holder(address: str, port: int, believed: Collection[int], at: Collection[str] = ()) -> PortHolder:
    """
    :param at: the addresses to look at; empty for all.
    """
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(not at or listening in at for listening in _listening(process, port)):
                # spaces could have the terminal begin a line with what follows them
                command = " ".join((" ".join(process.cmdline()) or process.name()).split())
                stack = ""
                with contextlib.suppress(psutil.Error):
                    if process.uids().real in believed:
                        stack = process.environ().get("NV_STACK", "")
                return PortHolder(
                    address, port, process.pid, command if len(command) <= 80 else command[:79] + "…", stack
                )
    return PortHolder(address, port)


def _rename_new(old: str, new: str, folder: int) -> None:
    """Rename a file in a directory; unlike :func:`os.rename`, replace nothing.

    :raises FileExistsError: there is one of that name, also if another was quicker.
    """
    try:
        os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(new, FRESH, 0o600, dir_fd=folder))
        os.replace(old, new, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(old, dir_fd=folder)
