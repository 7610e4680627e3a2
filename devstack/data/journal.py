"""What a restore is at, kept on the disk: the next command finishes or undoes what was cut off."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from devstack.host import Host

if TYPE_CHECKING:
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


def is_abandoned(paths: Paths) -> bool:
    """Check, without waiting for a lock, whether there is a journal whose command no longer runs."""
    journal = read(paths)
    if journal is None:
        return paths.journal.exists()  # damaged by a full disk
    return not Host().runs(journal.pid)


def restoring(paths: Paths) -> str:
    """Return what is being done to the database right now, as a sentence; empty if nothing is."""
    journal = read(paths)
    if journal is None or journal.operation == "verify":
        return ""
    doing = {"restore": "restoring", "merge": "merging", "undo": "undoing the restore of"}[journal.operation]
    sentence = f"{doing} {journal.about} since {journal.began[11:19]} UTC"
    return f"{sentence}; it was cut off" if is_abandoned(paths) else sentence


def holds_clients(paths: Paths) -> bool:
    """Check whether clients wait for what is being done, or was cut off."""
    journal = read(paths)
    return journal is not None and journal.phase == "switch"
