"""Variables of the caller's environment that nothing we start may inherit.

They are meant for the caller's own programs: libpq's would lead our connections elsewhere, or break them, and Python's
would change or break the interpreters that we run. What a person wants the application to have goes into ``.env`` or
``api.env``, which are not the caller's environment.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

LIBPQ_VARIABLES = (
    *("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSERVICE"),
    *("PGSERVICEFILE", "PGOPTIONS", "PGAPPNAME", "PGCLIENTENCODING", "PGCONNECT_TIMEOUT", "PGTARGETSESSIONATTRS"),
    *("PGLOADBALANCEHOSTS", "PGREQUIREAUTH", "PGREQUIREPEER", "PGCHANNELBINDING", "PGMINPROTOCOLVERSION"),
    *("PGMAXPROTOCOLVERSION", "PGSSLMODE", "PGREQUIRESSL", "PGSSLNEGOTIATION", "PGSSLCOMPRESSION", "PGSSLCERT"),
    *("PGSSLKEY", "PGSSLCERTMODE", "PGSSLROOTCERT", "PGSSLCRL", "PGSSLCRLDIR", "PGSSLSNI"),
    *("PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION", "PGGSSENCMODE", "PGGSSDELEGATION", "PGGSSLIB"),
    *("PGKRBSRVNAME", "PGREALM", "PGOAUTHDEBUG", "PGOAUTHCAFILE", "PGDATESTYLE", "PGTZ", "PGGEQO", "PGTTY"),
    *("PGSYSCONFDIR", "PGLOCALEDIR"),
)
"""All that any libpq from 9 to 18 reads: https://www.postgresql.org/docs/current/libpq-envars.html"""

POSTGRES_VARIABLES = (
    *LIBPQ_VARIABLES,
    *("PGDATA", "PG_COLOR", "PG_COLORS", "PG_GRANDPARENT_PID", "PG_OOM_ADJUST_FILE", "PG_OOM_ADJUST_VALUE"),
)
"""And what PostgreSQL's programs read besides. psql's own (``PSQLRC``, ``PSQL_PAGER`` and the like) are left: they
matter at a terminal only, where they are the person's choice; all else that we run psql for is with ``-X``."""

PYTHON_PREFIX = "PYTHON"
"""Prefix of the interpreter's variables: https://docs.python.org/3/using/cmdline.html#environment-variables"""


def is_foreign(name: str) -> bool:
    """Whether a variable must not reach what we start."""
    return name in POSTGRES_VARIABLES or name.startswith(PYTHON_PREFIX)


def without_foreign(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without those variables."""
    return {name: value for name, value in environ.items() if not is_foreign(name)}


def take_out(environ: MutableMapping[str, str], prefixes: tuple[str, ...] = ()) -> dict[str, str]:
    """Remove those variables from an environment, and those that begin with one of the prefixes; return them."""
    return {name: environ.pop(name) for name in list(environ) if is_foreign(name) or name.startswith(prefixes)}
