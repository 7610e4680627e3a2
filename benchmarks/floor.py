"""The floor: the same programs with the same arguments, started by hand.

It is the fastest plain script that does the job: one service after the other, each waited for by asking it something
real every 10 ms. No supervisor, no lock, no checks, no state kept, and not even an interpreter to start: it runs
inside the benchmark. What to start comes from a stack of the same checkout that ``inv dev.up`` brought up once: its
launchers hold the arguments and variables of each service, its log the ``initdb`` command.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psycopg2

from benchmarks.workspace import BenchmarkError, CommandLine, wait

INTERVAL = 0.01
DEADLINE = 60.0

SET_UP = """\
CREATE ROLE nina LOGIN PASSWORD :'password';
CREATE DATABASE nina OWNER nina;
\\connect nina
CREATE EXTENSION "vector";
CREATE EXTENSION "uuid-ossp";
SELECT rolpassword FROM pg_authid WHERE rolname = 'nina';
"""


class Floor:
    """The services of an environment that was up once, without the stack."""

    def __init__(self, line: CommandLine) -> None:
        state = line.state
        self.ports = line.ports
        self.config = state / "config"
        self.launchers = {service: self._launcher(f"nv-{line.env}-{name}") for service, name in NAMES.items()}
        self.data = state / "volumes" / f"nv-{line.env}-db-data"
        self.password: str = json.loads((state / "secrets.json").read_text())["db_password"]
        self.userlist = self.config / "userlist.txt"
        self.log = line.workspace.folder / "floor.log"
        self.running: dict[str, subprocess.Popen[bytes]] = {}

        launcher = self.launchers["db"].read_text()
        (postgres,) = (shlex.split(row)[1:] for row in launcher.splitlines() if row.startswith("exec "))
        exports = re.findall(r"^export (.*)$", launcher, re.MULTILINE)
        self.inherited = line.environ
        self.environ = {**line.environ, **dict(shlex.split(row)[0].split("=", 1) for row in exports)}
        self.bin = Path(postgres[0]).parent
        (self.sockets,) = (w.partition("=")[2] for w in postgres if w.startswith("unix_socket_directories="))
        self.initdb = _initdb(line.workspace.checkout / "logs" / line.env / "devstack.log", self.bin, self.data)

        owner = self.data.stat()
        root = os.getuid() == 0
        self.account: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if root else {}

    def _launcher(self, name: str) -> Path:
        """Return the script that becomes a service: as root, the one that runs under the services' account."""
        own = self.config / f"{name}-account.sh"
        return own if own.exists() else self.config / f"{name}.sh"

    def reset(self) -> None:
        """Remove the data, as on a machine that never had them."""
        shutil.rmtree(self.data)

    # what is measured

    def cold(self) -> float:
        """From no data to an application that answers."""
        began = time.perf_counter()
        self.data.mkdir(0o700)
        if self.account:
            os.chown(self.data, self.account["user"], self.account["group"])
        with self.log.open("ab") as log:
            self._run(self.initdb, log)
        self._start("db", self._accepts)
        with self.log.open("ab") as log:
            verifier = self._psql(SET_UP, log)
        self._await(self._query_database, "db")
        users = self.userlist.read_text()
        self.userlist.write_text(re.sub(r'^"nina" ".*"$', f'"nina" "{verifier}"', users, flags=re.MULTILINE))
        self._start("pgb", self._query_pooler)
        self._start("api", self._get_health)
        return time.perf_counter() - began

    def warm(self) -> float:
        """From existing data to an application that answers."""
        began = time.perf_counter()
        self._start("db", self._query_database)
        self._start("pgb", self._query_pooler)
        self._start("api", self._get_health)
        return time.perf_counter() - began

    def stop(self) -> float:
        """The services one after the other, the last one first."""
        began = time.perf_counter()
        for service in ("api", "pgb", "db"):
            self._stop(service)
        return time.perf_counter() - began

    def restart(self) -> float:
        return self.stop() + self.warm()

    def restart_api(self) -> float:
        began = time.perf_counter()
        self._stop("api")
        self._start("api", self._get_health)
        return time.perf_counter() - began

    # by hand

    def _run(self, argv: list[str], log: IO[bytes]) -> None:
        process = subprocess.Popen(
            argv, env=self.environ, cwd="/", stdout=log, stderr=log, start_new_session=True, **self.account
        )
        if code := wait(process):
            raise BenchmarkError(self._with_log(f"{Path(argv[0]).name} ended with exit code {code}"))

    def _psql(self, script: str, log: IO[bytes]) -> str:
        """Run SQL as the superuser; the last line of the answer."""
        options = ["-XqAt", "-v", "ON_ERROR_STOP=1", "-h", self.sockets, "-p", str(self.ports["db"])]
        done = subprocess.run(
            [str(self.bin / "psql"), *options, "-U", "postgres", "-d", "postgres"],
            env=self.environ,
            cwd="/",
            # the password is random letters, digits, - and _, and must not be on the command line
            input=f"\\set password {self.password}\n{script}".encode(),
            stdout=subprocess.PIPE,
            stderr=log,
            **self.account,
        )
        if done.returncode != 0:
            raise BenchmarkError(self._with_log(f"psql ended with exit code {done.returncode}"))
        answer: bytes = done.stdout
        return answer.decode().splitlines()[-1]

    def _start(self, service: str, ready: Callable[[], None]) -> None:
        with self.log.open("ab") as log:
            self.running[service] = subprocess.Popen(
                ["/bin/sh", str(self.launchers[service])],
                env=self.inherited,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **({} if service == "api" else self.account),
            )
        self._await(ready, service)

    def _await(self, ready: Callable[[], None], service: str) -> None:
        began = time.perf_counter()
        while True:
            try:
                return ready()
            except (psycopg2.Error, OSError, http.client.HTTPException) as error:
                ended = self.running[service].poll() is not None
                if ended or time.perf_counter() - began > DEADLINE:
                    raise BenchmarkError(self._with_log(f"{service} did not become ready: {error}")) from None
            time.sleep(INTERVAL)

    def _stop(self, service: str) -> None:
        if process := self.running.pop(service, None):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(STOP[service])
            wait(process)

    def _with_log(self, text: str) -> str:
        return "\n".join([text, *self.log.read_text(errors="replace").splitlines()[-10:]])

    # ready for real

    def _connect(self, port: int, password: str) -> None:
        """A query as the application's role."""
        connection = psycopg2.connect(
            host="127.0.0.1",
            port=port,
            user="nina",
            password=password,
            dbname="nina",
            passfile=str(self.config / "none"),
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        finally:
            connection.close()

    def _accepts(self) -> None:
        """The server asks for a password: the role is not there yet."""
        try:
            self._connect(self.ports["db"], "")
        except psycopg2.OperationalError as error:
            if "no password supplied" not in str(error):
                raise

    def _query_database(self) -> None:
        self._connect(self.ports["db"], self.password)

    def _query_pooler(self) -> None:
        self._connect(self.ports["pgb"], self.password)

    def _get_health(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["api"], timeout=5)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise http.client.HTTPException(f"/health answered {response.status}")
        finally:
            connection.close()


NAMES = {"db": "db", "pgb": "pgbouncer", "api": "api"}

STOP = {"db": signal.SIGINT, "pgb": signal.SIGINT, "api": signal.SIGTERM}
"""Each ends at once by these; SIGTERM would have PgBouncer 1.23 wait for its clients."""


def _initdb(log: Path, bin_folder: Path, data: Path) -> list[str]:
    """The command that the stack initialised its data with, for another folder.

    :raises BenchmarkError: it is not in the stack's log.
    """
    for row in log.read_text().splitlines():
        if f"{bin_folder}/initdb" not in row:
            continue
        words = shlex.split(row)
        if str(bin_folder / "initdb") not in words:
            words = shlex.split(words[-1])  # su's command
        argv = words[words.index(str(bin_folder / "initdb")) :]
        argv[argv.index("-D") + 1] = str(data)
        return argv
    raise BenchmarkError("there is no initdb in the stack's log")
