"""The pytest plugin: real runs of pytest on a real stack, as another project's tests would use it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from devstack.settings import DbSettings
from devstack.testing.project import open_project
from tests.conftest import Project, wait_for

MADE = "SELECT datname FROM pg_database WHERE datname ~ '^nv_test_' ORDER BY 1"


class Suite:
    """Another project's tests: in a folder below that of invoke.yaml, called from somewhere else."""

    def __init__(self, project: Project, away: Path) -> None:
        self.project = project
        self.away = away
        self.folder = project.root / "service" / "tests"
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in self.folder.iterdir():
            file.unlink() if file.is_file() else None
        self.ini()
        self.seen = away / "seen"
        self.seen.unlink(missing_ok=True)

    def ini(self, *lines: str) -> None:
        (self.folder / "pytest.ini").write_text("\n".join(["[pytest]", *lines]) + "\n")

    def write(self, source: str, name: str = "test_it.py") -> None:
        head = "import os, time, pytest\n\ndef see(*words):\n    with open(os.environ['SEEN'], 'a') as file:\n"
        head += "        file.write(' '.join(map(str, words)) + '\\n')\n\n"
        (self.folder / name).write_text(head + textwrap.dedent(source))

    def popen(self, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(self.folder), *args],
            cwd=self.away,
            env={**self.project.env, "SEEN": str(self.seen), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *args: str, expect: int = 0, **env: str) -> str:
        process = self.popen(*args, **env)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == expect, output
        return output

    def lines(self) -> list[str]:
        return self.seen.read_text().splitlines() if self.seen.exists() else []

    def made(self) -> list[str]:
        """The plugin's databases that are on the server."""
        return [name for (name,) in self.project.query(MADE)]


@pytest.fixture
def suite(stack: Project, tmp_path: Path) -> Suite:
    return Suite(stack, tmp_path)


WRITES = """
    @pytest.mark.parametrize("n", range(4))
    def test_writes(nv_connection, nv_db, n):
        began = time.monotonic()
        with nv_connection.cursor() as cursor:
            cursor.execute("SELECT current_database(), (SELECT count(*) FROM memories), current_user")
            assert cursor.fetchone() == (nv_db.name, 0, "nina")
            cursor.execute("CREATE TABLE mine (n int)")
            cursor.execute("INSERT INTO memories (content, embedding) VALUES ('x', array_fill(1, ARRAY[384])::vector)")
        nv_connection.commit()
        see(nv_db.name, os.environ.get("PYTEST_XDIST_WORKER", "-"))
"""


def writes(suite: Suite) -> None:
    suite.write(WRITES)


def test_tests_are_isolated_the_migrations_are_in_and_nothing_is_left(suite: Suite) -> None:
    writes(suite)
    before = suite.project.pids()
    output = suite.run("--durations=0", "-vv")
    names = [line.split()[0] for line in suite.lines()]
    assert len(set(names)) == 4, output
    assert [re.sub("_[0-9a-f]{12}$", "", name) for name in suite.made()] == ["nv_test_template"]
    assert suite.project.pids() == before
    # how long a clone took on this machine: for the report, never for a verdict
    print(*re.findall(r"^.*s setup .*$", output, re.MULTILINE), sep="\n")


def test_what_dev_exec_gives_is_no_setting_of_the_stack(stack: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its URLs lead through PgBouncer: read as settings, they would make its port the database's."""
    given = json.loads(stack.inv("dev.env", "--json").stdout)
    for name, value in {**stack.env, **given}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("INVOKE_DB_PORT")
    assert open_project(stack.root, "").settings.db.port == DbSettings().port


@pytest.mark.slow
def test_workers_have_databases_of_their_own_and_make_the_template_once(suite: Suite, tmp_path: Path) -> None:
    writes(suite)
    command = f"echo made >> {tmp_path}/made; {sys.executable} -m alembic upgrade head"
    output = suite.run("-n", "2", "--dist", "each", INVOKE_DATA_MIGRATE=command)
    seen = [line.split() for line in suite.lines()]
    assert len({name for name, _ in seen}) == 8, output
    assert {worker for _, worker in seen} == {"gw0", "gw1"}
    assert (tmp_path / "made").read_text() == "made\n"
    suite.run("-k", "0", INVOKE_DATA_MIGRATE=command)
    assert (tmp_path / "made").read_text() == "made\n"  # the next run has it still
    suite.run("-k", "0", "--nv-rebuild", INVOKE_DATA_MIGRATE=command)
    assert (tmp_path / "made").read_text() == "made\nmade\n"
    assert all(name.startswith("nv_test_template_") for name in suite.made())


@pytest.mark.faults
def test_what_a_killed_run_leaves_goes_with_the_next(suite: Suite) -> None:
    suite.write("def test_hangs(nv_db):\n    see(nv_db.name)\n    time.sleep(60)\n")
    process = suite.popen()
    try:
        (name,) = wait_for(suite.lines)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert name in suite.made()
    suite.write("def test_other(nv_db):\n    see(nv_db.name)\n")
    suite.run()
    assert all(left.startswith("nv_test_template_") for left in suite.made())
    assert [path.name for path in (suite.project.state / "testing" / "runs").iterdir()] == []


@pytest.mark.slow
def test_a_run_beside_another_leaves_its_databases_alone(suite: Suite) -> None:
    suite.write(
        "def test_waits(nv_db):\n    see(nv_db.name)\n    while not os.path.exists(os.environ['SEEN'] + '-go'):\n"
        "        time.sleep(0.05)\n    nv_db.connect().close()\n"
    )
    process = suite.popen()
    try:
        wait_for(suite.lines)
        suite.write("def test_other(nv_db):\n    pass\n", "test_other.py")
        suite.run("-k", "other")
        Path(f"{suite.seen}-go").touch()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


REVISION = """
revision = "0002"
down_revision = "0001"

def upgrade():
    from alembic import op
    op.execute("CREATE TABLE later (id int)")

def downgrade():
    pass
"""


@pytest.mark.slow
def test_a_new_migration_makes_a_new_template(suite: Suite) -> None:
    suite.write(
        "def test_it(nv_connection):\n    cursor = nv_connection.cursor()\n"
        "    cursor.execute(\"SELECT to_regclass('later')\")\n    see(cursor.fetchone()[0])\n"
    )
    # a copy of the application that nobody runs: the one that runs would migrate the environment's own database
    shutil.copytree(suite.project.root / "api", suite.project.root / "other" / "api")
    suite.run(INVOKE_API_DIR="other/api")
    before = suite.made()
    (suite.project.root / "other" / "api" / "migrations" / "versions" / "0002_later.py").write_text(REVISION)
    suite.run(INVOKE_API_DIR="other/api")
    assert suite.lines() == ["None", "later"]
    assert len(set(suite.made()) - set(before)) == 1
    assert suite.project.query("SELECT to_regclass('later')") == [(None,)]


@pytest.mark.slow
def test_templates_of_data_of_nothing_and_seeds(suite: Suite) -> None:
    connection = suite.project.connect()
    connection.cursor().execute("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1), (2)")
    connection.close()
    (suite.project.root / "rows.sql").write_text("CREATE TABLE seeded AS SELECT 7 AS n;\n")
    suite.write("""
        def test_it(nv_connection):
            cursor = nv_connection.cursor()
            cursor.execute("SELECT to_regclass('kept'), to_regclass('memories'), to_regclass('seeded'),"
                           " (SELECT count(*) FROM pg_extension WHERE extname = 'vector')")
            see(*cursor.fetchone())
            cursor.execute("SELECT count(*) FROM kept") if os.environ.get("ROWS") else None
            see(*cursor.fetchone()) if os.environ.get("ROWS") else None
        """)
    try:
        suite.run("--nv-template", "data", ROWS="1")
        assert not [name for name in suite.made() if "data" in name]  # a copy of the data is of no use later
        suite.ini("nv_template = empty", "nv_seed = rows.sql")
        suite.run()
    finally:
        connection = suite.project.connect()
        connection.cursor().execute("DROP TABLE kept")
        connection.close()
    assert suite.lines() == ["kept memories None 1", "2", "None None seeded 1"]


@pytest.mark.slow
def test_variables_urls_and_the_way_through_the_pooler(suite: Suite) -> None:
    suite.write("""
        def test_it(nv_stack, nv_session_db, nv_databases):
            import psycopg2, urllib.request
            assert nv_stack.api_url.startswith("http://127.0.0.1:")  # localhost may be another account's
            assert urllib.request.urlopen(nv_stack.api_url + "/health").status == 200
            with nv_databases.one() as database:
                for url in (database.url, database.libpq_url, database.pooled_url):
                    connection = psycopg2.connect(url)
                    cursor = connection.cursor()
                    cursor.execute("SELECT current_database()")
                    assert cursor.fetchone() == (database.name,)
                    connection.close()
                assert database.url_for("postgresql+asyncpg").startswith("postgresql+asyncpg://nina:")
                assert database.name != nv_session_db.name
                see(*sorted(database.environment))
                assert database.environment["MINE"] == f"{database.name} on {database.url.split(':')[-1].split('/')[0]}"
            assert nv_stack.env == "dev"
        """)
    suite.run(INVOKE_API_ENV='{"MINE": "$db_name on $db_port"}')
    (names,) = suite.lines()
    expected = {"DATABASE_URL", "NINAIVALAIGAL_DATABASE_URL", "NINAIVALAIGAL_JWT_SECRET", "PGREQUIREAUTH", "MINE"}
    assert expected <= set(names.split())
    assert "PATH" not in names.split()


@pytest.mark.variations
@pytest.mark.parametrize(
    ("ini", "env", "expected"),
    [
        (["nv_template = all"], {}, "nv_template is 'all' in .*there are: migrations, data, empty"),
        ([], {"INVOKE_DATA_MIGRATE": "echo no such column >&2; exit 3"}, "exit code 3.*no such column"),
        (["nv_seed = nowhere.sql"], {}, "nowhere.sql does not exist"),
        (["nv_template_files = nothing/*.py"], {}, "nv_template_files finds nothing for 'nothing"),
        ([], {"INVOKE_DB_PORT": "many"}, "db.port: 'many'.*INVOKE_DB_PORT"),
        (["nv_env = Not_A_Name"], {}, "stack.env: .*nv_env in pytest's settings"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_stays(
    suite: Suite, ini: list[str], env: dict[str, str], expected: str
) -> None:
    suite.ini(*ini)
    suite.write("def test_it(nv_db):\n    see('reached')\n")
    before = suite.made()
    process = suite.popen(**env)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (1, 4), output
    assert re.search(expected, output, re.DOTALL), output
    assert "Traceback" not in output
    assert "devstack/testing" not in output  # no frames of ours
    assert (suite.lines(), suite.made()) == ([], before)


def test_without_a_project_it_says_where_it_looked(tmp_path: Path, project: Project) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(nv_stack):\n    pass\n")
    done = pytest_in(tmp_path, env=project.env)
    assert done.returncode == 1
    assert f"neither {tmp_path}, pytest's rootdir, nor a folder above it has an invoke.yaml" in done.stdout


def pytest_in(folder: Path, *args: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={folder}", *args]
    env = {name: text for name, text in env.items() if name != "PYTEST_ADDOPTS"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_who_uses_no_fixture_notices_nothing(tmp_path: Path, project: Project) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_it():\n"
        "    ours = ('devstack', 'invoke', 'psycopg2', 'msgspec')\n"
        "    loaded = {name for name in sys.modules if name.split('.')[0] in ours}\n"
        "    assert loaded == {'devstack', 'devstack.testing', 'devstack.testing.plugin'}\n"
    )
    done = pytest_in(tmp_path, "-W", "error", "-q", env=project.env)
    assert done.returncode == 0, done.stdout
    assert re.fullmatch(r"\. +\[100%\]\n1 passed in [\d.]+s\n", done.stdout)
    assert not project.state_base.exists()


@pytest.fixture
def stopped(project: Project, tmp_path: Path) -> Suite:
    """Tests of a project whose stack has never run."""
    return Suite(project, tmp_path)


def status(project: Project) -> list[str]:
    return sorted(project.pids())


@pytest.mark.slow
def test_a_stack_that_did_not_run_is_stopped_again_by_the_last_worker(stopped: Suite) -> None:
    stopped.write(
        WRITES
        + """
    def test_api(nv_stack):
        import urllib.request
        assert urllib.request.urlopen(nv_stack.api_url + "/health").status == 200
    """
    )
    stopped.run("-n", "2", "-W", "error")
    assert status(stopped.project) == []
    assert stopped.project.processes() == []
    # databases need PostgreSQL alone; kept, it is there after the run, and stays after one that finds it running
    stopped.run("-k", "writes", "--nv-keep")
    assert status(stopped.project) == ["nv-db"]
    stopped.run("-k", "writes", "-n", "2")
    assert status(stopped.project) == ["nv-db"]
    assert [name[:16] for name in stopped.made()] == ["nv_test_template"]


@pytest.mark.slow
def test_what_somebody_starts_meanwhile_stays_and_what_it_needs(stopped: Suite) -> None:
    stopped.project.have_program()
    stopped.write("""
        def test_it(nv_db):
            import subprocess, sys
            subprocess.run([sys.executable, "-m", "invoke", "pgb.start"], cwd=os.environ["ROOT"], check=True)
        """)
    stopped.run(ROOT=str(stopped.project.root))
    assert status(stopped.project) == ["nv-db", "nv-pgbouncer"]


APP = """
import os
from fastapi import FastAPI, Depends
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

engine = create_engine(os.environ.get("DATABASE_URL", "postgresql+psycopg2://nobody@localhost:1/none"))
app = FastAPI()

def get_session():
    with Session(engine) as session:
        yield session

@app.post("/notes")
def add(text_: str = "", text: str = "", session: Session = Depends(get_session)):
    from sqlalchemy import text as sql
    session.execute(sql("INSERT INTO notes VALUES (:text)"), {"text": text})
    session.commit()

@app.get("/notes")
def all_(session: Session = Depends(get_session)):
    return [row[0] for row in session.execute(text("SELECT text FROM notes"))]
"""


@pytest.mark.slow
def test_the_example_of_the_documentation(suite: Suite) -> None:
    page = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in blocks] == ["conftest.py", "test_notes.py"]
    for name, source in blocks:
        (suite.folder / name).write_text(source)
    (suite.folder / "app").mkdir()
    (suite.folder / "app" / "main.py").write_text(APP)
    suite.ini("nv_template = empty", "nv_seed = notes.sql", "pythonpath = .")
    (suite.project.root / "notes.sql").write_text("CREATE TABLE notes (text text);\n")
    assert "2 passed" in suite.run()


@pytest.mark.slow
def test_a_name_that_pgbouncer_can_t_have_leads_to_the_environment_s_own_and_is_refused(suite: Suite) -> None:
    suite.write("""
        def test_it(nv_databases):
            import msgspec
            from devstack.errors import StackError
            from devstack.testing.databases import Database
            own = nv_databases.loan.stack
            settings = msgspec.structs.replace(own.settings, db=msgspec.structs.replace(own.settings.db, name="a-b"))
            odd = Database(type(own)(own.context, settings, own.environ, own.registry, looking=True), "nv_test_x")
            with pytest.raises(StackError, match="can't be reached through PgBouncer"):
                odd.pooled_url
        """)
    suite.run()
