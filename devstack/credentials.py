"""The secrets of an environment: generated once, kept in a 0600 file, overridden by the settings."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from devstack.container import ContainerContext
from devstack.errors import StackError
from devstack.saslprep import normal_form
from devstack.settings import Settings

ADMIN = "nv_admin"
"""The user of PgBouncer's admin console. No role in the database has this name."""

ITERATIONS = 4096
"""PostgreSQL's default (scram_iterations)."""


class Credentials(Struct, frozen=True, kw_only=True):
    """What must stay secret; the file holds the generated ones, also while the settings override them."""

    db_password: str
    pgbouncer_password: str
    """Of :data:`ADMIN`."""
    jwt_secret: str


def credentials_of(context: ContainerContext, settings: Settings, *, looking: bool = False) -> Credentials:
    """The environment's secrets; generated and stored at the first call, except in a dry run and by who only looks.

    :raises StackError: the file of secrets is not as it was written.
    """
    stored = _known(context) if looking else _stored(context)
    credentials = Credentials(
        db_password=settings.db.password or stored.db_password,
        pgbouncer_password=stored.pgbouncer_password,
        jwt_secret=settings.api.jwt_secret or stored.jwt_secret,
    )
    context.hide(credentials.db_password, credentials.pgbouncer_password, credentials.jwt_secret)
    return credentials


def _generated() -> Credentials:
    return Credentials(
        db_password=secrets.token_urlsafe(24),
        pgbouncer_password=secrets.token_urlsafe(24),
        jwt_secret=secrets.token_urlsafe(32),
    )


def _known(context: ContainerContext) -> Credentials:
    """The stored ones, or some that open nothing: whoever looks goes on with what there is."""
    try:
        return msgspec.json.decode(context.paths.secrets.read_bytes(), type=Credentials)
    except (OSError, msgspec.MsgspecError):
        return _generated()


def _stored(context: ContainerContext) -> Credentials:
    path = context.paths.secrets
    content = context.host.read_file(path)
    if content is None:
        content = msgspec.json.encode(_generated())
        if not context.dry:
            try:
                context.host.write_file(path, content + b"\n", 0o600, replace=False)
            except FileExistsError:  # another command's first moment too: there is one set of secrets
                content = path.read_bytes()
    try:
        return msgspec.json.decode(content, type=Credentials)
    except msgspec.MsgspecError as error:
        raise StackError(
            f"the file of secrets {path} is damaged",
            why=str(error),
            fix="remove it: new secrets are generated, and the database's password is set to the new one",
        ) from None


def scram_verifier(password: str, salt: bytes, *, iterations: int = ITERATIONS) -> str:
    """A SCRAM-SHA-256 verifier as PostgreSQL stores it (RFC 5802, RFC 7677).

    https://www.postgresql.org/docs/current/catalog-pg-authid.html
    """
    salted = hashlib.pbkdf2_hmac("sha256", normal_form(password), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    b64 = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${iterations}:{b64[0]}${b64[1]}:{b64[2]}"


MAX_ITERATION_DIGITS = 6
"""Most digits of a verifier's number of iterations, which whoever wrote it has chosen. PostgreSQL's own is 4096."""


def proves(secret: str, password: str) -> bool:
    """Whether a stored secret, a SCRAM verifier or a password as it is, is the one of this password."""
    match = re.fullmatch(r"SCRAM-SHA-256\$(\d+):([A-Za-z0-9+/=]+)\$\S+", secret)
    if not match:
        return hmac.compare_digest(secret.encode(), password.encode())
    if len(match[1]) > MAX_ITERATION_DIGITS:
        return False
    try:
        salt = base64.b64decode(match[2], validate=True)
    except binascii.Error:
        return False
    return secret == scram_verifier(password, salt, iterations=int(match[1]))


def admin_verifier(credentials: Credentials) -> str:
    """The verifier of the admin console's user. Its salt follows from the password, so that the rendered file is
    the same at every start; the password is random, so nothing is given away by it."""
    salt = hashlib.sha256(b"nv-devstack" + credentials.pgbouncer_password.encode()).digest()[:16]
    return scram_verifier(credentials.pgbouncer_password, salt)


def owner_verifier(credentials: Credentials) -> str:
    """A verifier of the application's role, for where no server can be asked for its own. Its salt follows from this
    environment's random secrets, so that it is the same each time, and nobody else's."""
    seed = "\0".join(["nv-devstack", credentials.pgbouncer_password, credentials.db_password])
    return scram_verifier(credentials.db_password, hashlib.sha256(seed.encode()).digest()[:16])


def pgpass_line(values: Mapping[str, object]) -> str:
    """A line of a password file (https://www.postgresql.org/docs/current/libpq-pgpass.html)."""
    fields = [
        str(values[key]).replace("\\", r"\\").replace(":", r"\:")
        for key in ("host", "port", "name", "user", "password")
    ]
    return ":".join(fields) + "\n"
