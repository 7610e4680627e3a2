"""What Invoke has no idea of is explained, with exit code 2; its lists read as a table of contents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.runner import run

ROOT = Path(__file__).resolve().parent.parent

DRIVER = """
import contextlib, io, json, sys
from invoke.main import program

def run(line):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            program.run(["inv", *line])
        except SystemExit as end:
            code = end.code
    return [code or 0, out.getvalue(), err.getvalue()]

print(json.dumps([run(line) for line in json.loads(sys.argv[1])]))
"""


def run_here(*args: str) -> tuple[int, str, str]:
    """A command line in this process: code, output, errors."""
    done = run(*args, directory=ROOT, env={**os.environ, "COLUMNS": "80"})
    return done.returncode, done.stdout, done.stderr


def run_all(lines: list[list[str]]) -> list[tuple[int, str, str]]:
    """Command lines one after the other in one process, which reads the tasks once: code, output, errors."""
    answer = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(lines)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(one) for one in json.loads(answer.stdout)]


def inv(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "invoke", *args], cwd=ROOT, capture_output=True, text=True, check=False, **kwargs
    )


MISTAKES = {
    "dev.upp": ["error: there is no task dev.upp", "fix:   did you mean dev.up?", "       inv --list shows all"],
    "dev-up": ["error: there is no task dev-up", "fix:   did you mean dev.up?", "       inv --list shows all"],
    "system_info": ["error: there is no task system_info", "fix:   did you mean system-info?"],
    "up": ["error: there is no task up", "fix:   did you mean dev.up?"],
    "bakup": ["error: there is no task bakup", "fix:   did you mean data.backup?"],
    "zzz": ["error: there is no task zzz", "fix:   inv --list shows all"],
    "pgb": ["error: pgb is a namespace, not a task", "fix:   inv --list pgb shows what is in it"],
    "dev.down dev.upp": ["error: there is no task dev.upp", "fix:   did you mean dev.up?"],
    "health 3": [
        "error: there is no task 3",
        "cause: what follows health is the next task; a value goes with its flag, as in --flag=VALUE",
    ],
    "dev.up --timming": [
        "error: dev.up has no flag --timming",
        "fix:   did you mean --timing?",
        "       inv --help dev.up shows all",
    ],
    "data.backup --yes": ["error: data.backup has no flag --yes", "cause: it is a flag of dev.reset"],
    "dev.up -x": ["error: dev.up has no flag -x", "fix:   inv --help dev.up shows all"],
    "--deubg dev.up": ["error: inv has no flag --deubg", "fix:   did you mean --debug?", "       inv --help shows all"],
    "data.pin": ["error: data.pin needs NAME", "fix:   inv data.pin NAME", "       inv --help data.pin"],
    "data.backup --format": ["error: --format needs a value", "fix:   inv --help data.backup"],
    "health --watch dev.up": ["error: dev.up could mean two things", "cause: the flag before it may have a value"],
    "--help dev.upp": ["error: there is no task dev.upp", "fix:   did you mean dev.up?"],
    "--list devv": ["error: there is no namespace devv", "fix:   did you mean dev?"],
}


def test_what_is_mistyped_is_named_with_what_comes_near_and_exit_code_2() -> None:
    for line, expected in MISTAKES.items():
        code, out, err = run_here(*line.split())
        assert (code, out) == (2, ""), line
        shown = err.splitlines()
        assert [got[: len(want)] for got, want in zip(shown, expected, strict=False)] == expected, line
        assert "No idea" not in err


def test_the_program_as_it_is_installed_does_so_too() -> None:
    done = inv("dev.upp")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no task dev.upp\nfix:   did you mean dev.up?\n       inv --list shows all\n"


@pytest.mark.parametrize("program", ["invoke", "tasks.program"])
def test_debugging_does_not_log_the_password_of_a_url(program: str) -> None:
    call = (
        "from tasks.program import main; main()"
        if program != "invoke"
        else "from invoke.main import program as p; p.run()"
    )
    url = "postgresql://nina:canary-p/w@127.0.0.1:1/x?sslmode=disable"
    done = subprocess.run(
        [sys.executable, "-c", call, "--debug", "--dry", "data.backup", "--url", url],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "postgresql://nina:***@127.0.0.1:1/x" in done.stderr
    assert "canary" not in done.stdout + done.stderr


def test_nothing_of_a_command_line_with_a_mistake_is_done() -> None:
    done = inv("--dry", "dev.down", "dev.upp")
    assert (done.returncode, done.stdout) == (2, "")


def test_inv_alone_is_a_table_of_contents_on_one_screen() -> None:
    done = inv(env={**os.environ, "COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    words = done.stdout.replace(":", " ").split()
    for name in names():
        namespace, _, verb = name.rpartition(".")
        assert verb in words
        assert not namespace or f"{namespace}." in words


def test_the_list_has_every_task_once_below_the_heading_of_its_namespace() -> None:
    ((code, out, err),) = run_all([["--list"]])
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    indented = [line for line in lines if line.startswith("  ")]
    assert sorted(line.split()[0] for line in indented) == sorted(names())
    assert len({line.index(line.split(maxsplit=1)[1]) for line in indented}) == 1, "the texts are not in one column"
    assert [line for line in lines if line and not line.startswith(" ")][:2] == ["The whole stack", "PostgreSQL"]


def names() -> list[str]:
    def walk(collection: Any, prefix: str) -> list[str]:
        below = [name for sub in collection["collections"] for name in walk(sub, f"{prefix}{sub['name']}.")]
        return [prefix + task["name"] for task in collection["tasks"]] + below

    return walk(json.loads(inv("--list", "--list-format", "json").stdout), "")


@pytest.mark.parametrize("args", [["--list", "db"], ["--list", "--list-depth", "1"], ["-l", "-F", "nested"]])
def test_invoke_s_other_lists_are_as_they_were(args: list[str]) -> None:
    ((code, out, err),) = run_all([args])
    assert (code, err) == (0, "")
    assert out.startswith("Available")


def test_the_help_of_a_task_says_what_a_flag_is_when_it_is_not_given() -> None:
    code, out, err = run_here("--help", "dev.load")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "requests a second, at most 1000 (50 if not given)" in text
    assert "may only read (SELECT 1 if not given)" in text
    assert "may be repeated --output" in text  # an empty list is no value
