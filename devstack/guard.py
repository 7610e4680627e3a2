"""What is to be done when this process ends before it could do it itself, as by ``kill -9``."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

WAIT = """
last=
while IFS= read -r line; do last=$line; done
[ -z "$last" ] || exec "$@" $last
"""
"""Lines of sh(1), as an interpreter of Python would take a hundred times as long to start: nearly always there is
nothing to do in the end. A line that was cut off in the middle does not count."""

PATIENCE = 2.0
"""Seconds for the guard to end."""
RUN = """\
import importlib, sys
sys.path[0] = {root!r}
importlib.import_module({module!r}).main(sys.argv[1:])
"""


class Guard:
    """A small process that outlives this one. Once this one is gone, however it ended, it runs the function ``main`` of
    a module, with the words that it was told last; if these are none, it just ends.

    It has a session of its own, so that neither Ctrl-C nor the end of a terminal ends it first.
    """

    def __init__(
        self, module: str, words: Sequence[str] = (), *, env: Mapping[str, str] | None = None, log: int | None = None
    ) -> None:
        """
        :param words: what ``main`` is given before the words that it is told. Everybody can read them: no secrets.
        :param env: the environment of ``main``; that of this process if it is None.
        :param log: a file descriptor for what ``main`` prints.
        """
        root = Path(__file__).resolve().parent.parent
        run = RUN.format(root=str(root), module=module)
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", WAIT, "sh", sys.executable, "-c", run, *words],
            cwd="/",
            env=None if env is None else dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if log is None else log,
            stderr=subprocess.DEVNULL if log is None else log,
            start_new_session=True,
            bufsize=0,
        )
        self._lock = threading.Lock()
        assert self._process.stdin
        self._pipe = self._process.stdin
        os.set_blocking(self._pipe.fileno(), False)  # a stopped guard (SIGSTOP) must not block this process

    @property
    def pid(self) -> int:
        """Process id of the guard."""
        return self._process.pid

    def tell(self, *words: str) -> None:
        """Say what is to be done if this process ends from now on; without words nothing.

        :param words: without blanks in them.
        """
        with self._lock, contextlib.suppress(OSError):  # somebody may have ended the guard
            self._pipe.write(f"{' '.join(words)}\n".encode())

    def leave(self) -> None:
        """Have done now what was told last, without waiting for it."""
        self._pipe.close()

    def close(self) -> None:
        """End the guard: nothing is to be done any more."""
        self.tell()
        self.leave()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            self._process.kill()
            self._process.wait()


def append(path: Path) -> int:
    """Open a log file to append to it, for its owner alone; a descriptor."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
