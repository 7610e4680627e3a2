"""nv-db: PostgreSQL with the database, its owner and its extensions."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devstack import console
from devstack.container import ContainerContext
from devstack.credentials import Credentials, owner_verifier, proves
from devstack.errors import StackError, UsageError
from devstack.files import copy_plain, walk_plain
from devstack.inherited import POSTGRES_VARIABLES
from devstack.providers import LEFT_SECONDS, PLANS, STATEMENTS, Programs, search_postgres
from devstack.runtimes import ServiceSpec
from devstack.services import NotReady
from devstack.services.configuration import items_of
from devstack.services.folders import Folders
from devstack.services.prepared import LINEAGE, Prepared
from devstack.settings import Settings, reachable_address, with_port
from devstack.shell import Command, argv, sh, typed
from devstack.templates import render
from devstack.threads import run_at_once

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812

SUPERUSER = "postgres"
READER = "nv_reader"
"""Role that reads every table, also those of the catalog, and changes nothing. What reads the application's tables runs
as this role: planning a query may evaluate expressions of indexes and statistics, which are the application's code."""
LOADER = "nv_loader"
"""Role that loads a dump which this environment has not made; see :mod:`devstack.data.loader`."""
TRANSACTIONS = (
    "-c default_transaction_isolation=read\\ committed -c default_transaction_read_only=off"
    " -c default_transaction_deferrable=off -c statement_timeout=0 -c idle_in_transaction_session_timeout=0"
)
"""Options of every session of ours. They win over ALTER DATABASE … SET, which the database's owner may use: a read-only
deferrable transaction would wait for all of the application's to end, and one of a millisecond would end at once."""
PIN = f"-c search_path=pg_catalog,pg_temp -c standard_conforming_strings=on -c quote_all_identifiers=off {TRANSACTIONS}"
"""Options of every session of ours that does not run as the application's role, for the same reason: an unqualified
name never means an object of the application (CVE-2018-1058), a literal never ends early, and a name is always quoted
in the same way."""
PINNED = f"{PIN} -c role=none"
"""The same on our own server, where the role that came in is the one that is meant."""
PINNING = "SET search_path = pg_catalog, pg_temp; SET standard_conforming_strings = on; SET quote_all_identifiers = off"
"""First statements of a superuser's script, with the same effect: a script of an export is run by other programs."""
MAINTENANCE = "postgres"
"""A database that every server has; no user's dump takes what is in it."""
NO_PASSFILE = "none"
"""Name of a file that is not there, beside the rules of access: libpq reads it instead of the user's ~/.pgpass."""
PRELOADED = "shared_preload_libraries"
RESTRICTS = {14: 19, 15: 14, 16: 10, 17: 6}
"""First minor versions whose psql knows \\restrict, by major version; all later ones do."""
STAGING = ".read-"
"""Beginning of the names of directories in the state directory that PostgreSQL's programs read from."""
ENGLISH = {"LC_ALL": "C"}
"""Variables for a program whose messages are read here. A caller's LC_ALL would win over LC_MESSAGES."""
PSQL = ("psql", "-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1")
WAL_ROOM = 32 << 20
"""Bytes: two WAL segments. PostgreSQL stops when it can't write the next one."""
WRONG_RULES = "SELECT 'line ' || line_number || ': ' || error FROM pg_hba_file_rules WHERE error IS NOT NULL"
"""Ask for the lines of pg_hba.conf that the server could not read
(https://www.postgresql.org/docs/current/view-pg-hba-file-rules.html)."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108
"""Where Linux has the memory that processes share."""
BUILDING = 256 << 20
"""Bytes of memory for building an index."""
LOOKING_SECONDS = 10.0
"""For a look at what is in the databases: twice what logging in may take."""
RELOAD_SECONDS = 10.0
"""For the server to read its rules of access again."""


class Postgres:
    """The database service."""

    label = "db"
    account = ""
    """Of the server's own system, whom its programs run as there; empty: whoever calls them."""
    stop_signal = "INT"
    """Fast shutdown: https://www.postgresql.org/docs/current/server-shutdown.html"""

    def __init__(
        self,
        context: ContainerContext,
        settings: Settings,
        credentials: Credentials,
        find: Callable[[], Programs],
    ) -> None:
        self.context = context
        self.settings = settings
        self.credentials = credentials
        self._find = find
        self._verifier = ""
        self.noted = False
        """Whether the verifier is one that an earlier command has read: it may be another by now."""
        self._fresh = False
        """Whether the cluster was made by this command: it has no role yet, asking would only fill the log."""

    @functools.cached_property
    def programs(self) -> Programs:
        return self._find()

    @property
    def name(self) -> str:
        return self.settings.service_name("db")

    @property
    def port(self) -> int:
        return self.settings.db.port

    @property
    def bind(self) -> str:
        return self.settings.db.bind

    @property
    def address(self) -> str:
        return with_port(self.bind, self.port)

    @property
    def data(self) -> Path:
        return self.context.paths.volumes / f"{self.name}-data"

    @property
    def place(self) -> str:
        """Where the data are, for people."""
        return str(self.data)

    @property
    def server_major(self) -> int:
        """Of the server, which may be another one than that of the programs."""
        return self.programs.major

    @property
    def origin(self) -> str:
        """Where the database is, if it is not this environment's own: ``host:port/name``."""
        return ""

    @property
    def folders(self) -> Folders:
        """What is beside the data folder."""
        return Folders(self)

    @property
    def sockets(self) -> Path:
        """A folder of the services' account alone."""
        return self.context.paths.run / "db"

    @property
    def rules(self) -> Path:
        """The folder of pg_hba.conf and pg_ident.conf."""
        return self.context.paths.config

    @property
    def listens(self) -> tuple[str, int]:
        """What the server itself binds to."""
        return self.bind, self.port

    @property
    def peer(self) -> tuple[str, int]:
        """What the other services reach it by."""
        return reachable_address(self.bind), self.port

    # the service

    def spec(self) -> ServiceSpec:
        db, (address, port) = self.settings.db, self.listens
        parameters: dict[str, Any] = {
            "port": port,
            "listen_addresses": address,
            "unix_socket_directories": self.sockets,
            "unix_socket_permissions": "0700",
            "hba_file": self.rules / "pg_hba.conf",
            "ident_file": self.rules / "pg_ident.conf",
            "max_connections": db.max_connections,
            "log_line_prefix": "%m [%p] ",
            "log_timezone": "UTC",
            "cluster_name": self.name,
            **(self._tracking() if self.tracks_statements else {}),
            **{name: value for name, value in db.parameters.items() if not self._merges(name)},
        }
        words = [self.programs.path("postgres"), "-D", str(self.data)]
        for key, value in parameters.items():
            words += ["-c", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
        return ServiceSpec(
            name=self.name,
            argv=words,
            cwd=self.context.paths.state,
            env=self.programs.env,
            unset=POSTGRES_VARIABLES,
            own_account=True,
            stop_signal=self.stop_signal,
            stop_seconds=int(self.settings.stack.stop_timeout),
            grace=5.0,  # after a crash the old server's lock file and memory may be there for a moment
        )

    @property
    def tracks_statements(self) -> bool:
        """Whether pg_stat_statements is loaded."""
        return self.settings.db.track_statements and self.programs.tracks_statements

    def _tracking(self) -> dict[str, Any]:
        """Load :data:`STATEMENTS` in front of what the user has loaded. It leaves out what is no query: those may
        have a password in them, as ``ALTER ROLE`` does, and it keeps the texts. :data:`PLANS` does nothing until it is
        told to; loaded from the start, it then sees the sessions that are open already."""
        theirs = [str(value) for name, value in self.settings.db.parameters.items() if self._merges(name)]
        loaded = {library.strip(' "') for text in theirs for library in text.split(",")}
        ours = [library for library in (STATEMENTS, PLANS) if library not in loaded]
        libraries = [*ours, *filter(str.strip, theirs)]
        return {PRELOADED: ",".join(libraries), f"{STATEMENTS}.track_utility": "off"}

    def _merges(self, parameter: str) -> bool:
        return self.tracks_statements and parameter.lower() == PRELOADED

    def configuration(self) -> Mapping[str, str]:
        return {**items_of(self.spec()), "pg_hba.conf": self._hba(), "pg_ident.conf": self._ident()}

    def data_is_there(self) -> bool:
        """Whether the data volume holds a cluster; a start makes one otherwise."""
        return self.context.host.read_file(self.data / "PG_VERSION") is not None

    def data_fits(self) -> bool:
        """Whether there are data, of the same major version as the programs."""
        version = self.context.host.read_file(self.data / "PG_VERSION") or b""
        return version.decode(errors="replace").strip() == str(self.programs.major)

    def has_server(self) -> bool:
        """Whether a server uses the data."""
        lock = (self.context.host.read_file(self.data / "postmaster.pid") or b"").split(b"\n")[0]
        return lock.isdigit() and self.context.host.works_in(int(lock), self.data)

    def runs_programs(self) -> bool:
        """Whether the programs that it would be started with can be run beside the data now."""
        return True

    def check_removable(self) -> None:
        """Before the data are removed, with no server on them.

        :raises StackError: somebody else uses them.
        """

    def remove_data(self) -> None:
        """Have the engine remove the data, where it keeps them."""

    def room(self, seconds: float = 5.0) -> tuple[int, int] | None:
        """Bytes free, and in all, on the disk of the data; None where they are not. (POSIX: f_bavail is what an
        unprivileged account may use.)

        :raises OSError: the disk can't be asked.
        """
        if not self.data.is_dir():
            return None
        info = os.statvfs(self.data)
        return info.f_bavail * info.f_frsize, info.f_blocks * info.f_frsize

    def shared_memory(self) -> int:
        """Return the bytes that processes of the server can share, of which an index that several build takes its
        memory (https://www.postgresql.org/docs/current/runtime-config-resource.html, dynamic_shared_memory_type)."""
        try:
            info = os.statvfs(SHARED_MEMORY)
        except OSError:  # macOS has no such directory, and no limit of its own
            return sys.maxsize
        return info.f_bavail * info.f_frsize

    def building(self, jobs: int = 1) -> dict[str, str]:
        """Return settings for building indexes, ``jobs`` at a time. An HNSW index that fits into this memory is built
        in two thirds of the time; several processes build it in shared memory, one in its own."""
        settings = {"maintenance_work_mem": f"{BUILDING >> 20}MB"}
        if self.shared_memory() < jobs * (BUILDING + BUILDING // 8):
            settings["max_parallel_maintenance_workers"] = "0"
        return settings

    def take_back_data(self) -> str:
        """What gives the data to the account that the server runs as."""
        host = self.context.host
        return f"chown -R -h {typed(host.account or host.user, self.data)}"

    def questions(self) -> Sequence[Command]:
        return ()

    def check(self, *, fresh: bool = False) -> None:
        """Check its programs, extensions, templates, parameters, rules of access, data and disk.

        :raises StackError: one of them would keep it from starting.
        """
        from devstack.services import parameters

        self.spec()
        self._ident()
        if not fresh and self.data_is_there():
            self._check_major()
        self._check_disk()
        parameters.check(self, fresh=fresh)
        self._check_rules()

    def _check_disk(self) -> None:
        """:raises StackError: a start would fill the disk."""
        free, total = self.room() or (WAL_ROOM, WAL_ROOM)
        if free < WAL_ROOM:
            raise StackError(
                f"the disk of {self.place} is full",
                why=f"{console.size(free)} of {console.size(total)} free: PostgreSQL writes at its start",
                fix=f"make room at {self.place}",
            )

    def _check_rules(self) -> None:
        """Have the running server read pg_hba.conf as it would be. Its own is put back at once; should the server read
        the other meanwhile, it refuses what is wrong with it and goes on with the rules that it has.

        :raises StackError: it can't be read; a server would not start with it.
        """
        wanted, there = self._hba(), self._read_rules()
        if there is None or there == wanted:
            return
        self._write_rules("pg_hba.conf", wanted)
        try:
            answer = self.context.probe(self.ask(MAINTENANCE, WRONG_RULES), LOOKING_SECONDS)
        finally:
            self._write_rules("pg_hba.conf", there)
        if answer.ok and answer.text:
            raise StackError(
                "PostgreSQL refuses its pg_hba.conf",
                why=answer.text.splitlines()[0],
                fix="correct templates/pg_hba.conf",
            )

    def _read_rules(self) -> str | None:
        """Return pg_hba.conf where the server reads it; None if there is none."""
        content = self.context.host.read_file(self.rules / "pg_hba.conf")
        return None if content is None else content.decode(errors="replace")

    def _write_rules(self, name: str, content: str) -> None:
        self.context.write_file(self.rules / name, content, account=True)

    def prepare(self) -> ServiceSpec:
        paths, context = self.context.paths, self.context
        context.make_run_dir()
        context.make_dir(self.sockets, 0o700, account=True)
        context.make_dir(paths.volumes, 0o711 if context.host.is_root else 0o700)
        if not self.data_is_there():
            self._initialise()
        else:
            self._check_major()
            self._clear_foreign_lock()
        self._write_rules("pg_hba.conf", self._hba())
        self._write_rules("pg_ident.conf", self._ident())
        return self.spec()

    def _render(self, template: str, **values: str) -> str:
        return render(self.settings.templates / template, **values)

    def _hba(self) -> str:
        return self._render("pg_hba.conf", owner=_ident_quote(self.settings.db.user))

    def _ident(self) -> str:
        roles = (SUPERUSER, READER, LOADER, _ident_quote(self.settings.db.user))
        lines = [f"nv  {_ident_quote(name)}  {role}" for name in sorted(self._idents()) for role in roles]
        return self._render("pg_ident.conf", lines="\n".join(lines))

    def _idents(self) -> set[str]:
        """System accounts that come in through the socket without a password."""
        return {self.context.host.user, self.context.host.account} - {""}

    def _initialise(self) -> None:
        """Copy the prepared cluster, or make one, in a staging directory, and rename that: a data directory with its
        final name is whole.

        Each try has a folder of its own: an ``initdb`` whose command was killed goes on for a second or two, and clears
        its folder when it fails.
        """
        if not self.context.dry:
            for left in self.data.parent.glob(f".{self.data.name}.*partial"):
                self.context.host.remove(left, seconds=LEFT_SECONDS)
        staging = self.data.with_name(f".{self.data.name}.{secrets.token_hex(4)}.partial")
        self.context.make_dir(staging, 0o700, account=True)
        if not (self.settings.db.prepared and Prepared(self).copy_to(staging)):
            initdb = self.context.exec(
                self.name, [self.programs.path("initdb"), "-D", str(staging), *self.initdb_options()], self.programs.env
            )
            self.context.run(self.context.runtime.as_account(initdb), "initialise the database's data folder")
        if not self.context.dry:  # before anybody can connect
            self.context.host.write_file(staging / LINEAGE, f"{secrets.token_hex(16)}\n".encode(), 0o600, account=True)
        self.context.run(
            sh("mv $staging $data", staging=staging, data=self.data), "put the database's data folder in its place"
        )
        self._fresh = True

    def initdb_options(self) -> list[str]:
        """https://www.postgresql.org/docs/current/app-initdb.html"""
        options = ["-U", SUPERUSER, "--auth=scram-sha-256", "--auth-local=peer", "--encoding=UTF8"]
        if self.programs.major >= 17:
            # the same order of texts and the same upper case on every system
            options += ["--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        else:
            options += ["--locale=C.UTF-8"]
        return options if self.programs.major >= 18 else [*options, "--data-checksums"]

    def _check_major(self) -> None:
        content = self.context.host.read_file(self.data / "PG_VERSION") or b""
        major = content.decode(errors="replace").strip()
        if major == str(self.programs.major):
            return
        fitting = [
            str(c.programs.bin)
            for c in search_postgres(self.context, self.settings)
            if c.programs and str(c.programs.major) == major
        ]
        raise UsageError(
            f"the data of {self.name} was made by PostgreSQL {major}, this is {self.programs.version}",
            why=f"PostgreSQL {self.programs.major} can't read {self.data}; nothing was changed",
            evidence=[f"PostgreSQL in use: {self.programs.bin}"],
            fix=[
                f"go on with PostgreSQL {major}: set db.bin_dir to {(fitting or ['the folder of its programs'])[0]}",
                f"or take the data over: start it so, write it with `inv db.shell` or pg_dump, move {self.data} away,",
                "unset db.bin_dir, `inv dev.up`, and read the dump back",
            ],
        )

    def _clear_foreign_lock(self) -> None:
        """Remove a lock file left by a crash. PostgreSQL itself would wait for ever for a process or a thread that has
        the id by now; one that is a server on this data is left alone."""
        lock = self.data / "postmaster.pid"
        content = self.context.host.read_file(lock)
        if content is None or self.context.dry:
            return
        pid = content.partition(b"\n")[0].decode(errors="replace").strip()
        # an empty one, from a full disk, stops PostgreSQL too
        if not pid.isdigit() or not self.context.host.works_in(int(pid), self.data):
            self.context.host.remove(lock)

    def is_recovering(self) -> bool:
        """Check whether the server is in crash recovery, or was started a moment ago.

        From PostgreSQL 18 on, a fast shutdown that begins then never ends; an immediate one does, and the next start
        recovers (https://www.postgresql.org/docs/current/server-shutdown.html).
        """
        import psycopg2

        try:
            self.connect(password="", seconds=2).close()
        except psycopg2.OperationalError as error:
            return any(state in str(error) for state in ("is starting up", "in recovery mode", "not yet accepting"))
        except StackError:  # somebody else listens there
            return False
        return False

    # asking it

    def connect(
        self, *, pooled: bool = False, password: str | None = None, database: str | None = None, seconds: int = 5
    ) -> Connection:
        """A connection as the application's role, in autocommit; its own password and database unless another is given.
        ``pooled``: through PgBouncer. Logging in may take ``seconds``, at least 2.

        :raises StackError: it is not the service that listens there.
        :raises psycopg2.OperationalError: it could not be made.
        """
        from devstack.services.login import database_of, log_in, pooler_of

        connection = log_in(
            self.context,
            (pooler_of if pooled else database_of)(self.settings),
            user=self.settings.db.user,
            password=self.credentials.db_password if password is None else password,
            database=database or self.settings.db.name,
            seconds=seconds,
        )
        connection.autocommit = True
        return connection

    def _query(self) -> None:
        connection = self.connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        finally:
            connection.close()

    def accepts(self) -> None:
        """The server asks for a password, whether or not the role and database are there yet.

        :raises NotReady: it does not.
        """
        import psycopg2

        try:
            # none is sent, so that the server's log gets no failed login
            self.connect(password="").close()
        except StackError as error:
            raise NotReady(f"{error.what}: {error.why}") from None
        except psycopg2.OperationalError as error:
            if "no password supplied" not in str(error):
                raise NotReady(str(error).strip()) from None

    def answers(self) -> None:
        """A query as the application's role.

        :raises NotReady: it failed.
        """
        import psycopg2

        try:
            self._query()
        except StackError as error:
            raise NotReady(f"{error.what}: {error.why}") from None
        except psycopg2.Error as error:
            text = str(error).strip()
            if drifted := "password authentication failed" in text:
                text = f"the role {self.settings.db.user} has another password than the settings; inv db.start sets it"
            raise NotReady(text, final=drifted) from None

    # the wanted state inside

    def settle(self) -> bool:
        """Role, database, extensions; the role's password as in the settings. What is so already is only looked at, as
        the role itself: becoming the superuser takes a program, in a container as long as a server's start."""
        looks = not self._fresh and not self.context.dry
        if looks and (verifier := self._noted_verifier()) and self._is_settled():
            self._verifier, self.noted = verifier, True
            return True
        if self._fresh or (looks and not self._knows_role()):
            self._set_up_role()
        self.read_verifier()
        return False

    def _knows_role(self) -> bool:
        try:
            self.answers()
        except NotReady:
            return False
        return True

    def _is_settled(self) -> bool:
        """Check whether the extensions, the grant and the reader are there."""
        wanted = {self.settings.db.name: {*self.settings.db.extensions}}
        if self.tracks_statements:
            wanted[MAINTENANCE] = {STATEMENTS}
        settled: list[str] = []

        def look(database: str) -> None:
            if self._has(database, wanted[database]):
                settled.append(database)

        run_at_once([partial(look, database) for database in wanted], LOOKING_SECONDS)
        return len(settled) == len(wanted)

    def _has(self, database: str, extensions: set[str]) -> bool:
        import psycopg2

        try:
            connection = self.connect(database=database)
            try:
                with connection.cursor() as cursor:
                    cursor.execute(
                        "SELECT extname, pg_has_role('pg_monitor', 'USAGE')"
                        " AND EXISTS (SELECT FROM pg_roles WHERE rolname = %s"
                        " AND has_database_privilege(oid, current_database(), 'CONNECT')) FROM pg_extension",
                        [READER],
                    )
                    found = dict(cursor.fetchall())
            finally:
                connection.close()
        except (psycopg2.Error, StackError):
            return False
        return extensions <= found.keys() and all(found.values())

    @property
    def _note(self) -> Path:
        return self.context.paths.config / "db.verifier"

    def _noted_verifier(self) -> str:
        """The one that was read last, if it is of the password; empty otherwise."""
        verifier = (self.context.host.read_file(self._note) or b"").decode(errors="replace")
        return verifier if proves(verifier, self.credentials.db_password) else ""

    def verifier(self) -> str:
        """The role's SCRAM verifier as the server has it, which PgBouncer logs in with."""
        return self._verifier or self.read_verifier()

    def read_verifier(self) -> str:
        """The same, asked of the server now; database and extensions are put right with it."""
        self._verifier, self.noted = self._set_up_database(), False
        if not self.context.dry:
            self.context.write_file(self._note, self._verifier)
        return self._verifier

    def _set_up_role(self) -> None:
        db = self.settings.db
        values = {
            "pinning": PINNING,
            "user": literal(db.user),
            "verifier": literal(owner_verifier(self.credentials)),
            "name": literal(db.name),
        }
        script = string.Template(ROLE_SQL).substitute(values)
        existed = self._psql(MAINTENANCE, script, f"set up role {db.user} and database {db.name}")
        if "role existed" in existed and not self._fresh:
            console.note(
                f"the password of role {db.user} in {self.data.name} was not the one in the settings:"
                " changed on the role, in PgBouncer's userlist and for the application"
            )

    def _set_up_database(self) -> str:
        script = self.database_script()
        what = f"create the extensions of database {self.settings.db.name}"
        try:
            answer = self._psql(self.settings.db.name, script, what)
        except StackError as error:
            said = "\n".join(error.evidence)
            if not (found := re.search(r"extension (\S+) can't be created safely(?:.|\n)*HINT:  (inv .*)", said)):
                raise
            raise StackError(
                f"extension {found[1]} can't be created safely in a database that the application has been in",
                why="its script runs as the superuser, and could call functions of the application",
                fix=f"if you trust all of those: {found[2]}",
            ) from None
        return answer.strip().splitlines()[-1] if answer.strip() else "SCRAM-SHA-256$dry-run"

    def database_script(self) -> str:
        """Holds no password."""
        values = {
            "pinning": PINNING,
            "user": literal(self.settings.db.user),
            "reader": reader_script(),
            "extensions": "\n".join(f"{adding(e)} \\gexec" for e in self.settings.db.extensions),
            "closed": CLOSED,
            "tracking": f"\\connect {MAINTENANCE}\n{PINNING};\nSET client_min_messages = warning;\n"
            f"{adding(STATEMENTS)} \\gexec"
            if self.tracks_statements
            else "",
        }
        return string.Template(DATABASE_SQL).substitute(values)

    def socket_env(self, role: str, database: str) -> dict[str, str]:
        """Return the variables that make PostgreSQL's programs come in through the socket, which needs no password: its
        directory and pg_ident.conf say who may.

        Whoever else answers there, as the server's account can, gets none: libpq reads no ``~/.pgpass``, and refuses to
        log in (from version 16 on, https://www.postgresql.org/docs/current/libpq-connect.html, require_auth).
        """
        return {
            **self.programs.env,
            "PGHOST": str(self.sockets),
            "PGPORT": str(self.listens[1]),
            "PGUSER": role,
            "PGDATABASE": database,
            "PGPASSFILE": str(self.rules / NO_PASSFILE),
            "PGREQUIREAUTH": "none",
        }

    @property
    def pinned(self) -> str:
        """:data:`PINNED`, with the options that this server's version knows: it refuses a login with others."""
        options = [PINNED]
        if self.server_major >= 14:
            options.append("-c idle_session_timeout=0")
        if self.server_major >= 17:
            options.append("-c transaction_timeout=0")
        return " ".join(options)

    def admin(self, database: str) -> Command:
        """Return psql as the superuser. It may run fixed statements on the catalog only, after :data:`PINNING`: what
        evaluates an object or an expression of the application runs as the reader or the owner."""
        return self.as_superuser(PSQL, database)

    def as_superuser(
        self, words: Sequence[str], database: str, env: Mapping[str, str] | None = None, *, tty: bool = False
    ) -> Command:
        """Return one of PostgreSQL's programs with its arguments, on a database, as the superuser."""
        pinned = {**self.socket_env(SUPERUSER, database), "PGOPTIONS": self.pinned, "PGCLIENTENCODING": "UTF8"}
        return self._program(words, {**pinned, **(env or {})}, tty=tty)

    def as_reader(self, words: Sequence[str], database: str, env: Mapping[str, str] | None = None) -> Command:
        """Return the same as :data:`READER`."""
        options = f"{self.pinned} -c default_transaction_read_only=on"
        pinned = {**self.socket_env(READER, database), "PGOPTIONS": options, "PGCLIENTENCODING": "UTF8"}
        return self._program(words, {**pinned, **(env or {})})

    def as_owner(
        self, words: Sequence[str], database: str, env: Mapping[str, str] | None = None, *, tty: bool = False
    ) -> Command:
        """Return the same as the application's role."""
        return self._program(words, {**self.socket_env(self.settings.db.user, database), **(env or {})}, tty=tty)

    def as_loader(self, words: Sequence[str], database: str, env: Mapping[str, str] | None = None) -> Command:
        """Return the same as :data:`LOADER`."""
        return self._program(words, {**self.socket_env(LOADER, database), **(env or {})})

    @property
    def own_address(self) -> tuple[str, int]:
        """Host and port by which programs next to the server reach it over TCP."""
        return self.peer

    def write_passfile(self, content: str, path: Path, *, account: bool = False) -> None:
        """Write a password file where PostgreSQL's programs read it; with ``account`` those that load a dump."""
        self.context.write_file(path, content, account=account)

    def remove_passfile(self, path: Path) -> None:
        """Remove such a file again."""
        self.context.host.remove(path)

    def _program(self, words: Sequence[str], env: Mapping[str, str], *, tty: bool = False) -> Command:
        return self.context.exec(self.name, [self.programs.path(words[0]), *words[1:]], env, user=self.account, tty=tty)

    def programs_at_hand(self) -> AbstractContextManager[None]:
        """Have PostgreSQL's programs to run :meth:`reading` with, and :meth:`inward`, while this is open.

        :raises StackError: they are not there.
        """
        return contextlib.nullcontext()

    def reading(self, words: Sequence[str], *, own: bool = False) -> Command:
        """Return one of PostgreSQL's programs that reads files. Unless they are this environment's ``own``, it runs
        under the services' account where we are root. Its messages are in English, for
        :mod:`devstack.data.reading` to read."""
        command = self.as_owner(words, MAINTENANCE, ENGLISH)
        return command if own else self.context.runtime.as_account(command)

    def apart(self, command: Command) -> Command:
        """Have a program that loads a dump run under the services' account where we are root."""
        return self.context.runtime.as_account(command)

    @property
    def is_superuser(self) -> bool:
        """Whether the role that administers the server is a superuser."""
        return True

    new_limit = -1
    """CONNECTION LIMIT of a database that is being filled, once its owner may log in; -1 for none."""

    @property
    def loader(self) -> str:
        """Name of the role that loads a dump which this environment has not made."""
        return LOADER

    @property
    def makes_loader(self) -> bool:
        """Whether the role that administers the server may make that role."""
        return True

    def loader_login(self) -> str:
        """Return how the loader logs in, as options of ``CREATE ROLE``."""
        return "PASSWORD NULL"

    def admit_loader(self, database: str) -> None:
        """Have the server let the loader in, also one that was started by an earlier version of this tool.

        :raises StackError: its rules of access do not.
        """
        if self._admits_loader(database):
            return
        self._write_rules("pg_hba.conf", self._hba())
        self._write_rules("pg_ident.conf", self._ident())
        self.context.probe(self.ask(MAINTENANCE, "SELECT pg_reload_conf()"), LOOKING_SECONDS)
        deadline = time.monotonic() + RELOAD_SECONDS
        while not self._admits_loader(database):
            if time.monotonic() > deadline:
                raise StackError(
                    f"the role {LOADER}, which loads dumps of others, can't log in",
                    why=f"pg_hba.conf does not let it in as it lets in {READER}",
                    fix=f"add {LOADER} in templates/pg_hba.conf wherever {READER} is",
                )
            time.sleep(0.05)

    def _admits_loader(self, database: str) -> bool:
        look = self.apart(self.as_loader([*PSQL, "-c", "SELECT 1"], database))
        return self.context.probe(look, LOOKING_SECONDS).ok

    @property
    def restricts(self) -> bool:
        """Whether psql can be kept from obeying backslash commands."""
        major, minor = (*map(int, re.findall(r"\d+", self.programs.version)[:2]), 0)[:2]
        needed = RESTRICTS.get(major, 0 if major > max(RESTRICTS) else None)
        return needed is not None and minor >= needed

    def check_restricts(self) -> None:
        """Check that psql can be kept from obeying the backslash commands of a dump.

        :raises StackError: it is too old for that.
        """
        if not self.restricts:
            raise StackError(
                f"psql {self.programs.version} is too old to read a dump",
                why="it obeys commands that are hidden in one (CVE-2025-8714), and has no \\restrict against that",
                fix="update PostgreSQL to 14.19, 15.14, 16.10, 17.6, 18 or a later version"
                " (name it in db.bin_dir or db.image)",
            )

    @contextlib.contextmanager
    def inward(self, path: Path, *, own: bool = False) -> Iterator[Path]:
        """A file or folder of this machine, where PostgreSQL's programs find it. As root a copy, which the services'
        account can read, unless it is this environment's ``own``; see :meth:`reading`."""
        host = self.context.host
        if own or not host.is_root:
            yield path
            return
        with staged(self.context, path) as inside:
            for folder, _, files in os.walk(inside):
                for name in files:
                    host.own(Path(folder) / name, account=True)
                host.own(Path(folder), account=True)
            host.own(inside, account=True)
            host.own(inside.parent, account=True)
            yield inside

    @contextlib.contextmanager
    def outward(self, folder: Path) -> Iterator[Path]:
        """Where PostgreSQL's programs write what is to come into an empty folder of this machine."""
        yield folder

    @contextlib.contextmanager
    def receiving(self, folder: Path) -> Iterator[tuple[Path, Callable[[Command], Command]]]:
        """Yield where a program writes that names its files as the server tells it to, and how to start it; what it
        wrote is in an empty folder of this machine afterwards. Where we are root it runs under the services' account:
        whoever has that account can answer in the server's place.

        :raises NotPlain: it wrote something else than files and directories.
        """
        host = self.context.host
        if not host.is_root:
            yield folder, lambda command: command
            return
        host.own(folder, account=True)
        yield Path("."), lambda command: self.context.runtime.as_account(command, folder)
        for path, file in walk_plain(folder):  # each directory is ours before it is listed
            host.take(path if file is None else file.fileno())

    def ask(self, database: str, *statements: str) -> Command:
        """Return a command that runs statements as the superuser, each in a transaction of its own."""
        words = [word for statement in (PINNING, *statements) for word in ("-c", statement)]
        return Command(f"{self.admin(database)} {argv(words)}")

    def _psql(self, database: str, script: str, what: str) -> str:
        """Run SQL as the superuser. It travels in a 0600 file: it may hold a password."""
        file = self.context.paths.config / "setup.sql"
        self.context.write_file(file, script)
        try:
            result = self.context.run(Command(f"{self.admin(database)} < {argv([file])}"), what)
        finally:
            if not self.context.dry:
                self.context.host.remove(file)
        return result.stdout if result else ""

    def shell(self, *, admin: bool, command: str = "") -> Command:
        """Return psql for a person: as the application's role, or as the superuser. It asks for no password either."""
        words = ["psql", "-w", *(["-X", "-c", command] if command else [])]
        tty = not command and sys.stdin.isatty() and sys.stdout.isatty()
        become = self.as_superuser if admin else self.as_owner
        return become(words, self.settings.db.name, tty=tty)

    def hint(self, evidence: list[str]) -> str:
        text = "\n".join(evidence)
        if "unrecognized configuration parameter" in text or "invalid value for parameter" in text:
            return "correct db.parameters in invoke.yaml"
        if "could not create shared memory segment" in text or "Cannot allocate memory" in text:
            return "free memory, or lower db.max_connections and shared_buffers in db.parameters"
        if "Permission denied" in text and str(self.data) in text:
            return self.take_back_data()
        if "No space left on device" in text:
            return f"free some space on the disk of {self.data}"
        return f"look at the whole log: inv {self.label}.logs"


@contextlib.contextmanager
def staged(context: ContainerContext, path: Path) -> Iterator[Path]:
    """A copy of a file or folder that nobody else can change, for the time being.

    :raises StackError: it can't be read, or has something other than files and folders in it.
    """
    # with a name that no shell and no program takes for something else
    staging = context.paths.state / f"{STAGING}{secrets.token_hex(4)}"
    try:
        context.host.make_dir(staging, 0o700)
        try:
            copy_plain(path, staging / "content")
        except OSError as error:
            raise StackError(
                f"{path.name} could not be copied aside",
                why=f"{error.filename or path}: {error.strerror or error}",
                fix=f"have nothing but files and folders of one account in it, and room in {context.paths.state}",
            ) from None
        yield staging / "content"
    finally:
        context.host.remove(staging)


def check_text(text: str) -> None:
    """Check a text that goes to psql, which reads lines in pieces that end at a zero byte: what is quoted would not be.

    :raises StackError: it has one.
    """
    if "\0" in text:
        raise StackError("a text with a zero byte can't be sent to PostgreSQL", why=f"it is {text[:200]!r}")


def literal(text: str) -> str:
    """Return a text as an SQL literal (standard_conforming_strings is on since PostgreSQL 9.1).

    :raises StackError: it has a zero byte.
    """
    check_text(text)
    return "'" + text.replace("'", "''") + "'"


def identifier(text: str) -> str:
    """Return a name as an SQL identifier.

    :raises StackError: it has a zero byte.
    """
    check_text(text)
    return '"' + text.replace('"', '""') + '"'


def creating(extension: str, schema: str = "public") -> str:
    """Return a query for the statement that creates an extension in a closed database.

    :param schema: schema for its objects, unless its control file fixes another one.
    """
    return CREATING.format(name=literal(extension), schema=literal(schema))


def adding(extension: str) -> str:
    """Return a query for the statements that create an extension in the database of the session, if it is not there.

    Its script runs as the superuser, and may name a function without its schema: one of the same name that the
    application has there would be taken (https://www.postgresql.org/docs/current/extend-extensions.html, Security
    Considerations for Extension Scripts). So in a database that the application has been in, it runs where the
    application has nothing, or not at all.
    """
    return ADDING.format(name=literal(extension), direct=creating(extension), closed=CLOSED, aside=ASIDE)


def reader_script() -> str:
    """Return what makes :data:`READER`, for psql."""
    return string.Template(READER_SQL).substitute(reader=READER)


def _ident_quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


CREATING = """\
SELECT format('CREATE EXTENSION IF NOT EXISTS %I', {name}) || CASE
           WHEN EXISTS (SELECT FROM pg_available_extension_versions WHERE name = {name} AND schema IS NOT NULL) THEN ''
           ELSE format(' SCHEMA %I', {schema}) END"""

CLOSED = """\
EXISTS (SELECT FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba
         WHERE d.datname = current_database() AND d.datconnlimit = 0 AND r.rolsuper)"""
"""Condition: only superusers have been able to log in to the current database since it was created."""

ASIDE = "nv_extension"
"""Schema in which an extension is created before it is moved to its own."""

ADDING = """\
SELECT CASE
    WHEN {closed} OR v.name IS NULL OR (alone AND v.schema = 'pg_catalog') THEN ({direct})
    WHEN alone AND v.relocatable THEN format(
        'BEGIN; CREATE SCHEMA {aside}; CREATE EXTENSION %1$I SCHEMA {aside}; ALTER EXTENSION %1$I SET SCHEMA public;'
        ' DROP SCHEMA {aside}; COMMIT', v.name)
    WHEN alone AND to_regnamespace(quote_ident(v.schema)) IS NULL AND v.schema IS NOT NULL THEN format(
        'BEGIN; CREATE SCHEMA %2$I; CREATE EXTENSION %1$I; COMMIT', v.name, v.schema)
    ELSE format('DO %L', format('BEGIN RAISE EXCEPTION %L USING HINT = %L; END',
        format('extension %s can''t be created safely in a database that the application has been in', v.name),
        'inv db.shell --admin --command ' || quote_literal(format('CREATE EXTENSION %I', v.name)
            || CASE WHEN v.schema IS NULL THEN ' SCHEMA public' ELSE '' END || ' CASCADE'))) END
  FROM (VALUES ({name})) AS wanted(name) LEFT JOIN pg_available_extensions a USING (name)
       LEFT JOIN pg_available_extension_versions v ON v.name = a.name AND v.version = a.default_version,
       -- an extension's script also finds what is in the schemas of those that it builds on
       LATERAL (SELECT NOT EXISTS (
           SELECT FROM unnest(v.requires) AS r(name) LEFT JOIN pg_extension e ON e.extname = r.name
            WHERE e.extnamespace IS DISTINCT FROM 'pg_catalog'::regnamespace) AS alone) q
 WHERE NOT EXISTS (SELECT FROM pg_extension WHERE extname = {name})"""

ROLE_SQL = """\
$pinning;
-- neither a statement that fails nor one that is counted must leave the password anywhere
SET pg_stat_statements.track = none;
SET log_min_error_statement = panic;
SET log_statement = none;
-- nor does the role itself see it, which may read what others run
SET track_activities = off;
SELECT 'role existed' FROM pg_roles WHERE rolname = $user;
SELECT format('CREATE ROLE %I LOGIN', $user) WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = $user) \\gexec
SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', $user, $verifier) \\gexec
-- who came in by another password is out
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $user;
-- closed to the application until its extensions are there, which are the superuser's
-- template1 may have something of the application's: up to PostgreSQL 14 everybody may create there
SELECT format('CREATE DATABASE %I TEMPLATE template0 CONNECTION LIMIT 0', $name)
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = $name) \\gexec
"""

READER_SQL = """\
SELECT 'CREATE ROLE $reader' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '$reader') \\gexec
ALTER ROLE $reader LOGIN BYPASSRLS INHERIT NOCREATEDB NOCREATEROLE NOSUPERUSER NOREPLICATION PASSWORD NULL;
GRANT pg_read_all_data TO $reader;
SELECT format('GRANT CONNECT ON DATABASE %I TO $reader', current_database()) \\gexec
"""

DATABASE_SQL = """\
$pinning;
SET client_min_messages = warning;
SET pg_stat_statements.track = none;
$extensions
-- the statistics of all roles, for inv metrics and inv db.stats
SELECT format('GRANT pg_monitor TO %I', $user) \\gexec
$reader
SELECT format('ALTER DATABASE %1$$I OWNER TO %2$$I; ALTER DATABASE %1$$I CONNECTION LIMIT -1', name, $user)
  FROM current_database() AS name WHERE $closed \\gexec
SELECT rolpassword FROM pg_authid WHERE rolname = $user;
$tracking
"""
