"""Manifests: damage is seen, said, and never taken for the absence of a backup."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devstack.data import catalogue, manifest, retention
from devstack.data.manifest import TooNew, decode, encode, path_of
from devstack.files import read_regular
from tests.data.conftest import Data
from tests.data.manifests import made_up, write
from tests.data.test_restore import ask

WHOLE = made_up(
    file="backup-20261123-100000.sql.gz",
    label="before the change",
    tables={"public.notes": 12, 'public."odd name"': 0},
    sequences={"public.notes_id_seq": 12, "public.unused": None},
    extensions={"vector": "0.8.0"},
    signature="a1" * 32,
    machine="laptop",
)


def test_one_bit_anywhere_is_seen() -> None:
    """Or changes nothing: white space."""
    content = encode(WHOLE)
    same = decode(content)
    unseen = []
    for index in range(len(content)):
        for bit in range(8):
            flipped = content[:index] + bytes([content[index] ^ (1 << bit)]) + content[index + 1 :]
            try:
                found = decode(flipped)
            except ValueError:
                continue
            if found != same:
                unseen.append((index, bit, flipped[max(0, index - 20) : index + 20]))
    assert unseen == []


def test_cut_off_anywhere_it_is_damaged() -> None:
    content = encode(WHOLE).rstrip()
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"."):
            decode(content[:length])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"unknown": 1}, "unknown"),
        ({"label": "another"}, "its checksum is not that of its content"),
        ({"checksum": ""}, "its checksum is not that of its content"),
        ({"format": 0}, "its checksum is not that of its content"),
        ({"created": "yesterday"}, "isoformat"),
        ({"created": "2026-11-23T10:00:00"}, "its time has no zone"),
    ],
)
def test_what_is_not_as_it_was_written_is_damage(changes: dict[str, Any], says: str) -> None:
    content = {**json.loads(encode(WHOLE)), **changes}
    with pytest.raises(ValueError, match=says):
        decode(json.dumps(content).encode())


def test_a_later_format_is_no_damage_and_is_refused_as_what_it_is() -> None:
    content = {**json.loads(encode(WHOLE)), "format": 3, "unknown": 1}
    with pytest.raises(TooNew, match="made by a newer nv-devstack"):
        decode(json.dumps(content).encode())


@pytest.mark.slow
def test_a_manifest_of_the_first_version_is_valid_and_said_to_be_unprotected(data: Data) -> None:
    path = data.backup()
    old = json.loads(path_of(path).read_text())
    for name in ("checksum", "signature", "machine", "fetched_from", "origin", "needs_superuser", "lineage"):
        old.pop(name, None)
    path_of(path).write_text(json.dumps({**old, "format": 1}, indent=2))
    assert decode(path_of(path).read_bytes()).checksum == ""
    assert f"{path.name}  whole" in data.inv("data.verify", "--file", path.name).stdout
    path_of(path).write_text(json.dumps({**old, "format": 1}, indent=2))
    assert "foreign, unprotected" in data.inv("data.list").stdout
    data.inv("data.restore", "--file", path.name, "--no-safety-backup")


def flip(path: Path) -> None:
    content = path_of(path).read_bytes()
    middle = content.index(b'"database"')
    path_of(path).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def rename(path: Path) -> None:
    other = path.with_name("renamed.sql.gz")
    path.rename(other)
    path_of(path).rename(path_of(other))


def other_version(path: Path) -> None:
    path_of(path).write_text(json.dumps({**json.loads(path_of(path).read_text()), "format": 99}))


def empty(path: Path) -> None:
    path_of(path).write_bytes(b"")


def no_file(path: Path) -> None:
    path_of(path).unlink()
    path_of(path).mkdir()


def nothing(path: Path) -> None:
    """Leave it as it is: the system does not read it."""


def refusing(path: Path) -> Callable[..., bytes]:
    def read(asked: Path, **options: Any) -> bytes:
        if asked == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_regular(asked, **options)

    return read


DAMAGES: list[tuple[Callable[[Path], None], catalogue.Doubt, str, str]] = [
    (flip, "damaged", "its manifest is damaged", "inv data.restore --file {name} --force"),
    (empty, "damaged", "its manifest is damaged", "inv data.restore --file {name} --force"),
    (lambda path: path_of(path).unlink(), "damaged", "its manifest is missing", "data.restore --file {name} --force"),
    (lambda path: path.unlink(), "damaged", "the file itself is not", "inv data.cleanup removes the manifest"),
    (rename, "damaged", "its manifest is of {name}", "give both files their names again: {name}"),
    (other_version, "too_new", "made by a newer nv-devstack", "update nv-devstack"),
    (no_file, "damaged", "its manifest can't be read: Is a directory", "see who may read "),
    (nothing, "unchecked", "its manifest can't be read: Permission denied", "see who may read "),
]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "state", "says", "fix"), DAMAGES)
def test_a_backup_that_can_not_be_used_is_named_and_no_older_one_taken(
    data: Data,
    damage: Callable[[Path], None],
    state: catalogue.Doubt,
    says: str,
    fix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older, newest = data.backup(), data.backup()
    damage(newest)
    if state == "unchecked":  # root may read everything
        monkeypatch.setattr(manifest, "read_regular", refusing(path_of(newest)))
    name = "renamed.sql.gz" if damage is rename else newest.name
    says, fix = says.format(name=newest.name), fix.format(name=newest.name)
    listed = data.inv("data.list").stdout
    assert f"{name} " in listed
    assert catalogue.IN_WORDS[state] in listed
    assert ("damaged" in listed) == (state == "damaged")
    assert fix in listed
    found = data.json("data.list")
    assert [b["file"] for b in found["backups"]] == [older.name]
    assert [(b["file"], b["state"]) for b in found["unreadable"]] == [(name, state)]
    assert catalogue.IN_WORDS[state] in data.inv("data.verify", "--all", expect=1).stdout
    states = {b["file"]: b["state"] for b in data.json("data.verify", "--all", expect=1)["backups"]}
    assert states == {older.name: "whole", name: state}
    said = data.refused("data.restore", says=f"{name} may be the newest backup, and can't be used")
    assert fix in said
    assert f"inv data.restore --file {older.name}" in said
    data.refused("data.verify", says=f"{name} may be the newest backup")
    data.refused("data.pin", name, says=f"{name} can't be used as a backup(.|\n)*{says}")
    data.inv("data.restore", "--file", older.name, "--no-safety-backup")
    left = {path.name for path in data.backups.iterdir()}
    data.inv("data.cleanup", "--days", "0")
    gone = left - {path.name for path in data.backups.iterdir()}
    assert gone == ({path_of(newest).name} if "file itself" in says else set())


@pytest.mark.slow
def test_a_damaged_one_that_is_older_stops_nothing(data: Data) -> None:
    older, newest = data.backup(), data.backup()
    path_of(older).write_bytes(b"{")
    assert data.json("data.restore", "--no-safety-backup")["source"] == newest.name
    said = data.refused("data.restore", "--at", "2000-01-01 00:00", says="no full backup from before")
    assert older.name not in said
    data.inv("data.verify", "--all", expect=1)


@pytest.mark.parametrize("of", ["backup-20261123-100000.sql.gz", "backup-20261123-100000.sql.gz.json"])
def test_a_disk_that_fails_is_no_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """Its manifest would be removed as one whose backup is gone."""
    path = tmp_path / WHOLE.file
    path.touch()
    path_of(path).write_bytes(encode(WHOLE))
    stat = os.stat

    def failing(asked: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(asked).endswith(of):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(asked))
        return stat(asked, *args, **kwargs)

    monkeypatch.setattr(os, "stat", failing)
    (found,) = catalogue.survey(tmp_path)[1]
    assert (found.name, found.state) == (path.name, "unchecked")
    assert "Input/output error" in found.why
    assert f"{tmp_path / of}" in found.fix[0]
    retention._drop_lone_manifests(tmp_path)
    monkeypatch.undo()
    assert path_of(path).exists()


@pytest.mark.slow
def test_a_number_means_no_older_backup_than_it_says(data: Data) -> None:
    """A backup that can't be used counts too."""
    oldest, middle, newest = (data.backup() for _ in range(3))
    flip(middle)
    (code, said), (_, again) = ask(data, b"2\n", "--no-safety-backup"), ask(data, f"{middle.name}\n".encode())
    assert code == 1
    assert f"2 may be another backup than {oldest.name}" in said
    assert f"{middle.name} may be newer, and can't be used: its manifest is damaged" in " ".join(said.split())
    assert f"{middle.name} can't be used as a backup" in again
    flip(newest)
    code, said = ask(data, b"1\n", "--no-safety-backup")
    assert code == 1
    assert f"1 may be another backup than {oldest.name}" in said
    assert ask(data, f"{oldest.name}\n".encode(), "--no-safety-backup")[0] == 0


def test_what_was_never_a_backup_is_not_called_one(data: Data) -> None:
    made = data.backup()
    (data.backups / "notes.json").write_text("{}")
    (data.backups / "README").write_text("notes")
    (data.backups / ".nv-01234567.manifest").write_bytes(encode(made_up(file="backup-20200101-000000.sql.gz")))
    (data.backups / "backup-20200101-000000.sql.gz").write_bytes(b"its command is about to give it its manifest")
    found = catalogue.survey(data.backups)
    assert [b.name for b in found[0]] == [made.name]
    assert found[1] == []


@pytest.mark.slow
def test_a_backup_from_a_host_is_not_the_latest_here(data: Data) -> None:
    """Whoever has signed it: a restore here takes what was made here."""
    mine, other = data.backup(), data.backup()
    write(other, {**json.loads(path_of(other).read_text()), "fetched_from": "me@box"})
    assert data.json("data.restore", "--no-safety-backup")["source"] == mine.name
    assert "from host me@box" in data.inv("data.list").stdout
    said = data.inv("data.restore", "--file", other.name, "--no-safety-backup").stderr
    assert f"{other.name} is from host me@box" in said
    path_of(mine).unlink()
    os.unlink(mine)
    said = data.refused("data.restore", says="there is no full backup of this environment")
    assert f"{other.name} is from host me@box" in said
    assert f"inv data.restore --file {other.name}" in said
