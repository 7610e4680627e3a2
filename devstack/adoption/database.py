"""How a project's people have named its database, and the driver that its URL names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from devstack.adoption import migrations, variables
from devstack.adoption.findings import Found
from devstack.adoption.names import called
from devstack.settings import RESERVED_DATABASES, RESERVED_USERS

if TYPE_CHECKING:
    from devstack.adoption.survey import Survey

POSTGRES_PORT = 5432


def hints(survey: Survey) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Where people have said how the database is called, each with what it says."""
    for service in survey.services:
        if service.is_postgres:
            env = service.environment
            given = {"db_name": env.get("POSTGRES_DB", ""), "db_user": env.get("POSTGRES_USER", "")}
            yield f"service {service.name} in {service.file}", given
    for file, values in ((".env", survey.dotenv), (survey.example_file, survey.example)):
        for name, value in values.items():
            role = variables.role_of(name)
            if role:
                yield f"{name} in {file}", variables.url_parts(value) if role == "database_url" else {role: value}
    for one in survey.read.values():
        if (role := variables.role_of(one.name)) and one.default:
            given = variables.url_parts(one.default) if role == "database_url" else {role: one.default}
            yield f"the default of {one.name} in {survey.tree.shown(one.path)}", given


def database(survey: Survey) -> Iterator[Found]:
    """The settings of the section ``db``: names that PostgreSQL or PgBouncer keep for themselves are not taken."""
    fallback = re.sub(r"\W+", "_", survey.tree.root.name.lower(), flags=re.ASCII).strip("_")[:40] or "app"
    if fallback in RESERVED_DATABASES | RESERVED_USERS or fallback.startswith("pg_") or fallback[0].isdigit():
        fallback = f"app_{fallback}"
    named = hinted(survey, "db_name", RESERVED_DATABASES)
    name, why = named or (fallback, "the project's folder")
    yield Found("db.name", name, why)
    user = hinted(survey, "db_user", RESERVED_USERS)
    own = name if name not in RESERVED_USERS and not name.startswith("pg_") else fallback
    yield Found("db.user", *(user or (own, "as the database; no role of PostgreSQL's own")))
    for service in survey.services:
        if service.is_postgres:
            here = next((here for here, inside in service.ports if inside == POSTGRES_PORT), 0)
            if here >= 1024 and here not in (POSTGRES_PORT, 6432):  # the system's own PostgreSQL has the usual one
                yield Found("db.port", here, f"service {service.name} in {service.file}")
            break
    wanted = migrations.extensions(survey.tree)
    if any(service.is_postgres and "pgvector" in service.image for service in survey.services):
        wanted.setdefault("vector", "the image in the compose file")
    why = ", ".join(dict.fromkeys(wanted.values())) or "none is created or used"
    yield Found("db.extensions", list(wanted), why)


def hinted(survey: Survey, role: str, reserved: set[str]) -> tuple[str, str] | None:
    """A name that people have given, and where; None if nobody has, or none that can be taken."""
    for where, given in hints(survey):
        value = given.get(role, "")
        if value and value not in reserved and re.fullmatch(r"[\w-]{1,63}", value) and not value.startswith("pg_"):
            return value, where
    return None


def url_scheme(survey: Survey) -> tuple[str, str]:
    """With which driver its URLs are written, and why."""
    found = variables.schemes(survey.tree)
    if "=postgresql" in found:
        return "postgresql", "the application puts its driver in"
    for where, given in hints(survey):
        if (scheme := given.get("scheme", "")).startswith("postgres"):
            return scheme, where
    for scheme in found:
        if "+" in scheme and not scheme.startswith("="):
            return scheme, "as the source has it"
    engines = {called(call) for _, call in survey.names.calls} & {"create_async_engine", "create_engine"}
    drivers = ["asyncpg", "psycopg"] if "create_async_engine" in engines else ["psycopg2", "psycopg2-binary", "psycopg"]
    driver = next((d for d in drivers if engines and any(p.partition("[")[0] == d for p in survey.packages)), "")
    if driver in ("asyncpg", "psycopg"):
        return f"postgresql+{driver}", f"{driver} is among its packages"
    return "postgresql", ""
