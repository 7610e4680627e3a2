"""The images that are built here: what goes into a build, and a name that changes whenever that does."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from devstack.errors import UsageError
from devstack.runtimes.containers import BASE
from devstack.settings import Settings

CONTAINERFILE = "Containerfile"
CONTAINERS = "containers"
"""The folder of the templates that containers are made of."""
BUNDLE = "ca-bundle.crt"
"""In the build's folder; empty unless ``stack.ca_bundle`` is set."""
SERVER = "uvicorn"
PACKAGE = re.compile(r"[A-Za-z0-9][\w.-]*")
LOCAL = re.compile(r"(-e|--editable)\b|\.{0,2}/|\.(\[|$)")
"""A line of requirements.txt that is no package from elsewhere: the source is there anyway."""


class Build(Struct, frozen=True):
    """A build's folder and arguments."""

    name: str
    files: Mapping[str, str]
    arguments: Mapping[str, str]

    @property
    def tag(self) -> str:
        """The image's name, with a digest of all that it is built from: one that is there needs no build."""
        return f"{self.name}:{_digest(tuple(sorted(self.files.items())), tuple(sorted(self.arguments.items())))[:12]}"


@functools.lru_cache
def _digest(files: tuple[tuple[str, str], ...], arguments: tuple[tuple[str, str], ...]) -> str:
    """A command asks for the same one many times, and a bundle of certificates is large."""
    return hashlib.sha256(repr((list(files), list(arguments))).encode()).hexdigest()


def pgbouncer(settings: Settings) -> Build:
    """nv-pgbouncer's image.

    :raises UsageError: ``stack.ca_bundle`` can't be read.
    """
    files = {CONTAINERFILE: _containerfile(settings, "pgbouncer"), BUNDLE: _bundle(settings)}
    return Build("localhost/nv-pgbouncer", files, {BASE: settings.pgb.base_image})


def api(settings: Settings) -> Build:
    """nv-api's image: the packages that the application asks for.

    :raises UsageError: it says nowhere which, or ``stack.ca_bundle`` can't be read.
    """
    folder = settings.application
    files = {
        CONTAINERFILE: _containerfile(settings, "api"),
        "requirements.txt": "\n".join(requirements(folder)) + "\n",
        BUNDLE: _bundle(settings),
    }
    return Build("localhost/nv-api", files, {BASE: settings.api.base_image})


def _containerfile(settings: Settings, name: str) -> str:
    return (settings.templates / f"{CONTAINERS}/{name}.Containerfile").read_text(encoding="utf-8")


def _bundle(settings: Settings) -> str:
    if not settings.stack.ca_bundle:
        return ""
    path = settings.root / Path(settings.stack.ca_bundle).expanduser()
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            f"the certificates in {path} can't be read",
            why=f"{error.strerror}; stack.ca_bundle names it, from {settings.origin('stack.ca_bundle')}",
            fix="name a file of certificates (PEM), or leave stack.ca_bundle empty",
        ) from None


def requirements(folder: Path) -> list[str]:
    """The packages that an application asks for, in its folder or the one above, and the server that runs it.

    :raises UsageError: neither folder has a requirements.txt, or a pyproject.toml with dependencies.
    """
    for place in (folder, folder.parent):
        for name, read in (("requirements.txt", _from_text), ("pyproject.toml", _from_project)):
            file = place / name
            if file.is_file() and (found := list(read(file))):
                names = {match[0].lower() for line in found if (match := PACKAGE.match(line))}
                return found if SERVER in names else [*found, SERVER]
    raise UsageError(
        f"nobody says which packages the application in {folder} needs",
        why="neither it nor the folder above has a requirements.txt, or a pyproject.toml with dependencies",
        fix="write one; or set api.image to an image that has them, and uvicorn",
    )


def _from_text(file: Path) -> Iterator[str]:
    """https://pip.pypa.io/en/stable/reference/requirements-file-format/"""
    for line in file.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if included := re.match(r"(?:-r|--requirement)[ =]*(\S+)", text):
            other = file.parent / included[1]
            if not other.is_file():
                raise UsageError(f"{file} names {included[1]}, which is not there", fix=f"correct {file}")
            yield from _from_text(other)
        elif text and not LOCAL.match(text):
            yield text


def _from_project(file: Path) -> Iterator[str]:
    """https://packaging.python.org/en/latest/specifications/pyproject-toml/#dependencies-optional-dependencies"""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} can't be read", why=str(error), fix="mend the file") from None
    listed = content.get("project", {}).get("dependencies", [])
    yield from listed or _from_poetry(content.get("tool", {}).get("poetry", {}).get("dependencies", {}))


def _from_poetry(dependencies: Mapping[str, Any]) -> Iterator[str]:
    """https://python-poetry.org/docs/dependency-specification/"""
    for name, given in dependencies.items():
        details = given if isinstance(given, Mapping) else {"version": given}
        version = details.get("version", "*")
        elsewhere = {"path", "git", "url"} & details.keys()
        if name.lower() == "python" or details.get("optional") or elsewhere or not isinstance(version, str):
            continue
        extras = f"[{','.join(details['extras'])}]" if details.get("extras") else ""
        limits = ",".join(filter(None, (_limit(part.strip()) for part in version.split(","))))
        yield f"{name}{extras}{limits}"


def _limit(text: str) -> str:
    """A constraint of poetry's as pip takes it: ``^1.2`` is from 1.2 to below 2, ``~1.2`` to below 1.3."""
    if text in ("", "*"):
        return ""
    if text[0] in "<>=!":
        return text
    version = text.lstrip("^~ ")
    if text[0] not in "^~":
        return f"=={version}"
    numbers = [int(part) for part in re.findall(r"\d+", version)[:3]]
    first = next((i for i, number in enumerate(numbers) if number), len(numbers) - 1)
    place = first if text[0] == "^" else min(1, len(numbers) - 1)
    above = ".".join(map(str, [*numbers[:place], numbers[place] + 1]))
    return f">={version},<{above}"
