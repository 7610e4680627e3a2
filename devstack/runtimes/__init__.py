"""What every runtime has in common.

A runtime is a dialect: it turns a verb into steps (files to write, commands to run) and reads the engine's
answer back. It is pure, so that tests assert exact command lines; :class:`devstack.container.ContainerContext`
is the one place that carries steps out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct, field

from devstack.shell import Command

Status = Literal["running", "starting", "stopping", "stopped", "failed"]


class Inside(Struct, frozen=True):
    """What a service needs where it runs in a container of its own."""

    image: str
    ports: Mapping[int, int] = field(default_factory=dict)
    """The port on the host by the port inside."""
    bind: str = "127.0.0.1"
    """The host's address that they are published on."""
    volumes: Mapping[str, str] = field(default_factory=dict)
    """The path inside by the volume's name."""
    folders: Mapping[Path, str] = field(default_factory=dict)
    """The path inside, read-only, by the folder on the host."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What is written before the service starts, by the path inside; what is there already stays."""
    account: str = ""
    """Lines of sh(1) at the beginning. They set ``$as``, a prefix that makes a command run under another account; all
    that follows, those files too, is then done as that account."""
    setup: str = ""
    """Lines of sh(1) between those files and the service."""
    memory_mb: int = 512
    shm_mb: int = 64
    network: bool = True
    """Whether it is to reach the other services."""
    root: bool = False
    """Whether it is begun as root, and gives root's rights up itself."""


class ServiceSpec(Struct, frozen=True):
    """What a service is, in every runtime."""

    name: str
    """Its name in the engine: ``nv-db``."""
    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    unset: Sequence[str] = ()
    """Variables of the caller that must not reach it."""
    own_account: bool = False
    """Whether it refuses to run as root."""
    stop_signal: str = "TERM"
    stop_seconds: int = 10
    grace: float = 0.0
    """Seconds in which a failed start is left to the engine's own next try."""
    watch: Sequence[Path] = ()
    """Folders whose source, when it changes, restarts the service."""
    inside: Inside | None = None
    """Set where it runs in a container; ``argv``, ``cwd`` and ``env`` are then those inside."""


class ServiceState(Struct, frozen=True):
    """What the engine says of a service right now."""

    name: str
    status: Status = "stopped"
    pid: int = 0
    started: float = 0.0
    """Seconds since the epoch; 0 when it does not run."""
    exit_code: int | None = None
    detail: str = ""
    """Why it is not running, in the engine's words."""
    paused: bool = False
    """Whether the engine keeps all of it frozen."""
    defined: bool = False
    """Whether the engine has something of this name, running or not."""
    foreign: str = ""
    """Whose it is, if it is not this stack's."""
    address: str = ""
    """Its own address, where it has one; it may be another one at each start."""
    id: str = ""
    """The engine's own name for it, if it has one."""
    image: str = ""
    """The engine's own name for its image's content, without the kind of digest; empty where it does not say."""
    helpers: tuple[int, ...] = ()
    """The pids of programs that run for it beside it, such as the one that restarts it when its source changes."""
    ports: tuple[int, ...] = ()
    """Those of the host that the engine itself listens on for it."""

    @property
    def running(self) -> bool:
        return self.status in ("running", "starting")


class Crash(Struct, frozen=True):
    """A service ended that was not told to; the engine started it again."""

    when: float
    """Seconds since the epoch."""
    how: str
    """In the engine's words: ``terminated by SIGKILL``."""


class Usage(Struct, frozen=True):
    """What a service's processes use."""

    memory: int = 0
    """Bytes; what they share counts once."""
    cpu: float = 0.0
    """Seconds of processor time so far."""
    processes: int = 0
    frozen: bool = False
    """Whether its main process is stopped, as by SIGSTOP: it is there and does nothing."""
    frozen_below: tuple[int, ...] = ()
    """The pids of the processes below it that are stopped."""
    frozen_helpers: tuple[int, ...] = ()
    """The pids of its helpers that are stopped."""
    traced: tuple[int, ...] = ()
    """The pids of those of its processes that a debugger holds: it alone may have them go on."""


class File(Struct, frozen=True):
    """A file to write before the commands that read it."""

    path: Path
    content: str
    mode: int = 0o600
    account: bool = False
    """Whether the services' account must read it."""


Step = File | Command


class EngineError(Exception):
    """The engine refused; the text is its own reason."""


class Runtime(Protocol):
    """The verbs of an engine."""

    name: str
    contained: bool
    """Whether each service has a file system and an address of its own."""

    def engine_start(self) -> Sequence[Step]:
        """Bring up what services run under."""

    def engine_stop(self) -> Sequence[Step]:
        """Take down what services run under, once none is left."""

    def engine_pid(self) -> Path | None:
        """A file that exists as long as the engine does, if there is one."""

    def run(self, spec: ServiceSpec, *, defined: bool = False) -> Sequence[Step]:
        """Define a service that does not run and start it; ``defined`` if the engine has an old one of this name."""

    def stop(self, name: str, *, signal: str = "", instead: str = "", seconds: int = 10) -> Sequence[Step]:
        """Tell a service to stop; :meth:`states` shows when it has.

        :param signal: the service's own signal, for an engine that did not learn it at the start.
        :param instead: a signal that ends the service where its own one does not.
        :param seconds: after which an engine kills it that did not learn its patience at the start.
        """

    def check_run(self, answer: str) -> None:
        """Read the answer of :meth:`run`.

        :raises EngineError: the engine refused.
        """

    def check_stop(self, answer: str) -> None:
        """Read the answer of :meth:`stop`; that it does not run is no refusal.

        :raises EngineError: the engine refused.
        """

    def states(self, names: Sequence[str]) -> Command:
        """Ask for services."""

    def parse_states(self, answer: str, names: Sequence[str]) -> dict[str, ServiceState]:
        """Read what :meth:`states` printed; services that the engine does not know are stopped."""

    def crashes(self, names: Sequence[str], since: float) -> Command:
        """Ask which services ended that were not told to, after a time in seconds since the epoch."""

    def parse_crashes(self, answer: str) -> dict[str, list[Crash]]:
        """Read what :meth:`crashes` printed: by service, the last one last."""

    def unstick(self) -> str:
        """What a person does about an engine that runs and does not answer."""

    def exec(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], *, user: str = "", tty: bool = False
    ) -> Command:
        """A command in the surroundings of a service: under another account of its own system if need be, and for a
        person at a terminal with ``tty``."""

    def as_account(self, command: Command, folder: Path | None = None) -> Command:
        """Return a command under the account that the services with ``own_account`` run as.

        :param folder: the directory to run it in, which may be below others that the account may not enter.
        """

    def logs(self, name: str, *, tail: int, follow: bool, skip: int = 0) -> Command:
        """The last lines of a service's log, and what follows; ``skip`` bytes at its beginning are left out."""

    def log_file(self, name: str) -> Path | None:
        """The file that the engine writes a service's log to, if it goes on in it at the next start."""
