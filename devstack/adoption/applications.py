"""The FastAPI objects and factories of a project, and which of them it serves."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct, field

from devstack.adoption.names import DEPTH, Import, Names, Place, Scope, called, module_parts
from devstack.adoption.routes import Key, Route, Routes, inside
from devstack.adoption.tree import MARKERS, Tree, is_name

USUAL = ("main.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py")
"""Where `fastapi run` looks, in its order: https://fastapi.tiangolo.com/fastapi-cli/"""
SERVERS = re.compile(r"uvicorn|gunicorn|hypercorn|granian|entrypoint|\bfastapi['\", ]+(?:run|dev)\b")
NAMED = re.compile(r"(?<![\w./:-])([A-Za-z_][\w.]*):([A-Za-z_]\w*)(?:\(\))?(?![\w/:.-])")
RUN = re.compile(r"\bfastapi['\", ]+(?:run|dev)\b[^&|;]*?['\" ]([\w./-]+\.py)\b")
COMMANDS = re.compile(
    r"(Dockerfile|Containerfile|(docker-)?compose|Procfile|Makefile|justfile|pyproject\.toml|launch\.json)|\.(sh|service)$",
    re.IGNORECASE,
)
"""Files that say how a server is started."""
MAX_LINE = 2_000
"""Longest line of such a file that is looked at, in characters: the patterns take quadratic time."""


class Application(Struct, frozen=True):
    """An application that uvicorn could serve."""

    path: Path
    name: str
    factory: bool
    key: Key
    call: ast.Call | None
    """``FastAPI(…)`` itself, where it is to be seen."""
    named: str = ""
    """The file that starts it by name, and so knows."""
    module: str = ""
    """As that file names it."""
    routes: list[Route] = field(default_factory=list)
    mounted: bool = False

    @property
    def what(self) -> str:
        return f"{self.name}()" if self.factory else self.name


def applications(tree: Tree, names: Names, routes: Routes) -> list[Application]:
    """All of them, the likeliest first."""
    mentions = list(dict.fromkeys(_mentions(tree, names)))
    found = []
    for one in _objects(names, routes):
        names.spend(len(mentions))
        found.append(_completed(one, routes, mentions))
    made = {key for one in found if not one.factory for key, _ in routes.parts.get(one.key, [])}
    found = [one for one in found if not (one.factory and one.key in made)]

    def rank(one: Application) -> tuple[bool, bool, bool, int, bool, int, int]:
        shown = tree.shown(one.path)
        usual = next((i for i, name in enumerate(USUAL) if shown == name or shown.endswith(f"/{name}")), len(USUAL))
        return one.mounted, not one.named, one.factory, usual, one.name != "app", len(one.path.parts), -len(one.routes)

    return sorted(found, key=rank)


def _objects(names: Names, routes: Routes) -> Iterator[Application]:
    for scope, bindings in list(names.bindings.items()):
        if scope.function:
            continue
        for name, bounds in bindings.items():
            for bound in bounds:
                if isinstance(bound, ast.Call) and makes_app(names, scope, bound):
                    call = next(_constructors(names, scope, bound), None)
                    yield Application(scope.path, name, False, (scope, name), call)
                    break
                if isinstance(bound, ast.FunctionDef) and _is_factory(names, Place(scope, name, bound)):
                    key = next(iter(routes.returned(Place(scope, name, bound))), (scope, name))
                    call = next(_made_in(names, inside(Place(scope, name, bound)), bound), None)
                    yield Application(scope.path, name, True, key, call)
                    break


def makes_app(names: Names, scope: Scope, call: ast.Call, depth: int = 0) -> bool:
    """Whether a call gives an application: ``FastAPI()``, a class of its kind, or a function that makes one."""
    return depth < DEPTH and next(_constructors(names, scope, call, depth), None) is not None


def _constructors(names: Names, scope: Scope, call: ast.Call, depth: int = 0) -> Iterator[ast.Call]:
    """The calls of ``FastAPI`` that a call comes to."""
    if depth >= DEPTH:
        return
    if isinstance(call.func, ast.Attribute) and call.func.attr == "FastAPI":
        yield call
        return
    for place in names.find(scope, call.func):
        names.spend()
        bound = place.bound
        if (isinstance(bound, Import) and bound.name == "FastAPI") or (
            isinstance(bound, ast.ClassDef) and any(called(base) == "FastAPI" for base in bound.bases)
        ):
            yield call
        elif isinstance(bound, ast.FunctionDef):
            yield from _made_in(names, inside(place), bound, depth + 1)


def _made_in(names: Names, scope: Scope, function: ast.FunctionDef, depth: int = 0) -> Iterator[ast.Call]:
    for value in names.returned(function):
        names.spend()
        if isinstance(value, ast.Call):
            yield from _constructors(names, scope, value, depth + 1)
        for place in names.find(scope, value):
            if isinstance(place.bound, ast.Call):
                yield from _constructors(names, place.scope, place.bound, depth + 1)


def _is_factory(names: Names, place: Place) -> bool:
    """Whether a function takes nothing and gives an application, which is not bound to a name anyway."""
    function = place.bound
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    required = len(given.posonlyargs) + len(given.args) - len(given.defaults)
    required += sum(default is None for default in given.kw_defaults)
    if required or function.decorator_list:
        return False
    return next(_made_in(names, inside(place), function), None) is not None


# which one is served


class Mention(Struct, frozen=True):
    """A file that starts a server says which application."""

    file: str
    module: str
    name: str
    path: str = ""


def _mentions(tree: Tree, names: Names) -> Iterator[Mention]:
    for path in tree.files:
        if COMMANDS.search(path.name) and not tree.is_beside(path):
            shown = tree.shown(path)
            for line in tree.text(path).splitlines():
                if len(line) > MAX_LINE:
                    continue
                if SERVERS.search(line):
                    yield from (Mention(shown, match[1], match[2]) for match in NAMED.finditer(line))
                yield from (Mention(shown, "", "", match[1]) for match in RUN.finditer(line))
    for scope, call in names.calls:
        runs = isinstance(call.func, ast.Attribute) and (called(call.func.value), call.func.attr) == ("uvicorn", "run")
        if runs and call.args and (match := NAMED.fullmatch(names.text(scope, call.args[0]) or "")):
            yield Mention(tree.shown(scope.path), match[1], match[2])


def _completed(one: Application, routes: Routes, mentions: list[Mention]) -> Application:
    parts = module_parts(one.path)
    named = module = ""
    for mention in mentions:
        words = mention.module.split(".")
        by_name = mention.name == one.name and parts[-len(words) :] == words
        if by_name or (mention.path and one.path.as_posix().endswith(f"/{mention.path.lstrip('./')}")):
            named, module = mention.file, mention.module
            break
    return Application(
        one.path,
        one.name,
        one.factory,
        one.key,
        one.call,
        named,
        module,
        list(routes.reach(one.key)),
        one.key in routes.mounted,
    )


# where it runs


class Home(Struct, frozen=True):
    """How uvicorn finds an application: in ``folder``, with ``path`` on PYTHONPATH where that is another."""

    folder: Path
    path: Path
    module: str


def home_of(tree: Tree, one: Application) -> Home:
    """The folder that its people run it in, and the one that its modules are named from."""
    path = _import_root(tree, one)
    folder = next((p for p in tree.folders_to(path) if any((p / marker).is_file() for marker in MARKERS)), path)
    if folder != path and any(
        (path / name).is_dir() and not (folder / name).is_dir() for name in _folders_used(tree, path)
    ):
        folder = path  # it opens files there by relative names
    parts = one.path.relative_to(path).with_suffix("").parts
    return Home(folder, path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts))


def _import_root(tree: Tree, one: Application) -> Path:
    places = tree.folders_to(one.path.parent)
    if one.module:
        depth = len(one.module.split(".")) - (one.path.stem != "__init__")
        if depth < len(places):
            return places[depth]
    places = [p for p in places if all(map(is_name, one.path.parent.relative_to(p).parts))]
    first = next(p for p in places if not (p / "__init__.py").is_file() or p == places[-1])
    marked = next((p for p in places if any((p / marker).is_file() for marker in MARKERS)), first)
    fallback = first if first != one.path.parent or one.path.parent == tree.root else marked
    counts = {place: _imports_from(tree, place) for place in places}
    best = max(counts.values())
    return fallback if counts[fallback] == best else next(p for p in places if counts[p] == best)


def _imports_from(tree: Tree, place: Path) -> int:
    """How many imports name modules from this folder."""
    count = 0
    for source in tree.sources.values():
        if not source.path.is_relative_to(place):
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            heads = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
            count += sum(place / f"{head}.py" in tree.sources or place / head in tree.packages for head in heads)
    return count


def _folders_used(tree: Tree, place: Path) -> set[str]:
    """The relative folders of ``StaticFiles(directory="static")`` and ``Jinja2Templates(…)``."""
    return {
        keyword.value.value
        for source in tree.sources.values()
        if source.path.is_relative_to(place)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and called(node) in ("StaticFiles", "Jinja2Templates")
        for keyword in node.keywords
        if keyword.arg == "directory"
        and isinstance(keyword.value, ast.Constant)
        and isinstance(keyword.value.value, str)
    }
