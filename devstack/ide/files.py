"""Files of an editor: worked out first, all of them, and written only then."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, field

from devstack.errors import UsageError
from devstack.files import read_regular
from devstack.ide import jsonc
from devstack.ide.project import MARK

Did = Literal["added", "replaced", "unchanged", "left alone"]


class Entry(Struct, frozen=True):
    """What became of something that is put into a file."""

    name: str
    did: Did
    why: str = ""


class Plan(Struct):
    """A file as it is and as it is to be."""

    path: Path
    before: str | None
    """None where there is no file."""
    after: str
    entries: list[Entry] = field(default_factory=list)

    @property
    def changes(self) -> bool:
        return self.before != self.after


def read(path: Path) -> str | None:
    """The text of a file, its line ends as they are; None where there is none.

    :raises UsageError: it can't be read as UTF-8.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file", fix="move it away")
    try:
        return read_regular(path).decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read", why=str(error), fix="correct the file, or move it away") from None


class Part(Struct, frozen=True):
    """Entries for an array in a file. ``key`` is the member that names them; None for words."""

    member: str
    entries: Sequence[Any]
    key: str | None = None


def merge(path: Path, parts: Sequence[Part], scalars: dict[str, str] | None = None) -> Plan:
    """The plan of a JSON file: each entry in its array, in the place of our older one of that name. ``scalars`` are
    members that the file must have, whatever their value.

    :raises UsageError: the file is not JSON with comments, or has something else in the array's place.
    """
    before = read(path)
    plan = Plan(path, before, before or "")
    try:
        root = jsonc.parse(plan.after)
        if root is None:
            plan.after += "{}\n" if not plan.after or plan.after.endswith(("\n", "\ufeff")) else "\n{}\n"
        elif not isinstance(root.value, dict):
            raise jsonc.Wrong(plan.after, root.start, "an object is expected: { … }")
        for name, value in (scalars or {}).items():
            if _root(plan.after).member(name) is None:
                plan.after = jsonc.appended(plan.after, _root(plan.after), value, name)
        for part in parts:
            _array(plan, part)
            for entry in part.entries:
                plan.entries.append(_put(plan, part, entry))
    except jsonc.Wrong as wrong:
        raise UsageError(
            f"{path}:{wrong.line}:{wrong.column} can't be understood",
            why=f"{wrong.why}; no file was changed",
            fix="correct the file, or move it away",
        ) from None
    return plan


def _root(text: str) -> jsonc.Node:
    root = jsonc.parse(text)
    assert root
    return root


def _array(plan: Plan, part: Part) -> jsonc.Node:
    """The array of a part, made if there is none."""
    root = _root(plan.after)
    found = root.member(part.member)
    if found is None:
        plan.after = jsonc.appended(plan.after, root, [], part.member)
        found = _root(plan.after).member(part.member)
    assert found
    if not isinstance(found.value, list):
        raise jsonc.Wrong(plan.after, found.start, f"an array is expected for {part.member}: [ … ]")
    return found


def _put(plan: Plan, part: Part, entry: Any) -> Entry:
    array = _array(plan, part)
    if part.key is None:
        unwanted = _root(plan.after).member("unwantedRecommendations")
        if unwanted and isinstance(unwanted.value, list) and entry in unwanted.value:
            return Entry(entry, "left alone", "it is unwanted in this file")
        if entry in array.value:
            return Entry(entry, "unchanged")
        plan.after = jsonc.appended(plan.after, array, entry)
        return Entry(entry, "added")
    name: str = entry[part.key]
    for item in array.items:
        if isinstance(item.value, dict) and item.value.get(part.key) == name:
            if item.value == entry:
                return Entry(name, "unchanged")
            if not is_ours(item.value):
                return Entry(name, "left alone", "it is not from this tool")
            plan.after = jsonc.replaced(plan.after, item, entry)
            return Entry(name, "replaced")
    plan.after = jsonc.appended(plan.after, array, entry)
    return Entry(name, "added")


def is_ours(entry: dict[str, Any]) -> bool:
    """Whether an entry has :data:`MARK` in one of the places that such entries have for words of their own."""
    presentation = entry.get("presentation")
    group = presentation.get("group") if isinstance(presentation, dict) else None
    return any(str(word or "").startswith(MARK) for word in (entry.get("detail"), entry.get("group"), group))


def write(plans: Sequence[Plan], put: Callable[[Path, bytes, int], None]) -> None:
    """Write what changes. ``put`` writes a file aside and renames it; one behind a link is written where it is."""
    for plan in plans:
        if plan.changes:
            place = Path(os.path.realpath(plan.path))
            place.parent.mkdir(parents=True, exist_ok=True)
            mode = place.stat().st_mode & 0o777 if place.exists() else 0o644
            put(place, plan.after.encode(), mode)
