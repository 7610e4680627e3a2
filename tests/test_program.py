"""The wheel: ``nv`` as a program of its own, and somebody's project adopted by it without a change."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Project, directory_of_its_own, ended, free_ports

SHOP = {
    "pyproject.toml": """
        [project]
        name = "shop"
        version = "0.1.0"
        dependencies = ["fastapi", "uvicorn", "sqlalchemy", "alembic", "psycopg2-binary"]

        [tool.pytest.ini_options]
        testpaths = ["tests"]
    """,
    "app/__init__.py": "",
    "app/config.py": """
        import os

        class Settings:
            API_PREFIX: str = "/api/v1"
            secret = os.environ["SECRET_KEY"]
            url = "postgresql+psycopg2://{}:{}@{}:{}/{}".format(
                os.environ["POSTGRES_USER"], os.environ["POSTGRES_PASSWORD"], os.environ["POSTGRES_SERVER"],
                os.environ.get("POSTGRES_PORT", "5432"), os.environ["POSTGRES_DB"],
            )

        settings = Settings()
    """,
    "app/db.py": """
        from sqlalchemy import create_engine
        from app.config import settings

        engine = create_engine(settings.url)
    """,
    "app/routers/__init__.py": "",
    "app/routers/health.py": """
        from fastapi import APIRouter
        from sqlalchemy import text
        from app.db import engine

        router = APIRouter(prefix="/utils")

        @router.get("/health-check")
        def check():
            with engine.connect() as connection:
                return {"one": connection.execute(text("SELECT 1")).scalar()}
    """,
    "app/routers/items.py": """
        from fastapi import APIRouter
        from sqlalchemy import text
        from app.db import engine

        router = APIRouter()

        @router.get("/items")
        def items():
            with engine.connect() as connection:
                return [row.name for row in connection.execute(text("SELECT name FROM items"))]
    """,
    "app/main.py": """
        from fastapi import FastAPI
        from app.config import settings
        from app.routers import health, items

        app = FastAPI(title="Shop")
        for module in (health, items):
            app.include_router(module.router, prefix=settings.API_PREFIX)
    """,
    "alembic.ini": """
        [alembic]
        script_location = alembic
        prepend_sys_path = .
    """,
    "alembic/env.py": """
        from alembic import context
        from app.db import engine

        with engine.connect() as connection:
            context.configure(connection=connection)
            with context.begin_transaction():
                context.run_migrations()
    """,
    "alembic/versions/0001_items.py": """
        from alembic import op

        revision, down_revision = "0001", None

        def upgrade():
            op.execute("CREATE EXTENSION IF NOT EXISTS citext")
            op.execute("CREATE TABLE items (id serial PRIMARY KEY, name citext NOT NULL)")

        def downgrade():
            op.execute("DROP TABLE items")
    """,
    "tests/test_items.py": """
        import json, os, sys, urllib.request
        from sqlalchemy import text
        from app.db import engine

        def test_an_item_comes_back():
            with engine.begin() as connection:
                connection.execute(text("INSERT INTO items (name) VALUES ('lamp')"))
            answer = urllib.request.urlopen(os.environ["API_URL"] + "/api/v1/items")
            assert json.load(answer) == ["lamp"]

        def test_it_runs_where_the_application_does():
            assert sys.prefix.endswith("/shop/.venv")
    """,
    "docker-compose.yml": """
        services:
          db:
            image: postgres:16
            environment: {POSTGRES_DB: shopdb, POSTGRES_USER: keeper, POSTGRES_PASSWORD: x}
    """,
}


def make_environment(folder: Path) -> Path:
    """A virtual environment with the packages that these tests run with; what is installed there in place is not
    among them, as a .pth file is followed only in the environment's own folder. Its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def nv(workspace: Path) -> Path:
    """The program, from a wheel in an environment of its own."""
    folder = Path(tempfile.mkdtemp(dir=workspace))
    folder.chmod(0o755)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    python = make_environment(folder / "nv")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    return python.parent / "nv"


class Stranger(Project):
    """Somebody's project, driven by nv."""

    def __init__(self, folder: Path, cache: Path, program: Path) -> None:
        self.folder, self.root, self.program = folder, folder / "shop", program
        self.python, self.user, self.commands = str(program.parent / "python"), None, []
        for name, content in SHOP.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(content).lstrip())
        self.state_base = folder / "state"
        self.db_port, self.pgb_port, self.api_port = free_ports(3)
        self.env = self.surroundings(cache)

    def command(self, *args: str) -> list[str]:
        return [str(self.program), *args]

    def files(self) -> dict[str, str]:
        """What the project's people have written."""
        return {name: hashlib.sha256((self.root / name).read_bytes()).hexdigest() for name in SHOP}


@pytest.fixture(scope="module")
def shop(workspace: Path, cache: Path, nv: Path) -> Iterator[Stranger]:
    with directory_of_its_own(workspace) as folder, ended(Stranger(folder, cache, nv)) as made:
        make_environment(made.root / ".venv")
        yield made


def test_without_a_file_of_settings_it_says_how_to_come_by_one(shop: Stranger) -> None:
    refused = shop.inv("dev.up", expect=2)
    assert f"there is no invoke.yaml in {shop.root}, nor in a folder above it" in refused.stderr
    assert "nv dev.init" in refused.stderr
    assert shop.inv("--version").stdout.startswith("nv 0.")
    assert "dev.init " in shop.inv("--list").stdout
    assert "Write the invoke.yaml" in shop.inv("--help", "dev.init").stdout


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}


def test_the_wheel_has_everything_and_nothing_that_would_hide_a_project_s_own(nv: Path) -> None:
    (site,) = nv.parent.parent.glob("lib/python*/site-packages")
    assert names(site / "devstack/templates") == names(ROOT / "templates")
    sources = {p.relative_to(ROOT) for f in ("devstack", "tasks") for p in (ROOT / f).rglob("*.py")}
    assert {p for p in sources if not (site / p).is_file()} == set()
    assert not (site / "api").exists()


def test_a_stranger_s_project_is_adopted_as_it_is(shop: Stranger) -> None:
    before = shop.files()
    shown = shop.inv("--dry", "dev.init").stdout
    assert not (shop.root / "invoke.yaml").exists()
    answer = json.loads(shop.inv("dev.init", "app/..", "--json").stdout)
    assert (shop.root / "invoke.yaml").read_text() == shown
    found = {one["path"]: one["value"] for one in answer["settings"]}
    assert (answer["written"], answer["file"], answer["missing"]) == (True, str(shop.root / "invoke.yaml"), [])
    assert found == {
        "db.name": "shopdb",
        "db.user": "keeper",
        "db.extensions": ["citext"],
        "api.app": "app.main:app",
        "api.dir": ".",
        "api.python": ".venv/bin/python",
        "api.url_scheme": "postgresql+psycopg2",
        "api.env.SECRET_KEY": "$jwt_secret",
        "api.env.POSTGRES_USER": "$db_user",
        "api.env.POSTGRES_PASSWORD": "$db_password",
        "api.env.POSTGRES_SERVER": "$db_host",
        "api.env.POSTGRES_PORT": "$db_port",
        "api.env.POSTGRES_DB": "$db_name",
        "api.health_path": "/api/v1/utils/health-check",
        "api.detail_path": "",
        "api.metrics_path": "",
        "data.embed": "",
    }
    assert "is there already" in shop.inv("dev.init", expect=2).stderr
    assert "invoke.yaml" in shop.inv("dev.init", "--force").stdout

    root, shop.root = shop.root, shop.root / "app"  # from a folder below, as well
    assert "nv-api" in shop.inv("dev.up").stdout
    shop.root = root
    assert shop.http("/api/v1/utils/health-check") == (200, {"one": 1})
    shop.inv("data.migrate")
    assert "0001 (head) (current)" in shop.inv("data.migrate", "--status").stdout
    # the plugin of this package is listed there through the path that is borrowed, and is not importable
    done = shop.inv(
        "dev.exec", "--", "python", "-m", "pytest", "-p", "no:cacheprovider", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    )
    assert "2 passed" in done.stdout
    shop.inv("dev.exec", "--", "sh", "-c", "exit 7", expect=7)
    assert shop.query("SELECT name FROM items", user="keeper", dbname="shopdb") == [("lamp",)]
    assert shop.files() == before


@pytest.mark.slow
def test_the_package_s_templates_serve_and_a_project_s_own_wins(shop: Stranger) -> None:
    rendered = shop.state / "config" / "pgbouncer.ini"
    assert "own line" not in rendered.read_text()
    own = shop.root / "templates" / "pgbouncer.ini"
    own.parent.mkdir()
    try:
        own.write_text("; own line\n" + (ROOT / "templates" / "pgbouncer.ini").read_text())
        shop.inv("dev.up")
        assert rendered.read_text().startswith("; own line\n")
    finally:
        shutil.rmtree(own.parent)


def test_what_it_tells_people_to_type_is_what_is_there(shop: Stranger) -> None:
    shop.inv("api.stop")
    said = shop.inv("health", expect=None).stdout
    assert "nv api.start" in said
    assert "inv " not in said
    shop.inv("dev.up")


@pytest.mark.slow
def test_an_editor_runs_it_whatever_tasks_the_project_has_itself(shop: Stranger) -> None:
    own, made = shop.root / "tasks.py", shop.root / ".vscode"
    own.write_text("raise SystemExit('not these')\n")
    try:
        shop.inv("dev.ide", "--vscode")
        health = next(t for t in json.loads((made / "tasks.json").read_text())["tasks"] if t["label"] == "nv: health")
        command = [health["command"], *health["args"]]
        done = subprocess.run(command, cwd=shop.root, env=shop.env, capture_output=True, text=True, timeout=60)
        assert "Database (nv-db)" in done.stdout, done.stderr
    finally:
        own.unlink()
        shutil.rmtree(made)


@pytest.mark.slow
def test_a_database_without_extensions_is_looked_at_like_any_other(shop: Stranger) -> None:
    said = shop.inv("health", expect=None, INVOKE_DB_EXTENSIONS="").stdout
    assert "Database (nv-db)" in said
    assert "a query failed" not in said


@pytest.mark.slow
def test_an_interpreter_without_uvicorn_is_named_with_what_installs_it(shop: Stranger, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = str(tmp_path / "bare/bin/python")
    refused = shop.inv("api.start", expect=1, INVOKE_API_PYTHON=python)
    assert "No module named uvicorn" in refused.stderr
    assert f"fix:   install uvicorn there: uv pip install --python {python} uvicorn" in refused.stderr
    shop.inv("dev.up")
