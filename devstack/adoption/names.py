"""What the names in a project's modules stand for, across modules."""

from __future__ import annotations

import ast
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from devstack.adoption.tree import Source, Tree
from devstack.errors import UsageError

DEPTH = 12
"""Of imports of imports: a circle ends here."""
MAX_BINDINGS = 200
"""Most objects that a name is taken for; a loop over an application's routers has many."""
MAX_TEXT = 2_000
"""Longest text that an expression is worked out to, in characters: a few lines can double it again and again."""
FREE_STEPS = 1_000_000
"""Steps that the names of any project may take."""
STEPS = 50
"""Further steps for each call and each binding; in real projects it is about one."""


class Scope(Struct, frozen=True):
    """A module, or a function in it by its dotted name."""

    path: Path
    function: str = ""

    @property
    def outer(self) -> Scope | None:
        return Scope(self.path, self.function.rpartition(".")[0]) if self.function else None


class Import(Struct, frozen=True):
    """``from module import name``, or ``import module``, which has no name."""

    module: str
    name: str = ""
    level: int = 0


class Parameter(Struct, frozen=True):
    """An argument of a function: what it is depends on who calls."""

    index: int
    name: str


Bound = ast.expr | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | Import | Parameter


class Place(Struct, frozen=True):
    """Where a name is bound, and to what; ``bound`` of a whole module is None."""

    scope: Scope
    name: str
    bound: Bound | None


class Names:
    """The bindings of all modules of a project."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.bindings: dict[Scope, dict[str, list[Bound]]] = defaultdict(dict)
        self.calls: list[tuple[Scope, ast.Call]] = []
        self.functions: dict[Scope, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        self.attributes: dict[str, list[ast.expr]] = defaultdict(list)
        """The values of the attributes of all classes: ``settings.API_PREFIX`` is one of them."""
        self._modules: dict[str, list[Path]] = defaultdict(list)
        for path in tree.sources:
            self._modules[(path.parent if path.stem == "__init__" else path).stem].append(path)
        self._found: dict[tuple[Scope, str, int], list[Place]] = {}
        self._texts: dict[tuple[Scope, ast.expr, int], str | None] = {}
        self._returns: dict[ast.AST, list[ast.expr]] = {}
        self._imported: dict[tuple[Path, str, int], list[Path]] = {}
        self._bound = 0
        for source in tree.sources.values():
            self._read(source)
        self.steps = FREE_STEPS + STEPS * (len(self.calls) + self._bound)
        """Steps that are left."""

    def spend(self, steps: int = 1) -> None:
        """Count what is done to follow names: there are as many ways as somebody wants to write down.

        :raises UsageError: it is more than any real project takes.
        """
        self.steps -= steps
        if self.steps < 0:
            raise UsageError(
                f"the modules in {self.tree.root} can't be followed",
                why="their names lead to each other in too many ways",
                fix="name the directory of the application alone; or write invoke.yaml yourself",
            )

    def _read(self, source: Source) -> None:
        try:
            self._body(Scope(source.path), source.tree.body)
        except RecursionError:
            self.tree.unread.append((source.path, "it is nested too deeply"))

    def _bind(self, scope: Scope, name: str, bound: Bound) -> None:
        self.bindings[scope].setdefault(name, []).append(bound)
        self._bound += 1

    def _body(self, scope: Scope, body: list[ast.stmt]) -> None:
        for node in body:
            self._statement(scope, node)

    def _statement(self, scope: Scope, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._bind(scope, node.name, node)
            inner = Scope(scope.path, f"{scope.function}.{node.name}".lstrip("."))
            self.functions[inner] = node
            for index, argument in enumerate([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]):
                self._bind(inner, argument.arg, Parameter(index, argument.arg))
            self._body(inner, node.body)
            for decorator in node.decorator_list:
                self._expression(scope, decorator)
        elif isinstance(node, ast.ClassDef):
            self._bind(scope, node.name, node)
            for attribute in node.body:
                for name, value in assigned(attribute):
                    self.attributes[name].append(value)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                self._bind(scope, alias.asname or alias.name, Import(node.module or "", alias.name, node.level))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module = alias.name if alias.asname else alias.name.partition(".")[0]
                self._bind(scope, alias.asname or module, Import(module))
        else:
            for name, value in assigned(node):
                self._bind(scope, name, value)
            if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
                for item in self._items(scope, node.iter):
                    self._bind(scope, node.target.id, item)
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    self._statement(scope, child)
                elif isinstance(child, ast.expr):
                    self._expression(scope, child)
                elif isinstance(child, ast.ExceptHandler | ast.match_case):
                    self._body(scope, child.body)

    def _items(self, scope: Scope, node: ast.expr) -> list[ast.expr]:
        if isinstance(node, ast.List | ast.Tuple):
            return node.elts[:MAX_BINDINGS]
        if isinstance(node, ast.Name):
            for bound in self.bindings[scope].get(node.id, []):
                if isinstance(bound, ast.List | ast.Tuple):
                    return bound.elts[:MAX_BINDINGS]
        return []

    def _expression(self, scope: Scope, node: ast.expr) -> None:
        self.calls += ((scope, part) for part in ast.walk(node) if isinstance(part, ast.Call))

    # looking names up

    def find(self, scope: Scope, node: ast.expr, depth: int = 0) -> list[Place]:
        """Where the object of an expression is bound: a name, or an attribute of a module."""
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or len(attributes) > DEPTH:
            return []
        found = self._named(scope, node.id, depth)
        for name in reversed(attributes):
            modules = [place.scope.path for place in found if place.bound is None]
            found = self._several(place for path in modules for place in self._in_module(path, name, depth))
        return found

    def _several(self, places: Iterable[Place]) -> list[Place]:
        """Return different places, at most :data:`MAX_BINDINGS`."""
        found: dict[Place, None] = {}
        for place in places:
            self.spend()
            found[place] = None
            if len(found) == MAX_BINDINGS:
                break
        return list(found)

    def _named(self, scope: Scope, name: str, depth: int) -> list[Place]:
        key = scope, name, depth
        if key not in self._found:
            place: Scope | None = scope
            while place is not None and name not in self.bindings[place]:
                place = place.outer
            self._found[key] = self._bindings(place, name, depth) if place else []
        return self._found[key]

    def _bindings(self, scope: Scope, name: str, depth: int) -> list[Place]:
        # `a = b` again and again is the same each time
        bounds = {bound.id if isinstance(bound, ast.Name) else bound: bound for bound in self.bindings[scope][name]}
        return self._several(
            found for bound in bounds.values() for found in self._follow(Place(scope, name, bound), depth)
        )

    def _follow(self, place: Place, depth: int) -> Iterator[Place]:
        bound = place.bound
        itself = isinstance(bound, ast.Name) and bound.id == place.name
        other = bound if isinstance(bound, ast.Name | ast.Attribute) and depth < DEPTH and not itself else None
        if other and (others := self.find(place.scope, other, depth + 1)):
            yield from others
            return
        if not isinstance(bound, Import) or depth >= DEPTH:
            yield place
            return
        if not bound.name:
            # `import a.b.c` binds a; its attributes are looked up in the modules below
            yield from (Place(Scope(path), "", None) for path in self.modules(place.scope.path, bound.module, 0))
            return
        found_any = False
        for path in self.modules(place.scope.path, bound.module, bound.level):
            for found in self._in_module(path, bound.name, depth + 1):
                found_any = True
                yield found
        if not found_any:  # a module of a folder without __init__.py; or somebody else's package
            dotted = f"{bound.module}.{bound.name}".lstrip(".")
            yield from (Place(Scope(path), "", None) for path in self.modules(place.scope.path, dotted, bound.level))
            yield place

    def _in_module(self, path: Path, name: str, depth: int) -> list[Place]:
        if name in self.bindings[Scope(path)]:
            return self._named(Scope(path), name, depth)
        if path.stem == "__init__":
            for other in (path.parent / f"{name}.py", path.parent / name / "__init__.py"):
                if other in self.tree.sources:
                    return [Place(Scope(other), "", None)]
        return []

    def modules(self, importer: Path, module: str, level: int) -> list[Path]:
        """The files that an import names, the likeliest one only: there may be several of a name in a project."""
        key = importer, module, level
        if key not in self._imported:
            self._imported[key] = self._modules_of(importer, module.split(".") if module else [], level)
        return self._imported[key]

    def _modules_of(self, importer: Path, parts: list[str], level: int) -> list[Path]:
        if level:
            base = importer.parent
            for _ in range(level - 1):
                base = base.parent
            wanted = base.joinpath(*parts)
            found = [wanted.with_suffix(".py"), wanted / "__init__.py"] if parts else [wanted / "__init__.py"]
            return [path for path in found if path in self.tree.sources][:1]
        if not parts:
            return []
        named = self._modules.get(parts[-1], [])
        self.spend(len(named))
        found = [path for path in named if module_parts(path)[-len(parts) :] == parts and path != importer]
        found.sort(key=lambda path: -len(os.path.commonpath([path, importer])))
        return found[:1]

    # their values

    def text(self, scope: Scope, node: ast.expr | None, depth: int = 0) -> str | None:
        """Return the text that an expression comes to; None if it can't be seen without running it, or is too long."""
        if depth > DEPTH or node is None:
            return None
        key = scope, node, depth
        if key not in self._texts:
            text = self._text(scope, node, depth)
            self._texts[key] = text if text is None or len(text) <= MAX_TEXT else None
        return self._texts[key]

    def _text(self, scope: Scope, node: ast.expr, depth: int) -> str | None:
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else None
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.FormattedValue) else part for part in node.values)
            return self._joined(scope, parts, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._joined(scope, (node.left, node.right), depth)
        if isinstance(node, ast.Call):
            return self._default(scope, node, depth)
        for place in self.find(scope, node):
            if (
                isinstance(place.bound, ast.expr)
                and (found := self.text(place.scope, place.bound, depth + 1)) is not None
            ):
                return found
        if isinstance(node, ast.Attribute):
            given = self.attributes.get(node.attr, [])[:MAX_BINDINGS]
            self.spend(len(given))
            values = {self.text(scope, value, depth + 1) for value in given}
            return values.pop() if len(values) == 1 else None
        return None

    def _joined(self, scope: Scope, nodes: Iterable[ast.expr], depth: int) -> str | None:
        found = ""
        for node in nodes:
            part = self.text(scope, node, depth + 1)
            if part is None or len(found) > MAX_TEXT:
                return None
            found += part
        return found

    def returned(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
        """Return what a function gives back, and those in it."""
        if function not in self._returns:
            nodes = ast.walk(function)
            values = [node.value for node in nodes if isinstance(node, ast.Return) and node.value]
            self._returns[function] = values[:MAX_BINDINGS]
        return self._returns[function]

    def _default(self, scope: Scope, node: ast.Call, depth: int) -> str | None:
        """Of ``os.getenv("X", "default")``, ``Field("default")``, ``Field(default="default")``."""
        name = called(node)
        for keyword in node.keywords:
            if keyword.arg == "default":
                return self.text(scope, keyword.value, depth + 1)
        if name in ("getenv", "get") and len(node.args) > 1:
            return self.text(scope, node.args[1], depth + 1)
        if name == "Field" and node.args:
            return self.text(scope, node.args[0], depth + 1)
        return None


def assigned(node: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """Names and values of an assignment."""
    if isinstance(node, ast.Assign):
        yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
        yield node.target.id, node.value


def source_of(node: ast.AST) -> str:
    """Return an expression as Python; nothing if it is nested too deeply."""
    try:
        return ast.unparse(node)
    except RecursionError:
        return ""


def called(node: ast.expr) -> str:
    """The last name of what is called: ``FastAPI`` of ``fastapi.FastAPI()``."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def module_parts(path: Path) -> list[str]:
    """A file's path as the parts of a dotted name, from the file system's root."""
    return [*path.parent.parts, *([] if path.stem == "__init__" else [path.stem])]


def argument(node: ast.Call, index: int, name: str) -> ast.expr | None:
    """An argument of a call, by its place or its name."""
    for keyword in node.keywords:
        if keyword.arg == name:
            return keyword.value
    return node.args[index] if index < len(node.args) and not isinstance(node.args[index], ast.Starred) else None
