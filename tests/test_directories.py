"""Directories and files that another user has put in the place of ours: nothing is changed through them."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devstack import container, paths, trust
from devstack.data import cluster
from devstack.errors import UsageError
from devstack.files import NotPlain, walk_plain
from devstack.host import Host
from devstack.lock import StackLock
from devstack.remote import agent
from devstack.runtimes.native import URL
from devstack.services.folders import Folders
from devstack.shell import post
from tests.conftest import Project, free_ports

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
@pytest.mark.parametrize("link", ["run", "above/run"])
def test_a_link_of_ours_that_leads_on_by_a_planted_one_is_not_followed(tmp_path: Path, victim: Path, link: str) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted/link").symlink_to(victim)
    theirs(tmp_path / "planted/link")
    path = tmp_path / link
    first = tmp_path / Path(link).parts[0]
    first.symlink_to(tmp_path / "planted/link")
    with pytest.raises(UsageError, match="belongs to somebody else") as caught:
        Host().make_dir(path, 0o711)
    assert f"{tmp_path / 'planted/link'} is a link that belongs to nobody" in caught.value.why
    assert (mode(victim), list(victim.iterdir())) == (0o750, [])
    os.chown(tmp_path / "planted/link", 0, -1, follow_symlinks=False)
    Host().make_dir(path, 0o711)
    assert mode(victim / "run" if "/" in link else victim) == 0o711


def test_directories_within_each_other_end_no_command(tmp_path: Path) -> None:
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=at)
        inner = os.open("deep", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    with pytest.raises(NotPlain, match="directories deep"):
        list(walk_plain(tmp_path))
    Host().remove(tmp_path / "deep")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.usefixtures("alarm")
def test_a_planted_fifo_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "postmaster.pid")
    with pytest.raises(OSError, match="it is a FIFO"):
        Host().read_file(tmp_path / "postmaster.pid")
    assert Host().read_file(tmp_path / "none") is None


def test_a_file_that_the_services_account_may_have_exchanged_for_a_link_is_not_read(
    tmp_path: Path, victim: Path
) -> None:
    (victim / "secret").write_text("secret")
    data = tmp_path / "nv-db-data"
    data.mkdir()
    for name in ("postgresql.conf", "PG_VERSION", "nv-lineage"):
        (data / name).symlink_to(victim / "secret")
        with pytest.raises(NotPlain, match="it is a link"):
            Host().read_file(data / name)
    assert not Host().holds(data / "PG_VERSION", b"secret", 0o644)
    context: Any = SimpleNamespace(host=Host())
    db: Any = SimpleNamespace(data=data, context=context, data_is_there=lambda: True)
    db.folders = Folders(db)
    stack: Any = SimpleNamespace(db=db, context=context)
    backup: Any = SimpleNamespace(path=tmp_path)
    (tmp_path / ".incoming").mkdir()
    with pytest.raises(NotPlain, match="it is a link"):
        cluster._take_own_settings(stack, backup, ".incoming")
    assert list((tmp_path / ".incoming").iterdir()) == []


@as_root
def test_a_directory_that_root_fills_is_the_account_s_only_once_it_is_whole(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    ran: list[str] = []
    context: Any = SimpleNamespace(
        host=Host("nobody"), make_dir=Host("nobody").make_dir, run=lambda command, what: ran.append(command)
    )
    folders = Folders(SimpleNamespace(data=tmp_path / "nv-db-data", context=context))  # type: ignore[arg-type]
    folders.make("ours", account=False)
    folders.make("theirs", account=True)
    assert ((tmp_path / "ours").stat().st_uid, (tmp_path / "theirs").stat().st_uid) == (0, nobody)
    for name in ("ours", "theirs"):
        folders.finish(name, "file", "text")
        assert (tmp_path / name / "file").stat().st_uid == nobody
    assert ran == [f"chown -R -h nobody: {tmp_path / 'ours'}"], "links in the account's directory are left alone"


# a file that is written into a directory of somebody else


@as_root
def test_a_link_planted_while_a_file_is_written_changes_no_other_file(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    theirs(shared)

    def plant(handle: int) -> None:
        """Do what the directory's owner can, between two steps of the write."""
        (aside,) = shared.glob(".out.*")
        aside.rename(shared / "away")
        aside.symlink_to(secret)

    monkeypatch.setattr(os, "fsync", plant)
    Host("nobody").write_file(shared / "out", b"x", 0o644, account=True)
    assert (mode(secret), secret.stat().st_uid) == (0o600, 0)
    assert secret.read_text() == "secret"
    with pytest.raises(FileExistsError, match=str(shared / "out")):
        Host().write_file(shared / "out", b"x", 0o644, replace=False)


def test_a_write_whose_directory_is_exchanged_stays_in_the_one_it_began_in(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def plant(handle: int) -> None:
        folder.rename(tmp_path / "moved")
        folder.symlink_to(victim)

    monkeypatch.setattr(os, "fsync", plant)
    Host().write_file(folder / "out", b"x", 0o600)
    assert list(victim.iterdir()) == []
    assert [path.name for path in (tmp_path / "moved").iterdir()] == ["out"]


def test_a_link_in_the_place_of_what_a_host_writes_aside_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    (tmp_path / f"out.{os.getpid()}.new").symlink_to(victim)
    agent.write_aside(str(tmp_path / "out"), b"x", 0o644)
    assert victim.read_text() == "as it was"
    assert (tmp_path / "out").read_text() == "x"
    assert not (tmp_path / "out").is_symlink()


@pytest.mark.usefixtures("alarm")
def test_a_fifo_in_the_place_of_the_log_of_commands_hangs_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "devstack.log")
    folders = paths.Paths(root=tmp_path, state=tmp_path, cache=tmp_path, run=tmp_path, log=tmp_path)
    log = container._open_log(folders)
    assert log
    log.info("a command")
    assert "devstack.log can't be written" in capsys.readouterr().err


# directories that others could exchange the files of


def refused(folder: Path, root: Path, says: str, *, sticky: bool = True) -> None:
    with pytest.raises(UsageError, match="backups can't be kept in") as caught:
        Host().check_closed(folder, "backups", setting="data.dir", root=root, sticky=sticky)
    assert says in caught.value.text()
    assert "data.dir" in caught.value.text()


def test_a_directory_that_everybody_may_write_to_is_refused_unless_names_in_it_are_safe(
    shared: Path, tmp_path: Path
) -> None:
    root = tmp_path / "project"
    Host().check_closed(shared, "backups", setting="data.dir", root=root, sticky=True)
    Host().check_closed(shared / "new", "logs", setting="stack.log_dir", root=root)
    refused(shared, root, "is writable by everybody", sticky=False)
    shared.chmod(0o777)
    refused(shared, root, f"{shared} is writable by everybody")
    refused(shared / "below/it", root, f"{shared} is writable by everybody")
    (tmp_path / "link").symlink_to(shared)
    refused(tmp_path / "link", root, f"{shared} is writable by everybody")
    Host().check_closed(shared, "backups", setting="data.dir", root=shared)  # a project's directory has been judged


@as_root
def test_a_directory_of_somebody_else_or_below_one_is_refused(tmp_path: Path) -> None:
    root, folder = tmp_path / "project", tmp_path / "project/theirs"
    (folder / "ours").mkdir(parents=True)
    theirs(folder)
    refused(folder, root, f"{folder} belongs to nobody")
    refused(folder / "ours", root, f"{folder} belongs to nobody")
    Host("", {pwd.getpwnam("nobody").pw_uid}).check_closed(folder / "ours", "backups", setting="data.dir", root=root)


@as_root
def test_a_group_may_write_above_a_directory_where_the_administrator_has_it_so_but_not_into_it(tmp_path: Path) -> None:
    (tmp_path / "log/ours").mkdir(parents=True)
    os.chown(tmp_path / "log", 0, pwd.getpwnam("nobody").pw_gid)
    (tmp_path / "log").chmod(0o775)
    Host().check_closed(tmp_path / "log/ours", "logs", setting="stack.log_dir", root=tmp_path / "project")
    refused(tmp_path / "log", tmp_path / "project", "is writable by the group")


@as_root
def test_logs_of_somebody_else_are_refused_before_anything_is_written(project: Project) -> None:
    logs = project.root / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    (logs / "nv-db.log").symlink_to(project.folder / "victim")
    theirs(logs)
    said = project.inv("db.start", expect=2).stderr
    assert f"logs can't be kept in {logs}" in said
    assert "stack.log_dir" in said
    assert not (project.folder / "victim").exists()
    assert [path.name for path in logs.iterdir()] == ["nv-db.log"]


# state and programs in a directory of somebody else


def program_of_somebody(folder: Path, canary: Path) -> Path:
    """Make programs by PostgreSQL's names, which belong to nobody and leave a file."""
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb", "psql", "pg_dump", "pg_restore", "pg_config", "pg_ctl"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {canary}\necho 'postgres (PostgreSQL) 18.1'\n")
        (folder / name).chmod(0o755)
        theirs(folder / name)
    return theirs(folder)


@pytest.mark.variations
@as_root
@pytest.mark.parametrize("part", ["base", "state", "link"])
def test_no_command_obeys_state_that_another_account_could_exchange(
    project: Project, tmp_path: Path, part: str
) -> None:
    project.begin()
    canary, state = tmp_path / "canary", project.state
    programs = program_of_somebody(project.folder / "evil", canary)
    choices = {"runtime": "native", "postgres_bin": str(programs), "postgres_version": "18.1", "extensions": ["vector"]}
    (state / "choices.json").write_text(json.dumps(choices))
    for folder in (state / "config", state / "applied"):  # a command that starts nothing needs no more
        folder.mkdir(exist_ok=True)
    base = project.state_base
    if part == "link":
        base = project.folder / "link"
        base.symlink_to(project.state_base)
        theirs(base)
    else:
        theirs({"base": base, "state": state}[part])
    commands = ["system-info", "dev.status", "dev.down", "db.start", "dev.list", "dev.env"]
    for command in commands if part == "base" else commands[:1]:
        said = project.inv(command, expect=2, INVOKE_STACK_STATE_DIR=str(base)).stderr
        assert "an environment's state can't be kept in" in said
        assert "nobody" in said
        assert "stack.state_dir" in said
        assert not canary.exists(), command


@as_root
@pytest.mark.parametrize("words", [["system-info"], ["db.start"]])
def test_no_programs_are_run_from_a_cache_of_another_account(
    project: Project, tmp_path: Path, words: list[str]
) -> None:
    pg0 = pytest.importorskip("pg0")
    version = subprocess.run(
        [Path(pg0.__file__).parent / "bin/pg0", "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    canary, cache = tmp_path / "canary", project.folder / "planted-cache"
    program_of_somebody(cache / f"postgresql-pg0-{version}/bin", canary)
    theirs(cache)
    said = project.inv(*words, expect=2, INVOKE_STACK_CACHE_DIR=str(cache)).stderr
    assert f"PostgreSQL's programs can't be kept in {cache}" in said
    assert "stack.cache_dir" in said
    assert not canary.exists()


def test_state_in_a_project_or_in_a_home_directory_is_ours(tmp_path: Path) -> None:
    root = tmp_path / "project"
    folders = {"run": tmp_path / "run", "log": root / "logs", "root": root}
    Host().check_places(paths.Paths(state=root / "var/state", cache=root / "var/cache", **folders))
    home = tmp_path / "home/.local/share/nv-devstack"
    home.mkdir(parents=True)
    Host().check_places(paths.Paths(state=home / "state", cache=Path("/var/cache/nv-devstack"), **folders))


@pytest.mark.parametrize("name", ["lock", "lock-holder"])
def test_a_lock_leads_to_no_other_file(tmp_path: Path, victim: Path, name: str) -> None:
    (victim / "file").write_text("ours")
    (tmp_path / name).symlink_to(victim / "file")
    lock = StackLock(tmp_path / "lock", timeout=1)
    if name == "lock":
        with pytest.raises(UsageError, match="can't be used as a lock") as caught:
            lock.acquire()
        assert caught.value.fix == [f"remove it: rm {tmp_path / name}"]
        with pytest.raises(UsageError, match="can't be used as a lock"):
            lock.try_acquire()
    else:
        lock.acquire()
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text().startswith(f"{os.getpid()} ")
        lock.release()
    assert (victim / "file").read_text() == "ours"


# links that came with the project


def link_in_project(tmp_path: Path, victim: Path, name: str) -> tuple[Path, Path]:
    """Return a project and a link in it that leads to the victim."""
    root = tmp_path / "project"
    link = root / name
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    return root, link


@pytest.mark.parametrize("name", ["logs", "var/logs", "logs/test"])
def test_a_link_out_of_the_project_is_refused_by_name(tmp_path: Path, victim: Path, name: str) -> None:
    root, link = link_in_project(tmp_path, victim, name)
    for folder in (link, link / "below"):
        with pytest.raises(UsageError, match="logs can't be kept in") as caught:
            trust.check_links(folder, "logs", setting="stack.log_dir", root=root)
        said = caught.value.text()
        assert f"{link} is a link out of the project, to {victim}" in said
        assert f"rm {link}; or if they belong there, set stack.log_dir to {victim}" in said


def test_a_link_among_the_files_is_refused_too(tmp_path: Path, victim: Path) -> None:
    root, link = link_in_project(tmp_path, victim / "file", "logs/nv-db.log")
    with pytest.raises(UsageError) as caught:
        trust.check_links(link.parent, "logs", setting="stack.log_dir", root=root)
    assert caught.value.fix == [f"remove the link: rm {link}; or set stack.log_dir to another directory"]


def test_a_link_among_backups_is_no_backup_and_hinders_nothing(tmp_path: Path, victim: Path) -> None:
    backups = tmp_path / "project" / "backups"
    backups.mkdir(parents=True)
    (backups / "old.sql.gz").symlink_to(victim)
    trust.check_links(backups, "backups", setting="data.dir", root=tmp_path / "project", files=False)


def test_a_link_that_stays_in_the_project_is_followed(tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "var").mkdir(parents=True)
    (root / "logs").symlink_to("var")
    (tmp_path / "link").symlink_to(root)
    trust.check_links(root / "logs", "logs", setting="stack.log_dir", root=root)
    trust.check_links(tmp_path / "link/logs", "logs", setting="stack.log_dir", root=tmp_path / "link")


def test_a_directory_elsewhere_that_the_settings_name_is_taken(tmp_path: Path, victim: Path) -> None:
    (victim / "link").symlink_to(tmp_path)
    trust.check_links(victim, "logs", setting="stack.log_dir", root=tmp_path / "project")


def test_a_directory_that_was_there_keeps_its_mode_if_so_wished(tmp_path: Path, victim: Path) -> None:
    Host().make_dir(victim, 0o755, keep_mode=True)
    assert mode(victim) == 0o750
    Host().make_dir(tmp_path / "new", 0o755, keep_mode=True)
    assert mode(tmp_path / "new") == 0o755


@pytest.mark.variations
@pytest.mark.parametrize(("name", "setting"), [("logs", "stack.log_dir"), ("backups", "data.dir")])
@pytest.mark.parametrize("words", [["db.start"], ["dev.bundle"], ["data.backup"], ["data.list"]])
def test_no_command_follows_a_link_of_the_project_to_a_directory_elsewhere(
    project: Project, victim: Path, name: str, setting: str, words: list[str]
) -> None:
    shutil.rmtree(project.root / name, ignore_errors=True)
    (project.root / name).symlink_to(victim)
    victim.chmod(0o700)
    said = project.inv(*words, expect=2).stderr
    assert f"{name} can't be kept in {project.root / name}" in said
    assert f"set {setting} to {victim}" in said
    assert mode(victim) == 0o700
    assert list(victim.iterdir()) == []


def test_an_export_does_not_follow_a_link_of_the_project(project: Project, victim: Path) -> None:
    (project.root / "export").symlink_to(victim)
    said = project.inv("dev.export", "--format", "compose", expect=2).stderr
    assert f"the export can't be kept in {project.root / 'export/compose'}" in said
    assert list(victim.iterdir()) == []


@as_root
def test_an_export_is_written_through_nothing_of_another_account(project: Project, victim: Path) -> None:
    victim.chmod(0o755)
    out = project.folder / "out"

    def refused_for(reason: str, output: Path = out) -> None:
        said = project.inv("dev.export", "--format", "compose", "--output", str(output), expect=2).stderr
        assert "the export can't be kept in" in said
        assert reason in said
        assert list(victim.iterdir()) == []

    out.mkdir()
    (out / "secrets").symlink_to(victim)
    refused_for(f"{out / 'secrets'} is a link, to {victim}")
    theirs(out / "secrets")
    theirs(out)
    refused_for(f"{out} belongs to nobody")
    assert [path.name for path in out.iterdir()] == ["secrets"]
    os.chown(out, 0, -1)
    (out / "secrets").unlink()
    (out / "secrets").mkdir()
    theirs(out / "secrets")
    refused_for(f"{out / 'secrets'} belongs to nobody")
    (project.folder / "link").symlink_to(out)
    theirs(project.folder / "link")
    refused_for("is a link that belongs to nobody", project.folder / "link")
    (out / "secrets").rmdir()
    project.inv("dev.export", "--format", "compose", "--output", str(out))
    assert list((out / "secrets").iterdir())


# what a process says of itself


@as_root
def test_a_process_of_another_account_is_not_believed_which_stack_started_it() -> None:
    """Its NV_STACK would send whoever reads the message into a directory of its choice."""
    (port,) = free_ports(1)
    script = (
        "import os, socket, sys; os.setuid(int(sys.argv[2]));"
        "s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print(flush=True); sys.stdin.read()"
    )
    nobody, service = (pwd.getpwnam(name).pw_uid for name in ("nobody", "postgres"))
    for uid, stack in ((nobody, ""), (service, "/tmp/trap"), (0, "/tmp/trap")):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(port), str(uid)],
            env={**os.environ, "NV_STACK": "/tmp/trap"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            holder = Host("postgres").port_holder("127.0.0.1", port)
            process.communicate()
        assert holder is not None
        assert (holder.pid, holder.stack) == (process.pid, stack)


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
