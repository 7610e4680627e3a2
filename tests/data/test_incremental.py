"""Copies of a cluster and what builds on them: small, proven before they are combined, and with a way back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from devstack.data import incremental
from devstack.data.catalogue import Backup, backups
from devstack.data.retention import expired
from devstack.errors import UsageError
from devstack.files import NotPlain
from devstack.host import Host
from devstack.services.postgres import Postgres
from tests.conftest import wait_for
from tests.data.conftest import Data, _project

KILLED_AT = """
import os, sys
count, alone, seen = int(sys.argv[1]), sys.argv[2] == "alone", 0
def kill():
    import psutil
    for child in psutil.Process().children() if alone else []:
        if any("devstack.data.recovery" in word for word in child.cmdline()):
            child.kill()
    os.kill(os.getpid(), 9)
def audit(event, args):
    global seen
    if event == "os.rename" and (str(args[0]).endswith(("/nv-db-data", ".incoming")) or seen == 2):
        seen += 1
        if seen == count:
            kill()
    if event == "shutil.rmtree" and count == 4 and "/nv-db-data-" in str(args[0]):
        seen += 1
        if seen == 2:
            kill()
    if event == "subprocess.Popen" and count == 0 and "pg_verifybackup -q" in str(args) and "incoming" in str(args):
        kill()
sys.addaudithook(audit)
from invoke.main import program
program.run(["inv", *sys.argv[3:]])
"""
"""``inv``, killed before the n-th rename of a data folder; 3: after both; 0: when the combined copy is verified; 4: in
the middle of the removal of a directory that an earlier restore has kept. With ``alone`` its guard is killed too."""


@pytest.fixture(scope="module")
def stack(workspace: Path, cache: Path) -> Iterator[Data]:
    with _project(workspace, cache) as made:
        made.inv("dev.up")
        made.sql(
            "CREATE TABLE bulk AS SELECT g AS id, md5(g::text) || md5((g * 3)::text) AS text"
            " FROM generate_series(1, 400000) g; CREATE TABLE mark (text text); INSERT INTO mark VALUES ('none')"
        )
        yield made


@pytest.fixture(scope="module")
def chain(stack: Data) -> list[Path]:
    """A full copy and two that build on it, each with a mark of its own."""
    made = []
    for name in ("base", "one", "two"):
        stack.sql(f"UPDATE mark SET text = '{name}'; UPDATE bulk SET text = '{name}' || text WHERE id <= 4000")
        made.append(stack.backup("--incremental", "--label", name))
    stack.sql("UPDATE mark SET text = 'now'")
    return made


def mark(stack: Data) -> str:
    return stack.sql("SELECT text FROM mark")


def size(path: Path) -> int:
    """Without the log of the copy itself, 16 MB at least: pg_wal has whole segments."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file() and f.parent.name != "pg_wal")


def test_each_builds_on_the_one_before_and_is_small(stack: Data, chain: list[Path]) -> None:
    listed = stack.json("data.list")["backups"]
    assert [b["kind"] for b in listed] == ["base", "incremental", "incremental"]
    assert [b["parent"] for b in listed] == ["", chain[0].name, chain[1].name]
    assert all(b["verified"] for b in listed)
    assert size(chain[2]) < size(chain[0]) * 0.1
    assert not [p for p in chain[0].parent.rglob("*") if p.stat().st_mode & 0o077]
    said = stack.inv("data.verify", "--deep", "--file", chain[2].name).stdout
    assert "whole, restored" in said
    assert mark(stack) == "now"
    assert [p.name for p in stack.data.parent.iterdir()] == ["nv-db-data"]


def test_the_unused_end_of_the_log_takes_no_room(stack: Data, chain: list[Path]) -> None:
    listed = {b["file"]: b["bytes"] for b in stack.json("data.list")["backups"]}
    for copy in chain:
        files = [file for file in copy.rglob("*") if file.is_file()]
        log = [file for file in files if file.parent.name == "pg_wal"]
        assert {file.stat().st_size for file in log} == {16 << 20}
        unused = sum(len(content := file.read_bytes()) - len(content.rstrip(b"\0")) for file in log)
        assert unused > 1 << 20
        assert listed[copy.name] == sum(file.stat().st_size for file in files) - unused
        taken = sum(file.stat().st_blocks * 512 for file in log)
        assert taken < sum(file.stat().st_size for file in log) - unused + len(log) * 8192


@pytest.mark.slow
def test_the_newest_dump_is_meant_and_a_newer_copy_of_the_cluster_named(stack: Data, chain: list[Path]) -> None:
    for words in (("data.verify",), ("data.restore", "--latest"), ("data.restore", "--at", "2099-01-01")):
        said = stack.refused(*words, says="only dumps are looked at")
        assert re.search(rf"fix: +inv data.restore --file {re.escape(chain[2].name)}", said)
    older = stack.backup("--schema-only")
    dump = stack.backup()
    assert "copy of the cluster" not in stack.inv("data.verify").stderr
    newer = stack.backup("--incremental")
    said = stack.inv("data.verify").stderr
    assert f"is newer than {dump.name}, the newest dump: inv data.restore --file {newer.name}" in said
    shutil.rmtree(newer)
    for path in (older, dump):
        path.unlink()
    for path in (older, dump, newer):
        Path(f"{path}.json").unlink()


@pytest.mark.slow
def test_a_restore_is_exact_and_undo_swaps_back(stack: Data, chain: list[Path]) -> None:
    rows = stack.rows_of()
    stack.inv("data.restore", "--file", chain[1].name)
    assert mark(stack) == "one"
    assert stack.sql("SELECT count(*), count(*) FILTER (WHERE text LIKE 'onebase%') FROM bulk") == "400000|4000"
    assert stack.query("SELECT 1", port=stack.pgb_port) == [(1,)]
    assert len(list(stack.data.parent.iterdir())) == 2
    stack.inv("data.undo")
    assert stack.rows_of() == rows
    stack.inv("data.undo")
    assert mark(stack) == "one"
    # the copies of another line of history have the same numbers, and are nothing to build on
    made = [stack.json("data.backup", "--incremental")]
    assert made[-1]["kind"] == "base"
    stack.inv("data.undo")
    assert mark(stack) == "now"
    made.append(stack.json("data.backup", "--incremental"))
    assert (made[-1]["kind"], made[-1]["parent"]) == ("incremental", chain[2].name)
    stack.inv("data.verify", "--deep", "--file", made[-1]["file"])
    for backup in made:
        shutil.rmtree(backup["path"])
        Path(f"{backup['path']}.json").unlink()


def killed_at(stack: Data, count: int, name: str, *, alone: bool = False) -> None:
    """Kill the restore of a backup."""
    words = ["data.restore", "--no-safety-backup", "--file", name]
    command = stack.code(KILLED_AT, str(count), "alone" if alone else "guarded", *words)
    killed = subprocess.run(command, cwd=stack.root, env=stack.env, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -9, killed.stderr


def check_whole(stack: Data, *, new: bool) -> None:
    """Check that the services are up on the cluster before or the new one, and that nothing else is left."""
    assert stack.answers()
    assert mark(stack) == ("base" if new else "now")
    assert not list(stack.data.parent.glob(".*"))
    assert not (stack.state / "swap.json").exists()
    if new:
        stack.inv("data.undo")
        assert mark(stack) == "now"


@pytest.mark.variations
@pytest.mark.parametrize(
    ("count", "new", "following"),
    [
        (1, False, "dev.heal"),
        (0, False, "data.list"),
        (0, False, "dev.heal"),
        (1, False, "data.verify"),
        (2, False, "data.list"),
        (3, True, "data.list"),
        (3, True, "dev.up"),
    ],
)
def test_killed_in_the_middle_any_next_command_has_the_services_up_on_a_whole_cluster(
    stack: Data, chain: list[Path], count: int, new: bool, following: str
) -> None:
    killed_at(stack, count, chain[0].name, alone=True)
    flags = ["--file", chain[0].name] if following == "data.verify" else []
    stack.inv(following, *flags)
    check_whole(stack, new=new)


@pytest.mark.faults
@pytest.mark.parametrize(("count", "new"), [(1, False), (3, True)])
def test_killed_while_the_services_are_stopped_it_leaves_no_client_waiting_for_a_person(
    stack: Data, chain: list[Path], count: int, new: bool
) -> None:
    killed_at(stack, count, chain[0].name)
    wait_for(stack.answers)
    wait_for(lambda: not (stack.state / "swap.json").exists())
    check_whole(stack, new=new)


@pytest.mark.faults
def test_interrupted_while_the_services_are_stopped_it_starts_them_again(stack: Data, chain: list[Path]) -> None:
    terminated = KILLED_AT.replace("os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)")
    words = ["data.restore", "--no-safety-backup", "--file", chain[0].name]
    command = stack.code(terminated, "1", "guarded", *words)
    done = subprocess.run(command, cwd=stack.root, env=stack.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 143, done.stderr
    check_whole(stack, new=False)


@pytest.mark.slow
def test_what_was_kept_is_not_forgotten_when_a_cluster_comes_back(stack: Data, chain: list[Path]) -> None:
    """A dump's restore keeps a database, the cluster is copied with it, and the copy is restored."""
    dump = stack.backup()
    database = stack.json("data.restore", "--file", dump.name, "--no-safety-backup")["kept"]
    copy = stack.backup("--incremental")
    done = stack.json("data.restore", "--file", copy.name, "--no-safety-backup")
    assert stack.databases() == ["nina"]
    assert [(k["name"], k["kind"], k["for_undo"]) for k in stack.json("data.list", "--kept")["kept"]] == [
        (done["kept"], "cluster", True)
    ]
    stack.inv("data.undo")
    assert stack.databases() == ["nina"], "it was in use then, and nothing leads back to what it had kept"
    assert mark(stack) == "now"
    assert database not in stack.databases()
    # a directory with the name of a kept one, and one with a copied mark
    (kept,) = (path for path in stack.data.parent.iterdir() if path != stack.data)
    for name in ("nv-db-data-20200101-000000", "nv-db-data-20200102-000000"):
        kept.with_name(name).mkdir()
    shutil.copy(kept / "nv-kept.json", kept.with_name("nv-db-data-20200102-000000"))
    found = {k["name"]: k for k in stack.json("data.list", "--kept")["kept"]}
    assert [k["ours"] for _, k in sorted(found.items())] == [False, False, True]
    assert found[kept.name]["bytes"] > 10_000_000
    stack.inv("data.cleanup")
    killed_at(stack, 4, dump.name, alone=True)
    assert (kept / "nv-kept.json").exists()
    assert not (kept / "PG_VERSION").exists() or not (kept / "base").exists()
    (stack.state / "journal.json").unlink()
    checks = json.loads(stack.inv("health", "--json", expect=None).stdout)["services"][0]["checks"]
    assert [check["cause"].split(",")[0] for check in checks if check["name"] == "kept"] == [kept.name]
    assert f"{kept.name}  removed" in stack.inv("data.cleanup").stdout
    assert not kept.exists()
    for name in ("nv-db-data-20200101-000000", "nv-db-data-20200102-000000"):
        shutil.rmtree(kept.with_name(name))
    stack.inv("data.undo")
    stack.sql("UPDATE mark SET text = 'now'")
    shutil.rmtree(copy)
    for path in (copy, dump):
        Path(f"{path}.json").unlink()
    dump.unlink()


@pytest.mark.faults
def test_a_damaged_or_missing_member_is_found_before_anything_is_touched(stack: Data, chain: list[Path]) -> None:
    victim = max((p for p in (chain[0] / "base").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = victim.read_bytes()
    victim.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    said = stack.refused("data.restore", "--file", chain[2].name, says=f"{chain[0].name} is damaged")
    assert "checksum mismatch" in said
    stack.refused("data.verify", "--file", chain[0].name, says="is damaged")
    victim.write_bytes(content)
    away = stack.folder / "away"
    chain[1].rename(away)
    stack.refused("data.restore", "--file", chain[2].name, says=f"builds on {chain[1].name}, which is not there")
    away.rename(chain[1])
    assert mark(stack) == "now"
    assert not list(stack.data.parent.glob(".*"))


def test_retention_keeps_chains_and_the_newest_copy(stack: Data, chain: list[Path]) -> None:
    found = [b for b in backups(stack.backups) if b.manifest.layout == "cluster"]

    def left(ages: list[int]) -> list[str]:
        import msgspec

        moment = datetime.now(timezone.utc)
        aged = [
            Backup(b.path, msgspec.structs.replace(b.manifest, created=(moment - timedelta(days=age)).isoformat()))
            for b, age in zip(found, ages, strict=True)
        ]
        gone = expired(aged, moment=moment, days=7, keep=1, state_of=lambda _: "whole", owner_of=lambda _: "")
        return [b.manifest.label for b in aged if b not in gone]

    assert left([20, 10, 1]) == ["base", "one", "two"]
    assert left([20, 19, 18]) == ["base", "one", "two"]


@pytest.mark.slow
def test_what_can_not_be_is_said(stack: Data) -> None:
    old = SimpleNamespace(db=SimpleNamespace(programs=SimpleNamespace(major=16, version="16.4", bin=Path("/x"))))
    with pytest.raises(UsageError, match="needs PostgreSQL 17"):
        incremental.check_version(old)  # type: ignore[arg-type]
    stack.refused("data.backup", "--incremental", "--schema-only", says="--incremental goes with", code=2)
    env = json.dumps({**json.loads(stack.env["INVOKE_DB_PARAMETERS"]), "summarize_wal": False})
    before = os.listdir(stack.backups)
    stack.inv("db.start", INVOKE_DB_PARAMETERS=env)
    stack.refused("data.backup", "--incremental", says="db.parameters sets it to off", code=2, INVOKE_DB_PARAMETERS=env)
    assert sorted(os.listdir(stack.backups)) == sorted(before)
    stack.inv("db.start")


@pytest.mark.faults
def test_a_copy_ends_with_its_command_and_hinders_no_other(stack: Data) -> None:
    """Also where it runs under another account, and does not heed a signal at once."""
    before = sorted(os.listdir(stack.backups)) if stack.backups.exists() else []
    command = stack.popen("data.backup", "--incremental")

    def copying() -> list[psutil.Process]:
        below = psutil.Process(command.pid).children(recursive=True)
        return [process for process in below if process.name() == "pg_basebackup"]

    copies = wait_for(copying)
    copies[0].suspend()
    command.kill()
    command.communicate()
    left = psutil.wait_procs(copies, timeout=20)[1]
    for copy in left:
        copy.kill()
    assert left == []
    stack.inv("data.list")
    stack.inv("data.backup", "--incremental")
    assert len(os.listdir(stack.backups)) == len(before) + 2


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root has an account to run programs under")
def test_a_server_has_root_write_no_file_of_its_choice(stack: Data) -> None:
    """pg_basebackup names its files as the server says: it runs under the account that the server runs as."""
    made = [stack.backup("--incremental") for _ in range(2)]
    log = (stack.root / "logs" / "devstack.log").read_text()
    lines = [line for line in log.splitlines() if "pg_basebackup" in line and " -D . " in line]
    assert len([line for line in lines if "su -s /bin/sh nv-devstack -c" in line]) >= 2, lines
    for path in made:
        assert {(p.lstat().st_uid, p.lstat().st_mode & 0o077) for p in [path, *path.rglob("*")]} == {(0, 0)}


def test_what_it_sends_besides_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "is_root", property(lambda _: True))
    monkeypatch.setattr(Host, "own", lambda *_, **__: None)
    db: Any = SimpleNamespace(context=SimpleNamespace(host=Host(), runtime=SimpleNamespace(as_account=lambda c, _: c)))
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(NotPlain, match="a link"), Postgres.receiving(db, tmp_path):
        pass
