"""Backups of a stack on a host: they come here, and go there when they are to be restored.

The host keeps what it needs to go on: a copy of the cluster that the next incremental one builds on, and what its own
schedule makes. What a broken link left there comes with the next command.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from devstack.data import catalogue, manifest
from devstack.data.aside import aside
from devstack.data.backup import names
from devstack.data.catalogue import Backup
from devstack.data.manifest import Manifest, path_of
from devstack.data.streams import meter
from devstack.errors import StackError
from devstack.remote.project import Remote
from devstack.remote.talk import Outgoing, Talk

SUFFIX = ".json"
LENT = ".nv-lent"
"""The folder on the host for dumps that are no backups of this tool."""
STANDING = ("directory", "cluster")
"""The layouts that are folders."""


@dataclass
class Exchange:
    """The backups here and there around one command."""

    remote: Remote
    before: set[str] = field(default_factory=set)
    """Names on the host before the command."""
    lent: set[str] = field(default_factory=set)
    """Those that went there for this command alone."""

    @property
    def folder(self) -> Path:
        """Here."""
        return catalogue.folder_of(self.remote.settings)

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

    def begin(self) -> None:
        """Note which backups are on the host, and bring those that are not here: a link that broke left them."""
        with self.remote.talk() as talk:
            self.before = self._names(talk)
            self._bring(talk, self.before)

    def end(self, *, keep: bool) -> list[Path]:
        """Bring what was made on the host; what no one there needs goes from there, unless it is to be kept."""
        with self.remote.talk() as talk:
            now = self._names(talk)
            brought = self._bring(talk, now)
            for name in self.lent & now:
                self._note_proof(self._manifest(talk, name))
            leaving = [name for name in (now - self.before) | (self.lent & now) if not keep]
            settled = [name for name in leaving if not self._stays(talk, name)]
            self._drop(talk, settled)
        return brought

    def lend(self, backup: Backup) -> None:
        """Bring a backup to the host, with those that it builds on."""
        with self.remote.talk() as talk:
            there = self._names(talk)
            chain = [backup]
            while parent := chain[-1].manifest.parent:
                found = catalogue.read(self.folder / parent)
                if found is None:
                    raise StackError(f"{chain[-1].name} needs {parent}", why="it is not here", fix="inv data.list")
                chain.append(found)
            for one in reversed(chain):
                if one.name not in there:
                    self._put(talk, one)
                    self.lent.add(one.name)

    def lend_file(self, path: Path) -> str:
        """Bring a dump of another tool to the host; its path there, from the project's folder."""
        name = f"{self.there}/{LENT}/{path.name}"
        with self.remote.talk() as talk:
            self._send(talk, path, name, [])
        return name

    def give_back(self) -> None:
        """Remove what :meth:`lend_file` brought."""
        with self.remote.talk() as talk:
            self._drop(talk, [], [f"{self.there}/{LENT}"])

    # from the host

    def _names(self, talk: Talk) -> set[str]:
        """The whole backups there."""
        talk.ask("listing", dir=self.remote.folder, folders=[self.there])
        found = {name.rpartition("/")[2] if name[-1] != "/" else name.split("/")[-2] for name in talk.answer()["files"]}
        return {name for name in found if f"{name}{SUFFIX}" in found and not name.startswith(".")}

    def _bring(self, talk: Talk, names: Iterable[str]) -> list[Path]:
        known = {backup.manifest.sha256 for backup in catalogue.backups(self.folder)}
        brought = []
        for name in sorted(names):
            made = self._manifest(talk, name)
            if made and made.sha256 not in known:
                brought.append(self._fetch(talk, made))
        return brought

    def _manifest(self, talk: Talk, name: str) -> Manifest | None:
        content = b"".join(self._contents(talk, [f"{name}{SUFFIX}"]))
        try:
            made = manifest.decode(content)
        except ValueError:
            return None
        return made if made.file == name else None

    def _contents(self, talk: Talk, names: list[str]) -> Iterator[bytes]:
        """The content of files in the folder there, one after another."""
        talk.ask("get", dir=self.remote.folder, files=[f"{self.there}/{name}" for name in names])
        for _ in names:
            talk.answer()
            yield from talk.stream()

    def _fetch(self, talk: Talk, made: Manifest) -> Path:
        """Bring one backup, prove it by its checksum, and give it its name.

        :raises StackError: it is not what the host has.
        """
        folder = self.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        standing = made.layout in STANDING
        with meter(f"from {self.remote.link.host}", made.bytes) as progress, aside(folder, directory=standing) as place:
            for name in made.files if standing else [""]:
                path, whole = place.path / name, hashlib.sha256()
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with path.open("wb") as file:
                    for part in self._contents(talk, [f"{made.file}/{name}" if name else made.file]):
                        whole.update(part)
                        file.write(part)
                        progress.add(len(part))
                if whole.hexdigest() != (made.files[name] if standing else made.sha256):
                    raise StackError(
                        f"{made.file} did not arrive whole",
                        why=f"{name or 'it'} has another checksum here than in its manifest",
                        fix="it is still on the host; try again: inv data.verify",
                    )
            later = names(folder, made.kind, made.layout, made.time)
            free = made.layout == "cluster" or not (folder / made.file).exists()
            final, _ = place.publish(
                (lambda: made.file) if free else later.__next__, lambda name: self._numbered(made, name)
            )
        return final

    def _numbered(self, made: Manifest, name: str) -> Manifest:
        """A folder counts its own backups."""
        import msgspec

        number = 1 + max((b.manifest.sequence for b in catalogue.backups(self.folder)), default=0)
        return msgspec.structs.replace(made, file=name, sequence=number)

    def _note_proof(self, there: Manifest | None) -> None:
        """What the host has proven of a backup is noted here."""
        import msgspec

        here = catalogue.read(self.folder / there.file) if there else None
        if there and here and there.verified != here.manifest.verified:
            changed = msgspec.structs.replace(here.manifest, verified=there.verified)
            file = path_of(here.path)
            new = file.with_name(f".{file.name}.new")
            new.write_bytes(manifest.encode(changed))
            new.chmod(0o600)
            new.rename(file)

    def _stays(self, talk: Talk, name: str) -> bool:
        made = self._manifest(talk, name)
        return made is None or made.layout == "cluster"

    def _drop(self, talk: Talk, backups: Iterable[str], paths: Iterable[str] = ()) -> None:
        # the manifest first: what has none is no backup, and is not half of one
        names = [path for name in backups for path in (f"{name}{SUFFIX}", name)]
        talk.ask("drop", dir=self.remote.folder, files=[*(f"{self.there}/{name}" for name in names), *paths])
        talk.answer()

    # to the host

    def _put(self, talk: Talk, backup: Backup) -> None:
        there = f"{self.there}/{backup.name}"
        self._send(talk, backup.path, there, list(backup.manifest.files))
        self._send(talk, path_of(backup.path), f"{there}{SUFFIX}", [])

    def _send(self, talk: Talk, path: Path, name: str, files: list[str]) -> None:
        sources = [path / below for below in files] or [path]
        with meter(f"to {self.remote.link.host}", sum(source.stat().st_size for source in sources)) as progress:
            talk.ask("put", dir=self.remote.folder, path=name, files=files, mode=0o600)
            try:
                for source in sources:
                    outgoing = Outgoing(talk)
                    with source.open("rb") as file:
                        while part := file.read(1 << 18):
                            outgoing.write(part)
                            progress.add(len(part))
                    outgoing.end()
            except StackError:
                talk.refusal()
                raise
            talk.answer()
