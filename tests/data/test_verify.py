"""Proving backups: no damage passes, whatever the layout."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from devstack.data import catalogue, verify
from devstack.data.catalogue import Backup
from devstack.data.following import Follower
from devstack.data.manifest import Manifest, load, path_of
from devstack.stack import Stack
from tests.conftest import ROOT, Rounds
from tests.data.conftest import Data
from tests.data.test_backup import FILL

LAYOUTS = ["sql", "custom", "directory"]


@pytest.fixture(scope="module")
def filled(rich: Data) -> Data:
    rich.sql(FILL.replace("200000", "20000"))
    return rich


@pytest.fixture(scope="module")
def opened(filled: Data) -> Stack:
    return filled.open_stack()


@pytest.fixture(params=LAYOUTS)
def backup(filled: Data, request: pytest.FixtureRequest) -> Iterator[Backup]:
    made = catalogue.read(filled.backup("--format", request.param))
    assert made
    yield made
    shutil.rmtree(filled.backups)


def largest(backup: Backup) -> Path:
    """The file that holds most of it."""
    if backup.manifest.layout != "directory":
        return backup.path
    return max(backup.path.iterdir(), key=lambda path: path.stat().st_size)


def whole(stack: Stack, backup: Backup) -> bool:
    try:
        verify.check_content(stack, backup.path, backup.manifest)
    except verify.Damaged:
        return False
    return True


@pytest.mark.variations
def test_cut_off_anywhere_it_is_damaged(opened: Stack, backup: Backup) -> None:
    file = largest(backup)
    content = file.read_bytes()
    assert len(content) > 5 * 65536
    assert whole(opened, backup)
    for length in [0, 1, *range(65536, len(content), 65536), len(content) - 1]:
        os.truncate(file, length)
        assert not whole(opened, backup), length
        file.write_bytes(content)
    file.write_bytes(content + b"\0")
    assert not whole(opened, backup)
    file.write_bytes(content)
    assert whole(opened, backup)


FLAGS = {
    "sql": ["--format", "sql"],
    "custom": ["--format", "custom"],
    "directory": ["--format", "directory"],
    "cluster": ["--incremental"],
}
FLIPS = {"sql": 600, "custom": 400, "directory": 400, "cluster": 200}
"""Bits that are flipped in the files of each layout; a quarter as many cuts. With those of the manifests it is 2,000
and 500."""
OF_MANIFESTS = 100
"""Bits that are flipped in the manifest of each layout."""


def flip(file: Path, chance: random.Random) -> str:
    """Flip one bit; say which."""
    bit = chance.randrange(file.stat().st_size * 8)
    with file.open("r+b") as opened:
        opened.seek(bit // 8)
        (byte,) = opened.read(1)
        opened.seek(bit // 8)
        opened.write(bytes([byte ^ 1 << bit % 8]))
    return f"bit {bit} of {file}"


def cut(file: Path, chance: random.Random) -> str:
    """Cut a file off; say where."""
    size = file.stat().st_size
    length = chance.choice([0, size - 1, chance.randrange(size)])
    os.truncate(file, length)
    return f"{file} cut at {length} of {size}"


def found_whole(stack: Stack, path: Path, was: Manifest) -> bool:
    """Whether `data.verify --all` finds nothing wrong with the one backup in a folder."""
    found, unreadable = catalogue.survey(path.parent)
    if unreadable:
        return False
    (backup,) = found  # a damaged one is not taken for none
    if backup.manifest == was:
        try:
            return whole(stack, backup)
        except verify.Unchecked:
            return False
    raise AssertionError(f"another manifest passes: {backup.manifest}")


@pytest.mark.campaign
@pytest.mark.parametrize("layout", FLIPS)
def test_no_damage_passes(opened: Stack, filled: Data, layout: str, chance: random.Random, rounds: Rounds) -> None:
    """What passes has every byte of the backup that a restore reads."""
    shutil.rmtree(filled.backups, ignore_errors=True)
    path = filled.backup(*FLAGS[layout])
    record = path_of(path)
    was = load(record)
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    files = [file for file in files if file.stat().st_size]
    sizes = [file.stat().st_size for file in files]
    assert found_whole(opened, path, was)
    counts: Counter[str] = Counter()
    for damage, share in ((flip, 1), (cut, 4)):
        for number in rounds((FLIPS[layout] + OF_MANIFESTS) // share):
            of_manifest = number % (FLIPS[layout] // OF_MANIFESTS + 1) == 0
            # every second time where the bytes are, otherwise in a file of any size
            file = record if of_manifest else chance.choices(files, sizes if number % 2 else None)[0]
            content = file.read_bytes()
            where = damage(file, chance)
            counts[f"{damage.__name__}s"] += 1
            if found_whole(opened, path, was):
                # spaces in the manifest, and settings that no restore takes over (test_untrusted.py)
                assert of_manifest or file == path / "postgresql.auto.conf", f"passes as whole: {where}"
                counts[f"without effect in {file.name}"] += 1
            file.write_bytes(content)
    assert found_whole(opened, path, was)
    print(f"{layout}, {len(files)} files: {dict(counts)}")
    shutil.rmtree(filled.backups)


def test_what_is_damaged_is_named_by_the_command_and_the_rest_goes_on(filled: Data) -> None:
    good, bad = filled.backup(), filled.backup()
    os.truncate(bad, bad.stat().st_size - 1)
    done = filled.inv("data.verify", "--all", expect=1)
    assert f"{good.name}  whole\n{bad.name}  damaged\n" in done.stdout
    assert f"error: {bad.name} is damaged" in done.stderr
    assert "damaged" in filled.inv("data.list").stdout
    assert filled.json("data.verify", "--all", expect=1)["backups"][1]["damage"]
    filled.refused("data.verify", "--file", "latest", says=f"{bad.name} is damaged")
    assert "whole" in filled.inv("data.verify", "--file", good.name).stdout
    shutil.rmtree(filled.backups)


def test_a_directory_with_a_file_too_many_or_too_few_is_damaged(opened: Stack, filled: Data) -> None:
    made = catalogue.read(filled.backup("--format", "directory"))
    assert made
    extra = made.path / "extra"
    extra.write_text("x")
    assert not whole(opened, made)
    extra.unlink()
    assert whole(opened, made)
    largest(made).unlink()
    assert not whole(opened, made)


def said(number: int) -> str:
    return f"echo 'pg_restore: error: could not read the file: {os.strerror(number)}' >&2; exit 1"


HINDERED = {
    **{name: said(getattr(errno, name)) for name in ("EACCES", "EPERM", "EIO", "ESTALE", "EROFS", "ENOSPC", "EDQUOT")},
    **{name: said(getattr(errno, name)) for name in ("EMFILE", "ENOMEM", "EAGAIN", "ETIMEDOUT", "ENOTCONN")},
    "exit code 137": "exit 137",
    "a signal": "kill -KILL $$",
    "no programs": "exit 1",
    "the caller's language": f"""[ "$LC_ALL" = C ] || {{ echo 'Auf dem Gerät ist kein Platz mehr' >&2; exit 1; }}
        {said(errno.ENOSPC)}""",
}
"""Shell commands that fail, none of them because of the file that they are to read."""


@pytest.fixture
def programs(filled: Data) -> Iterator[Path]:
    """A directory with PostgreSQL's programs, of which a test replaces some."""
    place = filled.folder / "stand-in" / "bin"
    place.mkdir(parents=True)
    for name in ("lib", "share"):
        (place.parent / name).symlink_to(filled.bin.parent / name)
    for program in filled.bin.iterdir():
        (place / program.name).symlink_to(program)
    yield place
    shutil.rmtree(place.parent)


def replace_readers(programs: Path, does: str, *, runs: bool = True) -> None:
    """Have the programs that read backups do something else than that."""
    for name in ("pg_restore", "pg_verifybackup"):
        path = programs / name
        version = f'case "$*" in *--version*) exit {int(not runs)} ;; esac'
        path.unlink()
        path.write_text(f"#!/bin/sh\n{version}\ncat >/dev/null\n{does}\n")
        path.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["custom", "directory", "cluster"])
def test_a_program_that_could_not_do_its_work_says_nothing_about_the_file(
    opened: Stack, filled: Data, programs: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    backup = catalogue.read(filled.backup(*FLAGS[layout]))
    assert backup
    monkeypatch.setattr(opened.db, "programs", structs.replace(opened.db.programs, bin=programs))
    assert whole(opened, backup)
    for name, does in HINDERED.items():
        replace_readers(programs, does, runs=name != "no programs")
        with pytest.raises(verify.Unchecked):
            verify.check_content(opened, backup.path, backup.manifest)
    replace_readers(programs, "echo 'pg_restore: error: unexpected end of file' >&2; exit 1")
    assert not whole(opened, backup)
    if layout != "cluster":  # whose programs need no temporary file
        monkeypatch.setattr(tempfile, "tempdir", str(filled.folder / "gone"))
        with pytest.raises(verify.Unchecked):
            verify.check_content(opened, backup.path, backup.manifest)
    shutil.rmtree(filled.backups)


@pytest.mark.slow
def test_a_cleanup_keeps_what_could_not_be_read_in_the_caller_s_language(filled: Data, programs: Path) -> None:
    made = filled.backup("--format", "custom")
    choices = filled.state / "choices.json"
    content = choices.read_text()
    replace_readers(programs, HINDERED["the caller's language"])
    choices.write_text(content.replace(str(filled.bin), str(programs)))
    try:
        done = filled.inv("data.cleanup", "--days", "0", LC_ALL="de_DE.UTF-8")
        assert f"{made.name} is kept, as it could not be checked" in done.stderr
        assert "No space left on device" in filled.inv("data.verify", expect=1, LC_ALL="de_DE.UTF-8").stderr
    finally:
        choices.write_text(content)
    assert "whole" in filled.inv("data.verify").stdout
    shutil.rmtree(filled.backups)


@pytest.mark.slow
def test_a_proof_by_restore_leaves_no_database_when_it_fails(filled: Data) -> None:
    path = filled.backup()
    databases = filled.databases()
    filled.inv("data.verify", "--deep")
    assert filled.json("data.list")["backups"][-1]["verified"]["how"] == "restore"
    assert filled.databases() == databases
    filled.refused("data.verify", "--file", "nothing-of-the-kind", says="is no backup of this tool")
    assert path.exists()


FLIPPING = """
import os, sys
write = os.write
def flip(handle, content):
    if len(content) > 1000 and os.readlink(f"/proc/self/fd/{handle}").endswith(".partial"):
        os.write = write
        content = bytearray(content)
        content[len(content) // 2] ^= 4
    return write(handle, content)
os.write = flip
sys.path.insert(0, os.getcwd())
from invoke.main import program
program.run(["inv", *sys.argv[1:]])
"""
"""``inv``, whose first write of some size has one bit that is another one on the disk."""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sql", "custom"])
def test_a_bit_that_flips_on_its_way_to_the_disk_fails_the_backup(filled: Data, layout: str) -> None:
    before = filled.files()
    words = filled.code(FLIPPING, "data.backup", "--format", layout)
    done = subprocess.run(words, cwd=filled.root, env=filled.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the new backup is damaged" in done.stderr
    assert "its SHA-256 is not the one in its manifest" in done.stderr
    assert filled.files() == before


@pytest.mark.parametrize("read", ["before", "behind"])
def test_what_is_read_beside_the_writing_is_what_the_file_has(tmp_path: Path, read: str) -> None:
    path = tmp_path / "file"
    path.touch()
    follower = Follower(path)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.extend(iter(lambda: follower.read(1000), b"")))
    if read == "before":
        reader.start()
    written = b""
    with path.open("ab", buffering=0) as file:
        for size in (1, 999, 1000, 5000, 17):
            file.write(os.urandom(size))
            written = path.read_bytes()
            follower.grown(len(written))
        file.write(b"not said")
    follower.end()
    if read == "behind":
        reader.start()
    reader.join(10)
    follower.close()
    assert b"".join(got) == written + b"not said"


def test_an_interruption_before_the_proof_is_held_does_not_keep_the_process(tmp_path: Path) -> None:
    file = tmp_path / "growing.sql.gz"
    file.touch()
    script = (
        "import sys; from pathlib import Path; from devstack.data.following import Proof;"
        " Proof(None, Path(sys.argv[1]), 'sql'); sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", script, file], cwd=ROOT, timeout=60)
    assert done.returncode == 3
