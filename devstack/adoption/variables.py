"""The variables that a project reads, and what the stack can give for them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from devstack.adoption.names import Names, Scope, called, source_of
from devstack.adoption.tree import Tree
from devstack.envfile import VARIABLE_NAME

PARTS = r"(?:^|_)(?:DATABASE|DB|POSTGRES|POSTGRESQL|PG|PSQL|SQLALCHEMY|SQLALCHEMY_DATABASE)"
MIDDLE = r"(?:_(?:ASYNC|SYNC|MAIN|DEFAULT|PRIMARY|CONNECTION|CONN|SQLALCHEMY))?"
ROLES: Mapping[str, re.Pattern[str]] = {
    role: re.compile(rf"{PARTS}{between}_{{0,2}}(?:{last})$")
    for role, between, last in (
        ("database_url", MIDDLE, r"(?:URL|URI|DSN|CONNECTION_STRING|CONN_STR)(?:_(?:ASYNC|SYNC))?"),
        ("db_host", "", "HOST|HOSTNAME|SERVER|ADDRESS|ADDR"),
        ("db_port", "", "PORT"),
        ("db_user", "", "USER|USERNAME"),
        ("db_password", "", "PASSWORD|PASS|PASSWD|PWD"),
        ("db_name", "", "NAME|DB|DATABASE|DBNAME|DB_NAME|DATABASE_NAME"),
    )
}
"""What a variable is, by its name."""
FOREIGN = re.compile(
    r"(^|_)(TEST|TESTS|TESTING|MONGO|MONGODB|REDIS|MYSQL|MARIADB|SQLITE|ORACLE|MSSQL|CELERY|RABBITMQ|CLICKHOUSE|NEO4J|"
    r"QDRANT|INFLUX|ELASTIC|SENTRY)(_|$)"
)
SECRET = re.compile(r"(SECRET|JWT|SIGNING|SESSION)\w*(KEY|SECRET)$|^(JWT|AUTH)?_?SECRET$|SECRET_KEY$")
URL = re.compile(r"\b(postgres(?:ql)?(?:\+\w+)?)://")
MAX_NAME = 200
"""Longest name that is looked at, in characters: the patterns take quadratic time."""
NESTED = 5
"""Most classes of settings above, or within, each other."""
GIVEN = {"DATABASE_URL", "NINAIVALAIGAL_DATABASE_URL", "NINAIVALAIGAL_JWT_SECRET"}
"""What the stack gives by itself."""
EVERYWHERE = {"PATH", "HOME", "USER", "PWD", "TZ", "LANG", "TMPDIR", "HOSTNAME", "SHELL", "VIRTUAL_ENV", "PYTHONPATH"}


class Variable(Struct, frozen=True):
    """A variable that the source reads; ``needed``: it has no default, and the application fails without it."""

    name: str
    path: Path
    needed: bool
    default: str = ""


def role_of(name: str) -> str:
    """What a variable of this name is for, as a placeholder of ``api.env``; empty if nobody knows."""
    if len(name) > MAX_NAME:
        return ""
    upper = name.upper()
    if FOREIGN.search(upper):
        return ""
    return next((role for role, pattern in ROLES.items() if pattern.search(upper)), "")


def variables(tree: Tree, names: Names) -> dict[str, Variable]:
    """The variables that the application's modules read, by name."""
    found: dict[str, Variable] = {}
    for one in [*_plain(tree, names), *_settings(tree, names)]:
        known = found.get(one.name)
        if known is None or (one.needed and not known.needed):
            found[one.name] = one
    return found


def _plain(tree: Tree, names: Names) -> Iterator[Variable]:
    for path, source in tree.sources.items():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Subscript) and called(node.value) == "environ" and isinstance(node.ctx, ast.Load):
                if name := _name(node.slice):
                    yield Variable(name, path, True)
            elif isinstance(node, ast.Call) and node.args and _reads(node) and (name := _name(node.args[0])):
                default = names.text(Scope(path), node) or ""
                # os.getenv gives None where the others raise
                lenient = called(node) in ("getenv", "get")
                has = len(node.args) > 1 or any(k.arg == "default" for k in node.keywords)
                yield Variable(name, path, not (has or lenient), default)


def _name(node: ast.expr) -> str:
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return text if len(text) <= MAX_NAME and re.fullmatch(r"[A-Z][A-Z0-9_]*", text) else ""


def _reads(node: ast.Call) -> bool:
    """os.getenv, os.environ.get, Starlette's and decouple's config, environs' env and env.str."""
    function = node.func
    if isinstance(function, ast.Name):
        return function.id in ("getenv", "config", "env")
    if not isinstance(function, ast.Attribute):
        return False
    owner = called(function.value)
    return (owner, function.attr) in {("os", "getenv"), ("environ", "get")} or owner == "env"


# pydantic's settings


def _settings(tree: Tree, names: Names) -> Iterator[Variable]:
    """The fields of BaseSettings: https://docs.pydantic.dev/latest/concepts/pydantic_settings/"""
    classes = {
        node.name: (path, node)
        for path, source in tree.sources.items()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
    }

    def is_settings(node: ast.ClassDef, depth: int = 0) -> bool:
        bases = dict.fromkeys(called(base) for base in node.bases)
        names.spend(1 + len(bases))
        if "BaseSettings" in bases:
            return True
        return depth < NESTED and any(base in classes and is_settings(classes[base][1], depth + 1) for base in bases)

    for path, node in classes.values():
        if is_settings(node):
            yield from _fields(
                path, node, classes, names, _config(node, "env_prefix"), _config(node, "env_nested_delimiter")
            )


def _config(node: ast.ClassDef, key: str) -> str:
    """A key of ``model_config`` or of the inner class ``Config``."""
    for item in ast.walk(node):
        if isinstance(item, ast.keyword) and item.arg == key and isinstance(item.value, ast.Constant):
            return str(item.value.value or "")
        if isinstance(item, ast.Assign) and any(isinstance(t, ast.Name) and t.id == key for t in item.targets):
            return str(item.value.value) if isinstance(item.value, ast.Constant) else ""
        if isinstance(item, ast.Dict):
            for name, value in zip(item.keys, item.values, strict=True):
                if isinstance(name, ast.Constant) and name.value == key and isinstance(value, ast.Constant):
                    return str(value.value)
    return ""


def _fields(
    path: Path,
    node: ast.ClassDef,
    classes: Mapping[str, tuple[Path, ast.ClassDef]],
    names: Names,
    prefix: str,
    delimiter: str,
    depth: int = 0,
) -> Iterator[Variable]:
    for item in node.body:
        names.spend(20)  # each is read, named and looked up
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        name, kind = item.target.id, source_of(item.annotation)
        if name.startswith("_") or name == "model_config" or "ClassVar" in kind:
            continue
        if delimiter and kind in classes and kind != node.name and depth < NESTED:
            inner_path, inner = classes[kind]
            yield from _fields(inner_path, inner, classes, names, f"{prefix}{name}{delimiter}", delimiter, depth + 1)
            continue
        aliases = list(_aliases(item.value))
        shown = [alias.upper() for alias in aliases] or [f"{prefix}{name}".upper()]
        default = names.text(Scope(path), item.value) or ""
        for one in shown[:1] if not any(map(role_of, shown)) else [s for s in shown if role_of(s)][:1]:
            if len(one) <= MAX_NAME and VARIABLE_NAME.fullmatch(one):
                yield Variable(one, path, _is_needed(item.value), default)


def _is_needed(value: ast.expr | None) -> bool:
    if value is None:
        return True
    if isinstance(value, ast.Call) and called(value) == "Field":
        first = value.args[0] if value.args else next((k.value for k in value.keywords if k.arg == "default"), None)
        factory = any(k.arg == "default_factory" for k in value.keywords)
        return not factory and (first is None or (isinstance(first, ast.Constant) and first.value is Ellipsis))
    return isinstance(value, ast.Constant) and value.value is Ellipsis


def _aliases(value: ast.expr | None) -> Iterator[str]:
    if isinstance(value, ast.Call) and called(value) == "Field":
        for keyword in value.keywords:
            if keyword.arg in ("alias", "validation_alias", "env"):
                for part in ast.walk(keyword.value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value


# what the values tell


def url_parts(text: str) -> dict[str, str]:
    """The parts of a PostgreSQL URL; nothing of what is none, or is filled in at run time."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return {}
    if not URL.match(text) or re.search(r"[{}$<>]", text):
        return {"scheme": parts.scheme} if URL.match(text) else {}
    given = {"db_user": parts.username, "db_password": parts.password, "db_name": parts.path.strip("/")}
    return {
        "scheme": parts.scheme,
        **{key: unquote(value) for key, value in given.items() if value},
        **({"db_port": str(port)} if port else {}),
    }


def schemes(tree: Tree) -> list[str]:
    """The schemes of PostgreSQL URLs in the source that are no replacement of another."""
    found = []
    for source in tree.sources.values():
        replaced: set[ast.expr] = set()
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and called(node) in ("replace", "sub", "removeprefix", "startswith"):
                texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                if any(URL.match(text) for text in texts):
                    # it makes its own of the plain one
                    found.append(f"={urlsplit(texts[0]).scheme}")
                    replaced.update(node.args)
        for node in ast.walk(source.tree):
            text = node.value if isinstance(node, ast.Constant) and node not in replaced else None
            if isinstance(text, str) and (match := URL.match(text)):
                found.append(match[1])
    return found
