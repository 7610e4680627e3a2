"""What runs on the host for the time of a command: it takes the project's files, and runs the tasks.

It is sent over the link as text and needs nothing there but a Python, 3.8 or newer: it works before anything else is
set up, and is of the sender's version by nature. Requests and answers are frames on its input and output: four bytes
of length in network order, then JSON or, in streams, bytes; an empty frame ends a stream. Its first words are
:data:`GREETING`, which whatever a login prints comes before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import select
import signal
import stat
import struct
import subprocess
import sys
import threading
import time

# what is imported is waited for, at each command
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Request = Any  # a dict, from JSON

GREETING = b"\0nv-devstack agent 1\0"
CHUNK = 1 << 18
RECORD = ".nv-remote.json"
"""In the project's folder on the host; where it is, there is the host."""
WAIT = 60
"""Seconds for the next words of the sender, who has none to think about: behind a dead cable nothing else ends this."""
LOCK_SECONDS = 90
PATIENCE = ((signal.SIGINT, 30), (signal.SIGTERM, 300), (signal.SIGKILL, 10))
"""How a command is ended, and the seconds that it then gets: a restore that is interrupted puts things right first."""
PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin"
"""Where programs are that a shell without a login does not look for."""


class Refused(Exception):
    """Goes back to the sender as what, why and fix."""

    def __init__(self, what: str, why: str = "", fix: Any = ()) -> None:
        super().__init__(what)
        self.answer = {"error": what, "why": why, "fix": list(fix)}


class Gone(Exception):
    """The sender is not there any more."""


def take(count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        ready, _, _ = select.select([0], [], [], WAIT)
        part = os.read(0, count - len(found)) if ready else b""
        if not part:
            raise Gone
        found += part
    return bytes(found)


def take_frame() -> bytes:
    return take(struct.unpack("!I", take(4))[0])


def give(content: bytes) -> None:
    view = memoryview(struct.pack("!I", len(content)) + content)
    while view:
        view = view[os.write(1, view) :]


def answer(**values: Any) -> None:
    give(json.dumps(values).encode())


class Stream:
    """The frames up to the next empty one, as a file."""

    def __init__(self) -> None:
        self.rest, self.ended = b"", False

    def frame(self) -> bytes:
        return take_frame()

    def read(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count and not self.ended:
            if not self.rest:
                self.rest = self.frame()
                self.ended = not self.rest
            part = self.rest[: count - len(found)]
            self.rest = self.rest[len(part) :]
            found += part
        return bytes(found)

    def drain(self) -> None:
        while not self.ended:
            self.read(CHUNK)


# the project's files


def base_of(given: str) -> str:
    home = os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    return os.path.normpath(os.path.join(home, os.path.expanduser(given)))


def own_base(given: str) -> str:
    """Return the path of the project's directory, to which no other account may write: programs are run from there.

    :raises Refused: it belongs to another account, or others may exchange what is in it.
    """
    base = base_of(given)
    if why := others(base):
        fix = ["set remote.dir to a directory of your own", "or, if it is yours, have only you write there: chmod go-w"]
        raise Refused(f"{base} on the host can be changed by others", why, fix)
    return base


def others(base: str) -> str:
    """Return who else may change what is in a directory; empty if no one, and if it is not there."""
    trusted = {os.getuid(), 0, os.stat("/").st_uid}
    for look in (os.lstat, os.stat):
        try:
            info = look(base)
        except FileNotFoundError:
            continue
        if info.st_uid not in trusted:
            return f"it belongs to uid {info.st_uid}"
        if stat.S_ISLNK(info.st_mode):
            continue
        if info.st_mode & stat.S_IWOTH:
            return "it is writable by everybody"
        if info.st_mode & stat.S_IWGRP and not is_private(info.st_gid):
            return f"it is writable by the group with gid {info.st_gid}"
    return ""


def is_private(gid: int) -> bool:
    """Check whether a group has this account alone: many systems give each account one."""
    import grp

    try:
        group, owner = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    names = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == gid} | set(group.gr_mem)
    return owner.pw_gid == gid and names <= {owner.pw_name}


def parts_of(name: str) -> list[str]:
    """Return the parts of a path in the project's directory.

    :raises Refused: it leads out of it.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise Refused(f"{name!r} is no path in the project's directory")
    return parts


def inside(base: str, name: str) -> str:
    """Return the absolute path of a name in the project's directory; that of a directory ends in ``/``.

    :raises Refused: it leads out of it, also by a link on the way.
    """
    path, parts, real = base, parts_of(name), os.path.realpath(base)
    for number, part in enumerate(parts, 1):
        path = os.path.join(path, part)
        if (number < len(parts) or name.endswith("/")) and os.path.islink(path):
            target = os.path.realpath(path)
            if not target.startswith(f"{real}/"):
                raise Refused(f"{path} on the host is a link out of the project, to {target}", fix=["remove the link"])
    return path


def record_of(base: str) -> dict[str, Any]:
    """What was sent: the sender's own mark, and by path what the file was there, and when it was written here."""
    try:
        with open(os.path.join(base, RECORD)) as file:
            found: dict[str, Any] = json.load(file)
            return found
    except FileNotFoundError:
        return {"owner": "", "files": {}}


def keep_record(base: str, record: dict[str, Any]) -> None:
    write_aside(os.path.join(base, RECORD), json.dumps(record).encode(), 0o600)


def write_aside(path: str, content: bytes, mode: int) -> None:
    aside = f"{path}.{os.getpid()}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside)  # of a process that was killed and had this number
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            os.fchmod(handle, mode)
            file.flush()
            os.fsync(handle)
        os.rename(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise


@contextlib.contextmanager
def locked(base: str) -> Iterator[None]:
    """One command at a time changes the files."""
    handle = os.open(os.path.join(base, ".nv-remote.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if time.monotonic() > until:
                    raise Refused(
                        "the project's files are being sent by another command",
                        f"it has held them for {LOCK_SECONDS} s",
                        ["wait for it, or end it"],
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def sync(request: Request) -> None:
    """Have the files of the project be those of the sender; what the host made beside them stays."""
    base = own_base(request["dir"])
    for name, *_ in request["files"]:
        parts_of(name)
    try:
        os.makedirs(base, 0o700, exist_ok=True)
    except OSError as error:
        raise Refused(f"{base} can't be made", str(error), ["set remote.dir to another folder of the host"]) from None
    with locked(base):
        sweep(base)
        record = record_of(base)
        if not record["owner"] and (set(os.listdir(base)) - {".nv-remote.lock"}):
            raise Refused(
                f"{base} is there, and nothing that was sent before",
                fix=["set remote.dir to a folder of the project's own"],
            )
        if record["owner"] not in ("", request["owner"]):
            raise Refused(
                f"{base} belongs to another checkout",
                f"it was sent from {record.get('from', 'elsewhere')}",
                ["set remote.dir to another folder", f"or, to take it over, remove {os.path.join(base, RECORD)} there"],
            )
        wanted = {name: values for name, *values in request["files"]}
        files = record["files"]
        needed = [name for name, values in wanted.items() if not is_same(base, name, values, files.get(name))]
        removed = [name for name in files if name not in wanted]
        answer(need=needed, removed=removed, base=base, home=os.path.expanduser("~"))
        record.update(owner=request["owner"], **{"from": request["from"]})
        if needed or removed:
            try:
                for name in removed:
                    # first: what was a file may be a folder now, and the other way round
                    remove(base, name)
                    del files[name]
                receive(base, wanted, needed, files)
            finally:
                # also after half of it: what is noted is there, the rest is sent again
                keep_record(base, record)
            answer(done=True)


def sweep(base: str) -> None:
    """What a command left that was killed."""
    with os.scandir(base) as entries:
        for entry in entries:
            if entry.name.startswith(".nv-remote.") and entry.name.endswith((".yaml", ".command", ".pid", ".new")):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > 86_400:
                        os.unlink(entry.path)


def is_same(base: str, name: str, values: list[int], noted: list[int] | None) -> bool:
    """Whether a file is as it was sent; one that was changed on the host is not."""
    if noted is None or noted[:-1] != values:
        return False
    try:
        info = os.lstat(os.path.join(base, name))
    except OSError:
        return False
    return info.st_mtime_ns == noted[-1]


def receive(base: str, wanted: dict[str, list[int]], needed: list[str], files: dict[str, list[int]]) -> None:
    stream, due = Stream(), set(needed)
    with members(stream) as archive:
        for member in archive:
            if member.name not in due or not (member.isreg() or member.issym()) or member.issparse():
                raise Refused(f"a file came that was not asked for: {member.name!r}")
            path = os.path.join(base, member.name)
            folder = os.path.dirname(path)
            make_way(base, os.path.dirname(member.name))
            aside = os.path.join(folder, f".nv-remote.{os.getpid()}.new")
            try:
                if os.path.isdir(path) and not os.path.islink(path):
                    remove_tree(path)
                if member.issym():
                    os.symlink(member.linkname, aside)
                else:
                    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    with open(handle, "wb") as file:
                        source = archive.extractfile(member)
                        while source and (part := source.read(CHUNK)):
                            file.write(part)
                        os.fchmod(handle, member.mode & 0o777)
                os.rename(aside, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(aside)
                raise
            files[member.name] = [*wanted[member.name], os.lstat(path).st_mtime_ns]
    stream.drain()


def make_way(base: str, folder: str) -> None:
    """Folders down to one of the project's; a file or a link in the way of one goes."""
    path = base
    for part in filter(None, folder.split("/")):
        path = os.path.join(path, part)
        if os.path.islink(path) or (os.path.lexists(path) and not os.path.isdir(path)):
            os.unlink(path)
        if not os.path.isdir(path):
            os.mkdir(path)


def remove_tree(path: str) -> None:
    import shutil

    shutil.rmtree(path)


def remove(base: str, name: str) -> None:
    """A file, and the folders that are empty without it."""
    parts_of(name)
    path = os.path.join(base, name)
    if os.path.realpath(os.path.dirname(path)) != os.path.join(os.path.realpath(base), os.path.dirname(name)).rstrip(
        "/"
    ):
        return  # somebody has put a link in its way: what is behind that was never sent
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        os.unlink(path)
    while (path := os.path.dirname(path)) != base:
        try:
            os.rmdir(path)
        except OSError:
            return


# commands


def environment(request: Request) -> dict[str, str]:
    # a bash that sees an SSH client reads the account's .bashrc, at each command, with whatever that prints
    left_out = ("INVOKE_", "NV_", "SSH_CLIENT", "SSH2_CLIENT")
    given = {name: text for name, text in os.environ.items() if not name.startswith(left_out)}
    places = dict.fromkeys([*given.get("PATH", "").split(":"), *PLACES.split(":")])
    return {**given, "PATH": ":".join(filter(None, places)), **request["env"]}


def check_program(request: Request) -> None:
    """Whether the program is there; its packages are renewed if it asks for others by now."""
    program = request["argv"][0]
    if not os.access(program, os.X_OK):
        raise Refused(
            "it is not set up yet",
            f"there is no {program}",
            ["inv remote.check says what it lacks", "inv remote.bootstrap sets it up"],
        )
    if request["setup"]:
        done = subprocess.run(
            ["bash", request["setup"], "run"],  # noqa: S607
            env={**environment(request), "NV_NO_INSTALL": "1"},
            stdin=subprocess.DEVNULL,
            stdout=2,
        )
        if done.returncode:
            raise Refused("its packages could not be renewed", "above is why", ["inv remote.bootstrap"])


class Command:
    """What is to be run, with the file of settings that came along, which goes when it has ended."""

    def __init__(self, request: Request) -> None:
        base = base_of(request["dir"])
        self.folder = os.path.join(base, request["folder"])
        if not os.path.isdir(self.folder):  # one that is not sent
            self.folder = base
        self.env = environment(request)
        self.argv: list[str] = request["argv"]
        self.files: list[str] = []
        if request["given"]:
            path = self.file(base, "yaml", request["given"].encode())
            self.argv = [path if word == "{given}" else word for word in self.argv]

    def file(self, base: str, suffix: str, content: bytes) -> str:
        path = os.path.join(base, f".nv-remote.{os.getpid()}.{os.urandom(4).hex()}.{suffix}")
        self.files.append(path)
        write_aside(path, content, 0o600)
        return path

    def clean(self) -> None:
        for path in self.files:
            with contextlib.suppress(OSError):
                os.unlink(path)


class Ending:
    """The steps by which a process and what it started are ended, each when it is due."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.steps = list(PATIENCE)
        self.due = time.monotonic()

    def seconds(self) -> float:
        return max(0.0, self.due - time.monotonic())

    def go_on(self) -> None:
        if self.steps and not self.seconds():
            number, seconds = self.steps.pop(0)
            self.due = time.monotonic() + seconds
            signal_group(self.pid, number)


def signal_group(pid: int, number: int) -> None:
    """As a terminal does it: to all that the command has started for itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def guard_of(child: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Start a process that interrupts a command if this process is killed. It ends when it reads a line."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _ || kill -s INT -- "-$0"', str(child.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def run(request: Request) -> None:
    """Run a command to its end. From now on the sender says: ``.`` that it is there, ``I`` for an interrupt, ``D`` with
    a frame for the command's input, and an empty one for its end."""
    own_base(request["dir"])
    check_program(request)
    command = Command(request)
    try:
        child = subprocess.Popen(
            command.argv,
            cwd=command.folder,
            env=command.env,
            stdin=subprocess.PIPE if request["input"] else subprocess.DEVNULL,
            start_new_session=True,
        )
        guard = guard_of(child)
        answer(running=True)
        watched, told = os.pipe()
        threading.Thread(target=lambda: (child.wait(), os.write(told, b".")), daemon=True).start()
        attend(child, watched, request["silence"])
        guard.communicate(b"\n")
    finally:
        command.clean()
    sys.exit(child.returncode if child.returncode >= 0 else 128 - child.returncode)


def attend(child: subprocess.Popen[bytes], watched: int, silence: float) -> None:
    """Do as the sender says until the command has ended; when there is no sender any more, end it."""
    said = b""
    backlog: list[bytes] = []
    ending: Ending | None = None
    into = child.stdin.fileno() if child.stdin else None
    if into is not None:
        os.set_blocking(into, False)
    while True:
        full = sum(len(part) for part in backlog) > 4 * CHUNK
        listening = [] if ending or full else [0]
        seconds = ending.seconds() if ending else None if full else silence
        writing = [into] if into is not None and backlog else []
        ready, writable, _ = select.select([watched, *listening], writing, [], seconds)
        if watched in ready:
            return
        if ending:
            ending.go_on()
            continue
        if writable:
            backlog, into = feed(child, backlog, into)
        if full:
            continue
        part = os.read(0, CHUNK) if 0 in ready else b""
        if not part and not writable:
            ending = Ending(child.pid)
            continue
        said += part
        while said:
            if said[:1] == b"I":
                signal_group(child.pid, signal.SIGINT)
            if said[:1] != b"D":
                said = said[1:]
                continue
            if len(said) < 5 or len(said) < 5 + struct.unpack("!I", said[1:5])[0]:
                break
            end = 5 + struct.unpack("!I", said[1:5])[0]
            backlog.append(said[5:end])
            said = said[end:]
            if into is None:
                backlog.clear()  # nobody reads it any more


def feed(child: subprocess.Popen[bytes], backlog: list[bytes], into: int | None) -> tuple[list[bytes], int | None]:
    """Write what the command takes of its input now; an empty part is its end."""
    assert child.stdin is not None
    assert into is not None
    try:
        if backlog[0]:
            backlog[0] = backlog[0][os.write(into, backlog[0]) :]
            return (backlog if backlog[0] else backlog[1:]), into
    except BlockingIOError:
        return backlog, into
    except BrokenPipeError:
        pass
    child.stdin.close()
    return [], None


def prepare(request: Request) -> None:
    """Leave a command for another channel, one with a terminal, which has no place for what is secret; then see to it
    that it ends when there is no sender any more: behind a dead cable a terminal hears of that after hours."""
    base = own_base(request["dir"])
    check_program(request)
    command = Command(request)
    try:
        content = {"argv": command.argv, "folder": command.folder, "env": command.env}
        path = command.file(base, "command", json.dumps(content).encode())
        command.files.append(f"{path}.pid")
        answer(command=path)
        while True:
            ready, _, _ = select.select([0], [], [], request["silence"])
            if not ready or not os.read(0, CHUNK):
                break
        try:
            with open(f"{path}.pid") as file:
                ending = Ending(int(file.read()))
        except (OSError, ValueError):
            return  # it never began
        while ending.steps and group_lives(ending.pid):
            ending.go_on()
            time.sleep(0.1)
    finally:
        command.clean()


def group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def survey(request: Request) -> None:
    """What the host is and has, as far as that can be seen without the program."""
    import platform
    import shutil
    import socket

    base = base_of(request["dir"])
    there = base
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    path = environment({"env": {}})["PATH"]
    taken = []
    for port in request["ports"]:
        with socket.socket() as one:
            one.settimeout(1)
            if one.connect_ex(("127.0.0.1", port)) == 0:
                taken.append(port)
    try:
        with open("/etc/os-release") as file:
            release = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
        system = release.get("PRETTY_NAME", "").strip('"')
    except OSError:
        system = ""
    answer(
        system=system or platform.platform(),
        machine=platform.machine(),
        python=[platform.python_version(), sys.executable],
        base=base,
        home=os.path.expanduser("~"),
        free=shutil.disk_usage(there).free,
        writable=os.access(there, os.W_OK) and not others(base),
        programs={name: shutil.which(name, path=path) or "" for name in request["programs"]},
        taken=taken,
        sent="" if others(base) else record_of(base).get("from", ""),
    )


# files that come and go one by one


def listing(request: Request) -> None:
    """The files of folders, with their sizes and times; a folder in one is its name and ``/``."""
    base, found = own_base(request["dir"]), {}
    for folder in request["folders"]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(inside(base, f"{folder}/")) as it:
            for entry in it:
                if entry.is_symlink():
                    continue
                info = entry.stat()
                name = os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")
                found[name] = [info.st_size, info.st_mtime_ns]
    answer(files=found)


def get(request: Request) -> None:
    """The contents of files, a stream each, of folders as tar; of one that can't be read, the answer says why."""
    base = own_base(request["dir"])
    for name in request["files"]:
        path = inside(base, name)
        try:
            file = None if name.endswith("/") else open_regular(path)
            os.listdir(path) if file is None else None
        except OSError as error:
            answer(error=f"{name} can't be read on the host", why=error.strerror or str(error), fix=[])
            continue
        answer(here=True)
        if file is None:
            with tar(Sink(), "w|") as archive:
                archive.add(path, ".")
        else:
            with file:
                while part := file.read(CHUNK):
                    give(part)
        give(b"")


def open_regular(path: str) -> Any:
    """Open a file to read it.

    :raises OSError: it is a link, or something else that is no file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file")
    return open(handle, "rb")


def tar(file: Any, mode: Any, **options: Any) -> Any:
    """A tar stream from or to a file."""
    import tarfile

    return tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT, **options)


@contextlib.contextmanager
def members(stream: Stream) -> Iterator[Any]:
    """Open a tar stream of the sender.

    :raises Refused: it is none, or a header of it is too long to be read into memory.
    """
    import tarfile

    class Member(tarfile.TarInfo):
        def _proc_member(self, archive: Any) -> Any:
            if self.type not in tarfile.REGULAR_TYPES and self.size > LONGEST_HEADER:
                raise Refused("a header is too long")
            return super()._proc_member(archive)  # type: ignore[misc]

    try:
        with tar(stream, "r|", tarinfo=Member) as archive:
            yield archive
    except tarfile.TarError as error:
        raise Refused("the files did not arrive whole", str(error)) from None


class Sink:
    """Frames to the sender, as a file."""

    def write(self, content: bytes) -> int:
        if content:
            give(bytes(content))
        return len(content)


def put(request: Request) -> None:
    """A file, or with ``tree`` a folder as tar; under a name of its own until it is whole."""
    base = own_base(request["dir"])
    final = inside(base, request["path"])
    aside = os.path.join(os.path.dirname(final), f".nv-remote.{os.urandom(4).hex()}.partial")
    os.makedirs(os.path.dirname(final), 0o700, exist_ok=True)
    stream = Stream()
    try:
        if request["tree"]:
            os.mkdir(aside, 0o700)
            unpack(stream, aside)
        else:
            handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, request["mode"])
            with open(handle, "wb") as file:
                while part := stream.read(CHUNK):
                    file.write(part)
                file.flush()
                os.fsync(handle)
        if os.path.isdir(final) and not os.path.islink(final):
            remove_tree(final)  # half of one: whoever has it whole has not sent it
        os.replace(aside, final)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_tree(aside) if os.path.isdir(aside) else os.unlink(aside)
        raise
    answer(done=True)


LONGEST_HEADER = 1 << 20
"""Bytes of a member's name and attributes, which are read into memory."""


def unpack(stream: Stream, folder: str) -> None:
    """The files and folders of a tar stream. Those who wrote it are not trusted with places outside of it."""
    with members(stream) as archive:
        for member in archive:
            parts = [part for part in member.name.split("/") if part not in ("", ".")]
            if (
                member.name.startswith("/")
                or ".." in parts
                or "\0" in member.name
                or not (member.isdir() or member.isreg())
                or member.issparse()  # a few bytes that say they are gigabytes
            ):
                raise Refused(f"{member.name!r} can't be part of a backup")
            path = os.path.join(folder, *parts)
            if member.isdir():
                os.makedirs(path, 0o700, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "wb") as file:
                source = archive.extractfile(member)
                while source and (part := source.read(CHUNK)):
                    file.write(part)
    stream.drain()


def drop(request: Request) -> None:
    """Remove files and folders that were named by :func:`listing`."""
    base = own_base(request["dir"])
    for name in request["files"]:
        path = inside(base, name.rstrip("/"))
        with contextlib.suppress(FileNotFoundError):
            remove_tree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    answer(done=True)


DEEDS: dict[str, Callable[[Request], None]] = {
    f.__name__: f for f in (sync, run, prepare, survey, listing, get, put, drop)
}


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.write(1, GREETING)
    while True:
        try:
            request = json.loads(take_frame())
            DEEDS[request["do"]](request)
        except Gone:
            return
        except Refused as refused:
            answer(**refused.answer)
            sys.exit(1)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            answer(
                error="the host could not take it",
                why=str(error),
                fix=["make room on the host"] if full else [],
            )
            sys.exit(1)


if __name__ == "agent":
    main()
