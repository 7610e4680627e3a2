"""What the source says when something is wrong: every error, and every finding of health, with cause and fix."""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from docs.texts import ROOT, Scope, assignments, followed, name_of, says, texts, tree

ERRORS = ("StackError", "UsageError", "CommandError", "ContentError")
ANOTHER = "use another one: inv data.list; inv data.verify --all shows which ones are whole"


@dataclass(frozen=True)
class Message:
    """One way in which something is wrong, and what mends it."""

    file: str
    what: str
    why: str = ""
    fix: tuple[str, ...] = ()


Parts = list[ast.expr | None]
"""What is said, why, and the fix."""


def messages() -> Iterator[Message]:
    """All of them, file by file."""
    for folder in ("devstack", "tasks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from of_file(path, path.relative_to(ROOT).as_posix())


def of_file(path: Path, name: str) -> Iterator[Message]:
    """Those of one file, in its order; ``name`` is what it is called in them."""
    for call, function in calls(path):
        if (parts := _parts(path, call)) is None:
            continue
        for scope in _given(path, function, parts):
            for some in _jointly(function, parts, call.lineno):
                for decided in _decisions(some):
                    yield from _read(name, some, dataclasses.replace(scope, decided=decided))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and node.name == "hint":
            yield from _hints(path, name, node)


def _parts(path: Path, call: ast.Call) -> Parts | None:
    """What is said, why, and the fix, where a call makes an error or a finding; None elsewhere."""
    called, fields = name_of(call.func), {k.arg: k.value for k in call.keywords if k.arg}
    if called in ERRORS or _is_error_s_super(path, call):
        what = call.args[0] if call.args else fields.get("what")
        return None if what is None or isinstance(what, ast.Starred) else [what, fields.get("why"), fields.get("fix")]
    match called, call.args:
        case "Check", _ if "cause" in fields:
            return [fields["cause"], None, fields.get("fix")]
        case "slow", [_, cause, fix]:
            return [cause, None, fix]
        case "Refusal", [setting, _, why, fix]:
            colon = ast.Constant(": ")
            joined = ast.BinOp(ast.BinOp(setting, ast.Add(), colon), ast.Add(), why)
            return [ast.copy_location(joined, call), None, fix]
        case "Wrong", [why, *_]:
            refused = "BACKUP can't be restored" if path.name == "source.py" else "BACKUP is damaged"
            return [ast.Constant(refused), why, ast.Constant(ANOTHER)]
        case "Mishap", [why, fix]:
            return [ast.Constant("PATH can't be used"), why, fix]
    return None


def _read(file: str, parts: Parts, scope: Scope) -> Iterator[Message]:
    what, why, fix = parts
    assert what is not None
    seen = _seen(what, scope)
    causes = _saying(texts(why, scope)) if why is not None else [seen]
    variants = texts(what, scope)
    if len(variants) > 4:  # what is put together from so many parts is found by the shortest
        variants = [min(variants, key=len)]
    for said, cause in itertools.product(_saying(variants), causes):
        for lines in _fixes(fix, scope) if fix is not None else [()]:
            if said:
                yield Message(file, _open(said), _open(cause), tuple(_open(line) for line in lines if says(line)))


def _saying(found: list[str]) -> list[str]:
    """Without those that are a program's own words; an empty text if nothing else is left."""
    return [text for text in found if says(text)] or [""]


def _open(text: str) -> str:
    """A text of a ``string.Template``: its ``$name`` is a word in capitals too; settings' own stay as they are."""
    text = text.replace("$typed", "$path")
    return re.sub(r"\$(path|place|user|steps)\b", lambda found: found[1].upper(), text).strip()


def _fixes(fix: ast.expr, scope: Scope) -> list[tuple[str, ...]]:
    """The variants of a fix, each with its lines."""
    if isinstance(fix, ast.Name) and scope.function:
        lists = [v[fix.id] for v in assignments(scope.function, fix.lineno) if fix.id in v]
        if any(isinstance(value, ast.List | ast.Tuple) for value in lists):
            return [lines for value in lists for lines in _fixes(value, scope)]
    value = followed(fix, scope)
    if not isinstance(value, ast.List | ast.Tuple):
        return [(text,) for text in _saying(texts(fix, scope))]
    lines: list[str] = []
    for item in value.elts:
        if not isinstance(item, ast.Starred):
            lines.append(" or ".join(texts(item, scope)))
        elif isinstance(more := followed(item.value, scope), ast.List | ast.Tuple):
            lines += [text for one in more.elts for text in texts(one, scope)]
    return [tuple(lines)]


def _hints(path: Path, file: str, function: ast.FunctionDef) -> Iterator[Message]:
    """What mends a start that failed, by what the service's log says."""
    scope = Scope(path, function)
    name = texts(ast.parse("self.name", mode="eval").body, scope)[0]
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and node.value is not None:
            words = _words(function, node)
            for fix in texts(node.value, scope):
                why = f"its log says {words}" if words else "its log says something else"
                yield Message(file, f"{name} did not become ready", why, (fix,))


def _seen(what: ast.expr, scope: Scope) -> str:
    """Whose words lead to a finding, where it is made below ``if "words" in error``."""
    if isinstance(what, ast.Name) and what.id in scope.given:
        what, scope = scope.given[what.id]
    words = _words(scope.function, what) if scope.function else ""
    return f"its own words are {words}" if words else ""


def _words(function: ast.FunctionDef, node: ast.AST) -> str:
    """The texts that are looked for where a statement is reached."""
    for test in ast.walk(function):
        if isinstance(test, ast.If) and any(node in ast.walk(statement) for statement in test.body):
            found = [
                compare.left.value
                for compare in ast.walk(test.test)
                if isinstance(compare, ast.Compare)
                and isinstance(compare.ops[0], ast.In)
                and isinstance(compare.left, ast.Constant)
                and isinstance(compare.left.value, str)
            ]
            if found:
                return " or ".join(f"“{text.strip()}”" for text in found)
    return ""


# the way from a call to those who fill it in


@functools.cache
def calls(path: Path) -> list[tuple[ast.Call, ast.FunctionDef | None]]:
    """Every call of a file, with the function that it is in."""
    return list(_calls(tree(path)))


def _calls(node: ast.AST, function: ast.FunctionDef | None = None) -> Iterator[tuple[ast.Call, ast.FunctionDef | None]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield child, function
        yield from _calls(child, child if isinstance(child, ast.FunctionDef) else function)


def _is_error_s_super(path: Path, call: ast.Call) -> bool:
    """Whether it is ``super().__init__`` in a subclass of our errors."""
    if name_of(call.func) != "__init__" or path.name == "errors.py":
        return False
    classes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef) and call in ast.walk(node)]
    return any(name_of(base) in ERRORS for owner in classes for base in owner.bases)


def _given(path: Path, function: ast.FunctionDef | None, parts: Parts) -> list[Scope]:
    """The scope of a call; one for each call of its function where it says what the function was given."""
    plain = Scope(path, function)
    if function is None:
        return [plain]
    names = [a.arg for a in [*function.args.posonlyargs, *function.args.args]]
    bound = names[1:] if names[:1] in (["self"], ["cls"]) else names
    used = {n.id for part in parts if part is not None for n in ast.walk(part) if isinstance(n, ast.Name)}
    wanted = used & {*bound, *(a.arg for a in function.args.kwonlyargs)}
    name = function.name
    if name == "__init__":
        classes = [c for c in ast.walk(tree(path)) if isinstance(c, ast.ClassDef)]
        name = next(c.name for c in classes if function in c.body)
    scopes = []
    for call, caller in calls(path) if wanted else []:
        own = isinstance(call.func, ast.Name) or ast.unparse(call.func) == f"self.{name}"
        if name_of(call.func) == name and own and not any(isinstance(a, ast.Starred) for a in call.args):
            values = dict(zip(bound, call.args, strict=False)) | {k.arg: k.value for k in call.keywords if k.arg}
            outside = Scope(path, caller)
            scopes.append(Scope(path, function, {n: (v, outside) for n, v in values.items() if n in wanted}))
    return scopes or [plain]


def _jointly(function: ast.FunctionDef | None, parts: Parts, before: int) -> Iterator[Parts]:
    """The parts, as often as the variables that they are get values together: ``cause, fix = …, …``."""
    names = [part.id if isinstance(part, ast.Name) else None for part in parts]
    wanted = {name for name in names if name}
    assigned = list(assignments(function, before)) if function else []
    together = any(len(wanted & set(values)) > 1 for values in assigned)
    again = all(sum(name in values for values in assigned) > 1 for name in wanted)
    if len(wanted) < 2 or not (together or again):
        yield parts
        return
    found: list[dict[str, ast.expr]] = []
    alone = ""
    for values in assigned:
        here = {name: value for name, value in values.items() if name in wanted}
        if not here:
            continue
        if len(here) == 1 and alone and alone not in here:
            found[-1] |= here  # the second half of a pair
            alone = ""
        else:
            found.append({**(found[0] if found else {}), **here})  # the other is what it was at first
            alone = next(iter(here)) if len(here) == 1 else ""
    for values in found:
        yield [values.get(name, part) if name else part for name, part in zip(names, parts, strict=True)]


def _decisions(parts: Sequence[ast.expr | None]) -> Iterator[dict[str, bool]]:
    """Each way in which the conditions can go that several of the parts depend on."""
    asked: list[str] = []
    for part in parts:
        asked += dict.fromkeys(
            ast.dump(node.test) for node in ast.walk(part or ast.Pass()) if isinstance(node, ast.IfExp)
        )
    shared = [test for test in dict.fromkeys(asked) if asked.count(test) > 1]
    for answers in itertools.product([True, False], repeat=len(shared)):
        yield dict(zip(shared, answers, strict=True))
