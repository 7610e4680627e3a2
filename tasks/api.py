"""The FastAPI application"""

from __future__ import annotations

from invoke import Context, task

from tasks import report, session
from tasks.lifecycle import api_start, api_stop

start, stop = api_start, api_stop


@task(help={"json": "the answer as JSON", "tail": "lines of the log to show below (0: none)"})
def status(c: Context, json: bool = False, tail: int = 5) -> None:
    """Show whether the application runs and is healthy."""
    report.service_status(session.stack(c), "api", as_json=json, tail=tail)


@task(help=report.LOGS_HELP)
def logs(c: Context, tail: int = 100, since: str = "", follow: bool = False, no_follow: bool = False) -> None:
    """Show the application's log; follow it on a terminal."""
    report.logs(session.stack(c), ["api"], tail=tail, since=since, follow=report.following(follow, no_follow))
