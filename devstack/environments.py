"""The environments of this machine: which there are, what each runs, and what it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct, field

from devstack import trust
from devstack.choices import Choices
from devstack.errors import StackError
from devstack.ports import MAIN, recorded
from devstack.registry import Entry
from devstack.reset import bytes_of
from devstack.runtimes import ServiceState
from devstack.runtimes.containers import Containers
from devstack.settings import SPECIFIED, URL_VARIABLE, VARIABLE_PREFIXES, check_expansion
from devstack.settings import Entry as Setting
from devstack.threads import run_at_once
from devstack.tolerance import Tolerance

if TYPE_CHECKING:
    from devstack.stack import Stack

PATIENCE = 15.0
"""Seconds that an environment may take to say how it is."""

Condition = Literal["healthy", "partial", "unhealthy", "stopped", "unknown"]


class Environment(Struct, frozen=True):
    """An environment as it is now. What could not be found out is None, or has a ``reason``."""

    name: str
    checkout: str
    state: str
    current: bool = False
    """Whether it is the one that a command without ``-e`` is for."""
    runtime: str = ""
    """Empty before its first start."""
    health: Condition = "unknown"
    reason: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)
    """By service: ``db``, ``pgb``, ``api``."""
    created: float | None = None
    """When it was made, or reset, in seconds since the epoch."""
    memory_bytes: int | None = None
    """Of all its processes, what they share counted once; 0 when none runs."""
    services: Mapping[str, int] = field(default_factory=dict)
    """The same for each service that runs, by its name, without what they run under."""
    disk_bytes: int | None = None
    """Its data and state, without logs and backups."""


def known(stack: Stack, *, everywhere: bool = False) -> list[Entry]:
    """The environments of this checkout, or of all that this user has; ``dev`` first."""
    root = str(stack.settings.root)
    found = {entry.state: entry for entry in stack.registry.entries() if everywhere or entry.root == root}
    for folder in _folders(stack.paths.state.parent):  # those that have started nothing yet
        ports = recorded(folder)
        found.setdefault(str(folder), Entry(root=root, env=folder.name, state=str(folder), ports=ports))
    return sorted(found.values(), key=lambda entry: (entry.root != root, entry.root, entry.env != MAIN, entry.env))


def _folders(base: Path) -> Iterator[Path]:
    if base.is_dir():
        yield from (folder for folder in base.iterdir() if (folder / "secrets.json").is_file())


def look_at_all(stack: Stack, *, everywhere: bool = False) -> list[Environment]:
    """Every environment, all looked at together."""
    entries = known(stack, everywhere=everywhere)
    found: dict[str, Environment] = {}

    def look(entry: Entry) -> None:
        current = entry.state == str(stack.paths.state)
        try:
            found[entry.state] = _look(entry, stack, current=current)
        except Exception as error:  # of one of them, which must not keep the others from being shown
            reason = error.what if isinstance(error, StackError) else str(error) or type(error).__name__
            found[entry.state] = _unknown(entry, reason.splitlines()[0], current=current)

    run_at_once([partial(look, entry) for entry in entries], PATIENCE)
    late = f"it did not say within {PATIENCE:g} s"
    return [found.get(entry.state) or _unknown(entry, late) for entry in entries]


def _unknown(entry: Entry, reason: str, *, current: bool = False) -> Environment:
    return Environment(entry.env, entry.root, entry.state, current, reason=reason, ports=entry.ports)


def _look(entry: Entry, here: Stack, *, current: bool) -> Environment:
    state, runtime = Path(entry.state), runtime_of(entry)
    if not runtime:
        made = _created(state)
        never = "it was never started"
        return Environment(entry.env, entry.root, entry.state, current, "", "stopped", never, entry.ports, made, 0)
    stack = open_entry(entry, here, looking=True)
    states = stack.context.states(stack.names)
    health, reason = _health(stack, states)
    memory, services = _memory(stack, states)
    return Environment(
        name=entry.env,
        checkout=entry.root,
        state=entry.state,
        current=current,
        runtime=runtime,
        health=health,
        reason=reason,
        ports={service.label: service.port for service in stack.services},
        created=_created(state),
        memory_bytes=memory,
        services=services,
        disk_bytes=_disk(stack, states),
    )


def runtime_of(entry: Entry) -> str:
    """What an environment runs on; empty before its first start."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((Path(entry.state) / "choices.json").read_bytes(), type=Choices).runtime
    return ""


def open_entry(entry: Entry, here: Stack, *, looking: bool) -> Stack:
    """The stack of a listed environment, with the ports that it was last seen with. One of another checkout has that
    one's settings, as far as its files say them."""
    from invoke import Config, Context

    from devstack.stack import open_stack

    root, own = Path(entry.root), entry.root == str(here.settings.root)
    base = str(Path(entry.state).parent.parent)
    origin = f"the list of environments ({here.registry.folder})"
    settings = {"stack.env": entry.env, "stack.state_dir": base}
    settings |= {f"{label}.port": str(port) for label, port in entry.ports.items()}
    given = [Setting(path, value, origin, True) for path, value in settings.items()]
    environ = here.environ if own else {k: v for k, v in here.environ.items() if not _is_ours(k)}
    environ = {**environ, "NV_ENV": entry.env}
    environ.pop("INVOKE_STACK_ENV", None)
    context = here.context.c
    if not own:
        trust.check(root, here.environ)
        config = Config(project_location=root)
        with contextlib.suppress(Exception):  # its owner sees what is wrong with it, when it is used there
            check_expansion(root)
            config.load_project()
        context = Context(config)
    tolerance = here.tolerance if own or not here.tolerance else Tolerance()
    stack = open_stack(
        context, root, environ, looking=looking, runtime=runtime_of(entry), given=given, tolerance=tolerance
    )
    if stack.paths.state != Path(entry.state):
        raise StackError("its checkout is not where it was", why=f"its state is in {entry.state}")
    return stack


def _is_ours(variable: str) -> bool:
    return variable == URL_VARIABLE or variable in SPECIFIED or variable.startswith(VARIABLE_PREFIXES)


def _health(stack: Stack, states: Mapping[str, ServiceState]) -> tuple[Condition, str]:
    """Whether each service answers a real request."""
    if not any(state.running for state in states.values()):
        failed = [name for name, state in states.items() if state.status == "failed"]
        return ("unhealthy", f"{failed[0]} has failed") if failed else ("stopped", "")
    statuses = stack.status()
    silent = [status for status in statuses if status.state.running and not status.answers]
    silent += [status for status in statuses if status.state.status == "failed"]
    if silent:
        return "unhealthy", f"{silent[0].state.name} is {silent[0].word}"
    missing = [status.state.name for status in statuses if not status.answers]
    return ("partial", f"{', '.join(missing)} stopped") if missing else ("healthy", "")


def _memory(stack: Stack, states: Mapping[str, ServiceState]) -> tuple[int | None, dict[str, int]]:
    """Bytes of all processes, as ``inv metrics`` counts them: the supervisor's and the reloader's too."""
    services = {name: usage.memory for name, usage in stack.context.usage(states).items()}
    if not any(state.running for state in states.values()):
        return 0, services
    pid_file = stack.context.runtime.engine_pid()
    if pid_file is None:
        return sum(services.values()) if services else None, services
    with contextlib.suppress(OSError, ValueError):
        tree = stack.context.host.usage({"all": int(pid_file.read_text())})
        return (tree["all"].memory if tree else None), services
    return None, services


def _disk(stack: Stack, states: Mapping[str, ServiceState]) -> int | None:
    """None where the engine keeps the data and can't be asked: its database does not run."""
    state = bytes_of(stack.paths.state)
    if not isinstance(stack.context.runtime, Containers):
        return state
    if not states[stack.db.name].running:
        return None
    words = ["du", "-sk", str(stack.db.data)]
    answer = stack.context.probe(stack.context.exec(stack.db.name, words, user=stack.db.account), PATIENCE / 3)
    said = answer.text.split()
    return state + (int(said[0]) << 10) if answer.ok and said else None


def _created(state: Path) -> float | None:
    """The secrets are written once, when an environment begins."""
    try:
        return (state / "secrets.json").stat().st_mtime
    except OSError:
        return None


def stop_all(
    here: Stack, entries: Sequence[Entry], said: Callable[[Stack, str, ServiceState, float], None]
) -> list[StackError]:
    """Stop environments, one after the other, the user's hooks included; what went wrong."""
    import time

    problems = []
    for entry in entries:
        try:
            stack = open_entry(entry, here, looking=False)
            if not any(state.running for state in stack.context.states(stack.names).values()):
                continue
            stack.hook("pre_down")
            for service in reversed(stack.services):
                began = time.monotonic()
                said(stack, service.label, stack.stop(service.label), time.monotonic() - began)
            stack.hook("post_down")
            stack.lock.release()
        except StackError as error:
            problems.append(error)
    return problems
