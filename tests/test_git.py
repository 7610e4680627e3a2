"""Git runs no program that a project's own configuration, attributes or hooks name."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from devstack import git
from devstack.remote.files import files_of
from tests.conftest import ROOT


class Repository:
    """A work tree with one commit, whose configuration an attacker writes."""

    def __init__(self, root: Path, canary: Path) -> None:
        self.root, self.canary = root, canary
        self.trap = f"echo ran >>{canary}; false"
        root.mkdir()
        self.git("init", "-q", "-b", "main")
        (root / "main.py").write_text("x = 1\n")
        (root / "invoke.yaml").write_text("")
        self.git("add", "main.py")
        self.commit("first")
        self.git("tag", "v1.0")

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", "-C", str(self.root), *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, message: str) -> None:
        who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.com")
        self.git(*who, "commit", "-q", "-m", message)

    def set(self, **values: str) -> None:
        for name, value in values.items():
            self.git("config", name.replace("__", "."), value)

    def ask(self) -> tuple[list[str], str | None]:
        """Ask all that the project asks of Git, and check that no program has run."""
        names = [sent.name for sent in files_of(self.root)]
        version = git.version(self.root, 10)
        assert not self.canary.exists()
        return names, version


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "project", tmp_path / "canary")


def test_the_answers_without_traps(repository: Repository) -> None:
    (repository.root / ".gitignore").write_text("*.log\n")
    (repository.root / "out.log").write_text("")
    assert repository.ask() == ([".gitignore", "invoke.yaml", "main.py"], "v1.0")
    repository.git("add", ".gitignore")
    repository.commit("second")
    assert re.fullmatch(r"v1\.0-1-g[0-9a-f]+", repository.ask()[1] or "")


def test_no_work_tree(tmp_path: Path) -> None:
    assert git.files(tmp_path) is None
    assert git.version(tmp_path, 10) is None


def test_no_git(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert git.files(repository.root) is None
    assert git.version(repository.root, 10) is None


def test_a_file_system_monitor_of_the_project_does_not_run(repository: Repository) -> None:
    repository.set(core__fsmonitor=repository.trap)
    assert repository.ask() == (["invoke.yaml", "main.py"], "v1.0")


def test_hooks_of_the_project_do_not_run(repository: Repository, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for folder in (hooks, repository.root / ".git/hooks"):
        folder.mkdir(exist_ok=True)
        for name in ("post-index-change", "fsmonitor-watchman", "query-watchman"):
            (folder / name).write_text(f"#!/bin/sh\n{repository.trap}\n")
            (folder / name).chmod(0o755)
    repository.set(core__hooksPath=str(hooks))
    os.utime(repository.root / "main.py", (1, 1))  # so that an index that is refreshed is written
    repository.ask()


def test_filters_of_the_project_do_not_run(repository: Repository) -> None:
    (repository.root / ".gitattributes").write_text("* filter=trap diff=trap\n")
    repository.set(
        filter__trap__clean=repository.trap,
        filter__trap__smudge=repository.trap,
        filter__trap__process=repository.trap,
        diff__trap__textconv=repository.trap,
        diff__trap__command=repository.trap,
        diff__external=repository.trap,
    )
    (repository.root / "main.py").write_text("x = 2\n")  # of the same size: only its content tells
    os.utime(repository.root / "main.py", (1, 1))
    repository.ask()


def test_programs_of_the_project_do_not_run(repository: Repository) -> None:
    names = ("core.pager", "pager.describe", "pager.ls-files", "core.editor", "core.askPass", "core.sshCommand")
    for name in (*names, "gpg.program", "credential.helper", "alias.describe", "alias.ls-files"):
        repository.git("config", name, f"!{repository.trap}" if name.startswith("alias") else repository.trap)
    repository.ask()


@pytest.mark.parametrize("lacking", ["the commit", "the list of ignored files"])
def test_objects_that_a_partial_clone_lacks_are_not_fetched(repository: Repository, lacking: str) -> None:
    if lacking == "the commit":
        name = repository.git("rev-parse", "HEAD")
        repository.git("tag", "-d", "v1.0")
    else:
        (repository.root / ".gitignore").write_text("*.log\n")
        repository.git("add", ".gitignore")
        repository.git("update-index", "--skip-worktree", ".gitignore")
        (repository.root / ".gitignore").unlink()
        name = repository.git("rev-parse", ":.gitignore")
    (repository.root / ".git/objects" / name[:2] / name[2:]).unlink()
    for key, value in {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::sh -c echo% ran% >>{repository.canary}",
        "remote.origin.uploadpack": repository.trap,
        "protocol.ext.allow": "always",
    }.items():
        repository.git("config", key, value)
    repository.ask()


def test_a_work_tree_within_the_project_is_asked_the_same_way(repository: Repository) -> None:
    inner = Repository(repository.root / "inner", repository.canary)
    inner.set(core__fsmonitor=inner.trap)
    assert repository.ask()[0] == ["inner/invoke.yaml", "inner/main.py", "invoke.yaml", "main.py"]


def test_variables_of_the_caller_name_no_other_repository(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Repository(tmp_path / "other", repository.canary)
    other.git("tag", "v2.0")
    monkeypatch.setenv("GIT_DIR", str(other.root / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.root))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", repository.trap)
    assert repository.ask()[1] == "v1.0"


def test_git_is_called_in_one_place() -> None:
    found = [
        str(path.relative_to(ROOT))
        for package in ("devstack", "tasks", "benchmarks", "api")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"""\[\s*["']git["']|["']git (?:-|[a-z]+-?[a-z]* -)""", path.read_text())
    ]
    assert found == ["devstack/git.py"]
