"""nv-pgbouncer: PgBouncer in front of the database, its configuration rendered from settings."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from devstack.container import ContainerContext
from devstack.credentials import ADMIN, Credentials, admin_verifier, proves
from devstack.errors import StackError
from devstack.inherited import POSTGRES_VARIABLES
from devstack.providers import Programs
from devstack.runtimes import ServiceSpec
from devstack.services import NotReady
from devstack.services.configuration import items_of
from devstack.services.postgres import Postgres
from devstack.settings import Settings, reachable_address, with_port
from devstack.shell import Command
from devstack.templates import render

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812


class PgBouncer:
    """The connection pooler service."""

    label = "pgb"

    def __init__(
        self,
        context: ContainerContext,
        settings: Settings,
        credentials: Credentials,
        database: Postgres,
        find: Callable[[], Programs],
    ) -> None:
        self.context = context
        self.settings = settings
        self.credentials = credentials
        self.database = database
        self._find = find

    @functools.cached_property
    def programs(self) -> Programs:
        return self._find()

    @property
    def name(self) -> str:
        return self.settings.service_name("pgbouncer")

    @property
    def port(self) -> int:
        return self.settings.pgb.port

    @property
    def bind(self) -> str:
        return self.settings.pgb.bind

    @property
    def address(self) -> str:
        return with_port(self.bind, self.port)

    @property
    def ini(self) -> Path:
        return self.context.paths.config / "pgbouncer.ini"

    @property
    def userlist(self) -> Path:
        return self.context.paths.config / "userlist.txt"

    @property
    def folder(self) -> Path:
        """Where PgBouncer itself finds both files."""
        return self.context.paths.config

    @property
    def listens(self) -> tuple[str, int]:
        """What PgBouncer itself binds to."""
        return self.bind, self.port

    @property
    def peer(self) -> tuple[str, int]:
        """What the application reaches it by."""
        return reachable_address(self.bind), self.port

    # the service

    @property
    def stop_signal(self) -> str:
        """From 1.23 on SIGTERM waits for clients to leave: https://www.pgbouncer.org/usage.html#signals"""
        return "QUIT" if _version(self.programs.version) >= (1, 23) else "TERM"

    def spec(self) -> ServiceSpec:
        return ServiceSpec(
            name=self.name,
            argv=[self.programs.path("pgbouncer"), str(self.folder / self.ini.name)],
            cwd=self.context.paths.state,
            env={**self.programs.env, "TZ": "UTC"},  # its log has the local time, whose zone's name says too little
            unset=POSTGRES_VARIABLES,
            own_account=True,
            stop_signal=self.stop_signal,
            stop_seconds=10,
        )

    def configuration(self) -> Mapping[str, str]:
        ini = self.render_ini()
        values = {f"pgbouncer.ini {key}": value for key, value in _lines(ini).items()}
        rest = "\n".join(line for line in ini.splitlines() if "=" not in line or line.startswith((";", "#")))
        return {**items_of(self.spec()), **values, "pgbouncer.ini": rest}

    def render_ini(self) -> str:
        """pgbouncer.ini (https://www.pgbouncer.org/config.html)."""
        s, (host, port), (address, own_port) = self.settings, self.database.peer, self.listens
        return render(
            s.templates / "pgbouncer.ini",
            alias=_name(s.db.name),
            others=f"* = host={host} port={port}" if self.leads_to_others else "",
            db_host=host,
            db_port=port,
            db_name=_value(s.db.name),
            listen_addr=address,
            listen_port=own_port,
            auth_file=self.folder / self.userlist.name,
            admin=ADMIN,
            pool_mode=s.pgb.pool_mode,
            max_client_conn=s.pgb.max_client_conn,
            default_pool_size=s.pgb.default_pool_size,
            parameters="\n".join(f"{key} = {_plain(value)}" for key, value in s.pgb.parameters.items()),
        )

    def parameters(self) -> dict[str, str]:
        """The section [pgbouncer] as it is rendered."""
        return _parameters(self.render_ini())

    @property
    def leads_to_others(self) -> bool:
        """Whether other databases of the server, such as those of tests, are reached by their own names."""
        return _name(self.settings.db.name) != "*"

    def render_userlist(self) -> str:
        """userlist.txt: verifiers, no passwords. PgBouncer logs in to the server with what the client proves."""
        return self._userlist(self.database.verifier())

    def _userlist(self, verifier: str) -> str:
        return render(
            self.settings.templates / "userlist.txt",
            user=_quoted(self.settings.db.user),
            verifier=_quoted(verifier),
            admin=_quoted(ADMIN),
            admin_verifier=_quoted(admin_verifier(self.credentials)),
        )

    def questions(self) -> Sequence[Command]:
        return ()

    def check(self, *, fresh: bool = False) -> None:
        """Check its program, its templates, and let it read its configuration. Files that it opens after that, as those
        of TLS, are seen by a start alone.

        :raises StackError: it refuses its configuration.
        """
        self.spec()
        self._userlist("")
        self._check_apart(self.render_ini())

    def _check_apart(self, ini: str) -> None:
        """Do as :meth:`_check` does, with the program that it would be started with. There may be no userlist yet."""
        self._check(f"{ini}\n[pgbouncer]\nauth_file = /dev/null\n")

    def prepare(self) -> ServiceSpec:
        spec = self.spec()
        self.write_config()
        return spec

    def write_config(self) -> None:
        """Render both files; a configuration that PgBouncer would refuse never gets its final name.

        :raises StackError: with PgBouncer's own words.
        """
        ini = self.render_ini()
        self.context.write_file(self.userlist, self.render_userlist(), account=True)
        if (self.context.host.read_file(self.ini) or b"").decode() != ini:
            self._check(ini)
        self.context.write_file(self.ini, ini, account=True)  # also one that another account had

    def _check(self, ini: str) -> None:
        """Let PgBouncer itself read the configuration. It has no mode for this, but with nowhere to listen it reads
        everything, says so and ends."""
        file = self.folder / "pgbouncer-check.ini"
        self._put(file, nowhere(ini))
        if self.context.dry:
            return
        command = self.context.exec(self.name, [self.programs.path("pgbouncer"), str(file)], self.programs.env)
        result = self.context.read(self.context.runtime.as_account(command))
        self._take_away(file)
        self._judge(result.stdout + result.stderr)

    def _judge(self, answer: str) -> None:
        """:raises StackError: PgBouncer has said more than that it has nowhere to listen."""
        lines = [line for line in answer.splitlines() if " ERROR " in line or " FATAL " in line]
        complaints = [line for line in lines if "nowhere to listen" not in line]
        if complaints or not lines:
            raise StackError(
                "PgBouncer refuses its configuration",
                why="; ".join(line.split(" ", 5)[-1] for line in complaints[:1]) or "it gave no answer",
                evidence=complaints or answer.splitlines()[-5:],
                fix="correct the section pgb in invoke.yaml, or templates/pgbouncer.ini; nothing was changed",
            )

    def _put(self, file: Path, content: str) -> None:
        self.context.write_file(file, content, account=True)

    def _take_away(self, file: Path) -> None:
        self.context.host.remove(file)

    # asking it

    def answers(self) -> None:
        """A query to the database through PgBouncer, as the application's role.

        :raises NotReady: it failed.
        """
        import psycopg2

        try:
            connection = self.database.connect(pooled=True)
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1")
            finally:
                connection.close()
        except StackError as error:
            raise NotReady(f"{error.what}: {error.why}") from None
        except psycopg2.Error as error:
            text = str(error).strip()
            if drifted := "SASL authentication failed" in text or "password authentication failed" in text:
                text = f"its userlist has another password for {self.settings.db.user} than the settings; inv pgb.start"
            raise NotReady(text, final=drifted) from None

    def accepts(self) -> None:
        """A verifier that was noted down lets it in. The role may have got another since, also for the same password;
        then the server is asked for it.

        :raises NotReady: it does not answer.
        """
        if not self.database.noted:
            return
        try:
            self.answers()
        except NotReady as error:
            if not error.final:
                raise
            self.database.read_verifier()
            self.reload()

    def settle(self) -> bool:
        """Nothing: its state is its configuration. One whose verifier was noted down has answered to be accepted."""
        return self.database.noted

    def console(self, *, seconds: int = 5) -> Connection:
        """The admin console (https://www.pgbouncer.org/usage.html#admin-console), within at least 2 ``seconds``.

        :raises StackError: it can't be reached.
        """
        import psycopg2

        from devstack.services.login import log_in, pooler_of

        try:
            connection = log_in(
                self.context,
                pooler_of(self.settings),
                user=ADMIN,
                password=self.credentials.pgbouncer_password,
                database="pgbouncer",
                seconds=seconds,
            )
        except psycopg2.OperationalError as error:
            raise StackError(
                f"the admin console of {self.name} can't be reached at {self.address}",
                why=str(error).strip(),
                fix="inv pgb.start",
            ) from None
        connection.autocommit = True
        return connection

    def show(self, what: str) -> list[dict[str, Any]]:
        """The rows of a SHOW command, such as POOLS or STATS."""
        return self.show_all(what)[0]

    def show_all(self, *whats: str, seconds: int = 5) -> list[list[dict[str, Any]]]:
        """The rows of several SHOW commands, over one connection.

        :raises StackError: the admin console can't be reached.
        """
        connection = self.console(seconds=seconds)
        try:
            with connection.cursor() as cursor:
                return [self._rows(cursor, what) for what in whats]
        finally:
            connection.close()

    @staticmethod
    def _rows(cursor: Any, what: str) -> list[dict[str, Any]]:
        cursor.execute(f"SHOW {what}")
        columns = [column.name for column in cursor.description or []]
        # its counters are numeric without a fraction
        rows = ([int(v) if isinstance(v, Decimal) else v for v in row] for row in cursor.fetchall())
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def reload(self) -> list[str]:
        """Render again and have it read; the parameters that did not take effect.

        PgBouncer answers RELOAD even when it kept an old value, so SHOW CONFIG is compared.
        """
        self.write_config()
        if self.context.dry:
            return []
        connection = self.console()
        try:
            with connection.cursor() as cursor:
                cursor.execute("RELOAD")
        finally:
            connection.close()
        return [difference.key for difference in self.loaded_differently(self.show("CONFIG"))]

    def unpause(self) -> None:
        """Resume what is paused, enable what is disabled (https://www.pgbouncer.org/usage.html#process-controlling-commands)."""
        connection = self.console()
        try:
            with connection.cursor() as cursor:
                for row in self._rows(cursor, "DATABASES"):
                    for column, command in (("paused", "RESUME"), ("disabled", "ENABLE")):
                        if row.get(column):
                            cursor.execute(f"{command} {_ident(row['name'])}")
        finally:
            connection.close()

    def loaded_differently(
        self, config: list[dict[str, Any]], databases: list[dict[str, Any]] | None = None
    ) -> list[Difference]:
        """Where what runs is not what the settings say, from the answers to SHOW CONFIG and SHOW DATABASES."""
        loaded = {str(row["key"]): str(row["value"]) for row in config}
        wanted = _parameters(self.render_ini())
        found = [Difference(k, loaded[k], v) for k, v in wanted.items() if k in loaded and loaded[k] != v]
        alias, (host, port) = _name(self.settings.db.name), self.database.peer
        target = {"host": host, "port": str(port), "database": self.settings.db.name}
        for row in databases or []:
            if row["name"] == alias:
                found += [Difference(f"{k} of {alias}", str(row[k]), v) for k, v in target.items() if str(row[k]) != v]
        return found

    def written_differently(self) -> list[Difference]:
        """Where pgbouncer.ini is not as it was rendered: somebody edited it, or the settings have changed."""
        content = self.context.host.read_file(self.ini)
        if content is None:
            return [Difference("pgbouncer.ini", "missing", str(self.ini))]
        written, wanted = content.decode(errors="replace"), self.render_ini()
        if written == wanted:
            return []
        there, here = _lines(written), _lines(wanted)
        found = [Difference(k, there.get(k, "missing"), v) for k, v in here.items() if there.get(k) != v]
        found += [Difference(key, there[key], "absent") for key in there if key not in here]
        return found or [Difference("pgbouncer.ini", "other comments", "those of the template")]

    def userlist_problem(self) -> str:
        """Why userlist.txt would not let the application in; empty when it would. Asks nobody."""
        user, password = self.settings.db.user, self.credentials.db_password
        content = (self.context.host.read_file(self.userlist) or b"").decode(errors="replace")
        entries = dict(re.findall(r'^"((?:[^"]|"")*)" "((?:[^"]|"")*)"', content, re.MULTILINE))
        secret = entries.get(user.replace('"', '""'))
        if secret is None:
            return f"userlist.txt has no user {user}"
        # only ASCII passwords are their own normal form (SASLprep, RFC 4013)
        if password.isascii() and not proves(secret.replace('""', '"'), password):
            return f"the password of {user} in userlist.txt is not the one in the settings"
        return ""

    def hint(self, evidence: list[str]) -> str:
        text = "\n".join(evidence)
        if "password authentication failed" in text or "SASL" in text or "wrong password" in text:
            return "inv pgb.stop; inv pgb.start renders userlist.txt from the role's verifier again"
        if "DNS lookup failed" in text:
            return "containers do not find each other by name: podman needs the package aardvark-dns; then inv dev.up"
        return f"look at the whole log: inv {self.label}.logs"


class Difference(Struct, frozen=True):
    """A value that is not as the settings say."""

    key: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.key} is {self.found}, not {self.wanted}"


def nowhere(ini: str) -> str:
    """A configuration that listens nowhere: PgBouncer reads it, says so and ends."""
    return f"{ini}\n[pgbouncer]\nlisten_addr =\nunix_socket_dir =\n"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(".")[:2])


def _name(text: str) -> str:
    """A database's name as a key of the section [databases]; 1.18 has no quotes there, so * stands for other names."""
    return text if text.isascii() and text.replace("_", "").isalnum() else "*"


def _value(text: str) -> str:
    """A value of a connection string."""
    return "'" + text.replace("'", "''") + "'"


def _ident(text: str) -> str:
    """A database's name in a command of the admin console."""
    return '"' + text.replace('"', '""') + '"'


def _quoted(text: str) -> str:
    """A field of userlist.txt."""
    return '"' + text.replace('"', '""') + '"'


def _plain(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _parameters(ini: str) -> dict[str, str]:
    """The section [pgbouncer] of a rendered file."""
    return _lines(ini.partition("[pgbouncer]")[2])


def _lines(ini: str) -> dict[str, str]:
    """Keys and values, whatever their section."""
    pairs = (line.partition("=") for line in ini.splitlines() if "=" in line and not line.startswith((";", "#")))
    return {key.strip(): value.strip() for key, _, value in pairs}
