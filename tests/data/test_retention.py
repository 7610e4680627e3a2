"""Cleanup: the last good backup stays, whatever the ages, proofs and pins."""

from __future__ import annotations

import itertools
import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devstack.data import signing
from devstack.data.catalogue import Backup
from devstack.data.manifest import Kind, Manifest, Verified, encode, load, path_of, stamp
from devstack.data.retention import State, expired
from tests.data.conftest import Data
from tests.data.manifests import made_up, write

NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
PROOF = Verified(stamp(NOW), "read")


def made(
    number: int, age: float, kind: Kind, verified: bool, pinned: bool, parent: int, safety: bool, database: str = "nina"
) -> Backup:
    name = f"backup-{number:03}"
    manifest = made_up(
        file=name,
        sequence=number,
        kind=kind,
        created=stamp(NOW - timedelta(days=age)),
        verified=PROOF if verified else None,
        pinned=pinned,
        safety=safety,
        database=database,
        parent=f"backup-{number - parent:03}" if kind != "full" and 0 < parent <= number else "",
    )
    return Backup(Path(name), manifest)


ONE = st.tuples(
    st.floats(-2, 40),
    st.sampled_from(["full", "schema", "data"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 0, 1, 2]),
    st.booleans(),
    st.sampled_from(["nina", "before it was renamed"]),
)
STATES: list[State] = ["whole", "whole", "damaged", "unchecked"]


@given(
    st.lists(st.tuples(ONE, st.sampled_from(STATES), st.sampled_from(["", "box"])), max_size=25),
    st.integers(0, 30),
    st.integers(1, 4),
)
def test_whatever_there_is_the_good_ones_stay(given_: list[tuple[Any, State, str]], days: int, keep: int) -> None:
    backups = [made(number, *one) for number, (one, _, _) in enumerate(given_)]
    states = {backup.name: state for backup, (_, state, _) in zip(backups, given_, strict=True)}
    owners = {backup.name: owner for backup, (_, _, owner) in zip(backups, given_, strict=True)}
    gone = expired(
        backups,
        moment=NOW,
        days=days,
        keep=keep,
        state_of=lambda b: states[b.name],
        owner_of=lambda b: owners[b.name],
    )
    names = {backup.name for backup in gone}
    left = [backup for backup in backups if backup.name not in names]

    for group in itertools.product(("", "box"), ("nina", "before it was renamed")):
        full = [b for b in backups if b.manifest.kind == "full" and not b.manifest.safety]
        full = [b for b in full if (owners[b.name], b.manifest.database) == group]
        usable = [b.name for b in full if states[b.name] != "damaged"]
        whole = [b.name for b in full if states[b.name] == "whole"]
        verified = [b.name for b in full if states[b.name] == "whole" and b.manifest.verified]
        assert not names & {*usable[-1:], *whole[-1:], *verified[-keep:]}
        # one that could not be checked goes only where a later one is known to be good
        last = max(whole, default="")
        assert not [name for name in names & {*usable} if states[name] == "unchecked" and name > last]
    assert all(NOW - backup.manifest.time > timedelta(days=days) for backup in gone)
    assert not any(backup.manifest.pinned for backup in gone)
    there = {backup.name for backup in backups}
    for backup in left:
        assert backup.manifest.parent not in there or backup.manifest.parent not in names
    order = [backup.name for backup in gone]
    for backup in gone:
        assert backup.manifest.parent not in order or order.index(backup.manifest.parent) > order.index(backup.name)


def test_each_database_keeps_its_newest() -> None:
    databases = ["nina", "before", "before", "nina"]
    backups = [
        made(number, 30 - number, "full", True, False, 0, False, database) for number, database in enumerate(databases)
    ]
    gone = expired(backups, moment=NOW, days=7, keep=1, state_of=lambda _: "whole", owner_of=lambda _: "")
    assert {backup.name for backup in gone} == {"backup-000", "backup-001"}


def test_nothing_that_is_needed_by_nobody_is_kept() -> None:
    ages = [30, 20, 10, 1]
    backups = [made(number, age, "full", True, False, 0, False) for number, age in enumerate(ages)]
    gone = expired(backups, moment=NOW, days=7, keep=1, state_of=lambda _: "whole", owner_of=lambda _: "")
    assert {backup.name for backup in gone} == {"backup-000", "backup-001", "backup-002"}


def aged(path: Path, days: float, **changes: object) -> None:
    manifest = json.loads(Path(f"{path}.json").read_text())
    manifest["created"] = stamp(datetime.now(timezone.utc) - timedelta(days=days))
    write(path, {**manifest, **changes})


def test_old_ones_go_and_only_what_the_tool_made(data: Data) -> None:
    made = [data.backup("--format", layout) for layout in ("sql", "directory", "custom", "sql", "sql")]
    for path, days in zip(made, (30, 20, 10, 9, 8), strict=True):
        aged(path, days)
    data.inv("data.pin", made[2].name)
    os.truncate(made[4], made[4].stat().st_size - 1)  # the newest is damaged: it does not count
    foreign = ["README", "backup-20200101-000000.sql.gz", "notes.json", "backup-20200102-000000.sql.gz.json"]
    for name in foreign:
        (data.backups / name).write_text("{}")
    (data.backups / "link.sql.gz").symlink_to("/etc/hostname")
    (data.backups / "folder").mkdir()
    before = data.files()
    dry = [b["file"] for b in data.json("data.cleanup", "--dry-run")["removed"]]
    assert data.files() == before
    shown = data.inv("data.cleanup")
    assert dry == [made[4].name, made[1].name, made[0].name]
    assert f"{made[4].name} is not counted as good" in shown.stderr
    assert [b["file"] for b in data.json("data.list")["backups"]] == [made[2].name, made[3].name]
    for name in [*foreign, "link.sql.gz", "folder"]:
        assert os.path.lexists(data.backups / name)
    assert "nothing to remove" in data.inv("data.cleanup", "--days", "7").stdout
    data.inv("data.unpin", made[2].name)
    assert "1 backup older than 7 days" in data.inv("data.cleanup", "--keep", "1").stdout
    assert [b["file"] for b in data.json("data.list")["backups"]] == [made[3].name]


@pytest.mark.slow
def test_each_owner_keeps_its_newest(data: Data) -> None:
    stack = data.open_stack()
    old = stamp(datetime.now(timezone.utc) - timedelta(days=50))
    made = [data.backup() for _ in range(6)]
    owners: list[dict[str, Any] | None] = [{}, {"fetched_from": "me@box"}, None]
    for path, changes in zip(made, [*owners, *owners], strict=True):
        if changes is None:
            aged(path, 50)  # the signature is not of this
            continue
        changed = msgspec.structs.replace(load(path_of(path)), created=old, **changes)
        path_of(path).write_bytes(encode(signing.sign(stack, changed)))
    listed = data.inv("data.list").stdout
    assert (listed.count("from host me@box"), listed.count("foreign")) == (2, 2)
    gone = {b["file"] for b in data.json("data.cleanup", "--days", "0")["removed"]}
    assert gone == {path.name for path in made[:3]}
    assert data.json("data.cleanup", "--days", "0")["removed"] == []


@pytest.mark.slow
def test_keep_holds_more_and_bad_numbers_are_refused(data: Data) -> None:
    for path in [data.backup() for _ in range(3)]:
        aged(path, 50)
    assert len(data.json("data.cleanup", "--keep", "2")["removed"]) == 1
    data.refused("data.cleanup", "--days=-3", says="--days is 0", code=2)
    data.refused("data.cleanup", "--keep", "0", says="--keep is 1", code=2)
    data.refused("data.pin", "nothing", says="no backup of this tool")


@pytest.mark.faults
def test_a_removal_that_was_cut_off_is_completed(data: Data) -> None:
    path, kept = data.backup(), data.backup()
    path.rename(path.with_name(".nv-01234567.partial"))
    assert [b["file"] for b in data.json("data.list")["backups"]] == [kept.name]
    data.inv("data.cleanup")
    assert sorted(p.name for p in data.backups.iterdir()) == [kept.name, f"{kept.name}.json"]


def test_a_manifest_survives_being_written_and_read() -> None:
    one = made(3, 1.5, "full", True, True, 1, False).manifest
    assert msgspec.json.decode(msgspec.json.encode(one), type=Manifest) == one
