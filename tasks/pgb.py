"""PgBouncer"""

from __future__ import annotations

from invoke import Context, task

from devstack import console
from devstack.errors import StackError
from tasks import report, session
from tasks.lifecycle import pgb_start, pgb_stop

start, stop = pgb_start, pgb_stop


@task(help={"json": "the answer as JSON", "tail": "lines of the log to show below (0: none)"})
def status(c: Context, json: bool = False, tail: int = 5) -> None:
    """Show whether PgBouncer runs and reaches the database."""
    report.service_status(session.stack(c, begins=False), "pgb", as_json=json, tail=tail)


@task(help=report.LOGS_HELP)
def logs(c: Context, tail: int = 100, since: str = "", follow: bool = False, no_follow: bool = False) -> None:
    """Show PgBouncer's log; follow it on a terminal."""
    report.logs(
        session.stack(c, begins=False), ["pgb"], tail=tail, since=since, follow=report.following(follow, no_follow)
    )


@task(help={"json": "the answer as JSON"})
def stats(c: Context, json: bool = False) -> None:
    """Show pools, waiting clients and traffic."""
    from devstack.services.statistics import pooler_statistics

    stack = session.stack(c, begins=False)
    report.require_not_frozen(stack, "pgb")
    report.statistics(pooler_statistics(stack.pgb), as_json=json)


@task
def reload(c: Context) -> None:
    """Render PgBouncer's configuration again and have it read."""
    stack = session.stack(c)
    report.require(stack, "pgb")
    kept = stack.reload_pooler()
    if kept:
        raise StackError(
            f"{stack.pgb.name} kept the old value of {', '.join(kept)}",
            why="these take effect at a start only",
            fix="inv pgb.stop api.start (clients are disconnected)",
        )
    if not stack.context.dry:
        console.out(f"{stack.pgb.name}  configuration read again, nothing differs from {stack.pgb.ini}")
