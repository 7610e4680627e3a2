"""An application of the user's own: another folder, another virtual environment, other variables and health path."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import Project

SOURCE = """
import os

import pg8000.native
from fastapi import FastAPI
from sqlalchemy_free import NAME

app = FastAPI()


@app.get("/status/alive")
def alive():
    connection = pg8000.native.Connection(
        os.environ["POSTGRES_USER"], host=os.environ["POSTGRES_SERVER"], port=int(os.environ["POSTGRES_PORT"]),
        password=os.environ["POSTGRES_PASSWORD"], database=os.environ["POSTGRES_DB"])
    try:
        (rows,) = connection.run("SELECT inet_server_port()"),
        return {
            "alive": True,
            "name": NAME,
            "server_port": rows[0][0],
            "pooled_port": int(os.environ["POSTGRES_PORT"]),
            "scheme": os.environ["SQLALCHEMY_DATABASE_URI"].split("://")[0],
            "direct": os.environ["DIRECT"].rsplit(":", 1)[1],
            "dollar": os.environ["PRICE"],
            "from_dotenv": os.environ["FROM_DOTENV"],
            "prefix": __import__("sys").prefix,
        }
    finally:
        connection.close()
"""


@pytest.fixture(scope="module")
def application(workspace: Path) -> Path:
    """A package below src/, with a virtual environment that has nothing of the stack's own."""
    folder = workspace / "their app"
    package = folder / "src" / "theirs"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "server.py").write_text(SOURCE)
    (folder / "src" / "sqlalchemy_free.py").write_text('NAME = "theirs"\n')
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    install = ["install", "-q", "--no-compile", "fastapi", "uvicorn", "pg8000"]
    subprocess.run([sys.executable, "-m", "pip", "--python", folder / ".venv/bin/python", *install], check=True)
    return folder


def test_it_runs_from_its_folder_with_its_interpreter_and_variables(project: Project, application: Path) -> None:
    yaml = project.root / "invoke.yaml"
    before = yaml.read_text()
    head, _, tail = before.partition("api:\n")
    _, _, after = tail.partition("\ndata:\n")
    section = f"""\
      app: theirs.server:app
      dir: "{application / "src"}"
      python: "{application / ".venv/bin/python"}"
      url_scheme: postgresql+asyncpg
      health_path: /status/alive
      reload: false
      env:
        POSTGRES_SERVER: $db_host
        POSTGRES_PORT: $db_port
        POSTGRES_USER: $db_user
        POSTGRES_PASSWORD: $db_password
        POSTGRES_DB: $db_name
        SQLALCHEMY_DATABASE_URI: $database_url
        DIRECT: $direct_url
        PRICE: 5$$
    """
    indented = textwrap.indent(textwrap.dedent(section), "  ")
    yaml.write_text(f"{head}api:\n{indented}\ndata:\n{after}")
    (project.root / ".env").write_text("FROM_DOTENV='with spaces # kept'\n")

    project.inv("dev.up")
    status, answer = project.http("/status/alive")
    assert status == 200
    assert answer == {
        "alive": True,
        "name": "theirs",
        "server_port": project.db_port,
        "pooled_port": project.pgb_port,
        "scheme": "postgresql+asyncpg",
        "direct": f"{project.db_port}/nina",
        "dollar": "5$",
        "from_dotenv": "with spaces # kept",
        "prefix": str(application / ".venv"),
    }


@pytest.mark.slow
def test_variables_alone_point_to_it_too(project: Project, application: Path) -> None:
    refused = project.inv(
        "dev.up",
        expect=1,
        INVOKE_API_APP="theirs.server:app",
        INVOKE_API_DIR=str(application / "src"),
        INVOKE_API_PYTHON=str(application / ".venv/bin/python"),
        INVOKE_API_HEALTH_PATH="/status/alive",
        INVOKE_STACK_START_TIMEOUT="5",
    )
    # it runs there, and misses the variables that were not given
    assert "answered 500" in refused.stderr
    assert "KeyError: 'POSTGRES_USER'" in refused.stderr
