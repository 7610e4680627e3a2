"""Commands in the process of the tests, which costs a fraction of a process of its own and keeps them as much apart.

The program is this checkout's, whatever tasks and templates the directory lacks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextvars import copy_context
from pathlib import Path
from typing import IO, Any

from tasks.program import Nv


class Inv(Nv):
    """``nv``, called ``inv``: its project is the directory that it is called in, whatever is there."""

    typed_name = "inv"

    def find_project(self) -> Path:
        return Path.cwd()


def run(
    *args: str, directory: Path, env: Mapping[str, str], program: type[Nv] = Inv
) -> subprocess.CompletedProcess[str]:
    """Run a command line in a directory, with this environment alone."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull) as nothing:
        with _restored(), _redirected({0: nothing, 1: out, 2: err}):
            _have_environ(env)
            os.chdir(directory)
            # the application may have set up its own log in this process, for another test
            logging.root.handlers = []
            logging.root.setLevel(logging.WARNING)
            os.execvpe = _refuse  # type: ignore[assignment]
            sys.argv = [program.typed_name, *args]
            try:
                copy_context().run(program().run, list(sys.argv))
                code = 0
            except SystemExit as end:
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
                code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        stdout, stderr = (_content(stream) for stream in (out, err))
    return subprocess.CompletedProcess(args, code, stdout, stderr)


def _have_environ(env: Mapping[str, str]) -> None:
    for name in os.environ.keys() - env.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in env.items() if os.environ.get(name) != value})
    time.tzset()


def _content(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()


@contextlib.contextmanager
def _redirected(streams: Mapping[int, IO[Any]]) -> Iterator[None]:
    """Have the three standard streams lead elsewhere, for this process and for those that it starts."""
    kept = {number: os.dup(number) for number in streams}
    try:
        for number, stream in streams.items():
            os.dup2(stream.fileno(), number)
        with (
            open(0, closefd=False) as sys.stdin,
            open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as sys.stdout,
            open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as sys.stderr,
        ):
            yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)


def _refuse(*_: object) -> None:
    raise AssertionError("the tests would become this command: run it in a process of its own")


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Have what belongs to the process afterwards as it was before."""
    environ, directory = dict(os.environ), os.getcwd()
    kept = {name: getattr(sys, name) for name in ("argv", "stdin", "stdout", "stderr", "excepthook", "path")}
    execvpe, bytecode, path = os.execvpe, sys.dont_write_bytecode, list(sys.path)
    handlers: dict[Any, Any] = {number: signal.getsignal(number) for number in signal.valid_signals()}
    root = logging.root
    logs = root.level, [(handler, list(handler.filters)) for handler in root.handlers]
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(sys, name, value)
        os.execvpe = execvpe
        sys.dont_write_bytecode, sys.path[:] = bytecode, path
        os.chdir(directory)
        _have_environ(environ)
        for number, handler in handlers.items():
            if handler is not signal.getsignal(number):
                signal.signal(number, handler)
        root.setLevel(logs[0])
        root.handlers = [handler for handler, _ in logs[1]]
        for handler, filters in logs[1]:
            handler.filters[:] = filters
