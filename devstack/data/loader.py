"""The role that loads a dump which this environment has not made.

It is made for one load, may create what it likes in the new database, and is a member of nothing: no statement and no
function of the dump reaches another database or another role. The new database itself stays that of the role which
administers the server: its settings are none of the dump's. What was loaded is given to the owner of the database in
use when that is replaced, and never for a proof or a merge: from then on the server runs it as the owner, also by
itself (autovacuum evaluates indexes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devstack.data.session import Session, session
from devstack.errors import StackError
from devstack.services.postgres import MAINTENANCE, identifier, literal

if TYPE_CHECKING:
    from devstack.stack import Stack

RIGHTS = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
BATCH = 200
"""Statements that are sent at once. Each is a transaction of its own: PostgreSQL has room for some thousand locks."""

RELATIONS = """
SELECT format('ALTER %s %s OWNER TO %I', CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                                                     WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END,
              oid::regclass, {owner}) AS statement
  FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_get_userbyid(relowner) = {role}
"""
DROPPING = """
SELECT CASE WHEN EXISTS (SELECT FROM pg_shdepend WHERE refobjid = r.oid AND refclassid = 'pg_authid'::regclass)
            THEN format('ALTER ROLE %I NOLOGIN PASSWORD NULL', rolname) ELSE format('DROP ROLE %I', rolname) END
           AS statement
  FROM pg_roles r WHERE rolname = {role} AND pg_has_role(r.oid, 'MEMBER')
"""
"""Asks for the statement that drops the role, or locks it out where something belongs to it."""
OWNER_OF_PUBLIC = "SELECT pg_get_userbyid(nspowner) AS owner FROM pg_namespace WHERE nspname = 'public'"


def make(stack: Stack, name: str) -> None:
    """Make the role, which may create what it likes in a new database; :func:`admit` lets it in.

    :raises StackError: it could not be made.
    """
    db, role = stack.db, identifier(stack.db.loader)
    with session(db, MAINTENANCE, f"make the role that loads the dump into {name}") as sql:
        drop(stack, sql)
        if sql.rows(f"SELECT 1 FROM pg_roles WHERE rolname = {literal(db.loader)}"):
            raise StackError(
                f"there is a role {db.loader}, and something belongs to it",
                why="this name is taken by the role that loads foreign dumps: it is dropped and created for each load",
                fix="as the superuser: give it another name (ALTER ROLE … RENAME TO), or drop what it has, in the"
                " database where that is (DROP OWNED BY)",
            )
        sql.run(f"CREATE ROLE {role} {RIGHTS} {db.loader_login()}")
        sql.run(f"GRANT CREATE, TEMPORARY, CONNECT ON DATABASE {identifier(name)} TO {role}")
    if db.server_major >= 15:  # before, everybody may create in it
        with session(db, name, f"prepare database {name}") as sql:
            sql.run(f"ALTER SCHEMA public OWNER TO {role}")


def admit(stack: Stack, name: str) -> None:
    """Open the closed database to the role.

    :raises StackError: it can't log in.
    """
    with session(stack.db, MAINTENANCE, f"open database {name}") as sql:
        sql.run(f"ALTER DATABASE {identifier(name)} CONNECTION LIMIT {stack.db.new_limit}")
    stack.db.admit_loader(name)


def give(stack: Stack, name: str) -> None:
    """Give what the role has loaded to the owner of the database in use, and drop it.

    :raises StackError: PostgreSQL refused it.
    """
    db, owner = stack.db, stack.settings.db.user
    role, new_owner = identifier(db.loader), identifier(owner)
    with session(db, name, f"give database {name} to {owner}") as sql:
        sql.run("SET client_min_messages = warning")
        if not db.is_superuser:  # who takes an object must be allowed to create one in its schema
            sql.run(f"GRANT {role} TO {new_owner}")
        has_public = [row["owner"] for row in sql.rows(OWNER_OF_PUBLIC)] == [db.loader]
        relations = sql.rows(RELATIONS.format(owner=literal(owner), role=literal(db.loader)))
        statements = [row["statement"] for row in relations]
        for start in range(0, len(statements), BATCH):
            sql.run("; ".join(statements[start : start + BATCH]))
        sql.run(f"REASSIGN OWNED BY {role} TO {new_owner}; DROP OWNED BY {role}; DROP ROLE {role}")
        if has_public and db.server_major >= 15:
            sql.run("ALTER SCHEMA public OWNER TO pg_database_owner")


def drop(stack: Stack, sql: Session) -> None:
    """Drop the role, if there is one. One that still owns something is kept, but can't log in."""
    for row in sql.rows(DROPPING.format(role=literal(stack.db.loader))):
        sql.run(row["statement"])
