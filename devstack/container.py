"""ContainerContext: the one object through which every command runs.

It wraps an :class:`invoke.Context` and a runtime, carries out the runtime's steps, and writes each command with its
duration and exit code to ``logs/devstack.log``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from invoke.runners import Local
from msgspec import Struct
from msgspec.structs import replace

from devstack import children, console
from devstack.errors import CommandError, StackError
from devstack.host import Host
from devstack.masking import hide_url_passwords
from devstack.mishaps import fix_of
from devstack.paths import Paths
from devstack.runtimes import Crash, EngineError, File, Runtime, ServiceSpec, ServiceState, Step, Usage
from devstack.runtimes.containers import Containers
from devstack.shell import TIMED_OUT, Command, Request, sh
from devstack.threads import run_at_once

if TYPE_CHECKING:
    import logging

    from invoke import Context, Result

NO_INPUT = "exec </dev/null\n"
"""Invoke leaves a command's input open without ever writing to it: what reads it would wait for ever."""
ENGINE_SECONDS = 10.0
"""For the engine to end, which has nothing left to stop."""
NOT_FOUND = 127
"""A shell's exit code for a program that is not there (POSIX, 2.8.2)."""
PROVEN_SECONDS = 0.3
"""For which a listener that was found to be a service counts as that: a load opens hundreds of connections a second."""
CHUNK = 1 << 18
"""Bytes that a stream holds at a time."""
MARK = "NV_COMMAND"
"""Variable of all that a command runs in a service's container, by which it is found there."""
ERRORS = 1 << 22
"""Bytes at the end of what a command says that are looked at: psql shows the whole statement that failed."""
LINES = 10
"""Lines of it that are shown."""


class Probed(Struct, frozen=True):
    """What a program answered, both streams in one. ``exited`` is None where it did not end in time."""

    exited: int | None
    text: str

    @property
    def ok(self) -> bool:
        return self.exited == 0

    def version(self) -> str:
        """The first version number in the answer; empty without one."""
        match = re.search(r"\d+(\.\d+)+", self.text)
        return match[0] if match and self.ok else ""


class _Local(Local):
    """Invoke's runner of commands, with three differences: Ctrl-C ends the task too, not only the command, whenever it
    comes; a command ends with this process, also when that is killed; and it is looked after every 1 ms rather than
    every 10, which is longer than most of ours take."""

    input_sleep = 0.001
    endings: Sequence[str] = ()
    """Commands that end what a command has started in a container."""
    _interrupts = 0
    _started = 0

    def start(self, command: str, shell: str, env: dict[str, Any]) -> None:
        children.prepare()
        super().start(command, shell, env)
        self._started = self.pid if self.using_pty else self.process.pid
        children.add(self._started, self.endings)

    def run(self, command: str, **kwargs: Any) -> Result | None:
        try:
            result: Result | None = super().run(command, **kwargs)
        except BaseException:
            self._end()
            raise
        if self._interrupts:
            children.run_all(self.endings)
            raise KeyboardInterrupt
        return result

    def send_interrupt(self, interrupt: KeyboardInterrupt) -> None:
        """Pass Ctrl-C on to the command, which may end in its own way; the second one kills it. A terminal has done so
        already, but not whoever sends a signal to this process alone."""
        self._interrupts += 1
        _signal_tree(self.process.pid, signal.SIGINT if self._interrupts == 1 else signal.SIGKILL)

    def _end(self) -> None:
        """End a command that Invoke has left, such as after a Ctrl-C between its start and the waiting for it."""
        process = None if self.using_pty else getattr(self, "process", None)
        if process and process.poll() is None:
            with children.guarded(process.pid, self.endings):
                children.end([(process.pid, time.time())])
                children.run_all(self.endings)
                process.wait()
            self.stop()

    def stop(self) -> None:
        """Close the pipes too, which Invoke leaves to the garbage collector: who runs with warnings as errors, as tests
        do, would hear of it."""
        super().stop()
        children.remove(self._started)
        process = getattr(self, "process", None)  # there is none if it could not be started
        if process and not self.using_pty:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


class Talk(NamedTuple):
    """A conversation with a command that runs."""

    stdin: IO[bytes]
    stdout: IO[bytes]
    kill: Callable[[], None]
    """End the command at once: a thread that reads its output gets to the end of it."""


class _Asked(Struct):
    """A question on its way."""

    process: subprocess.Popen[str]
    began: float
    reads: int = 1
    answer: Result | None = None


class ContainerContext:
    """Runs commands and files' writing on the host of a stack, whatever its runtime."""

    def __init__(self, c: Context, runtime: Runtime, host: Host, paths: Paths) -> None:
        self.c = c
        self._endings: list[str] = []
        """Commands that end what this one runs in containers, for when it is killed."""
        self._mark = secrets.token_hex(8)
        c.config.runners.local = type("_Local", (_Local,), {"endings": self._endings})
        self.runtime = runtime
        self.host = host
        self.paths = paths
        self._secrets: set[str] = set()
        self._log: logging.Logger | None = None
        self._log_lock = threading.Lock()
        self._engine_up: bool | None = None
        self._addresses: dict[str, str] = {}
        self._states: dict[str, ServiceState] = {}
        """The engine's last answer on each service."""
        self._proven: dict[tuple[str, int], float] = {}
        """Until when a service counts as listening on a port, on the monotonic clock."""
        self._asked: dict[Command, _Asked] = {}
        self._begun: list[Command] = []
        """Commands that start the engine, while it starts."""

    @property
    def dry(self) -> bool:
        """Whether to print what would be done instead of doing it (``inv --dry``)."""
        return bool(self.c.config.run.dry)

    # secrets

    def hide(self, *secrets: str) -> None:
        """Never print these. Short ones are left to :func:`hide_url_passwords`: hiding a word as common as a user's
        name would garble everything else."""
        self._secrets.update(secret for secret in secrets if len(secret) >= 8)

    def mask(self, text: str) -> str:
        """The text without secrets."""
        # the longest first: one that begins with another would keep its end
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return hide_url_passwords(text)

    # commands

    def read(self, command: Command) -> Result:
        """Run a command that changes nothing, also in a dry run. A failure is the caller's to judge."""
        return self._invoke(command)

    def ask_ahead(self, commands: Iterable[Command]) -> None:
        """Begin to ask what :meth:`read` will want in a moment, all of it at once; an answer serves as many reads as
        it was asked for."""
        for command in commands:
            if command in self._asked:
                self._asked[command].reads += 1
            else:
                children.prepare()
                process = subprocess.Popen(
                    ["/bin/sh", "-c", command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                )
                children.add(process.pid, self._endings)
                self._asked[command] = _Asked(process, time.monotonic())

    def withdraw(self, *, engine: bool = False) -> None:
        """Take back what was asked ahead and is not read yet: after a change it may no longer be so.

        With ``engine`` also what :meth:`begin_engine` has begun, where that leaves nothing by half.
        """
        if engine and self.runtime.contained:
            self._begun.clear()
        kept = self._begun
        for command in [command for command in self._asked if command not in kept]:
            asked = self._asked.pop(command)
            if asked.answer is None:
                asked.process.kill()
                asked.process.communicate()
                children.remove(asked.process.pid)

    def _answer(self, command: Command, asked: _Asked) -> Result:
        from invoke import Result

        if asked.answer is None:
            stdout, stderr = asked.process.communicate()
            children.remove(asked.process.pid)
            asked.answer = Result(command=command, stdout=stdout, stderr=stderr, exited=asked.process.returncode)
            self._record(command, asked.process.returncode, time.monotonic() - asked.began)
        asked.reads -= 1
        if not asked.reads:
            del self._asked[command]
        return asked.answer

    def run(self, command: Command, what: str) -> Result | None:
        """Run a command that changes something; None in a dry run, which prints it.

        :raises StackError: it failed; ``what`` says what it was for, as in "could not …".
        """
        if self.dry:
            console.command(self.mask(command))
            return None
        if self.c.config.run.echo:
            console.command(self.mask(command), echo=True)
        result = self._invoke(command)
        if result.exited != 0:
            lines = (result.stderr or result.stdout).strip().splitlines()[-10:]
            raise CommandError(
                f"could not {what}",
                result.exited,
                evidence=[self.mask(line) for line in lines],
                fix=fix_of(lines) or f"the command is in {self.paths.log / 'devstack.log'}",
            )
        return result

    def hook(self, line: str, env: Mapping[str, str]) -> Result | None:
        """Run a user's own shell command in the project's folder, its output on the screen; None in a dry run."""
        if self.dry:
            console.command(line)
            return None
        command = f"{NO_INPUT}{sh('cd $root || exit 1', root=self.paths.root)}\n{line}"
        return self._run_here(command, logged=line, hide=False, env=dict(env))

    def _invoke(self, command: Command) -> Result:
        if asked := self._asked.get(command):
            return self._answer(command, asked)
        if isinstance(command, Request):
            began = time.monotonic()
            answer = self.host.send(command)
            self._record(command, answer.exited, time.monotonic() - began)
            return answer
        return self._run_here(NO_INPUT + command, logged=command, hide=True)

    def _run_here(self, command: str, *, logged: str, **options: Any) -> Result:
        """Run a command with Invoke.

        :raises KeyboardInterrupt: Ctrl-C was pressed meanwhile; the command has ended.
        """
        began = time.monotonic()
        exited = None
        try:
            # our own echo masks; a dry run's reads really run; the stack never types into a command
            result = self.c.run(command, warn=True, in_stream=False, echo=False, dry=False, **options)
            assert result is not None
            exited = result.exited
            return result
        finally:
            self._record(logged, exited, time.monotonic() - began)

    def probe(self, command: Command, seconds: float) -> Probed:
        """Ask a program that may hang; then it is killed with all that it started. For several threads at once."""
        began = time.monotonic()
        children.prepare()
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with self.guarded(process):
            try:
                output, _ = process.communicate(timeout=seconds)
                answer = Probed(process.returncode, output.decode(errors="replace").strip())
            except subprocess.TimeoutExpired:
                _kill_tree(process.pid)
                answer = Probed(None, "")
                # what is stuck in the kernel, or in a session of its own, is not waited for
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=0.2)
        self._record(command, -1 if answer.exited is None else answer.exited, time.monotonic() - began)
        return answer

    def interact(self, command: Command) -> int:
        """Give the terminal to a command (psql); its exit code."""
        began = time.monotonic()
        children.prepare()
        with subprocess.Popen(["/bin/sh", "-c", command]) as process, self.guarded(process):
            try:
                code = process.wait()
            except BaseException:
                process.kill()
                raise
        self._record(command, code, time.monotonic() - began)
        return code

    def guarded(self, process: subprocess.Popen[Any]) -> contextlib.AbstractContextManager[None]:
        """Have a command end with this process, also when that is killed; to be open as long as the command runs."""
        return children.guarded(process.pid, self._endings)

    def watch(self, command: str, *, folder: Path, env: Mapping[str, str]) -> tuple[int, list[str]]:
        """Run a user's own command, each line on the screen as it comes; its exit code and its last lines."""
        began = time.monotonic()
        children.prepare()
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        last: deque[str] = deque(maxlen=15)
        children.add(process.pid, self._endings)
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    last.append(self.mask(line.rstrip("\n")))
                    console.out(last[-1])
            code = process.wait()
        except BaseException:
            _kill_tree(process.pid)
            process.wait()
            raise
        finally:
            children.remove(process.pid)
            self._record(command, process.returncode, time.monotonic() - began)
        return code, list(last)

    def _record(self, command: str, exit_code: int | None, seconds: float) -> None:
        """Log a command.

        :param exit_code: None if it had not ended yet when this was interrupted.
        """
        with self._log_lock:
            if self._log is None:
                self._log = _open_log(self.paths)
        if self._log is not None:
            ended = -1 if exit_code is None else exit_code
            self._log.info("%7.3f s  exit %-3d  %s", seconds, ended, self.mask(command))

    # streams

    @contextlib.contextmanager
    def stream_out(self, command: Command, what: str) -> Iterator[IO[bytes]]:
        """The command's output as a binary file, with bounded memory.

        :raises StackError: at the end, when the command failed; its output was then not whole.
        """
        with self._process(command, what, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield process.stdout

    def stream_in(self, command: Command, chunks: Iterable[bytes], what: str) -> None:
        """Feed bytes to a command with bounded memory.

        :raises StackError: the command failed, also when it stopped reading early.
        """
        with self._process(command, what, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            assert process.stdin is not None
            try:
                for chunk in chunks:
                    process.stdin.write(chunk)
                process.stdin.close()
            except BrokenPipeError:
                # a reader that failed explains itself by its exit code, below
                if process.wait() == 0:
                    raise StackError(
                        f"could not {what}", why="the command ended before it had read everything"
                    ) from None

    @contextlib.contextmanager
    def talk(self, command: Command, what: str, **options: Any) -> Iterator[Talk]:
        """Have a conversation with a command, which ends when its input does. ``options`` are those of
        :class:`subprocess.Popen`, such as ``env``.

        :raises StackError: at the end, when the command failed.
        """
        with self._process(command, what, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield Talk(process.stdin, process.stdout, partial(_kill_tree, process.pid))

    @contextlib.contextmanager
    def _process(self, command: Command, what: str, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
        began = time.monotonic()
        with tempfile.TemporaryFile() as errors:
            children.prepare()
            process = subprocess.Popen(["/bin/sh", "-c", command], stderr=errors, bufsize=CHUNK, **streams)
            children.add(process.pid, self._endings)
            try:
                yield process
                for stream in (process.stdin, process.stdout):
                    if stream:
                        with contextlib.suppress(BrokenPipeError):
                            stream.close()
                code = process.wait()
            except BaseException:
                _kill_tree(process.pid)
                process.wait()
                raise
            finally:
                for stream in (process.stdin, process.stdout):
                    if stream:
                        with contextlib.suppress(BrokenPipeError):
                            stream.close()
                children.remove(process.pid)
                self._record(command, process.returncode, time.monotonic() - began)
            if code != 0:
                size = errors.seek(0, 2)
                errors.seek(max(0, size - ERRORS))
                lines = _said(errors.read().decode(errors="replace").strip().splitlines())
                raise CommandError(
                    f"could not {what}", code, evidence=[self.mask(line) for line in lines], fix=fix_of(lines)
                )

    # files

    def write_file(self, path: Path, content: str, mode: int = 0o600, *, account: bool = False) -> None:
        """Write a file whole or not at all; a dry run says so instead."""
        if self.dry:
            console.out(f"# write {path} ({mode:04o}, {len(content.encode())} bytes)")
            return
        if self.host.holds(path, content.encode(), mode, account=account):
            return  # most files are the same at every start, and each flush takes its time
        if not path.parent.is_dir():
            self.host.make_dir(path.parent, 0o711 if self.host.is_root else 0o700)
        self.host.write_file(path, content.encode(), mode, account=account)

    def make_dir(self, path: Path, mode: int, *, account: bool = False) -> None:
        if self.dry:
            if not path.is_dir():
                console.out(f"# make folder {path} ({mode:04o})")
            return
        self.host.make_dir(path, mode, account=account)

    def make_run_dir(self) -> None:
        """The folder for sockets, which may be in a shared /tmp: made for a start, gone with the engine."""
        self.make_dir(self.paths.run, 0o711 if self.host.is_root else 0o700)
        if not self.dry:
            self.host.check_own(self.paths.run)

    def leave_run_dir(self) -> None:
        """Remove the directory for sockets from a shared one, unless something is in it: an engine runs."""
        if self.paths.state not in self.paths.run.parents:
            with contextlib.suppress(OSError):
                self.paths.run.rmdir()

    # services

    def perform(self, steps: Sequence[Step], what: str) -> str:
        """Carry out steps in order; the last command's answer.

        :raises StackError: a step failed.
        """
        answer = ""
        for step in steps:
            if isinstance(step, File):
                self.write_file(step.path, step.content, step.mode, account=step.account)
            else:
                result = self.run(step, what)
                answer = result.stdout if result else ""
        return answer

    def states(self, names: Sequence[str], *, ahead: bool = False) -> dict[str, ServiceState]:
        """What the engine says of these services, asked now. An engine that does not run has none.

        ``ahead``: what :meth:`ask_states_ahead` has asked.

        :raises StackError: it runs and does not answer as it should.
        """
        result = self.read(self._asks_states(names) if ahead else self.runtime.states(names))
        if result.exited == TIMED_OUT:
            self._check_engine_goes_on()
            raise StackError(
                f"the {self.runtime.name} runtime does not say what runs",
                why=result.stderr.strip(),
                fix=self.runtime.unstick(),
            )
        if self.runtime.contained and not result.ok:
            lines = result.stderr.strip().splitlines()
            away = result.exited == NOT_FOUND
            raise StackError(
                f"{self.runtime.name} {'is not installed' if away else 'does not answer'}",
                why=self.mask(lines[-1]) if lines else f"it ended with exit code {result.exited}",
                evidence=[self.mask(line) for line in lines[:-1][-5:]],
                fix=f"install {self.runtime.name}, or run on another: NV_ENV=other, stack.runtime"
                if away
                else self.runtime.unstick(),
            )
        try:
            states = self.runtime.parse_states(result.stdout if result.ok else "", names)
        except EngineError as error:
            raise StackError(
                f"the {self.runtime.name} runtime can't say what runs",
                why=str(error),
                fix="it may be on its way down: try again in a moment",
            ) from None
        states = {name: _not_ours(state) if state.foreign else state for name, state in states.items()}
        # an engine of containers always runs; their network is there as long as one of them is
        self._engine_up = any(s.running for s in states.values()) if self.runtime.contained else bool(result.ok)
        self._addresses.update({name: state.address for name, state in states.items()})
        self._states.update(states)
        return states

    def has_port(self, name: str, address: str, port: int) -> bool:
        """Check whether it is a service of the stack that listens on a port of an address of this machine.

        What the engine has said in this command serves as long as it fits: each service has one process that listens,
        and many connections.

        :raises StackError: the engine does not answer as it should.
        """
        if time.monotonic() < self._proven.get((name, port), 0.0):
            return True
        known = self._states.get(name)
        found = bool(known and self._listens(known, address, port)) or self._listens(
            self.states([name])[name], address, port
        )
        if found:
            self._proven[name, port] = time.monotonic() + PROVEN_SECONDS
        return found

    def _forget(self, name: str) -> None:
        """Invalidate the state of a service."""
        self._states.pop(name, None)
        self._proven.clear()

    def _listens(self, state: ServiceState, address: str, port: int) -> bool:
        if self.runtime.contained:
            return state.running and port in state.ports
        return state.running and self.host.listens(state.pid, address, port)

    def ask_states_ahead(self, names: Sequence[str]) -> None:
        """Begin to ask for :meth:`states`, together with what is asked of a volume."""
        if self.runtime.contained:
            self.ask_ahead([self._asks_states(names)])

    def _asks_states(self, names: Sequence[str]) -> Command:
        return self.runtime.start_states(names) if isinstance(self.runtime, Containers) else self.runtime.states(names)

    def address(self, name: str) -> str:
        """A running service's own address, where it has one; empty otherwise."""
        if name not in self._addresses:
            self.states([name])
        return self._addresses.get(name, "")

    def crashes(self, names: Sequence[str], since: float) -> dict[str, list[Crash]]:
        """How services ended that were not told to, by name, the last one last; nothing where the engine can't say.
        Those before ``since``, in seconds since the epoch, may be left out."""
        result = self.read(self.runtime.crashes(names, since))
        with contextlib.suppress(EngineError):
            return self.runtime.parse_crashes(result.stdout) if result.ok else {}
        return {}

    def usage(self, states: Mapping[str, ServiceState]) -> dict[str, Usage]:
        """What each running service uses."""
        running = {name: state for name, state in states.items() if state.running}
        here = {name: state.pid for name, state in running.items() if self._is_here(state)}
        found = self.host.usage(here, {name: state.helpers for name, state in running.items()})
        if isinstance(self.runtime, Containers):
            rest = [name for name, state in running.items() if name not in found and not state.paused]
            run_at_once([partial(self._ask_usage, name, found) for name in rest], ENGINE_SECONDS)
            for name in running:
                if running[name].paused:
                    found[name] = replace(found.get(name, Usage()), frozen=True)
        return found

    def _ask_usage(self, name: str, found: dict[str, Usage]) -> None:
        assert isinstance(self.runtime, Containers)
        answer = self.probe(self.runtime.usage(name), ENGINE_SECONDS)
        with contextlib.suppress(EngineError):
            if answer.ok and (usage := self.runtime.parse_usage(answer.text)):
                found[name] = usage

    def _is_here(self, state: ServiceState) -> bool:
        """Whether a service's process is one of this machine's."""
        return bool(state.pid) and (not state.id or self.host.is_here(state.pid, state.id))

    def frozen(self, states: Iterable[ServiceState]) -> dict[str, list[int]]:
        """Return the pids of the processes that a signal has stopped (SIGSTOP), by service; none where the engine has
        paused all of it. Services without any are left out. Those in a virtual machine can't be seen."""
        found = {}
        for state in states:
            if state.running and (state.paused or self._is_here(state) or state.helpers):
                pids = self.host.stopped([*([state.pid] if self._is_here(state) else []), *state.helpers])
                if pids or state.paused:
                    found[state.name] = pids
        return found

    def traced(self, state: ServiceState) -> list[int]:
        """Return the pids of a service's processes that a debugger holds."""
        return self.host.traced([state.pid]) if state.running and self._is_here(state) else []

    def resume(self, states: Iterable[ServiceState]) -> dict[str, list[int]]:
        """Have services' frozen processes go on (SIGCONT), and return which that were, as :meth:`frozen` does. What a
        debugger holds stays as it is."""
        known = {state.name: state for state in states}
        found = self.frozen(known.values())
        for name, pids in found.items():
            if known[name].paused and isinstance(self.runtime, Containers) and (command := self.runtime.resume(name)):
                self.run(command, f"resume {name}")
            if pids and self.dry:
                console.out(f"# resume pid {' '.join(map(str, pids))} (SIGCONT)")
            elif pids:
                self.host.resume(pids)
        return found

    def engine_stopped(self) -> int:
        """Return the pid of the engine's process if a signal such as SIGSTOP has stopped it; 0 otherwise."""
        pid = self._own_engine()
        return pid if pid and pid in self.host.stopped([pid]) else 0

    def _own_engine(self) -> int:
        """Return the pid of the engine's process; 0 if its file names none, or a process that is another by now."""
        pid = self._engine_process()
        conf = getattr(self.runtime, "conf", None)
        return pid if pid and conf and self.host.has_word(pid, str(conf)) else 0

    def resume_engine(self) -> int:
        """Have the engine's process go on if it is stopped; its pid, or 0 if it is not."""
        pid = self.engine_stopped()
        if pid and self.dry:
            console.out(f"# resume pid {pid} (SIGCONT)")
        elif pid:
            self.host.resume([pid])
        return pid

    def _check_engine_goes_on(self) -> None:
        """:raises StackError: the engine does not answer because its process is stopped, or held by a debugger."""
        if pid := self.engine_stopped():
            raise StackError(
                f"the {self.runtime.name} runtime does not say what runs",
                why=f"its supervisord (pid {pid}) is frozen (SIGSTOP)",
                fix=f"inv dev.heal, or: kill -CONT {pid}",
            )
        if (pid := self._own_engine()) and pid in self.host.traced([pid]):
            raise StackError(
                f"the {self.runtime.name} runtime does not say what runs",
                why=f"a debugger holds its supervisord (pid {pid})",
                fix="let it go on in the debugger, or detach that",
            )

    def engine_runs(self) -> bool:
        """Whether the engine answered when it was last asked; it is asked if it never was."""
        if self._engine_up is None:
            self.states(())
        return bool(self._engine_up)

    def begin_engine(self) -> None:
        """Begin what :meth:`start_engine` will wait for."""
        if self.dry or self._engine_up or self._begun:
            return
        if not self.runtime.contained:
            if self.engine_runs():
                return
            self.make_run_dir()
        for step in self.runtime.engine_start():
            if isinstance(step, File):
                self.write_file(step.path, step.content, step.mode, account=step.account)
            else:
                self._begun.append(step)
        self.ask_ahead(self._begun)

    @property
    def engine_begins(self) -> bool:
        """Whether the engine is in the middle of its start."""
        return bool(self._begun)

    def start_engine(self) -> None:
        """Bring up what services run under, if it does not run. It answers once its command has ended.

        :raises StackError: it did not come up.
        """
        if not self._begun and self.engine_runs():
            return
        if self.runtime.contained:
            self.perform(self.runtime.engine_start(), "make the network")
            self._began()
            return
        self.make_run_dir()
        try:
            self.perform(self.runtime.engine_start(), f"start the {self.runtime.name} runtime's supervisor")
        except StackError:
            self.states(())  # a start that was cut off may have brought it up by now
            if not self.engine_runs():
                raise
        self._began()

    def _began(self) -> None:
        self._engine_up = True
        self._begun.clear()

    def stop_engine(self) -> None:
        """Take down what services run under, and wait until it is gone.

        :raises StackError: it still runs after :data:`ENGINE_SECONDS`.
        """
        what = "remove the network" if self.runtime.contained else "stop the supervisor"
        # what is in the middle of its start comes up first
        came_up = [self.read(command).ok for command in self._begun if command in self._asked]
        self._begun.clear()
        pid = self._engine_process()
        deadline = time.monotonic() + ENGINE_SECONDS
        while any(came_up) and not (self.runtime.contained or pid) and time.monotonic() < deadline:
            time.sleep(0.01)  # Supervisor writes it down a moment after its command has ended
            pid = self._engine_process()
        self.perform(self.runtime.engine_stop(), what)
        self._engine_up = False
        if self.dry or self.runtime.contained:
            return
        deadline = time.monotonic() + ENGINE_SECONDS
        while still := self._engine_remains(pid):
            if time.monotonic() > deadline:
                raise StackError(
                    f"the {self.runtime.name} runtime's supervisor did not end within {ENGINE_SECONDS:g} s",
                    why=still,
                    fix=[self.runtime.unstick(), "then inv dev.down"],
                )
            time.sleep(0.01)
        if self.paths.state not in self.paths.run.parents:
            self.host.remove(self.paths.run)  # in a shared folder, where nothing is to stay

    def _engine_process(self) -> int:
        """The id of the engine's process; 0 if it has none, or does not run."""
        file = self.runtime.engine_pid()
        content = self.host.read_file(file) if file else None
        return int(content) if content and content.strip().isdigit() else 0

    def _engine_remains(self, pid: int) -> str:
        """What shows that the engine is not gone yet; empty once it is. Its pid file goes before its process does."""
        file = self.runtime.engine_pid()
        if file and self.host.read_file(file) is not None:
            return f"{file} is still there"
        if pid and self.host.runs(pid):
            return f"process {pid} is still there"
        answer = self.read(self.runtime.states(()))
        return "it still answers" if answer.ok else answer.stderr.strip() if answer.exited == TIMED_OUT else ""

    def start(self, spec: ServiceSpec, *, defined: bool = False) -> None:
        """Define a service that does not run, and start it; ``defined`` if the engine has an old one of this name.

        :raises StackError: the engine refused.
        """
        self._addresses.pop(spec.name, None)
        self._forget(spec.name)
        try:
            self._checked(self.runtime.run(spec, defined=defined), self.runtime.check_run, f"start {spec.name}")
        finally:
            if isinstance(self.runtime, Containers) and not self.dry:
                self.host.remove(self.runtime.env_file(spec.name))  # the engine has read it
        if self.runtime.contained:  # the engine has published its port by now
            published = tuple(spec.inside.ports.values()) if spec.inside else ()
            self._states[spec.name] = ServiceState(spec.name, "running", ports=published)

    def stop(self, name: str, *, signal: str = "", instead: str = "", seconds: int = 10) -> None:
        """Tell a service to stop; it has once :meth:`states` says so. The parameters are those of
        :meth:`devstack.runtimes.Runtime.stop`.

        :raises StackError: the engine refused.
        """
        self._addresses.pop(name, None)
        self._forget(name)
        steps = self.runtime.stop(name, signal=signal, instead=instead, seconds=seconds)
        self._checked(steps, self.runtime.check_stop, f"stop {name}")

    def _checked(self, steps: Sequence[Step], check: Callable[[str], None], what: str) -> None:
        answer = self.perform(steps, what)
        if self.dry:
            return
        try:
            check(answer)
        except EngineError as error:
            raise StackError(f"could not {what}", why=f"{self.runtime.name} says: {error}") from None

    def exec(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        user: str = "",
        tty: bool = False,
    ) -> Command:
        """A command in the surroundings of a service: to run, read or stream; with ``tty`` for :meth:`interact`."""
        variables = dict(env or {})
        if isinstance(self.runtime, Containers) and not self.dry:
            variables[MARK] = self._mark
            self._end_also(self.runtime.end_marked(name, f"{MARK}={self._mark}", user=user))
        return self.runtime.exec(name, argv, variables, user=user, tty=tty)

    def _end_also(self, command: Command) -> None:
        if command not in self._endings:
            self._endings.append(command)

    @contextlib.contextmanager
    def one_off(self, spec: ServiceSpec) -> Iterator[Command]:
        """A command that runs in a container of its own, to run, read or stream; the container goes with it."""
        assert isinstance(self.runtime, Containers)
        env = File(self.runtime.env_file(spec.name), self.runtime.env_lines(spec))
        self.write_file(env.path, env.content, env.mode)
        ending = self.runtime.remove(spec.name)
        self._end_also(ending)
        try:
            yield self.runtime.once(spec, env.path)
        finally:
            self._endings.remove(ending)
            if not self.dry:
                self.host.remove(env.path)

    def write_inside(self, name: str, path: Path, content: str, *, user: str = "") -> None:
        """Write a file that only its owner can read into a running container, whole or not at all.

        :raises StackError: it could not be written.
        """
        if self.dry:
            console.out(f"# write {path} in {name} (0600, {len(content.encode())} bytes)")
            return
        script = 'umask 077 && mkdir -p "${1%/*}" && cat >"$1.new" && mv "$1.new" "$1"'
        command = self.exec(name, ["sh", "-c", script, "sh", str(path)], user=user)
        self.stream_in(command, [content.encode()], f"write {path} in {name}")

    def log_size(self, name: str) -> int:
        """Bytes of a service's log; 0 when it has none."""
        file = self.runtime.log_file(name)
        return self.host.size(file) if file else 0

    def log_tail(self, name: str, lines: int = 10, *, skip: int = 0) -> list[str]:
        """The last lines of a service's log after the first ``skip`` bytes, without secrets."""
        result = self.read(self.runtime.logs(name, tail=lines, follow=False, skip=skip))
        return [self.mask(line) for line in result.stdout.splitlines()] if result.ok else []


def _not_ours(state: ServiceState) -> ServiceState:
    """What is said of a service whose name somebody else has taken: it is never touched."""
    detail = f"a container named {state.name} belongs to {state.foreign}"
    return ServiceState(state.name, detail=detail, foreign=state.foreign, defined=True)


def _said(lines: list[str]) -> list[str]:
    """Return the lines that say why a command failed: from the server's error on, else the last ones."""
    if len(lines) <= LINES:
        return lines
    at = next((at for at, line in enumerate(lines) if "ERROR: " in line), len(lines) - LINES)
    return lines[at : at + LINES]


def _kill_tree(pid: int) -> None:
    """Kill a shell and all that it started."""
    _signal_tree(pid, signal.SIGKILL)


def _signal_tree(pid: int, number: signal.Signals) -> None:
    """Send a signal to a shell and to all that it started; what runs under another account has a session of its own."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        shell = psutil.Process(pid)
        for process in [shell, *shell.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _open_log(paths: Paths) -> logging.Logger | None:
    """The log of all commands, rotated; None as long as the stack has no log folder."""
    import logging
    from logging.handlers import RotatingFileHandler

    class Quiet(RotatingFileHandler):
        """Log handler that opens the file for each record, because a context has no end at which to close it. If the
        file can't be written, it prints one line instead of a traceback for each record."""

        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            if self.stream:
                with contextlib.suppress(OSError):
                    self.stream.close()
                self.stream = None

        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
            if not logger.disabled:
                logger.disabled = True
                error = sys.exc_info()[1]
                console.note(f"{self.baseFilename} can't be written: {getattr(error, 'strerror', None) or error}")

        def _open(self) -> Any:
            """Open the file for its owner alone, also one that an earlier version left open to others."""
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO waits for a reader
            number = os.open(self.baseFilename, flags, 0o600)
            os.fchmod(number, 0o600)
            return os.fdopen(number, self.mode, encoding="utf-8", errors="surrogateescape")

    if not paths.log.is_dir():
        return None
    logger = logging.Logger("devstack")
    handler = Quiet(paths.log / "devstack.log", maxBytes=5_000_000, backupCount=1, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s  [%(process)d]  %(message)s"))
    logger.addHandler(handler)
    return logger
