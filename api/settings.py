"""The environment, read in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg2
from psycopg2.extensions import libpq_version, parse_dsn

from .errors import StartupError

URL_VARIABLES = ("NINAIVALAIGAL_DATABASE_URL", "DATABASE_URL")
HOSTS_VARIABLE = "NINAIVALAIGAL_HOSTS"
URL_SCHEMES = ("postgresql", "postgres")
LIBPQ_REQUIRES_AUTH = 160000
"""The first version of libpq that takes ``require_auth``."""
MEMORY_PROVIDERS = ("native",)
LOG_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
LEVELS = dict(zip(LOG_LEVELS, (50, 40, 30, 20, 10), strict=True))
LEVEL_NAMES = {"WARN": "WARNING", "FATAL": "CRITICAL", "NOTSET": "DEBUG", "TRACE": "DEBUG"}
"""Further names of levels that Python and uvicorn know, by the nearest one."""
SWITCH = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}


@dataclass(frozen=True)
class Settings:
    """What the environment says. Its ``repr`` shows no secret."""

    database_url: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    memory_provider: str
    log_level: str


def settings_from(environ: Mapping[str, str]) -> Settings:
    """Read and check every variable.

    :raises StartupError: a variable is missing or its value can't be used.
    """
    level = _choice({"LOG_LEVEL": _level(environ.get("LOG_LEVEL", ""))}, "LOG_LEVEL", LOG_LEVELS, "INFO")
    debug = SWITCH[_choice(environ, "NINAIVALAIGAL_DEBUG", tuple(SWITCH), "0")]
    return Settings(
        database_url=database_url(environ),
        jwt_secret=_jwt_secret(environ),
        memory_provider=_choice(environ, "MEMORY_PROVIDER", MEMORY_PROVIDERS, "native"),
        log_level="DEBUG" if debug else level,
    )


def _level(text: str) -> str:
    """Return the level that a name or a number stands for: the one that lets the same messages through."""
    name = text.strip().upper()
    if re.fullmatch(r"[+-]?[0-9]{1,9}", name):
        return next((level for level in reversed(LOG_LEVELS) if LEVELS[level] >= int(name)), "CRITICAL")
    return LEVEL_NAMES.get(name, text)


def hosts_from(environ: Mapping[str, str]) -> list[str]:
    """The names that the application answers to besides ``localhost``: words separated by commas."""
    return [name.strip() for name in environ.get(HOSTS_VARIABLE, "").split(",") if name.strip()]


def login(url: str) -> dict[str, Any]:
    """Parameters of :func:`psycopg2.connect` besides the URL: a listener that is not the database gets no password.

    With SCRAM the server proves that it knows the password too, and nobody is shown it. Whose database has another way
    says so in the URL: ``?require_auth=md5``. A libpq older than 16 can't be told.
    """
    if libpq_version() < LIBPQ_REQUIRES_AUTH or "require_auth" in parse_dsn(url):
        return {}
    return {"require_auth": "scram-sha-256"}


def database_url(environ: Mapping[str, str]) -> str:
    """The ``postgresql://`` URL; NINAIVALAIGAL_DATABASE_URL wins over DATABASE_URL.

    :raises StartupError: neither is set, or the one that is can't be read. The message does not quote it: the
        password is in there.
    """
    name = next((name for name in URL_VARIABLES if environ.get(name)), None)
    if name is None:
        raise StartupError(
            f"{URL_VARIABLES[0]} is not set (nor {URL_VARIABLES[1]}): set it to postgresql://user:password@host:port/database"
        )
    url = environ[name]
    if url.partition("://")[0] not in URL_SCHEMES:
        raise StartupError(f"{name} does not start with postgresql://")
    try:
        parse_dsn(url)
    except psycopg2.ProgrammingError:
        raise StartupError(
            f"{name} is not a valid URL: percent-encode the user's name and the password"
        ) from None  # libpq's message quotes the part that it did not understand
    return url


def _jwt_secret(environ: Mapping[str, str]) -> str:
    secret = environ.get("NINAIVALAIGAL_JWT_SECRET", "")
    if not secret:
        raise StartupError("NINAIVALAIGAL_JWT_SECRET is not set: set it to a long random text")
    return secret


def _choice(environ: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    """One of ``allowed``, upper and lower case alike; an empty variable is one that is not set."""
    value = environ.get(name) or default
    found = next((choice for choice in allowed if choice.casefold() == value.casefold()), None)
    if found is None:
        raise StartupError(f"{name} is {value!r}, which is not one of: {', '.join(allowed)}")
    return found
