"""The link to a host: whom it trusts, and what becomes of a command when it breaks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

from tests.conftest import ROOT, wait_for
from tests.remote.host import Host, Remote


@pytest.fixture
def unknown(remote: Remote) -> Iterator[Remote]:
    """A project whose host is not known."""
    remote.host.known_hosts.unlink()
    yield remote
    remote.host.know()


def test_an_unknown_host_is_shown_and_accepted_by_its_fingerprint(unknown: Remote) -> None:
    refused = unknown.inv("dev.status", expect=1).stderr
    key = subprocess.run(["ssh-keygen", "-lf", unknown.host.folder / "hostkey.pub"], capture_output=True, text=True)
    fingerprint = key.stdout.split()[1]
    assert "the host key of box is not known" in refused
    assert f"inv remote.accept {fingerprint}" in refused
    assert not unknown.host.known_hosts.exists()
    assert fingerprint in unknown.inv("remote.accept", "SHA256:another", expect=1).stderr
    assert not unknown.host.known_hosts.exists()
    unknown.inv("remote.accept", fingerprint)
    assert unknown.host.known_hosts.stat().st_mode & 0o777 == 0o600
    assert "known already" in unknown.inv("remote.accept", fingerprint).stdout
    unknown.inv("remote.check")
    subprocess.run(
        ["ssh", "-F", unknown.host.config, "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "box", "true"],
        check=True,
        capture_output=True,
    )


def test_another_key_than_before_is_refused(unknown: Remote) -> None:
    other = (unknown.host.folder / "id.pub").read_text().split()[:2]
    unknown.host.known_hosts.write_text(f"{unknown.host.address} {' '.join(other)}\n")
    refused = unknown.inv("dev.up", expect=1).stderr
    assert "the host key of box is another one than before" in refused
    assert "ssh-keygen -R" in refused


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("no-such-host.invalid", "there is no host no-such-host.invalid"),
        ("127.0.0.1:1", "can't be reached"),
        ("nobody@box", "does not let nobody in"),
    ],
)
def test_a_host_that_can_not_be_reached_is_named(remote: Remote, host: str, said: str) -> None:
    refused = remote.inv("dev.status", NV_HOST=host, expect=1).stderr
    assert said in refused
    assert "fix:" in refused


@pytest.mark.parametrize("host", ["two words", "a@b@c", "-oProxyCommand=touch", "box/x", "a,b"])
def test_what_is_no_host_is_refused(remote: Remote, host: str) -> None:
    assert "stack.host" in remote.inv("dev.status", NV_HOST=host, expect=2).stderr


def test_a_jump_host_leads_to_one_behind_it_and_both_must_be_known(remote: Remote) -> None:
    config = remote.host.config
    inner = f"Host inner\n  HostName localhost\n  Port {remote.host.port}\n  ProxyJump box\n"
    config.write_text(
        f"{config.read_text()}{inner}  IdentityFile {remote.host.folder}/id\n"
        f"  UserKnownHostsFile {remote.host.known_hosts}\n"
    )
    refused = remote.inv("remote.check", NV_HOST="inner", expect=1).stderr
    assert "the host key of inner is not known" in refused
    remote.inv("remote.accept", refused.split()[-1], NV_HOST="inner")
    assert "The stack can start on inner." in remote.inv("remote.check", NV_HOST="inner").stdout
    config.write_text(config.read_text().replace("HostName localhost", "HostName 10.213.255.254"))
    assert "error: inner" in remote.inv("remote.check", NV_HOST="inner", expect=1).stderr


def test_a_host_that_says_nothing_has_a_limit(remote: Remote) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        remote.inv("dev.status", NV_HOST=host, INVOKE_REMOTE_CONNECT_TIMEOUT="1", expect=1)
        assert time.monotonic() - began < 30


LARGE = (
    "DROP TABLE IF EXISTS large; CREATE TABLE large AS"
    " SELECT n, md5(random()::text) || md5(random()::text) AS text FROM generate_series(1, 400000) n"
)


@pytest.fixture
def large(up: Remote) -> Remote:
    """A database whose backup takes a moment, and is hard to compress."""
    up.sql(LARGE)
    return up


def cut(host: Host, how: str) -> None:
    if how == "cable":
        host.link(up=False)
    else:
        host.end_sessions()


@pytest.mark.parametrize("how", ["cable", "server"])
@pytest.mark.parametrize("when", ["made there", "comes here"])
def test_a_backup_whose_link_breaks_leaves_nothing_half_done(large: Remote, how: str, when: str) -> None:
    here, there = large.root / "backups", large.there / "backups"
    before = large.backups
    process = large.popen("data.backup")
    if when == "made there":
        wait_for(lambda: list(there.glob(".nv-*.partial")))
    else:
        wait_for(lambda: any(path.stat().st_size for path in here.glob(".nv-*.partial")))
    try:
        cut(large.host, how)
        _, said = process.communicate(timeout=30)
    finally:
        large.host.link(up=True)
    assert process.returncode == 1, said
    assert "the link to box is lost" in said
    assert "Traceback" not in said
    assert large.backups == before
    assert "HEALTHY" in wait_for(lambda: large.inv("health", "--wait", "30").stdout, 60)
    # what was made, and did not come, comes with the next one; over a dead cable the host needs a moment to notice
    large.inv("data.backup")
    assert len(large.backups) - len(before) in ({2} if when == "comes here" else {1, 2})
    assert not [*here.glob(".nv-*"), *there.glob(".nv-*")]
    for name in large.backups:
        if name not in before:
            large.inv("data.verify", "--file", name)
            (here / name).unlink()
            (here / f"{name}.json").unlink()


@pytest.mark.parametrize("how", ["cable", "server"])
def test_a_restore_whose_link_breaks_keeps_the_one_database_or_the_other(large: Remote, how: str) -> None:
    made = json.loads(large.inv("data.backup", "--no-verify", "--json").stdout)["file"]
    large.sql("DELETE FROM large WHERE n > 5")
    process = large.popen("data.restore", "--file", made, "--no-safety-backup")
    wait_for(lambda: large.state.joinpath("journal.json").exists())
    try:
        cut(large.host, how)
        _, said = process.communicate(timeout=30)
    finally:
        large.host.link(up=True)
    assert process.returncode == 1
    assert "the link to box is lost" in said
    assert "HEALTHY" in wait_for(lambda: large.inv("health", "--wait", "30").stdout, 60)
    assert large.sql("SELECT count(*) FROM large").split()[2] in ("5", "400000")
    large.inv("data.restore", "--file", made, "--no-safety-backup")
    assert large.sql("SELECT count(*) FROM large").split()[2] == "400000"


UNATTENDED = """
import subprocess, sys
sys.path.insert(0, {root!r})
from devstack.remote.agent import guard_of
child = subprocess.Popen(["sleep", "300"], start_new_session=True)
guard_of(child)
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.faults
def test_a_command_is_interrupted_when_what_attends_to_it_is_killed() -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", UNATTENDED.format(root=str(ROOT))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert agent.stdout
    command = psutil.Process(int(agent.stdout.readline()))
    agent.kill()
    agent.communicate()
    psutil.wait_procs([command], timeout=10)
    assert not command.is_running()


def test_following_logs_ends_with_the_link(up: Remote) -> None:
    process = up.popen("dev.logs", "--follow")
    assert process.stdout
    assert process.stdout.readline()
    try:
        up.host.link(up=False)
        _, said = process.communicate(timeout=30)
    finally:
        up.host.link(up=True)
    assert process.returncode == 1
    assert "nothing has come from it for 3 s" in said


@pytest.fixture
def tunnelled(up: Remote) -> Iterator[Remote]:
    """A tunnel that a test opens is closed."""
    yield up
    up.inv("remote.tunnel", "--stop")


def test_a_tunnel_leads_there_and_comes_back_by_itself(tunnelled: Remote) -> None:
    up = tunnelled
    assert "no tunnel to box" in up.inv("remote.tunnel", "--status", expect=1).stdout
    assert "there is no tunnel to box" in up.inv("dev.exec", "--", "true", expect=1).stderr
    shown = up.inv("remote.tunnel").stdout
    assert all(f"127.0.0.1:{port}" in shown for port in (up.db_port, up.pgb_port, up.api_port))
    state = json.loads(up.inv("remote.tunnel", "--status", "--json").stdout)
    pid = state["pid"]
    assert state["up"]
    assert up.http("/health")[0] == 200
    assert up.query("SELECT 1", up.pgb_port) == [(1,)]
    with up.connect(up.db_port).cursor() as cursor:
        cursor.execute("SELECT repeat('x', 5000000)")
        assert len(cursor.fetchone()[0]) == 5_000_000
    assert "already open" in up.inv("remote.tunnel").stdout
    tests = up.root / "test_there.py"
    tests.write_text(
        "import os, psycopg2\n\ndef test_it():\n    psycopg2.connect(os.environ['DATABASE_URL']).close()\n"
    )
    up.inv("dev.exec", "--", up.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests))

    def times_lost() -> int:
        stdout, _ = up.popen("remote.tunnel", "--status", "--json").communicate(timeout=30)
        return int(json.loads(stdout)["lost"])

    for lost, how in enumerate(("cable", "server"), start=1):
        connection = up.connect(up.db_port)
        try:
            cut(up.host, how)
            if how == "cable":
                wait_for(lambda: "is down" in up.popen("remote.tunnel", "--status").communicate(timeout=30)[0])
            # a server that is there again is found again sooner than a command may look
            wait_for(lambda: times_lost() == lost)  # noqa: B023
            # who was connected is told, and not left to wait
            with pytest.raises(psycopg2.OperationalError), connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        finally:
            up.host.link(up=True)
        wait_for(lambda: up.http("/health")[0] == 200, 40)
        assert "is open" in up.inv("remote.tunnel", "--status").stdout
    up.inv("remote.tunnel", "--stop")
    assert up.listening() == []
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert "no tunnel" in up.inv("remote.tunnel", "--stop").stdout


def test_a_tunnel_says_who_is_in_its_way(up: Remote) -> None:
    with socket.create_server(("127.0.0.1", up.pgb_port)):
        refused = up.inv("remote.tunnel", expect=1).stderr
    assert f"port {up.pgb_port} is taken here" in refused
    assert up.listening() == []


def test_a_tunnel_that_was_killed_is_not_taken_for_one(tunnelled: Remote) -> None:
    up = tunnelled
    up.inv("remote.tunnel")
    pid = json.loads(up.inv("remote.tunnel", "--status", "--json").stdout)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: up.listening() == [])
    assert "no tunnel" in up.inv("remote.tunnel", "--status", expect=1).stdout
    up.inv("remote.tunnel")


def test_hostile_names_are_only_names(remote: Remote, tmp_path: Path) -> None:
    """Nothing of a path, a value or a file's name is carried out, here or there; no secret is where others see it."""
    word = 'it\'s; touch PWNED $(touch PWNED) `touch PWNED` "touch PWNED" & é'
    there = remote.folder / f"there {word.replace('/', '')}"
    (remote.root / f"{word}.txt").write_text("x")
    (remote.root / "-rf").write_text("x")
    secret = "s3cret-&-$(touch PWNED)-never-shown"
    remote.env |= {"INVOKE_REMOTE_DIR": str(there), "INVOKE_DB_PASSWORD": secret, "INVOKE_API_JWT_SECRET": secret + "2"}
    seen: set[str] = set()
    process = remote.popen("dev.up")
    while process.poll() is None:
        for other in psutil.process_iter():
            try:
                seen.update(other.cmdline())
            except psutil.Error:
                continue
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert (there / f"{word}.txt").read_text() == "x"
    assert remote.inv("db.shell", "--command", f"SELECT {quoted(word)}").stdout.count("PWNED") == 4
    remote.inv("data.backup", "--label", word)
    assert not [word for word in seen if secret in word]
    written = [path for path in remote.folder.rglob("*") if path.is_file() and path.suffix in (".log", ".json")]
    for path in written:
        if secret.encode() in path.read_bytes():
            assert path.stat().st_mode & 0o077 == 0, path
    assert secret not in stdout + stderr
    assert not [*remote.folder.rglob("PWNED"), *Path.home().glob("PWNED"), *Path.cwd().glob("PWNED")]
    assert not list(there.glob(".nv-remote.*.command"))


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
