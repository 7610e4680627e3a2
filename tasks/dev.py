"""The whole stack"""

from __future__ import annotations

from invoke import Context, Exit, task

from tasks import diagnosis, healing, hooks, lifecycle, report, session


@task(
    pre=[hooks.pre_up, lifecycle.api_start],
    post=[hooks.post_up],
    help={"timing": "also show each service's offset and time to ready"},
)
def up(c: Context, timing: bool = False) -> None:
    """Start the stack: database, PgBouncer, application."""
    stack = session.stack(c)
    if timing:
        report.timing(stack)
    report.endpoints(stack)


@task(pre=[hooks.pre_down, lifecycle.db_stop], post=[hooks.post_down])
def down(c: Context) -> None:
    """Stop the stack: application, PgBouncer, database."""


@task(help={"json": "the answer as JSON"})
def status(c: Context, json: bool = False) -> None:
    """Show every service's state, and whether it answers."""
    if code := report.show_status(session.stack(c).status(), as_json=json):
        raise Exit(code=code)


@task(help=report.LOGS_HELP)
def logs(c: Context, tail: int = 20, since: str = "", follow: bool = False, no_follow: bool = False) -> None:
    """Show all services' logs; follow them on a terminal."""
    report.logs(
        session.stack(c), ["db", "pgb", "api"], tail=tail, since=since, follow=report.following(follow, no_follow)
    )


@task(
    pre=[lifecycle.db_stop, lifecycle.api_start],
    help={"timing": "also show each service's offset and time to ready"},
)
def restart(c: Context, timing: bool = False) -> None:
    """Stop and start the stack."""
    stack = session.stack(c)
    if timing:
        report.timing(stack)
    report.endpoints(stack)


@task(
    optional=["watch"],
    help={"watch": "go on looking, every so many seconds (5 if not given) until Ctrl-C"},
    auto_shortflags=False,
)
def heal(c: Context, watch: str | bool = False) -> None:
    """Repair what is broken, without touching data."""
    if code := healing.heal(session.stack(c), every=report.watch_seconds(watch, default=5.0)):
        raise Exit(code=code)


@task(
    help={
        "output": "file or folder to write it to; otherwise it goes into the folder of logs",
        "json": "the listing as JSON",
    },
    auto_shortflags=False,
)
def bundle(c: Context, output: str = "", json: bool = False) -> None:
    """Collect a zip for a bug report, without secrets."""
    from datetime import datetime, timezone

    from devstack.bundle import write_bundle

    made = write_bundle(session.stack(c, looking=True), output, datetime.now(timezone.utc))
    diagnosis.show_bundle(made, as_json=json)
