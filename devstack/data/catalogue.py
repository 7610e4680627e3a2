"""The backups of an environment: which there are, which one is meant."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack import console
from devstack.data import aside, signing
from devstack.data.manifest import Manifest, encode, load, path_of
from devstack.errors import StackError, UsageError

if TYPE_CHECKING:
    from devstack.host import Host
    from devstack.settings import Settings
    from devstack.stack import Stack


class Backup(Struct, frozen=True):
    """A dump with its manifest."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def damage(self) -> str:
        """What a look at the file's size shows; empty if it is as it was written."""
        if self.manifest.layout in ("directory", "cluster"):
            missing = [name for name in self.manifest.files if not (self.path / name).is_file()]
            return f"{missing[0]} is missing" if missing else ""
        size = self.path.stat().st_size
        return "" if size == self.manifest.bytes else f"it has {size} bytes, its manifest says {self.manifest.bytes}"


def folder_of(settings: Settings) -> Path:
    """Where the environment's backups are; one other than dev has a folder of its own there."""
    folder = settings.root / Path(settings.data.dir).expanduser()
    return folder if settings.stack.env == "dev" else folder / settings.stack.env


def check_closed(host: Host, settings: Settings, folder: Path, setting: str) -> None:
    """:raises UsageError: others could exchange what is written into the folder, which ``setting`` names."""
    host.check_closed(folder, "backups", setting=setting, root=settings.root, sticky=True)


def backups(folder: Path) -> list[Backup]:
    """Every whole backup in the folder, the oldest first. What has no manifest of ours is no backup."""
    found = [backup for path in folder.glob("*.json") if (backup := read(path.with_name(path.name[:-5])))]
    return sorted(found, key=lambda b: (b.manifest.sequence, b.manifest.created))


def read(path: Path) -> Backup | None:
    """The backup at this path; None if it is not one with its manifest."""
    if path.is_symlink() or path_of(path).is_symlink():
        return None
    try:
        manifest = load(path_of(path))
    except (OSError, ValueError):
        return None
    fits = path.is_dir() if manifest.layout in ("directory", "cluster") else path.is_file()
    return Backup(path, manifest) if fits and manifest.file == path.name else None


def prepare(stack: Stack) -> Path:
    """The folder, there and free of what killed commands left; the lock on the data is held.

    :raises StackError: it can't be made, or others could exchange what is in it.
    """
    folder = folder_of(stack.settings)
    check_closed(stack.context.host, stack.settings, folder, "data.dir")
    try:
        if not folder.is_dir():
            stack.context.host.make_dir(folder, 0o700)
    except OSError as error:
        raise StackError(
            f"the folder for backups {folder} can't be made", why=str(error), fix="set data.dir to another folder"
        ) from None
    for line in aside.sweep(folder):
        console.note(line)
    return folder


def is_signed(stack: Stack, backup: Backup) -> bool:
    """Check whether this environment has made a backup."""
    return signing.is_signed(stack.paths, backup.manifest)


def change(stack: Stack, backup: Backup, **changes: object) -> Backup:
    """The same backup with something else in its manifest, as that is now. What another environment has signed, or
    none, does not get a signature of this one's."""
    import msgspec

    current = read(backup.path) or backup
    manifest = msgspec.structs.replace(current.manifest, **changes)
    if is_signed(stack, current):
        manifest = signing.sign(stack, manifest)
    stack.context.host.write_file(path_of(backup.path), encode(manifest), 0o600)
    return Backup(backup.path, manifest)


def newest(found: list[Backup], *, before: datetime | None = None) -> Backup | None:
    """The newest full backup, undamaged by its size; made before a moment if that is given. Otherwise those that
    restores made of what they replaced do not count: the second of two restores would undo the first. Those of
    databases elsewhere never do: who restores one names it."""
    fitting = [b for b in found if b.manifest.kind == "full" and not b.manifest.origin and not b.damage]
    fitting = [b for b in fitting if (b.manifest.time <= before if before else not b.manifest.safety)]
    return fitting[-1] if fitting else None


def dump(found: list[Backup], folder: Path, *, at: str = "") -> Backup:
    """The newest full dump, or the newest from before a moment; says when a copy of the cluster is newer.

    :raises StackError: there is none.
    """
    moment = parse_moment(at) if at else None
    backup = newest(found, before=moment)
    copies = [b for b in found if b.manifest.layout == "cluster" and not b.damage]
    copies = [b for b in copies if not moment or b.manifest.time <= moment]
    copy = f"inv data.restore --file {copies[-1].name}" if copies else ""
    others = [b for b in found if b.manifest.origin and (not moment or b.manifest.time <= moment)]
    if others and (backup is None or others[-1].manifest.sequence > backup.manifest.sequence):
        other = others[-1]
        console.note(f"{other.name} is newer, and of {other.manifest.origin}: it is taken where it is named alone")
    if backup is None:
        raise StackError(
            f"there is no full backup{f' from before {at}' if at else ''} in {folder}",
            why=f"only dumps are looked at, not copies of the cluster; the newest of those is {copies[-1].name}"
            if copies
            else "",
            fix=copy or ("see inv data.list" if at else "make one: inv data.backup"),
        )
    if copies and copies[-1].manifest.sequence > backup.manifest.sequence:
        console.note(f"a copy of the cluster is newer than {backup.name}, the newest dump: {copy}")
    return backup


def pick(settings: Settings, which: str) -> Backup:
    """The backup that ``latest``, a name or a path means.

    :raises StackError: there is none.
    """
    folder = folder_of(settings)
    found = backups(folder)
    if which in ("", "latest"):
        return dump(found, folder)
    for path in (folder / which, Path(os.path.abspath(Path(which).expanduser()))):
        if backup := read(path):
            return backup
    raise StackError(
        f"{which} is no backup of this tool",
        why="there is no such file with its manifest beside it",
        evidence=[f"in {folder}: {backup.name}" for backup in found[-3:]],
        fix="see inv data.list",
    )


def parse_moment(text: str) -> datetime:
    """A moment such as ``2026-11-23 10:00``, in local time unless it has a zone.

    :raises UsageError: not a moment.
    """
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise UsageError(f"{text!r} is not a moment", fix="write it as '2026-11-23 10:00'") from None
    return (moment if moment.tzinfo else moment.astimezone()).astimezone(timezone.utc)
