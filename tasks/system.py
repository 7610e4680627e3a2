"""The machine"""

from __future__ import annotations

from invoke import Context, Exit, task

from tasks import diagnosis, report, session


@task(help={"json": "the answer as JSON"})
def system_info(c: Context, json: bool = False) -> None:
    """Show what the stack needs and what this machine has."""
    from devstack.system import system_information

    if code := diagnosis.show_system(system_information(session.stack(c, looking=True)), as_json=json):
        raise Exit(code=code)


@task(
    optional=["watch"],
    help={
        "json": "the answer as JSON; with --watch one line for each reading",
        "prometheus": "the answer in Prometheus' text format, with the application's own metrics",
        "interval": "seconds that the figures under `now` are taken over",
        "plain": "bars and marks in ASCII",
        "watch": report.WATCH_HELP,
    },
    auto_shortflags=False,
)
def metrics(
    c: Context,
    json: bool = False,
    prometheus: bool = False,
    interval: str = "1",
    plain: bool = False,
    watch: bool = False,
) -> None:
    """Show requests, transactions, traffic, CPU and memory."""
    seconds = report.watch_seconds(watch)
    if prometheus:
        report.only("--prometheus", {"--json": json, "--watch": bool(seconds), "--plain": plain})
        code = report.show_exposition(session.stack(c, begins=False))
    else:
        span = report.seconds("--interval", interval, least=0.2) or 1.0
        code = report.show_metrics(
            session.stack(c, begins=bool(watch)), span=span, watch=seconds, as_json=json, plain=plain
        )
    if code:
        raise Exit(code=code)
