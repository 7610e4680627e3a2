"""Which backups may go: never the last one that is known to be good, nor what another one needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from devstack import console
from devstack.data import aside, catalogue
from devstack.data.catalogue import Backup
from devstack.data.manifest import load, now

if TYPE_CHECKING:
    from devstack.stack import Stack


def expired(
    found: Iterable[Backup], *, moment: datetime, days: int, keep: int, is_whole: Callable[[Backup], bool]
) -> list[Backup]:
    """The backups older than ``days`` that nothing keeps, those that depend on others first.

    Kept are: pinned ones; of each database the newest ``keep`` full ones that are verified, and always the newest that
    ``is_whole`` says of that it is as it was written; what a kept one depends on.
    """
    backups = list(found)
    limit = moment - timedelta(days=days)
    old = [b for b in backups if b.manifest.time < limit]
    if not old:
        return []
    kept = {b.name for b in backups if b not in old or b.manifest.pinned}
    origins = sorted({b.manifest.origin for b in backups})
    counts = [(("full",), origin, max(keep, 1)) for origin in origins]
    for kinds, origin, left in [*counts, (("base", "incremental"), "", 1)]:
        fitting = [b for b in reversed(backups) if b.manifest.kind in kinds and b.manifest.origin == origin]
        for backup in (b for b in fitting if b.manifest.verified):
            # one that was damaged since does not count
            if left and is_whole(backup):
                kept.add(backup.name)
                left -= 1
    parents = {b.name: b.manifest.parent for b in backups}
    for name in list(kept):
        while name := parents.get(name, ""):
            kept.add(name)
    return [b for b in reversed(backups) if b.name not in kept]


def cleanup(stack: Stack, *, days: int, keep: int, dry: bool) -> list[Backup]:
    """Remove what :func:`expired` says; what it was. In a dry run nothing is removed."""
    from devstack.data import incremental, verify
    from devstack.errors import StackError

    def is_whole(backup: Backup) -> bool:
        try:
            for member in incremental.chain(backup, catalogue.backups(folder)):
                verify.check_content(stack, member.path, member.manifest)
        except StackError as error:
            console.note(f"{backup.name} is not counted as good: {error.why}")
            return False
        return True

    folder = catalogue.folder_of(stack.settings)
    if not (dry or stack.context.dry):
        catalogue.prepare(stack)
    gone = expired(catalogue.backups(folder), moment=now(), days=days, keep=keep, is_whole=is_whole)
    if not (dry or stack.context.dry):
        for backup in gone:
            aside.retire(backup.path)
        _drop_lone_manifests(folder)
    return gone


def _drop_lone_manifests(folder: Path) -> None:
    """A removal that was cut off leaves a manifest of ours without its dump."""
    for path in folder.glob("backup-*.json"):
        with contextlib.suppress(OSError, ValueError):
            if load(path).file == path.name[:-5] and not path.with_name(path.name[:-5]).exists():
                path.unlink()
