"""Environments: ten at once without a collision, found again, listed with what they take, and removed for good."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from tests.conftest import ROOT, Project, directory_of_its_own, ended, wait_for
from tests.data.test_reset import KILLED_AT

PORTS = ("INVOKE_DB_PORT", "INVOKE_PGB_PORT", "INVOKE_API_PORT")
TEN = [f"env{number}" for number in range(10)]


class Checkout(Project):
    """A checkout whose environments choose their ports themselves."""

    def __init__(self, folder: Path, cache: Path) -> None:
        super().__init__(folder, cache)
        for name in PORTS:
            del self.env[name]

    def of(self, env: str) -> Path:
        """An environment's state folder."""
        return next(self.state_base.glob(f"*/{env}"))

    def ports(self, env: str) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.of(env) / "ports.json").read_text())
        return found

    def listed(self, *flags: str) -> dict[str, Any]:
        answer = json.loads(self.inv("dev.list", "--json", *flags).stdout)
        return {one["name"]: one for one in answer["environments"] if one["checkout"] == str(self.root)}

    def at_once(self, task: str, envs: list[str]) -> None:
        """A task for several environments at the same time."""
        running = {env: self.popen(task, "-e", env) for env in envs}
        for env, process in running.items():
            stdout, stderr = process.communicate(timeout=180)
            assert process.returncode == 0, f"{task} -e {env}:\n{stdout}\n{stderr}"


def _checkout(workspace: Path, cache: Path) -> Iterator[Checkout]:
    with directory_of_its_own(workspace) as folder, ended(Checkout(folder, cache)) as made:
        yield made


@pytest.fixture(scope="module")
def ten(workspace: Path, cache: Path) -> Iterator[Checkout]:
    """Ten environments, brought up at the same time."""
    for made in _checkout(workspace, cache):
        made.inv("db.start", "-e", TEN[0])  # PostgreSQL is unpacked once
        made.at_once("dev.up", TEN)
        yield made


@pytest.fixture
def checkout(workspace: Path, cache: Path) -> Iterator[Checkout]:
    yield from _checkout(workspace, cache)


@pytest.mark.slow
def test_ten_at_once_are_healthy_each_with_names_and_ports_of_its_own(ten: Checkout) -> None:
    # on a busy machine some do not answer within the list's own bound
    wait_for(lambda: {one["health"] for one in ten.listed().values()} == {"healthy"}, 60)
    found = ten.listed()
    assert list(found) == TEN
    ports = [port for one in found.values() for port in one["ports"].values()]
    assert len(set(ports)) == 30
    names = [name for one in found.values() for name in one["services"]]
    assert len(set(names)) == 30
    for env in TEN:
        assert found[env]["ports"] == ten.ports(env)
        with urllib.request.urlopen(f"http://127.0.0.1:{found[env]['ports']['api']}/health", timeout=10) as answer:
            assert answer.status == 200
        assert f"nv-{env}-db" in found[env]["services"]


@pytest.mark.slow
def test_the_data_of_one_are_not_those_of_another(ten: Checkout) -> None:
    for env in TEN[:2]:
        ten.inv("db.shell", "-e", env, "--command", f"CREATE TABLE mine AS SELECT '{env}'::text AS env")
    for env in TEN[:2]:
        assert env in ten.inv("db.shell", "--env", env, "--command", "SELECT env FROM mine").stdout
    assert "does not exist" in ten.inv("db.shell", f"--env={TEN[2]}", "--command", "TABLE mine", expect=1).stderr
    secrets = {(ten.of(env) / "secrets.json").read_text() for env in TEN}
    assert len(secrets) == 10


@pytest.mark.slow
def test_the_list_says_what_each_takes_in_memory_and_on_disk(ten: Checkout) -> None:
    found = ten.listed()
    for env in TEN:
        services, whole = found[env]["services"], found[env]["memory_bytes"]
        # Supervisor and the reloader are there too
        assert sum(services.values()) < whole < 500 << 20, found[env]
        assert all(size > 1 << 20 for size in services.values())
        assert found[env]["disk_bytes"] > 10 << 20
        assert 0 <= found[env]["age_s"] < 1000
    lines: list[str] = []

    def all_healthy() -> bool:
        lines[:] = ten.inv("dev.list").stdout.splitlines()
        return [line.split()[:3] for line in lines[1:11]] == [[env, "native", "healthy"] for env in TEN]

    wait_for(all_healthy, 60)  # on a busy machine some do not answer within the list's own bound
    assert lines[0].split() == [
        *("environment", "runtime", "health", "api", "pgbouncer", "database", "memory", "disk", "age")
    ]
    assert all(" MB " in line for line in lines[1:11])
    assert lines[-1].startswith("10 environments, 10 running, ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_is_that_of_every_process_counted_once(ten: Checkout) -> None:
    env = TEN[3]
    supervisor = psutil.Process(int((ten.of(env) / "run/supervisord.pid").read_text()))
    total = sum(_share(process.pid) for process in [supervisor, *supervisor.children(recursive=True)])
    # backends come and go
    assert ten.listed()[env]["memory_bytes"] == pytest.approx(total, rel=0.25)


def _share(pid: int) -> int:
    """https://docs.kernel.org/filesystems/proc.html: what a process shares is divided by those who share it."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return 0


@pytest.mark.slow
def test_what_is_up_is_left_as_it_is_and_keeps_its_ports(ten: Checkout) -> None:
    ports = ten.ports(TEN[4])
    assert ten.inv("dev.up", "-e", TEN[4]).stdout.count("already running") == 3
    assert ten.inv("dev.up", NV_ENV=TEN[4]).stdout.count("already running") == 3
    assert ten.ports(TEN[4]) == ports
    status = json.loads(ten.inv("dev.status", "-e", TEN[4], "--json").stdout)
    assert [service["address"].rpartition(":")[2] for service in status["services"]] == [
        str(ports[label]) for label in ("db", "pgb", "api")
    ]


@pytest.mark.slow
def test_ten_go_down_at_once_and_their_ports_stay_theirs(ten: Checkout) -> None:
    before = {env: ten.ports(env) for env in TEN}
    ten.at_once("dev.down", TEN)
    assert ten.processes() == []
    found = ten.listed()
    assert {one["health"] for one in found.values()} == {"stopped"}
    assert {one["memory_bytes"] for one in found.values()} == {0}
    ten.inv("db.start", "-e", "another")
    assert not set(ten.ports("another").values()) & {port for ports in before.values() for port in ports.values()}
    ten.inv("db.start", "-e", TEN[9])
    assert {env: ten.ports(env) for env in TEN} == before
    said = ten.inv("dev.down", "--all").stdout
    assert "nv-another-db" in said
    assert f"nv-{TEN[9]}-db" in said
    assert ten.processes() == []


CHOOSER = """
import sys, time
from pathlib import Path
from devstack.host import Host
from devstack.paths import Paths
from devstack.ports import settle
from devstack.registry import Registry
from devstack.settings import Settings, StackSettings
registry, base, begin = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
time.sleep(max(0, begin - time.time()))
for number in range(15):
    settings = Settings(root=base, stack=StackSettings(env=f"e{number}"))
    state = base / f"e{number}"
    paths = Paths(root=base, state=state, cache=base, run=state / "run", log=base)
    host = Host()
    done = settle(settings, paths, host, Registry(registry, host), keep=True)
    print(done.db.port, done.pgb.port, done.api.port)
"""


def test_checkouts_that_choose_at_the_same_moment_never_choose_the_same(workspace: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=workspace))
    folder.chmod(0o755)
    begin = str(time.time() + 1)
    command = [sys.executable, "-c", CHOOSER, str(folder / "list")]
    several = [
        subprocess.Popen([*command, str(folder / f"checkout{n}"), begin], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    ports = [port for one in several for port in one.communicate(timeout=60)[0].split()]
    assert len(ports) == 4 * 15 * 3
    assert len(set(ports)) == len(ports)


@pytest.mark.slow
def test_two_checkouts_at_once_do_not_get_in_each_other_s_way(checkout: Checkout, workspace: Path, cache: Path) -> None:
    for other in _checkout(workspace, cache):
        both = [(one, one.popen("db.start", "-e", env)) for env in ("a", "b") for one in (checkout, other)]
        for _, process in both:
            _, stderr = process.communicate(timeout=120)
            assert process.returncode == 0, stderr
        ports = [port for one in (checkout, other) for env in ("a", "b") for port in one.ports(env).values()]
        assert len(set(ports)) == 12
        mine, all_ = checkout.inv("dev.list").stdout, checkout.inv("dev.list", "--all").stdout
        assert str(other.root) not in mine
        assert f"\n{checkout.root}\n" in all_
        assert f"\n{other.root}\n" in all_
        assert set(checkout.listed()) == {"a", "b"}
        elsewhere = json.loads(checkout.inv("dev.list", "--all", "--json").stdout)["environments"]
        theirs = {one["name"]: one for one in elsewhere if one["checkout"] == str(other.root)}
        assert set(theirs) == {"a", "b"}
        assert theirs["a"]["ports"] == other.ports("a")
        assert theirs["a"]["health"] == "partial"
        assert theirs["a"]["memory_bytes"] > 1 << 20


def test_a_port_that_is_set_wins(checkout: Checkout) -> None:
    checkout.begin("-e", "a")
    block = checkout.ports("a")
    said = checkout.inv("dev.status", "-e", "a", expect=1, INVOKE_DB_PORT=str(checkout.db_port)).stdout
    assert f":{checkout.db_port}" in said
    assert f":{block['pgb']}" in said
    # what every environment reads is for the one that it names
    settings = checkout.root / "invoke.yaml"
    settings.write_text(settings.read_text().replace("port: 5433 ", f"port: {checkout.db_port} "))
    assert f":{block['db']}" in checkout.inv("db.status", "-e", "a", expect=1).stdout
    assert f":{checkout.db_port}" in checkout.inv("db.status", expect=1).stdout
    settings.write_text(settings.read_text().replace("  env: dev ", "  env: mine "))
    checkout.begin()
    said = checkout.inv("dev.status", expect=1).stdout
    assert f"nv-mine-db         stopped    -   -  127.0.0.1:{checkout.db_port}" in said
    assert f":{checkout.ports('mine')['pgb']}" in said
    clash = checkout.inv("db.start", "-e", "a", expect=2, INVOKE_DB_PORT=str(block["api"])).stderr
    assert f"are both {block['api']}" in clash
    goes_on = checkout.inv("dev.status", "-e", "a", expect=1, INVOKE_DB_PORT=str(block["api"]))
    assert f"are both {block['api']}" in goes_on.stderr
    assert f":{block['db']}" in goes_on.stdout


def test_a_port_that_somebody_took_meanwhile_is_refused_with_what_to_do(checkout: Checkout) -> None:
    checkout.begin("-e", "a")
    port = checkout.ports("a")["db"]
    with socket.socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        foreign.bind(("127.0.0.1", port))
        foreign.listen()
        said = checkout.inv("db.start", "-e", "a", expect=1).stderr
    assert f"port {port} of nv-a-db is taken" in said
    assert f"(pid {os.getpid()})" in said
    assert "INVOKE_DB_PORT" in said
    assert f"rm {checkout.of('a')}/ports.json" in said
    (checkout.of("a") / "ports.json").unlink()
    with socket.socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        foreign.bind(("127.0.0.1", port))
        foreign.listen()
        checkout.inv("db.start", "-e", "a")
    assert port not in checkout.ports("a").values()


@pytest.mark.slow
def test_a_dry_run_and_a_look_choose_nothing_for_good(checkout: Checkout) -> None:
    assert "nv-a-db" in checkout.inv("--dry", "db.start", "-e", "a").stdout
    checkout.inv("data.list", "-e", "a")
    for report in ("dev.status", "db.status", "dev.logs", "pgb.stats", "health", "metrics"):  # of a slip of the pen
        checkout.inv(report, "-e", "a", expect=1)
    assert "nv-a-db         was not running\n" in checkout.inv("dev.down", "--all", "-e", "a").stdout
    assert checkout.inv("dev.list").stdout == "there is no environment yet; inv dev.up makes one\n"
    assert not checkout.state_base.exists()
    assert not (checkout.root / "logs").exists()


# the flag


def test_every_task_takes_the_flag() -> None:
    script = "from tasks import ns; print({n: [a.names for a in ns[n].get_arguments()][-1:] for n in ns.task_names})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    last = eval(done.stdout)
    assert len(last) > 40
    # a task with a flag of its own that begins with e: auto_shortflags=False leaves -e free
    assert [name for name, names in last.items() if names != [("env", "e")]] == []


def test_the_flag_is_for_the_whole_command_and_wins(checkout: Checkout) -> None:
    said = checkout.inv("--dry", "db.start", "pgb.start", "-ea", NV_ENV="b", INVOKE_STACK_ENV="c").stdout
    assert said.count("# wait until nv-a-db answers") == 2  # each task of the line runs with those before it
    assert said.count("# wait until nv-a-pgbouncer answers") == 1
    assert "nv-b-" not in said
    assert "nv-c-" not in said
    again = checkout.inv("--dry", "db.start", "-e", "a", "pgb.start", "--env", "a").stdout
    assert again.count("# wait until nv-a-db answers") == 2
    two = checkout.inv("db.start", "-e", "a", "pgb.start", "-e", "b", expect=2).stderr
    assert "one command is for one environment, not for a and b" in two
    bad = checkout.inv("db.start", "-e", "Bad_", expect=2, NV_ENV="also bad").stderr
    assert "stack.env: 'Bad_': expected 1 to 24 lower-case letters, digits and -" in bad
    assert "from the flag -e" in bad
    assert "also bad" not in bad
    assert "--env needs a value" in checkout.inv("dev.up", "--env", expect=2).stderr
    assert list(checkout.state_base.glob("*/*")) == []


@pytest.mark.slow
def test_what_mends_something_is_for_the_environment_too(checkout: Checkout) -> None:
    assert "fix:   inv db.start -e a\n" in checkout.inv("db.shell", "-e", "a", expect=1).stderr
    assert "fix:   inv db.start -e a\n" in checkout.inv("db.shell", expect=1, NV_ENV="a").stderr
    assert "fix:   inv db.start\n" in checkout.inv("db.shell", expect=1).stderr
    assert "inv db.start -e a " in checkout.inv("health", "-e", "a", expect=1).stdout
    assert "make one: inv data.backup -e a\n" in checkout.inv("data.list", "-e", "a").stdout


@pytest.mark.slow
def test_hooks_are_for_the_environment_of_the_flag(checkout: Checkout) -> None:
    hook = 'echo "for $NV_ENV $DATABASE_URL"; exit 3'
    said = checkout.inv("dev.up", "-e", "a", expect=1, INVOKE_HOOKS_PRE_UP=hook, INVOKE_STACK_ENV="b")
    assert "for a postgresql://nina:" in said.stdout
    assert f":{checkout.ports('a')['pgb']}/nina" in said.stdout


# removal


def test_an_environment_is_removed_for_good_and_its_backup_stays(checkout: Checkout) -> None:
    checkout.inv("db.start", "-e", "a")
    checkout.inv("db.start", "-e", "b")
    checkout.inv("db.shell", "-e", "a", "--command", "CREATE TABLE mark AS SELECT 'kept' AS text")
    assert "dev.remove wants to be told which" in checkout.inv("dev.remove", "--yes", expect=2, NV_ENV="a").stderr
    assert "there are: a, b" in checkout.inv("dev.remove", "-e", "c", expect=2).stderr
    refused = checkout.inv("dev.remove", "-e", "a", expect=2).stderr
    assert "add --yes" in refused
    assert str(checkout.of("a")) in refused
    assert set(checkout.listed()) == {"a", "b"}
    state = checkout.of("a")
    done = checkout.inv("dev.remove", "-e", "a", "--yes").stdout
    assert "environment a is gone" in done
    assert not state.exists()
    assert not (checkout.root / "logs/a").exists()
    assert set(checkout.listed()) == {"b"}
    assert checkout.listed()["b"]["health"] == "partial"
    (backup,) = (checkout.root / "backups/a").glob("*.sql.gz")
    checkout.inv("db.start", "-e", "a")
    checkout.inv("data.restore", "-e", "a", "--file", backup.name, "--no-safety-backup")
    assert "kept" in checkout.inv("db.shell", "-e", "a", "--command", "TABLE mark").stdout


@pytest.mark.faults
def test_who_waited_for_an_environment_that_was_removed_hears_so(checkout: Checkout) -> None:
    checkout.begin("-e", "a")
    state = checkout.of("a")
    with FileLock(state / "lock"):
        waiting = checkout.popen("db.start", "-e", "a")
        assert waiting.stderr is not None
        assert "waiting for" in waiting.stderr.readline()
        state.rename(state.with_name("gone"))
    _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == 1
    assert "was removed while this waited for it" in said
    wait_for(lambda: not state.exists())


@pytest.mark.faults
def test_a_removal_that_is_cut_off_can_be_done_again(checkout: Checkout) -> None:
    checkout.inv("db.start", "-e", "a")
    command = checkout.code(KILLED_AT, "os.remove", "40", "dev.remove", "-e", "a", "--yes", "--no-backup")
    killed = subprocess.run(command, cwd=checkout.root, env=checkout.env, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert set(checkout.listed()) == {"a"}
    checkout.inv("dev.remove", "-e", "a", "--yes", "--no-backup")
    assert checkout.listed() == {}
    assert list(checkout.state_base.glob("*/*")) == []
