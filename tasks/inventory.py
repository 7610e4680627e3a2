"""How the answers on backups look."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from devstack import console
from devstack.errors import StackError, UsageError, addressed, labelled
from devstack.shell import typed

if TYPE_CHECKING:
    from devstack.data.catalogue import Backup, Unreadable
    from devstack.data.kept import Kept
    from devstack.data.merge import Merged
    from devstack.data.restore import Restored, Undone
    from devstack.data.schedule import Status
    from devstack.data.transfer import Moved
    from devstack.data.verify import Result
    from devstack.stack import Stack

HOW = {"read": "read", "restore": "restored"}


def shown(stack: Stack, path: Path) -> str:
    """A path as short as it can be said from the project's folder."""
    relative = os.path.relpath(path, stack.settings.root)
    return str(path) if relative.startswith("..") else relative


def made(stack: Stack, backup: Backup) -> None:
    m = backup.manifest
    size = console.size(m.bytes) + (f" ({console.size(m.raw_bytes)} of SQL)" if m.raw_bytes else "")
    if m.layout == "cluster":
        held = f"what changed since {m.parent}" if m.parent else "the whole cluster"
    else:
        held = f"{_count(len(m.tables), 'table')}, {_count(m.rows, 'row')}"
    proof = "verified" if m.verified else console.paint("not verified", "warn")
    of = f"{m.origin}, " if m.origin else ""
    console.out(f"{shown(stack, backup.path)}  {of}{size}, {held}, {proof}, {console.duration(m.seconds)}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def data(stack: Stack, backup: Backup | Unreadable) -> dict[str, Any]:
    """Return a backup as JSON: its manifest with its path, and whether this environment has signed it."""
    import msgspec

    from devstack.data import catalogue

    if isinstance(backup, catalogue.Unreadable):
        return {
            "path": str(backup.path),
            "file": backup.name,
            "state": backup.state,
            "why": backup.why,
            "fix": [addressed(line) for line in backup.fix],
        }
    signed = catalogue.is_signed(stack, backup)
    return {"path": str(backup.path), **msgspec.to_builtins(backup.manifest), "signed": signed}


def age(backup: Backup) -> str:
    from devstack.data.manifest import now

    seconds = (now() - backup.manifest.time).total_seconds()
    return "in the future" if seconds < -60 else console.duration(max(0, int(seconds))).replace(".00", "")


def listing(stack: Stack, found: Sequence[Backup | Unreadable], folder: Path) -> None:
    """Print every backup on a line, the newest last, and then what should be one and can't be used."""
    if not found:
        console.out(addressed(f"there is no backup in {shown(stack, folder)}; make one: inv data.backup"))
        return
    from devstack.data.catalogue import Unreadable

    rows: list[tuple[str, ...]] = []
    fixes: list[str] = []
    for backup in found:
        if isinstance(backup, Unreadable):
            rows.append((backup.name, "-", "-", "-", "-", "-", console.paint(_damage(backup), "bad")))
            fixes.append(_way_out(backup))
        else:
            rows.append(_row(stack, backup))
    header = ("backup", "kind", "age", "size", "rows", "verified (UTC)", "label")
    for line in console.table(rows, header, right=(3, 4)):
        console.out(line)
    for fix in fixes:
        console.out()
        console.lines(fix)


def _damage(unreadable: Unreadable) -> str:
    from devstack.data.catalogue import IN_WORDS

    state = IN_WORDS[unreadable.state]
    return unreadable.why if state in unreadable.why else f"{state}: {unreadable.why}"


def _way_out(unreadable: Unreadable) -> str:
    lines = [unreadable.name, *unreadable.fix]
    return labelled([("fix" if not number else "", addressed(line)) for number, line in enumerate(lines)])


def _row(stack: Stack, backup: Backup) -> tuple[str, ...]:
    m = backup.manifest
    verified = f"{HOW[m.verified.how]} {m.verified.when[:16].replace('T', ' ')}" if m.verified else "no"
    state = backup.damage and console.paint(f"damaged: {backup.damage}", "bad")
    of = f"of {m.origin}" if m.origin else ""
    pinned = "pinned" if m.pinned else ""
    notes = [m.label, of, *_origin(stack, backup), m.parent and f"on {m.parent}", pinned, state]
    count = f"{m.rows:,}" if m.layout != "cluster" else "-"
    return backup.name, m.kind, age(backup), console.size(m.bytes), count, verified, ", ".join(filter(None, notes))


def _origin(stack: Stack, backup: Backup) -> Iterator[str]:
    """Yield whose a backup is, where that is not this environment on this machine, and that damage would not show."""
    from devstack.data import catalogue

    m = backup.manifest
    signed = catalogue.is_signed(stack, backup)
    if m.fetched_from:
        yield f"from host {m.fetched_from}"
    elif not signed:
        yield f"foreign: {m.environment} on {m.machine}" if m.machine else "foreign"
    if not (signed or m.checksum):
        yield "unprotected"


def verified(
    stack: Stack,
    results: Sequence[Result],
    unreadable: Sequence[Unreadable],
    *,
    as_json: bool,
) -> bool:
    """Print what proving came to; whether all are whole."""
    from devstack.data.verify import Damaged, Unrestorable

    def state(error: StackError | None) -> str:
        if isinstance(error, Unrestorable):
            return "unrestorable"
        return "damaged" if isinstance(error, Damaged) else "unchecked" if error else "whole"

    if as_json:
        rows = [
            {
                **data(stack, result.backup),
                "state": state(result.error),
                "damage": result.error.why if result.error else None,
                "recorded": not (result.error or result.unrecorded),
            }
            for result in results
        ]
        rows += [{**data(stack, other), "damage": other.why, "recorded": False} for other in unreadable]
        console.data({"backups": rows})
    else:
        for result in results:
            m = result.backup.manifest
            if result.error:
                words = {
                    "damaged": "damaged",
                    "unrestorable": "whole, could not be restored",
                    "unchecked": "could not be checked",
                }
                word = console.paint(words[state(result.error)], "bad")
            else:
                assert m.verified
                word = {"read": "whole", "restore": "whole, restored and counted"}[m.verified.how]
            console.out(f"{result.backup.name}  {word}")
        for other in unreadable:
            console.out(f"{other.name}  {console.paint(_damage(other), 'bad')}")
        for other in unreadable:
            console.out()
            console.lines(_way_out(other))
    return all(result.error is None for result in results) and not unreadable


def kept(stack: Stack, *, as_json: bool) -> None:
    """Print what restores have kept, and what has the name of it."""
    from devstack.data import kept as copies

    found = copies.find(stack, sizes=True)
    if as_json:
        console.data({"kept": [_copy(copy) for copy in found]})
        return
    if not stack.context.states([stack.db.name])[stack.db.name].running:
        console.note(f"databases that were kept are shown while {stack.db.name} runs")
    if not found:
        console.out("no restore has kept anything that is still there")
        return
    rows = []
    for copy in found:
        since = f"{copy.mark.when[:16].replace('T', ' ')}, {copy.mark.why}" if copy.mark else ""
        size = "-" if copy.bytes is None else console.size(copy.bytes)
        rows.append((copy.name, "cluster" if copy.directory else "database", size, since, addressed(_use(copy))))
    for line in console.table(rows, ("kept", "what", "size", "since (UTC)", ""), right=(2,)):
        console.out(line)


def _use(copy: Kept) -> str:
    """Return what becomes of a kept copy, in words."""
    if copy.for_undo:
        return "inv data.undo puts it back; the next restore removes it"
    if copy.is_left_over:
        return console.paint("left over: inv data.cleanup removes it", "warn")
    return "not removed by any command: only its name says that a restore of this environment kept it"


def _copy(copy: Kept) -> dict[str, Any]:
    """Return a kept copy as JSON."""
    mark = copy.mark
    return {
        "name": copy.name,
        "kind": "cluster" if copy.directory else "database",
        "bytes": copy.bytes,
        "when": mark.when if mark else None,
        "why": mark.why if mark else None,
        "ours": mark is not None,
        "for_undo": copy.for_undo,
        "left_over": copy.is_left_over,
    }


def removed(stack: Stack, gone: list[Backup], copies: Sequence[Kept], *, days: int, dry: bool, as_json: bool) -> None:
    """Print what a cleanup removed, or would."""
    if as_json:
        answer = {"dry_run": dry, "removed": [data(stack, b) for b in gone], "kept": [_copy(copy) for copy in copies]}
        console.data(answer)
        return
    for copy in copies:
        size = "" if copy.bytes is None else f", {console.size(copy.bytes)}"
        why = copy.mark.why if copy.mark else ""
        console.out(f"{copy.name}  {'would be removed' if dry else 'removed'}  (kept by the {why}{size})")
    for backup in gone:
        console.out(f"{backup.name}  {'would be removed' if dry else 'removed'}  ({age(backup)} old)")
    freed = console.size(sum(b.manifest.bytes for b in gone))
    verb = "would be freed" if dry else "freed"
    console.out(
        f"{_count(len(gone), 'backup')} older than {_count(days, 'day')}, {freed} {verb}"
        if gone
        else "no backup to remove"
        if copies
        else "nothing to remove"
    )


def choose(stack: Stack) -> str:
    """Ask on the terminal which backup is meant.

    :raises UsageError: there is no terminal, or none was chosen.
    :raises StackError: the chosen one can't be used, or one that can't be used may be meant by a number.
    """
    from devstack.data import catalogue

    folder = catalogue.folder_of(stack.settings)
    found, unreadable = catalogue.survey(folder)
    if not sys.stdin.isatty():
        raise UsageError("--choose asks, and there is no terminal", fix="name a backup: --file NAME")
    listing(stack, [*found, *unreadable], folder)
    names = [backup.name for backup in found]
    answer = ""
    with contextlib.suppress(EOFError):
        answer = input("which one? (its name, or 1 for the newest, 2 for the one before …) ").strip()
    if answer.isdecimal() and 1 <= int(answer) <= len(names):
        chosen = found[-int(answer)]
        for other in unreadable:
            if other.may_be_newer(chosen):
                raise StackError(
                    f"{answer} may be another backup than {chosen.name}",
                    why=f"{other.name} may be newer, and can't be used: {other.why}",
                    fix=[*other.fix, f"or answer with a name: {chosen.name}"],
                )
        return chosen.name
    if answer in names:
        return answer
    for other in unreadable:
        if answer == other.name:
            raise other.error()
    raise UsageError("no backup was chosen", fix="nothing was touched")


def restored(done: Restored, *, as_json: bool) -> None:
    """What is in use now, what was kept, the way back."""
    if as_json:
        console.data(msgspec.to_builtins(done))
        return
    proof = "as its manifest says" if done.compared else "nothing to compare them with"
    if done.source.endswith(".cluster"):
        proof = "every checksum right"
    console.out(
        f"{done.database} is {done.source}: {_count(done.tables, 'table')}, {_count(done.rows, 'row')}, {proof};"
        f" {console.duration(done.seconds)}, clients waited {console.duration(done.outage)}"
    )
    console.out(f"kept: the database before as {done.kept}{f', and {done.safety}' if done.safety else ''}")
    console.out(addressed("back: inv data.undo"))


def moved(done: Moved, *, as_json: bool) -> None:
    """What is in use elsewhere now, what was kept there, the way back."""
    if as_json:
        console.data(msgspec.to_builtins(done))
        return
    console.out(
        f"{done.target} is {done.source}: {_count(done.tables, 'table')}, {_count(done.rows, 'row')},"
        f" as its manifest says; {console.duration(done.seconds)}, clients waited {console.duration(done.outage)}"
    )
    console.out(f"kept: the database before as {done.kept} there{f', and {done.safety} here' if done.safety else ''}")
    console.out(f"back: in psql on database postgres there: {done.back}")


def undone(done: Undone, *, as_json: bool) -> None:
    if as_json:
        console.data(msgspec.to_builtins(done))
        return
    console.out(f"the database is as it was before the {done.of}; clients waited {console.duration(done.outage)}")
    console.out(addressed(f"kept: what was in use as {done.kept}; inv data.undo switches back again"))


def merged(done: Merged, *, as_json: bool) -> None:
    """Rows added and skipped by table."""
    if as_json:
        console.data(msgspec.to_builtins(done))
        return
    rows = [(t.name, f"{t.added:,}", f"{t.skipped:,}", t.note) for t in done.tables]
    for line in console.table(rows, ("table", "added", "there already", ""), right=(1, 2)):
        console.out(line)
    console.out(f"{_count(sum(t.added for t in done.tables), 'row')} added, {console.duration(done.seconds)}")
    if done.safety:
        console.out(addressed(f"back: inv data.restore --file {typed(done.safety)}"))


def unscheduled(was: bool, *, as_json: bool) -> None:
    if as_json:
        console.data({"removed": was})
    else:
        console.out("the schedule is removed, the backups stay" if was else "there is no schedule")


def schedule(stack: Stack, status: Status, *, as_json: bool) -> str:
    """What is installed and how it goes; the trouble there is."""
    import msgspec

    log = shown(stack, stack.paths.log / "schedule.log")
    if as_json:
        console.data({**msgspec.to_builtins(status), "log": log})
        return status.trouble
    if not status.schedule:
        console.out(addressed("there is no schedule; make one: inv data.schedule --every daily"))
        return ""
    last = "never"
    if run := status.last:
        ended = "ok" if run.ok else console.paint("failed", "bad") if run.ended else "has not ended"
        last = f"{run.began[:16].replace('T', ' ')} UTC, {ended}{f': {run.said}' if run.said else ''}"
    rows = [
        ("schedule", f"{status.schedule.every}, {status.where}"),
        ("last run", last),
        ("next run", status.next),
        ("log", log),
    ]
    for line in console.table(rows):
        console.out(line)
    if status.trouble:
        console.out()
        console.out(console.paint(status.trouble, "warn"))
    return status.trouble
