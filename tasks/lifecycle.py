"""Start and stop of the three services: the order between them lives in these pre-tasks, and nowhere else."""

from __future__ import annotations

import time

from invoke import Context, task

from tasks import report, session


def _start(c: Context, label: str) -> None:
    stack = session.stack(c)
    report.started(stack, stack.start(label))


def _stop(c: Context, label: str) -> None:
    stack = session.stack(c, begins=False)
    if (
        stack.looking and not stack.context.dry
    ):  # it was never begun, and is not by this; but it may have lost its state
        states = stack.context.states(stack.names).values()
        if all(state.status == "stopped" and not state.defined for state in states):
            report.stopped(stack, label, "stopped", 0.0)
            return
        stack = session.stack(c)
    began = time.monotonic()
    was = stack.stop(label)
    report.stopped(stack, label, was.status, time.monotonic() - began)


@task
def check_restart(c: Context) -> None:
    """Check all settings."""
    session.stack(c).check_restart(everything=True)


@task
def check_pgb(c: Context) -> None:
    """Check all settings."""
    session.stack(c).check_start("pgb")


@task
def check_api(c: Context) -> None:
    """Check all settings."""
    session.stack(c).check_start("api")


@task(name="start")
def db_start(c: Context) -> None:
    """Start PostgreSQL, ready for queries."""
    _start(c, "db")


@task(name="start", pre=[check_pgb, db_start])
def pgb_start(c: Context) -> None:
    """Start PgBouncer, after the database."""
    _start(c, "pgb")


@task(name="start", pre=[check_api, pgb_start])
def api_start(c: Context) -> None:
    """Start the application, after PgBouncer."""
    _start(c, "api")


@task(name="stop")
def api_stop(c: Context) -> None:
    """Stop the application."""
    _stop(c, "api")


@task(name="stop", pre=[api_stop])
def pgb_stop(c: Context) -> None:
    """Stop PgBouncer, after the application."""
    _stop(c, "pgb")


@task(name="stop", pre=[pgb_stop])
def db_stop(c: Context) -> None:
    """Stop PostgreSQL, after PgBouncer; its data stay."""
    _stop(c, "db")
