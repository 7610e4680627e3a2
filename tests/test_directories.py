"""Directories and files that another user has put in the place of ours: nothing is changed through them."""

from __future__ import annotations

import os
import pwd
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import paths
from devstack.errors import UsageError
from devstack.host import Host
from devstack.runtimes.native import URL
from devstack.shell import post

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to act as two users")
STATE = Path("/home/somebody") / ("long-" * 20)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory like /tmp."""
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.mkdir(mode=0o750)
    return path


def theirs(path: Path) -> Path:
    os.chown(path, pwd.getpwnam("nobody").pw_uid, -1, follow_symlinks=False)
    return path


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        Host().make_dir(tmp_path / "a/b/c", 0o711)
    finally:
        os.umask(old)
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")] == [0o755 if os.getuid() == 0 else 0o700] * 2 + [
        0o711
    ]
    Host().make_dir(tmp_path / "a/b/c", 0o700)
    assert mode(tmp_path / "a/b/c") == 0o700


def test_our_own_link_is_followed(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "link").symlink_to(victim)
    Host().make_dir(tmp_path / "link", 0o711)
    assert mode(victim) == 0o711


def test_a_file_in_the_place_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        Host().make_dir(tmp_path / "file", 0o700)


@as_root
@pytest.mark.parametrize("account", [False, True])
def test_a_planted_link_changes_neither_mode_nor_owner(shared: Path, victim: Path, account: bool) -> None:
    (shared / "run").symlink_to(victim)
    theirs(shared / "run")
    with pytest.raises(UsageError, match="belongs to somebody else"):
        Host("nobody").make_dir(shared / "run", 0o711, account=account)
    assert (mode(victim), victim.stat().st_uid) == (0o750, 0)


@as_root
def test_a_planted_directory_is_refused_and_one_of_a_friend_is_not(shared: Path) -> None:
    (shared / "run").mkdir(mode=0o711)
    theirs(shared / "run")
    with pytest.raises(UsageError, match="belongs to somebody else"):
        Host("postgres").make_dir(shared / "run", 0o711)
    Host("postgres", {pwd.getpwnam("nobody").pw_uid}).make_dir(shared / "run", 0o700)
    assert mode(shared / "run") == 0o700


@as_root
def test_a_directory_of_an_earlier_account_is_taken_over_where_only_we_can_have_made_it(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir(mode=0o700)
    theirs(tmp_path / "db")
    Host("postgres").make_dir(tmp_path / "db", 0o700, account=True)
    assert (tmp_path / "db").stat().st_uid == pwd.getpwnam("postgres").pw_uid


@as_root
def test_nothing_is_asked_of_a_socket_in_a_planted_directory(shared: Path) -> None:
    (shared / "run").mkdir()
    theirs(shared / "run")
    with pytest.raises(UsageError, match="belongs to somebody else"):
        Host().send(post(shared / "run/supervisor.sock", URL, ""))


@pytest.fixture
def alarm() -> Iterator[None]:
    """End a read that hangs."""
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.mark.usefixtures("alarm")
def test_a_planted_fifo_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "postmaster.pid")
    with pytest.raises(OSError, match="it is a FIFO"):
        Host().read_file(tmp_path / "postmaster.pid")
    assert Host().read_file(tmp_path / "none") is None


# the name in /tmp


@pytest.fixture
def run_of(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first name for the sockets of :data:`STATE`."""
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    return chosen()


def chosen() -> Path:
    return paths._short_run(STATE, os.getuid())


def test_the_name_is_the_same_before_and_after_it_is_made(run_of: Path) -> None:
    assert chosen() == run_of
    run_of.mkdir()
    assert chosen() == run_of


def test_a_taken_name_is_passed_over_and_the_one_in_use_is_kept(run_of: Path, victim: Path) -> None:
    run_of.symlink_to(victim)
    second = run_of.with_name(f"{run_of.name}-2")
    assert chosen() == second
    second.mkdir()
    run_of.unlink()
    assert chosen() == second, "a stack runs there, though the first name is free again"


@as_root
def test_a_directory_of_another_user_is_passed_over(run_of: Path) -> None:
    run_of.mkdir()
    theirs(run_of)
    assert chosen() == run_of.with_name(f"{run_of.name}-2")


def test_all_names_are_taken(run_of: Path, victim: Path) -> None:
    for name in ("", *(f"-{number}" for number in range(2, paths.RUN_NAMES + 1))):
        run_of.with_name(run_of.name + name).symlink_to(victim)
    with pytest.raises(UsageError, match="there is no directory for sockets") as caught:
        chosen()
    assert "set stack.state_dir" in caught.value.text()


@pytest.mark.parametrize("name", ["$(id)", "a`id`", 'a"b', "a\\b", "a,b", "a;b"])
def test_a_directory_for_temporary_files_that_a_program_would_misread_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
    assert chosen().parent == Path("/tmp")
