"""Shared parts of the campaigns: a client that commits rows while commands run, and the check that none is lost."""

from __future__ import annotations

import contextlib
import json
import random
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2

from tests.conftest import wait_for
from tests.data.conftest import Data, project_of

TABLES = """
SET ROLE nina;
CREATE TABLE ledger (id bigint PRIMARY KEY, text text);
CREATE TABLE bulk AS SELECT g AS id, md5(g::text) AS text FROM generate_series(1, 3000) g;
ALTER TABLE bulk ADD PRIMARY KEY (id);
"""
"""``ledger`` has the rows of the client, ``bulk`` makes a dump take its time."""

WRITER = """
import json, select, sys
import psycopg2
number, tries, connection = 0, 0, None
addresses = [f"host=127.0.0.1 port={port} user=nina dbname=nina connect_timeout=5" for port in sys.argv[1:]]
while sys.stdin.readline():
    acknowledged = []
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        number += 1
        try:
            if connection is None:
                tries += 1
                connection = psycopg2.connect(addresses[tries % len(addresses)])
                connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO ledger VALUES (%s, 'committed')", [number])
            acknowledged.append(number)
        except psycopg2.Error:
            connection = None
    sys.stdin.readline()
    if connection is not None:
        connection.close()
        connection = None
    print(json.dumps(acknowledged), flush=True)
"""
"""From one line of its input to the next it commits a row every few milliseconds, through PgBouncer and directly in
turns, and connects again whenever it has to; then it prints the rows whose commit was acknowledged."""
PATIENCE = 90
"""Seconds that the client may have to wait for the database."""
LONGEST = 150
"""Seconds after which a command is taken to hang."""


class Busy(Data):
    """A project whose database a client writes to."""

    client: subprocess.Popen[str] | None = None

    def begin_ledger(self) -> None:
        """Start the stack and the client, and make the backups that the commands take."""
        self.inv("dev.up")
        self.sql(TABLES)
        self.backup()
        self.backup("--incremental")
        self.client = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(self.db_port), str(self.pgb_port)],
            env={**self.env, "PGPASSWORD": self.secrets()["db_password"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.inv("data.restore", "--no-safety-backup")

    @contextlib.contextmanager
    def written(self) -> Iterator[set[int]]:
        """Have the client commit rows while this is open; yield the set that has those acknowledged then."""
        acknowledged: set[int] = set()
        self._tell()
        try:
            yield acknowledged
        finally:
            self._tell()
            assert self.client
            assert self.client.stdout
            assert select.select([self.client.stdout], [], [], PATIENCE)[0], "a client of the database hangs"
            acknowledged.update(json.loads(self.client.stdout.readline()))

    def _tell(self) -> None:
        assert self.client
        assert self.client.stdin
        self.client.stdin.write("\n")
        self.client.stdin.flush()

    def end(self) -> None:
        if self.client:
            self.client.kill()
            self.client.communicate()
        super().end()

    def cut_off(self) -> list[str]:
        """Return the records of commands that did not end."""
        return [name for name in ("journal.json", "swap.json") if (self.state / name).exists()]

    def check_well(self) -> None:
        """Check that clients are served, directly and through PgBouncer, and that nothing is cut off."""
        wait_for(lambda: self.query("SELECT 1", self.pgb_port) == [(1,)])
        assert self.query("SELECT 1") == [(1,)]
        assert self.cut_off() == []

    def tidy(self) -> None:
        """Check that the backups are whole, and remove what is old."""
        self.inv("data.backup")
        self.inv("data.cleanup", "--days", "0")
        self.inv("data.verify", "--all")

    def check_nothing_left(self) -> None:
        """Check that nothing is left of the commands that were cut off: files, databases, directories, programs."""
        self.tidy()
        self.inv("health")  # a service that was killed makes it no more than degraded
        assert self.cut_off() == []
        assert list(self.backups.glob(".nv-*")) == []
        names = {path.name for path in self.backups.iterdir()}
        assert [name for name in names if not name.endswith(".json") and f"{name}.json" not in names] == []
        assert [path.name for path in self.data.parent.iterdir() if path.name.startswith(".")] == []
        kept = [copy["name"] for copy in self.json("data.list", "--kept")["kept"]]
        assert len(kept) <= 1
        assert {*self.databases()} - {"nina", *kept} == set()
        programs = {"psql", "pg_dump", "pg_restore", "pg_basebackup", "pg_combinebackup"}
        wait_for(lambda: [process for process in self.processes() if process.name() in programs] == [])


@contextlib.contextmanager
def busy_stack(workspace: Path, cache: Path) -> Iterator[Busy]:
    with project_of(Busy, workspace, cache) as made:
        made.begin_ledger()
        yield made


def commands(stack: Busy, chance: random.Random) -> dict[str, list[str]]:
    """Return the commands on data by name, with one of the backups that are there."""
    found = stack.json("data.list")["backups"]
    copies = [backup["file"] for backup in found if backup["layout"] == "cluster"]
    dumps = [backup["file"] for backup in found if backup["layout"] != "cluster"]
    safety = chance.choice([["--no-safety-backup"], []])
    return {
        "restore": ["data.restore", "--file", chance.choice(dumps), *safety],
        "merge": ["data.restore", "--merge", "--file", chance.choice(dumps), *safety],
        "undo": ["data.undo"],
        "backup": ["data.backup", "--format", chance.choice(["sql", "custom", "directory"])],
        "incremental": ["data.backup", "--incremental"],
        "cluster": ["data.restore", "--file", chance.choice(copies), *safety],
        "verify": ["data.verify", "--deep", "--file", chance.choice(dumps)],
        "cleanup": ["data.cleanup", "--days", "0"],
        "list": ["data.list"],
    }


OTHERS = {
    "up": ["dev.up"],
    "restart": ["dev.restart"],
    "heal": ["dev.heal"],
    "status": ["dev.status"],
    "health": ["health"],
    "metrics": ["metrics"],
    "db-stats": ["db.stats"],
    "pgb-stats": ["pgb.stats"],
    "reload": ["pgb.reload"],
    "api": ["api.stop", "api.start"],
    "down": ["dev.down"],
}
"""Commands that are not about the data."""
REPORTS = {"health", "dev.status", "dev.heal", "metrics"}
"""Commands that end with 1 where the stack is not well, and say so in their answer."""


def check_clear(words: Sequence[str], code: int, stdout: str, stderr: str) -> None:
    """Check that a command succeeded, or failed with an error that has a cause or a fix and is no defect."""
    said = f"inv {' '.join(words)} ended with {code}:\n{stdout}\n{stderr}"
    assert code in (0, 1), said
    assert not re.search(r"^Traceback \(most recent call last\)", stderr, re.MULTILINE), said
    assert "defect of the tool" not in stderr, said
    if code and words[0] not in REPORTS:
        assert re.search(r"^error: ", stderr, re.MULTILINE), said
        assert re.search(r"^(cause|fix): ", stderr, re.MULTILINE), said


class Kept(NamedTuple):
    """The copy that ``data.undo`` would put back, with its rows."""

    name: str
    rows: set[int]


class Ledger:
    """The rows that must be there: in the database in use, or in the kept copy."""

    def __init__(self, data: Busy) -> None:
        self.data = data
        self.marks = 0
        self.rows = self._in_use()
        self.kept = Kept("", set())
        self.kept = self._kept()
        self.rows = self._in_use()

    def mark(self) -> None:
        """Add a row that no backup has, by which the database in use is told from any other."""
        self.marks -= 1
        self.data.query(f"INSERT INTO ledger VALUES ({self.marks}, 'mark') RETURNING id")
        self.rows.add(self.marks)

    def check(self, acknowledged: set[int], *, once: bool = True) -> bool:
        """Account for every row that was there at the last check or has been acknowledged since.

        :param once: whether at most one command may have replaced the database. The rows of the kept copy may be gone
            only if one has.
        :returns: whether the database in use was replaced.
        """
        rows = self._in_use()
        replaced = self.marks not in rows
        expected = self.rows | acknowledged
        kept = self._kept()
        lost = expected - rows - kept.rows
        assert not lost, f"{len(lost)} acknowledged rows are lost, such as {sorted(lost)[:5]}"
        if not replaced and once:
            assert self.kept.rows <= kept.rows, "the kept copy is gone, and nothing was restored"
        self.rows, self.kept = rows, kept
        if (now := self._in_use()) != rows:  # it was put back to be read
            self.rows, self.kept = now, Kept(self._listed()["name"], rows)
        return replaced

    def _in_use(self, database: str = "nina") -> set[int]:
        with contextlib.closing(self._superuser(database)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id FROM ledger")
            return {row[0] for row in cursor.fetchall()}

    def _superuser(self, database: str) -> Any:
        values = self.data.superuser()
        connection = psycopg2.connect(
            host=values["PGHOST"], port=values["PGPORT"], user=values["PGUSER"], dbname=database
        )
        connection.autocommit = True
        return connection

    def _listed(self) -> dict[str, str]:
        """Return what is said of the copy for ``data.undo``; without a name if there is none."""
        copies = [copy for copy in self.data.json("data.list", "--kept")["kept"] if copy["for_undo"]]
        return copies[0] if copies else {"name": ""}

    def _kept(self) -> Kept:
        """Return the copy for ``data.undo``. The one of a whole cluster is put back to be read."""
        copy = self._listed()
        name = copy["name"]
        if not name or name == self.kept.name:
            return Kept(name, self.kept.rows if name else set())
        if copy["kind"] == "cluster":
            self.data.inv("data.undo")
            return Kept(name, self._in_use())
        with contextlib.closing(self._superuser("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
            rows = self._in_use(name)
            cursor.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        return Kept(name, rows)


@contextlib.contextmanager
def telling(story: list[str]) -> Iterator[None]:
    """Have a failure tell what was done before."""
    try:
        yield
    except Exception as error:
        raise AssertionError("\n".join([*story, str(error)])) from error
