"""PostgreSQL"""

from __future__ import annotations

from invoke import Context, Exit, task

from devstack import console
from tasks import report, session
from tasks.lifecycle import db_start, db_stop

start, stop = db_start, db_stop


@task(help={"json": "the answer as JSON", "tail": "lines of the log to show below (0: none)"})
def status(c: Context, json: bool = False, tail: int = 5) -> None:
    """Show whether PostgreSQL runs and answers."""
    report.service_status(session.stack(c), "db", as_json=json, tail=tail)


@task(help=report.LOGS_HELP)
def logs(c: Context, tail: int = 100, since: str = "", follow: bool = False, no_follow: bool = False) -> None:
    """Show PostgreSQL's log; follow it on a terminal."""
    report.logs(session.stack(c), ["db"], tail=tail, since=since, follow=report.following(follow, no_follow))


@task(help={"json": "the answer as JSON"})
def stats(c: Context, json: bool = False) -> None:
    """Show sizes, connections and cache hits."""
    from devstack.services.statistics import database_statistics

    report.statistics(database_statistics(session.stack(c).db), as_json=json)


@task(
    help={
        "command": "run this SQL and end",
        "admin": "as the superuser, rather than the application's role",
    },
    auto_shortflags=False,
)
def shell(c: Context, command: str = "", admin: bool = False) -> None:
    """Open psql on the database."""
    stack = session.stack(c)
    stack.lock.release()
    report.require(stack, "db")
    psql = stack.db.shell(admin=admin, command=command)
    if stack.context.dry:
        console.out(psql)
    elif code := stack.context.interact(psql):
        raise Exit(code=code)
