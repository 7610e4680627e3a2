"""PostgreSQL judges its own parameters, before a server is stopped to be started with them.

``postgres -C NAME`` reads all parameters, prints one and ends; it opens no socket and writes no data
(https://www.postgresql.org/docs/current/app-postgres.html). Asked for one that depends on the others, it also looks
for contradictions between them and loads the preloaded libraries. For that it wants a data directory that no server
uses: it gets one of links to what is in the real one.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from invoke.runners import Result

from devstack.errors import StackError
from devstack.runtimes import Inside, ServiceSpec

if TYPE_CHECKING:
    from devstack.services.postgres import Postgres

COMPUTED = "shared_memory_size"
"""A parameter that depends on others; PostgreSQL has it since version 15."""
PLAIN = "max_connections"
"""One that every version has."""
LINKED = """\
scratch=$1 data=$2 auto=$3; shift 3
for path in "$data"/*; do
    case ${path##*/} in postmaster.* | "$auto") continue ;; esac
    [ ! -e "$path" ] || ln -s "$path" "$scratch/" || exit
done
exec "$@" -D "$scratch"
"""
"""Fill a directory with links to all of a data directory but its lock file, and run a command on that."""
AUTO = "postgresql.auto.conf"
"""Where ALTER SYSTEM writes."""
EMPTY = ("-c", "config_file=/dev/null")
OWN = """scratch=$(mktemp -d) && exec "$@" -D "$scratch" """
"""Run a command on an empty directory, in a container that goes with it."""


def check(db: Postgres, *, fresh: bool) -> None:
    """Have PostgreSQL judge the parameters that the database would be started with.

    :param fresh: whether its data directory is to be made anew: the configuration files in the present one are ignored.
    :raises StackError: it refuses them.
    """
    result = _ask(db, fresh=fresh)
    if not result.ok:  # the server may have been writing what was read
        result = _ask(db, fresh=fresh)
    if result.ok:
        return
    lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
    fatal = [line for line in lines if "FATAL: " in line or line.startswith("postgres: ")] or lines[-1:]
    why = fatal[0].partition("FATAL: ")[2] or fatal[0].partition("postgres: ")[2] if fatal else ""
    origin = db.settings.origin("db.parameters")
    in_file = "configuration file" in why
    raise StackError(
        "PostgreSQL would not start with these settings",
        why=why.strip() or f"it ended with exit code {result.exited}",
        evidence=[db.context.mask(line) for line in lines[-5:]] if in_file or not fatal else [],
        fix="correct that file" if in_file else f"correct db.parameters or the other settings of db ({origin})",
    )


def _ask(db: Postgres, *, fresh: bool) -> Result:
    programs, options = db.programs, [str(word) for word in db.spec().argv[3:]]
    beside = db.runs_programs()
    # data that are to go may be damaged; those of a server that runs are in order
    judged = beside and programs.major >= 15 and db.data_fits() and (not fresh or db.has_server())
    words = [programs.path("postgres"), "-C", COMPUTED if judged else PLAIN, *options]
    if fresh or not judged:
        words += EMPTY
    if not beside:
        return _in_a_container(db, words)
    with db.folders.scratch("check") as scratch:
        data = str(db.data) if judged else "/dev/null"
        line = ["sh", "-c", LINKED, "sh", str(scratch), data, AUTO if fresh else "", *words]
        env = {**programs.env, "LC_ALL": "C"}
        command = db.context.exec(db.name, line, env, user=db.account)
        return db.context.read(db.context.runtime.as_account(command))


def _in_a_container(db: Postgres, words: Sequence[str]) -> Result:
    """Ask in a container of its own, without the data."""
    spec = ServiceSpec(
        name=f"{db.name}-{secrets.token_hex(4)}",
        argv=["/bin/sh", "-c", OWN, "sh", *words],
        cwd=Path("/"),
        env={"LC_ALL": "C"},
        inside=Inside(image=db.settings.db.image, memory_mb=256, network=False),
    )
    with db.context.one_off(spec) as command:
        return db.context.read(command)
