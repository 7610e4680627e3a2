"""A database on any PostgreSQL server, seen as this stack's own is: what reads and fills that one does so there."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from devstack.credentials import pgpass_line, scram_verifier
from devstack.data.address import Address
from devstack.data.manifest import now, stamp
from devstack.data.session import session
from devstack.errors import StackError, UsageError
from devstack.services.postgres import MAINTENANCE, PIN, PSQL, Postgres, identifier, literal
from devstack.shell import Command

if TYPE_CHECKING:
    from devstack.settings import Settings
    from devstack.stack import Stack

CONNECT_SECONDS = 10
"""In which a server must answer, unless the URL has another ``connect_timeout``."""

OLDEST = 13
"""Major version of a server; what it is asked needs this."""

NO_CLEARTEXT = "!password"
"""For ``PGREQUIREAUTH``, which libpq obeys from version 16 on: any way of logging in that an external server may have,
apart from the password in clear, which anybody on its port or on the way could ask for."""

PASSFILE = "pgpass-elsewhere"

FILES = {
    "PGSSLROOTCERT": "root.crt",
    "PGSSLCERT": "postgresql.crt",
    "PGSSLKEY": "postgresql.key",
    "PGSSLCRL": "root.crl",
}
"""Variables that name files, and the names below ``~/.postgresql`` where libpq looks otherwise
(https://www.postgresql.org/docs/current/libpq-ssl.html)."""

LOADER = "nv_load_"
"""Beginning of the names of roles that load dumps."""

LOADER_HOURS = 12
"""Hours in which such a role may log in, if it is left behind."""

MARK = 20_615_243
"""CONNECTION LIMIT that marks a database of an unfinished restore. It can be set by CREATE DATABASE itself, so that a
killed restore leaves no database without it."""

OPTIONS = f"{PIN} -c client_min_messages=warning"
READ_ONLY = f"{OPTIONS} -c default_transaction_read_only=on -c row_security=off"
"""Sent at the login. A pooler does not take such, and nothing here may go through one: a session must stay one. No
policy is evaluated, which is the application's code: reading a table whose policies hold for the role fails instead."""

ABOUT = """
SELECT current_setting('server_version_num')::int / 10000 AS major,
       split_part(current_setting('server_version'), ' ', 1) AS version,
       pg_is_in_recovery() AS standby, pg_get_userbyid(d.datdba) AS owner, pg_get_userbyid(l.oid) AS lender,
       r.rolsuper AS superuser, r.rolsuper OR r.rolcreatedb AS creates, r.rolsuper OR r.rolcreaterole AS makes_roles,
       r.rolsuper OR pg_has_role(d.datdba, 'MEMBER') AS owns,
       ARRAY(SELECT s.rolname::text FROM pg_roles s
              WHERE s.rolsuper AND (s.oid = d.datdba OR pg_has_role(l.oid, s.oid, 'MEMBER')
                                    OR (NOT r.rolsuper AND pg_has_role(r.oid, s.oid, 'MEMBER')))
              ORDER BY 1) AS superusers,
       ARRAY(SELECT DISTINCT power COLLATE "C"
               FROM pg_roles p, unnest(ARRAY[CASE WHEN p.rolcreaterole THEN 'CREATEROLE' END,
                                             CASE WHEN p.rolreplication THEN 'REPLICATION' END,
                                             CASE WHEN p.rolbypassrls THEN 'BYPASSRLS' END,
                                             CASE WHEN p.oid < 16384 AND p.rolname ~ '^pg_'
                                                   AND p.rolname <> 'pg_database_owner' THEN p.rolname::text END]) power
              WHERE power IS NOT NULL AND pg_has_role(l.oid, p.oid, 'MEMBER') ORDER BY 1) AS powers
  FROM pg_database d, pg_roles r, LATERAL (
           SELECT CASE WHEN r.rolsuper OR r.rolcreaterole THEN d.datdba ELSE r.oid END AS oid) l
 WHERE d.datname = current_database() AND r.rolname = current_user
"""

UNREADABLE = """
SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'S') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
   AND n.nspname !~ '^pg_(toast_)?temp_'
   AND NOT (has_schema_privilege(n.oid, 'USAGE')
            AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                               ELSE has_table_privilege(c.oid, 'SELECT') END)
   AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid
                      AND e.refclassid = 'pg_extension'::regclass AND e.deptype = 'e')
 ORDER BY 1
"""


class About(Struct, frozen=True):
    """A server with a database, and what the role that came in may do with it."""

    version: str
    major: int
    standby: bool
    owner: str
    superuser: bool
    creates: bool
    """Whether it may create databases."""
    owns: bool
    makes_roles: bool = False
    """Whether it may create roles."""
    lender: str = ""
    """Role whose rights the functions of a dump have: the database's owner, who has them in the end; if no role can be
    made that loads it, the URL's role."""
    superusers: list[str] = []
    """Superusers among the owner and the roles that the lender may become."""
    powers: list[str] = []
    """Rights of the lender, and of the roles that it may become, beyond those on its databases: attributes, and
    PostgreSQL's own roles."""


class Elsewhere(Postgres):
    """The server of an address. The programs are this stack's, where they are; they come in as the address's role."""

    def __init__(self, local: Postgres, address: Address) -> None:
        super().__init__(local.context, local.settings, local.credentials, lambda: local.programs)
        self.local = local
        self.target = address
        self.account = local.account
        self.about = About("", 0, False, address.user, False, False, False)
        """What the server says of itself, once it was asked."""
        self._lent: dict[str, str] = {}
        """Variables that name files for the account that dumps are loaded under, while some are."""

    @property
    def is_superuser(self) -> bool:
        return self.about.superuser

    new_limit = MARK

    @property
    def loader(self) -> str:
        """Name of the role that loads dumps into this database: a killed restore's is known by it to the next one,
        which holds the database's lock."""
        return f"{LOADER}{hashlib.sha256(self.target.database.encode()).hexdigest()[:8]}"

    @property
    def makes_loader(self) -> bool:
        return self.about.makes_roles

    @property
    def server_major(self) -> int:
        return self.about.major

    @property
    def origin(self) -> str:
        return self.target.origin

    @property
    def place(self) -> str:
        return self.target.server

    @property
    def passfile(self) -> Path:
        return self.local.rules / PASSFILE

    @property
    def own_address(self) -> tuple[str, int]:
        """Where the programs find it: in a container, loopback is the container's own."""
        if self.target.is_loopback and self.target.port == self.local.port:
            return self.local.own_address
        return self.target.host, self.target.port

    def room(self, seconds: float = 5.0) -> tuple[int, int] | None:
        """Return None: the disk of another machine is not known."""
        return None

    def shared_memory(self) -> int:
        """Return 0: the shared memory of another machine is not known."""
        return 0

    def env(self, database: str) -> dict[str, str]:
        host, port = self.own_address
        return {
            **self.programs.env,
            "PGHOST": host,
            "PGPORT": str(port),
            "PGUSER": self.target.user,
            "PGDATABASE": database,
            "PGPASSFILE": str(self.passfile),
            "PGCONNECT_TIMEOUT": str(CONNECT_SECONDS),
            "PGAPPNAME": "nv-devstack",
            "PGOPTIONS": OPTIONS,
            "PGCLIENTENCODING": "UTF8",
            "LC_ALL": "C",
            **({} if self.target.is_encrypted else {"PGREQUIREAUTH": NO_CLEARTEXT}),
            **dict(self.target.parameters),
        }

    def as_superuser(
        self, words: Sequence[str], database: str, env: Mapping[str, str] | None = None, *, tty: bool = False
    ) -> Command:
        """The URL's role is all that there is."""
        return self._program(words, {**self.env(database), **(env or {})}, tty=tty)

    def as_reader(self, words: Sequence[str], database: str, env: Mapping[str, str] | None = None) -> Command:
        return self.as_superuser(words, database, {"PGOPTIONS": READ_ONLY, **(env or {})})

    def as_owner(
        self, words: Sequence[str], database: str, env: Mapping[str, str] | None = None, *, tty: bool = False
    ) -> Command:
        """Return the same with all that is made belonging to the database's owner."""
        own = self.env(database) | self._lent
        options = [OPTIONS, f"-c role={_option(self.about.owner)}", (env or {}).get("PGOPTIONS", "")]
        own["PGOPTIONS"] = " ".join(options).strip()
        return self._program(words, own, tty=tty)

    def as_loader(self, words: Sequence[str], database: str, env: Mapping[str, str] | None = None) -> Command:
        own = self.env(database) | self._lent | {"PGUSER": self.loader, "PGPASSFILE": str(self.loader_passfile)}
        own["PGOPTIONS"] = f"{OPTIONS} {(env or {}).get('PGOPTIONS', '')}".strip()
        return self._program(words, own)

    def apart(self, command: Command) -> Command:
        return self.local.apart(command)

    @contextlib.contextmanager
    def lending(self) -> Iterator[None]:
        """Copy the password file and the certificates for the services' account, which loads dumps, if this process is
        root. Remove the copies at the end."""
        context = self.local.context
        if context.runtime.contained or not context.host.is_root:
            yield
            return
        given, home = dict(self.target.parameters), Path.home() / ".postgresql"
        files = {"PGPASSFILE": self.passfile}
        files |= {variable: Path(given.get(variable) or home / name) for variable, name in FILES.items()}
        try:
            for variable, path in files.items():
                if path.is_file() and given.get(variable) != "system":  # the system's certificates
                    copy = self.local.rules / f"{PASSFILE}-{variable.lower()}"
                    self._lent[variable] = str(copy)
                    context.host.write_file(copy, path.read_bytes(), 0o600, account=True)
            yield
        finally:
            for lent in self._lent.values():
                self.local.remove_passfile(Path(lent))
            self._lent = {}

    @property
    def loader_passfile(self) -> Path:
        return self.local.rules / f"{PASSFILE}-load"

    def loader_login(self) -> str:
        """Return the loader's password, as its verifier, and the end of its time, should it be left behind. A role that
        is no superuser becomes a member of the loader: it could not give away what that owns otherwise."""
        password = secrets.token_urlsafe(24)
        verifier = scram_verifier(password, secrets.token_bytes(16))
        until = literal(stamp(now() + timedelta(hours=LOADER_HOURS)))
        member = "" if self.is_superuser else f" ROLE {identifier(self.target.user)}"
        self.local.context.hide(password)
        line = pgpass_line({**dict.fromkeys(("host", "port", "name", "user"), "*"), "password": password})
        self.local.write_passfile(line, self.loader_passfile, account=True)
        return f"PASSWORD {literal(verifier)} VALID UNTIL {until}{member}"

    def admit_loader(self, database: str) -> None:
        look = self.apart(self.as_loader([*PSQL, "-c", "SELECT 1"], database))
        answer = self.context.probe(look, 2 * CONNECT_SECONDS)
        if not answer.ok:
            raise StackError(
                f"the role {self.loader}, which loads the dump, can't log in on {self.target.server}",
                why="it is made for this restore, with a password",
                evidence=answer.text.splitlines()[-3:],
                fix=f"have pg_hba.conf there let {self.loader} in by scram-sha-256",
            )

    def programs_at_hand(self) -> AbstractContextManager[None]:
        return self.local.programs_at_hand()

    def reading(self, words: Sequence[str], *, own: bool = False) -> Command:
        return self.local.reading(words, own=own)

    @contextlib.contextmanager
    def inward(self, path: Path, *, own: bool = False) -> Iterator[Path]:
        with self.local.inward(path, own=own) as inside:
            yield inside

    @contextlib.contextmanager
    def outward(self, folder: Path) -> Iterator[Path]:
        with self.local.outward(folder) as inside:
            yield inside


def _option(value: str) -> str:
    """Quote a value in PGOPTIONS (https://www.postgresql.org/docs/current/libpq-connect.html, options)."""
    return re.sub(r"([\\\s])", r"\\\1", value)


def is_own(stack: Stack, address: Address) -> bool:
    """Whether an address is that of this environment's own database, through PgBouncer or not."""
    ports = (stack.settings.db.port, stack.settings.pgb.port)
    return address.is_loopback and address.port in ports and address.database == stack.settings.db.name


def check_allowed(address: Address, *, yes: bool, allow_remote: bool) -> None:
    """Whether a database elsewhere may be replaced; nothing has been touched before.

    :raises UsageError: nobody said so.
    """
    if not address.is_loopback and not (allow_remote and yes):
        raise UsageError(
            f"{address} is on another machine",
            why="a restore replaces its database; nothing was touched",
            fix="if that is meant, add --allow-remote --yes",
        )
    if not yes:
        raise UsageError(
            f"{address} is not this environment's database",
            why="a restore replaces it; nothing was touched",
            fix="if that is meant, add --yes",
        )


def check_reach(stack: Stack, address: Address) -> None:
    """Before anything is connected to.

    :raises StackError: the programs can't get there from where they run.
    """
    if address.is_loopback and address.port == stack.settings.pgb.port:
        raise StackError(
            f"{address} is this environment's PgBouncer",
            why="a database is copied from its server, never through a pooler",
            fix=f"write port {stack.settings.db.port}",
        )
    if stack.context.runtime.contained and address.is_loopback and address.port != stack.settings.db.port:
        raise StackError(
            f"{address} can't be reached from {stack.db.name}",
            why="PostgreSQL's programs run in that container, whose loopback is its own",
            fix=[
                "have that server listen on an address that containers reach, and name that: this machine's own,",
                "host.docker.internal with Docker Desktop, host.containers.internal with Podman; or go native",
            ],
        )


@contextlib.contextmanager
def opened(stack: Stack, address: Address, *, fills: bool = False) -> Iterator[Stack]:
    """The stack with the database of an address in the place of its own. Its password is in a file meanwhile that
    nobody else can read.

    :param fills: whether dumps are loaded there.
    :raises StackError: the server can't be used; the error says what mends it.
    """
    check_reach(stack, address)
    db = Elsewhere(stack.db, address)
    there = copy.copy(stack)
    there.db = db
    there.settings = with_database(stack.settings, address.database, address.user)
    if stack.context.dry:
        yield there
        return
    stack.context.hide(address.password)
    values = dict.fromkeys(("host", "port", "name", "user"), "*") if address.password else {}
    try:
        content = pgpass_line({**values, "password": address.password}) if values else ""
        db.local.write_passfile(content, db.passfile)
        db.about = _about(db)
        _check_version(db)
        there.settings = with_database(stack.settings, address.database, db.about.owner)
        with db.lending() if fills else contextlib.nullcontext():
            yield there
    finally:
        db.local.remove_passfile(db.passfile)
        if fills:
            db.local.remove_passfile(db.loader_passfile)


def with_database(settings: Settings, name: str, owner: str) -> Settings:
    """Settings of a database elsewhere, which has the extensions that are in it."""
    db = msgspec.structs.replace(settings.db, name=name, user=owner, extensions=[])
    return msgspec.structs.replace(settings, db=db)


def _about(db: Elsewhere) -> About:
    try:
        with session(db, db.target.database, f"look at {db.target}") as sql:
            about = sql.row(ABOUT)
    except StackError as error:
        raise refused(db, error) from None
    return About(**about)


def _check_version(db: Elsewhere) -> None:
    if db.server_major > db.programs.major:
        raise StackError(
            f"{db.target} is PostgreSQL {db.about.version}, and pg_dump here is {db.programs.version}",
            why="pg_dump does not read a server newer than itself; nothing was touched",
            fix="set db.bin_dir, or db.image, to a PostgreSQL of that version for a new environment: "
            "NV_ENV=other inv dev.up",
        )
    if db.server_major < OLDEST:
        raise StackError(
            f"{db.target} is PostgreSQL {db.about.version}",
            why=f"{OLDEST} is the least",
            fix="dump it with its own pg_dump, and restore that: inv data.restore --file FILE --force",
        )


def refused(db: Elsewhere, error: StackError) -> StackError:
    """Why a connection failed, by what libpq and the server say of it. libpq is told to speak English; a server that
    speaks another language is shown with its own words."""
    address, said = db.target, "\n".join(error.evidence)
    what = f"{address} can't be used"
    server, role = address.server, address.user
    if "authentication method requirement" in said:
        return StackError(
            what,
            why=f"{server} asks for the password in clear, or in another way than the URL allows; it was not sent",
            evidence=error.evidence,
            fix=[
                "see that it is that server; then have the connection encrypted: ?sslmode=require at the URL's end",
                "(verify-full proves the server too), or say that it is meant: ?require_auth=password",
            ],
        )
    if "password authentication failed" in said:
        return StackError(
            what,
            why=f"the password of role {role} is wrong, or there is no such role",
            evidence=error.evidence,
            fix="correct it in the URL, in PGPASSWORD or in ~/.pgpass",
        )
    if "no password supplied" in said:
        return StackError(
            what,
            why=f"the server asks for {role}'s password, and there is none in the URL, in PGPASSWORD or ~/.pgpass",
            fix="write the URL with its password into the first line of a file, and name it: --url @FILE",
        )
    if f'database "{address.database}" does not exist' in said:
        return StackError(
            what,
            why=f"the server has no database {address.database}",
            fix=f"correct its name, or make it there first: CREATE DATABASE {identifier(address.database)}",
        )
    if "unsupported startup parameter" in said:
        return StackError(
            what,
            why="a pooler answers there, such as PgBouncer; a database is copied from its server",
            evidence=error.evidence,
            fix="name the host and port of PostgreSQL itself",
        )
    if "could not translate host name" in said:
        return StackError(
            what, why=f"no machine is known by the name {address.host}", fix="correct the host in the URL"
        )
    if "onnection refused" in said:
        return StackError(what, why=f"nothing listens on {server}", fix="start that server, or correct host and port")
    if "timeout expired" in said or "timed out" in said:
        return StackError(
            what,
            why=f"{server} does not answer within {db.env('')['PGCONNECT_TIMEOUT']} s",
            fix="correct host and port, or open the way to it: a VPN, a firewall, kubectl port-forward",
        )
    if "received invalid response" in said or "expected authentication request" in said:
        return StackError(what, why=f"what answers on {server} is no PostgreSQL", fix="correct host and port")
    if "no pg_hba.conf entry" in said or "SSL" in said or "certificate" in said:
        return StackError(
            what,
            why="the server does not let this connection in",
            evidence=error.evidence,
            fix="try with ?sslmode=require at the URL's end, or without it; or have pg_hba.conf there allow it",
        )
    return StackError(
        what, why="it refused the connection", evidence=error.evidence, fix="see what it says, and what its log says"
    )


def check_readable(stack: Stack) -> None:
    """Before a dump, which would fail on the first table that may not be read.

    :raises StackError: there is such a one.
    """
    db = stack.db
    assert isinstance(db, Elsewhere)
    with session(db, db.target.database, f"look at {db.target}") as sql:
        closed = [row["name"] for row in sql.rows(UNREADABLE)]
    if closed:
        role = identifier(db.target.user)
        raise StackError(
            f"role {db.target.user} may not read all of {db.target.origin}",
            why=f"not: {', '.join(closed[:5])}{' …' if len(closed) > 5 else ''}",
            fix=f"GRANT pg_read_all_data TO {role} there (PostgreSQL 14), or name the owner of the tables in the URL",
        )


def check_replaceable(stack: Stack) -> None:
    """Before anything is touched.

    :raises StackError: the role may not put another database in the place of this one.
    """
    db = stack.db
    assert isinstance(db, Elsewhere)
    about, role = db.about, identifier(db.target.user)
    if about.standby:
        raise StackError(
            f"{db.target} is a standby, which takes no writes", fix="name the primary: it is where writes go"
        )
    if db.target.database == MAINTENANCE:
        raise StackError(
            f"{db.target} is the server's own database {MAINTENANCE}",
            why="it is what one is connected to while another is renamed",
            fix="name the application's database, or make one for it",
        )
    if about.owner in about.superusers:
        raise StackError(
            f"{db.target.origin} belongs to {about.owner}, a superuser",
            why="the functions in a dump may do what the owner may: there, run programs; nothing was touched",
            fix=f"as a superuser there: ALTER DATABASE {identifier(db.target.database)} OWNER TO a role that is none",
        )
    if about.superusers:
        raise StackError(
            f"role {about.lender} may become {about.superusers[0]}, a superuser",
            why="so may the functions in a dump, and run programs there; nothing was touched",
            fix=f"as a superuser there: REVOKE {identifier(about.superusers[0])} FROM {identifier(about.lender)},"
            " or from the role between them",
        )
    if not about.creates:
        raise StackError(
            f"role {db.target.user} may not create a database on {db.target.server}",
            why="a restore fills a new one beside the one in use, and switches when it is proven; nothing was touched",
            fix=f"as a superuser there: ALTER ROLE {role} CREATEDB; or name a role in the URL that may",
        )
    if not about.owns:
        raise StackError(
            f"role {db.target.user} does not own {db.target.origin}",
            why=f"it is {about.owner}'s, who alone may rename it; nothing was touched",
            fix=f"name {about.owner} in the URL, or as a superuser there: GRANT {identifier(about.owner)} TO {role}",
        )
    try:
        with session(db, MAINTENANCE, f"look at database {MAINTENANCE} there") as sql:
            sql.value("SELECT 1 AS one")
    except StackError as error:
        raise StackError(
            f"role {db.target.user} can't connect to database {MAINTENANCE} on {db.target.server}",
            why="it is what one is connected to while another is renamed; nothing was touched",
            evidence=error.evidence,
            fix=f"as a superuser there: GRANT CONNECT ON DATABASE {MAINTENANCE} TO {role}",
        ) from None
