"""The tasks of a stack on another host: the same words, the same answers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
from pathlib import Path

import msgspec
import psutil
import pytest

from devstack.data.manifest import Manifest, encode, path_of
from tests.conftest import wait_for
from tests.data import manifests
from tests.engines.test_everywhere import read_until
from tests.remote.host import Remote

OWN_PROGRAM = True
"""The project is a checkout, which is sent as it is. In the other files the program is sent beside the project."""


def test_it_runs_there_and_not_here(up: Remote) -> None:
    assert {s["state"] for s in json.loads(up.inv("dev.status", "--json").stdout)["services"]} == {"running"}
    assert up.listening() == []
    found = up.host.run("ss", "-Hltn")
    assert all(f"127.0.0.1:{port}" in found for port in (up.db_port, up.pgb_port, up.api_port))
    assert "✅ HEALTHY" in up.inv("health").stdout
    assert "nv-api" in up.inv("dev.logs", "--tail", "3").stdout
    assert up.inv("dev.up").stdout.count("already running") == 3


def test_the_exit_code_is_that_of_the_task(up: Remote) -> None:
    up.inv("api.stop")
    assert "STOPPED" in up.inv("health", expect=1).stdout
    wrong = up.inv("data.backup", "--format", "tar", expect=2)
    assert "--format 'tar' is not known" in wrong.stderr
    up.inv("dev.up")


def test_a_wrong_setting_is_said_once_and_what_runs_there_is_inspected(up: Remote) -> None:
    for args in (("dev.status",), ("data.backup",), ("dev.env",), ("data.list",)):
        done = up.inv(*args, INVOKE_API_PORT="99999")
        assert done.stderr.count("api.port: '99999': expected int <= 65535") == 1, done.stderr
    assert f":{up.api_port}" in up.inv("dev.status", INVOKE_API_PORT="99999").stdout
    assert "a setting is wrong" in up.inv("dev.restart", INVOKE_API_PORT="99999", expect=2).stderr
    assert up.inv("dev.up").stdout.count("already running") == 3


def test_what_is_answered_in_json_is_json_alone(up: Remote) -> None:
    made = json.loads(up.inv("data.backup", "--json", "--label", "a 'quoted' $(touch PWNED) `touch PWNED`").stdout)
    assert made["label"] == "a 'quoted' $(touch PWNED) `touch PWNED`"
    assert not [*up.folder.rglob("PWNED"), *Path.home().glob("PWNED")]


def test_a_shell_here_gets_what_leads_to_the_stack_there_and_nothing_else(up: Remote) -> None:
    lines = up.inv("dev.env").stdout.splitlines()
    names = {line.removeprefix("export ").partition("=")[0] for line in lines}
    assert names == {
        *("DIRECT_URL", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGREQUIREAUTH", "API_URL"),
        *("NINAIVALAIGAL_DATABASE_URL", "DATABASE_URL", "NINAIVALAIGAL_JWT_SECRET", "NV_ANSWERS"),
        *("MEMORY_PROVIDER", "NINAIVALAIGAL_DEBUG", "LOG_LEVEL"),
    }
    assert set(json.loads(up.inv("dev.env", "--json").stdout)) == names


def test_a_backup_comes_here_and_goes_there_to_be_restored(up: Remote) -> None:
    up.sql("DROP TABLE IF EXISTS round; CREATE TABLE round AS SELECT generate_series(1, 500) AS g")
    before = up.backups
    up.inv("data.backup")
    (name,) = sorted({*up.backups} - {*before})
    assert up.backups_there == []
    file = up.root / "backups" / name
    assert (file.stat().st_mode & 0o777, up.inv("data.list").stdout.count(name)) == (0o600, 1)
    up.sql("DELETE FROM round WHERE g > 10")
    assert "restored and counted" in up.inv("data.verify", "--file", name, "--deep").stdout
    listed = {b["file"]: b for b in json.loads(up.inv("data.list", "--json").stdout)["backups"]}
    assert listed[name]["verified"]["how"] == "restore"
    # a later one that was made here is not what a restore there takes
    mine = up.root / "backups" / "backup-29990101-000000.sql.gz"
    shutil.copy(file, mine)
    changes = {"file": mine.name, "sequence": 10_000, "fetched_from": "", "created": "2999-01-01T00:00:00+00:00"}
    manifests.write(mine, {**json.loads(path_of(file).read_text()), **changes})
    assert f"from host {up.env['NV_HOST']}" in up.inv("data.list").stdout
    up.inv("data.restore")
    for path in (mine, path_of(mine)):
        path.unlink()
    assert "500" in up.sql("SELECT count(*) FROM round")
    assert len(up.backups) == len(before) + 2, "the one that was made before the restore came too"
    assert up.backups_there == []
    up.inv("data.undo")
    assert " 10" in up.sql("SELECT count(*) FROM round")
    up.inv("data.restore", "--file", str(file), "--merge")
    assert "500" in up.sql("SELECT count(*) FROM round")


def test_all_that_can_be_verified_is_and_what_can_not_be_is_named(up: Remote) -> None:
    up.inv("data.backup")
    whole = max(up.backups)
    damaged = up.root / "backups" / "backup-20200101-000000.sql.gz"
    shutil.copy(up.root / "backups" / whole, damaged)
    path_of(damaged).write_text("{")
    try:
        done = up.inv("data.verify", "--all", expect=1)
    finally:
        for path in (damaged, path_of(damaged)):
            path.unlink()
    assert f"{whole}  whole" in done.stdout
    assert f"{damaged.name} can't be used as a backup" in done.stderr
    up.inv("data.verify", "--all")


def test_a_copy_stays_there_if_it_is_to(up: Remote) -> None:
    made = json.loads(up.inv("data.backup", "--schema-only", "--keep-remote", "--json").stdout)["file"]
    assert made in up.backups
    assert up.backups_there == [made, f"{made}.json"]
    assert up.inv("data.list").stdout.count(made) == 1
    for name in up.backups_there:
        (up.there / "backups" / name).unlink()


def test_a_dump_of_another_tool_is_restored_from_here(up: Remote) -> None:
    dump = up.folder / "it's a dump.sql"
    dump.write_text("CREATE TABLE foreign_one (n int);\nINSERT INTO foreign_one VALUES (6), (7);\n")
    assert "it's a dump.sql" in up.inv("data.restore", "--file", str(dump), "--force").stdout
    assert "13" in up.sql("SELECT sum(n) FROM foreign_one")
    assert not list((up.there / "backups").glob(".nv-*"))
    up.inv("data.undo")


def test_the_clusters_copies_build_on_each_other(up: Remote) -> None:
    up.sql("DROP TABLE IF EXISTS copied; CREATE TABLE copied AS SELECT 1 AS n")
    base = json.loads(up.inv("data.backup", "--incremental", "--json").stdout)
    up.sql("INSERT INTO copied VALUES (2)")
    made = json.loads(up.inv("data.backup", "--incremental", "--json").stdout)
    assert (made["kind"], made["parent"]) == ("incremental", base["file"])
    assert {base["file"], made["file"]} <= {*up.backups}
    assert {base["file"], made["file"]} <= {*up.backups_there}, "the next one builds on them"
    up.sql("DROP TABLE copied")
    for name in (base["file"], made["file"]):  # as if the host had been set up anew
        shutil.rmtree(up.there / "backups" / name)
        (up.there / "backups" / f"{name}.json").unlink()
    up.inv("data.restore", "--file", made["file"])
    assert " 3" in up.sql("SELECT sum(n) FROM copied")


def test_a_name_that_is_another_backup_there_is_not_mistaken_for_it(up: Remote) -> None:
    up.sql("DROP TABLE IF EXISTS whose; CREATE TABLE whose AS SELECT 'mine' AS text")
    mine = json.loads(up.inv("data.backup", "--json").stdout)["file"]
    up.sql("UPDATE whose SET text = 'of the host'")
    other = json.loads(up.inv("data.backup", "--keep-remote", "--json").stdout)["file"]
    there = up.there / "backups"
    (there / other).rename(there / mine)
    manifest = json.loads((there / f"{other}.json").read_text())
    manifests.write(there / mine, {**manifest, "file": mine})
    (there / f"{other}.json").unlink()
    up.inv("data.restore", "--file", mine)
    assert "mine" in up.sql("SELECT text FROM whose")
    assert up.backups_there.count(mine) == 1, "that of the host stays"
    for name in up.backups_there:
        path = there / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_hostile_host_can_give_nothing_that_was_not_asked_for(up: Remote) -> None:
    made = json.loads(up.inv("data.backup", "--keep-remote", "--json").stdout)
    there, before = up.there / "backups", up.backups
    model = json.loads((there / f"{made['file']}.json").read_text())

    def offer(name: str, content: bytes, **changes: object) -> None:
        (there / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        manifest = {
            **model,
            "file": name,
            "sha256": digest,
            "bytes": len(content),
            "created": "2999-01-01T00:00:00+00:00",
        }
        (there / f"{name}.json").write_bytes(encode(msgspec.convert({**manifest, **changes}, Manifest)))

    offer("backup-29990101-000001.sql.gz", b"not asked for")
    up.inv("data.backup")
    assert len(up.backups) == len(before) + 1, "that of the command alone"
    # as if a command's link had broken, which had made all of these
    (lock,) = up.state_base.rglob("exchange-lock")
    note = lock.with_name("exchange.json")
    assert not note.exists()
    note.write_text(json.dumps([made["file"]]))
    large = b"x" * 100_000
    offer("backup-29990101-000002.sql.gz", large, bytes=1000)
    offer("backup-29990101-000003.sql.gz", large, parent="../../x")
    offer("backup-29990101-000004.sql.gz", large, file="../backup-29990101-000004.sql.gz")
    offer("backup-29990101-\x1b[2J.sql.gz", large)
    offer(".hidden.sql.gz", large)
    offer("-rf.sql.gz", large)
    folder = there / "backup-29990101-000005.dir"
    folder.mkdir()
    (folder / "toc.dat").symlink_to("/etc/passwd")
    changes = {
        **model,
        "file": folder.name,
        "layout": "directory",
        "files": {"toc.dat": "0"},
        "created": "2998" + model["created"][4:],
    }
    manifests.write(folder, changes)
    said = up.inv("data.backup").stderr
    assert "brought from box" in said
    assert "backup-29990101-000002.sql.gz on box was not brought: the host sends more than the 1000 bytes" in said
    assert "backup-29990101-000005.dir on box was not brought: './toc.dat' can't be part of a backup" in said
    assert "\x1b" not in said
    came = {*up.backups} - {*before}
    assert {name for name in came if name.startswith("backup-2999")} == {"backup-29990101-000001.sql.gz"}
    assert not [*(up.root / "backups").glob(".nv-*"), *up.root.glob("*.sql.gz")]
    assert not note.exists()
    # it is foreign here, and what it says of itself is not believed
    listed = {b["file"]: b for b in json.loads(up.inv("data.list", "--json").stdout)["backups"]}
    assert not listed["backup-29990101-000001.sql.gz"]["signed"]
    for place in (there, up.root / "backups"):
        for path in [*place.glob("*2999*"), *place.glob(".hidden*"), *place.glob("-rf*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_what_is_piped_into_a_shell_arrives_and_all_that_it_prints_comes(up: Remote) -> None:
    script = "CREATE TABLE piped (text text);\n" + "".join(
        f"INSERT INTO piped VALUES (repeat('{n % 10}', 1000));\n" for n in range(3000)
    )
    done = subprocess.run(
        up.command("db.shell"),
        cwd=up.root,
        env=up.env,
        input=script + "SELECT text FROM piped;\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sum(line.strip()[:1].isdigit() and len(line) > 900 for line in done.stdout.splitlines()) == 3000
    up.sql("DROP TABLE piped")


def test_files_folders_and_links_take_each_other_s_place(up: Remote) -> None:
    here, there = up.root / "odd", up.there / "odd"
    outside = up.folder / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    here.write_text("a file")
    up.inv("dev.status")
    assert there.read_text() == "a file"
    here.unlink()
    here.mkdir()
    (here / "kept").write_text("in a folder")
    up.inv("dev.status")
    assert (there / "kept").read_text() == "in a folder"
    shutil.rmtree(here)
    here.symlink_to(outside)
    up.inv("dev.status")
    assert there.is_symlink()
    assert (outside / "kept").read_text() == "kept"
    here.unlink()
    here.mkdir()
    (here / "kept").write_text("in a folder again")
    up.inv("dev.status")
    assert not there.is_symlink()
    assert ((outside / "kept").read_text(), (there / "kept").read_text()) == ("kept", "in a folder again")
    shutil.rmtree(here)
    up.inv("dev.status")
    assert not there.exists()


def test_what_restores_have_kept_is_listed_where_it_is(up: Remote) -> None:
    made = json.loads(up.inv("data.backup", "--json").stdout)["file"]
    kept = json.loads(up.inv("data.restore", "--file", made, "--no-safety-backup", "--json").stdout)["kept"]
    found = json.loads(up.inv("data.list", "--kept", "--json").stdout)["kept"]
    assert [(copy["name"], copy["for_undo"]) for copy in found] == [(kept, True)]


def test_old_backups_go_on_both_sides(up: Remote) -> None:
    made = [json.loads(up.inv("data.backup", "--keep-remote", "--json").stdout)["file"] for _ in range(2)]
    for folder in (up.root / "backups", up.there / "backups"):
        for name, changes in zip(made, ({"created": "2020-01-01T00:00:00.000+00:00"}, {}), strict=True):
            # both unsigned, as a change takes the signature away: those of another environment are kept for themselves
            content = json.loads(path_of(folder / name).read_text())
            manifests.write(folder / name, {**content, **changes, "signature": ""})
    assert "kept is not looked for" not in up.inv("data.cleanup", "--days", "30").stderr
    for folder in (up.root / "backups", up.there / "backups"):
        assert [(folder / name).exists() for name in made] == [False, True]
    (up.there / "backups" / made[1]).unlink()
    (up.there / "backups" / f"{made[1]}.json").unlink()


def test_a_change_here_is_served_there(up: Remote) -> None:
    main, extra = up.root / "api" / "main.py", up.root / "api" / "extra.py"
    source = main.read_text()
    extra.write_text("WORD = 'brought'\n")
    main.write_text(source + "\nfrom api.extra import WORD\n\n@app.get('/word')\ndef word() -> str:\n    return WORD\n")
    (up.there / "api" / "left.txt").write_text("made there")
    process = up.popen("dev.watch")
    try:

        def said() -> str:
            return up.host.run("curl", "-s", f"http://127.0.0.1:{up.api_port}/word")

        wait_for(lambda: said() == '"brought"')
        extra.write_text("WORD = 'changed'\n")
        wait_for(lambda: said() == '"changed"')
    finally:
        main.write_text(source)
        extra.unlink()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert "HEALTHY" in up.inv("health", "--wait", "20").stdout
    assert not (up.there / "api" / "extra.py").exists()
    assert (up.there / "api" / "left.txt").read_text() == "made there"


def test_what_git_ignores_stays_here_but_for_settings(up: Remote) -> None:
    subprocess.run(["git", "init", "-q"], cwd=up.root, check=True)
    (up.root / "big.bin").write_text("x")
    (up.root / ".gitignore").write_text("big.bin\n.env\n/backups/\n/logs/\n__pycache__/\n")
    (up.root / ".env").write_text("GREETING=hello\n")
    try:
        up.inv("dev.status")
        assert not (up.there / "big.bin").exists()
        assert not (up.there / ".git").exists()
        assert (up.there / ".env").read_text() == "GREETING=hello\n"
        assert (up.there / ".env").stat().st_mode & 0o777 == 0o600
    finally:
        (up.root / ".env").unlink()
        (up.root / "big.bin").unlink()
    up.inv("dev.status")
    assert not (up.there / ".env").exists()


def following(up: Remote) -> list[psutil.Process]:
    """The processes of dev.logs there."""
    found = []
    for process in up.host.sessions():
        with contextlib.suppress(psutil.Error):
            if "dev.logs" in process.cmdline():
                found.append(process)
    assert found
    return found


def test_ctrl_c_ends_what_runs_there(up: Remote) -> None:
    process = up.popen("dev.logs", "--follow")
    assert process.stdout
    assert process.stdout.readline()
    there = following(up)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert not psutil.wait_procs(there, timeout=10)[1]


def test_who_goes_away_leaves_nothing_there(up: Remote) -> None:
    process = up.popen("dev.logs", "--follow")
    assert process.stdout
    assert process.stdout.readline()
    there = following(up)
    process.kill()
    process.communicate(timeout=30)
    assert not psutil.wait_procs(there, timeout=20)[1]


def test_a_person_gets_a_terminal_there(up: Remote) -> None:
    master, slave = pty.openpty()
    command = up.command("dev.reset")
    process = subprocess.Popen(command, cwd=up.root, env=up.env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    try:
        read_until(master, r"\?")  # it asks, which it does not without a terminal
        os.write(master, b"no\n")
        assert process.wait(30) != 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert not list(up.there.glob(".nv-remote.*.command"))
    assert "1" in up.sql("SELECT 1")


def test_fabric_names_the_host_too(up: Remote) -> None:
    env = {name: text for name, text in up.env.items() if name != "NV_HOST"}
    fab = [up.python, "-m", "fabric", "-c", "tasks", "-H", "box"]
    done = subprocess.run(
        [*fab, "dev.status", "health", "--json"], cwd=up.root, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "nv-db         running" in done.stdout
    assert f"127.0.0.1:{up.db_port}" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.backup", "--output", "here.sql.gz"], "--output names a file here"),
        (["data.restore", "--file", "no such file"], "there is no file no such file"),
        (["data.restore", "--choose"], "--choose works where the stack is"),
        (["data.seed", "/etc/hostname"], "/etc/hostname does not go to box"),
    ],
)
def test_what_can_not_be_meant_is_refused(up: Remote, words: list[str], said: str) -> None:
    assert said in up.inv(*words, expect=2).stderr


def test_another_checkout_of_the_name_does_not_take_its_place(up: Remote) -> None:
    (mark,) = up.state_base.glob("project-*/client")
    text = mark.read_text()
    mark.write_text("another")
    try:
        refused = up.inv("dev.status", expect=1).stderr
        assert f"{up.there} belongs to another checkout" in refused
        assert str(up.root) in refused
    finally:
        mark.write_text(text)


def test_down_leaves_the_data_alone_there(up: Remote) -> None:
    up.inv("dev.down")
    found = up.host.run("ss", "-Hltn")
    assert not [port for port in (up.db_port, up.pgb_port, up.api_port) if f":{port} " in found]
    assert up.data.is_dir()
    up.inv("dev.up")
