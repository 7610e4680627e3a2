"""The secrets of an environment: one set, whoever comes first."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from devstack.credentials import Credentials, credentials_of, proves, scram_verifier
from devstack.errors import StackError
from devstack.settings import Settings
from tests.test_container import context_in


def test_commands_at_the_same_first_moment_agree_on_the_secrets(tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / str(number)
        (folder / "state").mkdir(parents=True)
        barrier = threading.Barrier(6)
        found: list[Credentials] = []

        def generate(folder: Path = folder, barrier: threading.Barrier = barrier, found: list = found) -> None:  # type: ignore[type-arg]
            context = context_in(folder)
            barrier.wait()
            found.append(credentials_of(context, Settings(root=folder)))

        threads = [threading.Thread(target=generate) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 6
        assert len(set(found)) == 1
        assert [path.name for path in (folder / "state").iterdir()] == ["secrets.json"]
        assert (folder / "state" / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_a_damaged_file_of_secrets_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    secrets = tmp_path / "state" / "secrets.json"
    secrets.write_text("{")
    with pytest.raises(StackError, match="is damaged"):
        credentials_of(context_in(tmp_path), Settings(root=tmp_path))
    assert secrets.read_text() == "{"


@pytest.mark.timeout(10)
def test_a_verifier_with_more_iterations_than_anybody_uses_is_not_tried() -> None:
    assert proves(scram_verifier("secret", b"salt" * 4, iterations=20_000), "secret")
    assert not proves(f"SCRAM-SHA-256$2147483647:{'c2FsdA=='}$x:y", "secret")
