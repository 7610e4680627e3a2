"""The Makefile and the scripts: aliases of tasks, with a stand-in for the interpreter that they call."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import COLLECTED

ROOT = Path(__file__).parent.parent

TASKS = {
    **{f"dev-{verb}": f"dev.{verb}" for verb in ("up", "down", "status", "logs", "restart", "bundle")},
    **{f"db-{verb}": f"db.{verb}" for verb in ("start", "stop", "status", "stats", "logs", "shell")},
    **{f"pgb-{verb}": f"pgb.{verb}" for verb in ("start", "stop", "status", "stats", "logs", "reload")},
    **{f"api-{verb}": f"api.{verb}" for verb in ("start", "stop", "status", "logs")},
    "health": "health",
    "metrics": "metrics",
    "system-info": "system-info",
    "backup": "data.backup",
    "restore": "data.restore",
    "cleanup-backups": "data.cleanup",
}
PROJECT = {"setup", "test", "test-all", "campaign", "lint", "bench", "lock", "docs", "help"}
LINT = [".venv/bin/python -m ruff check", ".venv/bin/python -m ruff format --check", ".venv/bin/python -m mypy"]
QUICK = "not (faults or hosts or engines or campaign or slow)"
SCRIPTS = {
    "nv-stack-start.sh": "dev.up",
    "nv-stack-stop.sh": "dev.down",
    "nv-stack-status.sh": "health --details",
    "nv-health-check.sh": "health",
    "nv-db-start.sh": "db.start",
    "nv-db-stop.sh": "db.stop",
    "nv-pgbouncer-start.sh": "pgb.start",
    "nv-pgbouncer-stop.sh": "pgb.stop",
    "nv-api-start.sh": "api.start",
    "nv-api-stop.sh": "api.stop",
    "system-info.sh": "system-info",
    "backup-database.sh": "data.backup",
    "restore-database.sh": "data.restore",
    "cleanup-backups.sh": "data.cleanup",
    "generate-test-data.sh": "data.generate",
    "reset-development.sh": "dev.reset",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy in a folder that invites mistakes; setup does nothing, the interpreter repeats its arguments."""
    root = tmp_path / 'it\'s a $(touch x) "ü"'
    shutil.copytree(ROOT / "scripts", root / "scripts")
    shutil.copy(ROOT / "Makefile", root)
    write_program(root / "scripts/bootstrap.sh", 'echo "bootstrap $1" >&2')
    write_program(root / ".venv/bin/python", "printf '<%s>' \"$@\"; exit ${EXIT_CODE:-0}")
    return root


def write_program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin:/opt/homebrew/bin", **(env or {})}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=variables, capture_output=True, text=True, timeout=20)


def test_help_lists_every_target_with_a_description() -> None:
    listed = re.findall(r"^  ([a-z-]+) +\S.*$", run("make", cwd=ROOT).stdout, re.MULTILINE)
    assert sorted(listed) == sorted({*TASKS, *PROJECT})
    assert run("make", cwd=ROOT).stdout == run("make", "help", cwd=ROOT).stdout


def test_each_target_sets_up_and_is_its_task(project: Path) -> None:
    lines = run("make", "-n", *TASKS, cwd=project).stdout.splitlines()
    assert [line.strip() for line in lines] == [
        "scripts/bootstrap.sh run",
        *(f".venv/bin/python -m invoke {task}" for task in TASKS.values()),
    ]


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("setup", ["scripts/bootstrap.sh run"]),
        ("test", ["scripts/bootstrap.sh dev", *LINT, f'.venv/bin/python -m pytest -m "{QUICK}" -k name']),
        ("test-all", ["scripts/bootstrap.sh dev", *LINT, ".venv/bin/python -m pytest -k name"]),
        (
            "campaign",
            [
                "scripts/bootstrap.sh dev",
                '.venv/bin/python -m pytest -m "campaign or hypothesis" --campaign -k name',
            ],
        ),
        ("bench", ["scripts/bootstrap.sh dev", ".venv/bin/python -m benchmarks -k name"]),
        ("docs", ["scripts/bootstrap.sh dev", ".venv/bin/python -m docs -k name"]),
    ],
)
def test_targets_of_the_project(project: Path, target: str, commands: list[str]) -> None:
    assert run("make", "-n", target, "ARGS=-k name", cwd=project).stdout.splitlines() == commands


def selected(expression: str, markers: set[str]) -> bool:
    """Whether ``-m`` takes a test: its expressions are Python's."""
    names = set(re.findall(r"[a-z]+", expression)) - {"not", "or", "and"}
    return bool(eval(expression, {}, {name: name in markers for name in names}))


def expression(target: str) -> str:
    """What the target gives to ``-m``; true if it selects nothing."""
    called = run("make", "-n", target, cwd=ROOT).stdout.splitlines()[-1]
    return next(iter(re.findall(r'-m "([^"]*)"', called)), "True")


def test_each_test_is_in_test_all_and_without_a_marker_in_test(pytestconfig: pytest.Config) -> None:
    left_out = {line.partition(":")[0] for line in pytestconfig.getini("markers")} & set(re.findall("[a-z]+", QUICK))
    assert len(left_out) == 5
    expressions = {target: expression(target) for target in ("test", "test-all", "campaign")}
    collected = pytestconfig.stash[COLLECTED]
    assert collected
    for name, markers in collected.items():
        assert selected(expressions["test-all"], markers), name
        assert selected(expressions["test"], markers) == (not markers & left_out), name
        assert "campaign" not in markers or selected(expressions["campaign"], markers), name


def test_ci_runs_all_tests() -> None:
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "exec make test-all ARGS=--durations=20"


def test_make_passes_arguments_and_adds_nothing_to_the_output(project: Path) -> None:
    done = run("make", "backup", "ARGS=--schema-only --name 'a b'", cwd=project)
    assert (done.returncode, done.stdout) == (0, "<-m><invoke><data.backup><--schema-only><--name><a b>")
    assert done.stderr == "bootstrap run\n"


def test_make_fails_when_the_task_fails(project: Path) -> None:
    assert run("make", "health", cwd=project, env={"EXIT_CODE": "1"}).returncode != 0


def test_make_does_not_run_the_task_when_setup_fails(project: Path) -> None:
    write_program(project / "scripts/bootstrap.sh", "exit 1")
    done = run("make", "dev-up", cwd=project)
    assert done.returncode != 0
    assert done.stdout == ""


@pytest.mark.parametrize(("script", "task"), SCRIPTS.items())
def test_each_script_is_its_task(project: Path, script: str, task: str) -> None:
    done = run(project / "scripts" / script, "--name", "a b", "", cwd=Path("/"), env={"EXIT_CODE": "3"})
    called = [project / ".venv/bin/inv", "--search-root", project, *task.split(), "--name", "a b", ""]
    assert done.stdout == "".join(f"<{argument}>" for argument in called)
    assert done.returncode == 3
    assert done.stderr == "bootstrap run\n"


def test_a_script_works_through_links(project: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/absolute").symlink_to(project / "scripts/nv-stack-status.sh")
    (tmp_path / "bin/relative").symlink_to("absolute")
    done = run("bin/relative", cwd=tmp_path)
    assert done.stdout.endswith("<health><--details>"), done.stderr


@pytest.fixture
def decoy(tmp_path: Path) -> dict[str, str]:
    """``CDPATH`` as it is in the environment of who has exported it, and another directory of the same name in it."""
    (tmp_path / "decoy/scripts").mkdir(parents=True)
    return {"CDPATH": str(tmp_path / "decoy")}


@pytest.mark.parametrize("script", ["scripts/nv-health-check.sh", "scripts/_task.sh"])
def test_a_script_takes_no_other_directory_for_its_own(project: Path, decoy: dict[str, str], script: str) -> None:
    done = run(script, cwd=project, env=decoy)
    assert done.stdout.startswith(f"<{project}/.venv/bin/inv><--search-root><{project}>"), done
    assert done.stderr == "bootstrap run\n"


def test_packages_are_locked_in_the_project_and_nowhere_else(
    project: Path, decoy: dict[str, str], tmp_path: Path
) -> None:
    write_program(tmp_path / "bin/uv", "pwd")
    path = f"{tmp_path}/bin:/usr/local/bin:/usr/bin:/bin"
    done = run("scripts/lock.sh", cwd=project, env={**decoy, "PATH": path})
    assert (done.returncode, done.stdout) == (0, f"{project}\n{project}\n"), done


def test_no_script_is_forgotten() -> None:
    assert {path.name for path in (ROOT / "scripts").glob("*.sh")} == {*SCRIPTS, "_task.sh", "bootstrap.sh", "lock.sh"}
