"""The whole stack"""

from __future__ import annotations

from invoke import Context, Exit, task

from devstack import console
from tasks import (
    adoption,
    diagnosis,
    editors,
    environments,
    healing,
    hooks,
    inventory,
    lifecycle,
    places,
    profiling,
    report,
    session,
    variables,
    watching,
)


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


@task(
    pre=[hooks.pre_down, lifecycle.db_stop],
    post=[hooks.post_down],
    auto_shortflags=False,
    help={"all": "every environment of this checkout"},
)
def down(c: Context, all: bool = False) -> None:  # noqa: A002
    """Stop the stack: application, PgBouncer, database."""
    if all:
        environments.stop_others(c)


@task(
    name="list",
    auto_shortflags=False,
    help={"all": "those of every checkout on this machine", "json": "the answer as JSON"},
)
def list_(c: Context, all: bool = False, json: bool = False) -> None:  # noqa: A002
    """Show the environments: state, ports, memory, disk."""
    environments.show_list(c, everywhere=all, as_json=json)


@task(help={"json": "the answer as JSON"})
def status(c: Context, json: bool = False) -> None:
    """Show every service's state, and whether it answers."""
    if code := report.show_status(session.stack(c, begins=False).status(), as_json=json):
        raise Exit(code=code)


@task(help=report.LOGS_HELP)
def logs(c: Context, tail: int = 20, since: str = "", follow: bool = False, no_follow: bool = False) -> None:
    """Show all services' logs; follow them on a terminal."""
    report.logs(
        session.stack(c, begins=False),
        ["db", "pgb", "api"],
        tail=tail,
        since=since,
        follow=report.following(follow, no_follow),
    )


@task(
    pre=[lifecycle.check_restart, lifecycle.db_stop, lifecycle.api_start],
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


@task
def watch(c: Context) -> None:
    """Apply changes of settings and templates as they come."""
    watching.watch(c)


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


@task(
    post=[up],
    auto_shortflags=False,
    help={
        "yes": "do not ask",
        "no_backup": "do not back up the data first: they are lost then",
        "logs": "remove the logs as well",
    },
)
def reset(c: Context, yes: bool = False, no_backup: bool = False, logs: bool = False) -> None:
    """Back up the data, remove them, and start anew."""
    from devstack import reset as resets

    stack = session.stack(c)
    going = resets.doomed(stack, logs=logs)
    report.ask_first(stack, report.doomed(stack, going, backup=not no_backup, logs=logs), task="dev.reset", yes=yes)
    resets.check(stack)
    stack.hook("pre_down")
    if no_backup:
        console.note("no backup is made of the data: --no-backup")
    elif made := resets.back_up(stack):
        inventory.made(stack, made)
    resets.remove(stack, logs=logs)
    stack.hook("post_down")
    for item in going:
        report.removed(stack, item)


@task(
    auto_shortflags=False,
    help={"yes": "do not ask", "no_backup": "do not back up the data first: they are lost then"},
)
def remove(c: Context, yes: bool = False, no_backup: bool = False) -> None:
    """Back up an environment's data, and remove it for good."""
    environments.remove(c, yes=yes, no_backup=no_backup)


@task(
    auto_shortflags=False,
    help={
        "to": "the runtime to run on from now on: apple, docker, podman or native",
        "back": "return to where it was before, with the data that it had there",
        "confirm": "remove the data where it was before",
    },
)
def move(c: Context, to: str = "", back: bool = False, confirm: bool = False) -> None:
    """Move the environment with its data to another runtime."""
    places.move(c, to, back=back, confirm=confirm)


@task(
    auto_shortflags=False,
    help={
        "save": "write all images into this file, for a machine without a registry",
        "load": "read them from such a file",
        "json": "the answer as JSON",
    },
)
def images(c: Context, save: str = "", load: str = "", json: bool = False) -> None:
    """Show the images of the services; save or load them."""
    places.images(c, save=save, load=load, as_json=json)


@task(
    auto_shortflags=False,
    iterable=["only"],
    help={
        "rps": "requests a second, at most 1000",
        "seconds": "how long for each target, at most 300",
        "connections": "how many may be on their way at the same time, at most 50",
        "sql": "the statement, directly and through PgBouncer; it may only read",
        "path": "of the application, otherwise that of its health",
        "only": "db, pgb or api; may be repeated",
        "reconnect": "a new connection for each request, as with applications that keep none",
        "write": "let the statement write, for real, again and again",
        "output": "file or folder to draw the latencies to; otherwise they go into the folder of logs",
        "json": "the answer as JSON",
    },
)
def load(
    c: Context,
    rps: float = 50.0,
    seconds: int = 10,
    connections: int = 8,
    sql: str = "SELECT 1",
    path: str = "",
    only: list[str] | None = None,
    reconnect: bool = False,
    write: bool = False,
    output: str = "",
    json: bool = False,
) -> None:
    """Measure latencies under load, with and without PgBouncer."""
    from datetime import datetime, timezone

    from devstack.profiling.comparison import Wanted, compare

    wanted = Wanted(rps, seconds, connections, sql, path, tuple(only or ()), write, reconnect)
    stack = session.stack(c)
    stack.check_all_go_on()
    profiling.show_load(compare(stack, wanted, output, datetime.now(timezone.utc)), as_json=json)


@task(
    auto_shortflags=False,
    help={
        "format": "compose, quadlet (Podman's units of systemd) or kubernetes (with CloudNativePG)",
        "output": "folder to write it to; export/FORMAT if not given",
        "image": "the application's image in Kubernetes",
        "db_image": "PostgreSQL's image for CloudNativePG",
        "storage": "the database's storage in Kubernetes: 1Gi if not given",
        "instances": "PostgreSQL's instances in Kubernetes: 1 if not given",
        "json": "what was written, as JSON",
    },
)
def export(
    c: Context,
    format: str = "",  # noqa: A002
    output: str = "",
    image: str = "",
    db_image: str = "",
    storage: str = "",
    instances: int = 0,
    json: bool = False,
) -> None:
    """Write the stack for Compose, Quadlet or Kubernetes."""
    from devstack import export as exports
    from devstack.export.kubernetes import Cluster

    exports.check_format(format)
    made = exports.export(session.on(c, "podman"), format, output, Cluster(storage, instances, image, db_image))
    places.exported(made, dry=c.config.run.dry, as_json=json)


@task(positional=["shell"], help={"shell": "bash, zsh or fish"}, auto_shortflags=False)
def completion(c: Context, shell: str) -> None:
    """Print the script that completes tasks and flags by Tab.

    The script says in its first lines where to put it. Once there it knows new tasks by itself.
    """
    from tasks import completion as scripts

    console.lines(scripts.answer(c, shell).rstrip())


@task(
    auto_shortflags=False,
    help={
        "path": "the project's folder, also without a flag; otherwise the git checkout's, or the one you are in",
        "app": "the application, where there are several: package.module:name",
        "force": "write invoke.yaml anew, though there is one",
        "json": "the answer as JSON",
    },
)
def init(c: Context, path: str = "", app: str = "", force: bool = False, json: bool = False) -> None:
    """Write the invoke.yaml of a project: dev.init [PATH].

    Its source is read, never run; what was found is explained in the file. With --dry it is only shown.
    """
    adoption.init(c, path, app=app, force=force, as_json=json)


@task(
    auto_shortflags=False,
    help={
        "vscode": "tasks, debugging, recommended extensions and a database connection for VS Code",
        "jetbrains": "run configurations and a data source for PyCharm",
        "folder": "the folder that the editor has open; otherwise the project's",
        "variables": "only write the application's variables, for a debugger that starts it",
        "json": "the answer as JSON",
    },
)
def ide(
    c: Context,
    vscode: bool = False,
    jetbrains: bool = False,
    folder: str = "",
    variables: bool = False,
    json: bool = False,
) -> None:
    """Set up an editor for the stack, in the files it has."""
    editors.ide(c, vscode=vscode, jetbrains=jetbrains, folder=folder, variables=variables, as_json=json)


@task(
    auto_shortflags=False,
    help={
        "format": "shell, for eval; dotenv, for a file; or json",
        "json": "the same as --format json",
        "direct": "URLs past PgBouncer, to the database itself",
    },
)
def env(c: Context, format: str = "shell", json: bool = False, direct: bool = False) -> None:  # noqa: A002
    """Print the variables that lead to the stack, with secrets.

    eval "$(inv dev.env)" sets them in a shell.
    """
    variables.show(c, "json" if json else format, direct=direct)


@task(name="exec", auto_shortflags=False, help={"direct": "URLs past PgBouncer, to the database itself"})
def exec_(c: Context, direct: bool = False) -> None:
    """Run a command with these variables: dev.exec -- pytest.

    It runs where it is called, with the programs of the application's interpreter (api.python) first on PATH.
    """
    variables.run(c, direct=direct)
