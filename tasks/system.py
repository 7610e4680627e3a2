"""The machine"""

from __future__ import annotations

from invoke import Context, Exit, task

from tasks import report, session


@task(help={"json": "the answer as JSON"})
def system_info(c: Context, json: bool = False) -> None:
    """Show what the stack needs and what this machine has."""
    from devstack.system import system_information

    if code := report.show_system(system_information(session.stack(c)), as_json=json):
        raise Exit(code=code)
