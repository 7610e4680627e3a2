"""Root and ordinary users: below a home that nobody else may enter, and without root."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil
import pytest

from devstack.host import ACCOUNT, SHARED, Host
from tests.conftest import Project

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


@as_root
def test_root_works_in_a_checkout_below_a_0700_home(workspace: Path, cache: Path) -> None:
    """PostgreSQL and PgBouncer run under an account that can't enter it; the application runs from it."""
    home = workspace / "home-0700"
    (home / "work").mkdir(parents=True)
    home.chmod(0o700)
    project = Project(home / "work", cache)
    project.own_program = True
    project.state_base = workspace / "state-of-home"
    project.env["INVOKE_STACK_STATE_DIR"] = str(project.state_base)
    try:
        project.inv("dev.up")
        assert project.http("/memories", {"content": "from a closed home"})[0] == 201
        pids = project.pids()
        assert psutil.Process(pids["nv-db"]).uids().real != 0
        assert psutil.Process(pids["nv-api"]).cwd().startswith(str(home))
        assert "ready to accept" in project.inv("db.logs").stdout
        project.inv("dev.down")
        assert project.processes() == []
    finally:
        project.end()
        shutil.rmtree(home)
        shutil.rmtree(project.state_base)


@as_root
def test_state_below_a_0700_home_is_refused_with_the_closed_folder(workspace: Path, cache: Path) -> None:
    home = workspace / "closed"
    home.mkdir(mode=0o700)
    project = Project(home, cache)
    try:
        refused = project.inv("dev.up", expect=2)
        assert f"{home} is closed to it (mode 700)" in refused.stderr
        assert "set stack.state_dir" in refused.stderr
        assert project.processes() == []
    finally:
        project.end()
        shutil.rmtree(home)


@pytest.mark.slow
@as_root
def test_the_services_have_an_account_of_their_own_and_data_from_before_keep_theirs_until_handed_over(
    project: Project, cache: Path
) -> None:
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        pytest.skip(f"there is no account {ACCOUNT}: scripts/bootstrap.sh makes it")

    def users() -> set[str]:
        pids = project.pids()
        return {psutil.Process(pids[name]).username() for name in ("nv-db", "nv-pgbouncer")}

    # as it was before there was such an account
    project.inv("db.start", INVOKE_STACK_ACCOUNT="nobody")
    project.inv("db.shell", "--admin", "--command", "CREATE TABLE public.kept AS SELECT 1")
    project.inv("dev.down")
    up = project.inv("dev.up")
    assert users() == {"nobody"}
    assert up.stderr.count("PostgreSQL and PgBouncer run as nobody, as other servers of this machine may") == 1
    hand_over = re.search(r"chown -R .*", up.stderr)
    assert hand_over
    assert hand_over[0] in project.inv("system-info").stdout
    project.inv("dev.down")
    subprocess.run(["sh", "-c", hand_over[0]], check=True)
    assert "run as nobody" not in project.inv("dev.up").stderr
    assert users() == {ACCOUNT}
    assert "1" in project.inv("db.shell", "--admin", "--command", "SELECT count(*) FROM public.kept").stdout
    assert f"PostgreSQL and PgBouncer run as {ACCOUNT}" in project.inv("system-info").stdout
    # what root runs of it is root's alone
    programs = [path for path in cache.glob("postgresql-pg0-*/**/*") if not path.is_symlink()]
    assert len(programs) > 100
    assert {(path.stat().st_uid, path.stat().st_mode & 0o6022) for path in programs} == {(0, 0)}


@as_root
def test_the_services_account_can_t_read_root_s_environment(project: Project) -> None:
    token = f"correct-horse-{os.getpid()}"
    with (project.root / ".env").open("a") as file:
        file.write("OF_DOTENV=yes\n")
    project.inv("dev.up", CANARY_TOKEN=token)
    running = project.processes()
    # PostgreSQL's own processes have another command line, and a copy of its environment
    others = [p for one in running if one.uids().real for p in (one, *one.children(recursive=True))]
    assert {process.name() for process in others} == {"postgres", "pgbouncer"}
    for process in others:
        environ = Path(f"/proc/{process.pid}/environ").read_bytes().decode()
        assert token not in environ, process.cmdline()
        names = {entry.partition("=")[0] for entry in environ.split("\0") if entry}
        ours = {
            "NV_STACK",
            "NV_SERVICE",
            "PG_GRANDPARENT_PID",
            "HOME",
            "PATH",
            "LANG",
            "LANGUAGE",
            "TZ",
            "PWD",
            "OLDPWD",
        }
        assert {name for name in names if not name.startswith("LC_")} - ours <= {"LD_LIBRARY_PATH"}, names
    # the application is root's own
    application = next(process for process in running if "uvicorn" in process.cmdline())
    assert application.uids().real == 0
    assert (application.environ()["CANARY_TOKEN"], application.environ()["OF_DOTENV"]) == (token, "yes")


@as_root
def test_without_the_account_another_is_taken_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devstack.host.ACCOUNT", "nv-none")
    assert (Host().account in SHARED, Host().shares_account, Host().has_account) == (True, True, False)
    assert not Host("nobody").shares_account, "the settings name it"


@pytest.mark.slow
@as_root
def test_an_ordinary_user_needs_no_root(workspace: Path) -> None:
    """The whole life of a stack under an unprivileged account, with the defaults for its folders."""
    python = Path("/usr/bin/python3")
    version = "import sys; print(*sys.version_info[:2])"
    ours = " ".join(map(str, sys.version_info[:2]))
    if (
        not python.exists()
        or subprocess.run([python, "-c", version], capture_output=True, text=True).stdout.strip() != ours
    ):
        pytest.skip("needs a /usr/bin/python3 of this version: an unprivileged account can't enter root's home")
    user = "nobody"
    home = workspace / "nobody"
    home.mkdir()
    subprocess.run([python, "-m", "venv", "--without-pip", home / "venv"], check=True)
    packages = next((home / "venv").glob("lib/python*/site-packages"))
    # nine of ten files are of what only development takes
    not_needed = shutil.ignore_patterns("*mypy*", "kubernetes_validate", "debugpy", "hypothesis", "setuptools", "pip")
    shutil.copytree(sysconfig.get_path("purelib"), packages, dirs_exist_ok=True, ignore=not_needed)
    project = Project(home, home / ".cache" / "nv-devstack", python=str(home / "venv/bin/python"))
    for name in ("INVOKE_STACK_STATE_DIR", "INVOKE_STACK_CACHE_DIR"):
        del project.env[name]
    project.state_base = home / ".local" / "share" / "nv-devstack"
    project.env |= {"HOME": str(home), "USER": user}
    project.env.pop("XDG_DATA_HOME", None)
    project.user = user
    project.have_program()
    subprocess.run(["chown", "-R", user, str(home)], check=True)
    home.chmod(0o700)
    try:
        project.inv("dev.up")
        assert project.http("/memories", {"content": "no root here"})[0] == 201
        assert {psutil.Process(pid).username() for pid in project.pids().values()} == {user}
        assert project.state_base.stat().st_mode & 0o077 == 0
        project.inv("dev.up")
        project.inv("db.shell", "--admin", "--command", "SELECT 1")
        project.inv("dev.restart")
        assert project.http("/memories")[1]["total"] == 1
        project.inv("dev.down")
        assert project.processes() == []
    finally:
        project.end()
        shutil.rmtree(home)
