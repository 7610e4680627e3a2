"""A stack on another host, which the tests of a file share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote import host as hosts
from tests.remote.host import Host, Remote


@pytest.fixture(scope="module")
def box(workspace: Path) -> Iterator[Host]:
    """A host in a network of its own, whose key is known."""
    folder = Path(tempfile.mkdtemp(dir=workspace, prefix="box-"))
    with hosts.apart(folder) as host:
        host.know()
        yield host
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def remote(workspace: Path, cache: Path, box: Host) -> Iterator[Remote]:
    """A project of this test's own, nothing sent yet."""
    folder = Path(tempfile.mkdtemp(dir=workspace))
    folder.chmod(0o755)
    made = Remote(folder, cache, box)
    yield made
    made.end()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def up(workspace: Path, cache: Path, box: Host) -> Iterator[Remote]:
    """A running stack on the host; the tests leave it running."""
    folder = Path(tempfile.mkdtemp(dir=workspace))
    folder.chmod(0o755)
    made = Remote(folder, cache, box)
    try:
        made.inv("dev.up")
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)
