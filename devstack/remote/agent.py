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
import tarfile
import threading
import time
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GREETING = b"\0nv-devstack agent 1\0"
CHUNK = 1 << 18
RECORD = ".nv-remote.json"
LOCK_SECONDS = 60
PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin"
"""Where programs are that a shell without a login does not look for."""


Request = Any
"""What :mod:`devstack.remote.talk` asks for: a dict from JSON."""


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
        part = os.read(0, count - len(found))
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

    def read(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count and not self.ended:
            if not self.rest:
                self.rest = take_frame()
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
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
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
    handle = os.open(os.path.join(base, ".nv-remote.lock"), os.O_RDWR | os.O_CREAT, 0o600)
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
    base = base_of(request["dir"])
    try:
        os.makedirs(base, 0o700, exist_ok=True)
    except OSError as error:
        raise Refused(f"{base} can't be made", str(error), ["set remote.dir to another folder of the host"]) from None
    with locked(base):
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
                receive(base, wanted, needed, files)
                for name in removed:
                    remove(base, name)
                    del files[name]
            finally:
                # also after half of it: what is noted is there, the rest is sent again
                keep_record(base, record)
            answer(done=True)


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
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as archive:
        for member in archive:
            if member.name not in due:
                raise Refused(f"a file came that was not asked for: {member.name!r}")
            path = os.path.join(base, member.name)
            folder = os.path.dirname(path)
            os.makedirs(folder, exist_ok=True)
            if os.path.commonpath([os.path.realpath(folder), os.path.realpath(base)]) != os.path.realpath(base):
                raise Refused(f"{folder} leads out of {base}", "it is a symbolic link", ["remove it there"])
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
                        os.fchmod(handle, stat.S_IMODE(member.mode))
                os.rename(aside, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(aside)
                raise
            files[member.name] = [*wanted[member.name], os.lstat(path).st_mtime_ns]
    stream.drain()


def remove_tree(path: str) -> None:
    import shutil

    shutil.rmtree(path)


def remove(base: str, name: str) -> None:
    """A file, and the folders that are empty without it."""
    path = os.path.join(base, name)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        os.unlink(path)
    while (path := os.path.dirname(path)) != base:
        try:
            os.rmdir(path)
        except OSError:
            return


# commands


def environment(request: Request) -> dict[str, str]:
    given = {name: text for name, text in os.environ.items() if not name.startswith(("INVOKE_", "NV_"))}
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
            [request["setup"], "run"],
            env={**environment(request), "NV_NO_INSTALL": "1"},
            stdin=subprocess.DEVNULL,
            stdout=2,
        )
        if done.returncode:
            raise Refused("its packages could not be renewed", "above is why", ["inv remote.bootstrap"])


def command_of(request: Request) -> list[str]:
    """The words of a command, with the file of settings that came along."""
    words: list[str] = request["argv"]
    if request["given"]:
        path = os.path.join(base_of(request["dir"]), ".nv-remote.given.yaml")
        write_aside(path, request["given"].encode(), 0o600)
        words = [path if word == "{given}" else word for word in words]
    return words


def run(request: Request) -> None:
    """Run a command to its end. From now on each byte that comes is a sign of life, or an ``I`` for an interrupt."""
    check_program(request)
    base = base_of(request["dir"])
    answer(running=True)
    child = subprocess.Popen(
        command_of(request),
        cwd=os.path.join(base, request["folder"]),
        env=environment(request),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    watched, told = os.pipe()
    threading.Thread(target=lambda: (child.wait(), os.write(told, b".")), daemon=True).start()
    patience = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
    listening = True
    while True:
        seconds = request["silence"] if listening else 15
        ready, _, _ = select.select([watched, 0] if listening else [watched], [], [], seconds)
        if watched in ready:
            break
        said = os.read(0, CHUNK) if 0 in ready else b""
        if said and b"I" not in said:
            continue
        if not said:
            listening = False
        with contextlib.suppress(ProcessLookupError):
            # as a terminal does it: to all that the command has started for itself
            os.killpg(child.pid, signal.SIGINT if said else patience.pop(0) if len(patience) > 1 else patience[0])
    sys.exit(child.returncode if child.returncode >= 0 else 128 - child.returncode)


def prepare(request: Request) -> None:
    """Leave a command for another channel, one with a terminal, which has no place for what is secret."""
    check_program(request)
    base = base_of(request["dir"])
    path = os.path.join(base, f".nv-remote.{os.getpid()}.command")
    command = {
        "argv": command_of(request),
        "folder": os.path.join(base, request["folder"]),
        "env": environment(request),
    }
    write_aside(path, json.dumps(command).encode(), 0o600)
    answer(command=path)


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
        writable=os.access(there, os.W_OK),
        programs={name: shutil.which(name, path=path) or "" for name in request["programs"]},
        taken=taken,
        sent=record_of(base).get("from", ""),
    )


# files that come and go one by one


def listing(request: Request) -> None:
    """The files of folders, with their sizes and times; a folder in one is its name and ``/``."""
    base, found = base_of(request["dir"]), {}
    for folder in request["folders"]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(os.path.join(base, folder)) as it:
            for entry in it:
                if entry.is_symlink():
                    continue
                info = entry.stat()
                name = os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")
                found[name] = [info.st_size, info.st_mtime_ns]
    answer(files=found)


def get(request: Request) -> None:
    """The files' contents, a stream each; of one that can't be read, the answer says why."""
    base = base_of(request["dir"])
    for name in request["files"]:
        try:
            file = open(os.path.join(base, name), "rb")  # noqa: SIM115
        except OSError as error:
            answer(error=f"{name} can't be read on the host", why=error.strerror or str(error), fix=[])
            continue
        with file:
            answer(size=os.fstat(file.fileno()).st_size)
            while part := file.read(CHUNK):
                give(part)
            give(b"")


def put(request: Request) -> None:
    """Files, a stream each, under a folder of a name of its own until the last one is whole; or one file."""
    base = base_of(request["dir"])
    final = os.path.join(base, request["path"])
    aside = os.path.join(os.path.dirname(final), f".nv-remote.{os.getpid()}.partial")
    os.makedirs(os.path.dirname(final), 0o700, exist_ok=True)
    try:
        if request["files"]:
            os.mkdir(aside, 0o700)
        for name in request["files"] or [""]:
            path = os.path.join(aside, name) if name else aside
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, request["mode"])
            stream = Stream()
            with open(handle, "wb") as file:
                while part := stream.read(CHUNK):
                    file.write(part)
                file.flush()
                os.fsync(handle)
        os.replace(aside, final)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_tree(aside) if os.path.isdir(aside) else os.unlink(aside)
        raise
    answer(done=True)


def drop(request: Request) -> None:
    """Remove files and folders that were named by :func:`listing`."""
    base = base_of(request["dir"])
    for name in request["files"]:
        path = os.path.join(base, name.rstrip("/"))
        with contextlib.suppress(FileNotFoundError):
            remove_tree(path) if os.path.isdir(path) else os.unlink(path)
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
            return
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            answer(
                error="the host could not take it",
                why=str(error),
                fix=["make room on the host"] if full else [],
            )
            return


if __name__ == "agent":
    main()
