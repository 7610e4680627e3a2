"""docs/troubleshooting.md: what each message means and what mends it, for a person who has just read one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from docs.messages import Message, messages


class Area(NamedTuple):
    """A part of the page: its title, what is said first, and the files whose messages belong to it."""

    title: str
    about: str
    files: tuple[str, ...] = ()


PORTS = Area("Ports", "Each service needs a port of its own: 5433, 6432 and 13370 unless the settings say otherwise.")
OTHERS = Area("Everything else", "")
HEALTH = "`inv health` shows it below {}, after `cause:` or `also:`. `inv dev.heal` repairs much of it by itself."
AREAS = (
    Area(
        "Starting and stopping",
        "What a service wrote before it ended is above the fix, and in `logs/`.",
        (
            "devstack/stack.py",
            "devstack/lock.py",
            "devstack/container.py",
            "devstack/reset.py",
            "devstack/health/heal.py",
        ),
    ),
    PORTS,
    Area(
        "The database",
        "",
        ("devstack/services/postgres.py", "devstack/services/login.py", "devstack/services/statistics.py"),
    ),
    Area("PgBouncer", "", ("devstack/services/pgbouncer.py", "tasks/pgb.py")),
    Area("The application", "", ("devstack/services/api.py",)),
    Area(
        "The programs of PostgreSQL and PgBouncer",
        "`inv system-info` lists each place with the reason that it was taken or passed over.",
        ("devstack/providers.py",),
    ),
    Area(
        "Container engines, images and volumes",
        "[containers.md](containers.md) says how they are used.",
        (
            "devstack/engines.py",
            "devstack/builds.py",
            "devstack/volumes.py",
            "devstack/move.py",
            "devstack/runtimes/",
            "devstack/services/",
            "tasks/places.py",
        ),
    ),
    Area(
        "Accounts, folders, disk and memory",
        "",
        ("devstack/host.py", "devstack/paths.py", "devstack/mishaps.py", "devstack/credentials.py"),
    ),
    Area(
        "Settings",
        "[settings.md](settings.md) says where they come from; the line `from` of the message says it of this one.",
        ("devstack/settings.py", "devstack/templates.py", "tasks/problems.py", "tasks/runstate.py"),
    ),
    Area(
        "Restores",
        "Whatever is said here, the database in use is as it was unless the message says otherwise.",
        tuple(
            f"devstack/data/{name}.py"
            for name in ("source", "restore", "merge", "switch", "cluster", "session", "recovery", "journal")
        ),
    ),
    Area("Scheduled backups", "", tuple(f"devstack/data/{name}.py" for name in ("schedule", "schedulers", "cron"))),
    Area(
        "Migrations, fixtures and made-up rows",
        "",
        (
            *(f"devstack/data/{name}.py" for name in ("migrations", "fixtures", "generate", "values")),
            "tasks/filling.py",
        ),
    ),
    Area(
        "Databases elsewhere",
        "What `--url` of `data.backup` and `data.restore` says.",
        (
            *(f"devstack/data/{name}.py" for name in ("address", "elsewhere", "transfer", "ownership")),
            "tasks/moving.py",
        ),
    ),
    Area("Backups", "", ("devstack/data/",)),
    Area(
        "Commands and flags",
        "`inv --help TASK` shows what a task takes.",
        ("tasks/", "devstack/logs.py", "devstack/bundle/"),
    ),
    Area("Health: the database", HEALTH.format("Database (nv-db)"), ("devstack/health/database.py",)),
    Area("Health: PgBouncer", HEALTH.format("PgBouncer (nv-pgbouncer)"), ("devstack/health/pooler.py",)),
    Area("Health: the application", HEALTH.format("API Server (nv-api)"), ("devstack/health/application.py",)),
    Area("Health: any service", HEALTH.format("the service"), ("devstack/health/",)),
    OTHERS,
)

HEAD = """\
<!-- Made from the source by `make docs`: what is changed here is lost. -->
# Troubleshooting

What a message means, and what mends it. `inv health` looks at everything at once and says the same of what it finds;
`inv dev.heal` repairs what can be repaired without touching data.

An error has up to three parts: `error:` is what failed, `cause:` why, `fix:` what you do about it. Search this page
for the words after `error:` or `cause:`. **Words in capitals** stand for your own names and numbers: search for those
beside them. SERVICE is `nv-db`, `nv-pgbouncer` or `nv-api`, and `db`, `pgb` or `api` in the name of a task or setting.

If a message is not here, or its fix does not help: `inv dev.logs` shows what the services say, `inv --debug TASK` where
a task fails, and `inv dev.bundle` collects what a bug report needs.
"""


class Entry(NamedTuple):
    """One message, with each cause that it may have and what mends that."""

    what: str
    ways: list[tuple[str, tuple[str, ...]]]


def page() -> str:
    """The whole page."""
    found = by_area(messages())
    lines = [HEAD]
    lines += [f"- [{area.title}](#{slug(area.title)})" for area in AREAS if area in found]
    for area in AREAS:
        if area not in found:
            continue
        lines += ["", f"## {area.title}"]
        lines += ["", area.about] if area.about else []
        for entry in found[area]:
            lines += ["", f"### {code(entry.what)}", "", *bullets(entry)]
    return "\n".join(lines) + "\n"


def by_area(found: Iterable[Message]) -> dict[Area, list[Entry]]:
    """The messages of each area in the order of the alphabet, those of the same words together. What says neither a
    cause nor a fix is left out: the message is all that there is to say."""
    areas: dict[Area, dict[str, list[tuple[str, tuple[str, ...]]]]] = {}
    for message in found:
        ways = areas.setdefault(area_of(message), {}).setdefault(message.what, [])
        if (message.why or message.fix) and (message.why, message.fix) not in ways:
            ways.append((message.why, message.fix))
    entries = {area: [Entry(what, _told(ways)) for what, ways in said.items() if ways] for area, said in areas.items()}
    return {area: sorted(some, key=lambda entry: _order(entry.what)) for area, some in entries.items() if some}


def area_of(message: Message) -> Area:
    """Where a message belongs."""
    if re.search(r"\bport\b.* (is taken|may not listen)|may not listen on port", message.what):
        return PORTS
    return next((area for area in AREAS if message.file.startswith(area.files or ("-",))), OTHERS)


def _told(ways: list[tuple[str, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...]]]:
    """Those that say most: a cause without its fix goes where the same cause has one."""
    fixed = {why for why, fix in ways if fix}
    some = [(why.removesuffix(":"), fix) for why, fix in ways if fix or why not in fixed]
    return sorted(some, key=lambda way: way[0].endswith("something else"))  # that one last


def _order(text: str) -> tuple[list[str], str]:
    """The order in which people look: by words, whatever marks and names there are."""
    return re.findall(r"[a-z]+", text), text


def bullets(entry: Entry) -> Iterator[str]:
    """Causes and fixes as a list: each fix below its cause, unless one is for all."""
    causes = list(dict.fromkeys(why for why, _ in entry.ways))
    fixes = list(dict.fromkeys(fix for _, fix in entry.ways))
    if len(causes) > 1 and len(fixes) > 1:
        for why in causes:
            yield f"- Cause: {plain(why) or 'another'}"
            yield from (f"  {line}" for line in _fixes([fix for cause, fix in entry.ways if cause == why and fix]))
        return
    yield from (f"- Cause: {plain(why)}" for why in causes if why)
    yield from _fixes([fix for fix in fixes if fix])


def _fixes(fixes: list[tuple[str, ...]]) -> Iterator[str]:
    for number, fix in enumerate(fixes):
        label = "- Fix:" if not number else "- or:"
        if len(fix) == 1:
            yield f"{label} {plain(fix[0])}"
        else:
            yield label
            yield from (f"  - {plain(line)}" for line in fix)


def plain(text: str) -> str:
    """A text that Markdown shows as it is; what is between backticks stays a command."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if i % 2 else re.sub(r"([<$\\]|\*(?=\w)|(?<=\w)\*)", r"\\\1", part) for i, part in enumerate(parts)
    )


def code(text: str) -> str:
    """A text as it is seen on the screen."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def slug(title: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
