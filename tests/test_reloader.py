"""The program that runs a server in a container and starts it anew when its source changes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_for

RELOADER = ROOT / "templates" / "containers" / "reload.py"
SERVER = "import os, time\nprint('serving', os.getpid(), flush=True)\ntime.sleep(600)\n"


class Reloaded:
    """A server of this machine under the reloader."""

    def __init__(self, folder: Path, text: str) -> None:
        self.source = folder / "server.py"
        self.log = folder / "log"
        self.source.write_text(text)
        with self.log.open("wb") as log:
            words = [sys.executable, str(RELOADER), str(folder), "--", sys.executable, str(self.source)]
            self.process = subprocess.Popen(words, stdout=log, stderr=log)

    def said(self, text: str) -> int:
        return self.log.read_text().count(text)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Reloaded]:
    made = Reloaded(tmp_path, SERVER)
    yield made
    made.process.terminate()
    try:
        made.process.wait(20)
    finally:
        made.process.kill()


def test_a_change_starts_it_anew(server: Reloaded) -> None:
    wait_for(lambda: server.said("serving") == 1)
    server.source.write_text(SERVER + "# changed\n")
    wait_for(lambda: server.said("serving") == 2)
    assert server.said(f"restarting: {server.source} changed") == 1


def test_a_change_that_breaks_it_waits_for_the_next(server: Reloaded) -> None:
    wait_for(lambda: server.said("serving") == 1)
    server.source.write_text("raise SystemExit(3)\n")
    wait_for(lambda: server.said("it ended with 3 right after a change: waiting for the next one") == 1)
    assert server.process.poll() is None
    server.source.write_text(SERVER)
    wait_for(lambda: server.said("serving") == 2)


def test_told_to_end_it_ends_with_its_server(server: Reloaded) -> None:
    wait_for(lambda: server.said("serving") == 1)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 128 + signal.SIGTERM


def test_a_server_that_does_not_come_up_is_the_engines_to_start(tmp_path: Path) -> None:
    assert Reloaded(tmp_path, "raise SystemExit(4)\n").process.wait(20) == 4
