"""A database cluster that was made once, for every fresh one to be a copy of.

``initdb`` and what follows it take most of the time of a first start. They give the same result for the same programs
and settings, so it is kept in the cache: the directory that ``initdb`` made, with the application's role (without a
password), its database and its extensions, after a clean shutdown.

An entry is a directory with two things in it: ``data``, which the services' account can read and not change, and
``sums.json``, which says what has to be in ``data``. Its name says what it was made of and for. Copies share
PostgreSQL's system identifier: what has to tell one cluster from another goes by :data:`LINEAGE`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import sys
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from filelock import FileLock, Timeout

from devstack.errors import StackError
from devstack.files import copy_plain, load_json, read_regular, walk_plain
from devstack.providers import LEFT_SECONDS, LOCK_SECONDS, STATEMENTS, extension_folders
from devstack.shell import Command, argv, chain, sh

if TYPE_CHECKING:
    from devstack.services.postgres import Postgres

LINEAGE = "nv-lineage"
"""File in the data directory with a random text, new for each cluster and each restore of one. PostgreSQL can't tell a
copy from what it was copied from, nor a cluster from what it was restored from: both go on with the same numbers, and a
backup of one would be taken for what a backup of the other can build on."""

FIRST_OID = 16384
"""FirstNormalObjectId in src/include/access/transam.h."""

FORMAT = 2
"""Version of the layout of entries; one of another version is never read."""
DATA, SUMS = "data", "sums.json"
MAX_SUMS_BYTES = 10_000_000
KEEP_DAYS = 30
"""Days after which an unused entry is removed."""
KEEP = 8
"""Most entries that are kept, the last used ones."""
PARTIAL = ".partial"
"""End of the names of entries that are being made."""


def folder(cache: Path) -> Path:
    """Return the directory of the entries."""
    return cache / "clusters"


def entries(cache: Path) -> list[Path]:
    """Return the entries, the last used one first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in folder(cache).iterdir():
            if not path.name.startswith(".") and path.is_dir():
                found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


def is_whole(entry: Path) -> bool:
    """Check that an entry has what it had when it was made, and nothing else."""
    try:
        wanted = load_json(read_regular(entry / SUMS, limit=MAX_SUMS_BYTES, follow_symlinks=False))
        return bool(wanted == sums_of(entry / DATA))
    except (OSError, ValueError):
        return False


def sums_of(data: Path) -> dict[str, int | None]:
    """Return the CRC-32 of each file in a directory, and None for each directory, by their paths in it.

    :raises OSError: something can't be read, or is neither a file nor a directory.
    """
    return {str(path.relative_to(data)): None if file is None else _sum(file) for path, file in walk_plain(data)}


def _sum(file: BinaryIO) -> int:
    value = 0
    while piece := file.read(1 << 20):
        value = zlib.crc32(piece, value)
    return value


class Prepared:
    """The entry for one service's programs and settings."""

    def __init__(self, db: Postgres) -> None:
        self.db = db
        self.context = db.context
        self.path = folder(self.context.paths.cache) / _key(db)

    def copy_to(self, target: Path) -> bool:
        """Fill an empty directory of the services' account with a cluster, which is on the disk when this returns.

        The entry is made if there is none, and made again if it is damaged.

        :return: whether it is filled; it is not where the cache can't be used, or ``initdb`` fails.
        """
        if self.context.dry:
            if not self.path.is_dir():
                self._fill(self.path / DATA)
            self._copy(target)
            return True
        for _ in range(2):
            try:
                self._make()
            except (OSError, StackError, Timeout):  # as for a read-only cache, or a full disk
                return False
            with ThreadPoolExecutor(1) as beside:
                whole = beside.submit(is_whole, self.path)
                self.context.begin_engine()
                copied = self._try_to_copy(target)
                if copied and whole.result():
                    self._note_use()
                    return True
            self._empty(target)
            if whole.result():  # it is not the entry's fault
                continue
            with contextlib.suppress(OSError):
                self.context.host.remove(self.path)
        return False

    def _make(self) -> None:
        """Make the entry, unless it is there."""
        if self.path.is_dir():
            return
        host = self.context.host
        self.context.make_dir(self.path.parent, 0o755 if host.is_root else 0o700)
        with FileLock(self.path.with_name(f".{self.path.name}.lock"), mode=0o600, timeout=LOCK_SECONDS):
            if self.path.is_dir():
                return
            self._tidy()
            staging = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}{PARTIAL}")
            try:
                self.context.make_dir(staging, 0o711 if host.is_root else 0o700)
                self._fill(made := staging / "made")
                self._take(made, staging / DATA)
                self.context.write_file(staging / SUMS, json.dumps(sums_of(staging / DATA)))
                staging.rename(self.path)
            except BaseException:
                host.remove(staging, seconds=LEFT_SECONDS)
                raise

    def _fill(self, data: Path) -> None:
        """Make the cluster. Nothing is flushed: an entry that was not written before a crash fails its sums."""
        db, runtime = self.db, self.context.runtime
        if not self.context.dry:
            self.context.make_dir(data, 0o700, account=True)
        initdb = [db.programs.path("initdb"), "-D", str(data), "--no-sync", *db.initdb_options()]
        initialise = self.context.exec(db.name, initdb, db.programs.env)
        self.context.run(runtime.as_account(initialise), "initialise the database's data folder")
        # without a postmaster PostgreSQL would go on with the numbers of its own objects, and pg_dump would take what
        # is made for a part of PostgreSQL: GetNewObjectId() in src/backend/access/transam/varsup.c
        numbers = [db.programs.path("pg_resetwal"), f"--next-oid={FIRST_OID}", "-D", str(data)]
        number = self.context.exec(db.name, numbers, db.programs.env)
        self.context.run(runtime.as_account(number), "prepare the database's data folder")
        for database, statements in _statements(db).items():
            # https://www.postgresql.org/docs/current/app-postgres.html, single-user mode: -j has a statement end with
            # a semicolon and an empty line. One that fails is no loss, it is tried again by the service that runs.
            words = [db.programs.path("postgres"), "--single", "-j", "-D", str(data), "-c", "fsync=off", database]
            single = self.context.exec(db.name, words, db.programs.env)
            script = "".join(f"{statement};\n\n" for statement in statements)
            command = Command(f"printf %s {argv([script])} | {single}")
            self.context.run(runtime.as_account(command), "prepare the database's data folder")

    def _take(self, made: Path, data: Path) -> None:
        """Take over the cluster that was made. As root, copy its files: the account may still have them open, and what
        it changed would be in every later cluster of any environment."""
        host = self.context.host
        if not host.is_root:
            made.rename(data)
            return
        copy_plain(made, data)
        for path in (data, *data.rglob("*")):
            host.lend(path)
        host.remove(made)

    def _copy(self, target: Path) -> None:
        copy = sh(f"umask 077; {_copying()} $data/. $target", data=self.path / DATA, target=target)
        flush = self.context.exec(
            self.db.name, [self.db.programs.path("initdb"), "--sync-only", "-D", str(target)], self.db.programs.env
        )
        self.context.run(
            self.context.runtime.as_account(chain(copy, flush)),
            "copy the prepared cluster to the database's data folder",
        )

    def _try_to_copy(self, target: Path) -> bool:
        try:
            self._copy(target)
        except StackError:  # such as an entry that is removed meanwhile
            return False
        return True

    def _empty(self, target: Path) -> None:
        self.context.host.remove(target)
        self.context.make_dir(target, 0o700, account=True)

    def _note_use(self) -> None:
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def _tidy(self) -> None:
        """Remove what a killed command left, and unused entries."""
        host = self.context.host
        for left in self.path.parent.glob(f".{self.path.name}.*{PARTIAL}"):
            host.remove(left, seconds=LEFT_SECONDS)
        oldest = time.time() - KEEP_DAYS * 86_400
        for number, path in enumerate(entries(self.context.paths.cache), 1):
            if number >= KEEP or path.stat().st_mtime < oldest:
                host.remove(path)
                host.remove(path.with_name(f".{path.name}.lock"))


def _copying() -> str:
    """Return the program that copies directories, sharing their blocks where the file system can."""
    return {"linux": "cp -R --reflink=auto", "darwin": "cp -R -c"}.get(sys.platform, "cp -R")


def _statements(db: Postgres) -> Mapping[str, list[str]]:
    """Return what is prepared after ``initdb``, by database: as the service itself would make it."""
    from devstack.services.postgres import MAINTENANCE, identifier

    role, name = identifier(db.settings.db.user), identifier(db.settings.db.name)
    first = [f"CREATE ROLE {role} LOGIN", f"CREATE DATABASE {name} TEMPLATE template0 CONNECTION LIMIT 0"]
    if db.tracks_statements:
        first.append(f"CREATE EXTENSION {STATEMENTS}")
    extensions = [f"CREATE EXTENSION IF NOT EXISTS {identifier(name)}" for name in db.settings.db.extensions]
    if any(not text.isprintable() for text in (role, name, *extensions)):
        return {}  # a statement could end where it does not
    return {MAINTENANCE: first, **({db.settings.db.name: extensions} if extensions else {})}


def _key(db: Postgres) -> str:
    """Return a name that is another one for whatever would give another cluster."""
    programs, settings = db.programs, db.settings.db
    share, _ = extension_folders(db.context, programs.bin, programs.env)
    binary = Path(programs.path("postgres")).resolve().stat()
    made_of = {
        "format": FORMAT,
        "programs": [str(programs.bin), programs.version, binary.st_size, binary.st_mtime_ns, platform.machine()],
        "account": db.context.host.account or db.context.host.uid,
        "initdb": db.initdb_options(),
        # initdb writes it into postgresql.conf
        "zone": os.environ.get("TZ") or os.path.realpath("/etc/localtime"),
        "role": settings.user,
        "database": settings.name,
        "extensions": {
            name: _text(share / f"{name}.control")
            for name in (*settings.extensions, *([STATEMENTS] if db.tracks_statements else []))
        },
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return f"postgresql-{programs.version}-{digest[:16]}"


def _text(path: Path) -> str:
    try:
        return read_regular(path).decode(errors="replace")
    except OSError:
        return ""
