"""The running application, sampled from outside by py-spy (https://github.com/benfred/py-spy): it is neither restarted
nor changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack import children, console
from devstack.errors import StackError, UsageError
from devstack.lock import StackLock
from devstack.profiling import files, flamegraph
from devstack.profiling.flamegraph import Function
from devstack.shell import Command, Word, argv

if TYPE_CHECKING:
    from devstack.stack import Stack

LONGEST = 3600
"""Seconds."""
RATES = (1, 1000)
"""Samples a second; each stops the process for about a tenth of a millisecond."""
PATIENCE = 30.0
"""Seconds for py-spy to begin and to draw, beyond the time that it samples."""
IDLE = "No stack counts"
REFUSALS = ("Permission", "requires root", "Operation not permitted")
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
"""1 where only a parent may look into a process: https://docs.kernel.org/admin-guide/LSM/Yama.html"""
LOAD = "inv dev.load --only api"
FEW = 50
"""Fewer samples than this say little."""


class Profile(Struct, frozen=True):
    """What a process did. Samples are of its threads. Those that wait are mostly left out; what was caught of them is
    ``waiting``, and in no function."""

    path: Path
    pid: int
    seconds: float
    rate: int
    samples: int
    waiting: int
    functions: list[Function]
    notes: list[str]


def profile(stack: Stack, *, seconds: float, rate: int, output: str, sudo: bool, now: datetime) -> Profile | None:
    """Sample the application for some seconds, fewer on Ctrl-C, and write a flame graph; None in a dry run.

    :raises UsageError: a flag's value is wrong.
    :raises StackError: it does not run, may not be looked into, or did nothing.
    """
    if not 1 <= seconds <= LONGEST:
        raise UsageError(f"--seconds {seconds:g} is not possible", fix=f"from 1 to {LONGEST}")
    if not RATES[0] <= rate <= RATES[1]:
        raise UsageError(f"--rate {rate} is not possible", fix=f"from {RATES[0]} to {RATES[1]} samples a second")
    path = files.destination(stack, output, "profile", ".svg", now)
    program = _program()
    pid = _server(stack)
    with _folder(stack) as folder:
        drawn = folder / "profile.svg"
        command = _command(program, pid, seconds, rate, drawn, sudo=sudo)
        if stack.context.dry:
            console.command(command)
            console.out(f"# write {path} (0600)")
            return None
        began = time.monotonic()
        said = _record(stack, command, seconds, sudo=sudo)
        took = min(time.monotonic() - began, seconds)
        svg = drawn.read_text(errors="replace") if drawn.is_file() else ""
    own = _own(stack)
    graph = flamegraph.read(svg, own)
    if not (working := graph.samples - graph.waiting):
        raise _why_nothing(stack, IDLE if graph.samples else said, pid, seconds=took, sudo=sudo)
    title = f"{stack.api.name}: where the application's time goes"
    subtitle = (
        f"{graph.samples} samples in {took:.0f} s, {rate} a second · the wider, the more time"
        f" · blue: your own source · grey: waiting · {now:%Y-%m-%d %H:%M} UTC"
    )
    files.write(stack, path, flamegraph.dressed(svg, title, subtitle, own))
    notes = [f"the application ended or was restarted after {took:.0f} s"] if took < seconds - 2 and _gone(pid) else []
    if working < FEW:
        notes.append(
            f"{working} samples of work are few: the application was mostly idle. Give it work meanwhile, in another"
            f" terminal: {LOAD} --seconds {max(seconds, 10):.0f}"
        )
    return Profile(path, pid, round(took, 1), rate, graph.samples, graph.waiting, graph.functions, notes)


def _program() -> str:
    """py-spy beside our interpreter, or on the PATH."""
    beside = Path(sys.executable).parent / "py-spy"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")
    if not found:
        raise StackError(
            "py-spy is not installed",
            why="it comes with the stack, but not where there is no build of it, as for Alpine",
            fix=[f"{sys.executable} -m pip install py-spy", "on Alpine: apk add py-spy (from edge/testing)"],
        )
    return found


def _server(stack: Stack) -> int:
    """The process of uvicorn, as this machine numbers it.

    :raises StackError: it does not run, or not on this machine.
    """
    state = stack.context.states(stack.names)[stack.api.name]
    if stack.context.dry and not state.running:
        return 0
    if not state.running:
        raise StackError(f"{stack.api.name} is {state.status}", why=state.detail, fix="inv dev.up")
    contained = stack.context.runtime.contained
    if contained and not (state.pid and stack.context.host.is_here(state.pid, state.id)):
        raise StackError(
            f"the process of {stack.api.name} can't be looked into from here",
            why=f"{stack.context.runtime.name} runs its containers in a virtual machine",
            fix=[
                "profile it on the native runtime, in an environment of its own:",
                "NV_ENV=profile INVOKE_STACK_RUNTIME=native inv dev.up, then the same before inv api.profile",
            ],
        )
    return _uvicorn(state.pid)


def _uvicorn(pid: int) -> int:
    """The server itself, which may be below what watches for changes, or a container's init."""
    import psutil

    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[1:3] == ["-m", "uvicorn"]:
                    return process.pid
    return pid


@contextlib.contextmanager
def _folder(stack: Stack) -> Iterator[Path]:
    """A folder of nobody else for the time being; what a kill left in it goes first."""
    folder = stack.paths.state / "profiling"
    if stack.context.dry:
        yield folder
        return
    lock = StackLock(stack.paths.state / "profiling-lock", stack.settings.stack.lock_timeout)
    lock.acquire()
    stack.context.host.remove(folder)
    stack.context.host.make_dir(folder, 0o700)
    try:
        yield folder
    finally:
        stack.context.host.remove(folder)
        lock.release()


def _command(program: str, pid: int, seconds: float, rate: int, drawn: Path, *, sudo: bool) -> Command:
    words: list[Word] = [program, "record", "--pid", pid, "--duration", max(1, round(seconds)), "--rate", rate]
    # by function: with a frame for each line the same function would be drawn many times
    words += ["--subprocesses", "--function", "--output", drawn]
    return argv([*(["sudo"] if sudo else []), *words])


def _record(stack: Stack, command: Command, seconds: float, *, sudo: bool) -> str:
    """Run py-spy to its end, which Ctrl-C brings about early; what it said."""
    # it asks for the password here, not below the bar
    if sudo and stack.context.interact(argv(["sudo", "-v"])):
        raise StackError("sudo does not let you", fix="without --sudo py-spy runs as you")
    children.prepare()
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=not sudo,  # sudo's permission is for this terminal; otherwise Ctrl-C is ours to pass on
    )
    began = time.monotonic()
    with stack.context.guarded(process):
        try:
            with files.progress(f"sampling {stack.api.name}", seconds) as show:
                while time.monotonic() - began < seconds + PATIENCE:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return process.communicate(timeout=0.2)[1]
                    show(time.monotonic() - began)
        except KeyboardInterrupt:
            if not sudo:
                process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=PATIENCE)[1]
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    raise StackError("py-spy did not end", why=f"it was given {seconds + PATIENCE:.0f} s", fix="try it again")


def _gone(pid: int) -> bool:
    import psutil

    return not psutil.pid_exists(pid)


def _own(stack: Stack) -> Callable[[str], bool]:
    """Whether a file is the application's: py-spy names files by where they are on the path of modules."""
    folder = stack.api.folder
    known: dict[str, bool] = {}

    def own(file: str) -> bool:
        if file not in known:
            inside = Path(file)
            known[file] = (inside.parts[:1] == (folder.name,) and (folder.parent / file).is_file()) or (
                not inside.is_absolute() and (folder / file).is_file()
            )
        return known[file]

    return own


def _why_nothing(stack: Stack, said: str, pid: int, *, seconds: float, sudo: bool) -> StackError:
    """What to say when there is no graph."""
    name = stack.api.name
    if any(words in said for words in REFUSALS) or ("No python processes" in said and not _may_look(pid)):
        return StackError(
            f"py-spy may not look into {name} (pid {pid})",
            why="the system lets only root look into another process here",
            fix=_permit(asked=sudo or stack.context.host.is_root),
        )
    if IDLE in said:
        return StackError(
            f"{name} was idle: there is no sample of work in {seconds:.0f} s",
            fix=f"give it work meanwhile, in another terminal: {LOAD} --seconds {max(seconds, 10):.0f}",
        )
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("py-spy>")]
    lines = lines[: next((i for i, line in enumerate(lines) if line.startswith("Stack backtrace")), len(lines))]
    evidence = [stack.context.mask(line) for line in lines[:8]]
    if _gone(pid):
        return StackError(f"{name} ended or was restarted while it was sampled", evidence=evidence, fix="try it again")
    return StackError(f"py-spy could not sample {name} (pid {pid})", evidence=evidence)


def _may_look(pid: int) -> bool:
    """Whether this user may attach to a process, as proc(5) says of its memory; elsewhere than on Linux nobody may."""
    try:
        with open(f"/proc/{pid}/mem", "rb"):
            return True
    except OSError:
        return False


def _permit(*, asked: bool) -> list[str]:
    """What lets py-spy look into a process."""
    if asked:
        return ["where this is a container itself, it needs a capability: docker run --cap-add SYS_PTRACE"]
    fix = ["inv api.profile --sudo"]
    if YAMA.exists():
        fix.append(f"or allow it to yourself until the machine's next start: echo 0 | sudo tee {YAMA}")
    return fix
