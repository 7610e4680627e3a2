"""The stack's own PostgreSQL with pgvector, and the application on top of it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from fastapi.testclient import TestClient

from api import main
from tests.conftest import ROOT, Project, directory_of_its_own, ended, free_ports

DATABASE = "api_tests"
JWT_SECRET = "the-jwt-secret-of-the-tests"

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture(scope="session")
def database(workspace: Path, cache: Path) -> Iterator[Project]:
    """The stack's own PostgreSQL, with a database beside the stack's for the tests."""
    with directory_of_its_own(workspace) as folder, ended(Project(folder, cache)) as made:
        made.inv("db.start")
        made.inv("db.shell", "--admin", "--command", f"CREATE DATABASE {DATABASE} TEMPLATE nina OWNER nina")
        yield made


@pytest.fixture
def database_url(database: Project) -> str:
    """The URL of an empty database with pgvector, as its unprivileged owner."""
    with contextlib.closing(database.connect(dbname=DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS memories, alembic_version")
    return _url(database, database.db_port, DATABASE)


@pytest.fixture
def pooled_url(database: Project) -> str:
    """The URL of the stack's own database, through its PgBouncer."""
    database.inv("pgb.start")
    return _url(database, database.pgb_port, "nina")


def _url(database: Project, port: int, name: str) -> str:
    return f"postgresql://nina:{database.secrets()['db_password']}@127.0.0.1:{port}/{name}"


@pytest.fixture
def sql(database_url: str) -> Iterator[Sql]:
    """Run one statement beside the application; its rows."""
    with contextlib.closing(psycopg2.connect(database_url)) as connection:
        connection.autocommit = True

        def run(statement: str, *values: object) -> list[tuple[Any, ...]]:
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []

        yield run


@pytest.fixture
def environ(database_url: str) -> dict[str, str]:
    return {
        "NINAIVALAIGAL_DATABASE_URL": database_url,
        "NINAIVALAIGAL_JWT_SECRET": JWT_SECRET,
        "NINAIVALAIGAL_HOSTS": "testserver",
    }


@pytest.fixture
def client(environ: dict[str, str]) -> Iterator[TestClient]:
    """The application in this process, with no memory in it."""
    with TestClient(main.create_app(environ)) as client:
        yield client


class Line:
    """A loopback line to the database that can be cut and can go dead, without stopping the database itself."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        (self._port,) = free_ports(1)
        self.url = parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{self._port}").geturl()
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener: socket.socket | None = None
        self._ends: list[socket.socket] = []
        self.mend()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Refuse connections, and close those there are."""
        if self._listener is not None:
            # shutdown wakes the thread in accept; close alone does not
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def freeze(self) -> None:
        """Keep connections, pass nothing on."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
                self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(database_url: str) -> Iterator[Line]:
    line = Line(database_url)
    yield line
    line.thaw()
    line.cut()


class Server:
    """``python -m uvicorn api.main:app``, started as the stack does it."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        folder = ROOT / "api"
        own = ("NINAIVALAIGAL_", "DATABASE_URL", "MEMORY_PROVIDER", "LOG_LEVEL", "PG")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "api.main:app", "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=folder,
                env={**inherited, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> str:
        return self._log.read_text()

    def end(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()


Serve = Callable[[dict[str, str]], Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start the application in a process of its own."""
    servers: list[Server] = []

    def start(environ: dict[str, str]) -> Server:
        servers.append(Server(environ, tmp_path / f"{len(servers)}.log"))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.end()
