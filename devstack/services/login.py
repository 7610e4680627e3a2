"""Connections of ours to the database and to PgBouncer: a listener that is not the service gets no password.

Whoever has an account on this machine can listen on the port of a service that does not run. So before anything is
sent, the listener has to be the process that the runtime says it is; and libpq is told to take SCRAM alone, which shows
no password and by which the server proves itself too. Where neither of both can be had, there is no connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg2
from msgspec import Struct
from psycopg2.extensions import libpq_version

from devstack.container import ContainerContext
from devstack.errors import StackError
from devstack.services.postgres import NO_PASSFILE, TRANSACTIONS
from devstack.settings import Settings, reachable_address, with_port
from devstack.variables import REQUIRED_AUTH

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812

KNOWS_REQUIRE_AUTH = 160000
"""The first version of libpq that takes ``require_auth``."""

UNPROVEN = (
    "authentication method requirement",
    "server did not complete authentication",
    "incorrect server signature",
    "could not verify server signature",
)
"""Errors of libpq for a server that asks for the password in another way, or does not know it itself."""


class Place(Struct, frozen=True):
    """Address at which a service is reached from this machine."""

    label: str
    name: str
    bind: str
    port: int

    @property
    def host(self) -> str:
        return reachable_address(self.bind)

    @property
    def address(self) -> str:
        return with_port(self.host, self.port)


def database_of(settings: Settings) -> Place:
    """PostgreSQL itself."""
    return Place("db", settings.service_name("db"), settings.db.bind, settings.db.port)


def pooler_of(settings: Settings) -> Place:
    """PgBouncer."""
    return Place("pgb", settings.service_name("pgbouncer"), settings.pgb.bind, settings.pgb.port)


def log_in(
    context: ContainerContext, place: Place, *, user: str, password: str, database: str, seconds: int
) -> Connection:
    """Connect to a service, within at least 2 ``seconds``. An empty password is not sent, and asks whether one would be
    taken.

    :raises StackError: it is not the service that listens there, or it does not ask as it should.
    :raises psycopg2.OperationalError: the connection could not be made.
    """
    proven = bool(password) and check_listener(context, place)
    required: dict[str, Any] = {"require_auth": REQUIRED_AUTH} if libpq_version() >= KNOWS_REQUIRE_AUTH else {}
    if place.label == "db":  # libpq prints what the server warns of at the login, as it is; PgBouncer takes no options
        required["options"] = f"-c client_min_messages=error {TRANSACTIONS}"
    try:
        connection: Connection = psycopg2.connect(
            host=place.host,
            port=place.port,
            user=user,
            password=password if proven or "require_auth" in required else "",
            passfile=str(context.paths.config / NO_PASSFILE),
            dbname=database,
            connect_timeout=seconds,
            application_name="nv-devstack",
            **required,
        )
    except psycopg2.OperationalError as error:
        if any(words in str(error) for words in UNPROVEN):
            raise _unproven(context, place, " ".join(str(error).split())) from None
        raise
    return connection


def check_listener(context: ContainerContext, place: Place) -> bool:
    """Check that what listens on a service's port is that service.

    :returns: whether it is; if not, nothing listens there.
    :raises StackError: something else does, or the runtime can't say so.
    """
    if context.has_port(place.name, place.host, place.port):
        return True
    holder = context.host.port_holder(place.bind, place.port)
    if holder is None:
        return False
    if context.has_port(place.name, place.host, place.port):  # by now: it has just started
        return True
    raise _unproven(context, place, str(holder))


def _unproven(context: ContainerContext, place: Place, why: str) -> StackError:
    return StackError(
        f"what listens on {place.address} has not proven to be {place.name}; no password was sent to it",
        why=context.mask(why),
        fix=[
            f"see who it is: sudo ss -ltnp 'sport = :{place.port}'; end it, or set {place.label}.port; then inv dev.up",
            f"if {place.name} itself: scram-sha-256 is to be its only way of logging in (pg_hba.conf, auth_type)",
        ],
    )
