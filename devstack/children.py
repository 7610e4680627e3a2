"""Programs that this process has started and waits for: they end with it, also when it is killed.

A process that is killed can end nothing itself, and what it has started would go on: write to files that the next
command removes, or keep locks in the database. The kernel's own means (PR_SET_PDEATHSIG, prctl(2)) reaches only the
first process of each command, forgets it when that changes its account, and there is none on macOS. So a
:class:`Guard` is told which programs run, and ends them with all that they have started.

Services and tunnels, which are to outlive the command, are started by others or detach themselves.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator

from devstack.guard import Guard

PATIENCE = 2.0
"""Seconds for a program to end by itself, before it is killed."""
SAME = 5.0
"""Seconds by which two clocks of the system may differ on when a process was started."""
LONGEST = 20.0
"""Time limit, in seconds, for a command that ends a process in a container."""

_lock = threading.Lock()
_guard: Guard | None = None
_running: dict[int, list[str]] = {}
"""The words for the guard, by process id. Like open files they belong to the process, not to a command in it."""


def prepare() -> None:
    """Start the guard, before the first program, to keep the time short in which a program is not guarded."""
    global _guard
    with _lock:
        if _guard is None:
            _guard = Guard("devstack.children")
            atexit.register(stop)


def add(pid: int, endings: Iterable[str] = ()) -> None:
    """Have a program end with this process from now on, until :func:`remove`.

    :param endings: shell commands that end what it has started where its own processes are not seen, in a container.
    """
    words = [f"pid:{pid}:{time.time()}"]
    words += [f"run:{base64.b64encode(line.encode()).decode()}" for line in endings]
    prepare()
    with _lock:
        _running[pid] = words
        _tell()


def remove(pid: int) -> None:
    """Say that a program has ended."""
    with _lock:
        if _running.pop(pid, None):
            _tell()


@contextlib.contextmanager
def guarded(pid: int, endings: Iterable[str] = ()) -> Iterator[None]:
    """Have a program end with this process while this is open; see :func:`add`."""
    add(pid, endings)
    try:
        yield
    finally:
        remove(pid)


def stop() -> None:
    """Let the guard go, before this process ends. It ends what a thread that hangs has left."""
    global _guard
    with _lock:  # a thread may go on meanwhile
        if _guard is not None and _running:
            _guard.leave()
        elif _guard is not None:
            _guard.close()
        _guard = None


def _tell() -> None:
    if _guard is not None:
        _guard.tell(*dict.fromkeys(word for words in _running.values() for word in words))


def main(words: list[str]) -> None:
    """End the programs that a process has left. Called by the guard."""
    parts = [word.split(":") for word in words]
    end([(int(part[1]), float(part[2])) for part in parts if part[0] == "pid"])
    run_all([base64.b64decode(part[1]).decode() for part in parts if part[0] == "run"])


def run_all(endings: Iterable[str]) -> None:
    """Run the shell commands that end what a program has started in a container."""
    for line in endings:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["/bin/sh", "-c", line],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=LONGEST,
            )


def end(started: Iterable[tuple[int, float]]) -> None:
    """End processes with all that they have started: at first as a terminal would, then for good.

    :param started: process ids, each with the time when it was known to run, in seconds since the epoch. A process that
        is younger has only got the id of one that has ended.
    """
    import psutil

    found: list[psutil.Process] = []
    for pid, when in started:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() <= when + SAME:
                found += [process, *process.children(recursive=True)]
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(found, timeout=PATIENCE)
    for process in left:
        with contextlib.suppress(psutil.Error):
            for one in [*process.children(recursive=True), process]:
                with contextlib.suppress(psutil.Error):
                    one.kill()
