"""The agent on a host: nothing that it is sent, and no link that is planted there, has it write or read elsewhere."""

from __future__ import annotations

import json
import os
import pwd
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack.remote.agent import GREETING
from devstack.remote.talk import AGENT, LOADER
from tests.remote.test_hostile import framed, member, tree

LINK = (tarfile.SYMTYPE, "/etc")


class Agent:
    """An agent on this machine, as a host runs it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", LOADER],
            env={"HOME": str(base.parent), "PATH": os.environ["PATH"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.send(AGENT.read_bytes() + b"\0")
        assert self.process.stdout
        assert self.process.stdout.read(len(GREETING)) == GREETING

    def send(self, content: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(content)
        self.process.stdin.flush()

    def ask(self, do: str, *streams: bytes, **request: Any) -> list[dict[str, Any]]:
        """Make one request with what is sent after it; the answers up to the agent's end."""
        self.send(framed(json.dumps({"do": do, "dir": str(self.base), **request}).encode()))
        sent = b"".join(framed(content) + framed(b"") for content in streams)
        out, err = self.process.communicate(sent, timeout=30)
        assert b"Traceback" not in err, err.decode()
        answers = []
        while out:
            (length,) = struct.unpack("!I", out[:4])
            content, out = out[4 : 4 + length], out[4 + length :]
            answers.append(json.loads(content) if content[:1] == b"{" else {"content": content})
        return answers

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The project's directory on the host, with a backup in it; what is beside it is not the project's."""
    made = tmp_path / "home/shop"
    (made / "backups").mkdir(parents=True)
    (made / "backups/b.sql").write_text("backup")
    (made / ".nv-remote.json").write_text(json.dumps({"owner": "me", "files": {}}))
    made.chmod(0o700)
    outside = tmp_path / "home/outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    return made


@pytest.fixture
def agent(base: Path) -> Iterator[Agent]:
    made = Agent(base)
    yield made
    made.end()


def outside(base: Path) -> dict[str, str]:
    """The files beside the project's directory."""
    return {
        str(path.relative_to(base.parent)): path.read_text()
        for path in base.parent.rglob("*")
        if path.is_file() and base not in path.parents
    }


def refused(answers: list[dict[str, Any]], says: str) -> None:
    assert says in answers[-1]["error"], answers


NAMES = ("../outside/secret", "backups/../../outside/secret", "/OUTSIDE/secret", "..", "backups/..", "a\0b")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("do", ["sync", "put", "get", "drop", "listing"])
def test_a_name_that_leads_out_of_the_project_is_refused(agent: Agent, base: Path, do: str, name: str) -> None:
    name = name.replace("/OUTSIDE", str(base.parent / "outside"))
    content = tree((tarfile.TarInfo(name.replace("\0", "")), b"evil"))
    requests: dict[str, dict[str, Any]] = {
        "sync": {"owner": "me", "from": "here", "files": [[name, 4, 0, 0o644]]},
        "put": {"path": name, "tree": False, "mode": 0o600},
        "get": {"files": [name]},
        "drop": {"files": [name]},
        "listing": {"folders": [name]},
    }
    streams = {"sync": [content], "put": [b"evil"]}.get(do, [])
    refused(agent.ask(do, *streams, **requests[do]), "is no path in the project's directory")
    assert outside(base) == {"outside/secret": "secret"}
    assert (base / "backups/b.sql").read_text() == "backup"


def test_a_record_with_names_outside_removes_nothing_there(agent: Agent, base: Path) -> None:
    names = [str(base.parent / "outside/secret"), "../outside/secret"]
    record = {"owner": "me", "files": {name: [6, 0, 0o644, 0] for name in names}}
    (base / ".nv-remote.json").write_text(json.dumps(record))
    refused(agent.ask("sync", b"", owner="me", files=[], **{"from": "here"}), "is no path in the project's directory")
    assert outside(base) == {"outside/secret": "secret"}


@pytest.mark.parametrize("do", ["put", "get", "drop", "listing"])
def test_a_link_out_of_the_project_is_not_followed(agent: Agent, base: Path, do: str) -> None:
    (base / "linked").symlink_to(base.parent / "outside")
    requests: dict[str, dict[str, Any]] = {
        "put": {"path": "linked/secret", "tree": False, "mode": 0o600},
        "get": {"files": ["linked/secret"]},
        "drop": {"files": ["linked/secret"]},
        "listing": {"folders": ["linked"]},
    }
    refused(agent.ask(do, *([b"evil"] if do == "put" else []), **requests[do]), "is a link out of the project")
    assert outside(base) == {"outside/secret": "secret"}


def test_a_link_in_the_project_to_another_place_there_is_followed(agent: Agent, base: Path) -> None:
    (base / "linked").symlink_to("backups")
    assert agent.ask("put", b"more", path="linked/more.sql", tree=False, mode=0o600) == [{"done": True}]
    assert (base / "backups/more.sql").read_text() == "more"


def test_a_link_in_the_place_of_a_file_is_not_followed(base: Path) -> None:
    link = base / "backups/link"
    secret = base.parent / "outside/secret"
    for do, request, kept in (
        ("get", {"files": ["backups/link"]}, True),
        ("drop", {"files": ["backups/link"]}, False),
        ("put", {"path": "backups/link", "tree": False, "mode": 0o600}, False),
        ("put", {"path": "backups/link", "tree": True, "mode": 0o700}, True),
    ):
        link.unlink() if link.is_file() else None
        link.symlink_to(secret)
        streams = [tree(member("a")) if request.get("tree") else b"mine"] if do == "put" else []
        made = Agent(base)
        try:
            answers = made.ask(do, *streams, **request)
        finally:
            made.end()
        assert {"content": b"secret"} not in answers
        assert link.is_symlink() == kept, (do, answers)
        assert outside(base) == {"outside/secret": "secret"}


@pytest.mark.parametrize("target", ["/etc", "..", "../outside"])
def test_a_file_below_a_link_of_the_project_itself_replaces_the_link(agent: Agent, base: Path, target: str) -> None:
    (base / "linked").symlink_to(base.parent / "outside" if target == "../outside" else target)
    content = tree((tarfile.TarInfo("linked/secret"), b"mine"))
    files = [["linked/secret", 4, 0, 0o644]]
    assert agent.ask("sync", content, owner="me", files=files, **{"from": "here"})[-1] == {"done": True}
    assert (base / "linked/secret").read_text() == "mine"
    assert outside(base) == {"outside/secret": "secret"}


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside/secret")],
        [member("/tmp/nv-outside")],
        [member("link", *LINK), member("link/nv-outside")],
        [member("link", tarfile.LNKTYPE, "../outside/secret")],
        [member("pipe", tarfile.FIFOTYPE)],
    ],
    ids=["up", "absolute", "link", "hard link", "pipe"],
)
@pytest.mark.parametrize("do", ["put", "sync"])
def test_a_tar_stream_has_plain_files_of_its_own_alone(agent: Agent, base: Path, do: str, members: list[Any]) -> None:
    content = tree(*members)
    if do == "put":
        answers = agent.ask("put", content, path="backups/new", tree=True, mode=0o700)
        refused(answers, "can't be part of a backup")
    else:
        files = [["other", 1, 0, 0o644], ["link", 0, 0, 0o644], ["pipe", 0, 0, 0o644]]
        answers = agent.ask("sync", content, owner="me", files=files, **{"from": "here"})
        refused(answers, "a file came that was not asked for")
    assert outside(base) == {"outside/secret": "secret"}
    assert not Path("/tmp/nv-outside").exists()
    assert not Path("/etc/nv-outside").exists()
    left = {path.name for path in (base / "backups").iterdir()}
    assert left == {"b.sql"}


def oversized(kind: bytes) -> bytes:
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, 1 << 40
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("do", ["put", "sync"])
def test_a_tar_stream_that_announces_more_than_comes_leaves_nothing(
    agent: Agent, base: Path, do: str, kind: bytes
) -> None:
    requests: dict[str, dict[str, Any]] = {
        "put": {"path": "backups/new", "tree": True, "mode": 0o700},
        "sync": {"owner": "me", "from": "here", "files": [["a", 1, 0, 0o644]]},
    }
    assert "error" in agent.ask(do, oversized(kind), **requests[do])[-1]
    assert {path.name for path in (base / "backups").iterdir()} == {"b.sql"}
    assert sorted(path.name for path in base.iterdir() if path.name != ".nv-remote.lock") == [
        ".nv-remote.json",
        "backups",
    ]


def test_a_pipe_among_the_backups_keeps_nobody_waiting(agent: Agent, base: Path) -> None:
    os.mkfifo(base / "backups/pipe")
    refused(agent.ask("get", files=["backups/pipe"]), "can't be read on the host")


COMMAND = {"argv": ["/bin/true"], "setup": "", "folder": ".", "env": {}, "given": "", "silence": 5, "input": False}
EACH: dict[str, dict[str, Any]] = {
    "sync": {"owner": "me", "from": "here", "files": []},
    "put": {"path": "backups/new", "tree": False, "mode": 0o600},
    "get": {"files": ["backups/b.sql"]},
    "drop": {"files": ["backups/b.sql"]},
    "listing": {"folders": ["backups"]},
    "run": COMMAND,
    "prepare": COMMAND,
}


@pytest.mark.parametrize("do", EACH)
def test_a_directory_that_others_may_write_to_is_not_used(agent: Agent, base: Path, do: str) -> None:
    """They could exchange the programs that are run from there."""
    base.chmod(0o777)
    refused(agent.ask(do, **EACH[do]), "on the host can be changed by others")
    assert (base / "backups/b.sql").read_text() == "backup"
    assert not (base / ".nv-remote.lock").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can have directories of two accounts")
def test_a_directory_that_another_account_has_planted_is_not_used(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, nobody, -1)
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(mine)
    os.chown(link, nobody, -1, follow_symlinks=False)
    for planted in (theirs, link):
        agent = Agent(planted)
        try:
            refused(agent.ask("sync", **EACH["sync"]), "on the host can be changed by others")
        finally:
            agent.end()
        assert list(planted.iterdir()) == []
