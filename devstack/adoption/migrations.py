"""How a project migrates its database, and which extensions it needs."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterator
from pathlib import Path

from devstack.adoption.findings import Found, Missing
from devstack.adoption.tree import BESIDE, Tree
from devstack.shell import argv

EXTENSION = re.compile(r"create\s+extension\s+(?:if\s+not\s+exists\s+)?[\"'\\]*([a-z][\w-]*)", re.IGNORECASE)
USED = {
    "vector": re.compile(r"^[ \t]*(?:from|import)[ \t]+pgvector\b", re.MULTILINE),
    "postgis": re.compile(r"^[ \t]*(?:from|import)[ \t]+geoalchemy2\b", re.MULTILINE),
    "uuid-ossp": re.compile(r"uuid_generate_v[14]\b"),
}
"""What is used without being created."""
MAX_LINE = 2_000
"""Longest line of alembic.ini, in characters: configparser's patterns take quadratic time."""
TAKES = re.compile(
    r"environ|getenv|settings|config\.(?!get_main_option|config_|get_section|attributes|set_)|get_url|_url\("
)
"""What an env.py has that takes the database's URL from elsewhere than alembic.ini."""


def extensions(tree: Tree) -> dict[str, str]:
    """The extensions of PostgreSQL that a project creates or uses, each with the file that says so."""
    found: dict[str, str] = {}
    for path in tree.files:
        if path.suffix not in (".py", ".sql") or BESIDE & set(path.relative_to(tree.root).parts[:-1]):
            continue
        text = tree.text(path)
        named = [name for name in EXTENSION.findall(text) if name.lower() not in ("plpgsql", "if")]
        for name in [*named, *(name for name, pattern in USED.items() if pattern.search(text))]:
            found.setdefault(name.lower(), tree.shown(path))
    return found


def migrations(tree: Tree, folder: Path) -> Iterator[Found | Missing]:
    """The settings of the section ``data`` for an application that runs in ``folder``."""
    ini = next((path for path in tree.files if path.name == "alembic.ini" and not tree.is_beside(path)), None)
    if (folder / "alembic.ini").is_file():
        ini = folder / "alembic.ini"
    project = next(
        (p for p in tree.files if p.name == "pyproject.toml" and "alembic" in tree.toml(p).get("tool", {})), None
    )
    if ini or project:
        config = ini or project
        assert config
        yield from _alembic(tree, folder, config)
        if ini and (problem := _takes_no_variable(tree, ini)):
            yield problem
        return
    for name, text, commands in (
        ("Aerich", r"^\[tool\.aerich\]", ("aerich upgrade", "aerich history", "aerich downgrade")),
        ("yoyo", r"^yoyo-migrations", ('yoyo apply --batch --database "$DATABASE_URL"', "", "")),
    ):
        for path in tree.files:
            if path.name in ("pyproject.toml", "requirements.txt") and re.search(text, tree.text(path), re.MULTILINE):
                keys = ("data.migrate", "data.migrate_status", "data.migrate_down")
                yield from (
                    Found(key, c, f"{name}, in {tree.shown(path)}") for key, c in zip(keys, commands, strict=True) if c
                )
                return
    yield Missing(
        "migrations: there is no alembic.ini, and no other tool that is known here",
        "set data.migrate to the command that brings the database up to date, should there be one",
    )


def _alembic(tree: Tree, folder: Path, config: Path) -> Iterator[Found]:
    if config.parent == folder and config.name == "alembic.ini":
        return  # found there at every call
    # what it names is relative to the folder that it is called in
    where = "" if config.parent == folder else f"cd {argv([os.path.relpath(config.parent, folder)])} && "
    for key, words in (
        ("data.migrate", "upgrade head"),
        ("data.migrate_status", "history --indicate-current"),
        ("data.migrate_down", "downgrade -$steps"),
    ):
        yield Found(key, f"{where}python -m alembic {words}", f"Alembic, in {tree.shown(config)}")


def _takes_no_variable(tree: Tree, ini: Path) -> Missing | None:
    parser = configparser.RawConfigParser()
    content = tree.text(ini)
    if any(len(line) > MAX_LINE for line in content.splitlines()):
        return None
    try:
        parser.read_string(content)
        location = parser.get("alembic", "script_location", fallback="")
        url = parser.get("alembic", "sqlalchemy.url", fallback="")
    except configparser.Error:
        return None
    env = ini.parent / location.replace("%(here)s", str(ini.parent)) / "env.py"
    text = tree.text(env)
    body = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("#", "from ", "import ")))
    if not url or not text or TAKES.search(body):
        return None
    return Missing(
        f"migrations of this stack's database: {tree.shown(env)} takes its URL from {ini.name} alone",
        'there, before it connects: config.set_main_option("sqlalchemy.url", os.environ["DATABASE_URL"])',
    )
