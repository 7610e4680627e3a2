"""The variables by which an application, a test or a person reaches the stack."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack.envfile import literal
from devstack.errors import StackError
from devstack.inherited import LIBPQ_VARIABLES

if TYPE_CHECKING:
    from devstack.services.application import Application
    from devstack.stack import Stack

ANSWERS = "NV_ANSWERS"
"""Digests of the variables that the stack has given. They are no settings when they come back: a shell that has
``eval "$(inv dev.env)"`` behind it would otherwise hold on to what the stack was then, and name PgBouncer's port as the
database's."""
DIGITS = 12
PLAIN = re.compile(r"[\w./:@%+,=-]*", re.ASCII)

AUTH_VARIABLE = "PGREQUIREAUTH"
"""Variable that libpq obeys from version 16 on; older ones ignore it
(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-REQUIRE-AUTH). It is no part of the URLs:
drivers such as asyncpg refuse a parameter that they do not know."""
REQUIRED_AUTH = "scram-sha-256"
"""Way in which a client must be asked for the password: the one by which the server proves itself too, and which gives
nothing to another listener."""


def with_required_auth(given: Mapping[str, str]) -> dict[str, str]:
    """Return variables with :data:`AUTH_VARIABLE`, unless they have another value for it.

    An empty value leaves it out: libpq refuses every way to log in where the variable is there and empty.
    """
    found = {AUTH_VARIABLE: REQUIRED_AUTH, **given}
    if not found[AUTH_VARIABLE]:
        del found[AUTH_VARIABLE]
    return found


def variables(stack: Stack, *, direct: bool = False) -> dict[str, str]:
    """What the application gets, for a command on this machine, and what libpq's programs read.

    The URLs lead through PgBouncer, with ``direct`` past it; ``DIRECT_URL`` and ``PGHOST`` to ``PGDATABASE`` always
    lead to the database itself, which programs such as pg_dump and createdb need.

    :raises StackError: there are no secrets yet, or they can't be read.
    """
    _check_secrets(stack)
    return variables_of(stack.api, direct=direct)


def variables_of(api: Application, *, direct: bool = False) -> dict[str, str]:
    """Return the same variables for an application, wherever its stack is."""
    here = api.urls(direct=True)
    given = {
        "DIRECT_URL": here["direct_url"],
        "PGHOST": here["db_host"],
        "PGPORT": here["db_port"],
        "PGUSER": here["db_user"],
        "PGPASSWORD": here["db_password"],
        "PGDATABASE": here["db_name"],
        "API_URL": api.address,
        **api.environment_here(direct=direct),
    }
    for name, value in {**api.places_here(), "PYTHONUNBUFFERED": "1"}.items():
        if given[name] == value:  # not one of the application's own
            del given[name]
    return {**given, ANSWERS: ",".join(_digest(name, value) for name, value in given.items())}


class Login(Struct, frozen=True):
    """What a command on another machine must know of a stack to log in to it."""

    user: str
    password: str
    name: str
    """The database's."""
    jwt_secret: str


def login(stack: Stack) -> Login:
    """Return what logs in to a stack.

    :raises StackError: there are no secrets yet, or they can't be read.
    """
    _check_secrets(stack)
    db, secrets = stack.settings.db, stack.api.credentials
    return Login(db.user, secrets.db_password, db.name, secrets.jwt_secret)


def surroundings(stack: Stack, environ: Mapping[str, str], *, direct: bool = False) -> dict[str, str]:
    """The whole environment of a command that is to run as the application does: its variables, its modules, and the
    programs of its own interpreter before others, where it has one."""
    api = stack.api
    left_out = {*LIBPQ_VARIABLES, *(("VIRTUAL_ENV", "PYTHONHOME") if stack.settings.api.python else ())}
    kept = {name: value for name, value in environ.items() if name not in left_out}
    places = api.places_here()
    if not stack.settings.api.python:
        del places["PATH"]
    return {**kept, **places, **variables(stack, direct=direct)}


def elsewhere(given: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a command here whose stack is on another host, with the variables that lead there."""
    return {**{name: value for name, value in environ.items() if name not in LIBPQ_VARIABLES}, **given}


def _check_secrets(stack: Stack) -> None:
    from devstack.credentials import credentials_of

    settings, path = stack.settings, stack.paths.secrets
    if path.exists():
        credentials_of(stack.context, settings)  # says what is wrong with them
    elif settings.db.password is None or settings.api.jwt_secret is None:
        raise StackError(
            "there are no secrets yet",
            why=f"this environment was never started: {path} does not exist",
            fix="inv dev.up",
        )


def without_answers(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that did not come from the stack itself; one that was changed since is a setting again."""
    marks = set(variables.get(ANSWERS, "").split(","))
    return {name: value for name, value in variables.items() if name != ANSWERS and _digest(name, value) not in marks}


def _digest(name: str, value: str) -> str:
    return hashlib.sha256(f"{name}={value}".encode(errors="surrogateescape")).hexdigest()[:DIGITS]


def shell_lines(given: Mapping[str, str], unset: Iterable[str] = ()) -> list[str]:
    """For ``eval`` in any POSIX shell: https://pubs.opengroup.org/onlinepubs/9699919799/utilities/V3_chap02.html"""
    gone = [f"unset {' '.join(unset)}"] if unset else []
    return [*gone, *(f"export {name}={shlex.quote(value)}" for name, value in given.items())]


def dotenv_lines(given: Mapping[str, str]) -> list[str]:
    """Return the lines of a ``.env`` file that python-dotenv reads back as they are."""
    return [f"{name}={value if PLAIN.fullmatch(value) else _quoted(literal(value))}" for name, value in given.items()]


def _quoted(value: str) -> str:
    if "\r" in value:  # as it is, it would be read as the end of a line
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r")
        return f'"{escaped}"'
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
