"""The one exception that reaches the user: what failed, why, the evidence, what mends it."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from invoke.exceptions import Exit

from devstack.errors import FAILED, USAGE, StackError, UsageError
from devstack.mishaps import MISHAPS, explain, fix_of
from devstack.templates import render


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
            "cause: it ended with exit code 1 at once",
            "       | FATAL:  no space left",
            "       |",
            "       |   HINT: indented",
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


def os_error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([path] if path else []))


@pytest.mark.parametrize("number", sorted(MISHAPS))
def test_what_the_system_refuses_has_a_cause_and_a_fix(number: int) -> None:
    problem = explain(os_error(number, "/nonesuch/file"))
    assert problem is not None
    assert problem.what == "/nonesuch/file can't be used"
    assert problem.why.endswith(f"({os.strerror(number)})")
    assert len(problem.fix) == 1
    assert "$" not in problem.text()


def test_a_full_disk_without_a_name_is_explained_too() -> None:
    problem = explain(os_error(errno.ENOSPC))
    assert problem is not None
    assert problem.text() == "\n".join(
        [
            "error: a file can't be written or read",
            f"cause: the disk is full ({os.strerror(errno.ENOSPC)})",
            "fix:   free some space; inv system-info shows the disks",
        ]
    )


def test_who_may_not_hears_who_may(tmp_path: Path) -> None:
    problem = explain(os_error(errno.EACCES, str(tmp_path / "gone" / "file")))
    assert problem is not None
    me = pwd.getpwuid(os.getuid()).pw_name
    assert problem.evidence == [f"{tmp_path} belongs to {me}, mode 0700; this runs as {me}"]
    assert f"if {tmp_path} should be yours" in problem.fix[0]


def test_an_error_of_the_database_s_client_is_explained_by_its_first_line() -> None:
    import psycopg2

    problem = explain(psycopg2.OperationalError("server closed the connection\n  probably"))
    assert problem is not None
    assert (problem.why, problem.evidence, problem.fix) == (
        "server closed the connection",
        ["  probably"],
        ["inv health"],
    )


def test_what_nobody_foresaw_is_not_explained_away() -> None:
    assert explain(KeyError("x")) is None
    assert explain(OSError("without a number")) is None


@pytest.mark.parametrize(
    ("lines", "fix"),
    [
        (["initdb: error: could not write file: No space left on device"], "free some space"),
        (["touch: Read-only file system"], "set stack.state_dir"),
        (["something else"], ""),
    ],
)
def test_what_a_program_says_of_the_disk_is_understood(lines: list[str], fix: str) -> None:
    assert fix_of(lines).startswith(fix) if fix else fix_of(lines) == ""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"$port $nonesuch", "there is no value $nonesuch for it; there are: $port"),
        (b"$port $ 5", "invalid placeholder in string: line 1, col 7; a dollar sign itself is $$"),
        (b"caf\xe9", "'utf-8' codec can't decode"),
        (None, "No such file or directory"),
    ],
)
def test_a_template_that_can_not_be_filled_in_says_why(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "templates" / "x.conf"
    file.parent.mkdir()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        render(file, port=1)
    assert why in raised.value.why
    assert raised.value.fix == [f"mend {file}, or take the project's own again: git checkout templates/x.conf"]


def test_a_template_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("port = $port $$")
    assert render(tmp_path / "x", port=5433) == "port = 5433 $"


def test_what_a_stream_can_t_have_is_shown_escaped() -> None:
    script = (
        "from tasks.process import have_streams; from devstack import console; have_streams();"
        "console.out('nüna 🏥'); console.note('ü')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parent.parent,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("n\\xfcna \\U0001f3e5\n", "\\xfc\n")
