"""What a restore is at, kept on the disk: the next command finishes or undoes what was cut off."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct, field

from devstack.host import Host

if TYPE_CHECKING:
    from pathlib import Path

    from devstack.paths import Paths
    from devstack.stack import Stack


class Journal(Struct, frozen=True, kw_only=True):
    """Written before each step that the next command would have to put right."""

    operation: Literal["restore", "merge", "undo", "verify"]
    about: str
    """The backup's name."""
    phase: Literal["load", "switch"] = "load"
    database: str
    incoming: str
    """The database that is filled, and takes :attr:`database`'s name in a switch."""
    outgoing: str = ""
    """The name that the database gets which had it until then."""
    began: str
    pid: int

    @property
    def why(self) -> str:
        return f"{self.operation} of {self.about}"


class Swap(Struct, frozen=True, kw_only=True):
    """Progress of a restore, undo or verification of a cluster: names of directories next to the data directory."""

    incoming: str
    outgoing: str
    why: str
    pid: int = field(default_factory=os.getpid)
    stopped: list[str] = []
    """Labels of the services that were running, and are stopped for it."""


class Previous(Struct, frozen=True, kw_only=True):
    """The database that the last restore or undo put aside."""

    name: str
    of: str
    when: str
    why: str
    directory: bool = False
    """Whether it is a whole cluster's folder, beside the one in use."""


def write(stack: Stack, journal: Journal) -> None:
    stack.context.host.write_file(stack.paths.journal, msgspec.json.encode(journal) + b"\n", 0o600)


def clear(stack: Stack) -> None:
    stack.context.host.remove(stack.paths.journal)


def read(paths: Paths) -> Journal | None:
    """The journal; None if nothing is going on and nothing was cut off."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(paths.journal.read_bytes(), type=Journal)
    return None


def write_previous(stack: Stack, previous: Previous | None) -> None:
    if previous is None:
        stack.context.host.remove(stack.paths.previous)
    else:
        stack.context.host.write_file(stack.paths.previous, msgspec.json.encode(previous) + b"\n", 0o600)


def read_previous(paths: Paths) -> Previous | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(paths.previous.read_bytes(), type=Previous)
    return None


def write_swap(stack: Stack, swap: Swap) -> None:
    stack.context.host.write_file(stack.paths.swap, msgspec.json.encode(swap) + b"\n", 0o600)


def clear_swap(stack: Stack) -> None:
    stack.context.host.remove(stack.paths.swap)


def read_swap(paths: Paths) -> Swap | None:
    """Return what is done with the directory of the cluster; None if nothing is going on and nothing was cut off."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(paths.swap.read_bytes(), type=Swap)
    return None


def is_abandoned(paths: Paths) -> bool:
    """Check, without waiting for a lock, whether there is a record whose command no longer runs."""
    return _is_abandoned(paths.journal, read(paths)) or _is_abandoned(paths.swap, read_swap(paths))


def _is_abandoned(path: Path, record: Journal | Swap | None) -> bool:
    if record is None:
        return path.exists()  # damaged by a full disk
    return not Host().runs(record.pid)


def restoring(paths: Paths) -> str:
    """Return what is being done to the database right now, as a sentence; empty if nothing is."""
    journal, swap = read(paths), read_swap(paths)
    if journal and journal.operation != "verify":
        doing = {"restore": "restoring", "merge": "merging", "undo": "undoing the restore of"}[journal.operation]
        sentence = f"{doing} {journal.about} since {journal.began[11:19]} UTC"
    elif swap and swap.outgoing:
        sentence = f"{swap.why} goes on"
    else:
        return ""
    return f"{sentence}; it was cut off" if is_abandoned(paths) else sentence


def holds_clients(paths: Paths) -> bool:
    """Check whether clients wait for what is being done, or was cut off."""
    journal = read(paths)
    return journal is not None and journal.phase == "switch"
