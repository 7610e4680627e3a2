"""Which paths an application answers at, followed through its routers."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from devstack.adoption.names import MAX_TEXT, Names, Place, Scope, argument, called, source_of

Key = tuple[Scope, str]
"""An object by where it is bound: an application, a router, or a function's parameter that is one."""

VERBS = {"get", "post", "put", "patch", "delete", "head", "options", "websocket"}
GUARDS = re.compile(r"current_\w{0,50}user|get_user|auth|token|security|api_key|permission|verify_", re.IGNORECASE)
MAX_NESTED = 50
"""Most routers within each other."""
HEALTHS = (
    *("health", "healthz", "healthcheck", "health-check", "health_check", "readyz", "ready", "readiness"),
    *("livez", "live", "liveness", "alive", "heartbeat", "ping", "up", "status"),
)
"""The last parts of paths at which applications say that they are well, the likeliest first."""


class Route(Struct, frozen=True):
    """A path that is answered. ``path`` is None where a part of it is known only at run time."""

    path: str | None
    methods: tuple[str, ...]
    function: str
    scope: Scope
    guarded: bool = False


class Routes:
    """The routes of all applications and routers of a project."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.own: dict[Key, list[Route]] = defaultdict(list)
        self.parts: dict[Key, dict[tuple[Key, str | None], None]] = defaultdict(dict)
        """What is included or mounted, below which prefix."""
        self.mounted: set[Key] = set()
        self.prefixes: dict[Key, str | None] = {}
        for scope, node in names.functions.items():
            guarded = bool(node.decorator_list) and GUARDS.search(source_of(node.args)) is not None
            for decorator in node.decorator_list:
                self._decorated(scope, node, decorator, guarded=guarded)
        for scope, call in names.calls:
            self._called(scope, call)
        for scope, bindings in list(names.bindings.items()):
            for name, bounds in bindings.items():
                for bound in bounds:
                    if isinstance(bound, ast.Call):
                        self._made(scope, name, bound)

    def keys(self, scope: Scope, node: ast.expr) -> list[Key]:
        return [(place.scope, place.name) for place in self.names.find(scope, node) if place.bound is not None]

    def _decorated(
        self, scope: Scope, node: ast.FunctionDef | ast.AsyncFunctionDef, decorator: ast.expr, *, guarded: bool
    ) -> None:
        outer = scope.outer
        if outer is None or not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Attribute):
            return
        verb = decorator.func.attr
        if verb not in VERBS and verb not in ("api_route", "route"):
            return
        text = "".join(source_of(k.value) for k in decorator.keywords if k.arg == "dependencies")
        route = Route(
            self.names.text(outer, argument(decorator, 0, "path")),
            (verb.upper(),) if verb in VERBS else self._methods(decorator),
            node.name,
            outer,
            guarded or GUARDS.search(text) is not None,
        )
        self._add(self.keys(outer, decorator.func.value), route)

    @staticmethod
    def _methods(call: ast.Call) -> tuple[str, ...]:
        given = next((k.value for k in call.keywords if k.arg == "methods"), None)
        if not isinstance(given, ast.List | ast.Tuple | ast.Set):
            return ("GET",)
        return tuple(str(item.value).upper() for item in given.elts if isinstance(item, ast.Constant))

    def _called(self, scope: Scope, call: ast.Call) -> None:
        name = called(call)
        if isinstance(call.func, ast.Attribute):
            owners = self.keys(scope, call.func.value)
            if name == "include_router":
                prefix = self._prefix(scope, call)
                for child in self._children(scope, argument(call, 0, "router")):
                    self._join(owners, child, prefix)
            elif name == "mount":
                prefix = self.names.text(scope, argument(call, 0, "path"))
                target = argument(call, 1, "app")
                for child in self._children(scope, target):
                    self._join(owners, child, prefix)
                    self.mounted.add(child)
                if prefix is not None and target is not None and self._is_metrics(scope, target):
                    self._add(owners, Route(f"{prefix}/", ("GET",), "metrics", scope))
            elif name in ("add_api_route", "add_route"):
                path, endpoint = self.names.text(scope, argument(call, 0, "path")), argument(call, 1, "endpoint")
                self._add(owners, Route(path, self._methods(call), called(endpoint) if endpoint else "", scope))
            elif name == "expose" and call.args and "nstrumentator" in source_of(call.func):
                # https://github.com/trallnag/prometheus-fastapi-instrumentator
                path = self.names.text(scope, argument(call, 1, "endpoint")) or "/metrics"
                self._add(self.keys(scope, call.args[0]), Route(path, ("GET",), "metrics", scope))
        for place in self.names.find(scope, call.func):
            self._handed_over(scope, call, place)

    def _is_metrics(self, scope: Scope, target: ast.expr) -> bool:
        places = [place.bound for place in self.names.find(scope, target)]
        return any(isinstance(node, ast.Call) and called(node) == "make_asgi_app" for node in [target, *places])

    def _prefix(self, scope: Scope, call: ast.Call) -> str | None:
        given = next((k.value for k in call.keywords if k.arg == "prefix"), None)
        return self.names.text(scope, given) if given is not None else ""

    def _children(self, scope: Scope, node: ast.expr | None) -> list[Key]:
        if node is None:
            return []
        if isinstance(node, ast.Call):
            return [key for place in self.names.find(scope, node.func) for key in self.returned(place)]
        return self.keys(scope, node)

    def _join(self, owners: list[Key], child: Key, prefix: str | None) -> None:
        self.names.spend(len(owners))
        for owner in owners:
            self.parts[owner][child, prefix] = None

    def _add(self, owners: list[Key], route: Route) -> None:
        self.names.spend(len(owners))
        for owner in owners:
            self.own[owner].append(route)

    def _handed_over(self, scope: Scope, call: ast.Call, place: Place) -> None:
        """``register(app)``: what the function does to its parameter, it does to the application."""
        node = place.bound
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if not call.args and not call.keywords:
            return
        parameters = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
        self.names.spend(len(parameters))
        known = set(parameters)
        given = [*zip(parameters, call.args, strict=False), *((k.arg, k.value) for k in call.keywords)]
        for name, value in given:
            if name in known and isinstance(value, ast.Name | ast.Attribute):
                self._join(self.keys(scope, value), (inside(place), name), "")

    def _made(self, scope: Scope, name: str, call: ast.Call) -> None:
        if any(k.arg == "prefix" for k in call.keywords):
            self.prefixes[scope, name] = self._prefix(scope, call)
        for place in self.names.find(scope, call.func):
            for key in self.returned(place):
                self._join([(scope, name)], key, "")

    def returned(self, place: Place) -> list[Key]:
        """The objects that a function gives back by their names."""
        if not isinstance(place.bound, ast.FunctionDef | ast.AsyncFunctionDef):
            return []
        scope = inside(place)
        values = [value for value in self.names.returned(place.bound) if isinstance(value, ast.Name)]
        self.names.spend(len(values))
        return list(dict.fromkeys(key for value in values for key in self.keys(scope, value)))

    def reach(self, key: Key) -> Iterator[Route]:
        """All routes of an application, with their whole paths."""
        yield from self._reach(key, "", frozenset())

    def _reach(self, key: Key, prefix: str | None, seen: frozenset[Key]) -> Iterator[Route]:
        if key in seen or len(seen) > MAX_NESTED:
            return
        self.names.spend(1 + len(seen) + len(self.own.get(key, ())))
        own = _joined(prefix, self.prefixes.get(key, ""))
        for route in self.own.get(key, ()):
            yield replace(route, path=_joined(own, route.path))
        for child, below in self.parts.get(key, ()):
            yield from self._reach(child, _joined(own, below), seen | {key})


def inside(place: Place) -> Scope:
    """The scope of a function's body."""
    assert isinstance(place.bound, ast.FunctionDef | ast.AsyncFunctionDef)
    return Scope(place.scope.path, f"{place.scope.function}.{place.bound.name}".lstrip("."))


def _joined(one: str | None, other: str | None) -> str | None:
    """Return a path and its continuation; None if one is not known, or they are too long."""
    return None if one is None or other is None or len(one) + len(other) > MAX_TEXT else one + other


def healths(routes: list[Route]) -> list[Route]:
    """The routes that say whether the application is well, the likeliest first."""

    def rank(route: Route) -> tuple[bool, int, int]:
        word = last_part(route)
        return route.guarded, HEALTHS.index(word), (route.path or "").count("/")

    fitting = [r for r in routes if r.path and "{" not in r.path and "GET" in r.methods and last_part(r) in HEALTHS]
    return sorted(fitting, key=rank)


def last_part(route: Route) -> str:
    """``health`` of ``/api/_Health/``."""
    return (route.path or "").rstrip("/").rpartition("/")[2].lower().strip("_")


def metrics(routes: list[Route]) -> str:
    """The path of figures for Prometheus; empty if there is none."""
    return next((r.path for r in routes if r.path and last_part(r) == "metrics" and "GET" in r.methods), "")
