"""The Python that a project's application runs with, and who installs its packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from devstack.adoption.tree import Tree
from devstack.shell import argv

FOLDERS = (".venv", "venv", "env", ".env")
SECONDS = 20
"""For an answer of poetry or pipenv, which take one or two."""
LOOK = """
import importlib.util, json, sys
print(json.dumps([sys.version.split()[0], *(importlib.util.find_spec(name) is not None for name in sys.argv[1:])]))
"""


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
        cd = f"cd {argv([place])} && "
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
    for command, why in _asked(tool):
        if (python := _answer(command, folder, environ) / "bin" / "python").is_absolute() and os.access(
            python, os.X_OK
        ):
            return python, f"{why} says so; the path is of this machine"
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = Path(environ.get(variable, ""))
        python = prefix / "bin" / "python"
        if environ.get(variable) and os.access(python, os.X_OK) and not _is_own(prefix):
            return python, f"{variable} is set; the path is of this machine"
    return None


def _is_own(prefix: Path) -> bool:
    import sys

    return prefix.resolve() == Path(sys.prefix).resolve()


def _asked(tool: Tool | None) -> Iterator[tuple[list[str], str]]:
    if tool and tool.name == "poetry":
        yield ["poetry", "env", "info", "--path"], "`poetry env info --path`"
    if tool and tool.name == "pipenv":
        yield ["pipenv", "--venv"], "`pipenv --venv`"


def _answer(command: list[str], folder: Path, environ: Mapping[str, str]) -> Path:
    if not (program := shutil.which(command[0])):
        return Path()
    try:
        done = subprocess.run(
            [program, *command[1:]],
            cwd=folder,
            env={name: value for name, value in environ.items() if name != "VIRTUAL_ENV"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return Path()
    return Path((done.stdout.strip().splitlines() or [""])[-1]) if done.returncode == 0 else Path()


def has(python: Path, *packages: str) -> tuple[str, list[str]]:
    """An interpreter's version, and which of these packages it lacks; no version if it does not run."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", LOOK, *packages], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        version, *there = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return "", list(packages)
    return str(version), [package for package, here in zip(packages, there, strict=True) if not here]
