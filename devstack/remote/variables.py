"""The variables by which a command or a shell here reaches a stack on another host, through the tunnel.

The host is not trusted: a variable may name a server that a program here sends a password to, or code that it runs. So
all of them are made here, of the settings here and the tunnel's ports. The host gives what is known there alone, and no
more of it than text that means nothing to a shell, an option parser, a URL, a path or a connection string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from devstack.credentials import Credentials
from devstack.errors import StackError
from devstack.services.application import Application
from devstack.settings import Settings
from devstack.variables import Login, variables_of

LOOPBACK = "127.0.0.1"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")
"""Name of a role or a database that a host may give: PostgreSQL takes 63 bytes."""
SECRET = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""Secret that a host may give. The generated ones have no other characters."""


def from_host(found: object, settings: Settings, *, direct: bool = False) -> dict[str, str]:
    """Return the variables that lead to a stack on another host.

    :param found: the host's :class:`Login`, as it came.
    :param settings: those of the project, with the tunnel's ports (see :func:`through`).
    :param direct: have the URLs lead past PgBouncer.
    :raises StackError: the host gives something else.
    """
    try:
        login = msgspec.convert(found, Login)
    except msgspec.ValidationError:
        raise StackError(
            "the host gives no login", why="what it answered is something else", fix="inv remote.check"
        ) from None
    db, api = settings.db, settings.api
    for setting, given, known, plain in (
        ("db.user", login.user, db.user, NAME),
        ("db.name", login.name, db.name, NAME),
        ("db.password", login.password, db.password, SECRET),
        ("api.jwt_secret", login.jwt_secret, api.jwt_secret, SECRET),
    ):
        if given != known and not plain.fullmatch(given):  # it may be the secret: not shown
            raise StackError(
                f"the host's {setting} is refused",
                why="it is not the one that is set here, and it is empty, too long, or has other characters than"
                " ASCII letters, digits, _ and -",
                fix=f"set {setting} in the project's invoke.yaml or .env, which go to the host",
            )
    settings = msgspec.structs.replace(settings, db=msgspec.structs.replace(db, user=login.user, name=login.name))
    credentials = Credentials(db_password=login.password, pgbouncer_password="", jwt_secret=login.jwt_secret)
    return variables_of(Application(settings, credentials), direct=direct)


def through(settings: Settings, ports: Mapping[str, int]) -> Settings:
    """Return the settings with the addresses of a tunnel: loopback and the tunnel's ports.

    :param ports: those of the tunnel, by service; the settings' own are kept for the others.
    """
    return msgspec.structs.replace(
        settings,
        **{
            label: msgspec.structs.replace(section, bind=LOOPBACK, port=ports.get(label, section.port))
            for label, section in (("db", settings.db), ("pgb", settings.pgb), ("api", settings.api))
        },
    )
