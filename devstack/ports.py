"""The ports of environments other than ``dev``: a free block for each, chosen once and recorded with it.

A port that is set for the environment wins. What a file says that every environment reads, such as ``invoke.yaml``, is
for the environment that this file names: two could not run at once otherwise.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from devstack.errors import StackError, UsageError
from devstack.host import Host
from devstack.paths import PORTS as FILE
from devstack.paths import Paths
from devstack.registry import Entry, Registry
from devstack.settings import FIELDS, Refusal, Replaced, Settings, with_ports
from devstack.tolerance import recorded as of_last_start

MAIN = "dev"
FIRST, LAST, STEP = 20_100, 25_490, 10
"""The first port of each block: above the usual servers', below those that systems give out (Linux from 32768 on)."""
DIGITS = {"db": 3, "pgb": 2, "api": 0}
"""The last digits, which are those of 5433, 6432 and 13370."""


def settle(settings: Settings, paths: Paths, host: Host, registry: Registry, *, keep: bool) -> Settings:
    """The settings with the environment's own ports where none are set for it. A choice to ``keep`` is recorded.

    :raises StackError: no block is free, or the choice can't be recorded.
    """
    if settings.stack.env == MAIN:
        return settings
    unset = [label for label in DIGITS if not is_set(settings, f"{label}.port")]
    if not unset:
        return settings
    block = recorded(paths.state)
    if not block and keep:
        host.check_reachable(paths.state)
        host.make_dir(paths.state, 0o711 if host.is_root else 0o700)
        with registry.held():
            block = recorded(paths.state)  # another command's first moment too
            if not block:
                block = _choose(settings, paths, host, registry)
                registry.put(entry_of(settings, paths, block))
                host.write_file(paths.ports, msgspec.json.encode(block) + b"\n", 0o600)
    elif not block:
        block = _choose(settings, paths, host, registry)
    return with_ports(settings, {label: block[label] for label in unset}, str(paths.ports))


def as_recorded(settings: Settings, paths: Paths, error: UsageError) -> Settings:
    """Return the settings with the ports of the last start, or those that were chosen, for ports that clash.

    :raises UsageError: nothing is recorded.
    """
    known = of_last_start(paths.settings)
    block = {label: known.get(f"{label}.port") for label in DIGITS}
    found = {label: port for label, port in block.items() if port} if all(block.values()) else recorded(paths.state)
    if not found:
        raise error
    what, origin, fix = (line.strip() for line in error.evidence[:3])
    path, _, why = what.partition(": ")
    refusal = Refusal(path, origin.removeprefix("from "), why, fix)
    instead = ", ".join(f"{label}.port {port}" for label, port in found.items())
    changed = with_ports(settings, found, str(paths.settings))
    return msgspec.structs.replace(changed, wrong=[*settings.wrong, Replaced(refusal, instead)])


def is_set(settings: Settings, path: str) -> bool:
    """Whether a port is set for just this environment."""
    origin = _file(settings.origins.get(path, ""))
    if origin not in settings.shared:
        return bool(origin)  # a variable, or the file of `inv -f`
    named = _file(settings.origin("stack.env"))
    if named not in settings.shared or settings.shared.index(origin) < settings.shared.index(named):
        return False
    section, _, key = path.partition(".")
    # invoke.yaml lists every setting with its default
    return origin == settings.shared[-1] or getattr(getattr(settings, section), key) != FIELDS[path].default


def _file(origin: str) -> str:
    """The file that an origin names; of ``.env`` it has the variable too."""
    return origin.partition(" (")[0]


def recorded(state: Path) -> dict[str, int]:
    """The block that was chosen for the environment of a state folder; empty before that."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        block = msgspec.json.decode((state / FILE).read_bytes(), type=dict[str, int])
        if block.keys() == DIGITS.keys():
            return block
    return {}


def entry_of(settings: Settings, paths: Paths, block: dict[str, int] | None = None) -> Entry:
    """The environment as it is listed: with the ports that it has, or is about to have."""
    ports = {label: getattr(settings, label).port for label in DIGITS} if block is None else block
    return Entry(root=str(settings.root), env=settings.stack.env, state=str(paths.state), ports=ports)


def _choose(settings: Settings, paths: Paths, host: Host, registry: Registry) -> dict[str, int]:
    """The first block that nobody has, neither running nor stopped.

    :raises StackError: there is none.
    """
    taken = {getattr(settings, label).port for label in DIGITS}  # dev's, or those that are set for this one
    for entry in registry.entries():
        taken |= set(entry.ports.values())
        taken |= set(recorded(Path(entry.state)).values())
    blocks = range(FIRST, LAST + 1, STEP)
    start = host.uid * 31 % len(blocks)  # other users have a list of their own: theirs begin elsewhere
    for number in range(len(blocks)):
        first = blocks[(start + number) % len(blocks)]
        block = {label: first + digit for label, digit in DIGITS.items()}
        if not taken & set(block.values()) and all(
            host.is_free(getattr(settings, label).bind, port) for label, port in block.items()
        ):
            return block
    raise StackError(
        f"no ports from {FIRST} to {LAST + STEP - 1} are left for environment {settings.stack.env}",
        fix=["remove environments that nobody needs: inv dev.list --all, inv dev.remove -e NAME",
             "or choose them yourself: INVOKE_DB_PORT, INVOKE_PGB_PORT and INVOKE_API_PORT"],
    )  # fmt: skip
