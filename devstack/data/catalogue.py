"""The backups of an environment: which there are, which one is meant."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from devstack import console, trust
from devstack.data import aside, signing
from devstack.data.manifest import STAMPED, Manifest, TooNew, encode, load, path_of
from devstack.errors import StackError, UsageError
from devstack.files import NotPlain
from devstack.shell import typed

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
    """Check that backups can be kept in a directory.

    :param setting: where the directory is chosen.
    :raises UsageError: others could exchange what is written there, or a link in the project leads there.
    """
    trust.check_links(folder, "backups", setting=setting, root=settings.root, files=False)
    host.check_closed(folder, "backups", setting=setting, root=settings.root, sticky=True)


Doubt = Literal["damaged", "unchecked", "too_new"]
"""Reason why a backup can't be used: it is not as it was written, the system could not read it, or it is of a later
version of nv-devstack."""
IN_WORDS: dict[Doubt, str] = {"damaged": "damaged", "unchecked": "could not be checked", "too_new": "too new"}


class Unreadable(Struct, frozen=True):
    """A backup that can't be used as it is."""

    path: Path
    why: str
    fix: list[str]
    manifest: Manifest | None = None
    """Its manifest, where that is whole."""
    state: Doubt = "damaged"

    @property
    def name(self) -> str:
        return self.path.name

    def error(self) -> StackError:
        return StackError(f"{self.name} can't be used as a backup", why=self.why, fix=self.fix)

    def may_be_latest(self, backup: Backup | None, before: datetime | None) -> bool:
        """Check whether it may be a full dump that is newer than ``backup``, as far as that can be known."""
        if self.manifest:
            full = newest([Backup(self.path, self.manifest)], before=before) is not None
        else:
            mine = STAMPED.fullmatch(self.name)
            full = not (mine and mine[1])
        made = self._made
        return full and self.may_be_newer(backup) and (before is None or made is None or made <= before)

    def may_be_newer(self, backup: Backup | None) -> bool:
        """Check whether it may be newer than ``backup``, as far as that can be known."""
        mine = STAMPED.fullmatch(self.name)
        other = STAMPED.fullmatch(backup.name) if backup else None
        if mine and other:  # names sort as the backups were made
            return mine[2] > other[2]
        made = self._made
        return backup is None or made is None or made >= backup.manifest.time.replace(microsecond=0)

    @property
    def _made(self) -> datetime | None:
        """Time at which it was made; None where nothing says so."""
        if self.manifest:
            return self.manifest.time
        mine = STAMPED.fullmatch(self.name)
        return datetime.strptime(f"{mine[2]}+0000", "%Y%m%d-%H%M%S%z") if mine else None


def survey(folder: Path) -> tuple[list[Backup], list[Unreadable]]:
    """Return every backup in a folder, the oldest first, and what should be one and can't be used."""
    looked = [_look(path) for path in _candidates(folder)]
    found = sorted(
        (b for b in looked if isinstance(b, Backup)), key=lambda b: (b.manifest.sequence, b.manifest.created)
    )
    return found, [other for other in looked if isinstance(other, Unreadable)]


def backups(folder: Path) -> list[Backup]:
    """Return every backup in a folder, the oldest first."""
    return survey(folder)[0]


def read(path: Path) -> Backup | None:
    """Return the backup at this path; None if it is not one with its manifest."""
    found = _look(path)
    return found if isinstance(found, Backup) else None


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield the paths that have a manifest, or a name that this tool gives to backups."""
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    begun = set()
    for path in folder.glob(".nv-????????.manifest"):  # one whose command is about to give it its manifest
        with contextlib.suppress(OSError, ValueError):
            begun.add(load(path).file)
    described = {name.removesuffix(".json") for name in names if name.endswith(".json")}
    stamped = {name for name in names if STAMPED.fullmatch(name)} - begun
    yield from (folder / name for name in sorted(described | stamped) if name)


def is_there(path: Path) -> bool:
    """Check whether something is at a path.

    :raises OSError: the system can't say; ``Path.exists`` takes that for no.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return False
        raise
    return True


def _look(path: Path) -> Backup | Unreadable | None:
    """Return what is at a path; None where nothing says that it is, or was, a backup."""
    if not path.name:  # the root directory
        return None
    try:
        return _judge(path)
    except OSError as error:
        why = f"it can't be looked at: {error.strerror or error}"
        return Unreadable(path, why, [f"see that {error.filename or path} can be read"], state="unchecked")


def _judge(path: Path) -> Backup | Unreadable | None:
    """Return the same.

    :raises OSError: the system can't say what is there.
    """
    record = path_of(path)
    there = is_there(path)
    if path.is_symlink() or record.is_symlink():
        return None
    try:
        manifest = load(record)
    except TooNew as error:
        fix = "update nv-devstack, or use another backup"
        return Unreadable(path, f"its manifest can't be read: {error}", [fix], state="too_new")
    except FileNotFoundError:
        return Unreadable(path, "its manifest is missing", _way_out(path)) if there and _is_stamped(path) else None
    except (OSError, ValueError) as error:
        if not (there or _is_stamped(path)):
            return None
        if isinstance(error, OSError):
            why = f"its manifest can't be read: {error.strerror or error}"
            state: Doubt = "damaged" if isinstance(error, NotPlain | IsADirectoryError) else "unchecked"
            return Unreadable(path, why, [f"see who may read {record}, and that it is a file"], state=state)
        return Unreadable(path, f"its manifest is damaged: {error}", _way_out(path))
    if not there:
        why = "its manifest is there, and the file itself is not"
        return Unreadable(path, why, ["inv data.cleanup removes the manifest"], manifest)
    if manifest.file != path.name:
        why, fix = f"its manifest is of {manifest.file}", f"give both files their names again: {manifest.file}"
        return Unreadable(path, why, [fix], manifest)
    fits = path.is_dir() if manifest.layout in ("directory", "cluster") else path.is_file()
    if not fits:
        return Unreadable(path, "it is something else than its manifest says", ["use another backup: inv data.list"])
    return Backup(path, manifest)


def _is_stamped(path: Path) -> bool:
    return STAMPED.fullmatch(path.name) is not None


def _way_out(path: Path) -> list[str]:
    """Return what is left to do with a backup that has no manifest."""
    if not path.exists():
        return [f"nothing is left of it but {path_of(path)}: remove that"]
    if path.suffix == ".cluster":
        return ["use another backup: a cluster's copy needs its manifest"]
    return [
        "use another backup, or this one without its manifest:",
        f"inv data.restore --file {typed(path.name)} --force",
    ]


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


def is_own(stack: Stack, backup: Backup) -> bool:
    """Check whether this environment has made a backup, on this machine."""
    return is_signed(stack, backup) and not backup.manifest.fetched_from


def newest(found: list[Backup], *, before: datetime | None = None) -> Backup | None:
    """Return the newest full dump; made before a moment if that is given. Otherwise those that
    restores made of what they replaced do not count: the second of two restores would undo the first. Those of
    databases elsewhere never do: who restores one names it."""
    fitting = [b for b in found if b.manifest.kind == "full" and not b.manifest.origin]
    fitting = [b for b in fitting if (b.manifest.time <= before if before else not b.manifest.safety)]
    return fitting[-1] if fitting else None


def latest(folder: Path, owned: Callable[[Backup], bool], *, at: str = "") -> Backup:
    """Return the newest full dump, or the newest from before a moment; says when a copy of the cluster is newer.

    :param owned: whether a backup is of the environment and the machine that it is for.
    :raises StackError: there is none, or one that can't be read may be newer.
    """
    moment = parse_moment(at) if at else None
    everything, unreadable = survey(folder)
    found = [b for b in everything if owned(b)]
    backup = newest(found, before=moment)
    for doubtful in unreadable:
        if doubtful.may_be_latest(backup, moment):
            by_name = f"inv data.restore --file {typed(backup.name)}" if backup else "inv data.list"
            raise StackError(
                f"{doubtful.name} may be the newest backup, and can't be used",
                why=doubtful.why,
                fix=[*doubtful.fix, f"or restore another one by its name: {by_name}"],
            )
    copies = [b for b in found if b.manifest.layout == "cluster" and not b.damage]
    copies = [b for b in copies if not moment or b.manifest.time <= moment]
    copy = f"inv data.restore --file {typed(copies[-1].name)}" if copies else ""
    others = [b for b in everything if b.manifest.origin and (not moment or b.manifest.time <= moment)]
    if others and (backup is None or others[-1].manifest.sequence > backup.manifest.sequence):
        other = others[-1]
        console.note(f"{other.name} is newer, and of {other.manifest.origin}: it is taken where it is named alone")
    if backup is None:
        _check_foreign(newest(everything, before=moment), at, folder)
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


def _check_foreign(backup: Backup | None, at: str, folder: Path) -> None:
    """:raises StackError: there is one of another environment, which could be meant."""
    if backup:
        raise StackError(
            f"there is no full backup of this environment{f' from before {at}' if at else ''} in {folder}",
            why=f"{backup.name} is {whose(backup.manifest)}: such a one is taken where it is named alone",
            fix=f"inv data.restore --file {typed(backup.name)}",
        )


def whose(manifest: Manifest) -> str:
    """Return whose a backup is that this environment has not made on this machine, in words."""
    if manifest.fetched_from:
        return f"from host {manifest.fetched_from}"
    if manifest.machine:
        return f"not signed by this environment: made by environment {manifest.environment} on {manifest.machine}"
    return "not signed by this environment: made by another one, changed since, or from before signatures existed"


def pick(stack: Stack, which: str) -> Backup:
    """Return the backup that ``latest``, a name or a path means.

    :raises StackError: there is none.
    """
    folder = folder_of(stack.settings)
    if which in ("", "latest"):
        return latest(folder, lambda backup: is_own(stack, backup))
    return named(folder, which)


def named(folder: Path, which: str) -> Backup:
    """Return the backup that a name or a path means.

    :raises StackError: there is none.
    """
    for path in (folder / which, Path(os.path.abspath(Path(which).expanduser()))):
        match _look(path):
            case Backup() as backup:
                return backup
            case Unreadable() as unreadable:
                raise unreadable.error()
    raise StackError(
        f"{which} is no backup of this tool",
        why="there is no such file with its manifest beside it",
        evidence=[f"in {folder}: {backup.name}" for backup in backups(folder)[-3:]],
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
