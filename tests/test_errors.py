"""The one exception that reaches the user: what failed, why, the evidence, what mends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from invoke.exceptions import Exit

from devstack.errors import FAILED, USAGE, StackError, UsageError


def test_an_error_shows_cause_evidence_and_each_fix_under_labels_in_a_column() -> None:
    error = StackError(
        "nv-db did not become ready",
        why="it ended with exit code 1\nat once",
        evidence=["FATAL:  no space left", "", "  HINT: indented"],
        fix=["free some space", "or move the data"],
    )
    assert error.text() == "\n".join(
        [
            "error: nv-db did not become ready",
            "cause: it ended with exit code 1",
            "       at once",
            "       FATAL:  no space left",
            "",
            "         HINT: indented",
            "fix:   free some space",
            "       or move the data",
        ]
    )


def test_what_is_not_known_has_no_label() -> None:
    assert StackError("it failed").text() == "error: it failed"
    assert StackError("it failed", fix="try").text() == "error: it failed\nfix:   try"
    assert StackError("it failed", why="so").text() == "error: it failed\ncause: so"


def test_an_empty_list_of_fixes_and_an_empty_fix_show_nothing() -> None:
    assert StackError("it failed", fix=[]).text() == "error: it failed"
    assert "fix" not in StackError("it failed", fix="").text()


def test_exit_codes_tell_a_failure_from_a_wrong_input() -> None:
    assert (StackError("x").code, FAILED) == (1, 1)
    assert (UsageError("x").code, USAGE) == (2, 2)
    assert isinstance(UsageError("x"), StackError)


@pytest.mark.parametrize(("kind", "code"), [("StackError", 1), ("UsageError", 2)])
def test_invoke_prints_it_without_a_traceback_and_ends_with_its_code(tmp_path: Path, kind: str, code: int) -> None:
    assert issubclass(StackError, Exit)
    (tmp_path / "tasks.py").write_text(
        "from invoke import task\nfrom devstack import errors\n"
        f"@task\ndef go(c): raise errors.{kind}('it failed', why='so', fix='try again')\n"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "invoke", "go"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "error: it failed\ncause: so\nfix:   try again\n"
