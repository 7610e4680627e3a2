"""A stack on another host, which the tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import directory_of_its_own, ended
from tests.remote import host as hosts
from tests.remote.host import Host, Remote


@pytest.fixture(scope="module")
def box(workspace: Path) -> Iterator[Host]:
    """A host in a network of its own, whose key is known."""
    with directory_of_its_own(workspace, "box-") as folder, hosts.apart(folder) as host:
        host.know()
        yield host


@pytest.fixture
def remote(request: pytest.FixtureRequest, workspace: Path, cache: Path, box: Host) -> Iterator[Remote]:
    """A project of this test's own, nothing sent yet."""
    with directory_of_its_own(workspace) as folder, ended(Remote(folder, cache, box)) as made:
        made.own_program = getattr(request.module, "OWN_PROGRAM", False)
        yield made


@pytest.fixture(scope="module")
def up(request: pytest.FixtureRequest, workspace: Path, cache: Path, box: Host) -> Iterator[Remote]:
    """A running stack on the host; the tests leave it running."""
    with directory_of_its_own(workspace) as folder, ended(Remote(folder, cache, box)) as made:
        made.own_program = getattr(request.module, "OWN_PROGRAM", False)
        made.inv("dev.up")
        yield made
