"""The Python that a project's application runs with, and who installs its packages."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from devstack.adoption.tree import Tree
from devstack.files import read_regular
from devstack.shell import typed

FOLDERS = (".venv", "venv", "env", ".env")
_CACHES = {"darwin": "Library/Caches"}
"""Directory of caches below the home directory; on Linux .cache."""


class Tool(Struct, frozen=True):
    """Who installs the packages, and what to type: ``make`` for the environment, ``add`` for one package more."""

    name: str
    make: str
    add: str
    python: Path
    """The interpreter that ``make`` brings."""


def tool_of(tree: Tree, folder: Path) -> Tool | None:
    """The packages' tool, by the files in the application's folder or one above; None if no file names packages."""
    for place in tree.folders_to(folder):
        project = tree.toml(place / "pyproject.toml")
        tools = project.get("tool", {})
        cd = f"cd {typed(place)} && "
        there = {name for name in ("uv.lock", "poetry.lock", "pdm.lock", "Pipfile") if (place / name).is_file()}

        def tool(name: str, make: str, add: str, cd: str = cd, place: Path = place) -> Tool:
            return Tool(name, cd + make, cd + add, place / ".venv" / "bin" / "python")

        if "uv.lock" in there or "uv" in tools:
            return tool("uv", "uv sync", "uv add uvicorn")
        if "poetry.lock" in there or "poetry" in tools:
            made = "poetry config --local virtualenvs.in-project true && poetry install"
            return tool("poetry", made, "poetry add uvicorn")
        if "pdm.lock" in there or "pdm" in tools:
            return tool("pdm", "pdm install", "pdm add uvicorn")
        if "Pipfile" in there:
            return tool("pipenv", "PIPENV_VENV_IN_PROJECT=1 pipenv install --dev", "pipenv install uvicorn")
        pip = ".venv/bin/python -m pip install"
        if (place / "requirements.txt").is_file():
            return tool("pip", f"python3 -m venv .venv && {pip} -r requirements.txt", f"{pip} uvicorn")
        if "project" in project or (place / "setup.py").is_file():
            return tool("pip", f"python3 -m venv .venv && {pip} -e .", f"{pip} uvicorn")
    return None


def interpreter_of(tree: Tree, folder: Path, tool: Tool | None, environ: Mapping[str, str]) -> tuple[Path, str] | None:
    """The interpreter of the application's own environment, and why this one; None if it has none."""
    for place in tree.folders_to(folder):
        for name in FOLDERS:
            python = place / name / "bin" / "python"
            if os.access(python, os.X_OK):
                return python, f"the virtual environment in {tree.shown(place / name)}"
        named = tree.text(place / ".pdm-python").strip()
        if named and os.access(named, os.X_OK):
            return Path(named), ".pdm-python names it"
    for prefix, why in _by_tool(tree, folder, tool, environ):
        if os.access(prefix / "bin" / "python", os.X_OK):
            return prefix / "bin" / "python", f"{why}; the path is of this machine"
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = Path(environ.get(variable, ""))
        python = prefix / "bin" / "python"
        if environ.get(variable) and os.access(python, os.X_OK) and not _is_own(prefix):
            return python, f"{variable} is set; the path is of this machine"
    return None


def _is_own(prefix: Path) -> bool:
    return prefix.resolve() == Path(sys.prefix).resolve()


def _by_tool(tree: Tree, folder: Path, tool: Tool | None, environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Yield where poetry or pipenv keep a project's virtual environment, unless they are told otherwise.

    They are not asked: poetry reads settings of the project, and runs the plugins that those name.
    """
    home = Path(environ.get("HOME") or "/")
    for place in tree.folders_to(folder):
        if tool and tool.name == "poetry":
            # poetry, utils/env/env_manager.py: generate_env_name
            project = tree.toml(place / "pyproject.toml")
            name = project.get("project", {}).get("name") or project.get("tool", {}).get("poetry", {}).get("name")
            if not isinstance(name, str):
                continue
            caches = environ.get("POETRY_CACHE_DIR") or home / _CACHES.get(sys.platform, ".cache") / "pypoetry"
            parent = Path(environ.get("POETRY_VIRTUALENVS_PATH") or Path(caches, "virtualenvs"))
            stem = f"{_plain(name.lower())}-{_digest(os.path.realpath(place), 32)}-py"
            found = [path for path in parent.glob("*-py3.*") if path.name.startswith(stem)]
            for path in sorted(found, key=lambda path: int(path.name.rpartition(".")[2] or 0), reverse=True):
                yield path, "poetry keeps this project's virtual environment there"
        elif tool and tool.name == "pipenv":
            # pipenv, project.py: _get_virtualenv_hash
            parent = Path(environ.get("WORKON_HOME") or home / ".local/share/virtualenvs")
            yield (
                parent / f"{_plain(place.name)}-{_digest(str(place / 'Pipfile'), 6)}",
                "pipenv keeps this project's virtual environment there",
            )


def _plain(name: str) -> str:
    return re.sub(r"[ &$`!*@\"()\[\]\\\r\n\t]", "_", name)[:42]


def _digest(text: str, size: int) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(os.fsencode(text)).digest()[:size]).decode()[:8]


def has(python: Path, *packages: str) -> tuple[str, list[str]]:
    """Return an interpreter's version and which of these packages it lacks, by the files around it; no version if
    there is no virtual environment. The interpreter is not run: it is the project's."""
    prefix = python.parent.parent
    try:
        text = read_regular(prefix / "pyvenv.cfg").decode("utf-8", errors="replace")
    except OSError:
        text = ""  # conda has none
    config = {
        key.strip().lower(): value.strip() for key, _, value in (line.partition("=") for line in text.splitlines())
    }
    libraries = sorted(path for path in prefix.glob("lib*/python3*") if (path / "site-packages").is_dir())
    version = config.get("version") or config.get("version_info") or ""
    if not version and libraries:
        version = libraries[-1].name.removeprefix("python")
    match = re.match(r"\d+(\.\d+){1,2}", version)
    if not match:
        return "", list(packages)
    places = [path / "site-packages" for path in libraries]
    if config.get("include-system-site-packages", "").lower() == "true":
        base = Path(config.get("home", "/usr/bin")).parent
        places += [*base.glob("lib/python3*/site-packages"), *base.glob("lib/python3*/dist-packages")]
    places += [path for place in list(places) for path in _added(place)]
    return match[0], [package for package in packages if not any(_has(place, package) for place in places)]


def _added(place: Path) -> Iterator[Path]:
    """Yield the directories that the ``.pth`` files of one add to it; their code is left alone.

    https://docs.python.org/3/library/site.html
    """
    for file in place.glob("*.pth"):
        try:
            lines = read_regular(file).decode("utf-8", errors="replace").splitlines()
        except OSError:
            continue
        yield from (
            place / line
            for line in lines
            if line and "\0" not in line and not line.startswith(("#", "import ", "import\t"))
        )


def _has(place: Path, package: str) -> bool:
    """Check whether a package, or the metadata of one that is installed in place, is among the packages."""
    named = (place / package, place / f"{package}.py")
    return any(path.exists() for path in named) or any(place.glob(f"{package}-*.dist-info"))
