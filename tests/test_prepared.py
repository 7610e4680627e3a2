"""A fresh cluster is a copy of one that was prepared once: as good as one of initdb's, and told apart from its like."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devstack.services.prepared import KEEP, KEEP_DAYS, entries, is_whole, sums_of
from tests.conftest import Project, ended, wait_for

IDENTIFIER = "SELECT system_identifier::text FROM pg_control_system()"
Make = Callable[[], Project]


@pytest.fixture(scope="module")
def programs(workspace: Path, cache: Path) -> Path:
    """PostgreSQL's programs, unpacked."""
    folder = Path(tempfile.mkdtemp(dir=workspace))
    folder.chmod(0o755)
    project = Project(folder, cache)
    try:
        project.inv("db.start")
        return Path(json.loads((project.state / "choices.json").read_text())["postgres_bin"])
    finally:
        project.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def place(workspace: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=workspace))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make(place: Path, programs: Path) -> Iterator[Make]:
    """Projects that share a cache with nothing prepared in it."""
    made: list[Project] = []

    def project() -> Project:
        folder = place / f"project-{len(made)}"
        folder.mkdir(mode=0o755)
        made.append(Project(folder, place / "cache"))
        made[-1].env["INVOKE_DB_BIN_DIR"] = str(programs)
        return made[-1]

    yield project
    for one in made:
        one.end()


def initdbs(project: Project) -> int:
    """Return how often a project ran initdb."""
    lines = project.log("devstack").splitlines()
    return sum("/initdb " in line and "--sync-only" not in line and "exit 0" in line for line in lines)


def renew(project: Project) -> None:
    """Have the next start make a cluster."""
    project.inv("db.stop")
    shutil.rmtree(project.data)
    project.inv("db.start")


def names(cache: Path) -> list[str]:
    return [path.name for path in (cache / "clusters").iterdir()]


def test_a_copy_has_a_password_and_a_lineage_of_its_own(make: Make, place: Path) -> None:
    one, other = make(), make()
    for project in (one, other):
        assert "password of role" not in project.inv("db.start").stderr  # as of one that was there before
        assert project.query("SELECT extname FROM pg_extension WHERE extname = 'vector'") == [("vector",)]
        assert project.query("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'nina'") == [("nina",)]
        # pg_dump takes what has a lower number for a part of PostgreSQL
        lowest = "SELECT min(oid)::int >= 16384 FROM (SELECT oid FROM pg_extension WHERE extname = 'vector'"
        lowest += " UNION SELECT oid FROM pg_database WHERE datname = 'nina' UNION SELECT 'nina'::regrole) objects"
        assert project.query(lowest) == [(True,)]
    assert [initdbs(one), initdbs(other)] == [1, 0]
    assert one.query(IDENTIFIER) == other.query(IDENTIFIER)
    assert one.secrets()["db_password"] != other.secrets()["db_password"]
    lineages = [(project.data / "nv-lineage").read_text() for project in (one, other)]
    assert all(len(lineage.strip()) == 32 for lineage in lineages)
    assert lineages[0] != lineages[1]
    (entry,) = entries(place / "cache")
    assert not list(entry.rglob("nv-lineage"))
    for path in entry.rglob("*"):
        assert not path.is_file() or b"SCRAM-SHA-256$" not in path.read_bytes(), path


@pytest.mark.slow
def test_a_damaged_entry_is_made_again(make: Make, place: Path) -> None:
    project = make()
    project.inv("db.start")
    (entry,) = entries(place / "cache")
    flip(next(path for path in (entry / "data" / "base").rglob("*") if path.is_file() and path.stat().st_size))
    for _ in range(2):
        renew(project)
        assert initdbs(project) == 2
    assert entries(place / "cache") == [entry]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: flip(data / "base" / "1" / "112"),
        lambda data: os.truncate(data / "base" / "1" / "112", 100),
        lambda data: (data / "base" / "1" / "112").unlink(),
        lambda data: (data / "pg_notify").rmdir(),
        lambda data: (data / "base" / "more").write_text("more"),
        lambda data: (data / "base" / "more").mkdir(),
        lambda data: (data / "base" / "more").symlink_to("/etc"),
        lambda data: os.mkfifo(data / "base" / "more"),
        lambda data: (data.parent / "sums.json").unlink(),
        lambda data: (data.parent / "sums.json").write_text("[" * 10_000),
        lambda data: shutil.rmtree(data),
    ],
    ids=[
        "bit",
        "cut",
        "gone",
        "directory",
        "more-file",
        "more-directory",
        "link",
        "fifo",
        "no-sums",
        "no-JSON",
        "nothing",
    ],
)
def test_every_damage_of_an_entry_is_noticed(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    data = tmp_path / "data"
    (data / "base" / "1").mkdir(parents=True)
    (data / "pg_notify").mkdir()
    (data / "base" / "1" / "112").write_bytes(os.urandom(8192))
    (tmp_path / "sums.json").write_text(json.dumps(sums_of(data)))
    assert is_whole(tmp_path)
    damage(data)
    assert not is_whole(tmp_path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_two_first_starts_at_once_make_one_entry(make: Make, place: Path) -> None:
    projects = [make() for _ in range(3)]
    starts = [project.popen("db.start") for project in projects]
    for start in starts:
        assert start.wait(120) == 0, start.communicate()
    assert sum(map(initdbs, projects)) == 1
    assert len(entries(place / "cache")) == 1
    assert len({project.query(IDENTIFIER)[0] for project in projects}) == 1


@pytest.mark.slow
def test_two_first_starts_at_once_unpack_postgresql_once(place: Path) -> None:
    left = place / "cache" / ".unpack-1"  # of a command that was killed
    left.mkdir(parents=True)
    folders = [place / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir(mode=0o755)
    with contextlib.ExitStack() as held:
        projects = [held.enter_context(ended(Project(folder, place / "cache"))) for folder in folders]
        starts = [project.popen("db.start") for project in projects]
        for start in starts:
            assert start.wait(120) == 0, start.communicate()
        logs = [(project.root / "logs" / "devstack.log").read_text() for project in projects]
    assert sum("nv_unpack_only" in log for log in logs) == 1
    assert [path.name for path in (place / "cache").glob(".*") if path.is_dir()] == []


@pytest.mark.faults
def test_a_start_that_is_killed_leaves_no_half_entry(make: Make, place: Path) -> None:
    project = make()
    start = project.popen("db.start")
    clusters = place / "cache" / "clusters"
    wait_for(lambda: list(clusters.glob(".*.partial/data/PG_VERSION")))
    start.kill()
    start.communicate()
    assert entries(place / "cache") == []
    project.inv("db.start")
    assert len(entries(place / "cache")) == 1
    assert [name for name in names(place / "cache") if name.endswith(".partial")] == []
    assert list((project.state / "volumes").glob(".*")) == []


@pytest.mark.slow
def test_what_makes_another_cluster_makes_another_entry(make: Make, place: Path) -> None:
    project = make()
    project.inv("db.start")
    for number, change in enumerate(
        [{"INVOKE_DB_EXTENSIONS": '["vector", "pg_trgm"]'}, {"INVOKE_DB_USER": 'a "b"'}, {"TZ": "Asia/Kolkata"}], 2
    ):
        project.env |= change
        renew(project)
        assert len(entries(place / "cache")) == initdbs(project) == number
    user = project.env["INVOKE_DB_USER"]
    assert project.query("SELECT current_user, current_setting('TimeZone')", user=user) == [(user, "Asia/Kolkata")]


def test_a_setting_runs_initdb_each_time(make: Make, place: Path) -> None:
    project = make()
    project.env["INVOKE_DB_PREPARED"] = "false"
    project.inv("db.start")
    renew(project)
    assert initdbs(project) == 2
    assert not (place / "cache" / "clusters").exists()


def test_a_cache_that_cannot_be_used_hinders_no_start(make: Make, place: Path) -> None:
    (place / "cache").mkdir(mode=0o755)
    (place / "cache" / "clusters").write_text("no directory")
    project = make()
    project.inv("db.start")
    assert initdbs(project) == 1
    assert project.query("SELECT 1") == [(1,)]


def test_entries_that_nobody_uses_go(make: Make, place: Path) -> None:
    clusters = place / "cache" / "clusters"
    clusters.mkdir(parents=True, mode=0o755)
    now = time.time()
    for number in range(KEEP + 2):
        (clusters / f"postgresql-1-{number}" / "data").mkdir(parents=True)
        (clusters / f".postgresql-1-{number}.lock").touch()
        days = KEEP_DAYS + 1 if number == 0 else number / 10
        os.utime(clusters / f"postgresql-1-{number}", (now - days * 86_400,) * 2)
    project = make()
    project.inv("db.start")
    kept = [path.name for path in entries(place / "cache")]
    assert len(kept) == KEEP
    assert kept[1:] == [f"postgresql-1-{number}" for number in range(1, KEEP)]
    assert len([name for name in names(place / "cache") if name.endswith(".lock")]) == KEEP


def test_a_backup_is_not_built_on_a_copy_of_another_cluster_with_the_same_identifier(make: Make) -> None:
    project = make()
    project.inv("db.start")
    if project.query("SELECT current_setting('server_version_num')::int >= 170000") == [(False,)]:
        pytest.skip("PostgreSQL before 17 has no incremental copies")
    identifier = project.query(IDENTIFIER)
    project.inv("data.backup", "--incremental")
    renew(project)
    assert project.query(IDENTIFIER) == identifier
    project.inv("data.backup", "--incremental")
    found = json.loads(project.inv("data.list", "--json").stdout)["backups"]
    assert [backup["kind"] for backup in found] == ["base", "base"], found


@pytest.mark.skipif(os.getuid() != 0, reason="needs an account of the services")
def test_the_services_account_reads_an_entry_and_cannot_change_it(make: Make, place: Path) -> None:
    """What it could change would be in every later cluster, of whatever environment."""
    project = make()
    project.inv("db.start")
    (entry,) = entries(place / "cache")
    for path in (entry, *entry.rglob("*")):
        info = path.lstat()
        assert (info.st_uid, info.st_mode & 0o022) == (0, 0), path
    modes = {path.stat().st_mode & 0o777 for path in (project.data, *project.data.rglob("*"))}
    assert modes == {0o700, 0o600}
