"""Commands in the process of the tests, which costs a fraction of a process of its own and keeps them as much apart.

The program is this checkout's, whatever tasks and templates the directory lacks.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextvars import copy_context
from pathlib import Path
from typing import Any

from tasks.program import Nv
from tests.conftest import Project


class Inv(Nv):
    """``nv``, called ``inv``: its project is the directory that it is called in, whatever is there."""

    typed_name = "inv"

    def find_project(self) -> Path:
        return Path.cwd()


def run(
    *args: str, directory: Path, env: Mapping[str, str], program: type[Nv] = Inv
) -> subprocess.CompletedProcess[str]:
    """Run a command line in a directory, with this environment alone."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace") for _ in range(2))
    with _restored(), open(os.devnull) as nothing:
        os.environ.clear()
        os.environ.update(env)
        os.chdir(directory)
        os.execvpe = _refuse  # type: ignore[assignment]
        sys.argv = [program.typed_name, *args]
        sys.stdin, sys.stdout, sys.stderr = nothing, out, err
        try:
            copy_context().run(program().run, list(sys.argv))
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    for stream in (out, err):
        stream.flush()
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess(args, code, stdout, stderr)


def inv(project: Project, *args: str, expect: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a task of a project as :meth:`Project.inv` does."""
    assert project.user is None, "another user needs a process"
    done = run(*args, directory=project.root, env={**project.env, **env})
    assert done.returncode == expect, f"inv {args} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert "Traceback (most recent call last)" not in done.stderr
    return done


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
        os.environ.clear()
        os.environ.update(environ)
        for number, handler in handlers.items():
            if handler is not signal.getsignal(number):
                signal.signal(number, handler)
        root.level, root.handlers = logs[0], [handler for handler, _ in logs[1]]
        for handler, filters in logs[1]:
            handler.filters[:] = filters
