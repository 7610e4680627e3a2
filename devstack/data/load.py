"""Filling a new database from a dump, beside the one in use."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import msgspec
from msgspec import Struct

from devstack import console
from devstack.data import (
    catalogue,
    census,
    extensions,
    failures,
    journal,
    lanes,
    loader,
    privileged,
    search_paths,
)
from devstack.data.archives import PRIVILEGES, Contents, archive, list_file, listed, settled, with_rows
from devstack.data.catalogue import Backup
from devstack.data.journal import Journal
from devstack.data.manifest import Kind, Layout, Manifest, now, stamp
from devstack.data.ownership import LeftOut, Members, Owned
from devstack.data.reading import Wrong, sql_chunks
from devstack.data.session import Role, Session, background, program, session
from devstack.data.sqltext import restricted
from devstack.data.streams import Digested, chunks, directory_hash, meter, sha256_of
from devstack.errors import ContentError, StackError
from devstack.files import is_private, open_plain
from devstack.host import FRESH
from devstack.services.postgres import MAINTENANCE, STAGING, identifier, literal, staged
from devstack.shell import Command

if TYPE_CHECKING:
    from devstack.stack import Stack

Result = TypeVar("Result")

OPTIONS_OF_LOADS = (
    "-c synchronous_commit=off -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0"
)
"""Nobody waits for the disk: the switch to the new database does, for all that was written before it. What the role's
own settings say is for the application."""
JOBS = 4
"""Processes of pg_restore at most."""

PSQL = ["psql", "-X", "-q", "-w", "-b", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f", "-"]

OPTIONS = """
SELECT concat_ws(' ', format('ENCODING %L LC_COLLATE %L LC_CTYPE %L', pg_encoding_to_char(encoding), datcollate,
           datctype),
       CASE to_jsonb(d) ->> 'datlocprovider'
           WHEN 'i' THEN format('LOCALE_PROVIDER icu ICU_LOCALE %L',
                                coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'))
           WHEN 'b' THEN format('LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', to_jsonb(d) ->> 'datlocale')
           WHEN 'c' THEN 'LOCALE_PROVIDER libc' END) AS options
  FROM pg_database d WHERE datname = {name}
"""
"""CREATE DATABASE's options of a database; the columns differ between PostgreSQL 14, 15 and 17."""

PLANTED = """
SELECT count(*) FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid
 WHERE d.datname = current_database() AND s.deptype = 'o' AND s.refobjid <> (
    SELECT oid FROM pg_roles WHERE rolname = current_user)
"""
"""Number of objects of other roles in a new database. The bootstrap superuser's own, from template0, are not listed in
pg_shdepend."""

MEMBERS = """
SELECT n.nspname AS schema, c.relname AS name, e.extname AS of
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
       JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e'
       JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
 WHERE c.relkind IN ('r', 'p', 'S')
"""

WITH_FIGURES = """
SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
"""

WITHOUT_FIGURES = f"""
{WITH_FIGURES}
   AND (NOT EXISTS (SELECT FROM pg_statistic s WHERE s.starelid = c.oid)
        OR EXISTS (SELECT FROM pg_statistic_ext e WHERE e.stxrelid = c.oid))
"""
"""From PostgreSQL 18 on a dump has them, but not those of CREATE STATISTICS."""


FORCED = """
SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE relrowsecurity AND relforcerowsecurity ORDER BY 1
"""


class Source(Struct, frozen=True):
    """A dump to restore."""

    path: Path
    layout: Layout
    kind: Kind = "full"
    manifest: Manifest | None = None
    extensions: tuple[tuple[str, str], ...] = ()
    """Extensions that it wants, each with its schema."""
    signed: bool = False
    """Whether this environment has made it: its roles are those of this server."""
    as_superuser: bool = False
    """Whether to load it as the superuser, with everything as it was. The dump's functions, checks and triggers run as
    that then."""
    trust_cluster: bool = False
    """Whether somebody said that a cluster's copy is trusted, whoever has signed it."""

    @staticmethod
    def of(stack: Stack, backup: Backup) -> Source:
        m = backup.manifest
        extensions = tuple((name, m.extension_schemas.get(name, "public")) for name in m.extensions)
        return Source(backup.path, m.layout, m.kind, m, extensions, catalogue.is_signed(stack, backup))

    def for_superuser(self) -> Source:
        """Return the same, to be loaded as the superuser.

        :raises StackError: this environment has not made it, or not of its own database.
        """
        if not self.signed or self.origin or self.layout == "cluster":
            raise StackError(
                f"{self.name} can't be restored with --as-superuser",
                why="that is for dumps which this environment has made of its own database, and signed",
                fix="leave --as-superuser out: it is loaded by a role without such rights",
            )
        return msgspec.structs.replace(self, as_superuser=True)

    def is_own(self, stack: Stack) -> bool:
        """Check whether this environment has made it, of the database that it is restored into: what is in it, the
        application has put there."""
        return self.signed and self.origin == stack.db.origin

    @property
    def origin(self) -> str:
        """The database elsewhere that it is of; empty for this environment's own."""
        return self.manifest.origin if self.manifest else ""

    @property
    def name(self) -> str:
        """Name of the dump, also where this is a copy."""
        return self.manifest.file if self.manifest else self.path.name


class Target(Struct, frozen=True):
    """A database that is filled, and what a dump is changed by for it."""

    name: str
    role: Role
    """Role that the dump is loaded as."""
    owner: str
    """Name of the role that owns all that is loaded; empty to keep the owners."""
    lend: str
    """Statement that lends a search path to the functions in it; see :mod:`devstack.data.search_paths`."""
    roles: frozenset[str]
    """Roles of the server."""
    members: Members
    """Tables and sequences of the extensions in the database."""
    left: LeftOut = msgspec.field(default_factory=LeftOut)


class Mismatch(Exception):
    """A database holds something else than it should."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def derived(database: str, suffix: str) -> str:
    """A name beside a database's, in the 63 bytes that PostgreSQL takes."""
    room = 63 - len(suffix.encode()) - 1
    return f"{database.encode()[:room].decode(errors='ignore')}_{suffix}"


def begin(stack: Stack, operation: str, about: str) -> Journal:
    """Create an empty database like the one in use, noted in the journal before it is there."""
    made = named(stack, operation, about)
    journal.write(stack, made)
    try:
        create(stack, made.incoming)
    except BaseException:
        abandon(stack, made)
        raise
    return made


def named(stack: Stack, operation: str, about: str) -> Journal:
    """A name for a new database, and what it is for."""
    database = stack.settings.db.name
    return Journal(
        operation=operation,  # type: ignore[arg-type]
        about=about,
        database=database,
        incoming=derived(database, f"{operation}_{secrets.token_hex(4)}"),
        began=stamp(now()),
        pid=os.getpid(),
    )


def create(stack: Stack, name: str) -> None:
    """Create an empty database with the options of the one in use, closed to other roles until its load begins.

    The script of an extension runs as the superuser, and could call a function that the application creates first.

    :raises StackError: another role could not be kept out.
    """
    db = stack.db
    with session(db, MAINTENANCE, "create a database to restore into") as sql:
        options = sql.value(OPTIONS.format(name=literal(stack.settings.db.name)))
        limit = 0 if db.is_superuser else db.new_limit
        sql.run(f"{_creation(name)} TEMPLATE template0 {options} CONNECTION LIMIT {limit}")
        if db.is_superuser:
            return
        # CONNECTION LIMIT 0 would lock out this role too: only superusers are exempt
        sql.run(f"REVOKE CONNECT ON DATABASE {identifier(name)} FROM PUBLIC")
        others = f"datname = {literal(name)} AND backend_type = 'client backend'"
        sql.end_others(others, f"the new database {name} must have no other sessions")
    with session(db, name, f"look at database {name}") as sql:
        if sql.value(PLANTED):
            raise StackError(
                f"somebody else made something in the new database {name}",
                why="it was open for a moment, as the role of the URL is no superuser; no other database was touched",
                fix="run it again",
            )


def hand_over(stack: Stack, name: str) -> None:
    """Make the owner of the database in use the owner of a new database, and open it to clients."""
    new = identifier(name)
    with session(stack.db, MAINTENANCE, f"hand over database {name}") as sql:
        in_use = literal(stack.settings.db.name)
        owner = sql.value(f"SELECT pg_get_userbyid(datdba) AS owner FROM pg_database WHERE datname = {in_use}")
        if not stack.db.is_superuser:
            sql.run(f"GRANT CONNECT ON DATABASE {new} TO PUBLIC")
        sql.run(
            f"BEGIN; ALTER DATABASE {new} OWNER TO {identifier(owner)};"
            f" ALTER DATABASE {new} CONNECTION LIMIT {stack.db.new_limit}; COMMIT"
        )


def _creation(name: str) -> str:
    """Return the beginning of the statement that creates a database."""
    return f"CREATE DATABASE {identifier(name)}"


def drop(stack: Stack, name: str) -> None:
    """Remove a database, whoever is connected to it, with the prepared transactions in it.

    A command that was killed may have sent its creation, which the server carries out all the same: that is ended
    first.
    """
    creation = literal(_creation(name))
    with session(stack.db, "postgres", f"drop database {name}") as sql:
        mine = f"left(query, length({creation})) = {creation} AND usename = current_user"
        sql.end_others(mine, f"the creation of database {name} does not end")
        for row in sql.rows(f"SELECT gid FROM pg_prepared_xacts WHERE database = {literal(name)}"):
            with session(stack.db, name, "roll back a prepared transaction") as inside:
                inside.run(f"ROLLBACK PREPARED {literal(row['gid'])}")
        sql.drop_database(name)


def discard(stack: Stack, name: str) -> None:
    """Remove a database that was being filled, and the role that loads a dump into it."""
    drop(stack, name)
    with session(stack.db, MAINTENANCE, "drop the role that loads dumps") as sql:
        loader.drop(stack, sql)


@contextlib.contextmanager
def scratch(stack: Stack, operation: str, about: str) -> Iterator[str]:
    """A database for the time being."""
    made = begin(stack, operation, about)
    try:
        yield made.incoming
    finally:
        abandon(stack, made)


def abandon(stack: Stack, made: Journal) -> None:
    """Remove the database that was being filled. Where the server can't, the next command does it: the journal stays,
    and why this one failed is not hidden."""
    try:
        discard(stack, made.incoming)
    except StackError:
        console.note(f"database {made.incoming} could not be removed now; the next command on the data does it")
        return
    journal.clear(stack)


def role_of(stack: Stack, source: Source) -> Role:
    """Return the role that a dump is loaded as. All that is in a dump is obeyed: one that this environment has not made
    must not reach the database in use, nor its owner. On an external server a role that can make no other loads it
    itself; :func:`devstack.data.transfer.check` refuses foreign dumps there."""
    if source.as_superuser:
        return "superuser"
    if stack.db.origin:
        return "loader" if stack.db.makes_loader else "owner"
    return "owner" if source.is_own(stack) else "loader"


def load(stack: Stack, source: Source, name: str, meanwhile: Callable[[], Result]) -> Result:
    """Fill a database that :func:`create` made. What the loader has loaded stays the loader's until :func:`give`.

    :param meanwhile: is called while the filled database is analyzed.
    :returns: what that returns.
    :raises StackError: PostgreSQL refused something; the database is to be dropped then.
    """
    stack.db.check_restricts()
    role = role_of(stack, source)
    if role != "superuser":
        _open(stack, source, name, role)
    target = _filled(stack, source, name, role)
    if role == "superuser":
        with session(stack.db, name, "complete the restored database") as sql:
            for extension in stack.settings.db.extensions:
                sql.create_extension(extension)
        hand_over(stack, name)
    with analyzed(stack, target):
        return meanwhile()


def give(stack: Stack, source: Source, name: str) -> None:
    """Give a filled database to the owner of the database in use, if it is not that role's already."""
    if role_of(stack, source) != "loader":
        return
    loader.give(stack, name)
    hand_over(stack, name)
    if source.kind == "data":
        copy_privileges(stack, name)


def _open(stack: Stack, source: Source, name: str, role: Role) -> None:
    """Create the extensions in a closed database, and open it to the role that loads the dump."""
    wanted = extensions.planned(stack, source)
    if role == "loader":
        loader.make(stack, name)
    made = extensions.create(stack, wanted.created, name, owner_of(stack, role))
    if role == "loader":
        loader.admit(stack, name)
    else:
        hand_over(stack, name)
    if source.manifest is not None:  # of one with a manifest the others were refused before
        return
    if made:
        console.note(f"created for {source.name}: extension {privileged.shown(made)}")
    if wanted.absent:
        console.note(f"left out, as this PostgreSQL does not have it: extension {privileged.shown(wanted.absent)}")
    if wanted.refused:
        console.note(
            f"left out, as only a superuser may create it: extension {privileged.shown(wanted.refused)};"
            f" {extensions.permission(stack, wanted.refused)}"
        )


def owner_of(stack: Stack, role: Role) -> str:
    """Return the name of the role that owns what is loaded; empty to keep the owners."""
    return {"superuser": "", "loader": stack.db.loader}.get(role, stack.settings.db.user)


def _filled(stack: Stack, source: Source, name: str, role: Role) -> Target:
    """Load the dump, and say what was left out."""
    try:
        with contextlib.ExitStack() as held:
            if source.as_superuser or (role == "owner" and not is_private(source.path)):
                source = held.enter_context(_proven(stack, source))
            target = _target(stack, source, name, role)
            _fill(stack, source, target)
    except Wrong as wrong:
        raise ContentError(f"{source.name} is damaged", why=str(wrong), evidence=wrong.evidence) from None
    except StackError as error:
        raise failures.explained(stack, source, role, error) from None
    if target.left.privileged:
        console.note(f"left out, as only a superuser may create it: {privileged.shown(target.left.privileged)}")
    if target.left.roles:
        console.note(f"left out, as the role is not there: {privileged.shown(target.left.roles)}")
    if target.left.rows:
        console.note(f"left out, as only a superuser may write them: rows of {privileged.shown(target.left.rows)}")
    return target


def _target(stack: Stack, source: Source, name: str, role: Role) -> Target:
    with session(stack.db, name, f"look at database {name}") as sql:
        roles = frozenset(row["name"] for row in sql.rows("SELECT rolname AS name FROM pg_roles"))
        members = {} if source.as_superuser else {(row["schema"], row["name"]): row["of"] for row in sql.rows(MEMBERS)}
        path = source.manifest.search_path if source.manifest else ""
        path = path or search_path_in_use(stack, sql)
    return Target(name, role, owner_of(stack, role), search_paths.lend(path), roles, members)


def search_path_in_use(stack: Stack, sql: Session) -> str:
    """Return the search path of the database in use for its owner."""
    default = stack.settings.db.parameters.get("search_path", "") if not stack.db.origin else ""
    return search_paths.of(sql, stack.settings.db.name, str(default))


@contextlib.contextmanager
def _proven(stack: Stack, source: Source) -> Iterator[Source]:
    """Yield a copy of a dump that nobody else can change, proven to be what its signed manifest says before a byte of
    it is obeyed.

    :raises Wrong: it is something else.
    """
    manifest = source.manifest
    assert manifest  # without one it is not for the superuser
    with staged(stack.context, source.path) as copy:
        if source.layout == "directory":
            files = {path.name: sha256_of(path) for path in copy.iterdir()}
            same = files == manifest.files and directory_hash(files) == manifest.sha256
        else:
            same = sha256_of(copy) == manifest.sha256
        if not same:
            raise Wrong("it changed since it was checked")
        yield msgspec.structs.replace(source, path=copy)


def _fill(stack: Stack, source: Source, target: Target) -> None:
    if source.kind == "data":
        copy_database(stack, target.name, target.role, section="pre-data")
    # pg_restore of 17 and later has a setting that an older server, which only an external one is, does not know
    if source.layout == "sql" or stack.db.origin:
        _load_script(stack, source, target)
    else:
        _load_archive(stack, source, target)
    if source.kind == "data":
        copy_database(stack, target.name, target.role, section="post-data")
    with session(stack.db, target.name, f"restore {source.name}", role=target.role) as sql:
        sql.run(f"SET client_min_messages = warning; {search_paths.check()}")


def _analyze(sql: Session, names: list[str]) -> None:
    sql.run(f"SET client_min_messages = error; ANALYZE {', '.join(names)}")


@contextlib.contextmanager
def analyzed(stack: Stack, target: Target) -> Iterator[None]:
    """Have the planner's statistics made while something else reads the database: of the tables that the dump had none
    of; on an external server, where the role may not look at them, of all. At the end the functions lose the search
    path that they were lent.

    :raises StackError: at the end, when they could not be.
    """
    what, name = "analyze the restored database", target.name
    with session(stack.db, name, what) as sql:
        names = [row["name"] for row in sql.rows(WITH_FIGURES if stack.db.origin else WITHOUT_FIGURES)]
    as_superuser = target.role == "superuser"
    # never as the superuser: what an index or a statistic is made of is the application's code
    with (
        session(stack.db, name, what, role="owner" if as_superuser else target.role) as sql,
        background(sql) as executor,
    ):
        done = executor.submit(_analyze, sql, names) if names else None
        yield
        if done:
            done.result()
        if not as_superuser:
            sql.run(search_paths.take_back())
    if as_superuser:
        with session(stack.db, name, "take back the search path of functions") as sql:
            # a trigger of the restored database on changes of its schema must not see this one
            sql.run(f"SET session_replication_role = replica; {search_paths.take_back()}")


def _load_script(stack: Stack, source: Source, target: Target) -> None:
    """Load the SQL of a dump. Several sessions take the rows of one that has a manifest, which is pg_dump's."""
    changes = _changes(stack, source, target)
    try:
        with _script(stack, source) as script:
            content = changes.changed(restricted(script))
            with (
                lanes.shared(stack, target.name, content, role=target.role)
                if source.manifest
                else contextlib.nullcontext(content) as sql
            ):
                command = _program(stack, PSQL, target.name, target.role)
                stack.context.stream_in(command, sql, f"restore {source.name}")
    except StackError as error:
        # rows that other sessions took, or that pg_restore has made SQL of, are in no line of a file
        line = (lambda number: number - 1 - (0 < changes.inserted < number)) if source.manifest is None else None
        raise failures.located(error, source.path.name, line if source.layout == "sql" else None) from None


def _changes(stack: Stack, source: Source, target: Target) -> Owned:
    """Return how SQL is changed so that the role can load it. Another environment's roles are not known here, or are
    others."""
    return Owned(
        target.owner,
        major=stack.db.server_major,
        privileges=source.is_own(stack) and not stack.db.origin,
        stands_for=stack.settings.db.user if target.role == "loader" else "",
        roles=target.roles,
        members=target.members,
        left=target.left,
        before_rows=f"{target.lend};".encode(),
    )


@contextlib.contextmanager
def _script(stack: Stack, source: Source) -> Iterator[Iterator[bytes]]:
    """The SQL of a dump, whatever its layout.

    :raises Wrong: at the end, when it is not what it was.
    """
    if source.layout == "sql":
        with _digested(source) as digested:
            yield sql_chunks(digested)
        return
    with archive(stack, source.path, ["-f", "-"], f"read {source.name}") as out:
        yield chunks(out)


@contextlib.contextmanager
def _digested(source: Source) -> Iterator[Digested]:
    """The bytes of a file.

    :raises Wrong: at the end, when they are not what they were.
    """
    try:
        opened = os.fdopen(open_plain(source.path), "rb")
    except OSError as error:
        raise Wrong(f"it can't be read any more: {error.strerror or error}") from None
    with opened as file, meter(f"restoring {source.name}", os.fstat(file.fileno()).st_size) as progress:
        digested = Digested(file, progress)
        yield digested
        digested.rest()
    if source.manifest and digested.sha256 != source.manifest.sha256:
        raise Wrong("it changed while it was read")


def _load_archive(stack: Stack, source: Source, target: Target) -> None:
    """Load an archive: what rows need by psql, then the rest by pg_restore, as far as the list of its contents says
    that the role may; what depends on whose an object is goes through psql, which can go on where that is refused."""
    words = ["pg_restore", "-w", "--exit-on-error", "-d", target.name, "--section=data", "--section=post-data"]
    what = f"restore {source.name}"
    with contextlib.ExitStack() as held:
        contents, listing = Contents([], [], []), []
        if target.role != "superuser":
            contents = listed(stack, source.path, target.members)
            target.left.privileged += contents.left
            target.left.rows += with_rows(stack, source.path, contents, target.members)
            listing = ["-L", str(held.enter_context(list_file(stack, contents.taken)))]
            words += ["--no-owner", "--no-privileges", "--enable-row-security"]
        _load_part(stack, source, target, ["--section=pre-data", *listing])
        with session(stack.db, target.name, what, role=target.role) as sql:
            sql.run(target.lend)
        words += listing
        if source.layout == "directory":
            inside = held.enter_context(stack.db.inward(held.enter_context(settled(stack, source.path))))
            words += ["-Fd", "-j", str(min(JOBS, os.cpu_count() or 1)), str(inside)]
            command = _program(stack, words, target.name, target.role)
            with stack.context.stream_out(command, what):
                pass
        else:
            digested = held.enter_context(_digested(source))
            command = _program(stack, words, target.name, target.role)
            stack.context.stream_in(command, chunks(digested), what)  # type: ignore[arg-type]
    for entries in filter(None, (contents.attempted, contents.refreshed)):
        with list_file(stack, entries) as listing_file:
            _load_part(stack, source, target, ["-L", str(listing_file)])


def _load_part(stack: Stack, source: Source, target: Target, words: list[str]) -> None:
    """Load a part of an archive by psql."""
    with archive(stack, source.path, ["-f", "-", *words], f"read {source.name}") as out:
        content = _changes(stack, source, target).changed(restricted(chunks(out)))
        command = _program(stack, PSQL, target.name, target.role)
        try:
            stack.context.stream_in(command, content, f"restore {source.name}")
        except StackError as error:
            raise failures.located(error, source.path.name, None) from None


def _program(stack: Stack, words: list[str], name: str, role: Role) -> Command:
    """Return a program that loads a dump; where we are root, under the services' account."""
    building = stack.db.building(int(words[words.index("-j") + 1]) if "-j" in words else 1)
    options = " ".join([OPTIONS_OF_LOADS, *(f"-c {name}={value}" for name, value in building.items())])
    if role == "superuser":
        options = f"{stack.db.pinned} {options}"
    return stack.db.apart(program(stack.db, role)(words, name, {"PGOPTIONS": options}))


def copy_database(stack: Stack, name: str, role: Role = "owner", *, section: str = "") -> None:
    """Copy the database in use into an empty one that has its extensions, or one section of it: ``pre-data`` is what
    rows need, ``post-data`` what would be in their way: keys, indexes, triggers, rules."""
    what = f"copy database {stack.settings.db.name}"
    with session(stack.db, stack.settings.db.name, what) as sql:
        lend = search_paths.lend(search_path_in_use(stack, sql))
    with _dumped(stack, what, [f"--section={section}"] if section else []) as out:
        changes = Owned(
            owner_of(stack, role),
            major=stack.db.server_major,
            privileges=role != "loader",
            stands_for=stack.settings.db.user if role == "loader" else "",
            before_rows=f"{lend};".encode() if not section else b"",
        )
        stack.context.stream_in(_program(stack, PSQL, name, role), changes.changed(restricted(chunks(out))), what)
    if not section:
        with session(stack.db, name, what, role="owner") as sql:
            sql.run(f"SET client_min_messages = warning; {search_paths.check()}; {search_paths.take_back()}")


def copy_privileges(stack: Stack, name: str) -> None:
    """Copy the privileges in the database in use into one that has its schema, and is its owner's by now."""
    what = f"copy the privileges of database {stack.settings.db.name}"
    schema = stack.paths.state / f"{STAGING}{secrets.token_hex(4)}"
    try:
        with _dumped(stack, what, ["-Fc", "-s"]) as out, os.fdopen(os.open(schema, FRESH, 0o600), "wb") as file:
            shutil.copyfileobj(out, file)
        entries = [line for line in listed(stack, schema).attempted if PRIVILEGES.match(line)]
        with list_file(stack, entries) as listing, archive(stack, schema, ["-f", "-", "-L", str(listing)], what) as out:
            changes = Owned(stack.settings.db.user, major=stack.db.server_major, privileges=True)
            script = changes.changed(restricted(chunks(out)))
            stack.context.stream_in(_program(stack, PSQL, name, "owner"), script, what)
    finally:
        stack.context.host.remove(schema)


def _dumped(stack: Stack, what: str, words: list[str]) -> AbstractContextManager[IO[bytes]]:
    """Return a dump of the database in use."""
    words = ["pg_dump", "-w", "--lock-wait-timeout=60000", *words]
    return stack.context.stream_out(stack.db.as_superuser(words, stack.settings.db.name), what)


def count(stack: Stack, name: str) -> census.Census:
    with session(stack.db, name, "count the restored rows", role="reader") as sql:
        sql.run("BEGIN READ ONLY")
        return census.take(sql)


def check_counts(stack: Stack, manifest: Manifest, name: str) -> census.Census:
    """Compare a restored database with the manifest.

    :raises Mismatch: it differs.
    """
    expected = census.Census(
        tables=manifest.tables,
        sequences=manifest.sequences,
        extensions=manifest.extensions,
        large_objects=manifest.large_objects,
    )
    counted = count(stack, name)
    if lines := expected.differences(counted, data=manifest.kind != "schema"):
        raise Mismatch(lines)
    return counted


def say_hidden(stack: Stack, source: Source, name: str) -> None:
    """Say which tables of somebody else's dump hide rows from the database's owner, who mostly sees all of his own."""
    if source.is_own(stack) and not stack.db.origin:
        return
    with session(stack.db, name, "look for row-level security") as sql:
        tables = [row["name"] for row in sql.rows(FORCED)]
    if tables:
        console.note(
            f"row-level security is forced on {privileged.shown(tables)}: {stack.settings.db.user}, the owner, sees"
            " only the rows that its policies show; ALTER TABLE … NO FORCE ROW LEVEL SECURITY shows all"
        )
