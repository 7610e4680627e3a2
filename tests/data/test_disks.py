"""Disks that are full, read-only or out of inodes: each command that changes something says so, and leaves no trace."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Rounds, directory_of_its_own, ended
from tests.data.campaigns import Busy, Ledger, check_clear, commands, telling

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="a small file system can be mounted by root alone")

ROOM = {"backups": 256, "data": 1024, "state": 64, "cache": 1024, "logs": 64}
"""Megabytes of each disk."""
INODES = 100_000
"""Inodes of each disk."""
FAULTS = ["full", "nearly full", "without inodes", "read-only"]


class Disk:
    """A file system in memory, at a directory of a project."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self._covered = False

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """Mount it over the directory, whose content comes along."""
        mode = self.path.stat().st_mode & 0o7777
        content = self.path.with_name(f"{self.path.name}.content")
        self.path.rename(content)
        self.path.mkdir()
        options = f"mode={mode:o}"
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.path], check=False).returncode:
            self.path.rmdir()
            content.rename(self.path)
            pytest.skip("a small file system can be mounted by root alone")
        try:
            subprocess.run(["cp", "-a", f"{content}/.", self.path], check=True)
            shutil.rmtree(content)
            yield
        finally:
            self.repair()
            subprocess.run(["umount", "-l", self.path], check=True)

    def have(self, fault: str) -> None:
        """Have a fault, until :meth:`repair`."""
        disk = os.statvfs(self.path)
        used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        if fault == "full":
            self._remount(f"size={used}")
        elif fault == "nearly full":
            self._remount(f"size={used + 65_536}")
        elif fault == "without inodes":
            self._remount(f"nr_inodes={disk.f_files - disk.f_ffree}")
        else:  # a second mount of it, as files of this one are open for writing
            subprocess.run(["mount", "--bind", self.path, self.path], check=True)
            self._covered = True
            self._remount("bind,ro")

    def repair(self) -> None:
        """Give it room, and let it be written to."""
        if self._covered:
            subprocess.run(["umount", "-l", self.path], check=True)
            self._covered = False
        else:
            self._remount(f"size={ROOM[self.name]}m,nr_inodes={INODES}")

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)


@pytest.fixture(scope="module")
def stack(workspace: Path, cache: Path) -> Iterator[Busy]:
    with directory_of_its_own(workspace) as folder, contextlib.ExitStack() as mounted:
        own = folder / "cache"
        if cache.exists():
            shutil.copytree(cache, own, symlinks=True)
        made = mounted.enter_context(ended(Busy(folder, own)))
        made.env["INVOKE_DB_PARAMETERS"] = '{"fsync": false}'
        made.env["RELOAD_ON_CHANGE"] = "false"
        made.begin_ledger()
        made.inv("dev.down")
        yield made


@pytest.fixture(scope="module")
def disks(stack: Busy) -> Iterator[dict[str, Disk]]:
    """Each directory of a stack as a disk of its own."""
    places = {
        "state": stack.state,
        "data": stack.state / "volumes",
        "cache": stack.folder / "cache",
        "backups": stack.backups,
        "logs": stack.root / "logs",
    }
    made = {name: Disk(name, path) for name, path in places.items()}
    with contextlib.ExitStack() as mounted:
        for disk in made.values():
            mounted.enter_context(disk.mounted())
        for disk in made.values():
            disk.repair()
        stack.inv("dev.up")
        try:
            yield made
        finally:
            stack.end()


CHANGING = {
    "up": ["dev.up"],
    "up-again": ["dev.restart"],
    "down": ["dev.down"],
    "heal": ["dev.heal"],
    "reload": ["pgb.reload"],
    "generate": ["data.generate", "--table", "public.memories", "--rows", "5"],
    "pin": ["data.pin", "latest"],
}
"""Commands that change something, besides those on backups."""
OF_DATA = ["restore", "merge", "undo", "backup", "incremental", "cluster", "verify", "cleanup"]


def content(folder: Path) -> dict[str, str]:
    """Return the files of whole backups, by their checksum."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".json")
    }


@pytest.mark.campaign
@pytest.mark.faults
def test_a_disk_that_can_not_be_written_costs_nothing_but_the_command(
    stack: Busy, disks: dict[str, Disk], chance: random.Random, rounds: Rounds
) -> None:
    ledger = Ledger(stack)
    seen = set()
    used = [disk for disk in disks.values() if disk.name != "cache"]
    cases = list(itertools.product(used, FAULTS, [*CHANGING, *OF_DATA]))
    chance.shuffle(cases)
    for number in rounds(len(cases), share=60):
        disk, fault, name = cases[number]
        words = {**commands(stack, chance), **CHANGING}[name]
        story = [f"round {number}: the disk of {disk.name} is {fault}: inv {' '.join(words)}"]
        with telling(story):
            ledger.mark()
            if name == "up" or chance.random() < 0.2:
                stack.inv("dev.down")
            before = content(stack.backups)
            disk.have(fault)
            try:
                done = stack.inv(*words, expect=None)
            finally:
                disk.repair()
            story += [f"it ended with {done.returncode}", done.stdout, done.stderr]
            check_clear(words, done.returncode, done.stdout, done.stderr)
            if name != "cleanup":
                assert before.items() <= content(stack.backups).items(), "a backup is gone, or changed"
            story += [stack.inv("dev.up").stderr]
            stack.check_well()
            ledger.check(set())
            ledger.mark()
            again = stack.inv(*words, expect=None)
            story += [f"again, with room: it ended with {again.returncode}", again.stdout, again.stderr]
            assert again.returncode == 0
            stack.inv("dev.up")
            stack.check_well()
            ledger.check(set())
            if number % 10 == 9:
                stack.tidy()
        said, *_ = *re.findall("^error: .*", done.stderr, re.MULTILINE), "done"
        seen.add(f"{disk.name} {fault}: {words[0]}: {said}")
    print(*sorted(seen), sep="\n")
    stack.check_nothing_left()


@pytest.mark.faults
@pytest.mark.slow
def test_full_disks_do_not_keep_a_cleanup_from_making_room(stack: Busy, disks: dict[str, Disk]) -> None:
    made = [stack.backup() for _ in range(2)]
    full = [disks[name] for name in ("state", "backups", "logs")]
    for disk in full:
        disk.have("full")
    try:
        assert f"{made[0].name}  removed" in stack.inv("data.cleanup", "--days", "0").stdout
    finally:
        for disk in full:
            disk.repair()
    assert not made[0].exists()


@pytest.mark.faults
@pytest.mark.slow
def test_a_full_disk_of_the_server_is_not_taken_for_that_of_the_backups(stack: Busy, disks: dict[str, Disk]) -> None:
    disks["data"].have("without inodes")
    try:
        said = stack.refused("data.backup", "--incremental", says="No space left")
    finally:
        disks["data"].repair()
    assert "could not be written to" not in said
    assert "fix:" in said
    stack.inv("dev.up")
    stack.inv("data.backup", "--incremental")


@pytest.mark.faults
@pytest.mark.slow
def test_a_full_disk_of_the_state_is_not_taken_for_that_of_the_backups(stack: Busy, disks: dict[str, Disk]) -> None:
    """Copies of a backup are made there, where the services' account can read them and nothing else can change them."""
    disks["state"].have("full")
    try:
        said = stack.refused("data.backup", "--format", "directory", says="No space left")
    finally:
        disks["state"].repair()
    assert f"room in {stack.state}" in said
    assert "data.cleanup" not in said


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_cache_that_can_not_be_written_is_named_and_filled_once_it_can(
    stack: Busy, disks: dict[str, Disk], fault: str
) -> None:
    """The programs and the prepared cluster are written there for the first environment of a version."""
    cache = disks["cache"]
    prepared = [path for path in cache.path.iterdir() if path.name.startswith("clusters")]
    ports = {name: stack.env.pop(name) for name in ("INVOKE_DB_PORT", "INVOKE_PGB_PORT", "INVOKE_API_PORT")}
    try:
        for path in prepared:
            shutil.rmtree(path)
        cache.have(fault)
        try:
            done = stack.inv("db.start", "-e", "other", expect=None)
        finally:
            cache.repair()
        check_clear(["db.start"], done.returncode, done.stdout, done.stderr)
        stack.inv("db.start", "-e", "other")
        stack.inv("dev.remove", "-e", "other", "--yes", "--no-backup")
    finally:
        stack.env.update(ports)
