"""From a bare host to a stack on it, for an application that is not a checkout of this program."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack.errors import StackError
from devstack.remote.link import connect
from devstack.remote.talk import Talk
from tests.conftest import ROOT, directory_of_its_own, ended, wait_for
from tests.remote import host as hosts
from tests.remote.host import Host, Remote

MAIN = """
import os

from fastapi import FastAPI

app = FastAPI()


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "healthy", "database": os.environ["DATABASE_URL"].rpartition("/")[2]}
"""


@pytest.fixture
def beside(workspace: Path) -> Iterator[Host]:
    """A host that is this machine: it can install packages."""
    with directory_of_its_own(workspace, "box-") as folder, hosts.beside(folder) as host:
        host.know()
        yield host


class Stranger(Remote):
    """An application with a folder ``tasks`` of its own, whose stack is told by `nv`."""

    def command(self, *args: str) -> list[str]:
        code = f"import sys; sys.path[0] = {str(ROOT)!r}; sys.argv[0] = 'nv'; from tasks.program import main; main()"
        return [sys.executable, "-c", code, *args]


@pytest.fixture
def stranger(workspace: Path, cache: Path, beside: Host) -> Iterator[Stranger]:
    with directory_of_its_own(workspace) as folder, ended(Stranger(folder, cache, beside)) as made:
        shutil.rmtree(made.root)
        (made.root / "shop" / "tasks").mkdir(parents=True)
        (made.root / "tasks").mkdir()
        (made.root / "tasks" / "__init__.py").write_text("raise SystemExit('not these')\n")
        (made.root / "shop" / "main.py").write_text(MAIN)
        (made.root / "invoke.yaml").write_text(
            f"api: {{app: 'shop.main:app', dir: .}}\nssh_config_path: {beside.config}\n"
        )
        del made.env["INVOKE_REMOTE_PYTHON"]
        yield made


def test_a_bare_host_is_checked_set_up_and_used(stranger: Stranger) -> None:
    checked = stranger.inv("remote.check", expect=1).stdout
    assert "nv remote.bootstrap sets it up" in checked
    assert "The stack can't start on box: project program." in checked
    facts = {
        (fact["topic"], fact["name"]): fact
        for fact in json.loads(stranger.inv("remote.check", "--json", expect=1).stdout)["facts"]
    }
    assert facts["machine", "Python"]["ok"]
    assert not stranger.there.exists(), "looking changes nothing"
    refused = stranger.inv("dev.up", expect=1).stderr
    assert "it is not set up yet" in refused
    assert "nv remote.bootstrap" in refused
    said = stranger.inv("remote.bootstrap")
    assert "box is set up: nv dev.up" in said.stdout
    assert "installing the Python packages" in said.stderr
    assert "The stack can start on box." in stranger.inv("remote.check").stdout
    stranger.inv("dev.up")
    assert stranger.http("/health") == (200, {"status": "healthy", "database": "nina"})
    assert stranger.processes()
    stranger.inv("data.backup")
    assert len(stranger.backups) == 1
    # a second time there is nothing to do, and what asks for other packages by now gets them
    assert "installing" not in stranger.inv("remote.bootstrap").stderr
    stranger.inv("dev.down")


@pytest.fixture
def without_python(stranger: Stranger, tmp_path: Path) -> Stranger:
    """A stranger whose host has a shell, and nothing else."""
    stranger.host.stop()
    empty = tmp_path / "bin"
    empty.mkdir()
    (empty / "sh").symlink_to("/bin/sh")
    # as of a shell that knows no other place; the agent's own are not there on this machine
    (stranger.host.folder / "authorized").write_text(
        f'command="PATH={empty}; export PATH; eval \\"${{SSH_ORIGINAL_COMMAND#exec }}\\"" '
        + (stranger.host.folder / "id.pub").read_text()
    )
    stranger.host.start()
    return stranger


def test_a_host_without_python_is_told_so(without_python: Stranger) -> None:
    refused = without_python.inv("remote.check", expect=1).stderr
    assert "box has no Python" in refused
    assert "apt-get install python3" in refused


def test_a_host_without_python_is_told_so_when_its_shell_ends_before_anything_is_sent(
    without_python: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"ssh_config_path": str(without_python.host.config)}
    link = connect("box", config, timeout=10, silence=10)
    opened = link.open

    def late(command: str) -> Any:
        channel = opened(command)
        wait_for(lambda: channel.closed)
        return channel

    monkeypatch.setattr(link, "open", late)
    try:
        with pytest.raises(StackError, match="box has no Python"):
            Talk(link, "")
    finally:
        link.close()


def test_a_login_that_prints_is_no_hindrance_and_one_that_ends_is_named(stranger: Stranger) -> None:
    for line, expect in (('echo Welcome; eval \\"$SSH_ORIGINAL_COMMAND\\"', 1), ("echo Go away; exit 3", 1)):
        stranger.host.stop()
        (stranger.host.folder / "authorized").write_text(
            f'command="{line}" ' + (stranger.host.folder / "id.pub").read_text()
        )
        stranger.host.start()
        done = stranger.inv("remote.check", expect=expect)
        if "Welcome" in line:
            assert "connection" in done.stdout
        else:
            assert "Go away" in done.stderr
