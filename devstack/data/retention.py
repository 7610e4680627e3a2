"""Which backups may go: never the last one that is known to be good, nor what another one needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from devstack import console
from devstack.data import aside, catalogue
from devstack.data.catalogue import Backup
from devstack.data.manifest import load, now

if TYPE_CHECKING:
    from devstack.stack import Stack


State = Literal["whole", "damaged", "unchecked"]
"""Result of checking a backup."""


def expired(
    found: Iterable[Backup],
    *,
    moment: datetime,
    days: int,
    keep: int,
    state_of: Callable[[Backup], State],
    owner_of: Callable[[Backup], str],
) -> list[Backup]:
    """Return the backups older than ``days`` that nothing keeps, those that depend on others first.

    Pinned ones are kept, and what a kept one depends on. For each owner and database, of the full dumps and of the
    copies of the cluster, these are kept too: the newest that is not damaged, verified or not, which is what a restore
    takes; the newest ``keep`` verified ones that are whole (one copy); and every newer one that could not be checked. A
    backup that a restore made of what it replaced counts as none of them.
    """
    backups = list(found)
    limit = moment - timedelta(days=days)
    old = [b for b in backups if b.manifest.time < limit]
    if not old:
        return []
    kept = {b.name for b in backups if b not in old or b.manifest.pinned}
    groups: dict[tuple[str, str, str, bool], list[Backup]] = {}
    for backup in reversed(backups):
        m = backup.manifest
        if m.kind in ("full", "base", "incremental") and not m.safety:
            groups.setdefault((owner_of(backup), m.origin, m.database, m.kind == "full"), []).append(backup)
    for (_, _, _, full), fitting in groups.items():
        latest, verified = 1, max(keep, 1) if full else 1
        for backup in fitting:
            if latest <= 0 and (verified <= 0 or not backup.manifest.verified):
                continue
            state = state_of(backup)
            if state == "damaged":
                continue
            kept.add(backup.name)
            if state == "whole":
                latest -= 1
                verified -= bool(backup.manifest.verified)
    parents = {b.name: b.manifest.parent for b in backups}
    for name in list(kept):
        while name := parents.get(name, ""):
            kept.add(name)
    return [b for b in reversed(backups) if b.name not in kept]


def cleanup(stack: Stack, *, days: int, keep: int, dry: bool) -> list[Backup]:
    """Remove what :func:`expired` says; what it was. In a dry run nothing is removed."""
    from devstack.data import incremental, verify
    from devstack.errors import StackError

    def state_of(backup: Backup) -> State:
        try:
            for member in incremental.chain(backup, found):
                verify.check_content(stack, member.path, member.manifest)
        except verify.Damaged as error:
            console.note(f"{backup.name} is not counted as good: {error.why}")
            return "damaged"
        except StackError as error:
            console.note(f"{backup.name} is kept, as it could not be checked: {error.why or error.what}")
            return "unchecked"
        return "whole"

    def owner_of(backup: Backup) -> str:
        return "" if catalogue.is_own(stack, backup) else catalogue.whose(backup.manifest)

    folder = catalogue.folder_of(stack.settings)
    if not (dry or stack.context.dry):
        catalogue.prepare(stack)
    found, unreadable = catalogue.survey(folder)
    for other in unreadable:
        if os.path.lexists(other.path):
            console.note(f"{other.name} is kept, as it can't be checked: {other.why}")
    gone = expired(found, moment=now(), days=days, keep=keep, state_of=state_of, owner_of=owner_of)
    if not (dry or stack.context.dry):
        for backup in gone:
            aside.retire(backup.path)
        _drop_lone_manifests(folder)
    return gone


def _drop_lone_manifests(folder: Path) -> None:
    """Remove the manifests of ours that a removal which was cut off has left without their dumps."""
    for path in folder.glob("backup-*.json"):
        with contextlib.suppress(OSError, ValueError):
            if load(path).file == path.name[:-5] and not catalogue.is_there(path.with_name(path.name[:-5])):
                path.unlink()
                console.note(f"removed {path.name}: the backup that it describes is gone")
