"""Nothing stays of a run of the tests, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, directory_of_its_own, user_registry, wait_for

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def run(name: str, place: Path, cache: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a test of leavings.py, with all of its files in a directory."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", f"{ROOT}/tests/leavings.py::{name}"],
        cwd=ROOT,
        env={**env, "TMPDIR": str(place), "NV_TEST_SIGN": str(place / "sign"), "NV_TEST_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def left_in(place: Path) -> list[object]:
    """Files, processes and entries in the list of environments that have to do with a directory."""
    found: list[object] = [path for path in place.iterdir() if path.name.startswith("nv-")]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            marks = [process.environ().get("NV_STACK", ""), *process.cmdline()]
            if process.status() != psutil.STATUS_ZOMBIE and any(f"{place}/nv-test-" in mark for mark in marks):
                found.append(process.cmdline())
    return [*found, *(one for one in user_registry().entries() if str(place) in str(one))]


@pytest.fixture
def place(workspace: Path) -> Iterator[Path]:
    with directory_of_its_own(workspace) as folder:
        yield folder


@pytest.mark.parametrize(("name", "code"), [("test_that_passes", 0), ("test_that_fails", 1)])
def test_a_run_that_ends_by_itself_leaves_nothing(place: Path, cache: Path, name: str, code: int) -> None:
    with run(name, place, cache) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert left_in(place) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_leaves_nothing(place: Path, cache: Path, number: signal.Signals) -> None:
    with run("test_that_waits", place, cache) as process:
        wait_for(lambda: (place / "sign").exists() or process.poll() is not None, seconds=100)
        assert left_in(place) != []
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert left_in(place) == []
    assert not (place / "sign").exists()
