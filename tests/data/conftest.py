"""A database with everything that a dump can get wrong, and ways to compare two."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.conftest import Project, directory_of_its_own, ended

pytest.register_assert_rewrite("tests.data.campaigns")

RICH = (Path(__file__).parent / "rich.sql").read_text()


class Data(Project):
    """A project with a few more questions."""

    @property
    def bin(self) -> Path:
        import json

        return Path(json.loads((self.state / "choices.json").read_text())["postgres_bin"])

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    def superuser(self) -> dict[str, str]:
        run = self.state / "run"
        if not (run / "db").is_dir():
            (run,) = self.socket_directories()
        return {"PGHOST": str(run / "db"), "PGPORT": str(self.db_port), "PGUSER": "postgres", "PGDATABASE": "nina"}

    def program(self, *words: str, input: str | None = None, **env: str) -> str:  # noqa: A002
        """One of PostgreSQL's programs, as the superuser."""
        done = subprocess.run(
            [str(self.bin / words[0]), *words[1:]],
            env={**self.env, **self.superuser(), **env},
            input=input,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sql(self, script: str, database: str = "nina") -> str:
        return self.program(
            "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-", input=script, PGDATABASE=database
        ).strip()

    def print_of(self, database: str = "nina", *, owners: bool = False) -> str:
        """All that is in a database: its schema, every table's rows in an order of their own, sequences, large
        objects, and the database's own properties."""
        schema = self.schema_of(database, owners=owners)
        return "\n".join([schema, self.rows_of(database), self.sql(PROPERTIES, database)])

    def schema_of(self, database: str = "nina", *, owners: bool = False) -> str:
        """The schema. Without ``owners`` what is the superuser's is taken for the owner's, as a restore makes it."""
        schema = self.program("pg_dump", "-s", PGDATABASE=database)
        schema = re.sub(r"^\\(un)?restrict .*$", "", schema, flags=re.MULTILINE)
        if not owners:
            schema = re.sub(r"(Owner: |OWNER TO )postgres\b", r"\1nina", schema)
        # where objects depend on each other in circles, their order is that of their making
        return "\n--\n-- Name: ".join(sorted(schema.split("\n--\n-- Name: ")))

    def rows_of(self, database: str = "nina", *, sequences: bool = True) -> str:
        """Every table's rows as a hash. After a crash a sequence may be a few values further."""
        tables = self.sql(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1",
            database,
        ).splitlines()
        script = "".join(
            f"SELECT $name${t}$name$, count(*), md5(string_agg(t::text, '' ORDER BY t::text)) FROM ONLY {t} t;\n"
            for t in tables
        )
        return self.sql(script + OBJECTS + (SEQUENCES if sequences else ""), database)

    def databases(self) -> list[str]:
        """Those that are not PostgreSQL's own."""
        return self.sql(
            "SELECT datname FROM pg_database"
            " WHERE datname NOT IN ('postgres', 'template0', 'template1', 'pristine') ORDER BY 1",
            "postgres",
        ).splitlines()

    def files(self) -> dict[str, tuple[int, int, str]]:
        """What is in the folder of backups: size, mode, content."""
        return {
            str(path.relative_to(self.backups)): (
                path.stat().st_size,
                path.stat().st_mode & 0o7777,
                hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            for path in sorted(self.backups.rglob("*"))
            if path.is_file()
        }

    def json(self, *args: str, expect: int = 0) -> Any:
        import json

        return json.loads(self.inv(*args, "--json", expect=expect).stdout)

    def backup(self, *flags: str) -> Path:
        return Path(self.json("data.backup", *flags)["path"])

    def refused(self, *args: str, says: str, code: int = 1, **env: str) -> str:
        """A command that must refuse: an error with its cause in words, no traceback."""
        done = self.inv(*args, expect=code, **env)
        assert re.search(says, done.stderr), done.stderr
        assert "error: " in done.stderr
        assert "Traceback" not in done.stderr
        assert "defect of the tool" not in done.stderr
        return done.stderr


SEQUENCES = "SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2;"
OBJECTS = """
SELECT loid, md5(string_agg(data, '' ORDER BY pageno)) FROM pg_largeobject GROUP BY 1 ORDER BY 1;
"""
PROPERTIES = """
SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype, datacl, datconnlimit,
       datallowconn, shobj_description(oid, 'pg_database'),
       (SELECT array_agg((setrole::regrole, setconfig)::text ORDER BY setrole) FROM pg_db_role_setting
         WHERE setdatabase = d.oid)
  FROM pg_database d WHERE datname = current_database();
"""


COPY = """
ALTER DATABASE nina ALLOW_CONNECTIONS false;
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = 'nina';
CREATE DATABASE pristine TEMPLATE nina;
ALTER DATABASE nina ALLOW_CONNECTIONS true;
"""


@pytest.fixture(scope="module")
def rich(workspace: Path, cache: Path) -> Iterator[Data]:
    """A running stack with a rich schema. Its tests leave the database as it is."""
    with running(workspace, cache) as made:
        yield made


@pytest.fixture(scope="module")
def spare(workspace: Path, cache: Path) -> Iterator[Data]:
    with running(workspace, cache) as made:
        made.sql(COPY, "postgres")
        yield made


@pytest.fixture
def data(spare: Data) -> Iterator[Data]:
    """The same, to do anything with: its database is made anew for each test, and what else a test has broken is
    brought up again."""
    env, run = dict(spare.env), spare.run()
    journal = spare.state / "journal.json"
    yield spare
    spare.env = env
    broken = journal.exists() or spare.run() != run
    if broken:
        spare.inv("db.start")
    kept = [name for name in spare.databases() if name.startswith("nina_")]
    for name in [*kept, "nina"]:
        spare.sql(f'DROP DATABASE "{name}" WITH (FORCE)', "postgres")
    spare.sql("CREATE DATABASE nina TEMPLATE pristine OWNER nina", "postgres")
    for path in (spare.state / "previous.json", journal):
        path.unlink(missing_ok=True)
    shutil.rmtree(spare.backups, ignore_errors=True)
    if broken or not spare.answers():
        spare.inv("dev.up")


@pytest.fixture
def fresh(workspace: Path, cache: Path) -> Iterator[Data]:
    """A project of one test's own, with nothing started."""
    with _project(workspace, cache) as made:
        yield made


DataT = TypeVar("DataT", bound=Data)


@contextlib.contextmanager
def project_of(kind: type[DataT], workspace: Path, cache: Path) -> Iterator[DataT]:
    with directory_of_its_own(workspace) as folder, ended(kind(folder, cache)) as made:
        # it is killed, not the machine that it is on
        made.env["INVOKE_DB_PARAMETERS"] = '{"fsync": false}'
        made.env["RELOAD_ON_CHANGE"] = "false"
        yield made


def _project(workspace: Path, cache: Path) -> contextlib.AbstractContextManager[Data]:
    return project_of(Data, workspace, cache)


@contextlib.contextmanager
def running(workspace: Path, cache: Path) -> Iterator[Data]:
    with _project(workspace, cache) as made:
        made.inv("dev.up")
        made.sql(RICH)
        yield made
