"""How the answers on backups look."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devstack import console
from devstack.data.manifest import now

if TYPE_CHECKING:
    from devstack.data.catalogue import Backup
    from devstack.errors import StackError
    from devstack.stack import Stack

HOW = {"read": "read", "restore": "restored"}


def shown(stack: Stack, path: Path) -> str:
    """A path as short as it can be said from the project's folder."""
    relative = os.path.relpath(path, stack.settings.root)
    return str(path) if relative.startswith("..") else relative


def made(stack: Stack, backup: Backup) -> None:
    m = backup.manifest
    size = console.size(m.bytes) + (f" ({console.size(m.raw_bytes)} of SQL)" if m.raw_bytes else "")
    held = f"{_count(len(m.tables), 'table')}, {_count(m.rows, 'row')}"
    proof = "verified" if m.verified else console.paint("not verified", "warn")
    console.out(f"{shown(stack, backup.path)}  {size}, {held}, {proof}, {console.duration(m.seconds)}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def data(backup: Backup) -> dict[str, Any]:
    """A backup as JSON: its manifest with its path."""
    import msgspec

    return {"path": str(backup.path), **msgspec.to_builtins(backup.manifest)}


def age(backup: Backup) -> str:
    seconds = (now() - backup.manifest.time).total_seconds()
    return "in the future" if seconds < -60 else console.duration(max(0, int(seconds))).replace(".00", "")


def listing(stack: Stack, found: list[Backup], folder: Path) -> None:
    """Every backup on a line, the newest last."""
    if not found:
        console.out(f"there is no backup in {shown(stack, folder)}; make one: inv data.backup")
        return
    rows = []
    for backup in found:
        m = backup.manifest
        verified = f"{HOW[m.verified.how]} {m.verified.when[:16].replace('T', ' ')}" if m.verified else "no"
        state = backup.damage and console.paint(f"damaged: {backup.damage}", "bad")
        notes = ", ".join(filter(None, [m.label, "pinned" if m.pinned else "", state]))
        rows.append((backup.name, m.kind, age(backup), console.size(m.bytes), f"{m.rows:,}", verified, notes))
    header = ("backup", "kind", "age", "size", "rows", "verified (UTC)", "label")
    for line in console.table(rows, header, right=(3, 4)):
        console.out(line)


def verified(stack: Stack, results: list[tuple[Backup, StackError | None]], *, as_json: bool) -> bool:
    """What proving came to; whether all are whole."""
    if as_json:
        rows = [{**data(b), "damage": error.why if error else None} for b, error in results]
        console.data({"backups": rows})
    else:
        for backup, error in results:
            m = backup.manifest
            if error:
                word = console.paint("damaged", "bad")
            else:
                assert m.verified
                word = {"read": "whole", "restore": "whole, restored and counted"}[m.verified.how]
            console.out(f"{backup.name}  {word}")
    return all(error is None for _, error in results)
