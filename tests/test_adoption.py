"""What is found out about somebody's project by reading it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from devstack.adoption import compose
from devstack.adoption.document import document, scalar
from devstack.adoption.findings import Findings, Found
from devstack.adoption.names import FREE_STEPS, STEPS
from devstack.adoption.survey import Survey
from devstack.adoption.writing import root_of
from devstack.errors import UsageError
from devstack.settings import load, yaml_entries
from tests.conftest import ROOT

APP = "from fastapi import FastAPI\napp = FastAPI()\n"
HEALTH = '@app.get("/health")\ndef health(): return {}\n'


def look(root: Path, files: dict[str, str], *, app: str = "", **environ: str) -> Findings:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content))
    return Survey(root, environ, app).findings()


def settings(found: Findings) -> dict[str, Any]:
    return {one.path: one.value for one in found.settings}


def env(found: Findings) -> dict[str, Any]:
    return {p.removeprefix("api.env."): v for p, v in settings(found).items() if p.startswith("api.env.")}


def missing(found: Findings) -> str:
    return "\n".join(f"{one.what} -> {one.fix}" for one in found.missing)


# applications


@pytest.mark.parametrize(
    ("files", "app", "folder"),
    [
        ({"main.py": APP}, "main:app", "."),
        ({"app/__init__.py": "", "app/main.py": APP}, "app.main:app", "."),
        # without __init__.py, the imports tell from where modules are named
        ({"app/main.py": APP + "from app.routers import x\n", "app/routers.py": "x = 1"}, "app.main:app", "."),
        (
            {"backend/pyproject.toml": "", "backend/app/__init__.py": "", "backend/app/main.py": APP},
            "app.main:app",
            "backend",
        ),
        ({"main.py": "import fastapi as f\nservice = f.FastAPI(title='x')\n"}, "main:service", "."),
        ({"main.py": "from fastapi import FastAPI as F\napp: F = F()\n"}, "main:app", "."),
        ({"main.py": "from fastapi import FastAPI\nclass Mine(FastAPI): ...\napi = Mine()\n"}, "main:api", "."),
        ({"pkg/__init__.py": APP}, "pkg:app", "."),
        ({"main.py": f"try:\n    pass\nfinally:\n{textwrap.indent(APP, '    ')}"}, "main:app", "."),
    ],
)
def test_the_application_object_and_where_it_runs(tmp_path: Path, files: dict[str, str], app: str, folder: str) -> None:
    found = settings(look(tmp_path, files))
    assert (found["api.app"], found["api.dir"]) == (app, folder)


FACTORY = """
from fastapi import FastAPI
def create_app(debug: bool = False) -> FastAPI:
    app = FastAPI()
    return app
"""


@pytest.mark.parametrize(
    ("files", "app"),
    [
        ({"shop/__init__.py": "", "shop/factory.py": FACTORY}, "shop.factory:create_app()"),
        # what is made of it is taken rather than the function
        (
            {
                "shop/__init__.py": "",
                "shop/factory.py": FACTORY,
                "shop/asgi.py": "from shop.factory import create_app\napplication = create_app()\n",
            },
            "shop.asgi:application",
        ),
        ({"main.py": FACTORY + "app = create_app(True)\n"}, "main:app"),
    ],
)
def test_a_factory(tmp_path: Path, files: dict[str, str], app: str) -> None:
    assert settings(look(tmp_path, files))["api.app"] == app


def test_a_function_that_needs_something_is_no_factory(tmp_path: Path) -> None:
    found = look(tmp_path, {"main.py": "from fastapi import FastAPI\ndef make(config): return FastAPI()\n"})
    assert "api.app" not in settings(found)
    assert "a FastAPI object" in missing(found)


def test_below_src_it_runs_where_its_people_work(tmp_path: Path) -> None:
    found = look(
        tmp_path,
        {
            "pyproject.toml": "[project]\nname='shop'\n",
            "alembic.ini": "[alembic]\nscript_location = migrations\n",
            "src/shop/__init__.py": "",
            "src/shop/api.py": f"from shop.db import x\n{APP}",
            "src/shop/db.py": "x = 1\n",
        },
    )
    assert (settings(found)["api.app"], settings(found)["api.dir"]) == ("shop.api:app", ".")
    assert env(found)["PYTHONPATH"] == "$dir/src"


def test_of_several_the_one_that_a_command_starts_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    files = {
        "main.py": APP,
        "admin/__init__.py": "",
        "admin/server.py": APP,
        "tests/app.py": APP,
        "Dockerfile": 'CMD ["uvicorn", "admin.server:app", "--host", "0.0.0.0"]\n',
    }
    found = look(tmp_path, files)
    assert settings(found)["api.app"] == "admin.server:app"
    assert "which Dockerfile starts" in next(one.why for one in found.settings if one.path == "api.app")
    assert found.notes == ["other applications: app in main.py; --app package.module:name takes one of them"]
    assert settings(look(tmp_path, {}, app="main:app"))["api.app"] == "main:app"
    for other in ("other:app", "ain:app"):
        with pytest.raises(UsageError, match=f"--app {other} was not found") as refused:
            look(tmp_path, {}, app=other)
    assert "there is app in main.py" in refused.value.evidence


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("Procfile", "web: uvicorn second:app --port $PORT"),
        ("compose.yaml", "services:\n  web:\n    build: .\n    command: uvicorn second:app\n"),
        ("run.py", "import uvicorn\nuvicorn.run('second:app', reload=True)\n"),
        ("Makefile", "dev:\n\tfastapi dev second.py\n"),
        ("Dockerfile", 'CMD ["fastapi", "run", "--workers", "4", "second.py"]\n'),
        ("pyproject.toml", '[tool.fastapi]\nentrypoint = "second:app"\n'),
    ],
)
def test_who_says_which_is_started(tmp_path: Path, name: str, command: str) -> None:
    found = look(tmp_path, {"main.py": APP, "second.py": APP, name: command})
    assert settings(found)["api.app"] == "second:app"


def test_one_that_is_mounted_is_a_part_of_another(tmp_path: Path) -> None:
    files = {"aaa.py": APP + HEALTH, "server.py": f"from aaa import app as inner\n{APP}app.mount('/v1', inner)\n"}
    found = look(tmp_path, files)
    assert settings(found)["api.app"] == "server:app"
    assert settings(found)["api.health_path"] == "/v1/health"


def test_what_can_not_be_read_is_said_and_what_is_not_theirs_left_out(tmp_path: Path) -> None:
    (tmp_path / ".#main.py").symlink_to("somebody@here.4711")
    os.mkfifo(tmp_path / "waits.py")
    files = {
        "main.py": APP,
        "broken.py": "def x(:\n",
        "env/pyvenv.cfg": "",
        "env/lib/aaa.py": APP,
        "node_modules/x/app.py": APP,
    }
    found = look(tmp_path, files)
    assert settings(found)["api.app"] == "main:app"
    assert [note for note in found.notes if note.startswith("broken.py can't be read: line 1")]
    assert not [note for note in found.notes if "other applications" in note]


# routes


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (HEALTH, "/health"),
        ('@app.get("/healthz", tags=["x"])\ndef h(): ...\n', "/healthz"),
        ('@app.api_route("/ping", methods=["GET", "HEAD"])\ndef h(): ...\n', "/ping"),
        ('def h(): ...\napp.add_api_route("/livez", h)\n', "/livez"),
        (
            'r = APIRouter(prefix="/ops")\n@r.get("/ready")\ndef h(): ...\napp.include_router(r, prefix="/api")\n',
            "/api/ops/ready",
        ),
        (
            'V = "/v2"\nr = APIRouter()\napp.include_router(r, prefix=f"{V}/x")\n@r.get("/health/")\ndef h(): ...\n',
            "/v2/x/health/",
        ),
        (
            'r = APIRouter()\nfor o in (r,):\n    app.include_router(o, prefix="/a")\n@r.get("/up")\ndef h(): ...\n',
            "/a/up",
        ),
        ('def routes(a):\n    @a.get("/status")\n    def s(): ...\nroutes(app)\n', "/status"),
        # the open one rather than the one that asks who it is
        ('@app.get("/health")\ndef h(u=Depends(get_current_user)): ...\n@app.get("/ping")\ndef p(): ...\n', "/ping"),
    ],
)
def test_the_health_route(tmp_path: Path, body: str, path: str) -> None:
    found = look(tmp_path, {"main.py": f"from fastapi import APIRouter, Depends\n{APP}{body}"})
    assert settings(found)["api.health_path"] == path
    assert "health route" not in missing(found)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ("", "/openapi.json"),
        ('@app.post("/health")\ndef h(): ...\n@app.get("/x/{name}/health")\ndef i(): ...\n', "/openapi.json"),
        # a prefix that is known only when it runs
        ('r = APIRouter()\n@r.get("/health")\ndef h(): ...\napp.include_router(r, prefix=prefix())\n', "/openapi.json"),
        ('r = APIRouter()\n@r.get("/health")\ndef h(): ...\n', "/openapi.json"),
    ],
)
def test_without_one_its_description_answers_and_that_is_said(tmp_path: Path, body: str, path: str) -> None:
    found = look(tmp_path, {"main.py": f"from fastapi import APIRouter\n{APP}{body}"})
    assert settings(found)["api.health_path"] == path
    assert "a health route -> add one" in missing(found)


def test_a_prefix_from_the_settings_through_three_modules_and_a_factory(tmp_path: Path) -> None:
    files = {
        "app/__init__.py": "",
        "app/config.py": """
            from pydantic_settings import BaseSettings
            class Settings(BaseSettings):
                API_PREFIX: str = "/api/v1"
            settings = Settings()
        """,
        "app/routers/__init__.py": "from .health import router as health_router\n",
        "app/routers/health.py": """
            from fastapi import APIRouter
            router = APIRouter(prefix="/utils")
            @router.get("/health-check/")
            async def check(): ...
        """,
        "app/main.py": """
            from fastapi import FastAPI
            from app.config import settings
            from app.routers import health_router
            def create_app():
                app = FastAPI(openapi_url=f"{settings.API_PREFIX}/openapi.json")
                app.include_router(health_router, prefix=settings.API_PREFIX)
                return app
        """,
    }
    found = settings(look(tmp_path, files))
    assert (found["api.app"], found["api.health_path"]) == ("app.main:create_app()", "/api/v1/utils/health-check/")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ("", ""),
        (
            "import prometheus_fastapi_instrumentator as p\np.Instrumentator().instrument(app).expose(app)\n",
            "/metrics",
        ),
        ("from prometheus_client import make_asgi_app\napp.mount('/metrics', make_asgi_app())\n", "/metrics/"),
        ("@app.get('/internal/metrics')\ndef m(): ...\n", "/internal/metrics"),
    ],
)
def test_the_path_of_its_figures(tmp_path: Path, body: str, path: str) -> None:
    assert settings(look(tmp_path, {"main.py": APP + body}))["api.metrics_path"] == path


# variables


def test_the_parts_of_a_database_that_its_settings_ask_for(tmp_path: Path) -> None:
    source = """
        from pydantic import Field, PostgresDsn
        from pydantic_settings import BaseSettings, SettingsConfigDict
        class Settings(BaseSettings):
            model_config = SettingsConfigDict(env_prefix="shop_")
            postgres_server: str
            postgres_port: int = 5432
            postgres_password: str = Field(...)
            name: str = "shop"
            api_key: str
            dsn: PostgresDsn = Field(validation_alias="SQLALCHEMY_DATABASE_URI")
            session_secret: str
    """
    found = look(tmp_path, {"main.py": APP, "config.py": source})
    assert env(found) == {
        "SHOP_POSTGRES_SERVER": "$db_host",
        "SHOP_POSTGRES_PORT": "$db_port",
        "SHOP_POSTGRES_PASSWORD": "$db_password",
        "SQLALCHEMY_DATABASE_URI": "$database_url",
        "SHOP_SESSION_SECRET": "$jwt_secret",
    }
    assert "can't start without: SHOP_API_KEY -> write them into .env" in missing(found)


def test_settings_within_settings(tmp_path: Path) -> None:
    source = """
        from pydantic import BaseModel
        from pydantic_settings import BaseSettings
        class Database(BaseModel):
            host: str
            user: str = "x"
        class Base(BaseSettings):
            class Config:
                env_nested_delimiter = "__"
            db: Database
    """
    found = look(tmp_path, {"main.py": APP, "config.py": source})
    assert env(found) == {"DB__HOST": "$db_host", "DB__USER": "$db_user"}


def test_variables_that_are_read_plainly(tmp_path: Path) -> None:
    source = """
        import os
        from os import environ, getenv
        host, name = os.environ["DB_HOST"], environ.get("DB_NAME", "shop")
        test = os.environ["TEST_DATABASE_URL"]
        redis = getenv("REDIS_PASSWORD")
        key = os.environ["STRIPE"]
    """
    found = look(tmp_path, {"main.py": APP, "config.py": source})
    assert env(found) == {"DB_HOST": "$db_host", "DB_NAME": "$db_name"}
    assert settings(found)["db.name"] == "shop"
    assert "STRIPE, TEST_DATABASE_URL" in missing(found)


def test_a_file_of_variables_names_user_and_driver_and_one_that_is_only_an_example_is_to_be_copied(
    tmp_path: Path,
) -> None:
    files = {
        "main.py": APP,
        "config.py": "import os\nuri, key = os.environ['SQLALCHEMY_DATABASE_URI'], os.environ['MAIL_KEY']\n",
        ".env.example": "SQLALCHEMY_DATABASE_URI=postgresql+asyncpg://owner:x@db:5432/orders\nMAIL_KEY=x\n",
    }
    found = look(tmp_path, files)
    assert {key: settings(found)[key] for key in ("db.name", "db.user", "api.url_scheme")} == {
        "db.name": "orders",
        "db.user": "owner",
        "api.url_scheme": "postgresql+asyncpg",
    }
    assert env(found) == {"SQLALCHEMY_DATABASE_URI": "$database_url"}
    assert "MAIL_KEY -> cp .env.example .env" in missing(found)
    assert "MAIL_KEY" not in missing(look(tmp_path, {".env": "MAIL_KEY=x\n"}))


def test_two_urls_with_two_drivers(tmp_path: Path) -> None:
    text = "DATABASE_URL=postgresql+asyncpg://a:b@h/n\nALEMBIC_DATABASE_URL=postgresql+psycopg2://a:b@h/n\n"
    found = look(tmp_path, {"main.py": APP, ".env": text})
    assert settings(found)["api.url_scheme"] == "postgresql+asyncpg"
    assert env(found) == {
        "ALEMBIC_DATABASE_URL": "postgresql+psycopg2://$db_user:$db_password@$db_host:$db_port/$db_name"
    }


@pytest.mark.parametrize(
    ("source", "packages", "scheme"),
    [
        ("u = url.replace('postgresql://', 'postgresql+asyncpg://')\n", "asyncpg", None),
        (
            "from sqlalchemy.ext.asyncio import create_async_engine\ne = create_async_engine(u)\n",
            "asyncpg",
            "postgresql+asyncpg",
        ),
        ("from sqlalchemy import create_engine\ne = create_engine(u)\n", "psycopg[binary]", "postgresql+psycopg"),
        ("from sqlalchemy import create_engine\ne = create_engine(u)\n", "psycopg2-binary", None),
        ("import asyncpg\n", "asyncpg", None),
    ],
)
def test_the_driver_that_a_url_names(tmp_path: Path, source: str, packages: str, scheme: str | None) -> None:
    found = look(tmp_path, {"main.py": APP, "db.py": source, "requirements.txt": f"fastapi\n{packages}\n"})
    assert settings(found).get("api.url_scheme") == scheme


def test_a_damaged_file_of_variables_and_a_value_that_is_no_setting_are_said(tmp_path: Path) -> None:
    found = look(tmp_path, {"main.py": APP, ".env": "no equals sign\n"})
    assert missing(found).count(".env:1 is malformed") == 1
    found = look(tmp_path, {".env": "LOG_LEVEL=loud\n"})
    assert "api.log_level: 'loud'" in missing(found)


# the database, by a compose file

COMPOSE = """
    services:
      cache:
        image: redis:7
        ports: ["6379:6379"]
      db:
        image: pgvector/pgvector:pg16
        environment:
          - POSTGRES_DB=${DB:-orders}
          - POSTGRES_USER=clerk
          - POSTGRES_PASSWORD=secret
        ports: ["127.0.0.1:5439:5432"]
      backend:
        build: .
        ports: [{target: 80, published: 8000}]
"""


def test_the_database_of_a_compose_file(tmp_path: Path) -> None:
    found = look(tmp_path, {"main.py": APP, "docker-compose.yml": COMPOSE})
    said = settings(found)
    assert {k: said[k] for k in ("db.name", "db.user", "db.port", "db.extensions", "api.port")} == {
        "db.name": "orders",
        "db.user": "clerk",
        "db.port": 5439,
        "db.extensions": ["vector"],
        "api.port": 8000,
    }
    assert "secret" not in document(found)
    assert settings(look(tmp_path, {".env": "DB=other\n"}))["db.name"] == "other"
    override = "services:\n  backend:\n    ports: ['8001:8000']\n    command: [fastapi, run, --reload, main.py]\n"
    assert (
        settings(look(tmp_path, {"docker-compose.yml": "", "docker-compose.override.yml": override}))["api.port"]
        == 8001
    )


def test_names_and_ports_that_are_the_system_s_own_are_not_taken(tmp_path: Path) -> None:
    text = """
        services:
          db:
            image: postgres:16-alpine
            environment: {POSTGRES_DB: postgres, POSTGRES_USER: postgres}
            ports: ["5432:5432"]
    """
    root = tmp_path / "My Shop"
    found = settings(look(root, {"main.py": APP, "compose.yaml": text}))
    assert (found["db.name"], found["db.user"], "db.port" in found) == ("my_shop", "my_shop", False)


def test_a_compose_file_that_can_not_be_read_is_passed_over(tmp_path: Path) -> None:
    for text in ("a: [", "- list\n", "services: [x]\n", "services: {x: 1, y: {ports: 5, environment: 7}}\n"):
        assert settings(look(tmp_path, {"main.py": APP, "compose.yaml": text}))["api.app"] == "main:app"


# packages


@pytest.mark.parametrize(
    ("files", "fix"),
    [
        (
            {"requirements.txt": "fastapi\n"},
            "python3 -m venv .venv && .venv/bin/python -m pip install -r requirements.txt",
        ),
        ({"pyproject.toml": "[project]\nname='x'\n"}, ".venv/bin/python -m pip install -e ."),
        ({"pyproject.toml": "[project]\nname='x'\n", "uv.lock": ""}, "uv sync"),
        ({"pyproject.toml": "[tool.poetry]\nname='x'\n"}, "poetry install"),
        ({"Pipfile": "[packages]\nfastapi='*'\n"}, "pipenv install"),
        ({}, "list its packages in requirements.txt"),
    ],
)
def test_without_an_environment_its_tool_makes_one(tmp_path: Path, files: dict[str, str], fix: str) -> None:
    found = look(tmp_path, {"main.py": APP, **files}, PATH="")
    assert "api.python" not in settings(found)
    assert fix in missing(found)
    assert not files or "set api.python to .venv/bin/python\n" in missing(found) + "\n"


def test_an_environment_that_is_there_is_taken_and_what_it_lacks_is_said(tmp_path: Path) -> None:
    import venv

    venv.create(tmp_path / ".venv", with_pip=False, symlinks=True)
    files = {"main.py": APP, "requirements.txt": "fastapi\n", "alembic.ini": "[alembic]\n"}
    found = look(tmp_path, files)
    assert settings(found)["api.python"] == ".venv/bin/python"
    assert "the application's packages: .venv/bin/python does not have them" in missing(found)


def test_uvicorn_alone_is_lacking(tmp_path: Path) -> None:
    import venv

    venv.create(tmp_path / ".venv", with_pip=False, symlinks=True)
    (site,) = (tmp_path / ".venv").glob("lib/python*/site-packages")
    (site / "fastapi.py").touch()
    found = look(tmp_path, {"main.py": APP, "uv.lock": ""})
    assert "uvicorn: .venv/bin/python does not have it" in missing(found)
    assert found.missing[0].fix.endswith("uv add uvicorn")


# what must not happen: nothing of the project runs, and nothing that is no file is read


def spy(path: Path, canary: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\ntouch {canary}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("files", "planted"),
    [
        ({}, ".venv/bin/python"),
        ({"requirements.txt": "fastapi\n"}, "env/bin/python"),
        ({".pdm-python": "{root}/elsewhere/bin/python\n", "pdm.lock": ""}, "elsewhere/bin/python"),
        ({"pyproject.toml": "[tool.poetry]\nname='x'\n", "poetry.toml": "[virtualenvs]\n"}, "bin/poetry"),
        ({"Pipfile": "[packages]\n"}, "bin/pipenv"),
    ],
)
def test_no_program_is_run_for_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], planted: str
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/project/bin", prepend=os.pathsep)
    root, canary = tmp_path / "project", tmp_path / "canary"
    spy(root / planted, canary)
    files = {name: text.replace("{root}", str(root)) for name, text in files.items()}
    look(root, {"main.py": APP, **files}, HOME=str(tmp_path))
    assert not canary.exists()


def test_the_version_and_the_packages_are_read_from_the_environment_s_files(tmp_path: Path) -> None:
    site = tmp_path / ".venv/lib/python3.12/site-packages"
    spy(tmp_path / ".venv/bin/python", tmp_path / "canary")
    (site / "fastapi").mkdir(parents=True)
    (site / "uvicorn-0.34.0.dist-info").mkdir()  # one that is installed in place has only that
    (tmp_path / ".venv/pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.4\n")
    found = look(tmp_path, {"main.py": APP, "alembic.ini": "[alembic]\n"})
    assert [one.why for one in found.settings if one.path == "api.python"] == [
        "the virtual environment in .venv, Python 3.12.4"
    ]
    assert "alembic: .venv/bin/python does not have it" in missing(found)
    (site / "more.pth").write_text("import os; os.mkdir('canary')\n../more\n")
    (tmp_path / ".venv/lib/python3.12/more/alembic").mkdir(parents=True)
    assert "alembic" not in missing(look(tmp_path, {}))
    (tmp_path / ".venv/pyvenv.cfg").unlink()
    assert "Python 3.12" in next(one.why for one in look(tmp_path, {}).settings if one.path == "api.python")
    assert not (tmp_path / "canary").exists()


def test_a_folder_that_is_no_environment_is_said(tmp_path: Path) -> None:
    spy(tmp_path / ".venv/bin/python", tmp_path / "canary")
    assert "it has no pyvenv.cfg and no packages" in missing(look(tmp_path, {"main.py": APP}))


@pytest.mark.parametrize(
    ("files", "home"),
    [
        # the names are those that poetry 1.8 and pipenv 2024 give to environments of these paths
        ({"pyproject.toml": "[tool.poetry]\nname='My Shop'\n"}, ".cache/pypoetry/virtualenvs/my_shop-{32}-py3.11"),
        ({"Pipfile": "[packages]\n"}, ".local/share/virtualenvs/shop-{6}"),
    ],
)
def test_poetry_s_and_pipenv_s_environments_are_found_without_asking_them(
    tmp_path: Path, files: dict[str, str], home: str
) -> None:
    import base64
    import hashlib

    root = tmp_path / "shop"
    for size, path in (("{32}", root), ("{6}", root / "Pipfile")):
        digest = hashlib.sha256(str(path).encode()).digest()[: int(size[1:-1])]
        home = home.replace(size, base64.urlsafe_b64encode(digest).decode()[:8])
    spy(tmp_path / home / "bin/python", tmp_path / "canary")
    (tmp_path / home / "pyvenv.cfg").write_text("version_info = 3.11.2.final.0\n")
    found = look(root, {"main.py": APP, **files}, HOME=str(tmp_path))
    assert settings(found)["api.python"] == str(tmp_path / home / "bin/python")
    assert not (tmp_path / "canary").exists()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [".env", ".env.example", "compose.yaml", "pyproject.toml", "main.py", "alembic.ini"])
@pytest.mark.parametrize("kind", ["fifo", "huge", "device", "outside", "loop"])
def test_what_is_no_file_of_the_project_neither_hangs_nor_is_read(tmp_path: Path, name: str, kind: str) -> None:
    root, secret = tmp_path / "project", tmp_path / "secret"
    secret.write_text("SECRET_WORD=canary\n")
    root.mkdir()
    if kind == "fifo":
        os.mkfifo(root / name)
    elif kind == "huge":
        with (root / name).open("wb") as file:
            file.truncate(10**12)  # sparse
    else:
        (root / name).symlink_to({"device": Path("/dev/zero"), "outside": secret, "loop": root / name}[kind])
    found = look(root, {"app.py": APP})
    assert "canary" not in document(found)
    assert settings(found)["api.app"] == "app:app"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        BOMB + "services: {db: {image: postgres, environment: {X: *j}, command: *j}}\n",
        "services: &s {db: *s}\n",
        "services: " + "[" * 5_000 + "]" * 5_000 + "\n",
        "a0: &a0 {k: v}\n" + "".join(f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 9)}]}}\n" for n in range(12)),
    ],
)
def test_a_small_yaml_that_stands_for_billions_of_values_is_passed_over(tmp_path: Path, text: str) -> None:
    found = look(tmp_path, {"main.py": APP, "compose.yaml": text})
    assert settings(found)["api.app"] == "main:app"
    assert any("compose.yaml can't be read" in note for note in found.notes)


def test_an_env_file_of_a_compose_file_is_one_of_the_project(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("POSTGRES_PASSWORD=canary\nPOSTGRES_DB=canary\n")
    compose = "services: {db: {image: 'postgres:17', env_file: [../secret, SECRET]}}\n".replace(
        "SECRET", str(tmp_path / "secret")
    )
    found = look(tmp_path / "project", {"main.py": APP, "compose.yaml": compose})
    assert "canary" not in document(found)


# migrations

ENV = """
from alembic import context
from sqlalchemy import engine_from_config
engine_from_config(context.config.get_section('x'))
"""


def test_alembic_where_the_application_runs_needs_no_setting_and_elsewhere_it_does(tmp_path: Path) -> None:
    ini = "[alembic]\nscript_location = migrations\nsqlalchemy.url = driver://x\n"
    found = look(
        tmp_path / "a", {"main.py": APP, "alembic.ini": ini, "migrations/env.py": "import os\nos.environ['X']\n"}
    )
    assert not [path for path in settings(found) if path.startswith("data.migrate")]
    assert "migrations" not in missing(found)
    found = look(tmp_path / "b", {"backend/pyproject.toml": "", "backend/main.py": APP, "db/alembic.ini": ini})
    assert settings(found)["data.migrate"] == "cd ../db && python -m alembic upgrade head"
    assert settings(found)["data.migrate_down"] == "cd ../db && python -m alembic downgrade -$steps"


def test_an_env_py_with_the_url_of_its_ini_alone_would_migrate_another_database(tmp_path: Path) -> None:
    ini = "[alembic]\nscript_location = %(here)s/alembic\nsqlalchemy.url = postgresql://localhost/x\n"
    found = look(tmp_path, {"main.py": APP, "alembic.ini": ini, "alembic/env.py": ENV})
    assert "alembic/env.py takes its URL from alembic.ini alone" in missing(found)


def test_the_extensions_that_migrations_create(tmp_path: Path) -> None:
    files = {
        "main.py": APP,
        "models.py": "from pgvector.sqlalchemy import Vector\n",
        "migrations/1.py": "op.execute('CREATE EXTENSION IF NOT EXISTS \"uuid-ossp\"')\n",
        "migrations/2.sql": "create extension citext;\n",
        "tests/x.py": "'CREATE EXTENSION hstore'\n",
    }
    assert settings(look(tmp_path, files))["db.extensions"] == ["vector", "uuid-ossp", "citext"]


# the file


@pytest.mark.parametrize(
    "value", ["", "a b", "yes", "null", "- x", "#x", "a: b", "1.5", "*x", "{x", "ü", "~", "0x1", "a:"]
)
def test_text_stays_text_in_the_file(value: str) -> None:
    from invoke.vendor.yaml import safe_load

    assert safe_load(f"x: {scalar(value)}") == {"x": value}  # type: ignore[no-untyped-call]
    assert safe_load(f"x: {scalar([value, 1, True])}") == {"x": [value, 1, True]}  # type: ignore[no-untyped-call]


def test_the_whole_file(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    found = look(root, {"main.py": APP + HEALTH, "db.py": "import os\nos.environ['DB_HOST']\n"})
    text = document(found)
    head, _, rest = text.partition("\ndb:\n")
    assert "# Not found:\n#   a virtual environment" in head
    assert f"db:\n{rest}" == textwrap.dedent("""\
        db:
          name: shop      # the project's folder
          user: shop      # as the database; no role of PostgreSQL's own
          extensions: []  # none is created or used

        api:
          app: main:app         # app in main.py
          dir: .                # its modules are named from here
          health_path: /health  # health() in main.py
          detail_path: ""       # there is no /health/detailed
          metrics_path: ""      # there is no path of figures for Prometheus
          env:
            DB_HOST: $db_host   # db.py

        data:
          embed: ""  # no function of the application that makes a text a vector is known
    """)


def test_the_file_is_what_the_stack_reads(tmp_path: Path) -> None:
    from invoke.vendor.yaml import safe_load

    found = look(
        tmp_path, {"main.py": APP, "docker-compose.yml": COMPOSE, "db.py": "import os\nos.environ['DB_HOST']\n"}
    )
    read = load(yaml_entries(safe_load(document(found)), "the file"), tmp_path)  # type: ignore[no-untyped-call]
    assert (read.db.name, read.api.app, read.api.env) == ("orders", "main:app", {"DB_HOST": "$db_host"})


def test_a_comment_can_not_end_early() -> None:
    found = Findings(root="/x", settings=[Found("api.app", "a:b", "in a\nfile: x")], missing=[], notes=["a\nb: c"])
    from invoke.vendor.yaml import safe_load

    assert safe_load(document(found)) == {"api": {"app": "a:b"}}  # type: ignore[no-untyped-call]


def test_the_folder_is_the_one_that_is_given_or_the_git_checkout_s_or_here(tmp_path: Path) -> None:
    here = tmp_path / "repo" / "backend"
    here.mkdir(parents=True)
    assert root_of("", here) == here
    (tmp_path / "repo" / ".git").mkdir()
    assert root_of("", here) == tmp_path / "repo"
    assert root_of(".", here) == here
    with pytest.raises(UsageError, match="is no folder"):
        root_of("nowhere", here)


def test_git_would_show_what_the_stack_writes(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    found = look(tmp_path, {"main.py": APP, ".gitignore": "/logs/\n"})
    assert found.notes == ["git would show what the stack writes: put backups/ into .gitignore"]


@pytest.mark.parametrize(
    "words", [["dev.init", "FOLDER"], ["dev.init", "--path", "FOLDER"], ["dev.init", "--app=main:app", "FOLDER"]]
)
def test_the_folder_is_a_word_of_its_own_or_a_flag_s(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "main.py").write_text(APP)
    given = [str(tmp_path) if word == "FOLDER" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "invoke", *given], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "app: main:app" in (tmp_path / "invoke.yaml").read_text()
    assert f"cd {tmp_path} && nv dev.up" in done.stdout


def test_there_is_no_such_folder(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "invoke", "dev.init", str(tmp_path / "x")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "it does not exist" in done.stderr


# projects that are made to keep us busy: the sizes are such that work of quadratic or exponential time takes hours


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("main.py", "\n" * 900_000),
        ("main.py", " \n" * 450_000),
        ("schema.sql", "create extension " * 50_000),
        ("requirements.txt", "\n" * 900_000),
        ("pyproject.toml", "\n" * 900_000),
        ("pyproject.toml", ".".join("a" * 400_000) + " = 1"),
        ("pyproject.toml", "a = " + "[" * 100_000),
        ("alembic.ini", "[alembic]\na" + " " * 900_000 + "b"),
        (".env", "A=b" + " " * 900_000 + "c"),
        (".env", "INVOKE_API_ENV=" + "[" * 100_000),
        (".env", "JWT" * 300_000 + "=x"),
        ("main.py", f'import os\nos.environ["{"JWT" * 300_000}"]\n'),
        ("main.py", f"{APP}@app.get('/')\ndef f({'current_' * 100_000}): ...\n"),
        ("main.py", f"x = {' + '.join('a' * 900)}\n" + "x" + ".x" * 900),
        ("main.py", "if a: ...\n" + "elif a: ...\n" * 1_500),
        ("main.py", f"{APP}@app.get('/')\ndef f(a={'+'.join('1' * 900)}): ...\n"),
    ],
    ids=lambda value: None if len(value) > 20 else value,
)
def test_a_file_that_is_made_for_it_keeps_nobody_waiting(tmp_path: Path, name: str, content: str) -> None:
    look(tmp_path, {"alembic.ini": "", "service.py": APP, name: content})


def chained(first: str, line: str, *, times: int = 6, last: str = "l") -> str:
    """Return lines for each of a dozen names, several times, that lead from it to the next one."""
    letters = "abcdefghijkl"
    names = letters[: letters.index(last) + 1]
    return first + "".join(line.format(a=a, b=b) * times for a, b in pairwise(names))


SETTINGS_CHAIN = (
    "from pydantic_settings import BaseSettings\nclass l: x: str\n"
    + "".join(
        f"class {a}:\n" + "".join(f"    {b}{n}: {b}\n" for n in range(40)) for a, b in pairwise("abcdefghijkl"[-5:])
    )
    + "class S(BaseSettings):\n    model_config = {'env_nested_delimiter': '__'}\n    h: h\n"
)
TANGLES = {
    "names": chained("from fastapi import FastAPI\n", "{a} = {b}\n") + "app = FastAPI(openapi_url=a)\nl = '/x.json'\n",
    "different names": APP
    + "".join(f"{a}{n} = {b}{m}\n" for a, b in pairwise("abcdefghijkl") for n in range(6) for m in range(6))
    + "@app.get(a1)\ndef f(): ...\n",
    "texts": chained(APP, "{a} = f'{{{b}}}{{{b}}}{{{b}}}{{{b}}}'\n", times=1)
    + "l = 'x' * 9\n@app.get(a)\ndef f(): ...\n",
    "long texts": chained(APP, "{a} = {b} + {b} + {b}\n", times=1) + f"l = '{'x' * 900}'\n@app.get(a)\ndef f(): ...\n",
    "functions": chained("", "def {a}(): return {b}()\n") + "app = a()\n",
    "several returns": chained("", "def {a}():\n" + "    return {b}()\n" * 6, times=1) + "app = a()\n",
    "routers": f"{APP}from fastapi import APIRouter\nr0 = APIRouter()\n"
    + "".join(
        f"r{n} = APIRouter()\nr{n}.include_router(r{n - 1}, prefix='/a')\nr{n}.include_router(r{n - 1}, prefix='/b')\n"
        for n in range(1, 45)
    )
    + "app.include_router(r44)\n",
    "a long row of routers": f"{APP}from fastapi import APIRouter\nr0 = app\n"
    + "".join(f"r{n} = APIRouter()\nr{n - 1}.include_router(r{n})\n" for n in range(1, 2_000)),
    "bases": chained("class l: ...\n", "class {a}({b}, {b}): ...\n", times=1, last="k")
    + "".join(f"class X{n}({', '.join(f'X{n + 1}_{m}' for m in range(200))}): ...\n" for n in range(5)),
    "many bases": "".join(
        f"class x{n}_{m}({', '.join(f'x{n + 1}_{k}' for k in range(50))}): ...\n" for n in range(6) for m in range(50)
    ),
    "settings": SETTINGS_CHAIN,
    "settings within each other": "from pydantic_settings import BaseSettings\nclass a:\n    b: b\nclass b:\n    a: a\n"
    "class S(BaseSettings):\n    model_config = {'env_nested_delimiter': '__'}\n    a: a\n",
}


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("source", TANGLES.values(), ids=TANGLES.keys())
def test_names_that_lead_to_each_other_in_many_ways_keep_nobody_waiting(tmp_path: Path, source: str) -> None:
    with contextlib.suppress(UsageError):
        look(tmp_path, {"main.py": source})


def test_names_that_are_bound_several_times_are_followed_all_the_same(tmp_path: Path) -> None:
    found = look(tmp_path, {"main.py": TANGLES["names"]})
    assert settings(found)["api.health_path"] == "/x.json"


def test_following_names_takes_a_bounded_number_of_steps(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(TANGLES["routers"])
    with pytest.raises(UsageError, match="can't be followed"):
        Survey(tmp_path, {}).findings()
    (tmp_path / "main.py").write_text(TANGLES["names"])
    survey = Survey(tmp_path, {})
    survey.findings()
    bindings = 6 * 11 + 3
    assert survey.names.steps > FREE_STEPS + STEPS * bindings - 10_000


def test_a_loop_over_many_routers_is_followed(tmp_path: Path) -> None:
    routers = "".join(f"r{n} = APIRouter()\n@r{n}.get('/{n}')\ndef f{n}(): ...\n" for n in range(150))
    loop = f"for r in [{', '.join(f'r{n}' for n in range(150))}]:\n    app.include_router(r)\n"
    health = "@r149.get('/health')\ndef health(): ...\n"
    found = look(tmp_path, {"main.py": f"from fastapi import APIRouter\n{APP}{routers}{health}{loop}"})
    assert settings(found)["api.health_path"] == "/health"


@pytest.mark.variations
@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize(
    "content",
    [
        f'services: {{a: {{image: "{"${a-" * 60_000}"}}}}',
        f'A: &a "{"${a-" * 12_000}"\nservices:\n' + "".join(f"  s{n}: {{image: *a}}\n" for n in range(20)),
        f'services: {{a: {{image: "{"${" * 120_000}"}}}}',
        f'services: {{a: {{image: "{"$A" * 120_000}"}}}}',
        f'A: &a "{"x" * 100_000}"\nservices: {{a: {{command: [{", ".join(["*a"] * 40_000)}]}}}}',
        f"services: {{a: {{image: postgres, ports: ['{'9' * 5_000}:5432', '²:5432']}}}}",
        f"services: {{a: {{image: postgres, env_file: [{', '.join(['.env'] * 40_000)}]}}}}",
    ],
    ids=["open braces", "aliases of them", "open", "long values", "long texts", "ports", "files"],
)
def test_a_compose_file_that_is_made_for_it_keeps_nobody_waiting(tmp_path: Path, content: str) -> None:
    look(tmp_path, {"compose.yaml": content, ".env": f"A={'x' * 500_000}\n" + "B=1\n" * 100_000})


@pytest.mark.parametrize(
    ("text", "filled_in"),
    [
        ("${A}-$A-$$A", "1-1-$A"),
        ("${A:-x}${B:-x}${B-x}${B}", "1xx"),
        ("${A:+x}${B+x}", "x"),
        ("${A:?is missing}${B?}", "1"),
        ("${B:-${A}}", "${A}"),
        ("${B:-$A}", "$A"),
        ("${B:-x", "${B:-x"),
        ("${", "${"),
        ("${A:}$", "${A:}$"),
        ("${B-a}}${A", "a}${A"),
        ("${ A}", "${ A}"),
    ],
)
def test_variables_of_a_compose_file(text: str, filled_in: str) -> None:
    assert compose.filled(text, {"A": "1"}) == filled_in
