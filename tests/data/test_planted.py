"""What somebody else puts into the folder of backups, or has instead of it: no command hangs, no other file changes."""

from __future__ import annotations

import errno
import os
import pwd
import stat
import subprocess
from pathlib import Path

import pytest

from devstack.data import aside, catalogue, retention, source
from devstack.data.manifest import path_of
from devstack.errors import StackError
from tests.conftest import wait_for
from tests.data.conftest import Data
from tests.data.manifests import made_up

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to act as two users")


@pytest.mark.parametrize("directory", [False, True])
def test_a_link_in_the_place_of_a_manifest_is_not_followed(tmp_path: Path, directory: bool) -> None:
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(FileExistsError), aside.aside(folder, directory=directory) as partial:
        partial.manifest.symlink_to(victim)
        partial.publish(lambda: "backup-1", lambda name: made_up(file=name))
    assert victim.read_text() == "as it was"
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("kind", ["partial", "manifest"])
def test_a_fifo_with_the_name_of_a_leftover_is_left_alone(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / f".nv-aaaaaaaa.{kind}")
    assert aside.sweep(tmp_path) == []
    assert stat.S_ISFIFO((tmp_path / f".nv-aaaaaaaa.{kind}").stat().st_mode)


@pytest.mark.usefixtures("alarm")
def test_a_leftover_that_is_still_written_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".nv-aaaaaaaa.partial"
    (left / "base").mkdir(parents=True)
    # a program for each file would take minutes on a busy machine; a redirection that fails ends a shell that is at ":"
    writes = """
    i=0
    while [ $i -lt 20000 ]; do
        i=$((i + 1))
        [ -d "$0/base" ] || mkdir -p "$0/base"
        true >"$0/base/$i"
    done 2>/dev/null
    exit 0
    """
    with subprocess.Popen(["sh", "-c", writes, str(left)]) as writer:
        wait_for((left / "base" / "1").exists)
        said = aside.sweep(tmp_path)
        assert writer.wait(20) == 0
    assert said == ["removed .nv-aaaaaaaa.partial, left behind by a command that was cut off"]
    aside.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_leftover_that_can_not_be_removed_is_said_and_hinders_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / ".nv-aaaaaaaa.partial"
    left.mkdir()

    def remove(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    monkeypatch.setattr(aside, "_remove", remove)
    assert aside.sweep(tmp_path) == [
        f"could not remove {left}, left behind by a command that was cut off: Directory not empty"
    ]


@pytest.mark.usefixtures("alarm")
def test_a_fifo_beside_a_leftover_hangs_nobody(tmp_path: Path) -> None:
    (tmp_path / ".nv-aaaaaaaa.partial").touch()
    os.mkfifo(tmp_path / ".nv-aaaaaaaa.manifest")
    assert aside.sweep(tmp_path) == ["removed .nv-aaaaaaaa.partial, left behind by a command that was cut off"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("alarm")
def test_a_fifo_in_the_place_of_a_manifest_hangs_nobody(tmp_path: Path) -> None:
    backup = tmp_path / "backup-20261123-100000.sql.gz"
    backup.touch()
    os.mkfifo(path_of(backup))
    assert catalogue.read(backup) is None
    assert catalogue.backups(tmp_path) == []
    retention._drop_lone_manifests(tmp_path)
    with pytest.raises(StackError) as caught:
        source._check_manifest(backup, force=False)
    assert "its manifest can't be read" in caught.value.text()
    assert "it is a FIFO" in caught.value.text()


@pytest.mark.slow
def test_no_command_waits_for_a_fifo(rich: Data) -> None:
    made = rich.backup()
    fifos = [rich.backups / name for name in ("backup-20991123-100000.sql.gz.json", ".nv-aaaaaaaa.partial")]
    for fifo in fifos:
        os.mkfifo(fifo)
    try:
        assert "damaged: its manifest can't be read: it is a FIFO" in rich.inv("data.list").stdout
        rich.refused("data.verify", "--file", "latest", says="backup-20991123-100000.sql.gz may be the newest backup")
        rich.inv("data.verify", "--file", made.name)
    finally:
        for fifo in fifos:
            fifo.unlink()


@pytest.mark.variations
@as_root
@pytest.mark.parametrize("layout", ["sql", "custom", "directory"])
def test_no_backup_is_written_into_a_folder_of_somebody_else(rich: Data, tmp_path: Path, layout: str) -> None:
    os.chown(tmp_path, pwd.getpwnam("nobody").pw_uid, -1)
    for output in (tmp_path, tmp_path / "name"):
        said = rich.refused(
            "data.backup", "--format", layout, "--output", str(output), says="belongs to nobody", code=2
        )
        assert "choose a directory of your own that nobody else may write to: --output" in said
    assert list(tmp_path.iterdir()) == []


def test_a_backup_may_be_written_to_where_everybody_has_names_of_his_own(rich: Data, tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    rich.inv("data.backup", "--format", "directory", "--output", str(tmp_path / "name"))
    assert stat.S_IMODE((tmp_path / "name").stat().st_mode) == 0o700
    tmp_path.chmod(0o777)
    rich.refused("data.backup", "--output", str(tmp_path), says="is writable by everybody", code=2)


@as_root
def test_the_folder_that_the_settings_name_is_judged_too(rich: Data, tmp_path: Path) -> None:
    os.chown(tmp_path, pwd.getpwnam("nobody").pw_uid, -1)
    rich.env["INVOKE_DATA_DIR"] = str(tmp_path / "below")
    try:
        rich.refused("data.backup", says=f"{tmp_path} belongs to nobody", code=2)
    finally:
        del rich.env["INVOKE_DATA_DIR"]
    assert list(tmp_path.iterdir()) == []
