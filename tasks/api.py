"""The FastAPI application"""

from __future__ import annotations

from invoke import Context, task

from tasks import profiling, report, session
from tasks.lifecycle import api_start, api_stop

start, stop = api_start, api_stop


@task(help={"json": "the answer as JSON", "tail": "lines of the log to show below (0: none)"})
def status(c: Context, json: bool = False, tail: int = 5) -> None:
    """Show whether the application runs and is healthy."""
    report.service_status(session.stack(c, begins=False), "api", as_json=json, tail=tail)


@task(help=report.LOGS_HELP)
def logs(c: Context, tail: int = 100, since: str = "", follow: bool = False, no_follow: bool = False) -> None:
    """Show the application's log; follow it on a terminal."""
    report.logs(
        session.stack(c, begins=False), ["api"], tail=tail, since=since, follow=report.following(follow, no_follow)
    )


@task(
    auto_shortflags=False,
    help={
        "seconds": "how long to look, fewer on Ctrl-C",
        "rate": "samples a second",
        "output": "file or folder to write the flame graph to; otherwise it goes into the folder of logs",
        "sudo": "look as root, where the system lets nobody else",
        "json": "the answer as JSON",
    },
)
def profile(
    c: Context, seconds: int = 30, rate: int = 100, output: str = "", sudo: bool = False, json: bool = False
) -> None:
    """Draw a flame graph of the running application."""
    from datetime import datetime, timezone

    from devstack.profiling import sampler

    now = datetime.now(timezone.utc)
    stack = session.stack(c)
    stack.check_all_go_on()
    done = sampler.profile(stack, seconds=seconds, rate=rate, output=output, sudo=sudo, now=now)
    profiling.show_profile(done, as_json=json)
