"""The address of a database elsewhere: a PostgreSQL URL, whose password is shown nowhere."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from devstack import console
from devstack.errors import UsageError
from devstack.settings import is_loopback, with_port
from devstack.shell import typed

EXAMPLE = "postgresql://USER@HOST:5432/DATABASE"

PARAMETERS = {
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
    "require_auth": "PGREQUIREAUTH",
    "connect_timeout": "PGCONNECT_TIMEOUT",
}
"""What a URL may have after its question mark, and the variable that each is for PostgreSQL's programs
(https://www.postgresql.org/docs/current/libpq-envars.html)."""


@dataclass(frozen=True)
class Address:
    """Where a database is, and who comes in there. As text it has no password."""

    host: str
    port: int
    user: str
    database: str
    password: str = field(default="", repr=False)
    parameters: tuple[tuple[str, str], ...] = ()
    """Variables of PostgreSQL's programs."""

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def is_encrypted(self) -> bool:
        """Whether the URL asks for encryption: by default libpq goes without where the other end has none."""
        return dict(self.parameters).get("PGSSLMODE") in ("require", "verify-ca", "verify-full")

    @property
    def server(self) -> str:
        return with_port(self.host, self.port)

    @property
    def origin(self) -> str:
        """What a manifest says of where its rows came from."""
        return f"{self.server}/{self.database}"

    def __str__(self) -> str:
        return f"postgresql://{self.user}{':***' if self.password else ''}@{self.server}/{self.database}"


def address_of(text: str, environ: Mapping[str, str]) -> Address:
    """What ``--url`` says: a URL, or ``@FILE`` with one in its first line. A password that is not in it is looked for
    where libpq does: in ``PGPASSWORD``, then in ``PGPASSFILE`` or ``~/.pgpass``.

    :raises UsageError: no such file, or no URL of a PostgreSQL database. Its text is not shown: it may hold a password.
    """
    source = "--url"
    if text.startswith("@"):
        source = f"the first line of {text[1:]}"
        text = _first_line(Path(text[1:]).expanduser())
    found = _parse(text.strip(), source)
    return found if found.password else replace(found, password=_password(found, environ))


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline(8192)
        shared = path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(
            f"--url @{path} can't be read", why=why, fix=f"write the URL into the first line of a file: {EXAMPLE}"
        ) from None
    if shared:
        console.note(f"others may read {path}, which may hold a password: chmod 600 {typed(path)}")
    return line


def _parse(text: str, source: str) -> Address:
    def refuse(why: str) -> UsageError:
        return UsageError(f"{source} is not the URL of a database", why=why, fix=f"write it as {EXAMPLE}")

    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # its text may hold a part of the password
        raise refuse("it is malformed; in a password, / ? # @ and % are written %2F %3F %23 %40 %25") from None
    if not parts.scheme or "://" not in text:
        raise refuse("it does not begin with postgresql://")
    if parts.scheme not in ("postgresql", "postgres"):
        raise refuse(f"its scheme is {parts.scheme!r}, not postgresql")
    if "," in parts.netloc.rpartition("@")[2]:
        raise refuse("it names several hosts; one is needed, that of the server which takes writes")
    user, database = unquote(parts.username or ""), unquote(parts.path.removeprefix("/"))
    for value, what in ((parts.hostname, "host"), (user, "user"), (database, "database")):
        if not value:
            raise refuse(f"it names no {what}")
    if "#" in text or "/" in database:
        raise refuse("it goes on after the database; in a password, / ? # @ and % are written %2F %3F %23 %40 %25")
    if any(ord(char) < 32 or char == "\x7f" for char in unquote(text)):
        raise refuse("it has a control character in it")
    if port == 0:
        raise refuse("its port is 0")
    parameters = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in PARAMETERS:
            raise refuse(f"its parameter {name} is not taken; those that are: {', '.join(PARAMETERS)}")
        parameters.append((PARAMETERS[name], value))
    assert parts.hostname
    return Address(parts.hostname, port or 5432, user, database, unquote(parts.password or ""), tuple(parameters))


def _password(address: Address, environ: Mapping[str, str]) -> str:
    """https://www.postgresql.org/docs/current/libpq-pgpass.html"""
    if password := environ.get("PGPASSWORD"):
        return password
    path = Path(environ.get("PGPASSFILE") or Path(environ.get("HOME") or Path.home()) / ".pgpass")
    try:
        if not path.is_file():
            return ""
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            console.note(f"{path} is not looked at, as in libpq: others may read it; chmod 600 {typed(path)}")
            return ""
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    wanted = (address.host, str(address.port), address.database, address.user)
    for line in lines:
        # a colon or a backslash in a field has a backslash before it
        fields = [re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"((?:\\.|[^\\:])*)(?::|$)", line)]
        if (
            not line.startswith("#")
            and len(fields) >= 5
            and all(given in ("*", value) for given, value in zip(fields, wanted, strict=False))
        ):
            return fields[4]
    return ""
