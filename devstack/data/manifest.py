"""The manifest beside a backup: what it holds, and that it is whole."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field

from devstack.files import read_regular

Kind = Literal["full", "schema", "data", "base", "incremental"]
Layout = Literal["sql", "custom", "directory", "cluster"]

MAX_BYTES = 64_000_000
"""Largest manifest that is read: it has a line for each table."""
FORMAT = 2
"""Version of the manifest; a higher one is not understood. The first, that of nv-devstack 0.1.0, has no checksum."""

NAME = re.compile(r"(?![.-])[\w.-]+", re.ASCII)
"""Name of a backup that this tool chose."""
SUFFIX: dict[Layout, str] = {"sql": "sql.gz", "custom": "dump", "directory": "dir", "cluster": "cluster"}
STAMPED = re.compile(rf"backup-(?:([a-z]+)-)?(\d{{8}}-\d{{6}})\.(?:{'|'.join(map(re.escape, SUFFIX.values()))})")
"""The same: its kind, which a full one leaves out, and when it was made, in UTC."""


class TooNew(ValueError):
    """A manifest is of a later version of nv-devstack."""


class Verified(Struct, frozen=True, forbid_unknown_fields=True):
    """When a backup was last proven, and how: ``read`` from beginning to end, or by a ``restore``."""

    when: str
    how: Literal["read", "restore"]


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Written last: a dump without it is no backup. Times are UTC in ISO 8601, durations in seconds.

    :mod:`devstack.data.signing` names the fields that the signature leaves out.
    """

    format: int = FORMAT
    file: str
    sequence: int
    """Counts the backups of a folder; clocks go back, this does not."""
    kind: Kind
    layout: Layout
    created: str
    seconds: float
    label: str = ""
    sha256: str
    """Of the file; of a directory, of the lines ``SHA256  NAME`` of its files in order."""
    bytes: int
    raw_bytes: int
    """Of the SQL before compression; 0 where that is not known."""
    files: dict[str, str] = field(default_factory=dict)
    """A directory's files with their SHA-256."""
    environment: str
    machine: str = ""
    """Name of the machine that it was made on."""
    fetched_from: str = ""
    """Host that it was brought from, as ``stack.host`` named it; empty for one that was made here."""
    database: str
    origin: str = ""
    """``host:port/database`` of a database elsewhere; empty for the environment's own."""
    database_bytes: int
    owner: str
    system_identifier: str
    server_version: str
    tool_version: str
    """Of pg_dump."""
    extensions: dict[str, str] = field(default_factory=dict)
    extension_schemas: dict[str, str] = field(default_factory=dict)
    """Schema of each extension."""
    needs_superuser: list[str] = field(default_factory=list)
    """Objects that the database's owner can't restore as they were, in words; see :mod:`devstack.data.privileged`."""
    search_path: str = ""
    """Search path of the database's owner in it; empty where that was not noted."""
    tables: dict[str, int] = field(default_factory=dict)
    """Quoted names with their rows, counted in the dump's own snapshot."""
    sequences: dict[str, int | None] = field(default_factory=dict)
    """Last values; None if never used."""
    large_objects: int = 0
    parent: str = ""
    """The backup that this one depends on."""
    lineage: str = ""
    """Of a cluster's copy: which restore its cluster came from."""
    verified: Verified | None = None
    pinned: bool = False
    safety: bool = False
    """Made by a restore before it began: for the way back, not what `latest` means."""
    signature: str = ""
    """HMAC-SHA256 by the environment that made it; see :mod:`devstack.data.signing`."""
    checksum: str = ""
    """SHA-256 of all other fields, so that damage shows to whoever can't check the signature."""

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.created)

    @property
    def rows(self) -> int:
        return sum(self.tables.values())


def path_of(backup: Path) -> Path:
    """Where a backup's manifest is."""
    return backup.with_name(f"{backup.name}.json")


def load(file: Path) -> Manifest:
    """Read a manifest from a file that somebody else may have put there.

    :raises TooNew: it is of a later format.
    :raises ValueError: it is not one, or damaged.
    :raises OSError: it can't be read, or is no regular file.
    """
    return decode(read_regular(file, limit=MAX_BYTES))


def encode(manifest: Manifest) -> bytes:
    """Return a manifest as JSON, with the checksum of what is in it."""
    whole = msgspec.structs.replace(manifest, checksum=_checksum(manifest))
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def decode(content: bytes) -> Manifest:
    """Read a manifest.

    :raises TooNew: it is of a later format.
    :raises ValueError: it is not one, or damaged.
    """
    try:
        if (version := msgspec.json.decode(content, type=_Version).format) > FORMAT:
            raise TooNew(f"it has format {version}, this is for {FORMAT}: made by a newer nv-devstack")
        manifest = msgspec.json.decode(content, type=Manifest)
        assert manifest.time.tzinfo
        _check_names(manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None
    except AssertionError:
        raise ValueError("its time has no zone") from None
    if manifest.checksum != _checksum(manifest) and (manifest.checksum or manifest.format > 1):
        raise ValueError("its checksum is not that of its content")
    return manifest


class _Version(Struct):
    """The field that says how to read the others."""

    format: int


def _checksum(manifest: Manifest) -> str:
    content = msgspec.structs.replace(manifest, checksum="")
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()


def is_file_name(text: str) -> bool:
    """Check whether a manifest can have this as the name of its file."""
    return text not in (".", "..") and not re.search(r"[/\x00\x1b\x7f-\x9f\ud800-\udfff]", text)


def _check_names(manifest: Manifest) -> None:
    """Check that a manifest names files inside of its own directory alone.

    :raises ValueError: it names others.
    """
    if not is_file_name(manifest.file):
        raise ValueError(f"{manifest.file!r} is not the name of a file")
    shown = (
        *(manifest.label, manifest.environment, manifest.machine, manifest.fetched_from),
        *(manifest.database, manifest.origin, manifest.server_version),
    )
    for text in shown:
        if re.search(r"[\x00-\x1f\x7f-\x9f]", text):
            raise ValueError(f"{text!r} is not the name of anything")
    names = (*manifest.extensions, *(text for pair in manifest.extension_schemas.items() for text in pair))
    if any("\0" in text for text in names):
        raise ValueError("the name of an extension has a zero byte in it")
    if manifest.parent and not NAME.fullmatch(manifest.parent):
        raise ValueError(f"{manifest.parent!r} is not the name of a backup")
    for name in manifest.files:
        # neither the parent directory, nor a flag, nor a line of its own in a list
        if not all(re.fullmatch(r"(?!-|\.\.?$)[^\x00-\x1f\x7f]+", part) for part in name.split("/")):
            raise ValueError(f"{name!r} is not the name of a file in a backup")


def now() -> datetime:
    return datetime.now(timezone.utc)


def stamp(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")
