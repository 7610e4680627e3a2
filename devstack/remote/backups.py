"""Backups of a stack on a host: they come here, and go there when they are to be restored.

The host keeps what it needs to go on: a copy of the cluster that the next incremental one builds on, and what its own
schedule makes. What a command made there whose link broke comes with the next one.

The host is not trusted: it can give a backup any content, but no name and no size that was not asked for, and nothing
that comes from it is signed by this environment.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import msgspec
from msgspec import Struct, field

from devstack import console, trust
from devstack.data import catalogue, manifest
from devstack.data.aside import aside
from devstack.data.backup import names
from devstack.data.catalogue import Backup
from devstack.data.manifest import Manifest, path_of
from devstack.data.schedule import LABEL
from devstack.data.streams import Meter, directory_hash, meter, sha256_of
from devstack.errors import StackError
from devstack.host import Host
from devstack.remote.agent import CHUNK, Refused, unpack
from devstack.remote.project import Remote
from devstack.remote.talk import Incoming, Outgoing, Talk

SUFFIX = ".json"
LENT = ".nv-lent"
"""The folder on the host for dumps that are no backups of this tool, and for notes of backups that are there for the
time of a command."""
STANDING = ("directory", "cluster")
"""The layouts that are folders."""
LIST = "backup_manifest"
"""PostgreSQL's list of a cluster's copy: https://www.postgresql.org/docs/current/backup-manifest-format.html"""

LONGEST_MANIFEST = 64 << 20
"""Bytes: a folder's manifest has a line for each of its files."""
SLACK = 256 << 20
"""Bytes of a folder as tar beyond its files' content, at most as much again: the headers."""

Key = tuple[str, str]
"""What tells backups apart, whatever their names: the checksum, and when they were made."""


def key(made: Manifest) -> Key:
    return made.sha256, made.created


class Exchange(Struct):
    """The backups here and there around one command. Only one command of a project at a time has one."""

    remote: Remote
    before: set[str] = field(default_factory=set)
    """Names on the host before the command."""
    lent: dict[str, str] = field(default_factory=dict)
    """The name there of what went there for this command alone, by its name here."""

    @property
    def folder(self) -> Path:
        """Here."""
        return catalogue.folder_of(self.remote.settings)

    @property
    def _host(self) -> Host:
        """This machine, for what is written into :attr:`folder`."""
        return Host(friends={*trust.uids(self.remote.environ), self.remote.settings.root.stat().st_uid})

    @property
    def there(self) -> str:
        """On the host, from the project's folder there.

        :raises StackError: they are not below the project's folder, where nobody knows the way there.
        """
        settings = self.remote.settings
        try:
            return str(self.folder.relative_to(settings.root))
        except ValueError:
            raise StackError(
                f"backups of another host can't be kept in {self.folder}",
                why=f"it is not below {settings.root} ({settings.origin('data.dir')})",
                fix="set data.dir to a folder of the project, or unset stack.host",
            ) from None

    @property
    def _note(self) -> Path:
        """Record of what was on the host when a command began; removed once its backups are here."""
        return self.remote.state / "exchange.json"

    def begin(self) -> None:
        """Note which backups are on the host, and bring those that a command made whose link broke."""
        with self.remote.talk() as talk:
            self._take_back(talk)
            self.before = self._names(talk)
            left = self._missing(talk, self._left_behind())
        for made in left:
            try:
                with self.remote.talk() as talk:  # one that went wrong leaves who knows what unread
                    self._announce(self._fetch(talk, made))
            except StackError as error:
                # one that is damaged there must not be in the way of the next one
                if self.remote.link.gone():
                    raise
                console.note(f"{made.file} on {self.remote.link.host} was not brought: {error.why or error.what}")
        self._note.write_bytes(msgspec.json.encode(sorted(self.before)))

    def _left_behind(self) -> set[str]:
        """Names of the backups that were made on the host by a command which could not bring them."""
        try:
            before = msgspec.json.decode(self._note.read_bytes(), type=list[str])
        except (OSError, msgspec.MsgspecError):
            return set()
        return self.before - set(before)

    def end(self, *, keep: bool) -> None:
        """Bring what was made on the host; what no one there needs goes from there, unless it is to be kept."""
        with self.remote.talk() as talk:
            now = self._names(talk)
            made = {name: found for name in now - self.before if (found := self._manifest(talk, name))}
            for one in self._missing(talk, set(made) - set(self.lent.values())):
                self._announce(self._fetch(talk, one))
            for here, there in self.lent.items():
                self._note_proof(here, made.get(there))
            self._note.unlink(missing_ok=True)
            if not keep:
                known = self._known()
                own = (n for n, one in made.items() if key(one) in known and not _stays(one))
                self._drop(talk, own)
            self._take_back(talk)

    def lend(self, backup: Backup) -> str:
        """Bring a backup to the host, with those that it builds on; its name there.

        :raises StackError: one of those is not here.
        """
        with self.remote.talk() as talk:
            there = self._names(talk)
            chain = [backup]
            while parent := chain[-1].manifest.parent:
                found = catalogue.read(self.folder / parent)
                if found is None:
                    raise StackError(f"{chain[-1].name} needs {parent}", why="it is not here", fix="inv data.list")
                chain.append(found)
            for one in reversed(chain):
                name = self._lend(talk, one, there, alone=len(chain) == 1)
            return name

    def _lend(self, talk: Talk, backup: Backup, there: set[str], *, alone: bool) -> str:
        name = backup.name
        if name in there:
            found = self._manifest(talk, name)
            if found and key(found) == key(backup.manifest):
                return name
            if not alone:
                raise StackError(
                    f"{name} is another backup on {self.remote.link.host}",
                    why="the backups of a chain know each other by their names",
                    fix=f"move that one away there: {self.remote.folder}/{self.there}/{name}",
                )
            name = f"lent-{backup.manifest.sha256[:8]}-{name}"
        self._send_bytes(talk, b"", f"{self.there}/{LENT}/{name}.lent")
        self._send(talk, backup.path, f"{self.there}/{name}")
        content = manifest.encode(msgspec.structs.replace(backup.manifest, file=name))
        self._send_bytes(talk, content, f"{self.there}/{name}{SUFFIX}")
        self.lent[backup.name] = name
        return name

    def lend_file(self, path: Path) -> str:
        """Bring a dump of another tool to the host; its path there, from the project's folder."""
        name = f"{self.there}/{LENT}/{path.name}"
        with self.remote.talk() as talk:
            self._send(talk, path, name)
        return name

    def lend_text(self, text: str) -> str:
        """Bring a secret to the host as a file; its path there, from the project's folder."""
        name = f"{self.there}/{LENT}/text"
        with self.remote.talk() as talk:
            self._send_bytes(talk, text.encode(), name)
        return name

    # from the host

    def _names(self, talk: Talk) -> set[str]:
        """The whole backups there."""
        found = self._listed(talk, self.there)
        return {name for name in found if f"{name}{SUFFIX}" in found and manifest.NAME.fullmatch(name)}

    def _listed(self, talk: Talk, folder: str) -> set[str]:
        talk.ask("listing", dir=self.remote.folder, folders=[folder])
        return {name.rstrip("/").rpartition("/")[2] for name in talk.answer_as(_Listed).files}

    def _known(self) -> set[Key]:
        return {key(backup.manifest) for backup in catalogue.backups(self.folder)}

    def _missing(self, talk: Talk, names: Iterable[str]) -> list[Manifest]:
        """The backups of these that are not here, the oldest first."""
        known = self._known()
        found = [made for name in names if (made := self._manifest(talk, name)) and key(made) not in known]
        return sorted(found, key=lambda made: made.sequence)

    def _manifest(self, talk: Talk, name: str) -> Manifest | None:
        content = bytearray()
        for part in self._contents(talk, f"{name}{SUFFIX}"):
            content += part
            if len(content) > LONGEST_MANIFEST:
                raise StackError(
                    f"the manifest of {name} on {self.remote.link.host} is too long", fix="move it away there"
                )
        try:
            made = manifest.decode(bytes(content))
        except ValueError:
            return None
        return made if made.file == name else None

    def _contents(self, talk: Talk, name: str) -> Iterator[bytes]:
        """The content of a file in the folder there; of a folder, which ends with ``/``, as tar."""
        talk.ask("get", dir=self.remote.folder, files=[f"{self.there}/{name}"])
        talk.answer()
        yield from talk.stream()

    def _fetch(self, talk: Talk, made: Manifest) -> Path:
        """Bring one backup, prove it by its checksum, and give it its name.

        :raises StackError: it is not what the host has.
        """
        folder = self.folder
        catalogue.check_closed(self._host, self.remote.settings, folder, "data.dir")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < made.bytes:
            raise StackError(
                f"{made.file} does not fit into {folder}",
                why=f"it has {console.size(made.bytes)}, {console.size(shutil.disk_usage(folder).free)} are free",
                fix="make room, or set data.dir to a folder on another disk",
            )
        standing = made.layout in STANDING
        if made.layout == "cluster" and (folder / made.file).exists():
            raise StackError(
                f"{made.file} is here already, and another one",
                why="the backups of a chain know each other by their names",
                fix=f"move that one away: {folder / made.file}",
            )
        with meter(f"from {self.remote.link.host}", made.bytes) as progress, aside(folder, directory=standing) as place:
            if standing:
                damage = self._fetch_folder(talk, made, place.path, progress)
            else:
                damage = self._fetch_file(talk, made, place.path, progress)
            if damage:
                raise StackError(
                    f"{made.file} did not arrive whole", why=damage, fix="it is still on the host; try again"
                )
            later = names(folder, made.kind, made.layout, made.time)
            taken = (folder / made.file).exists() or path_of(folder / made.file).exists()
            final, _ = place.publish(
                later.__next__ if taken else lambda: made.file, lambda name: self._numbered(made, name)
            )
        return final

    def _fetch_file(self, talk: Talk, made: Manifest, path: Path, progress: Meter) -> str:
        """What is wrong with it; empty if nothing is."""
        whole = hashlib.sha256()
        with path.open("r+b") as file:
            for part in self._contents(talk, made.file):
                if file.tell() + len(part) > made.bytes:
                    return f"the host sends more than the {made.bytes} bytes of its manifest"
                whole.update(part)
                file.write(part)
                progress.add(len(part))
        if progress.count < made.bytes:
            return f"{made.bytes - progress.count} bytes are missing"
        return "" if whole.hexdigest() == made.sha256 else "its checksum is not that of its manifest"

    def _fetch_folder(self, talk: Talk, made: Manifest, path: Path, progress: Meter) -> str:
        talk.ask("get", dir=self.remote.folder, files=[f"{self.there}/{made.file}/"])
        talk.answer()
        try:
            unpack(Incoming(talk, progress.add, 2 * made.bytes + SLACK), str(path))
        except (Refused, tarfile.TarError, OSError, ValueError) as error:
            if self.remote.link.gone():
                raise
            return str(error)
        for name, digest in made.files.items():
            if not (path / name).is_file() or sha256_of(path / name) != digest:
                return f"{name} has another checksum than in its manifest"
        if made.layout == "cluster":
            return _lacking(path)
        return "" if directory_hash(made.files) == made.sha256 else "its checksum is not that of its manifest"

    def _numbered(self, made: Manifest, name: str) -> Manifest:
        """A folder counts its own backups, and knows where each was brought from."""
        number = 1 + max((b.manifest.sequence for b in catalogue.backups(self.folder)), default=0)
        host = self.remote.settings.stack.host
        return msgspec.structs.replace(made, file=name, sequence=number, fetched_from=host)

    def _announce(self, path: Path) -> None:
        console.note(f"brought from {self.remote.link.host}: {path}")

    def _note_proof(self, name: str, there: Manifest | None) -> None:
        """What the host has proven of a backup is noted here."""
        here = catalogue.read(self.folder / name)
        if here is None or here.manifest.fetched_from != self.remote.settings.stack.host:
            return  # one that was made here, or on another host: its signature is not this host's to change
        # what the host has signed anew it had made itself; it says nothing of the others
        if there and there.signature != here.manifest.signature:
            changed = msgspec.structs.replace(here.manifest, verified=there.verified, signature=there.signature)
            file = path_of(here.path)
            self._host.write_file(file, manifest.encode(changed), 0o600)

    def _take_back(self, talk: Talk) -> None:
        """Remove what was lent, also by a command whose link broke."""
        noted = self._listed(talk, f"{self.there}/{LENT}")
        lent = [name[:-5] for name in noted if name.endswith(".lent")]
        self._drop(talk, lent, [f"{self.there}/{LENT}"] if noted else [])

    def _drop(self, talk: Talk, backups: Iterable[str], paths: Iterable[str] = ()) -> None:
        # the manifest first: what has none is no backup, and is not half of one
        names = [f"{self.there}/{path}" for name in backups for path in (f"{name}{SUFFIX}", name)]
        if names or paths:
            talk.ask("drop", dir=self.remote.folder, files=[*names, *paths])
            talk.answer()

    # to the host

    def _send(self, talk: Talk, path: Path, name: str) -> None:
        """A file, or a folder with all that is in it."""
        tree = path.is_dir()
        size = sum(file.stat().st_size for file in path.rglob("*")) if tree else path.stat().st_size
        with meter(f"to {self.remote.link.host}", size) as progress:
            talk.ask("put", dir=self.remote.folder, path=name, tree=tree, mode=0o600)
            outgoing = Outgoing(talk, progress.add)
            with talk.explained():
                if tree:
                    with tarfile.open(
                        fileobj=cast(IO[bytes], outgoing), mode="w|", format=tarfile.PAX_FORMAT
                    ) as archive:
                        archive.add(path, ".")
                else:
                    with path.open("rb") as file:
                        while part := file.read(CHUNK):
                            outgoing.write(part)
                outgoing.end()
            talk.answer()

    def _send_bytes(self, talk: Talk, content: bytes, name: str) -> None:
        talk.ask("put", dir=self.remote.folder, path=name, tree=False, mode=0o600)
        outgoing = Outgoing(talk)
        with talk.explained():
            outgoing.write(content)
            outgoing.end()
        talk.answer()


def _stays(made: Manifest) -> bool:
    """Whether the host goes on from it, or has made it by itself."""
    return made.layout == "cluster" or made.label == LABEL


def _lacking(path: Path) -> str:
    """What a cluster's copy lacks of its list; empty if nothing."""
    try:
        entries = msgspec.json.decode((path / LIST).read_bytes(), type=_List).files
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        return f"{LIST} can't be read: {error}"
    for entry in entries:
        file = path / entry.path
        if not entry.path:
            continue
        if not file.resolve().is_relative_to(path.resolve()):
            return f"{LIST} names {entry.path!r}"
        if not file.is_file() or file.stat().st_size != entry.size:
            return f"{entry.path!r} is missing, or has another size than in {LIST}"
    return ""


class _Listed(Struct):
    """Listing of a directory on a host, as its agent answers it."""

    files: dict[str, Any]


class _Entry(Struct, rename="pascal"):
    path: str = ""
    """Empty if its name is not UTF-8."""
    size: int = 0


class _List(Struct, rename="pascal"):
    """PostgreSQL's list of a cluster's copy."""

    files: list[_Entry]
