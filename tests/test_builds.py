"""What goes into an image that is built here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from devstack import builds
from devstack.errors import UsageError
from devstack.settings import load, yaml_entries
from tests.conftest import ROOT


def requirements(folder: Path, **files: str) -> list[str]:
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return builds.requirements(folder)


def test_the_packages_that_an_application_lists(tmp_path: Path) -> None:
    text = "fastapi>=0.110  # the framework\n\n# none\n-e .\n./here\n-r more.txt\nuvicorn[standard]\n"
    (tmp_path / "more.txt").write_text("sqlalchemy \\\n  >=2\n")
    assert requirements(tmp_path, requirements_txt=text) == ["fastapi>=0.110", "sqlalchemy    >=2", "uvicorn[standard]"]


def test_the_packages_in_a_pyproject_and_a_server_that_it_leaves_out(tmp_path: Path) -> None:
    text = '[project]\nname = "x"\ndependencies = ["fastapi", "asyncpg"]\n'
    assert requirements(tmp_path, pyproject_toml=text) == ["fastapi", "asyncpg", "uvicorn"]


def test_the_packages_of_poetry(tmp_path: Path) -> None:
    text = """
        [tool.poetry.dependencies]
        python = "^3.11"
        fastapi = "^0.115.2"
        uvicorn = {version = "~0.30", extras = ["standard"]}
        sqlalchemy = "^2.0"
        pydantic = ">=2,<3"
        httpx = "*"
        anyio = "4.1.*"
        extra = {version = "1", optional = true}
        here = {path = "../here"}
    """
    assert requirements(tmp_path, pyproject_toml=text) == [
        "fastapi>=0.115.2,<0.116",
        "uvicorn[standard]>=0.30,<0.31",
        "sqlalchemy>=2.0,<3",
        "pydantic>=2,<3",
        "httpx",
        "anyio==4.1.*",
    ]


def test_the_folder_above_has_them(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("fastapi\n")
    (tmp_path / "app").mkdir()
    assert builds.requirements(tmp_path / "app") == ["fastapi", "uvicorn"]


def test_nobody_says_which(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    with pytest.raises(UsageError, match="nobody says which packages"):
        builds.requirements(tmp_path / "app")


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"names more\.txt, which is not there"):
        requirements(tmp_path, requirements_txt="-r more.txt\n")


def test_what_the_application_here_needs_is_what_the_project_installs() -> None:
    wanted = {line for line in builds.requirements(ROOT / "api") if not line.startswith("#")}
    listed = set(builds._from_project(ROOT / "pyproject.toml"))
    assert wanted <= listed


def test_a_name_changes_with_what_an_image_is_made_of(tmp_path: Path) -> None:
    def tag(**api: str) -> str:
        settings = load(yaml_entries({"api": api, "stack": {}}, "a test"), ROOT)
        return builds.api(settings).tag

    assert tag() == tag()
    assert tag(base_image="python:3.13-slim") != tag()
    assert tag().startswith("localhost/nv-api:")


def test_images_are_named_by_their_version() -> None:
    settings = load(yaml_entries({"stack": {}}, "a test"), ROOT)
    named = [settings.db.image, settings.pgb.base_image, settings.api.base_image]
    files = [*(ROOT / "templates").rglob("*"), ROOT / "invoke.yaml", *(ROOT / "tests/export").glob("*.*")]
    texts = [path.read_text() for path in files if path.is_file()]
    for text in texts:
        named += re.findall(r"^(?:ARG BASE=|FROM )([\w./-]+(?::\S+)?)$", text, re.MULTILINE)
        named += re.findall(r"^\s*(?:image|imageName|Image)[:=]\s*\"?([\w./-]+(?::[\w.-]+)?)", text, re.MULTILINE)
    assert len(named) > 10
    assert [name for name in named if ":" not in name.rpartition("/")[2] or name.endswith(":latest")] == []


def test_certificates_that_can_not_be_read() -> None:
    settings = load(yaml_entries({"stack": {"ca_bundle": "/nowhere.pem"}}, "a test"), ROOT)
    with pytest.raises(UsageError, match=r"/nowhere\.pem can't be read"):
        builds.pgbouncer(settings)
