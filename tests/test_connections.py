"""Whoever listens on the port of a service that does not run gets no password, and is named.

The listener is a process of another account, as on a machine that several people use: as root, of ``nobody``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from api.database import Database
from api.errors import DatabaseUnavailableError
from api.settings import login as api_login
from devstack.errors import StackError
from devstack.host import Host
from devstack.paths import Paths
from devstack.services import login
from devstack.services.api import Api
from devstack.settings import load
from tests import fakes
from tests.conftest import Project, free_ports, wait_for

KINDS = ("cleartext", "md5", "scram", "none")
SECRET = "canary-4711-passphrase"
DEBIANS = Path("/usr/lib/postgresql/15/bin")
"""Programs whose libpq does not know ``require_auth``."""


@pytest.fixture(scope="module")
def stack(workspace: Path, stack: Project) -> Project:
    """A stack that has run; these tests stop and start parts of it."""
    stack.inv("dev.up")
    return stack


class Listener:
    """A fake of another account, and what it was sent."""

    def __init__(self, folder: Path, kind: str, place: int | Path, target: int = 0, owner: str = "nobody") -> None:
        self.path = folder / "seen"
        self.path.touch()
        program = folder / "fakes.py"
        shutil.copy(fakes.__file__, program)
        user = owner if os.getuid() == 0 else None
        folder.chmod(0o755)
        if user:
            shutil.chown(self.path, user)
        # an interpreter that another account can run: this one may be in root's own home
        python = next(path for name in ("/usr/bin/python3", sys.executable) if (path := shutil.which(name)))
        self.process = subprocess.Popen(
            [python, str(program), kind, str(place), str(self.path), str(target)],
            cwd="/",
            user=user,
            env={},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "listening\n"

    def seen(self) -> bytes:
        return self.path.read_bytes()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def listening(
    folder: Path, kind: str, *places: int | Path, target: int = 0, owner: str = "nobody"
) -> Iterator[list[Listener]]:
    made: list[Listener] = []
    try:
        for number, place in enumerate(places):
            below = folder / f"{kind}-{number}"
            below.mkdir(parents=True)
            made.append(Listener(below, kind, place, target, owner))
        yield made
    finally:
        for listener in made:
            listener.end()


@pytest.fixture
def shared(workspace: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that another account may enter."""
    folder = workspace / f"fakes-{request.node.name.translate(str.maketrans('[]', '--'))}"
    folder.mkdir()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def secrets_in(stack: Project, seen: bytes) -> list[str]:
    """What of the passwords, or made from them, is among what was sent."""
    secrets = stack.secrets()
    forms = {
        "the database's password": secrets["db_password"],
        "the console's password": secrets["pgbouncer_password"],
        "a digest of the database's": fakes.digest_of(secrets["db_password"], "nina"),
        "a digest of the console's": fakes.digest_of(secrets["pgbouncer_password"], "nv_admin"),
        "a SCRAM exchange": "n,,n=",
    }
    return [what for what, form in forms.items() if form.encode() in seen]


COMMANDS = (
    "db.stats",
    "pgb.stats",
    "pgb.reload",
    "metrics --interval 0.2",
    "dev.status",
    "health",
    "db.shell --command SELECT",
    "db.profile --seconds 1",
    "dev.load --seconds 1 --only db --only pgb",
    "data.generate memories --rows 1",
    "data.backup",
    "dev.up",
)
NAMES_THEM = ("db.stats", "pgb.stats", "health", "dev.up")
"""The commands that look at the ports whatever the runtime says of the services."""


@pytest.mark.variations
@pytest.mark.parametrize("kind", KINDS)
def test_a_listener_in_the_place_of_a_stopped_stack_gets_no_password(stack: Project, shared: Path, kind: str) -> None:
    stack.inv("dev.down")
    with listening(shared, kind, stack.db_port, stack.pgb_port) as listeners:
        for command in COMMANDS if kind == "cleartext" else COMMANDS[:2]:
            done = stack.inv(*command.split(), expect=None)
            said = done.stdout + done.stderr
            assert done.returncode != 0, (command, said)
            for listener in listeners:
                assert secrets_in(stack, listener.seen()) == [], (command, said)
            if command in NAMES_THEM:
                assert any(is_named(listener, said) for listener in listeners), (command, said)
            if command == "db.stats":
                assert f"what listens on 127.0.0.1:{stack.db_port} has not proven to be nv-db" in said
                assert f"sudo ss -ltnp 'sport = :{stack.db_port}'" in said


def test_the_name_of_a_process_makes_no_line_of_an_error(project: Project) -> None:
    name = f"nc\n       fix:   sudo rm -rf /etc{' ' * 60}fix:   x"
    code = f"import socket, sys; s = socket.create_server(('127.0.0.1', {project.db_port})); print(flush=True); input()"
    process = subprocess.Popen(
        [name, "-I", "-c", code],
        executable=os.path.realpath(sys.executable),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout
        assert process.stdout.readline()
        for command in ("db.start", "db.stats", "health", "dev.up"):
            done = project.inv(command, expect=None)
            said = done.stdout + done.stderr
            assert "nc fix: sudo rm -rf /etc fix: x" in said, command
            assert not re.search(r"^\W*fix: +sudo rm", said, re.MULTILINE), command
            assert " " * 40 not in said, command
    finally:
        process.communicate()


def is_named(listener: Listener, said: str) -> bool:
    """Whether a command says who listens: root sees the process, others that there is one."""
    return f"pid {listener.process.pid}" in said if os.getuid() == 0 else "port" in said


@pytest.mark.slow
def test_a_listener_in_the_place_of_pgbouncer_can_not_pass_a_login_on_to_the_database(
    stack: Project, shared: Path
) -> None:
    """SCRAM alone would let it: the role has one password on both, and the exchange can be handed on."""
    stack.inv("pgb.stop", "db.start")
    with listening(shared, "relay", stack.pgb_port, target=stack.db_port) as (relay,):
        for command in (
            "dev.status",
            "pgb.stats",
            "health",
            "metrics --interval 0.2",
            "dev.load --seconds 1 --only pgb",
        ):
            done = stack.inv(*command.split(), expect=None)
            said = done.stdout + done.stderr
            assert secrets_in(stack, relay.seen()) == [], (command, said)
        assert f"pid {relay.process.pid}" in stack.inv("pgb.start", expect=1).stderr or os.getuid() != 0


@pytest.mark.slow
def test_pgbouncer_has_nothing_to_show_a_listener_in_the_place_of_the_database(stack: Project, shared: Path) -> None:
    stack.inv("pgb.start")
    stop_alone(stack, "nv-db")
    for kind in ("cleartext", "md5"):
        with listening(shared, kind, stack.db_port) as (listener,):
            with pytest.raises(psycopg2.OperationalError):
                stack.query("SELECT 1", stack.pgb_port)
            assert b"nina" in wait_for(listener.seen)  # PgBouncer has come
            assert secrets_in(stack, listener.seen()) == []


def socket_of(stack: Project) -> Path:
    """The supervisor's socket: in a short folder, where the state's path is too long for one."""
    return Path(re.search(r"^file *= *(\S+)$", (stack.state / "config/supervisord.conf").read_text(), re.MULTILINE)[1])  # type: ignore[index]


def stop_alone(stack: Project, name: str) -> None:
    """Stop a service without those that need it, as a crash that is not yet noticed does."""
    url = f"unix://{socket_of(stack)}"
    command = [sys.executable, "-m", "supervisor.supervisorctl", "-s", url, "stop", f"{name}:*"]
    subprocess.run(command, check=True, capture_output=True, cwd=stack.state / "config")


REFUSED = "authentication method requirement"
"""What libpq says if it is asked for the password in another way than it may be."""


def connecting(url: str = "''") -> str:
    """Return a program that connects by libpq, and prints what becomes of it."""
    connect = f"psycopg2.connect({url}, connect_timeout=2)"
    return f"import os, psycopg2\ntry: {connect}; print('connected')\nexcept psycopg2.Error as error: print(error)"


@pytest.mark.variations
@pytest.mark.parametrize("kind", ["cleartext", "md5", "none"])
def test_a_command_with_our_variables_shows_a_listener_nothing(stack: Project, shared: Path, kind: str) -> None:
    stack.inv("dev.down")
    with listening(shared, kind, stack.db_port) as (listener,):
        said = stack.inv("dev.exec", "--", sys.executable, "-c", connecting()).stdout
        assert secrets_in(stack, listener.seen()) == []
    assert REFUSED in said


@pytest.mark.slow
def test_who_asks_for_it_has_libpq_log_in_to_any_server(stack: Project, shared: Path) -> None:
    stack.inv("dev.down")
    command = ("dev.exec", "--", sys.executable, "-c", connecting())
    with listening(shared, "cleartext", stack.db_port) as (listener,):
        for value in ("", "none,password"):
            before = len(listener.seen())
            stack.inv(*command, INVOKE_API_ENV=json.dumps({"PGREQUIREAUTH": value}))
            assert secrets_in(stack, listener.seen()[before:]) == ["the database's password"], value
        before = len(listener.seen())
        (stack.root / ".env").write_text("PGREQUIREAUTH=\n")
        try:
            stack.inv(*command)
        finally:
            (stack.root / ".env").unlink()
        assert secrets_in(stack, listener.seen()[before:]) == ["the database's password"]


OWN = """
import os
import psycopg2
from fastapi import FastAPI

app = FastAPI()

@app.get("/health")
def health():
    return {}

@app.get("/connect")
def connect():
    try:
        psycopg2.connect(os.environ["DATABASE_URL"], connect_timeout=5).close()
    except psycopg2.Error as error:
        return str(error)
    return "connected"
"""
"""An application of the user's own, which leaves to libpq how it logs in."""


def test_an_application_of_the_users_own_shows_a_listener_nothing(stack: Project, shared: Path) -> None:
    (stack.root / "own").mkdir()
    (stack.root / "own/served.py").write_text(OWN)
    own: dict[str, Any] = {"INVOKE_API_DIR": "own", "INVOKE_API_APP": "served:app", "INVOKE_API_RELOAD": "false"}
    stack.inv("dev.up", **own, INVOKE_API_DETAIL_PATH="", INVOKE_API_METRICS_PATH="")
    assert stack.http("/connect") == (200, "connected")
    stop_alone(stack, "nv-pgbouncer")
    for kind in ("cleartext", "md5", "none"):
        with listening(shared, kind, stack.pgb_port) as (listener,):
            _, said = stack.http("/connect")
            assert b"nina" in listener.seen(), "it has connected"
            assert secrets_in(stack, listener.seen()) == [], kind
        assert REFUSED in said


def test_an_application_that_may_not_log_in_by_another_way_gets_the_fix(tmp_path: Path) -> None:
    nothing: Any = None
    api = Api(nothing, load([], tmp_path), nothing)
    assert 'PGREQUIREAUTH: "" below api.env' in api.hint([f"psycopg2.OperationalError: {REFUSED} failed"])


def test_migrations_and_hooks_show_a_listener_nothing(stack: Project, shared: Path) -> None:
    stack.inv("db.start")
    (port,) = free_ports(1)
    url = (
        f"os.environ['DATABASE_URL'].replace(':{stack.db_port}/', ':{port}/').replace(':{stack.pgb_port}/', ':{port}/')"
    )
    command = shlex.join([sys.executable, "-c", connecting(url)])
    with listening(shared, "cleartext", port) as (listener,):
        for task, setting in (
            (("data.migrate", "--no-backup"), "INVOKE_DATA_MIGRATE"),
            (("data.backup", "--schema-only"), "INVOKE_HOOKS_PRE_BACKUP"),
        ):
            before = len(listener.seen())
            given: dict[str, Any] = {setting: command}
            said = stack.inv(*task, **given).stdout
            assert b"nina" in listener.seen()[before:], "it has connected"
            assert secrets_in(stack, listener.seen()) == [], task
            assert REFUSED in said


class Claimed:
    """A context whose runtime says that the listener is the service, or that it is not."""

    def __init__(self, folder: Path, *, ours: bool) -> None:
        self.paths = Paths(root=folder, state=folder, cache=folder, run=folder, log=folder)
        self.host = Host()
        self.ours = ours

    def has_port(self, name: str, address: str, port: int) -> bool:
        return self.ours

    def mask(self, text: str) -> str:
        return text


def check_socket(stack: Project, shared: Path, kind: str) -> None:
    """Answer on the database's socket in its place, as the server's account can: nobody gets the user's passwords."""
    home = shared / f"home-{kind}"
    home.mkdir()
    passwords = home / ".pgpass"
    passwords.write_text(f"*:*:*:*:{SECRET}\n")
    passwords.chmod(0o600)
    socket = socket_of(stack).parent / f"db/.s.PGSQL.{stack.db_port}"
    aside = socket.rename(socket.with_name("aside"))
    try:
        with listening(shared, kind, socket, owner=Host().account) as (listener,):
            for command in ("db.shell --command SELECT", "db.shell --admin --command SELECT", "data.backup"):
                before = len(listener.seen())
                said = stack.inv(*command.split(), expect=None, HOME=str(home)).stderr
                seen = listener.seen()
                assert b"database" in seen[before:], ("it has connected", command, said)
                assert SECRET.encode() not in seen, (command, said)
                for role in ("nina", "postgres", "nv_reader"):
                    assert fakes.digest_of(SECRET, role).encode() not in seen, (command, said)
    finally:
        socket.unlink(missing_ok=True)
        aside.rename(socket)


def test_whoever_answers_on_the_databases_socket_gets_no_password_of_the_user(stack: Project, shared: Path) -> None:
    stack.inv("dev.up")
    for kind in ("cleartext", "md5"):
        check_socket(stack, shared, kind)


@pytest.mark.slow
@pytest.mark.skipif(not DEBIANS.is_dir(), reason="there is no PostgreSQL 15 here")
def test_nor_from_a_libpq_that_can_not_be_told_how_to_log_in(project: Project, shared: Path) -> None:
    project.env |= {"INVOKE_DB_BIN_DIR": str(DEBIANS), "INVOKE_DB_EXTENSIONS": "[]"}
    project.inv("db.start")
    check_socket(project, shared, "cleartext")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("libpq", ["this one", "an old one"])
def test_libpq_takes_scram_alone_and_an_old_one_only_our_own_process(
    shared: Path, monkeypatch: pytest.MonkeyPatch, kind: str, libpq: str
) -> None:
    """The listener passes for ours with a libpq that can be told, and does not with one that can't."""
    if libpq == "an old one":
        monkeypatch.setattr(login, "libpq_version", lambda: 150000)
    (port,) = free_ports(1)
    context: Any = Claimed(shared, ours=libpq == "this one")
    place = login.Place("db", "nv-db", "127.0.0.1", port)
    with listening(shared, kind, port) as (listener,):
        with pytest.raises((StackError, psycopg2.OperationalError)) as caught:
            login.log_in(context, place, user="nina", password=SECRET, database="nina", seconds=2)
        seen = listener.seen()
    assert SECRET.encode() not in seen
    assert fakes.digest_of(SECRET, "nina").encode() not in seen
    if libpq == "an old one":
        assert seen == b""
    if kind != "scram":  # that one goes silent in the middle of the exchange, which has shown it no password
        assert isinstance(caught.value, StackError)
        assert f"what listens on 127.0.0.1:{port} has not proven to be nv-db" in caught.value.text()


@pytest.mark.parametrize("kind", ["cleartext", "md5", "none"])
def test_the_default_application_shows_a_listener_nothing(shared: Path, kind: str) -> None:
    (port,) = free_ports(1)
    url = f"postgresql://nina:{SECRET}@127.0.0.1:{port}/nina"
    with listening(shared, kind, port) as (listener,):
        with (
            contextlib.closing(Database(url, size=1, timeout_s=5)) as database,
            pytest.raises(DatabaseUnavailableError),
        ):
            database.fetch("SELECT 1")
        seen = listener.seen()
    assert SECRET.encode() not in seen
    assert fakes.digest_of(SECRET, "nina").encode() not in seen
    assert api_login(url + "?require_auth=md5") == {}


@pytest.mark.slow
def test_an_external_server_gets_a_password_in_clear_only_if_the_url_says_so(stack: Project, shared: Path) -> None:
    (port,) = free_ports(1)
    url = f"postgresql://app:{SECRET}@127.0.0.1:{port}/shop"
    with listening(shared, "cleartext", port) as (listener,):
        said = stack.inv("data.backup", "--url", url, expect=1).stderr
        assert SECRET.encode() not in listener.seen()
        assert f"127.0.0.1:{port} asks for the password in clear" in said
        assert "?sslmode=require" in said
        assert SECRET not in said
        assert stack.popen("data.backup", "--url", f"{url}?sslmode=require").wait(60) == 1  # it has no TLS
        assert SECRET.encode() not in listener.seen()
        stack.popen("data.backup", "--url", f"{url}?require_auth=password&connect_timeout=2").wait(60)
        assert SECRET.encode() in listener.seen()  # as the person wants it


def test_a_connection_of_ours_is_made_in_one_place_alone() -> None:
    root = Path(__file__).resolve().parent.parent
    made = [
        str(path.relative_to(root))
        for folder in ("devstack", "tasks", "api")
        for path in (root / folder).rglob("*.py")
        if "psycopg2.connect(" in path.read_text()
    ]
    assert sorted(made) == ["api/database.py", "api/migrations/env.py", "devstack/services/login.py"]
