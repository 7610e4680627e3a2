"""What a compose file says of the database, and of the port that the application is known by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from devstack.adoption.tree import Tree
from devstack.files import load_yaml

NAMES = tuple(
    f"{stem}{middle}.{ending}"
    for stem in ("compose", "docker-compose")
    for middle in ("", ".override", ".dev", ".local", "-dev", "-local")
    for ending in ("yaml", "yml")
)
POSTGRES = re.compile(r"(^|/)(postgres|pgvector|postgis|timescaledb?(-ha)?|postgresql)(:|@|$)")
VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?P<how>:?[-?+])?|(?P<named>\w+)|(?P<dollar>\$))")
"""A variable, up to the text that takes its place: https://docs.docker.com/reference/compose-file/interpolation/"""
PORT = re.compile(r"[0-9]{1,5}")
MAX_SERVICES = 200
"""Most services of a file that are looked at."""
MAX_ENV_FILES = 20
"""Most files of variables of a service that are read."""
MAX_FILLED = 10_000
"""Longest text that comes of one with variables, in characters; the rest is left off."""


class Service(Struct, frozen=True):
    """A service of a compose file."""

    file: str
    name: str
    image: str
    environment: Mapping[str, str]
    ports: list[tuple[int, int]] = field(default_factory=list)
    """Of this machine, and inside."""
    command: str = ""
    builds: bool = False

    @property
    def is_postgres(self) -> bool:
        return POSTGRES.search(self.image) is not None


def services(tree: Tree, dotenv: Mapping[str, str]) -> list[Service]:
    """All services; later files say more of the earlier ones' and are left apart."""
    return [service for name in NAMES for service in _read(tree, tree.root / name, dotenv)]


def _read(tree: Tree, path: Path, dotenv: Mapping[str, str]) -> Iterator[Service]:
    from invoke.vendor.yaml import YAMLError

    text = tree.text(path)
    try:
        content = load_yaml(text, tree.shown(path))
    except YAMLError:
        return
    except ValueError as error:
        tree.unread.append((path, str(error)))
        return
    found = content.get("services") if isinstance(content, Mapping) else None
    services = islice(found.items(), MAX_SERVICES) if isinstance(found, Mapping) else ()
    for name, given in services:
        if isinstance(given, Mapping):
            command = given.get("command") or ""
            yield Service(
                file=tree.shown(path),
                name=str(name),
                image=filled(str(given.get("image") or ""), dotenv),
                environment=dict(_environment(tree, given, dotenv)),
                ports=[port for item in _list(given.get("ports")) if (port := _port(item, dotenv))],
                command=" ".join(map(str, command)) if isinstance(command, list) else str(command),
                builds="build" in given,
            )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _environment(tree: Tree, given: Mapping[str, Any], dotenv: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    from devstack.errors import StackError

    for item in _list(given.get("env_file"))[:MAX_ENV_FILES]:
        name = item.get("path") if isinstance(item, Mapping) else item
        try:
            yield from tree.dotenv(tree.root / str(name)).items()
        except StackError:
            continue
    values = given.get("environment") or {}
    if isinstance(values, list):
        values = dict(str(line).partition("=")[::2] for line in values if "=" in str(line))
    if isinstance(values, Mapping):
        for name, value in values.items():
            if value is not None:
                yield str(name), filled(str(value), dotenv)


def _port(item: Any, dotenv: Mapping[str, str]) -> tuple[int, int] | None:
    """https://docs.docker.com/reference/compose-file/services/#ports"""
    if isinstance(item, Mapping):
        text = f"{item.get('published', '')}:{item.get('target', '')}"
    else:
        text = filled(str(item), dotenv).partition("/")[0]
    *_, here, inside = ["", *text.split(":")]
    return (int(here), int(inside)) if PORT.fullmatch(here) and PORT.fullmatch(inside) else None


def filled(text: str, variables: Mapping[str, str]) -> str:
    """Return a text with its variables filled in; one that nothing gives stays empty.

    Each character is looked at a few times only, however many braces are left open.
    """
    parts: list[str] = []
    at = room = 0
    last = text.rfind("}")
    for match in VARIABLE.finditer(text):
        if match.start() < at:
            continue  # in the text that takes the place of another
        value, end = "$", match.end()
        if not match["dollar"]:
            value = variables.get(match["braced"] or match["named"], "")
        if match["braced"]:
            if end > last or (not match["how"] and text[end] != "}"):
                continue
            other, end = text[end : (close := text.index("}", end))], close + 1
            how = (match["how"] or "")[-1:]
            value = (other if value else "") if how == "+" else value or (other if how == "-" else "")
        parts += (text[at : match.start()], value)
        at = end
        room += len(value)
        if room > MAX_FILLED:
            break
    return "".join([*parts, text[at:]])[: max(MAX_FILLED, len(text))]
