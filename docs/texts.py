"""What an expression of the source may be as a text; what only a run can tell is a word in capitals.

What can be followed is: the branches of a conditional, a local variable or a constant, what a function of the same file
gives back, and the arguments that such a function was given.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST = 12
"""Variants of one text; where there are more, the part that varies is left open."""

EXPRESSIONS = {
    "self.settings.db.name": "DATABASE",
    "settings.db.name": "DATABASE",
    "stack.settings.db.name": "DATABASE",
    "db.settings.db.name": "DATABASE",
    "s.db.name": "DATABASE",
    "db.name": "nv-db",
    "stack.db.name": "nv-db",
    "stack.pgb.name": "nv-pgbouncer",
    "state.name": "NAME",
    "spec.name": "SERVICE",
    "error.filename": "FILE",
    "path.parent": "FOLDER",
    "partial.path.parent": "FOLDER",
    "file.parent.name": "FOLDER",
    "self.paths.log": "logs",
    "self.data": "FOLDER",
    "db.data": "FOLDER",
    "info.st_uid": "N",
    "service.label": "SERVICE",
    "self._setting_of_port(service)": "SERVICE.port in invoke.yaml",
    "self.label": "SERVICE",
    "labels[0]": "SERVICE",
    "copies[-1].name": "BACKUP",
    "dotenv_path": "FILE",
    "spec": "SERVICE",
    "source.name": "BACKUP",
    "backup.name": "BACKUP",
    "path.name": "BACKUP",
    "manifest.server_version": "VERSION",
    "outline.server_version": "VERSION",
    "ours": "VERSION",
    "entry.path": "SETTING",
    "entry.value": "VALUE",
    "settings.py: path": "SETTING",
    "settings.py: a": "SETTING",
    "settings.py: b": "ANOTHER",
    "settings.py: x": "N",
    "verify.py explained: name": "BACKUP",
    "settings.py _malformed: path": "FILE",
    "builds.py: file": "FILE",
}
"""Words for expressions whose own names say too little; some of them in one file alone."""
SERVICES = {"postgres": "nv-db", "pgbouncer": "nv-pgbouncer", "api": "nv-api"}
"""What ``self.name`` is in the files of devstack/services."""
OWN = {"name", "title", "quoted", "path", "text", "strerror", "id", "parent", "value", "stem", "parts"}
"""Attributes that say less than what they belong to."""
PASSED = {
    "str",
    "sorted",
    "list",
    "repr",
    "size",
    "duration",
    "mask",
    "printable",
    "shorten",
    "join",
    "Path",
    "unquote",
}
"""Functions whose argument says more than their name."""
WORDS = {
    "ORIGIN": "PLACE",
    "ERROR": "REASON",
    "STRERROR": "REASON",
    "WRONG": "REASON",
    "PROBLEM": "REASON",
    "SAID": "WORDS",
    "EXITED": "N",
    "CODE": "N",
    "LEN": "N",
    "MS": "N",
    "API-RESPONSE-MS": "N",
    "UID": "N",
    "OS": "N",
    "ST-MODE": "MODE",
    "LABEL": "SERVICE",
    "S": "NAME",
    "C": "NAME",
    "MADE": "VERSION",
    "FITTING": "the folder of its programs",
    "CLIENTS-WAIT": "N clients wait",
    "COPIES": "BACKUP",
}
"""A better word than the one in the source."""
METHODS = {
    "unstick": "devstack/runtimes",
    "take_back_data": "devstack/services",
    "_why_another": "devstack/health",
}
"""Methods whose answers are worth following, and where they are."""


@dataclass(frozen=True)
class Scope:
    """Where an expression is read: its file and function, what the function's parameters stand for, and the conditions
    that are taken for true or false."""

    file: Path
    function: ast.FunctionDef | None
    given: Mapping[str, tuple[ast.expr, Scope]] = field(default_factory=dict)
    decided: Mapping[str, bool] = field(default_factory=dict)


def texts(node: ast.expr, scope: Scope) -> list[str]:
    """The texts that an expression may be, each once."""
    found = list(dict.fromkeys(text for text in _texts(node, scope) if "()" not in text))
    # a list that is cut off reads as one that is not
    found = [text for text in found if " …" not in text or text.replace(" …", "") not in found]
    return found if 0 < len(found) <= MOST else [word(node, scope)]


def says(text: str) -> bool:
    """Whether there is more in a text than words that stand for others."""
    return bool(re.search(r"[a-z]{2}", text))


def _texts(node: ast.expr, scope: Scope) -> list[str]:
    match node:
        case ast.Constant(value=None):
            return []
        case ast.Constant(value=value):
            return [f"{value:g}" if isinstance(value, float) else str(value)]
        case ast.JoinedStr(values=parts):
            return _product([texts(part, scope) for part in parts])
        case ast.FormattedValue(value=value, conversion=conversion):
            mark = "'" if conversion == ord("r") else ""
            return [f"{mark}{text}{mark}" for text in texts(value, scope)]
        case ast.IfExp(test=test, body=body, orelse=other):
            decided = scope.decided.get(ast.dump(test))
            taken = [body, other] if decided is None else [body] if decided else [other]
            return list(itertools.chain.from_iterable(_texts(branch, scope) for branch in taken))
        case ast.BoolOp(op=ast.Or(), values=values):
            found = list(itertools.chain.from_iterable(_texts(value, scope) for value in values))
            words = [text for text in found if not says(text)]
            return [text for text in found if says(text) or text == words[0]]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _product([texts(left, scope), texts(right, scope)])
        case ast.BinOp(left=left, op=ast.Div(), right=ast.Constant(value=str(name))):
            return [f"{text}/{name}" for text in texts(left, scope)]
        case ast.Subscript(value=ast.Dict(values=values)):
            return list(itertools.chain.from_iterable(_texts(value, scope) for value in values))
        case ast.Call():
            return _of_call(node, scope)
        case ast.Name():
            return _of_name(node, scope)
    return [word(node, scope)]


def _product(parts: Sequence[list[str]]) -> list[str]:
    if functools.reduce(lambda n, part: n * len(part), parts, 1) > MOST:
        parts = [part if len(part) == 1 else ["…"] for part in parts]
    return ["".join(some) for some in itertools.product(*parts)]


def _of_name(node: ast.Name, scope: Scope) -> list[str]:
    if node.id in scope.given:
        value, outside = scope.given[node.id]
        return texts(value, outside)
    if scope.function:
        values = [v[node.id] for v in assignments(scope.function, node.lineno) if node.id in v]
        found = [text for value in values for text in _texts(value, scope)]
        if any(map(says, found)):
            return [text for text in found if text]
    match followed(node, scope):
        case ast.Constant() | ast.JoinedStr() | ast.BinOp() | ast.IfExp() as value:
            return _texts(value, scope)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [", ".join(" ".join(texts(item, scope)) for item in items)]
    return [word(node, scope)]


def _of_call(node: ast.Call, scope: Scope) -> list[str]:
    """A command, a list put together, or what a function of ours gives back."""
    name = name_of(node.func)
    match node.args:
        case [ast.Constant(value=str(template)), *_] if name == "sh":
            return [re.sub(r"\$(\w+)", lambda found: found[1].upper(), template)]
        case [*_, ast.List(elts=items)] if name in ("join", "filter"):
            return _product([texts(item, scope) for item in items])
    if name == "typed":
        return [
            " ".join(
                texts(part, scope)[0] if isinstance(part, ast.JoinedStr) else word(part, scope) for part in node.args
            )
        ]
    if name == "hint":
        return ["what its log says tells: look for “did not become ready” on this page"]
    answers = list(_answers(name)) if name in METHODS else []
    return answers or [word(node, scope)]


def _answers(name: str) -> Iterator[str]:
    for path in sorted((ROOT / METHODS[name]).glob("*.py")):
        for function in ast.walk(tree(path)):
            if isinstance(function, ast.FunctionDef) and function.name == name:
                for node in ast.walk(function):
                    if isinstance(node, ast.Return) and node.value:
                        yield from _texts(node.value, Scope(path, function))


def followed(node: ast.expr, scope: Scope) -> ast.expr:
    """The value of a constant of the file, or of the one that it is imported from; otherwise the expression itself."""
    if not isinstance(node, ast.Name):
        return node
    constants, imported = _names(scope.file)
    if node.id in constants:
        return constants[node.id]
    path = imported.get(node.id)
    return followed(node, Scope(path, None)) if path and path != scope.file else node


@functools.cache
def _names(path: Path) -> tuple[dict[str, ast.expr], dict[str, Path]]:
    """A file's constants, and the files of ours that its other names come from."""
    constants: dict[str, ast.expr] = {}
    for statement in tree(path).body:
        if isinstance(statement, ast.Assign):
            constants |= {name_of(target): statement.value for target in statement.targets}
        elif isinstance(statement, ast.AnnAssign) and statement.value:
            constants[name_of(statement.target)] = statement.value
    imported: dict[str, Path] = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            source = ROOT / f"{(node.module or '').replace('.', '/')}.py"
            imported |= {alias.name: source for alias in node.names if source.is_file()}
    return constants, imported


def assignments(function: ast.FunctionDef, before: int) -> Iterator[dict[str, ast.expr]]:
    """What the variables of a function become above a line, in the order of the source."""
    for node in _assigning(function):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if node.lineno >= before or node.value is None:
            continue
        if isinstance(target, ast.Name):
            yield {target.id: node.value}
        elif isinstance(target, ast.Tuple):
            values = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
            for value in values:
                if isinstance(value, ast.Tuple):
                    pairs = zip(target.elts, value.elts, strict=False)
                    yield {name.id: item for name, item in pairs if isinstance(name, ast.Name)}


@functools.cache
def _assigning(function: ast.FunctionDef) -> list[ast.Assign | ast.NamedExpr | ast.AnnAssign]:
    nodes = [n for n in ast.walk(function) if isinstance(n, ast.Assign | ast.NamedExpr | ast.AnnAssign)]
    return sorted(nodes, key=lambda n: n.lineno)


def word(node: ast.expr, scope: Scope) -> str:
    """The word in capitals that stands for what an expression is at run time."""
    if isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Call):
        source = ast.unparse(node)
        function = scope.function.name if scope.function else ""
        for key in (f"{scope.file.name} {function}: {source}", f"{scope.file.name}: {source}", source):
            if key in EXPRESSIONS:
                return EXPRESSIONS[key]
        if source == "self.name" and scope.file.stem in SERVICES:
            return SERVICES[scope.file.stem]
    found = _plain(node).upper().replace("_", "-").strip("-") or "N"
    return WORDS.get(found, found)


def _plain(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=owner, attr=name):
            base = _plain(owner)
            return base if name in OWN and base not in ("self", "", "error", "s") else name
        case ast.Call(func=func, args=[first, *_]) if name_of(func) in PASSED:
            return _plain(first)
        case ast.Call(func=ast.Name(id="map"), args=[_, mapped]):
            return _plain(mapped)
        case ast.Call(func=ast.Attribute(value=owner, attr=name)) if name != "origin":
            return _plain(owner)
        case ast.Call(func=func):
            return name_of(func)
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            return key
        case ast.Subscript(value=owner):
            return _plain(owner)
        case ast.GeneratorExp(generators=[first, *_]) | ast.ListComp(generators=[first, *_]):
            return _plain(first.iter)
        case ast.BoolOp(values=[first, *_]):
            return _plain(first)
        case ast.IfExp(body=first) | ast.BinOp(left=first):
            return _plain(first)
    return ""


def name_of(node: ast.expr) -> str:
    """The last part of a name: ``b`` of ``a.b``."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))
