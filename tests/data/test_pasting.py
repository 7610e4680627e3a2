"""Names in commands to type: pasted into a shell, a command gets the name, whatever is in it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devstack.data import catalogue, failures, generate, load
from devstack.data.manifest import encode, path_of
from devstack.errors import StackError
from tests.data.manifests import made_up

NAME = "it's a $(touch X) `touch X`;touch X;.sql.gz"
TABLE = 'public."it\'s a $(touch X)"'


UNSHOWN = "a\x1b[Jb.sql.gz"


@pytest.fixture
def paste(tmp_path: Path) -> Callable[[str], list[str]]:
    """Return a function that types a command into a shell, and returns the arguments that ``inv`` got."""
    folder = tmp_path / "typed in"
    folder.mkdir()
    program = tmp_path / "bin/inv"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    program.chmod(0o755)

    def run(text: str) -> list[str]:
        command = text[text.index("inv ") :]
        env = {"PATH": f"{program.parent}:/usr/bin:/bin"}
        done = subprocess.run(["/bin/sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr, list(folder.iterdir())) == (0, "", []), command
        return done.stdout.split("\0")[:-1]

    return run


def backup(folder: Path, name: str, **changes: Any) -> Path:
    """Make a file with a manifest."""
    path = folder / name
    path.write_bytes(b"x")
    path_of(path).write_bytes(encode(made_up(file=name, **changes)))
    return path


def damaged(folder: Path, name: str) -> Path:
    """Make a file with a manifest that can't be read."""
    path = backup(folder, name)
    path_of(path).write_text("{")
    return path


def test_a_backup_without_its_manifest(tmp_path: Path, paste: Callable[[str], list[str]]) -> None:
    damaged(tmp_path, NAME)
    with pytest.raises(StackError) as refused:
        catalogue.named(tmp_path, NAME)
    assert paste(refused.value.fix[-1]) == ["data.restore", "--file", NAME, "--force"]


def test_another_backup_than_the_newest_which_is_damaged(tmp_path: Path, paste: Callable[[str], list[str]]) -> None:
    backup(tmp_path, NAME)
    damaged(tmp_path, "backup-20990101-000000.sql.gz")
    with pytest.raises(StackError) as refused:
        catalogue.latest(tmp_path, lambda _: True)
    assert paste(refused.value.fix[-1]) == ["data.restore", "--file", NAME]


def test_a_copy_of_the_cluster_where_there_is_no_dump(tmp_path: Path, paste: Callable[[str], list[str]]) -> None:
    (tmp_path / NAME).mkdir()
    path_of(tmp_path / NAME).write_bytes(encode(made_up(file=NAME, kind="base", layout="cluster")))
    with pytest.raises(StackError) as refused:
        catalogue.latest(tmp_path, lambda _: True)
    assert paste(refused.value.fix[0]) == ["data.restore", "--file", NAME]


def test_a_backup_of_another_environment(tmp_path: Path, paste: Callable[[str], list[str]]) -> None:
    backup(tmp_path, NAME)
    with pytest.raises(StackError) as refused:
        catalogue.latest(tmp_path, lambda _: False)
    assert paste(refused.value.fix[0]) == ["data.restore", "--file", NAME]


def test_a_dump_that_wants_the_superuser(tmp_path: Path, paste: Callable[[str], list[str]]) -> None:
    stack: Any = SimpleNamespace(
        db=SimpleNamespace(origin=""), settings=SimpleNamespace(db=SimpleNamespace(user="nina"))
    )
    source = load.Source(tmp_path / NAME, "sql", signed=True)
    error = failures.explained(stack, source, "owner", StackError("x", evidence=["ERROR: permission denied"]))
    assert paste(error.fix[0]) == ["data.restore", "--file", NAME, "--as-superuser"]


def test_a_table_that_has_to_be_filled_first(paste: Callable[[str], list[str]]) -> None:
    filling: Any = object.__new__(generate._Filling)
    filling.makers, filling.names = {}, {1: TABLE}
    filling.cursor = SimpleNamespace(execute=lambda sql: None, fetchall=list)
    column = SimpleNamespace(required=True)
    filling.table = SimpleNamespace(quoted="public.child", unique_sets=list, column=lambda name: column)
    key: Any = SimpleNamespace(parent=1, columns=["a"], keys=["id"])
    with pytest.raises(StackError) as refused:
        filling._share_parents(key, 10)
    command, _, rest = refused.value.fix[0].rpartition("; ")
    assert rest == "or take --all"
    assert paste(command) == ["data.generate", "--rows", "100", "--table", TABLE]


INVISIBLE = ["\u00ad", "\u034f", "\u061c", "\u200b", "\u200e", "\u2060", "\u3164", "\ufe0f", "\ufeff", "\U000e0041"]


@pytest.mark.parametrize(
    "name", [UNSHOWN, "a\tb.sql", "\u202eb.sql", "a\nb.sql", "inv data.undo", *(f"b{one}.sql" for one in INVISIBLE)]
)
def test_a_name_that_is_not_shown_as_it_is(tmp_path: Path, name: str) -> None:
    """Neither is printed what would be another command, nor one that names another file."""
    stack: Any = SimpleNamespace(
        db=SimpleNamespace(origin=""), settings=SimpleNamespace(db=SimpleNamespace(user="nina"))
    )
    source = load.Source(tmp_path / name, "sql", signed=True)
    error = failures.explained(stack, source, "owner", StackError("x", evidence=["ERROR: permission denied"]))
    command = error.fix[0][error.fix[0].index("inv ") :]
    for shell in ("sh", "bash"):
        typed = f"inv() {{ touch typed; }}\n{command}"
        done = subprocess.run([shell, "-c", typed], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode, command
    assert not list(tmp_path.iterdir())
