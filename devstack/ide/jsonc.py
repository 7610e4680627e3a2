"""JSON with comments and trailing commas, as VS Code has it, changed in place.

Whatever is not changed stays byte for byte. Of the libraries on PyPI none edits a text so: they parse, and write all of
it anew. https://code.visualstudio.com/docs/languages/json#_json-with-comments
"""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import Struct, field

BLANK = re.compile(r"(?:[ \t\r\n]|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
LINE_REST = re.compile(r"[ \t]*(?:/\*(?:[^*\r\n]|\*(?!/))*\*/[ \t]*)*(?://[^\r\n]*)?(?=\r?\n)")
STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
WORD = re.compile(r"[-+.\w]+")
INDENT = "    "


class Wrong(Exception):
    """The text is not what it should be; line and column count from 1."""

    def __init__(self, text: str, offset: int, why: str) -> None:
        before = text[:offset]
        self.line = before.count("\n") + 1
        self.column = offset - (before.rfind("\n") + 1) + 1
        self.why = why
        super().__init__(f"{why} (line {self.line}, column {self.column})")


class Node(Struct):
    """A value in the text, from ``start`` to before ``end``."""

    value: Any
    start: int
    end: int = 0
    items: list[Node] = field(default_factory=list)
    """Of an array its values, of an object those of its members."""
    keys: list[str] = field(default_factory=list)
    comma: int = 0
    """Where the comma after the last item is; 0 without one."""

    def member(self, key: str) -> Node | None:
        """The last one of this name, as VS Code takes it."""
        return next((self.items[i] for i in reversed(range(len(self.keys))) if self.keys[i] == key), None)


def parse(text: str) -> Node | None:
    """The value of a text; None if there is none, as in a new file.

    :raises Wrong: it is not JSON, apart from comments and trailing commas.
    """
    start = _skip(text, 1 if text.startswith("\ufeff") else 0)
    if start == len(text):
        return None
    try:
        node = _value(text, start)
    except RecursionError:
        raise Wrong(text, start, "it is nested too deeply") from None
    rest = _skip(text, node.end)
    if rest < len(text):
        raise Wrong(text, rest, "there is something after the end")
    return node


def _skip(text: str, offset: int) -> int:
    match = BLANK.match(text, offset)
    assert match
    if text.startswith("/*", match.end()):
        raise Wrong(text, match.end(), "the comment has no end")
    return match.end()


def _value(text: str, start: int) -> Node:
    first = text[start : start + 1]
    if first in ("{", "["):
        return _container(text, start, "}" if first == "{" else "]")
    if first == '"':
        return _string(text, start)
    match = WORD.match(text, start)
    try:
        return Node(json.loads(match[0] if match else ""), start, match.end() if match else start)
    except ValueError:
        raise Wrong(text, start, "a value is expected" if start < len(text) else "the text ends too early") from None


def _string(text: str, start: int) -> Node:
    match = STRING.match(text, start)
    try:
        return Node(json.loads(match[0] if match else ""), start, match.end() if match else start)
    except ValueError:
        raise Wrong(text, start, "a string in double quotes is expected") from None


def _container(text: str, start: int, close: str) -> Node:
    node = Node({} if close == "}" else [], start)
    offset = _skip(text, start + 1)
    while text[offset : offset + 1] != close:
        if node.items and not node.comma:
            raise Wrong(
                text, offset, f"a comma or {close} is expected" if offset < len(text) else f"{close} is missing"
            )
        if close == "}":
            key = _string(text, offset)
            offset = _skip(text, key.end)
            if text[offset : offset + 1] != ":":
                raise Wrong(text, offset, "a colon is expected")
            offset = _skip(text, offset + 1)
            node.keys.append(key.value)
        item = _value(text, offset)
        node.items.append(item)
        offset = _skip(text, item.end)
        node.comma = 0
        if text[offset : offset + 1] == ",":
            node.comma = offset
            offset = _skip(text, offset + 1)
    node.end = offset + 1
    values = [item.value for item in node.items]
    node.value = dict(zip(node.keys, values, strict=True)) if close == "}" else values
    return node


# changes


def replaced(text: str, node: Node, value: Any) -> str:
    """The text with another value in the place of one."""
    line = text.rfind("\n", 0, node.start) + 1
    indent = _leading(text, line)
    return text[: node.start] + _render(text, value, indent) + text[node.end :]


def appended(text: str, container: Node, value: Any, key: str | None = None) -> str:
    """The text with a value, or a member, at the end of an array or object; comments stay beside what they describe."""
    newline = _newline(text)
    base = _leading(text, text.rfind("\n", 0, container.start) + 1)
    indent = base + _unit(text)
    if container.items:
        first = container.items[0].start
        line = text.rfind("\n", 0, first) + 1
        if line > container.start:
            indent = _leading(text, line)
    written = _render(text, value, indent)
    if key is not None:
        written = f"{json.dumps(key, ensure_ascii=False)}: {written}"
    close = container.end - 1
    if not container.items:
        # behind the comments, if there are some
        behind = container.start + 1 + len(text[container.start + 1 : close].rstrip())
        head = text[:behind]
    else:
        last = container.items[-1].end
        behind = container.comma + 1 if container.comma else last
        if rest := LINE_REST.match(text, behind):
            behind = rest.end()
        head = text[:behind] if container.comma else f"{text[:last]},{text[last:behind]}"
    tail = text[behind:close]
    end = "" if "\n" in tail else f"{newline}{base}"
    comma = "," if container.items and container.comma else ""
    return f"{head}{newline}{indent}{written}{comma}{tail}{end}{text[close:]}"


def _render(text: str, value: Any, indent: str) -> str:
    lines = json.dumps(value, indent=_unit(text), ensure_ascii=False).split("\n")
    return f"{_newline(text)}{indent}".join(lines)


def _leading(text: str, line: int) -> str:
    match = re.compile(r"[ \t]*").match(text, line)
    return match[0] if match else ""


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _unit(text: str) -> str:
    """What the text is indented by."""
    match = re.search(r"^\ufeff?[ \t]*\{[^\n]*\n(?:[ \t]*(?://[^\n]*)?\r?\n)*([ \t]+)\S", text, re.MULTILINE)
    return match[1] if match else INDENT
