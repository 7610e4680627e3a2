"""Data from the stack to another PostgreSQL and back: exact, refused where they must be, the password nowhere."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import msgspec
import psutil
import psycopg2
import pytest

from devstack.data.address import address_of
from devstack.data.catalogue import Backup, newest
from devstack.data.elsewhere import MARK, check_allowed
from devstack.data.load import derived
from devstack.data.manifest import Manifest, decode
from devstack.data.ownership import owned
from devstack.data.retention import State, expired
from devstack.data.schedule import Schedule, overdue
from devstack.data.signing import sign
from devstack.errors import UsageError
from devstack.host import Host
from tests.conftest import free_ports, wait_for
from tests.data import manifests
from tests.data.conftest import Data
from tests.data.test_backup import FILL

CANARY = "canary-%2F-elsewhere-0815"
PASSWORD = "canary-/-elsewhere-0815"
DEBIANS = Path("/usr/lib/postgresql/15/bin")

ROLES = f"""
CREATE ROLE app LOGIN CREATEDB PASSWORD '{PASSWORD}';
CREATE ROLE poor LOGIN PASSWORD '{PASSWORD}';
CREATE ROLE other_team LOGIN PASSWORD '{PASSWORD}';
CREATE DATABASE shop OWNER app;
ALTER DATABASE shop SET work_mem = '7MB';
COMMENT ON DATABASE shop IS 'the shop''s own';
"""
SHOP = """
CREATE TABLE items (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text NOT NULL, price numeric);
INSERT INTO items (what, price) SELECT 'item ' || g, g * 1.25 FROM generate_series(1, 400) g;
CREATE FUNCTION trick() RETURNS text LANGUAGE sql AS $$ SELECT '
GRANT ALL ON items TO nobody;
ALTER TABLE public.items OWNER TO nobody;
' $$;
GRANT SELECT ON items TO poor;
CREATE TABLE notes (item int REFERENCES items, text text);
INSERT INTO notes SELECT id, E'a\\tb\\\\ ' || id FROM items WHERE id % 3 = 0;
"""


class Server:
    """A PostgreSQL of the tests' own, with a superuser ``boss`` and a database ``shop`` of role ``app``."""

    def __init__(self, folder: Path, bin_: Path, port: int) -> None:
        self.folder, self.bin, self.port = folder, bin_, port
        account = Host().account
        self.user = account if os.getuid() == 0 else None
        folder.mkdir(mode=0o755)
        if self.user:
            shutil.chown(folder, self.user)
        secret = folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        library = bin_.parent / "lib"
        self.env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        if any(library.glob("libicuuc.so.*")):
            self.env["LD_LIBRARY_PATH"] = str(library)
        self._run("initdb", "-U", "boss", "-A", "scram-sha-256", "--pwfile", str(secret), "-N", "-E", "UTF8")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self.bin / program, "-D", self.folder / "data", *words],
            cwd=self.folder,
            env=self.env,
            user=self.user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self._run("pg_ctl", "-w", "-m", "immediate", "stop")
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            psutil.Process(int((self.folder / "data/postmaster.pid").read_text().split()[0])).kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "shop", user: str = "app", port: int = 0, password: str = CANARY) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{port or self.port}/{database}"

    def connect(self, database: str = "shop", user: str = "boss") -> Any:
        made = psycopg2.connect(host="127.0.0.1", port=self.port, user=user, password=PASSWORD, dbname=database)
        made.autocommit = True
        return made

    def sql(self, script: str, database: str = "shop", user: str = "boss") -> list[tuple[Any, ...]]:
        with contextlib.closing(self.connect(database, user)) as connection, connection.cursor() as cursor:
            cursor.execute(script)
            return list(cursor.fetchall()) if cursor.description else []

    def databases(self) -> list[str]:
        return [name for (name,) in self.sql("SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1")]

    def rows(self, database: str = "shop") -> dict[str, tuple[int, str]]:
        """Each table's rows as a hash."""
        names = self.sql(TABLES, database)
        hashes = {name: self.sql(HASH.format(name=name), database)[0] for (name,) in names}
        return {name: (count, digest) for name, (count, digest) in hashes.items()}

    def reset(self) -> None:
        for name in self.databases():
            if name.startswith("shop"):
                self.sql(f'DROP DATABASE "{name}" WITH (FORCE)', "postgres")
        for statement in ROLES.split(";\n"):
            if "DATABASE" in statement:
                self.sql(statement, "postgres")
        self.sql(SHOP, user="app")


TABLES = """
SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
 WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1
"""
HASH = "SELECT count(*), md5(string_agg(t::text, '' ORDER BY t::text)) FROM ONLY {name} t"


@contextlib.contextmanager
def serving(workspace: Path, bin_: Path) -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(dir=workspace))
    folder.chmod(0o755)
    made = Server(folder / "server", bin_, free_ports(1)[0])
    try:
        for statement in ROLES.split(";\n"):
            if statement.strip():
                made.sql(statement, "postgres")
        made.sql(SHOP, user="app")
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(spare: Data, workspace: Path) -> Iterator[Server]:
    with serving(workspace, spare.bin) as made:
        yield made


@pytest.fixture
def shop(server: Server) -> Iterator[Server]:
    """As it was at first, for each test."""
    yield server
    server.reset()


def rows_here(data: Data) -> dict[str, tuple[int, str]]:
    """Each table's rows in the stack, hashed in the same way."""
    names = data.sql(TABLES).splitlines()
    found = {name: data.sql(HASH.format(name=name)).split("|") for name in names}
    return {name: (int(count), digest or None) for name, (count, digest) in found.items()}  # type: ignore[misc]


@pytest.mark.variations
@pytest.mark.parametrize("layout", ["sql", "custom", "directory"])
def test_there_and_back_is_exact(data: Data, shop: Server, layout: str) -> None:
    user = "boss"  # pgvector takes a superuser; what is restored is the owner's all the same
    data.sql(FILL)
    wanted, there = rows_here(data), shop.rows()
    kept_here = data.backup("--format", layout)
    done = data.json("data.restore", "--url", shop.url(user=user), "--file", kept_here.name, "--yes")
    assert shop.rows() == wanted
    assert done["target"] == f"postgresql://{user}:***@127.0.0.1:{shop.port}/shop"
    assert {
        owner
        for (owner,) in shop.sql(
            "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname <> ALL ('{pg_catalog,information_schema}')"
        )
    } == {"app"}
    about = "SELECT pg_get_userbyid(datdba), shobj_description(oid, 'pg_database') FROM pg_database WHERE datname ="
    assert shop.sql(f"{about} 'shop'") == [("app", "the shop's own")]
    assert shop.sql("SHOW work_mem", user="app") == [("7MB",)]
    # nothing of what was there is gone
    assert sorted(shop.databases()) == sorted(["postgres", "shop", done["kept"]])
    safety = decode((data.backups / f"{done['safety']}.json").read_bytes())
    assert (safety.origin, safety.label, safety.verified is not None) == (
        f"127.0.0.1:{shop.port}/shop", "pre-restore", True,
    )  # fmt: skip
    # back: the other database's rows into another stack's
    moved = data.json("data.backup", "--url", shop.url(user=user), "--format", layout)
    assert (moved["origin"], moved["database"], moved["owner"]) == (f"127.0.0.1:{shop.port}/shop", "shop", "app")
    assert PASSWORD not in Path(f"{moved['path']}.json").read_text()
    data.sql("DROP TABLE bulk; DELETE FROM log")
    assert data.json("data.restore", "--file", moved["file"])["compared"]
    assert rows_here(data) == wanted
    assert data.sql("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == "nina"
    assert data.query("SELECT count(*) FROM bulk") == [(200000,)]
    # and the way back there, as it is printed
    with contextlib.closing(shop.connect("postgres")) as connection:
        for statement in done["back"].split("; "):
            connection.cursor().execute(statement)
    assert shop.rows() == there


@pytest.mark.slow
def test_a_foreign_backup_is_shown_and_taken_where_it_is_named_alone(
    data: Data, server: Server, tmp_path: Path
) -> None:
    own = data.backup()
    shown = data.inv("data.backup", "--url", server.url(), "--label", "from the shop")
    foreign = next(p for p in data.backups.glob("*.gz") if p != own)
    assert re.match(rf"backups/{foreign.name}  127\.0\.0\.1:{server.port}/shop, .*, 2 tables, 533 rows, verified",
                    shown.stdout)  # fmt: skip
    assert f"from the shop, of 127.0.0.1:{server.port}/shop" in data.inv("data.list").stdout
    said = data.inv("data.restore", "--latest", "--no-safety-backup")
    assert f"{own.name}: " in said.stdout
    assert f"{foreign.name} is newer, and of 127.0.0.1:{server.port}/shop" in said.stderr
    assert "restored and counted" in data.inv("data.verify", "--deep", "--file", foreign.name).stdout
    own.unlink()
    own.with_name(f"{own.name}.json").unlink()
    data.refused("data.restore", says="no full backup")
    data.inv("data.restore", "--file", foreign.name, "--no-safety-backup")
    assert rows_here(data) == server.rows()
    data.sql("DELETE FROM notes")
    data.inv("data.restore", "--file", foreign.name, "--merge", "--no-safety-backup")
    assert rows_here(data) == server.rows()
    assert data.sql("SELECT trick() LIKE E'%\\nALTER TABLE public.items OWNER TO nobody;\\n%'") == "t"
    # neither the schedule nor the cleanup takes it for one of this environment
    one = Backup(foreign, decode(Path(f"{foreign}.json").read_bytes()))
    assert one.manifest.origin
    assert newest([one]) is None
    assert "there is no verified backup" in overdue(scheduled(data, tmp_path))
    shutil.copy(foreign, foreign.with_name("own.sql.gz"))
    own_manifest = {**json.loads(Path(f"{foreign}.json").read_text()), "origin": "", "file": "own.sql.gz"}
    unsigned = msgspec.convert(own_manifest, Manifest)
    manifests.write(foreign.with_name("own.sql.gz"), own_manifest)
    assert "there is no verified backup" in overdue(scheduled(data, tmp_path)), "somebody else's"
    own = msgspec.to_builtins(sign(scheduled(data, tmp_path), unsigned))
    manifests.write(foreign.with_name("own.sql.gz"), own)
    assert overdue(scheduled(data, tmp_path)) == ""


def scheduled(data: Data, folder: Path) -> Any:
    """What a schedule that is long there is asked of."""
    made = Schedule(every="daily", expression="0 3 * * *", installed="2020-01-01T00:00:00+00:00")
    (folder / "schedule.json").write_bytes(msgspec.json.encode(made))
    settings = SimpleNamespace(root=data.root, data=SimpleNamespace(dir="backups"), stack=SimpleNamespace(env="dev"))
    paths = SimpleNamespace(schedule=folder, signing_key=folder / "key")
    return SimpleNamespace(paths=paths, settings=settings, context=SimpleNamespace(host=Host()))


@pytest.mark.slow
def test_each_database_keeps_its_last_good_backup(data: Data, server: Server) -> None:
    own, foreign = data.backup(), Path(data.json("data.backup", "--url", server.url())["path"])
    found = [Backup(path, decode(Path(f"{path}.json").read_bytes())) for path in (own, foreign)]
    later = found[1].manifest.time.replace(year=2100)

    def gone(damaged: Backup | None = None) -> list[Backup]:
        def state_of(backup: Backup) -> State:
            return "damaged" if backup is damaged else "whole"

        return expired(found, moment=later, days=1, keep=1, state_of=state_of, owner_of=lambda _: "")

    assert gone() == []
    assert gone(found[1]) == [found[1]]


# refusals


@contextlib.contextmanager
def listening() -> Iterator[tuple[int, int]]:
    """Ports on which somebody listens and says nothing, or what a web server says."""
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as http:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = http.accept()
                    with client:
                        client.recv(100)
                        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield silent.getsockname()[1], http.getsockname()[1]
        finally:
            http.shutdown(socket.SHUT_RDWR)  # which wakes the thread in accept; close alone does not
            thread.join()


@contextlib.contextmanager
def pooling(server: Server) -> Iterator[int]:
    """A PgBouncer in front of the server; its port."""
    (port,) = free_ports(1)
    ini = server.folder / "pgbouncer.ini"
    ini.write_text(
        f"[databases]\nshop = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\n"
    )
    process = subprocess.Popen(
        [shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin") or "pgbouncer", ini],
        user=server.user,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: not socket.create_connection(("127.0.0.1", port), 1).close())  # type: ignore[func-returns-value]
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_what_is_not_meant_is_not_touched(data: Data, server: Server) -> None:
    before, there = server.databases(), server.rows()
    data.backup()
    files = data.files()
    refuse: Callable[..., str] = data.refused
    restore = ("data.restore", "--url")
    text = refuse(*restore, server.url(), says="is not this environment's database", code=2)
    assert "add --yes" in text
    far = f"postgresql://app:{CANARY}@192.0.2.1:5432/shop"
    for flags in ([], ["--yes"], ["--allow-remote"]):
        text = refuse(*restore, far, *flags, says=r"app:\*\*\*@192.0.2.1:5432/shop is on another machine", code=2)
        assert "add --allow-remote --yes" in text
    refuse(*restore, server.url(user="poor"), "--yes", says="role poor may not create a database")
    server.sql("ALTER ROLE other_team CREATEDB")
    refuse(*restore, server.url(user="other_team"), "--yes", says="role other_team does not own")
    refuse(*restore, server.url("postgres", "boss"), "--yes", says="the server's own database")
    refuse(*restore, server.url(), "--merge", says="exclude each other", code=2)
    refuse("data.restore", "--yes", says="go with --url", code=2)
    refuse("data.backup", "--url", server.url(), "--incremental", says="exclude each other", code=2)
    refuse("data.backup", "--url", server.url(), "--data-only", says="exclude each other", code=2)
    refuse("data.backup", "--url", server.url(user="other_team"), says="may not read all of .*\n.*public.items")
    assert (server.databases(), server.rows(), data.files()) == (before, there, files)


@pytest.mark.variations
@pytest.mark.parametrize(
    ("url", "says", "code"),
    [
        ("mysql://app:can-ary@127.0.0.1/shop", "its scheme is 'mysql'", 2),
        ("postgresql://app:can/ary@127.0.0.1/shop", "is malformed", 2),
        ("{server}", "the password of role app is wrong", 1),
        ("{nobody}", "the password of role nobody is wrong, or there is no such role", 1),
        ("{none}", "there is none in the URL", 1),
        ("{missing}", "the server has no database absent", 1),
        ("{closed}", "nothing listens on", 1),
        ("{silent}", "does not answer within 1 s", 1),
        ("{http}", "is no PostgreSQL", 1),
        ("{pooler}", "is this environment's PgBouncer", 1),
        ("{another}", "a pooler answers there", 1),
        ("postgresql://app@nowhere.invalid/shop", "no machine is known by the name nowhere.invalid", 1),
    ],
)
def test_what_can_not_be_reached_is_named(spare: Data, server: Server, url: str, says: str, code: int) -> None:
    with listening() as (silent, http), pooling(server) if url == "{another}" else contextlib.nullcontext(0) as another:
        url = url.format(
            server=server.url(password="wrong"),
            nobody=server.url(user="nobody"),
            none=f"postgresql://app@127.0.0.1:{server.port}/shop",
            missing=server.url("absent"),
            closed=server.url(port=free_ports(1)[0]),
            silent=f"{server.url(port=silent)}?connect_timeout=1",
            http=server.url(port=http),
            pooler=server.url("shop", port=spare.pgb_port),
            another=server.url(port=another),
        ) if "{" in url else url  # fmt: skip
        said = spare.refused("data.backup", "--url", url, says=says, code=code, HOME="/nonexistent")
    assert "fix:" in said
    assert PASSWORD not in said
    assert CANARY not in said
    assert not re.search("can.?ary", said)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://app@127.0.0.1/shop", "its scheme is 'mysql'"),
        ("postgresql+psycopg2://app@127.0.0.1/shop", "its scheme is"),
        ("localhost:5432/shop", "does not begin with postgresql://"),
        ("postgresql://app:can/ary@127.0.0.1/shop", "malformed|names no"),
        ("postgresql://app:can#ary@127.0.0.1/shop", "malformed|names no"),
        ("postgresql://127.0.0.1/shop", "names no user"),
        ("postgresql://app@127.0.0.1", "names no database"),
        ("postgresql:///shop", "names no host"),
        ("postgresql://app@a,b/shop", "several hosts"),
        ("postgresql://app@127.0.0.1:99999/shop", "malformed"),
        ("postgresql://app@127.0.0.1/shop?options=-c", "its parameter options is not taken"),
        ("@/nowhere/at all", "can't be read.*\n.*No such file"),
    ],
)
def test_what_is_no_address_is_refused_without_its_text(url: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        address_of(url, {})
    assert re.search(why, refused.value.text())
    assert not re.search("can.?ary", refused.value.text())
    assert refused.value.fix


# passwords


@pytest.mark.slow
def test_the_password_is_nowhere_but_in_a_file_of_ones_own(data: Data, shop: Server, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"{shop.url()}\nanother line\n")
    file.chmod(0o600)
    shop.sql(FILL, user="app")
    path = Path(data.json("data.backup", f"--url=@{file}")["path"])
    seen: set[str] = set()
    modes: set[int] = set()
    done = threading.Event()
    passfile = data.state / "config" / "pgpass-elsewhere"

    def watch() -> None:
        while not done.wait(0.003):
            with contextlib.suppress(OSError):
                modes.add(stat.S_IMODE(passfile.stat().st_mode))
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    seen.add(" ".join([*process.cmdline(), *map(str, process.environ().items())]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed = ""
    try:
        for words, expect in (
            (("--echo", "data.backup", f"--url=@{file}"), 0),
            (("--dry", "data.backup", f"--url=@{file}"), 0),
            (("--dry", "data.restore", f"--url=@{file}", "--yes", "--file", path.name), 0),
            (("--debug", "data.restore", f"--url=@{file}", "--yes", "--file", path.name), 0),
            (("data.backup", "--url", shop.url("absent")), 1),  # its own command line has it, nothing else
        ):
            result = data.inv(*words, expect=expect)
            printed += result.stdout + result.stderr
    finally:
        done.set()
        watcher.join()
    assert modes == {0o600}
    assert not passfile.exists()
    assert "pg_dump" in " ".join(seen)
    logs = "".join(path.read_text(errors="replace") for path in (data.root / "logs").rglob("*") if path.is_file())
    state = "".join(
        path.read_text(errors="replace")
        for path in data.state.rglob("*")
        if path.is_file() and "volumes" not in path.parts
    )
    manifests = "".join(path.read_text() for path in data.backups.glob("*.json"))
    for secret in (PASSWORD, CANARY):
        assert not [line for line in seen if secret in line and "data.backup --url" not in line]
        assert secret not in printed + logs + state + manifests
    data.inv("data.backup", f"--url=postgresql://app@127.0.0.1:{shop.port}/shop", PGPASSWORD=PASSWORD)
    assert "others may read" in data.inv("data.backup", f"--url=@{chmodded(file)}").stderr


def chmodded(path: Path) -> Path:
    path.chmod(0o644)
    return path


def test_passwords_are_looked_for_where_libpq_does(tmp_path: Path) -> None:
    url, home = "postgresql://app@db.example:6000/shop", {"HOME": str(tmp_path)}
    file = tmp_path / ".pgpass"
    assert address_of(url, home).password == ""
    file.write_text(
        "# db.example:6000:shop:app:no\ndb.example:5432:*:*:wrong\n*:6000:shop:ap\\p:a\\:b\\\\c\n*:*:*:*:last\n"
    )
    file.chmod(0o600)
    assert address_of(url, home).password == "a:b\\c"
    assert address_of(url.replace("app", "other"), home).password == "last"
    assert address_of(url, {**home, "PGPASSWORD": "first"}).password == "first"
    assert address_of(url.replace("app", "app:own"), {**home, "PGPASSWORD": "first"}).password == "own"
    file.chmod(0o640)
    assert address_of(url, home).password == ""
    file.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o600)
    assert address_of(url, {"PGPASSFILE": str(tmp_path / "elsewhere")}).password == "a:b\\c"
    made = address_of("postgres://a%40b:p%3Aw@[::1]/d%20b?sslmode=require", {})
    assert (made.user, made.password, made.host, made.port, made.database) == ("a@b", "p:w", "::1", 5432, "d b")
    assert str(made) == "postgresql://a@b:***@[::1]:5432/d b"
    assert "p:w" not in repr(made)
    assert made.parameters == (("PGSSLMODE", "require"),)


def test_what_is_loopback_needs_less(tmp_path: Path) -> None:
    for host in ("localhost", "127.0.0.1", "127.8.8.8", "[::1]"):
        check_allowed(address_of(f"postgresql://a@{host}/d", {}), yes=True, allow_remote=False)
    for host in ("127.0.0.1.example", "localhost.example", "10.0.0.1", "[::2]", "0.0.0.0"):
        far = address_of(f"postgresql://a@{host}/d", {})
        check_allowed(far, yes=True, allow_remote=True)
        with pytest.raises(UsageError, match="is on another machine"):
            check_allowed(far, yes=True, allow_remote=False)


# when it goes wrong


@pytest.mark.slow
def test_this_environments_own_database_is_restored_as_without_a_url(data: Data) -> None:
    for port in (data.db_port, data.pgb_port):
        own = data.inv("data.backup", "--url", f"postgresql://nina@localhost:{port}/nina")
        assert "as without --url" in own.stderr
    assert [b["origin"] for b in data.json("data.list")["backups"]] == ["", ""]
    assert (
        "back: inv data.undo"
        in data.inv("data.restore", "--url", f"postgresql://nina@localhost:{data.db_port}/nina").stdout
    )


@pytest.mark.slow
def test_a_dump_that_does_not_fit_leaves_the_target_as_it_was(data: Data, shop: Server) -> None:
    there = shop.rows()
    path = data.backup("--format", "custom")
    says = 'needs the extension vector, which can.t be created(.*\n)*.*permission denied to create extension "vector"'
    data.refused("data.restore", "--url", shop.url(), "--yes", says=says)
    manifest = json.loads(Path(f"{path}.json").read_text())
    tables = {**manifest["tables"], "public.people": 1}
    manifests.write(path, {**manifest, "tables": tables})
    named = ("--yes", "--file", path.name)
    says = "holds something else than its manifest says"
    data.refused("data.restore", "--url", shop.url(user="boss"), *named, says=says)
    manifests.write(path, {**manifest, "extensions": {"not_there": "1"}})
    data.refused("data.restore", "--url", shop.url(user="boss"), *named, says="needs the extension not_there")
    manifests.write(path, {**manifest, "server_version": "99.1"})
    data.refused("data.restore", "--url", shop.url(), *named, says="was made by PostgreSQL 99.1")
    assert shop.rows() == there
    assert shop.databases() == ["postgres", "shop"]


@pytest.mark.slow
def test_clients_are_cut_off_where_the_role_may_and_refused_where_not(data: Data, shop: Server) -> None:
    path = Path(data.json("data.backup", "--url", shop.url())["path"])
    restore = ("data.restore", "--yes", "--file", path.name, "--url")
    shop.sql("DELETE FROM notes")
    there = shop.rows()
    with contextlib.closing(shop.connect()), contextlib.closing(shop.connect(user="app")):
        said = data.refused(*restore, shop.url(), says="127.0.0.1:.*/shop is in use")
        assert "the sessions of boss" in said
        assert shop.rows() == there
        assert shop.databases() == ["postgres", "shop"]
        data.inv(*restore, shop.url(user="boss"))
    with contextlib.closing(shop.connect(user="app")):
        data.inv(*restore, shop.url())
    assert shop.rows()["public.notes"][0] == 133


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_cut_off_it_leaves_the_target_and_no_file(data: Data, shop: Server, number: signal.Signals) -> None:
    shop.sql(FILL, user="app")
    path, there = Path(data.json("data.backup", "--url", shop.url())["path"]), shop.rows()
    restore = ("data.restore", "--url", shop.url(), "--yes", "--file", path.name)
    process = data.popen(*restore)
    wait_for(lambda: [name for name in shop.databases() if name.startswith("shop_restore_")])
    process.send_signal(number)
    process.communicate(timeout=60)
    names = {p.name for p in data.backups.iterdir() if not p.name.startswith(".")}
    whole = {name for name in names if f"{name}.json" in names}
    assert path.name in whole
    assert names == whole | {f"{name}.json" for name in whole}
    assert shop.rows() == there
    assert "shop_old" not in " ".join(shop.databases())
    if number == signal.SIGTERM:
        assert shop.databases() == ["postgres", "shop"]
    process = data.popen("data.backup", "--url", shop.url())
    wait_for(lambda: list(data.backups.glob(".nv-*.partial")))
    process.send_signal(number)
    process.communicate(timeout=60)
    made = data.inv(*restore)
    assert ("left behind by a restore that was cut off" in made.stderr) == (number == signal.SIGKILL)
    assert len(shop.databases()) == 3
    assert shop.rows() == there
    assert not list(data.backups.glob(".nv-*"))
    assert not (data.state / "config" / "pgpass-elsewhere").exists()


@pytest.mark.slow
def test_of_left_overs_only_ones_own_go(data: Data, shop: Server) -> None:
    """Others may call theirs alike, and restore at the same time."""
    long = f"shop_{'é' * 28}"
    foreign = {"shop_other": MARK, "shopx_restore_deadbeef": 0, "shopx_restore_deadbee0": MARK,
               "shop_restore_deadbeef": 0, "shop_restore_deadbee0": MARK}  # fmt: skip
    mine = ["shop_restore_0123abcd", derived(long, "restore_0123abcd"), "shop_x_restore_0123abcd"]
    made = {**{name: ("other_team", limit) for name, limit in foreign.items()}, long: ("app", -1)}
    made |= {**dict.fromkeys(mine, ("app", MARK)), "shop_restore_0123abce": ("boss", 0)}
    for name, (owner, limit) in made.items():
        shop.sql(f'CREATE DATABASE "{name}" OWNER {owner} CONNECTION LIMIT {limit}', "postgres")
    shop.sql("CREATE ROLE nv_load_reports VALID UNTIL '2020-01-01'", "postgres")
    shop.sql("CREATE ROLE nv_load_0123abcd VALID UNTIL '2020-01-01'", "postgres")
    try:
        for user, database, gone in (
            ("app", "shop", mine[0]),  # that of a superuser, who alone may drop it, is in nobody's way
            ("boss", "shop", "shop_restore_0123abce"),
            ("app", long, mine[1]),
        ):
            before = set(shop.databases())
            url = shop.url(quote(database), user)
            path = data.backup("--url", url)
            said = data.inv("data.restore", "--url", url, "--file", path.name, "--yes").stderr
            assert before - set(shop.databases()) == {gone}
            assert said.count("left behind by a restore that was cut off") == 1
        assert shop.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '^nv_load_'") == [("nv_load_reports",)]
    finally:
        shop.sql("DROP ROLE nv_load_reports; DROP ROLE IF EXISTS nv_load_0123abcd", "postgres")


@pytest.mark.slow
@pytest.mark.skipif(not DEBIANS.is_dir(), reason="there is no PostgreSQL 15 here")
def test_an_older_server_is_read_and_filled_and_a_newer_one_refused(
    data: Data, server: Server, workspace: Path
) -> None:
    with serving(workspace, DEBIANS) as older:
        there = older.rows()
        made = data.json("data.backup", "--url", older.url())
        assert made["server_version"].startswith("15.")
        data.inv("data.restore", "--file", made["file"], "--no-safety-backup")
        assert rows_here(data) == there
        older.sql("DELETE FROM notes", user="app")
        data.inv("data.restore", "--url", older.url(), "--yes", "--file", made["file"])
        assert older.rows() == there
        own = data.backup()
        data.refused(
            "data.restore", "--url", older.url(), "--yes", "--file", own.name, says="was made by PostgreSQL 18"
        )
    old: dict[str, Any] = {"INVOKE_DB_BIN_DIR": str(DEBIANS), "INVOKE_DB_EXTENSIONS": "[]", "NV_ENV": "old"}
    said = data.refused(
        "data.backup", "--url", server.url(), says="pg_dump does not read a server newer", code=1, **old
    )
    assert "pg_dump here is 15." in said


@pytest.mark.slow
def test_the_rights_that_a_role_lends_to_the_dump_are_named(data: Data, shop: Server) -> None:
    """Those of the database's owner, who has the functions in the end, and of the roles that it may become."""
    made = data.backup("--url", shop.url())
    restores = [
        ("data.restore", "--url", shop.url(user=user), "--file", made.name, "--yes") for user in ("app", "boss")
    ]
    for words in restores:
        assert "may do what app may" not in data.inv(*words).stderr
    shop.sql("CREATE ROLE between BYPASSRLS; GRANT between TO app; GRANT pg_execute_server_program TO app", "postgres")
    powers = "BYPASSRLS, pg_execute_server_program;"
    try:
        for words in restores:
            assert f"the functions in the dump may do what app may: {powers}" in data.inv(*words).stderr
    finally:
        shop.sql("REVOKE pg_execute_server_program FROM app; DROP ROLE between", "postgres")


def hostile(data: Data, line: str) -> Path:
    """A backup with a line of somebody else's in it, and a manifest that says the same."""
    mine = data.backup()
    path = mine.with_name("hostile.sql")
    text = gzip.decompress(mine.read_bytes()).decode()
    content = text.replace("SET statement_timeout", f"{line}\nSET statement_timeout", 1).encode()
    path.write_bytes(content)
    manifest = json.loads(Path(f"{mine}.json").read_text())
    changes = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifests.write(path, {**manifest, **changes, "raw_bytes": len(content)})
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    ["CREATE ROLE intruder SUPERUSER;", "RESET ROLE; CREATE ROLE intruder SUPERUSER;", "SET ROLE boss;",
     "SET SESSION AUTHORIZATION boss;\nCREATE ROLE intruder SUPERUSER;", "COPY (SELECT 1) TO PROGRAM 'true';"],
)  # fmt: skip
def test_a_superuser_in_the_url_does_not_make_the_dump_one(data: Data, shop: Server, line: str) -> None:
    path, there = hostile(data, line), shop.rows()
    url = shop.url(user="boss")
    data.refused("data.restore", "--url", url, "--file", path.name, "--yes", says="permission denied")
    assert (shop.rows(), shop.databases()) == (there, ["postgres", "shop"])
    assert {name for (name,) in shop.sql("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'")} == {
        "boss",
        "app",
        "poor",
        "other_team",
    }


@pytest.mark.slow
def test_a_superuser_s_database_takes_no_dump(data: Data, shop: Server) -> None:
    """What a dump evaluates while it is loaded would be evaluated as its owner."""
    canary = shop.folder / "canary-of-a-view"
    data.query(
        f"""
        CREATE FUNCTION public.evil() RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            IF current_setting('is_superuser') = 'on' THEN
                EXECUTE 'COPY (SELECT 1) TO PROGRAM ''cat >{canary}''';
            END IF;
            RETURN current_user;
        END $$;
        CREATE MATERIALIZED VIEW mv AS SELECT public.evil() AS who;
        SELECT 1
        """
    )
    path, there = data.backup(), shop.rows()
    words = ("--file", path.name, "--yes")
    shop.sql("ALTER DATABASE shop OWNER TO boss", "postgres")
    says = r"127\.0\.0\.1:\d+/shop belongs to boss, a superuser"
    for user in ("boss", "app"):
        said = data.refused("data.restore", "--url", shop.url(user=user), *words, says=says)
        assert 'ALTER DATABASE "shop" OWNER TO' in said
        assert "GRANT" not in said, "no fix makes the URL's role a superuser"
    assert not canary.exists()
    assert (shop.rows(), shop.databases()) == (there, ["postgres", "shop"])
    assert shop.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '^nv_load_'") == []
    shop.sql("ALTER DATABASE shop OWNER TO app", "postgres")
    data.inv("data.restore", "--url", shop.url(user="boss"), *words)
    ((who,),) = shop.sql("SELECT who FROM mv")
    assert who.startswith("nv_load_")
    assert shop.sql("SELECT tableowner FROM pg_tables WHERE tablename = 'people'") == [("app",)]
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("user", ["boss", "app"])
def test_nor_does_that_of_a_role_which_may_become_one(data: Data, shop: Server, user: str) -> None:
    canary = shop.folder / "canary-of-a-member"
    path, there = hostile(data, f"SET ROLE boss; COPY (SELECT 1) TO PROGRAM 'cat >{canary}';"), shop.rows()
    shop.sql("CREATE ROLE between IN ROLE boss; GRANT between TO app", "postgres")
    try:
        words = ("data.restore", "--url", shop.url(user=user), "--file", path.name, "--yes")
        said = data.inv(*words, expect=1).stderr
        assert not canary.exists()
        assert "role app may become boss, a superuser" in said
        assert (shop.rows(), shop.databases()) == (there, ["postgres", "shop"])
    finally:
        shop.sql("DROP ROLE between", "postgres")


@pytest.fixture
def home(shop: Server, tmp_path: Path) -> Iterator[Path]:
    """A home directory with the certificate of the server, which takes connections with TLS then."""
    home = tmp_path / "home"
    (home / ".postgresql").mkdir(parents=True)
    home.chmod(0o700)
    key, certificate = shop.folder / "data/server.key", shop.folder / "data/server.crt"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    shutil.copy(certificate, home / ".postgresql/root.crt")
    for path in (key, certificate):
        shutil.chown(path, Host().account)
    shop.sql("ALTER SYSTEM SET ssl = on", "postgres")
    shop.sql("SELECT pg_reload_conf()", "postgres")
    yield home
    shop.sql("ALTER SYSTEM RESET ssl", "postgres")
    shop.sql("SELECT pg_reload_conf()", "postgres")


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="where the tests are not run by root, nobody else is meant")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
@pytest.mark.parametrize("user", ["app", "boss"])
def test_as_root_no_program_that_loads_a_dump_elsewhere_is_run_by_root(
    data: Data, shop: Server, home: Path, user: str
) -> None:
    """It logs in all the same, with the certificate that root alone can read."""
    mine, log, there = data.backup("--url", shop.url()), data.root / "logs/devstack.log", shop.rows()
    for url in (shop.url(user=user), f"{shop.url(user=user)}?sslmode=verify-full"):
        before = log.stat().st_size
        data.inv("data.restore", "--url", url, "--file", mine.name, "--yes", "--no-safety-backup", HOME=str(home))
        with log.open() as file:
            file.seek(before)
            loads = [line for line in file if re.search(r"psql.* -f -|-c role=|PGUSER=nv_load_", line)]
        assert len(loads) >= 2
        assert [line for line in loads if "su -s /bin/sh" not in line] == []
        assert shop.rows() == there
        assert not list((data.state / "config").glob("pgpass-*"))
    wrong = home / ".postgresql/root.crt"
    wrong.write_bytes(Path(data.root / "invoke.yaml").read_bytes())
    data.refused("data.restore", "--url", url, "--file", mine.name, "--yes", says="certificate", HOME=str(home))


@pytest.mark.slow
def test_an_external_server_s_answers_are_no_commands_of_psql(data: Data, shop: Server) -> None:
    """A hostile server, or whoever is on the way to it, says what its tables are called; psql gets these names back."""
    canary = data.folder / "canary-of-a-server"
    shop.sql(
        "SET allow_system_table_mods = on; CREATE FUNCTION pg_catalog.format(text, name, name) RETURNS text"
        f" LANGUAGE sql AS $$ SELECT E'public.items\\n\\\\! touch {canary}\\n' $$"
    )
    data.inv("data.backup", "--url", shop.url(user="boss"), expect=None)
    assert not canary.exists()
    assert shop.databases() == ["postgres", "shop"]


@pytest.mark.slow
def test_a_superuser_in_the_url_evaluates_nothing_of_the_database(data: Data, shop: Server) -> None:
    """Planning a query on the table would; a backup counts its rows all the same."""
    canary = shop.folder / "canary-of-an-index"
    shop.sql(
        f"""
        CREATE FUNCTION attack() RETURNS int LANGUAGE plpgsql AS $$
        BEGIN
            IF current_setting('is_superuser') = 'on' THEN
                COPY (SELECT 1) TO PROGRAM 'cat >{canary}';
            END IF;
            RETURN 1;
        END $$;
        CREATE FUNCTION hidden(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN public.attack(); END $$;
        CREATE INDEX ON items (id) WHERE hidden(1) > 0;
        """,
        user="app",
    )
    path = data.backup("--url", shop.url(user="boss"))
    assert not canary.exists()
    assert json.loads(Path(f"{path}.json").read_text())["tables"]["public.items"] == 400
    data.inv("data.restore", "--url", shop.url(user="boss"), "--file", path.name, "--yes")
    assert not canary.exists()
    shop.sql("SELECT count(*) FROM items")  # as a superuser who is not careful: the attack works
    assert canary.exists()


# what belongs to whom


def test_owners_are_changed_in_statements_alone() -> None:
    text = """SET transaction_timeout = 0;
CREATE TABLE public."a OWNER TO b;" (
    t text DEFAULT 'x
ALTER TABLE y OWNER TO z;
'
);
ALTER TABLE public."a OWNER TO b;" OWNER TO "their ""role";
ALTER TABLE ONLY public.t
    ADD CONSTRAINT c CHECK ((t <> 'OWNER TO z;'));
COPY public.t (t) FROM stdin;
ALTER TABLE y OWNER TO z;
GRANT ALL ON y TO z;
\\.
COMMENT ON EXTENSION vector IS 'of
two lines;';
CREATE FUNCTION f() RETURNS text AS $_$ SELECT '
GRANT ALL ON y TO z;
' $_$;
GRANT SELECT ON TABLE public."two
lines" TO z;
ALTER DEFAULT PRIVILEGES FOR ROLE x GRANT ALL ON TABLES TO z;
SELECT 1;
""".replace("\\\\", "\\")
    wanted = text.replace('OWNER TO "their ""role"', 'OWNER TO "my ""own"')
    for gone in ("COMMENT ON EXTENSION vector IS 'of\ntwo lines;';\n",
                 'GRANT SELECT ON TABLE public."two\nlines" TO z;\n',
                 "ALTER DEFAULT PRIVILEGES FOR ROLE x GRANT ALL ON TABLES TO z;\n"):  # fmt: skip
        wanted = wanted.replace(gone, "\n" * gone.count("\n"))  # errors name the lines of the file
    whole = text.encode()
    for size in (1, 7, 100, 10_000):
        parts = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert b"".join(owned(parts, 'my "own', major=18)).decode() == wanted
    older = b"".join(owned([whole], 'my "own', major=16)).decode()
    assert older == wanted.replace("SET transaction_timeout = 0;\n", "\n")
    superuser = b"".join(owned([whole], "", major=16)).decode()  # what was dumped from a server that is older now
    assert superuser == text.replace("SET transaction_timeout = 0;\n", "\n")


@pytest.mark.slow
@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize(
    "text",
    [
        b"ALTER TABLE x SET DEFAULT '" + b"\n" * 2_000_000 + b"';\n",
        b"SELECT '" + b"x" * 200_000_000 + b"';\n",
        b"GRANT ALL ON '" + b"x\n" * 1_000_000,
    ],
)
def test_long_statements_and_lines_take_no_longer_than_their_length(text: bytes) -> None:
    """Each was put together anew with every line, or every piece, that it has: minutes, from some kilobytes on disk."""
    parts = [text[at : at + (1 << 16)] for at in range(0, len(text), 1 << 16)]
    assert b"".join(owned(parts, "nina", major=18)) == text
