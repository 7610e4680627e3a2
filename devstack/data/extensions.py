"""Extensions of a new database: which of a dump's are created, and their creation, by name, before the dump is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from devstack.data.session import session
from devstack.errors import StackError
from devstack.services.postgres import identifier

if TYPE_CHECKING:
    from devstack.data.load import Source
    from devstack.stack import Stack

AVAILABLE = """
SELECT name, coalesce(requires, '{}') AS requires, trusted
  FROM pg_available_extension_versions JOIN pg_available_extensions USING (name) WHERE version = default_version
"""
"""Extensions that the server has, each with those that it builds on, and whether the owner of a database may create it
(https://www.postgresql.org/docs/current/extend-extensions.html, trusted)."""

IN_USE = "SELECT extname AS name, nspname AS schema FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace"


class Plan(Struct, frozen=True):
    """Extensions that a dump names, by whether they are created."""

    created: dict[str, str]
    """Schemas by the names of those that are created for it."""
    absent: list[str]
    """Those that the server does not have."""
    refused: list[str]
    """Those that only a superuser may create, and that neither the settings nor the database in use has."""


def in_use(stack: Stack) -> dict[str, str]:
    """Return the schemas of the extensions in the database in use, by the extensions' names."""
    with session(stack.db, stack.settings.db.name, "read the extensions of the database in use") as sql:
        return {row["name"]: row["schema"] for row in sql.rows(IN_USE)}


def planned(stack: Stack, source: Source) -> Plan:
    """Return which extensions to create for a dump. For one that this environment has not made: those that PostgreSQL
    lets the owner of a database create, those in ``db.extensions``, and, on this environment's own server, those of the
    database in use.

    :raises StackError: a backup with a manifest needs another one.
    """
    with session(stack.db, stack.settings.db.name, "read the extensions of the server") as sql:
        here = {row["name"]: row["schema"] for row in sql.rows(IN_USE)}
        available = {row["name"]: row for row in sql.rows(AVAILABLE)}
    needs = {name: row["requires"] for name, row in available.items()}
    wanted = _complete({**dict(source.extensions), **(here if source.kind == "data" else {})}, needs)
    absent = [name for name in wanted if name not in available]
    # what the database has on an external server, others have put there; dblink would lead a dump to it
    asked = [*stack.db.settings.db.extensions, *([] if stack.db.origin else here)]
    known = _complete(dict.fromkeys(asked, ""), needs)
    # what this environment's own database has, it has chosen, also where the backup goes to another server
    chosen = source.signed and source.origin in ("", stack.db.origin)
    refused = [] if chosen else _refused(wanted.keys() - known.keys(), available)
    if source.manifest and absent:
        raise StackError(
            f"{source.name} needs the extension {', '.join(absent)}",
            why=f"{stack.db.origin or 'this PostgreSQL'} does not have it; nothing was touched",
            fix="install it for that server"
            if stack.db.origin
            else "install it for this PostgreSQL, or name another one in db.bin_dir",
        )
    if source.manifest and refused:
        raise StackError(
            f"{source.name} needs the extension {', '.join(refused)}",
            why="only a superuser may create it, and this environment has not made the backup; nothing was touched",
            fix=permission(stack, refused),
        )
    created = {name: schema for name, schema in wanted.items() if name not in {*absent, *refused}}
    if not chosen:
        created = {name: _schema(schema) for name, schema in created.items()}
    return Plan(created, absent, refused)


def _schema(name: str) -> str:
    """Return the schema that an extension is created in: of PostgreSQL's own, only its control file may name one."""
    return "public" if name.startswith("pg_") or name == "information_schema" else name


def _refused(names: Iterable[str], available: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return those that are not trusted, or build on one of these."""
    others = [name for name in names if name in available]
    refused = {name for name in others if not available[name]["trusted"]}
    while more := {name for name in others if refused & {*available[name]["requires"]}} - refused:
        refused |= more
    return sorted(refused)


def permission(stack: Stack, names: list[str]) -> str:
    """Return what somebody does who trusts extensions, as a fix."""
    listed = ", ".join([*stack.db.settings.db.extensions, *names])
    return f"if you trust it, add it to db.extensions in invoke.yaml: [{listed}]"


def create(stack: Stack, schemas: Mapping[str, str], name: str, owner: str) -> list[str]:
    """Create extensions in an empty database that is still closed: those of ``schemas`` that the server has, with what
    they build on, and those of the settings. Only a superuser may, and their scripts meet no object of a dump, nor of
    the application.

    :param owner: role that gets the schemas which are made for them.
    :returns: what was created beyond the settings, in words.
    """
    with session(stack.db, name, "create the extensions of the restored database") as sql:
        needs = {row["name"]: row["requires"] for row in sql.rows(AVAILABLE)}
        wanted = _complete({**dict.fromkeys(stack.settings.db.extensions, "public"), **schemas}, needs)
        missing = [extension for extension in wanted if extension in needs]
        while missing:
            # those first that others build on
            extension = next((e for e in missing if not {*needs[e]} & {*missing}), missing[0])
            missing.remove(extension)
            if (schema := wanted[extension]) != "pg_catalog":
                sql.run(
                    "SET client_min_messages = warning;"
                    f" CREATE SCHEMA IF NOT EXISTS {identifier(schema)} AUTHORIZATION {identifier(owner)}"
                )
            sql.create_extension(extension, schema)
    own = {*stack.settings.db.extensions, "plpgsql"}
    return [f"{name} in schema {schema}" for name, schema in wanted.items() if name in needs and name not in own]


def _complete(wanted: dict[str, str], needs: Mapping[str, list[str]]) -> dict[str, str]:
    """Return extensions with what they build on, in their schemas."""
    complete: dict[str, str] = {}
    rest = list(wanted.items())
    while rest:
        name, schema = rest.pop(0)
        if name not in complete:
            complete[name] = schema
            rest += [(required, wanted.get(required, schema)) for required in needs.get(name, [])]
    return complete
