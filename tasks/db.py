"""PostgreSQL"""

from __future__ import annotations

from invoke import Context, Exit, task

from devstack import console
from tasks import profiling, report, session
from tasks.lifecycle import db_start, db_stop

start, stop = db_start, db_stop


@task(help={"json": "the answer as JSON", "tail": "lines of the log to show below (0: none)"})
def status(c: Context, json: bool = False, tail: int = 5) -> None:
    """Show whether PostgreSQL runs and answers."""
    report.service_status(session.stack(c, begins=False), "db", as_json=json, tail=tail)


@task(help=report.LOGS_HELP)
def logs(c: Context, tail: int = 100, since: str = "", follow: bool = False, no_follow: bool = False) -> None:
    """Show PostgreSQL's log; follow it on a terminal."""
    report.logs(
        session.stack(c, begins=False), ["db"], tail=tail, since=since, follow=report.following(follow, no_follow)
    )


@task(help={"json": "the answer as JSON"})
def stats(c: Context, json: bool = False) -> None:
    """Show sizes, connections and cache hits."""
    from devstack.services.statistics import database_statistics

    stack = session.stack(c, begins=False)
    report.require_not_frozen(stack, "db")
    report.statistics(database_statistics(stack.db), as_json=json)


@task(
    help={
        "command": "run this SQL and end",
        "admin": "as the superuser, rather than the application's role; write names with their schema",
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
        console.command(psql)
    elif code := stack.context.interact(psql):
        raise Exit(code=code)


@task(
    auto_shortflags=False,
    help={
        "seconds": "how long to watch, fewer on Ctrl-C",
        "top": "how many of the slowest statements are shown with their plans",
        "slower_than": "milliseconds from which on the plan of a call is logged; faster ones are planned afterwards",
        "timing": "also measure each step of the plans, which slows down every statement meanwhile",
        "output": "file or folder to write a full report to",
        "json": "the answer as JSON",
    },
)
def profile(
    c: Context,
    seconds: int = 10,
    top: int = 5,
    slower_than: int = 5,
    timing: bool = False,
    output: str = "",
    json: bool = False,
) -> None:
    """Show what statements take, and the slowest's plans."""
    from devstack.profiling import window

    stack = session.stack(c)
    report.require(stack, "db")
    path = profiling.report_path(stack, output, "db-profile")
    done = window.profile(stack, seconds=seconds, top=top, threshold_ms=slower_than, timing=timing)
    profiling.show_window(stack, done, path, top=top, as_json=json)
