"""Attacks: dumps, manifests, copies of a cluster and fixtures that somebody else has made."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import pwd
import re
import shutil
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psycopg2
import pytest

from devstack.data import cluster as clusters
from devstack.data import load, toc, verify
from devstack.data.catalogue import Backup
from devstack.data.load import Source, _proven
from devstack.data.manifest import Manifest, Verified, decode, encode
from devstack.data.reading import Wrong
from devstack.data.session import Role, session
from devstack.data.signing import UNSIGNED, is_signed, sign
from devstack.data.streams import directory_hash, sha256_of
from devstack.errors import StackError
from devstack.files import NotPlain, copy_plain, is_private, walk_plain
from devstack.host import Host
from devstack.services.passage import _send
from devstack.services.postgres import Postgres, identifier, literal
from tests.data import manifests
from tests.data.conftest import Data, project_of

HARMLESS = """
CREATE TABLE notes (id int PRIMARY KEY, text text);
INSERT INTO notes SELECT g, 'note ' || g FROM generate_series(1, 20) g;
"""

EVIL = """
CREATE FUNCTION public.act() RETURNS void LANGUAGE plpgsql AS $$
DECLARE wish text;
BEGIN
    FOREACH wish IN ARRAY ARRAY[
        'COPY (SELECT 1) TO PROGRAM ''touch CANARY''', 'ALTER ROLE nina SUPERUSER', 'CREATE ROLE intruder SUPERUSER',
        'ALTER SYSTEM SET archive_command = ''touch CANARY''', 'SET SESSION AUTHORIZATION postgres',
        'SELECT pg_catalog.lo_export(1, ''CANARY'')'
    ] LOOP
        BEGIN
            EXECUTE wish;
        EXCEPTION WHEN OTHERS THEN
            NULL;
        END;
    END LOOP;
END $$;
CREATE FUNCTION public.pure(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN PERFORM public.act(); RETURN n; END $$;
CREATE FUNCTION public.fired() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.act(); RETURN NEW; END $$;
CREATE DOMAIN public.odd AS int CHECK (public.pure(VALUE) > 0) DEFAULT public.pure(1);
CREATE TABLE notes (
    id int PRIMARY KEY CHECK (public.pure(id) > 0), text text, odd public.odd DEFAULT public.pure(2),
    twice int GENERATED ALWAYS AS (public.pure(id) * 2) STORED
);
INSERT INTO notes (id, text) SELECT g, 'note ' || g FROM generate_series(1, 30) g;
CREATE INDEX ON notes (public.pure(id));
CREATE TRIGGER fired BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION public.fired();
ALTER TABLE notes ENABLE ALWAYS TRIGGER fired;
CREATE MATERIALIZED VIEW seen AS SELECT public.pure(1) AS one;
CREATE RULE also AS ON INSERT TO notes DO ALSO SELECT public.pure(1);
CREATE POLICY mine ON notes USING (public.pure(id) > 0);
CREATE STATISTICS figures ON (public.pure(id)), text FROM notes;
"""
"""What a dump has that is evaluated when it is loaded, counted and analyzed. Its failures are not seen."""

LOUD = {
    r"\! touch CANARY": "restrict",
    r"\copy notes to program 'touch CANARY'": "restrict",
    r"\o |touch CANARY": "restrict",
    r"SELECT 1 \g |touch CANARY": "restrict",
    "COPY (SELECT 1) TO PROGRAM 'touch CANARY';": "permission denied",
    "CREATE ROLE intruder SUPERUSER LOGIN;": "permission denied",
    "ALTER SYSTEM SET archive_command = 'touch CANARY';": "permission denied",
    "SET ROLE postgres; CREATE ROLE intruder;": "permission denied",
    "SELECT pg_read_file('/etc/passwd');": "permission denied",
    "DO $$ BEGIN EXECUTE 'CREATE EVENT TRIGGER t ON sql_drop EXECUTE FUNCTION f()'; END $$;": "permission denied",
}
"""Lines of a dump, and what is said of them."""

LAYOUTS = ("sql", "sql.gz", "custom", "directory")


class Victim(Data):
    """A stack, and a folder that everybody may write to, in which nobody must."""

    @property
    def open(self) -> Path:
        return self.folder / "open"

    @property
    def canary(self) -> Path:
        return self.open / "canary"

    def unharmed(self) -> None:
        assert list(self.open.iterdir()) == []
        assert self.sql("SELECT rolname FROM pg_roles WHERE rolsuper", "postgres") == "postgres"
        assert self.sql("SELECT count(*) FROM pg_roles WHERE rolname = 'intruder'", "postgres") == "0"
        assert self.sql("SELECT count(*) FROM pg_file_settings WHERE name = 'archive_command'", "postgres") == "0"

    def as_nina(self, script: str, database: str = "nina") -> None:
        self.program(
            "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-f", "-", input=script, PGUSER="nina", PGDATABASE=database
        )

    def forged(self, layout: str, text: str, name: str, rows: int = 30) -> Path:
        """A dump of a database with this content, and a manifest with the right hashes beside it."""
        self.sql("CREATE DATABASE forge OWNER nina", "postgres")
        try:
            self.as_nina(text, "forge")
            path = self.folder / f"{name}.{layout.replace('custom', 'dump').replace('directory', 'dir')}"
            if layout == "directory":
                written = self.open / "dumped"
                self.program("pg_dump", "-Fd", "-f", str(written), PGDATABASE="forge")
                shutil.move(written, path)
            elif layout == "custom":
                path.write_bytes(self.dumped("-Fc"))
            else:
                content = self.dumped()
                path.write_bytes(gzip.compress(content) if layout == "sql.gz" else content)
        finally:
            self.sql("DROP DATABASE forge WITH (FORCE)", "postgres")
        self.describe(path, layout, {"public.notes": rows})
        return path

    def dumped(self, *words: str) -> bytes:
        file = self.open / "dumped"
        self.program("pg_dump", *words, "-f", str(file), PGDATABASE="forge")
        content = file.read_bytes()
        file.unlink()
        return content

    def describe(self, path: Path, layout: str, tables: dict[str, int] | None = None) -> None:
        """Write a manifest that fits, from a real one."""
        model: dict[str, Any] = json.loads(next(self.backups.glob("backup-2*.sql.gz.json")).read_text())
        raw = path.read_bytes() if path.is_file() else b""
        raw = gzip.decompress(raw) if layout == "sql.gz" else raw
        files = {p.name: sha256_of(p) for p in path.iterdir()} if path.is_dir() else {}
        changes = {
            "file": path.name,
            "layout": "sql" if layout.startswith("sql") else layout,
            "files": files,
            "sha256": directory_hash(files) if files else sha256_of(path),
            "bytes": sum(p.stat().st_size for p in path.iterdir()) if files else path.stat().st_size,
            "raw_bytes": len(raw) if layout.startswith("sql") else 0,
            "tables": tables or model["tables"],
            "verified": {"when": model["created"], "how": "restore"},
        }
        manifests.write(path, {**model, **changes})

    def hostile(self, line: str) -> Path:
        """A forged pair with one line put into the SQL of a real dump."""
        whole = gzip.decompress(next(self.backups.glob("backup-2*.sql.gz")).read_bytes()).decode()
        text = whole.replace("SET statement_timeout", f"{line}\nSET statement_timeout", 1)
        path = self.folder / "hostile.sql.gz"
        path.write_bytes(gzip.compress(text.replace("CANARY", str(self.canary)).encode()))
        self.describe(path, "sql.gz")
        return path


@pytest.fixture(scope="module")
def victim(workspace: Path, cache: Path) -> Iterator[Victim]:
    with project_of(Victim, workspace, cache) as made:
        made.open.mkdir()
        made.open.chmod(0o777)
        made.inv("dev.up")
        made.as_nina(HARMLESS)
        made.backup()
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_dump_has_evaluated_can_do_no_more_than_the_owner(victim: Victim, layout: str) -> None:
    evil = EVIL.replace("CANARY", str(victim.canary))
    path = victim.forged(layout, evil, "evil")
    victim.unharmed()
    said = victim.inv("data.verify", "--deep", "--file", str(path)).stdout
    assert "whole" in said
    victim.unharmed()
    done = victim.inv("data.restore", "--file", str(path), "--no-safety-backup")
    assert "not signed by this environment" in done.stderr
    assert victim.sql("SELECT count(*) FROM notes") == "30"
    victim.unharmed()
    kept = victim.folder / f"kept-{layout}"
    kept.mkdir(0o700)
    victim.inv("data.backup", "--output", str(kept))  # it is counted and dumped too
    victim.unharmed()
    victim.inv("data.undo")
    Path(f"{path}.json").unlink()
    victim.inv("data.restore", "--force", "--file", str(path), "--no-safety-backup")
    victim.unharmed()
    victim.inv("data.undo")
    assert victim.sql("SELECT count(*) FROM notes") == "20"


@pytest.mark.slow
def test_a_merge_of_a_hostile_dump_harms_nobody(victim: Victim) -> None:
    evil = EVIL.replace("CANARY", str(victim.canary))
    path = victim.forged("sql.gz", evil, "other")
    victim.refused("data.restore", "--merge", "--file", str(path), "--no-safety-backup", says="does not fit")
    victim.unharmed()
    evil = re.sub(
        r" odd public.odd.*?STORED", " CHECK (text <> '')", evil.replace("text text,", "text text"), flags=re.DOTALL
    )
    path = victim.forged("sql.gz", evil, "same")
    victim.inv("data.restore", "--merge", "--file", str(path), "--no-safety-backup")
    victim.unharmed()
    assert victim.sql("SELECT count(*) FROM notes") == "30"
    victim.sql("DELETE FROM notes WHERE id > 20")


@pytest.mark.variations
@pytest.mark.parametrize("line", LOUD)
def test_what_takes_more_than_the_owner_is_refused(victim: Victim, line: str) -> None:
    path = victim.hostile(line)
    said = victim.refused("data.verify", "--deep", "--file", str(path), says="could not restore")
    assert LOUD[line] in said
    victim.unharmed()
    victim.refused("data.restore", "--file", str(path), "--no-safety-backup", says="could not restore")
    victim.unharmed()
    assert [name for name in victim.databases() if not name.startswith("nina_old_")] == ["nina"]


@pytest.mark.slow
def test_event_triggers_and_their_like_are_left_out_and_that_is_said(victim: Victim) -> None:
    path = victim.hostile(
        "CREATE EVENT TRIGGER guard ON ddl_command_end EXECUTE FUNCTION public.f();\n"
        "SET SESSION AUTHORIZATION 'postgres';\nALTER SUBSCRIPTION s ENABLE;\nGRANT postgres TO nina;"
    )
    said = victim.inv("data.verify", "--deep", "--file", str(path)).stderr
    assert "left out, as only a superuser may create it: event trigger guard, subscription s" in said
    victim.unharmed()


def test_a_forged_signature_opens_nothing(victim: Victim) -> None:
    path = victim.hostile("SELECT 1;")
    manifest = json.loads(Path(f"{path}.json").read_text())
    assert manifest["signature"], "it has that of a real backup"
    for signature in (manifest["signature"], "0" * 64, "", "ü"):
        manifests.write(path, {**manifest, "signature": signature})
        victim.refused("data.restore", "--as-superuser", "--file", str(path), says="can't be restored with --as-super")
        victim.refused(
            "data.verify", "--deep", "--as-superuser", "--file", str(path), says="can't be restored with --as-super"
        )
    victim.inv("data.pin", str(path))
    assert not json.loads(victim.inv("data.verify", "--file", str(path), "--json").stdout)["backups"][0]["signed"]


def test_a_foreign_backup_is_restored_by_its_name_alone(victim: Victim) -> None:
    """Also when it is the newest one."""
    mine = victim.backup()
    foreign = victim.backups / "backup-29990101-000000.sql.gz"
    shutil.copy(mine, foreign)
    manifest = json.loads(Path(f"{mine}.json").read_text())
    forged = {**manifest, "file": foreign.name, "label": "newer", "sequence": 10_000}
    manifests.write(foreign, forged)
    try:
        listed = {b["file"]: b["signed"] for b in victim.json("data.list")["backups"]}
        assert (listed[mine.name], listed[foreign.name]) == (True, False)
        assert re.search(rf"{foreign.name}.*newer, foreign", victim.inv("data.list").stdout)
        assert victim.json("data.restore", "--no-safety-backup")["source"] == mine.name
        aside = victim.folder / "aside"
        shutil.copytree(victim.backups, aside)
        for path in victim.backups.glob("*.json"):
            manifests.write(path.with_suffix(""), {**json.loads(path.read_text()), "signature": ""})
        victim.refused(
            "data.restore", says=rf"not signed by this environment[^$]*inv data.restore --file {foreign.name}"
        )
        shutil.rmtree(victim.backups)
        shutil.move(aside, victim.backups)
    finally:
        for path in victim.backups.glob(f"{foreign.name}*"):
            path.unlink()


@pytest.mark.variations
@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../x"},
        {"file": ".."},
        {"file": "\x1b[2J"},
        {"label": "\x1b[2J"},
        {"parent": "../../etc"},
        {"parent": "-rf"},
        {"parent": "a\nb"},
        {"files": {"../x": "0"}},
        {"files": {"/etc/passwd": "0"}},
        {"files": {"a//b": "0"}},
        {"files": {"-D": "0"}},
        {"files": {"x\n": "0"}},
    ],
)
def test_a_manifest_names_nothing_outside_of_its_folder(victim: Victim, changes: dict[str, Any]) -> None:
    manifest = json.loads(next(victim.backups.glob("*.json")).read_text())
    decode(json.dumps(manifest).encode())
    with pytest.raises(ValueError, match="is not the name of"):
        decode(json.dumps({**manifest, **changes}).encode())


@pytest.mark.variations
@pytest.mark.parametrize(
    "line",
    [r"\! touch CANARY", r"\copy notes to program 'touch CANARY'", r"\o |touch CANARY", r"SELECT 1 \g |touch CANARY"],
)
def test_a_fixture_is_no_program(victim: Victim, line: str) -> None:
    file = victim.folder / "seed.sql"
    file.write_text(f"SELECT 1;\n\n{line.replace('CANARY', str(victim.canary))}\n")
    said = victim.refused("data.seed", str(file), says="could not be applied")
    assert "seed.sql:3:" in said, "the line is that of the file"
    assert "restrict" in said
    victim.unharmed()


def test_a_fixture_may_be_a_dump(victim: Victim) -> None:
    file = victim.folder / "dump.sql"
    victim.sql("CREATE DATABASE forge OWNER nina", "postgres")
    victim.as_nina("CREATE TABLE dumped AS SELECT 5 AS n", "forge")
    file.write_bytes(victim.dumped())
    victim.sql("DROP DATABASE forge", "postgres")
    assert "\\restrict" in file.read_text()
    victim.inv("data.seed", str(file))
    assert victim.sql("SELECT n FROM dumped") == "5"
    victim.sql("DROP TABLE dumped")


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="where the tests are not run by root, nobody else is meant")
def test_as_root_no_program_that_reads_a_dump_is_run_by_root(victim: Victim) -> None:
    log = victim.root / "logs/devstack.log"

    def check(*words: str, least: int) -> None:
        """Run a command, whose programs that read a dump all run under the services' account."""
        before = log.stat().st_size
        victim.inv(*words)
        with log.open() as file:
            file.seek(before)
            lines = [line for line in file if re.search(r"pg_restore|psql.* -f -", line)]
        assert len(lines) >= least, words
        assert [line for line in lines if "su -s /bin/sh" not in line] == [], words

    for layout in ("sql.gz", "custom", "directory"):
        path = victim.forged(layout, HARMLESS, "plain", rows=20)
        least = 1 if layout == "sql.gz" else 2
        check("data.verify", "--deep", "--file", str(path), least=least)
        check("data.restore", "--file", str(path), "--no-safety-backup", least=least)
        check("data.restore", "--merge", "--file", str(path), "--no-safety-backup", least=least)
    seed = victim.folder / "seed-as-account.sql"
    seed.write_text("SELECT 1;")
    check("data.seed", str(seed), least=1)


@pytest.mark.variations
@pytest.mark.parametrize("layout", ["custom", "directory", "sql"])
def test_the_name_of_a_dump_is_no_command(victim: Victim, layout: str) -> None:
    made = victim.forged(layout, HARMLESS, "named", rows=20)
    name = '-it\'s "$(touch $LC_CANARY)" `touch $LC_CANARY`;touch $LC_CANARY|&\\ %s'
    path = made.rename(made.with_name(name + made.suffix))
    victim.describe(path, layout, {"public.notes": 20})
    env: dict[str, Any] = {"LC_CANARY": str(victim.canary)}
    victim.inv("data.verify", "--deep", "--file", str(path), **env)
    victim.inv("data.restore", "--no-safety-backup", "--file", str(path), **env)
    victim.unharmed()


# a cluster's files


SETTINGS = """
archive_mode = on
archive_command = 'touch CANARY'
restore_command = 'touch CANARY'
archive_cleanup_command = 'touch CANARY'
recovery_end_command = 'touch CANARY'
ssl = on
ssl_passphrase_command = 'touch CANARY'
shared_preload_libraries = 'no_such_library'
session_preload_libraries = 'no_such_library'
include_if_exists = 'more.conf'
work_mem = '9MB'
"""


@pytest.fixture(scope="module")
def cluster(victim: Victim) -> Path:
    return victim.backup("--incremental")


@pytest.fixture
def copied(victim: Victim, cluster: Path) -> Iterator[Path]:
    """A copy with settings that run commands, which no checksum covers."""
    path = victim.folder / "backup-base-20200101-000000.cluster"
    shutil.copytree(cluster, path)
    manifest = json.loads(Path(f"{cluster}.json").read_text())
    manifests.write(path, {**manifest, "file": path.name})
    (path / "postgresql.auto.conf").write_text(SETTINGS.replace("CANARY", str(victim.canary)))
    yield path
    shutil.rmtree(path)
    Path(f"{path}.json").unlink()


def unsign(path: Path) -> None:
    manifest = json.loads(Path(f"{path}.json").read_text())
    manifests.write(path, {**manifest, "signature": "0" * 64})


@pytest.mark.slow
def test_a_clusters_copy_is_started_with_our_settings_alone(victim: Victim, copied: Path) -> None:
    said = victim.inv("data.verify", "--deep", "--file", str(copied)).stderr
    assert re.search(r"not taken over from .*: what ALTER SYSTEM has set there \(.*archive_command.*work_mem\)", said)
    victim.unharmed()
    victim.inv("data.restore", "--file", str(copied), "--no-safety-backup")
    assert victim.sql("SHOW archive_command") != f"touch {victim.canary}"
    assert victim.sql("SHOW work_mem") == "4MB"
    assert victim.sql("SELECT count(*) FROM notes") == "20"
    victim.unharmed()
    victim.inv("data.undo")


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can read what the server's account can't")
def test_settings_that_the_servers_account_has_exchanged_for_a_link_are_not_copied(
    victim: Victim, copied: Path
) -> None:
    secret = victim.folder / "only-root-reads.conf"
    secret.write_text("# the secret")
    secret.chmod(0o600)
    settings = victim.data / "postgresql.conf"
    kept = settings.rename(settings.with_name("kept.conf"))
    settings.symlink_to(secret)
    try:
        victim.refused("data.verify", "--deep", "--file", str(copied), says="it is a link")
    finally:
        settings.unlink()
        kept.rename(settings)
    for path in settings.parent.parent.rglob("postgresql.conf"):
        assert "the secret" not in path.read_text()
    victim.inv("data.verify", "--deep", "--file", str(copied))


def forge_settings(victim: Victim, copy: Path) -> dict[str, str]:
    """Put settings into a copy that run commands and let everybody in, with the checksums of PostgreSQL and ours made
    to fit.

    :returns: the contents by their names.
    """
    rules = {"pg_hba.conf": "local all all trust\nhost all all 0.0.0.0/0 trust\n", "pg_ident.conf": "nv /.* postgres\n"}
    settings = SETTINGS.replace("CANARY", str(victim.canary))
    named = f"hba_file = '{victim.folder}/pg_hba.conf'\nident_file = '{victim.folder}/pg_ident.conf'\n"
    forged = {**rules, "postgresql.conf": settings + named, "more.conf": "work_mem = '7MB'\n"}
    for name, content in forged.items():
        (copy / name).write_text(content)
    for name, content in rules.items():
        (victim.folder / name).write_text(content)
    listed = json.loads((copy / "backup_manifest").read_text())
    listed["Files"].append({**listed["Files"][0], "Path": "more.conf"})
    for entry in listed["Files"]:
        if entry["Path"] in forged:
            content = (copy / entry["Path"]).read_bytes()
            entry.update(Size=len(content), Checksum=hashlib.sha256(content).hexdigest())
    del listed["Manifest-Checksum"]
    # the last line is the checksum of all before it
    text = json.dumps(listed)[:-1] + ",\n"
    text += f'"Manifest-Checksum": "{hashlib.sha256(text.encode()).hexdigest()}"}}\n'
    (copy / "backup_manifest").write_text(text)
    manifest = json.loads(Path(f"{copy}.json").read_text())
    files = {name: sha256_of(copy / name) for name in manifest["files"]}
    manifests.write(copy, {**manifest, "files": files, "sha256": directory_hash(files), "signature": "0" * 64})
    return forged


@pytest.mark.slow
def test_settings_in_a_forged_copy_that_is_trusted_are_not_obeyed(victim: Victim, copied: Path) -> None:
    forged = forge_settings(victim, copied)
    for words in (["data.verify", "--deep"], ["data.restore", "--no-safety-backup"]):
        victim.refused(*words, "--file", str(copied), says="this environment has not signed[^$]*--trust-cluster")
    victim.inv("data.verify", "--deep", "--trust-cluster", "--file", str(copied))
    victim.unharmed()
    victim.inv("data.restore", "--trust-cluster", "--no-safety-backup", "--file", str(copied))
    try:
        assert (victim.data / "pg_hba.conf").read_text() == forged["pg_hba.conf"], "it is the copy that runs"
        for name in ("hba", "ident"):
            assert victim.sql(f"SHOW {name}_file") == str(victim.state / f"config/pg_{name}.conf")
        assert victim.sql("SHOW work_mem") == "4MB"
        named = victim.sql("SELECT DISTINCT name FROM pg_file_settings").splitlines()
        assert set(named) & set(re.findall(r"^(\w+) =", forged["postgresql.conf"], re.MULTILINE)) == set()
        for user in ("nina", "postgres"):
            with pytest.raises(psycopg2.OperationalError):
                victim.query("SELECT 1", user=user, password="wrong")
        assert victim.sql("SELECT count(*) FROM notes") == "20"
        victim.unharmed()
    finally:
        victim.inv("data.undo")


@pytest.mark.slow
def test_a_clusters_copy_that_is_not_signed_wants_a_word(victim: Victim, copied: Path) -> None:
    unsign(copied)
    for words in (["data.verify", "--deep"], ["data.restore", "--no-safety-backup"]):
        victim.refused(*words, "--file", str(copied), says="this environment has not signed[^$]*--trust-cluster")
    copied.chmod(0o777)  # so that a copy of it is proven and used
    victim.inv("data.verify", "--deep", "--trust-cluster", "--file", str(copied))
    victim.unharmed()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["link", "fifo", "recovery.signal", "standby.signal", "log"])
def test_a_clusters_copy_with_more_in_it_than_files_is_damaged(victim: Victim, copied: Path, what: str) -> None:
    if what == "link":
        shutil.rmtree(copied / "pg_wal")
        (copied / "pg_wal").symlink_to("/tmp")
    elif what == "fifo":
        os.mkfifo(copied / "base/1/fifo")
    elif what == "log":
        log = min((copied / "pg_wal").glob("0*"))
        content = bytearray(log.read_bytes())
        content[5000] ^= 1
        log.write_bytes(content)
    else:
        (copied / what).touch()
    for words in (["data.verify", "--deep"], ["data.restore", "--no-safety-backup"]):
        victim.refused(*words, "--file", str(copied), "--trust-cluster", says="is damaged")
    victim.unharmed()


# what says whose a backup is


def test_a_signature_is_of_all_that_a_manifest_says_of_the_dump(tmp_path: Path) -> None:
    fake: Any = SimpleNamespace(
        paths=SimpleNamespace(signing_key=tmp_path / "key"), context=SimpleNamespace(host=Host())
    )
    plain = Manifest(
        file="a", sequence=1, kind="full", layout="sql", created="2026-01-01T00:00:00+00:00", seconds=1.5, sha256="0",
        bytes=1, raw_bytes=1, environment="dev", database="nina", database_bytes=1, owner="nina", system_identifier="1",
        server_version="18.1", tool_version="18.1", verified=Verified("2026-01-01T00:00:00+00:00", "read"),
    )  # fmt: skip
    assert not is_signed(fake.paths, plain), "there is no key yet"
    signed = sign(fake, plain)
    kept = decode(encode(signed))
    assert is_signed(fake.paths, kept)
    for field in msgspec.structs.fields(Manifest):
        value = getattr(signed, field.name)
        other: Any = {str: f"{value}x", int: 7, bool: not value, float: 7.5, dict: {"x": 1}, list: ["x"]}.get(
            type(value)
        )
        changed = msgspec.structs.replace(signed, **{field.name: other})
        assert is_signed(fake.paths, changed) == (field.name in UNSIGNED - {"signature"}), field.name
    # a later version, whose manifests say more of other backups, understands this one
    later = msgspec.defstruct("Later", [("more", list[str], msgspec.field(default_factory=list))], bases=(Manifest,),
                              frozen=True, kw_only=True)  # fmt: skip
    assert is_signed(fake.paths, msgspec.json.decode(encode(signed), type=later))  # type: ignore[arg-type]
    (tmp_path / "key").write_bytes(b"x" * 32)
    assert not is_signed(fake.paths, signed)
    (tmp_path / "key").write_bytes(b"")
    assert not is_signed(fake.paths, signed)
    with pytest.raises(StackError, match="is damaged"):
        sign(fake, plain)


@pytest.mark.parametrize(
    ("version", "restricts"),
    [
        *(("13.22", False), ("14.18", False), ("14.19", True), ("15.13", False), ("15.14", True), ("16.9", False)),
        *(("16.10", True), ("17.5", False), ("17.6", True), ("18.0", True), ("18.1", True), ("19devel", True)),
    ],
)
def test_a_psql_that_obeys_dumps_reads_none(version: str, restricts: bool) -> None:
    kind: Any = type("Db", (Postgres,), {"programs": SimpleNamespace(version=version)})
    db = kind.__new__(kind)
    assert db.restricts == restricts
    with contextlib.nullcontext() if restricts else pytest.raises(StackError, match="too old to read a dump"):
        db.check_restricts()


def test_the_key_is_nobody_elses(victim: Victim) -> None:
    key = victim.state / "signing-key"
    assert (key.stat().st_mode & 0o777, len(key.read_bytes())) == (0o600, 32)
    assert hashlib.sha256(key.read_bytes()).hexdigest() not in (victim.root / "logs/devstack.log").read_text()


# what is exchanged while it is read


def plain_folder(path: Path) -> Path:
    path.mkdir()
    for name in ("1.dat", "2.dat"):
        (path / name).write_text(name)
    return path


def contents_of(path: Path) -> dict[str, str]:
    return {found.name: file.read().decode() for found, file in walk_plain(path) if file}


def test_a_file_that_becomes_a_link_while_its_folder_is_read_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    folder = plain_folder(tmp_path / "dump")
    assert contents_of(folder) == {"1.dat": "1.dat", "2.dat": "2.dat"}
    with pytest.raises(NotPlain, match="it is a link"):
        for found, _ in walk_plain(folder):
            if found.name == "1.dat":  # the names were listed before
                (folder / "2.dat").unlink()
                (folder / "2.dat").symlink_to(secret)


def test_a_folder_that_is_exchanged_while_it_is_read_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "dump")
    other = plain_folder(tmp_path / "other")
    (other / "2.dat").write_text("secret")
    read = walk_plain(folder)
    next(read)
    folder.rename(tmp_path / "aside")
    folder.symlink_to(other)
    assert [file.read() for _, file in read if file] == [b"1.dat", b"2.dat"]
    with pytest.raises(NotPlain, match="it is a link"):
        contents_of(folder)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def test_nothing_but_files_is_copied_or_sent(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "dump")
    _send(folder, sent := io.BytesIO())
    sent.seek(0)
    with tarfile.open(fileobj=sent, mode="r|") as tar:
        assert [member.name for member in tar] == ["dump", "dump/1.dat", "dump/2.dat"]
    for plant in (lambda path: path.symlink_to("/etc/passwd"), os.mkfifo, make_socket):
        path = folder / "3.dat"
        plant(path)
        with pytest.raises(NotPlain):
            copy_plain(folder, tmp_path / "copy")
        with pytest.raises(StackError, match="could not be copied into the container"):
            _send(folder, io.BytesIO())
        assert not (tmp_path / "copy/3.dat").exists()
        shutil.rmtree(tmp_path / "copy")
        path.unlink()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can have files of two accounts")
def test_another_accounts_folder_holds_no_name_of_our_file(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "dump")
    (tmp_path / "secret").write_text("secret")
    os.link(tmp_path / "secret", folder / "3.dat")
    contents_of(folder)
    nobody = pwd.getpwnam("nobody").pw_uid
    for path in (folder, folder / "1.dat", folder / "2.dat"):
        os.chown(path, nobody, -1)
    with pytest.raises(NotPlain, match=f"belongs to uid 0, its folder to uid {nobody}"):
        contents_of(folder)
    (folder / "3.dat").unlink()
    contents_of(folder)
    os.chown(folder / "1.dat", nobody - 1, -1)
    with pytest.raises(NotPlain, match="its folder to uid"):
        contents_of(folder)


def test_a_folder_is_private_if_nobody_else_can_change_anything(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "dump")
    assert is_private(folder)
    for path, mode in ((tmp_path, 0o777), (folder, 0o770), (folder / "1.dat", 0o602)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert not is_private(folder), path
        path.chmod(before)
    (folder / "3.dat").symlink_to("1.dat")
    assert not is_private(folder)
    (tmp_path / "link").symlink_to(folder)
    assert not is_private(tmp_path / "link")


def alone(state: Path) -> Any:
    """What has no more of a stack than a place for copies."""
    return SimpleNamespace(context=SimpleNamespace(paths=SimpleNamespace(state=state), host=Host()))


@pytest.mark.parametrize("layout", ["sql", "custom", "directory"])
def test_what_the_superuser_loads_is_proven_and_can_not_be_exchanged(tmp_path: Path, layout: Any) -> None:
    stack, path = alone(tmp_path / "state"), tmp_path / "dump"
    if layout == "directory":
        files = {file.name: sha256_of(file) for file in plain_folder(path).iterdir()}
        target, digest = path / "1.dat", directory_hash(files)
    else:
        path.write_text("harmless")
        files, target, digest = {}, path, sha256_of(path)
    manifest: Any = SimpleNamespace(sha256=digest, files=files, file="dump")
    source = Source(path, layout, manifest=manifest, signed=True, as_superuser=True)
    with _proven(stack, source) as proven:
        copy = proven.path / "1.dat" if layout == "directory" else proven.path
        was = copy.read_text()
        target.write_text("evil")
        assert copy.read_text() == was
        assert copy.stat().st_mode & 0o777 == 0o600
        assert proven.name == "dump"
    # it was checked as it was, and is another one now
    with pytest.raises(Wrong, match="changed since it was checked"), _proven(stack, source):
        pytest.fail("it would be loaded")
    # to load it would take more of a stack than this
    stack.db = SimpleNamespace(check_restricts=lambda: None)
    with pytest.raises(StackError, match="dump is damaged"):
        load.load(stack, source, "nina", lambda: None)
    assert list((tmp_path / "state").iterdir()) == []


def test_a_clusters_copy_is_used_as_it_was_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, path = alone(tmp_path / "state"), plain_folder(tmp_path / "base.cluster")
    stack.db = SimpleNamespace(programs=SimpleNamespace(major=18))
    backup = Backup(path, SimpleNamespace(server_version="18.1"))  # type: ignore[arg-type]
    proven: list[Path] = []
    monkeypatch.setattr(verify, "chain_of", lambda backup: [backup])
    monkeypatch.setattr(verify, "check_trusted", lambda *_, trust_cluster: proven.append(Path()))
    monkeypatch.setattr(verify, "check_content", lambda _, path, manifest: proven.append(path))
    with clusters.checked(stack, backup, trust_cluster=False) as members:
        assert members[0].path == path, "a copy of what nobody else can change would take time for nothing"
    path.chmod(0o777)
    with clusters.checked(stack, backup, trust_cluster=False) as members:
        (path / "1.dat").write_text("evil")
        assert (members[0].path / "1.dat").read_text() == "1.dat"
    assert proven == [Path(), path, Path(), members[0].path]
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can read what others can't")
def test_root_restores_no_link_of_another_account(victim: Victim) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    secret = victim.folder / "only-root-reads.sql"
    secret.write_text("CREATE TABLE stolen ();")
    link = victim.folder / "link-of-nobody.sql"
    link.symlink_to(secret)
    os.chown(link, nobody, -1, follow_symlinks=False)
    ours = victim.folder / "link-of-ours.sql"
    ours.symlink_to(link)
    for path in (ours, link):
        victim.refused("data.restore", "--force", "--file", str(path), says="is a link that belongs to nobody")
        path.unlink()
    link.symlink_to(victim.folder)
    os.chown(link, nobody, -1, follow_symlinks=False)
    path = link / secret.name
    victim.refused("data.restore", "--force", "--file", str(path), says="is a link that belongs to nobody")
    link.unlink()


# names that end a quoted identifier


def zeroed(commands: str) -> bytes:
    """SQL whose extension has a schema that psql would read as statements: it takes lines in pieces of 1023 bytes, each
    of which ends at its first zero byte, so that one of two quotes in a row is lost."""
    before = b'SET client_min_messages = warning; CREATE SCHEMA IF NOT EXISTS "'
    name = b"zz\0" + b"A" * (1022 - len(before) - 3) + b'"";\n' + commands.encode() + b'\nSELECT 1 AS ""x'
    filling = b"SELECT 1;\n" * 8000
    return b"-- x\n" + filling + b'CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA "' + name + b'";\n'


@pytest.mark.variations
@pytest.mark.parametrize("compressed", [False, True])
def test_a_zero_byte_in_a_name_ends_no_quote(victim: Victim, compressed: bool) -> None:
    content = zeroed(f"\\! touch {victim.canary}\nCREATE ROLE intruder SUPERUSER;")
    path = victim.folder / ("zero.sql.gz" if compressed else "zero.sql")
    path.write_bytes(gzip.compress(content) if compressed else content)
    victim.refused("data.restore", "--force", "--file", str(path), says="a zero byte")
    victim.describe(path, "sql.gz" if compressed else "sql")
    victim.refused("data.restore", "--file", str(path), says="a zero byte|does not begin as pg_dump")
    victim.unharmed()


@pytest.mark.parametrize("quote", [identifier, literal])
def test_nothing_with_a_zero_byte_is_quoted(quote: Callable[[str], str]) -> None:
    with pytest.raises(StackError, match="zero byte"):
        quote('a\0b"')


@pytest.mark.variations
@pytest.mark.parametrize("role", ["superuser", "reader", "owner"])
def test_no_session_obeys_a_command_of_psql_s(victim: Victim, role: Role) -> None:
    """Whatever gets past the quotes."""
    db = victim.open_stack().db
    with pytest.raises(StackError, match="could not try"), session(db, "nina", "try", role=role) as sql:
        sql.run(f"SELECT 1;\n\\! touch {victim.canary}\nSELECT 2")
        sql.run("SELECT 3")
        raise StackError("could not try")
    victim.unharmed()


# names in a directory dump


def renamed(folder: Path, name: bytes, other: bytes) -> None:
    """Have toc.dat name another file."""

    def text(content: bytes) -> bytes:
        return b"\0" + len(content).to_bytes(4, "little") + content

    toc = (folder / "toc.dat").read_bytes()
    assert text(name) in toc
    (folder / "toc.dat").write_bytes(toc.replace(text(name), text(other)))


def test_a_directory_dump_reads_nothing_outside_of_itself(victim: Victim) -> None:
    secret = victim.folder / "secret"
    secret.write_text("100\tsecret\n\\.\n")
    path = victim.forged("directory", f"{HARMLESS}SELECT lo_from_bytea(4711, 'large');", "names", rows=20)
    Path(f"{path}.json").unlink()
    toc.check(path)
    data = next(file for file in path.glob("*.dat.gz") if file.name[0].isdigit())
    (lists,) = path.glob("blobs*.toc")

    def refused(says: str) -> None:
        with pytest.raises(StackError, match="can't be read safely"):
            toc.check(path)
        victim.refused("data.restore", "--force", "--file", str(path), "--no-safety-backup", says=says)
        assert victim.sql("SELECT count(*) FROM notes WHERE text = 'secret'") == "0"

    whole = path.with_name("whole")
    shutil.copytree(path, whole)
    name = data.name.removesuffix(".gz").encode()
    renamed(path, name, os.path.relpath(secret, path).encode())
    refused("names a file that pg_dump does not write")
    shutil.copy(whole / "toc.dat", path)
    for other in (b"/etc/passwd", b"../x.dat", b"1.dat\0", b"blobs_1.toc", b"toc.dat"):
        renamed(path, name, other)
        with pytest.raises(StackError, match="can't be read safely"):
            toc.check(path)
        shutil.copy(whole / "toc.dat", path)
    # pg_restore reads that of BLOBS as a list of further files, whatever its name
    shutil.copy(lists, path / "77777.dat")
    renamed(path, lists.name.encode(), b"77777.dat")
    (path / "77777.dat").write_text(f"4711 {os.path.relpath(secret, path)}\n")
    refused("names a file that pg_dump does not write")
    (path / "77777.dat").unlink()
    shutil.copy(whole / "toc.dat", path)
    renamed(path, lists.name.encode(), b"../blobs.toc")
    with pytest.raises(StackError, match="can't be read safely"):
        toc.check(path)
    shutil.copy(whole / "toc.dat", path)
    lists.write_text(f"4711 {os.path.relpath(secret, path)}\n")
    refused("is not the number of a large object")
    shutil.copy(whole / lists.name, path)
    content = (path / "toc.dat").read_bytes()
    for changed in (content[:-1], content[:40], b"", b"x" + content, content[:6] + b"\x63" + content[7:]):
        (path / "toc.dat").write_bytes(changed)
        with pytest.raises(StackError, match=r"can't be read safely|is of a pg_dump that is not known"):
            toc.check(path)
    shutil.copy(whole / "toc.dat", path)
    toc.check(path)
    data.unlink()
    (path / name.decode()).symlink_to(secret)
    victim.refused("data.restore", "--force", "--file", str(path), "--no-safety-backup", says="it is a link")
    victim.describe(whole, "directory", {"public.notes": 20})
    (whole / data.name).unlink()
    (whole / data.name).symlink_to(secret)
    victim.refused("data.restore", "--file", str(whole), "--no-safety-backup", says="it is a link")
    victim.unharmed()
