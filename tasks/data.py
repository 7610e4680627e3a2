"""Backups and restores"""

from __future__ import annotations

from invoke import Context, Exit, task

from devstack import console
from devstack.errors import FAILED, StackError, UsageError
from tasks import filling, hooks, inventory, lifecycle, moving, replacement, session
from tasks.runstate import state_of

AS_SUPERUSER = (
    "restore also what is not the owner's, as it was: the dump's functions, checks and triggers run as superuser"
)
TRUST_CLUSTER = "take a cluster's files that another environment made: the server obeys all that is in them"


@task(
    pre=[hooks.pre_backup],
    post=[hooks.post_backup],
    auto_shortflags=False,
    help={
        "schema_only": "tables, functions and so on without rows",
        "data_only": "rows alone",
        "label": "a note to find it by",
        "format": "sql (compressed by gzip), custom or directory",
        "jobs": "processes that dump at the same time, with --format directory",
        "output": "another file or folder to write to",
        "incremental": "the cluster's files, from the second one on only what changed (PostgreSQL 17)",
        "no_verify": "do not read it back",
        "keep_remote": "leave a copy on the host that the stack is on, if that is another one",
        "url": "of another database: postgresql://USER@HOST:5432/DATABASE; or @FILE, whose first line has that",
        "json": "the answer as JSON",
    },
)
def backup(
    c: Context,
    schema_only: bool = False,
    data_only: bool = False,
    label: str = "",
    format: str = "sql",  # noqa: A002
    jobs: int = 1,
    output: str = "",
    incremental: bool = False,
    no_verify: bool = False,
    keep_remote: bool = False,
    url: str = "",
    json: bool = False,
) -> None:
    """Make a backup of the database, and prove it."""
    from devstack.data import backup as backups
    from devstack.data import incremental as increments

    if keep_remote:
        raise UsageError("--keep-remote is for a stack on another host", why="this one is here", fix="leave it out")
    if schema_only and data_only:
        raise UsageError("--schema-only and --data-only exclude each other", fix="leave both out for everything")
    if incremental and (schema_only or data_only or output or format != "sql"):
        raise UsageError("--incremental goes with --label, --no-verify and --json alone", fix="leave the others out")
    if format not in backups.FORMATS:
        raise UsageError(f"--format {format!r} is not known", fix="sql, custom or directory")
    kind = "schema" if schema_only else "data" if data_only else "full"
    request = backups.Request(kind, format, jobs, label, output, not no_verify, incremental=incremental)  # type: ignore[arg-type]
    request.check()
    if url and (incremental or data_only):
        raise UsageError(
            f"--url and {'--incremental' if incremental else '--data-only'} exclude each other",
            why="a database elsewhere is copied by a dump that has its tables",
            fix="leave out one of them",
        )
    if url and (address := moving.address(c, url)):
        made, stack = moving.backup(c, address, request), session.stack(c)
    else:
        stack = replacement.begin(c)
        made = (increments if incremental else backups).create(stack, request)
    if made and json:
        console.data(inventory.data(stack, made))
    elif made:
        inventory.made(stack, made)


@task(
    auto_shortflags=False,
    help={
        "file": "a backup's name or path; latest, as without it: the newest full dump",
        "all": "every backup of this environment",
        "deep": "restore it into a database of its own and count the rows",
        "as_superuser": AS_SUPERUSER,
        "trust_cluster": TRUST_CLUSTER,
        "json": "the answer as JSON",
    },
)
def verify(
    c: Context,
    file: str = "latest",
    all: bool = False,  # noqa: A002
    deep: bool = False,
    as_superuser: bool = False,
    trust_cluster: bool = False,
    json: bool = False,
) -> None:
    """Prove that a backup is whole."""
    from devstack.data import catalogue
    from devstack.data import verify as proof

    if (as_superuser or trust_cluster) and not deep:
        raise UsageError("--as-superuser and --trust-cluster go with --deep", fix="add --deep, or leave them out")
    stack = replacement.begin(c, running=deep)
    folder = catalogue.prepare(stack)
    found, unreadable = catalogue.survey(folder) if all else ([catalogue.pick(stack, file)], [])
    results = proof.verify_all(stack, found, deep=deep, as_superuser=as_superuser, trust_cluster=trust_cluster)
    if not inventory.verified(stack, results, unreadable, as_json=json):
        raise Exit(code=FAILED)


@task(
    name="list",
    help={
        "kept": "what restores kept instead: previous databases, and directories of previous clusters",
        "json": "the answer as JSON",
    },
)
def list_(c: Context, kept: bool = False, json: bool = False) -> None:
    """Show the backups of this environment."""
    from devstack.data import catalogue, recovery

    stack = session.stack(c, looking=True)
    if not stack.settings.wrong:
        try:
            recovery.put_right(stack)
        except StackError as error:  # the backups can be seen all the same
            console.note(f"a restore was cut off, and could not be put right: {error.what}: {error.why}")
    if kept:
        inventory.kept(stack, as_json=json)
        return
    folder = catalogue.folder_of(stack.settings)
    catalogue.check_closed(stack.context.host, stack.settings, folder, "data.dir")
    found, unreadable = catalogue.survey(folder)
    if json:
        rows = [inventory.data(stack, b) for b in found]
        damaged = [inventory.data(stack, other) for other in unreadable]
        console.data({"folder": str(folder), "backups": rows, "unreadable": damaged})
    else:
        inventory.listing(stack, [*found, *unreadable], folder)


@task(
    # after the file is judged, which needs no database: what is refused has touched nothing
    post=[
        lifecycle.check_api,
        hooks.pre_restore,
        lifecycle.db_start,
        replacement.safety_backup,
        replacement.switch_over,
        lifecycle.api_start,
        hooks.post_restore,
    ],
    auto_shortflags=False,
    help={
        "latest": "the newest full dump; this is what happens without flags",
        "file": "a backup's name (a cluster's copy, made by --incremental, is restored by it), or the path of a dump",
        "at": "the newest full dump from before a moment: '2026-11-23 10:00'; no cluster's copy",
        "choose": "choose from a list, on a terminal",
        "clean": "replace the database; this is what happens without flags",
        "merge": "add the backup's rows to what is there instead",
        "force": "also a dump without a manifest, or of a database with another name",
        "as_superuser": AS_SUPERUSER,
        "trust_cluster": TRUST_CLUSTER,
        "no_safety_backup": "do not back up what is there first",
        "url": "into another database: postgresql://USER@HOST:5432/DATABASE; or @FILE, whose first line has that",
        "yes": "with --url: replace a database that is not this environment's",
        "allow_remote": "with --url and --yes: also one on another machine",
        "json": "the answer as JSON",
    },
)
def restore(
    c: Context,
    latest: bool = False,
    file: str = "",
    at: str = "",
    choose: bool = False,
    clean: bool = False,
    merge: bool = False,
    force: bool = False,
    as_superuser: bool = False,
    trust_cluster: bool = False,
    no_safety_backup: bool = False,
    url: str = "",
    yes: bool = False,
    allow_remote: bool = False,
    json: bool = False,
) -> None:
    """Restore the database; what is there is kept."""
    from devstack.data import source

    if (yes or allow_remote) and not url:
        raise UsageError("--yes and --allow-remote go with --url", fix="leave them out: this environment's own is safe")
    if url and merge:
        raise UsageError(
            "--url and --merge exclude each other",
            why="a merge compares rows inside this environment's own server",
            fix="merge them into the stack, make a backup of that, and restore that with --url",
        )
    if as_superuser and (url or merge):
        raise UsageError(
            f"--as-superuser and {'--url' if url else '--merge'} exclude each other",
            why="it is for the whole of this environment's own database",
            fix="leave it out",
        )
    if clean and merge:
        raise UsageError("--clean and --merge exclude each other", fix="leave both out to replace the database")
    if sum([latest, bool(file), bool(at), choose]) > 1:
        raise UsageError("--latest, --file, --at and --choose exclude each other", fix="give one of them")
    if choose and json:
        raise UsageError("--choose and --json exclude each other", fix="name a backup: --file NAME")
    if url and (address := moving.address(c, url)):
        moving.restore(
            c,
            address,
            moving.Wanted(file, at, choose, force, not no_safety_backup, json),
            yes=yes,
            allow_remote=allow_remote,
        )
        raise Exit(code=0)  # what follows is for the environment's own database
    stack = replacement.begin(c, changes=True, running=False)
    picked = inventory.choose(stack) if choose else file
    found = source.choose(
        stack, file=picked, at=at, force=force, as_superuser=as_superuser, trust_cluster=trust_cluster
    )
    if merge and (found.kind == "schema" or found.layout == "cluster"):
        raise UsageError(f"{found.name} has no rows to merge", fix="name a full or a data backup")
    stack.quiet = True
    state_of(c).restore = replacement.Restore(found, merge, not no_safety_backup, json)
    if no_safety_backup:
        console.note("no backup is made of what is there: --no-safety-backup")


@task(
    post=[lifecycle.check_api, lifecycle.db_start, replacement.switch_back, lifecycle.api_start],
    help={"json": "the answer as JSON"},
    auto_shortflags=False,
)
def undo(c: Context, json: bool = False) -> None:
    """Put back the database that the last restore replaced."""
    stack = replacement.begin(c, changes=True, running=False)
    stack.quiet = True


@task(
    auto_shortflags=False,
    help={
        "days": "older than this; the default is data.retention_days",
        "keep": "never fewer than so many verified full ones",
        "dry_run": "only say which ones would go",
        "json": "the answer as JSON",
    },
)
def cleanup(c: Context, days: int = -1, keep: int = 1, dry_run: bool = False, json: bool = False) -> None:
    """Remove old backups, never the last good one, and leftovers."""
    from devstack.data import kept, retention

    stack = replacement.begin(c, running=False)
    days = stack.settings.data.retention_days if days == -1 else days
    if days < 0 or keep < 1 or days > 36_500:
        raise UsageError("--days is 0 to 36500, --keep is 1 or more")
    gone = retention.cleanup(stack, days=days, keep=keep, dry=dry_run)
    dry = dry_run or stack.context.dry
    copies = kept.clean_up(stack, dry=dry)
    inventory.removed(stack, gone, copies, days=days, dry=dry, as_json=json)


@task(positional=["name"], help={"name": "the backup's name or path, or latest"}, auto_shortflags=False)
def pin(c: Context, name: str) -> None:
    """Keep a backup whatever its age."""
    _pin(c, name, pinned=True)


@task(positional=["name"], help={"name": "the backup's name or path, or latest"}, auto_shortflags=False)
def unpin(c: Context, name: str) -> None:
    """Let a pinned backup go with the others."""
    _pin(c, name, pinned=False)


def _pin(c: Context, name: str, *, pinned: bool) -> None:
    from devstack.data import catalogue

    stack = replacement.begin(c, running=False)
    catalogue.check_closed(stack.context.host, stack.settings, catalogue.folder_of(stack.settings), "data.dir")
    backup = catalogue.pick(stack, name)
    if stack.context.dry:
        console.out(f"# {'pin' if pinned else 'unpin'} {backup.name}")
        return
    catalogue.change(stack, backup, pinned=pinned)
    console.out(f"{backup.name}  {'pinned: no cleanup removes it' if pinned else 'no longer pinned'}")


@task(
    optional=["down"],
    auto_shortflags=False,
    help={
        "status": "only show which are applied",
        "down": "take back the last one, or as many as it says",
        "no_backup": "make no backup first",
    },
)
def migrate(c: Context, status: bool = False, down: str | None = None, no_backup: bool = False) -> None:
    """Apply the application's migrations, after a backup."""
    from devstack.data import migrations

    request = filling.migration(status=status, down=down, no_backup=no_backup)
    stack = replacement.begin(c)
    migrations.check(stack, request)
    made = filling.backed_up(stack, request)
    migrations.run(stack, request, made)
    filling.migrated(stack, request)


@task(
    positional=["path"],
    auto_shortflags=False,
    help={
        "path": "an .sql or .csv file, or a folder of them",
        "again": "also apply those that have changed since they were applied",
        "json": "the answer as JSON",
    },
)
def seed(c: Context, path: str, again: bool = False, json: bool = False) -> None:
    """Apply SQL and CSV fixtures that are not applied yet."""
    from devstack.data import fixtures

    filling.seeded(fixtures.apply(replacement.begin(c), path, again=again), as_json=json)


@task(
    auto_shortflags=False,
    help={
        "rows": "how many, for each table",
        "seed": "a number that makes the same rows again; without it, others each time",
        "table": "the table, as schema.name; the default is memories",
        "all": "every table, parents first",
        "json": "the answer as JSON",
    },
)
def generate(
    c: Context,
    rows: str = "1000",
    seed: str = "",
    table: str = "",
    all: bool = False,  # noqa: A002
    json: bool = False,
) -> None:
    """Fill tables with made-up rows, the same for a seed."""
    from devstack.data import generate as generator

    request = filling.request(rows=rows, seed=seed, table=table, all_tables=all)
    if made := generator.generate(replacement.begin(c), request):
        filling.generated(made, as_json=json)


@task(
    auto_shortflags=False,
    help={
        "every": "daily, hourly, or a cron expression such as '30 3 * * mon-fri'",
        "at": "the time of day, with --every daily; 03:00 if left out",
        "remove": "take the entry out again",
        "status": "what is installed, and how it goes; also without any flag",
        "run": "what the host's scheduler calls: backup and cleanup, now",
        "json": "the answer as JSON",
    },
)
def schedule(
    c: Context,
    every: str = "",
    at: str = "",
    remove: bool = False,
    status: bool = False,
    run: bool = False,
    json: bool = False,
) -> None:
    """Have the host's scheduler make backups."""
    from devstack.data import schedule as schedules
    from devstack.data import schedulers

    if sum([bool(every), remove, status, run]) > 1:
        raise UsageError("--every, --remove, --status and --run exclude each other", fix="give one of them")
    if at and not every:
        raise UsageError("--at goes with --every daily", fix=f"inv data.schedule --every daily --at {at}")
    wanted = schedules.when(every, at) if every else None
    stack = replacement.begin(c, running=False) if every or remove or run else session.stack(c, looking=True)
    if run:
        schedules.run(stack)
        return
    scheduler = schedulers.find(stack)
    if wanted:
        schedules.install(stack, scheduler, *wanted)
    elif remove:
        inventory.unscheduled(schedules.remove(stack, scheduler), as_json=json)
        return
    if not stack.context.dry and inventory.schedule(stack, schedules.status(stack, scheduler), as_json=json):
        raise Exit(code=FAILED)
