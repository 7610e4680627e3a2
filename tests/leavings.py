"""A run of the tests in small, for test_leavings.py: the stack that it starts is to be gone however the run ends.

Its name is not one that pytest looks for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Project


@pytest.fixture(scope="session")
def cache() -> Path:
    """The cache of the run that this one is a part of."""
    return Path(os.environ["NV_TEST_CACHE"])


def test_that_passes(stack: Project) -> None:
    assert stack.answers()


def test_that_fails(stack: Project) -> None:
    raise AssertionError("as it is to")


@pytest.fixture
def sign() -> Iterator[Path]:
    """A file that is there until all is tidied up, which takes longer than pytest's workers are usually given."""
    path = Path(os.environ["NV_TEST_SIGN"])
    yield path
    for _ in range(120):
        time.sleep(0.1)
    path.unlink()


def test_that_waits(stack: Project, sign: Path) -> None:
    sign.touch()
    time.sleep(200)
