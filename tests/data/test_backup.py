"""Backups: what is in them, and what is left when making one fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from devstack.data.backup import names
from tests.conftest import ROOT, wait_for
from tests.data import manifests
from tests.data.conftest import Data

FILL = (
    "CREATE TABLE bulk AS SELECT g AS id, md5(g::text) || md5((g * 7)::text) AS text FROM generate_series(1, 200000) g"
)


def finals(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.fixture(autouse=True)
def no_backups(rich: Data) -> None:
    shutil.rmtree(rich.backups, ignore_errors=True)


def test_a_backup_is_a_dump_that_anyone_can_read_with_its_manifest(rich: Data) -> None:
    shown = rich.inv("data.backup", "--label", "before the ümlaut")
    (path,) = rich.backups.glob("*.gz")
    assert re.fullmatch(r"backup-\d{8}-\d{6}\.sql\.gz", path.name)
    assert re.fullmatch(
        rf"backups/{path.name}  .* kB \(.* of SQL\), 18 tables, 1,752 rows, verified, \d+\.\d+ s\n", shown.stdout
    )
    assert shown.stderr == (
        "a restore gives to nina, or leaves out: schema tools (owner postgres), table public.of_the_superuser (owner"
        " postgres); inv data.restore --as-superuser restores it as it was\n"
    )
    text = subprocess.run(["gzip", "-dc", str(path)], capture_output=True, check=True).stdout
    assert b"\n-- PostgreSQL database dump complete\n" in text[-200:]
    manifest = json.loads(Path(f"{path}.json").read_text())
    digest = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert manifest["sha256"] == digest
    assert (manifest["bytes"], manifest["raw_bytes"]) == (path.stat().st_size, len(text))
    assert manifest["tables"]["public.people"] == 500
    assert manifest["tables"]['"Mixed Case"."Täble ""quoted"" $(touch PWN); \'x\'"'] == 300
    assert manifest["sequences"]["public.free_sequence"] == 107
    assert manifest["sequences"]["public.never_used"] is None
    assert manifest["extensions"].keys() == {"vector", "uuid-ossp", "pg_trgm"}
    assert (manifest["kind"], manifest["label"], manifest["large_objects"]) == ("full", "before the ümlaut", 1)
    assert manifest["verified"]["how"] == "read"
    assert {stat.S_IMODE(p.stat().st_mode) for p in rich.backups.iterdir()} == {0o600}
    assert stat.S_IMODE(rich.backups.stat().st_mode) == 0o700


@pytest.mark.variations
@pytest.mark.parametrize("kind", ["", "--schema-only", "--data-only"])
@pytest.mark.parametrize("layout", ["sql", "custom", "directory"])
def test_every_kind_in_every_layout_is_proven_by_a_restore(rich: Data, kind: str, layout: str) -> None:
    before = rich.databases()
    path = rich.backup("--format", layout, *filter(None, [kind]))
    assert ("schema" in path.name, "data" in path.name) == (kind == "--schema-only", kind == "--data-only")
    assert "restored and counted" in rich.inv("data.verify", "--deep", "--file", path.name).stdout
    assert rich.databases() == before
    modes = {stat.S_IMODE(p.stat().st_mode) for p in rich.backups.rglob("*")}
    assert modes <= {0o600, 0o700}


@pytest.mark.slow
def test_names_follow_the_order_of_making_also_within_a_second_and_with_a_clock_set_back(rich: Data) -> None:
    made = [rich.backup("--no-verify").name for _ in range(3)]
    manifest = rich.backups / f"{made[-1]}.json"
    assert sorted(made) == made
    later = json.loads(manifest.read_text())
    future = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() + 40 * 86400))
    name = f"backup-{future}.sql.gz"
    manifests.write(rich.backups / made[-1], {**later, "file": name})
    manifest.rename(rich.backups / f"{name}.json")
    (rich.backups / made[-1]).rename(rich.backups / name)
    made.append(rich.backup("--no-verify").name)
    assert made[-1] > name
    manifests.write(rich.backups / name, {**later, "file": name, "created": "2099-01-01T00:00:00+00:00"})
    assert [b["file"] for b in rich.json("data.list")["backups"]] == [*made[:2], name, made[-1]]
    assert "in the future" in rich.inv("data.list").stdout


@pytest.mark.parametrize("ahead", [timedelta(seconds=30), timedelta(days=2), timedelta(days=4000)])
def test_a_name_is_later_than_those_that_are_there_however_far_the_clock_was_ahead(
    tmp_path: Path, ahead: timedelta, capsys: pytest.CaptureFixture[str]
) -> None:
    moment = datetime(2026, 11, 23, 10, 0, 0, 500_000, tzinfo=timezone.utc)
    own = f"backup-{moment + ahead:%Y%m%d-%H%M%S}.sql.gz"
    # the last ones have such names by somebody else's doing, or by nobody's
    for name in (own, "backup-29990101-000000.sql.gz", "backup-20261399-000000.sql.gz", "backup-99991231-235959.dump"):
        (tmp_path / name).touch()
    for kind, prefix in (("full", "backup-"), ("schema", "backup-schema-")):
        found = names(tmp_path, kind, "sql", moment, own=[tmp_path / own])  # type: ignore[arg-type]
        assert next(found) == f"{prefix}{moment + ahead + timedelta(seconds=1):%Y%m%d-%H%M%S}.sql.gz"
    assert ("clock has not reached" in " ".join(capsys.readouterr().err.split())) == (ahead.days > 0)


def test_a_name_is_the_time_where_the_others_are_older(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 23, 10, 0, 0, tzinfo=timezone.utc)
    (tmp_path / "backup-20261123-095959.dump").touch()
    assert next(names(tmp_path, "full", "sql", moment)) == "backup-20261123-100000.sql.gz"


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/St_Johns"])
def test_names_are_utc_wherever_one_is(rich: Data, zone: str) -> None:
    before = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    path = Path(json.loads(rich.inv("data.backup", "--no-verify", "--json", TZ=zone).stdout)["path"])
    after = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() + 2))
    assert before <= path.name[7:22] <= after


@pytest.mark.parametrize("name", ['it\'s "a b" $(touch PWN)', "ünï 日本", "-dash;b&c|d\tx"])
def test_another_file_may_have_any_name(rich: Data, name: str, tmp_path: Path) -> None:
    target = tmp_path / name / f"{name}.sql.gz"
    target.parent.mkdir()
    rich.inv("data.backup", f"--output={target}")
    assert sorted(p.name for p in target.parent.iterdir()) == sorted([target.name, f"{target.name}.json"])
    rich.inv("data.verify", f"--file={target}")
    before = target.read_bytes()
    rich.refused("data.backup", f"--output={target}", says="exists", code=2)
    assert target.read_bytes() == before
    assert not list(rich.root.rglob("PWN"))


def test_an_output_ending_in_sql_is_plain_and_a_folder_gets_the_usual_name(rich: Data, tmp_path: Path) -> None:
    rich.inv("data.backup", "--output", str(tmp_path / "x.sql"))
    assert (tmp_path / "x.sql").read_text().startswith("--\n-- PostgreSQL database dump\n")
    rich.inv("data.backup", "--output", str(tmp_path))
    assert any(p.name.startswith("backup-") for p in tmp_path.iterdir())
    rich.refused("data.backup", "--output", str(tmp_path / "no/x"), says="does not exist", code=2)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--schema-only", "--data-only"], "exclude each other"),
        (["--format", "zip"], "'zip' is not known"),
        (["--jobs", "3"], "add --format directory"),
        (["--jobs", "0"], "can't be used"),
        (["--label", "a\nb"], "label"),
    ],
)
def test_what_contradicts_itself_is_refused(rich: Data, flags: list[str], says: str) -> None:
    rich.refused("data.backup", *flags, says=says, code=2)
    assert not rich.backups.exists() or finals(rich.backups) == []


def test_a_dry_run_writes_nothing(rich: Data) -> None:
    shown = rich.inv("--dry", "data.backup").stdout
    assert "pg_dump" in shown
    assert not rich.backups.exists()


@pytest.mark.slow
def test_two_at_once_wait_for_each_other_and_both_are_whole(rich: Data) -> None:
    with FileLock(rich.state / "data-lock"):
        both = [rich.popen("data.backup") for _ in range(3)]
        for process in both:
            assert process.stderr
            assert "waiting for" in process.stderr.readline()
        assert not list(rich.backups.glob("*.gz"))
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], outputs
    assert len(list(rich.backups.glob("*.gz"))) == 3
    rich.inv("data.verify", "--all")


@pytest.mark.slow
def test_status_goes_on_during_a_backup(rich: Data) -> None:
    lock = open(rich.state / "data-lock", "w")  # noqa: SIM115
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_EX)
    rich.inv("db.status")
    rich.inv("data.list")
    rich.refused("data.backup", says="in use", INVOKE_STACK_LOCK_TIMEOUT="0.3")
    lock.close()
    rich.inv("data.backup")


@contextlib.contextmanager
def writers(data: Data) -> Iterator[None]:
    """Two clients that write without a pause."""
    stop = threading.Event()

    def write() -> None:
        connection = data.connect()
        with connection.cursor() as cursor:
            n = 0
            while not stop.is_set():
                n += 1
                cursor.execute(
                    "INSERT INTO keyless SELECT 'busy', nextval('free_sequence') FROM generate_series(1, 50)"
                )
                cursor.execute("DELETE FROM log; INSERT INTO log (what) VALUES ('x'), ('y')")
        connection.close()

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_the_counts_are_of_the_dump_s_own_snapshot_whoever_writes_meanwhile(data: Data) -> None:
    with writers(data):
        made = [data.backup() for _ in range(2)]
    data.inv("data.verify", "--all", "--deep")
    counts = [json.loads(Path(f"{p}.json").read_text())["tables"]["public.keyless"] for p in made]
    assert counts[0] < counts[1]


KILLED = """
import os, signal, sys
from pathlib import Path
from devstack.data import aside, manifest
folder, step = Path(sys.argv[1]), sys.argv[2]
template = manifest.decode((folder / sys.argv[3]).read_bytes())
from msgspec.structs import replace
def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if step == "written":
    aside._give_name = stop
elif step == "named":
    aside._sync = stop
directory = sys.argv[4] == "directory"
with aside.aside(folder, directory=directory) as partial:
    if directory:
        (partial.path / "x").write_text("content")
    else:
        os.write(partial.handle, b"content")
    partial.publish(lambda: "backup-x", lambda n: replace(template, file=n, layout=sys.argv[4], bytes=7))
"""


@pytest.mark.faults
@pytest.mark.parametrize("layout", ["custom", "directory"])
@pytest.mark.parametrize(("step", "completed"), [("written", False), ("named", True)])
def test_killed_while_it_gets_its_name_it_is_completed_or_removed(
    rich: Data, step: str, completed: bool, layout: str
) -> None:
    path = rich.backup()
    words = [sys.executable, "-c", KILLED, str(rich.backups), step, f"{path.name}.json", layout]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (rich.backups / "backup-x.json").exists()
    note = rich.inv("data.backup").stderr
    assert ("completed backup-x" in note, "removed .nv-" in note) == (completed, not completed)
    assert (rich.backups / "backup-x.json").exists() == completed == (rich.backups / "backup-x").exists()
    assert list(rich.backups.glob(".nv-*")) == []


def test_what_another_process_is_writing_is_not_swept(rich: Data) -> None:
    rich.backup()
    import fcntl

    alive = rich.backups / ".nv-0123abcd.partial"
    with alive.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rich.backup()
        assert alive.exists()
    rich.backup()
    assert not alive.exists()


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["pg_dump", "postgres"])
def test_when_a_program_is_killed_nothing_is_left_and_the_cause_is_said(data: Data, victim: str) -> None:
    data.sql(FILL)
    process = data.popen("data.backup")

    def target() -> psutil.Process | None:
        tree = psutil.Process(process.pid).children(recursive=True)
        dump = next((p for p in tree if "pg_dump" in p.name()), None)
        if dump and victim == "postgres":
            assert wait_for(lambda: list(data.backups.glob(".nv-*.partial")))
            return psutil.Process(int((data.data / "postmaster.pid").read_text().split()[0]))
        return dump

    wait_for(target).kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "error: could not" in err
    assert "Traceback" not in err
    assert not data.backups.exists() or list(data.backups.iterdir()) == []
    data.inv("db.start")
    data.inv("data.backup")
    data.inv("data.verify", "--deep")


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_removes_what_it_wrote(data: Data, number: signal.Signals) -> None:
    data.sql(FILL)
    process = data.popen("data.backup")
    wait_for(lambda: list(data.backups.glob(".nv-*.partial")))
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (130, 143), err
    assert list(data.backups.iterdir()) == []
    assert "Traceback" not in err


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, soon full."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(folder)], check=False)
    if done.returncode != 0:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.faults
@pytest.mark.skipif(os.getuid() != 0, reason="a small file system can be mounted by root alone")
def test_a_full_disk_leaves_earlier_backups_and_nothing_else(data: Data, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "5m") as disk:
        data.env["INVOKE_DATA_DIR"] = str(disk)
        first = data.backup()
        data.sql(FILL)
        for layout in ("sql", "custom", "directory"):
            text = data.refused("data.backup", "--format", layout, says="No space left|not enough room")
            assert "fix:" in text
            assert sorted(p.name for p in disk.iterdir()) == [first.name, f"{first.name}.json"]
        data.backup("--schema-only")  # there is room for that
        data.sql("TRUNCATE bulk")
        data.inv("data.verify", "--file", first.name)
        data.inv("data.backup")
    del data.env["INVOKE_DATA_DIR"]


@pytest.mark.skipif(os.getuid() != 0, reason="for root a folder is read-only on a file system of its own alone")
def test_in_a_read_only_folder_backups_are_verified_and_none_is_made(rich: Data, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        rich.env["INVOKE_DATA_DIR"] = str(disk)
        try:
            whole, bad = rich.backup("--no-verify"), rich.backup()
            (disk / ".nv-01234567.partial").touch()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            done = rich.inv("data.verify", "--all")
            assert done.stdout == f"{whole.name}  whole\n{bad.name}  whole\n"
            assert f"not be recorded in the manifest of {whole.name} and 1 more: Read-only file system" in done.stderr
            assert f"could not remove {disk / '.nv-01234567.partial'}" in done.stderr
            assert [
                (found["state"], found["recorded"], found["verified"]["how"])
                for found in rich.json("data.verify", "--all")["backups"]
            ] == [("whole", False, "read")] * 2
            assert rich.json("data.list")["backups"][0]["verified"] is None
            said = rich.refused("data.backup", says=f"could not be written to {disk}\ncause: Read-only file system;")
            assert f"fix:   make {disk} writable for you\n       or set data.dir to another directory" in said
            assert "inv data.backup --output DIRECTORY" in said
            said = rich.refused("data.backup", "--output", str(disk), says="Read-only file system")
            assert "or name another place with --output" in said
            said = rich.refused("data.restore", "--file", whole.name, says="Read-only file system")
            assert "--output" not in said
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            os.truncate(bad, bad.stat().st_size - 1)
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            assert "damaged" in rich.inv("data.verify", "--all", expect=1).stdout
        finally:
            del rich.env["INVOKE_DATA_DIR"]


@pytest.mark.slow
def test_no_secret_is_shown_anywhere(data: Data) -> None:
    canary = data.secrets()["db_password"]
    seen: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    content = path.read_bytes().decode(errors="replace")
                    if canary in content:
                        seen.append(content)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        outputs = [
            data.inv("--echo", "data.backup", "--json"),
            data.inv("--dry", "data.backup"),
            data.inv("data.verify", "--deep"),
            data.inv("data.list"),
            data.inv("--debug", "data.backup", "--output", "/dev/full", expect=2),
        ]
    finally:
        stop.set()
        watcher.join()
    assert seen == []
    for done in outputs:
        assert canary not in done.stdout + done.stderr
    for path in [*data.backups.rglob("*"), *(data.root / "logs").rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".gz":
                content = subprocess.run(["gzip", "-dc", str(path)], capture_output=True, check=True).stdout
            assert canary.encode() not in content, path
