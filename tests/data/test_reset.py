"""Beginning anew: nothing is lost, nothing of others goes, and a reset that is cut off is finished or never was."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.data.conftest import Data, _project

KILLED_AT = """
import os, sys
kind, count = sys.argv[1], int(sys.argv[2])
seen, moved = 0, False
def audit(event, args):
    global seen, moved
    if event not in (kind, "os.rename"):
        return
    caller = sys._getframe(1).f_code.co_name
    moved = moved or (event == "os.rename" and caller == "rename")
    if event == kind and moved and caller in ("rename", "_rmtree_safe_fd", "rmtree"):
        seen += 1
        if seen == count:
            os.kill(os.getpid(), 9)
sys.addaudithook(audit)
from invoke.main import program
program.run(["inv", *sys.argv[3:]])
"""
"""``inv``, killed before the n-th rename, or the n-th removal of something in a folder after the first rename."""


@pytest.fixture(scope="module")
def stack(workspace: Path, cache: Path) -> Iterator[Data]:
    with _project(workspace, cache) as made:
        made.inv("db.start")
        yield made


def mark(stack: Data, text: str) -> None:
    stack.sql(f"DROP TABLE IF EXISTS mark; CREATE TABLE mark AS SELECT '{text}' AS text")


def marked(stack: Data) -> str:
    return stack.sql("SELECT text FROM mark") if stack.sql("SELECT to_regclass('mark')") else ""


@pytest.mark.slow
def test_it_asks_on_a_terminal_and_refuses_elsewhere(stack: Data) -> None:
    mark(stack, "stays")
    said = stack.refused("dev.reset", says="--yes", code=2)
    assert str(stack.data) in said
    for answer in (b"no\n", b"\x04"):
        master, slave = pty.openpty()
        with subprocess.Popen(
            stack.command("dev.reset"), cwd=stack.root, env=stack.env, stdin=slave, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        ) as process:  # fmt: skip
            os.close(slave)
            os.write(master, answer)
            said, _ = process.communicate(timeout=60)
        os.close(master)
        assert process.returncode == 1
        assert "nothing was changed" in said
        assert "Traceback" not in said
    assert marked(stack) == "stays"
    assert not stack.backups.exists()


def test_data_and_state_go_and_come_back_from_the_backup(stack: Data) -> None:
    mark(stack, "before")
    lineage = (stack.data / "nv-lineage").read_text()
    secrets = stack.secrets()
    other = stack.state.with_name("review") / "volumes/nv-review-db-data"
    foreign = [stack.root / "logs/notes.txt", stack.root / "logs/review/nv-review-db.log", other / "PG_VERSION"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not yours")
    (stack.state / "schedule").mkdir()
    done = stack.inv("dev.reset", "--yes", "--logs")
    assert "removed data" in done.stdout
    assert (stack.data / "nv-lineage").read_text() != lineage
    assert stack.secrets().keys() == secrets.keys()
    assert not set(stack.secrets().values()) & set(secrets.values())
    assert marked(stack) == ""
    assert all(path.read_text() == "not yours" for path in foreign)
    assert (stack.state / "schedule").is_dir()
    (backup,) = stack.json("data.list")["backups"]
    assert (backup["label"], backup["verified"]["how"]) == ("pre-reset", "read")
    assert stack.query("SELECT 1", port=stack.pgb_port) == [(1,)]
    stack.inv("data.restore", "--no-safety-backup")
    assert marked(stack) == "before"
    shutil.rmtree(stack.state.with_name("review"))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("event", "count", "kept"),
    [("os.rename", 1, True), ("os.remove", 1, False), ("os.remove", 4, False), ("os.remove", 700, False),
     ("os.rmdir", 9, False)],
)  # fmt: skip
def test_killed_at_any_point_it_is_as_before_or_finished_by_the_next_command(
    stack: Data, event: str, count: int, kept: bool
) -> None:
    mark(stack, "old")
    command = stack.code(KILLED_AT, event, str(count), "dev.reset", "--yes", "--no-backup")
    killed = subprocess.run(command, cwd=stack.root, env=stack.env, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -9, killed.stderr
    assert stack.data.exists() == kept
    wait_for(lambda: not stack.listening())
    # both ways to go on, in turns
    if count % 2 or kept:
        assert ("as they were" if kept else "finishing a reset") in stack.inv("db.start").stderr
    else:
        assert "finishing a reset" in stack.inv("dev.reset", "--yes").stderr
    assert marked(stack) == ("old" if kept else "")
    assert not (stack.state / ".reset").exists()


@pytest.mark.slow
def test_without_a_backup_nothing_goes_unless_that_is_said(stack: Data) -> None:
    stack.inv("dev.down")
    (stack.data / "global/pg_control").rename(stack.folder / "pg_control")
    said = stack.refused("dev.reset", "--yes", says="there is no backup of the data, so nothing was removed")
    assert "inv dev.reset --no-backup" in said
    assert "pg_control" in said
    assert stack.data.is_dir()
    done = stack.inv("dev.reset", "--yes", "--no-backup")
    assert "no backup is made of the data: --no-backup" in done.stderr
    assert stack.query("SELECT 1") == [(1,)]
