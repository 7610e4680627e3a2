"""The role that loads a dump which this environment has not made.

It is made for one load, owns the new database, and is a member of nothing: no statement and no function of the dump
reaches another database or another role. What it has loaded is given to the owner of the database in use, and the role
is dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from devstack.data.session import session
from devstack.errors import StackError
from devstack.services.postgres import MAINTENANCE, identifier

if TYPE_CHECKING:
    from devstack.stack import Stack

RIGHTS = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"


@contextlib.contextmanager
def made(stack: Stack, name: str) -> Iterator[None]:
    """Have the role, for a load into database ``name``; what it owns there is the owner's at the end.

    :raises StackError: it could not be made, can't log in, or could not be dropped.
    """
    db, role = stack.db, identifier(stack.db.loader)
    with db.loader_login() as login:
        with session(db, MAINTENANCE, f"make the role that loads the dump into {name}") as sql:
            sql.run(f"SET client_min_messages = warning; DROP ROLE IF EXISTS {role}")
            sql.run(f"CREATE ROLE {role} {RIGHTS} {login}")
        try:
            db.admit_loader()
            yield
        except BaseException:
            _drop_anyhow(stack, name)
            raise
        _drop(stack, name)


def _drop(stack: Stack, name: str) -> None:
    """Give what the role owns to the owner of the database in use, and drop it with its privileges."""
    role, owner = identifier(stack.db.loader), identifier(stack.settings.db.user)
    with session(stack.db, name, f"give database {name} to {stack.settings.db.user}") as sql:
        if not stack.db.is_superuser:
            # who takes an object must be allowed to create one in its schema
            sql.run(f"SET client_min_messages = warning; GRANT {role} TO {owner}")
        sql.run(f"REASSIGN OWNED BY {role} TO {owner}; DROP OWNED BY {role}; DROP ROLE {role}")


def _drop_anyhow(stack: Stack, name: str) -> None:
    """Drop the role after a load that failed. Where its database stays for a moment, the next load does it."""
    with contextlib.suppress(StackError):
        _drop(stack, name)
        return
    with contextlib.suppress(StackError), session(stack.db, MAINTENANCE, "drop the role of the load") as sql:
        sql.run(f"DROP ROLE IF EXISTS {identifier(stack.db.loader)}")
