"""The files of a project."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from devstack.envfile import checked, read_env_file
from devstack.files import read_regular

SKIPPED = {"node_modules", "site-packages", "__pycache__", "build", "dist"}
BESIDE = {
    "test",
    "tests",
    "testing",
    "doc",
    "docs",
    "docs_src",
    "example",
    "examples",
    "sample",
    "samples",
    "benchmarks",
}
"""Folders whose modules are not the application."""
MARKERS = ("pyproject.toml", "requirements.txt", "setup.py", "setup.cfg", "Pipfile", "alembic.ini")
"""What is in a folder that people work in."""
MAX_FILES = 20_000
MAX_TOML = 250_000
"""Longest TOML file that is read, in characters."""
MAX_DOTS = 1_000
"""Most dots in a line of one: tomllib takes quadratic time for the parts of a key."""


@dataclass(frozen=True)
class Source:
    """A module that could be read."""

    path: Path
    tree: ast.Module


class Tree:
    """A project's folder; hidden folders, virtual environments and other people's packages are left out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unread: list[tuple[Path, str]] = []
        """Modules that can't be read, with the reason."""
        self._tomls: dict[Path, dict[str, Any]] = {}
        self._dotenvs: dict[Path, dict[str, str]] = {}

    @cached_property
    def files(self) -> list[Path]:
        """In the order of their depth, then of their names."""
        found: list[Path] = []
        for folder, folders, names in os.walk(self.root):
            here = Path(folder)
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and name not in SKIPPED and not (here / name / "pyvenv.cfg").exists()
            )
            # no links that lead nowhere, as editors leave them beside a file
            found += (path for name in names if (path := here / name).is_file())
            if len(found) > MAX_FILES:
                break
        return sorted(found, key=lambda path: (len(path.parts), path))

    @cached_property
    def sources(self) -> dict[Path, Source]:
        """The application's modules."""
        return {source.path: source for source in self._sources()}

    def _sources(self) -> Iterator[Source]:
        for path in self.files:
            if path.suffix != ".py" or self.is_beside(path):
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of theirs: an escape in a string that is none
                    yield Source(path, ast.parse(self.content(path), str(path)))
            except SyntaxError as error:
                version = ".".join(map(str, sys.version_info[:2]))
                self.unread.append((path, f"line {error.lineno}: {error.msg}, says Python {version}"))
            except (ValueError, OSError, RecursionError, MemoryError) as error:
                self.unread.append((path, getattr(error, "strerror", "") or str(error) or "it is nested too deeply"))

    @cached_property
    def packages(self) -> set[Path]:
        """The folders that modules are in, or below."""
        return {folder for path in self.sources for folder in self.folders_to(path.parent)}

    def is_beside(self, path: Path) -> bool:
        """Whether a module is a test, an example or documentation rather than the application."""
        *folders, name = path.relative_to(self.root).parts
        return bool(BESIDE & set(folders)) or name.startswith("test_") or name in ("conftest.py", "setup.py")

    def shown(self, path: Path) -> str:
        """A path as people of the project name it."""
        return os.path.relpath(path, self.root)

    def text(self, path: Path) -> str:
        """A file's text; empty if there is none, or none that can be read."""
        try:
            return self.content(path).decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            if (problem := (path, error.strerror or str(error))) not in self.unread:
                self.unread.append(problem)
            return ""

    def content(self, path: Path) -> bytes:
        """Return a file's content: all that is read of a project is read here.

        :raises OSError: it is not there, not a regular file of the project, or too large.
        """
        return read_regular(path, within=self.root)

    def dotenv(self, path: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the variables of a ``.env`` file of the project; none if there is no such file.

        :param environ: the caller's variables that values are filled in from. Without them nothing of the caller gets
            into a file that is written from these values.
        :raises UsageError: it can't be read, or a line can't be used.
        """
        if environ:
            return checked(read_env_file(path, environ, within=self.root)).values
        if path not in self._dotenvs:
            found = checked(read_env_file(path, {}, within=self.root))
            self._dotenvs[path] = msgspec.structs.replace(found, outside={}).values
        return self._dotenvs[path]

    def toml(self, path: Path) -> dict[str, Any]:
        """What a TOML file says; nothing if it can't be read."""
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        if path not in self._tomls:
            text = self.text(path)
            content: dict[str, Any] = {}
            if len(text) <= MAX_TOML and not any(line.count(".") > MAX_DOTS for line in text.splitlines()):
                with contextlib.suppress(tomllib.TOMLDecodeError, RecursionError):
                    content = tomllib.loads(text)
            self._tomls[path] = content
        return self._tomls[path]

    def folders_to(self, folder: Path) -> list[Path]:
        """A folder and those above it, up to the project's own."""
        return [place for place in [folder, *folder.parents] if place.is_relative_to(self.root)]


def is_name(text: str) -> bool:
    """Whether a file or folder of this name can be a module."""
    return re.fullmatch(r"[A-Za-z_]\w*", text) is not None
