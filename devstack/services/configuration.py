"""The configuration that a running service became ready with, item by item, and how the settings differ from it now."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from devstack.runtimes import ServiceSpec

SHOWN = 60
"""Characters of a value that are shown; longer ones are told apart by their digest alone."""
NAMED = 2
"""Differences that are named in a sentence."""


class Item(Struct, frozen=True):
    """One item as it was applied. The value is masked, and empty where it is too long or has several lines."""

    digest: str
    shown: str


def items_of(spec: ServiceSpec) -> dict[str, str]:
    """Return what a service is started with as named values."""
    return dict(_flat("", spec))


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, Mapping):
        prefix = f"{name} " if name else ""
        return [pair for key, inner in value.items() for pair in _flat(f"{prefix}{key}", inner)]
    if isinstance(value, list | tuple):
        options = [(a, b) for a, b in itertools.pairwise(value) if a == "-c" and "=" in str(b)]
        rest = [str(word) for word in value if word != "-c" and ("-c", word) not in options]
        parameters = [(f"parameter {b.partition('=')[0]}", b.partition("=")[2]) for _, b in options]
        return [(name, " ".join(rest)), *parameters]
    return [(name, str(value))]


class Applied:
    """The record of one service. There is none before it was first made ready, or where that was cut off."""

    def __init__(self, path: Path, mask: Callable[[str], str], hidden: Collection[str] = ()) -> None:
        """
        :param mask: takes secrets out of a value.
        :param hidden: names of items whose values may be secrets: they are told apart by their digests alone.
        """
        self.path = path
        self._mask = mask
        self._hidden = hidden

    def content(self, items: Mapping[str, str]) -> str:
        """Return the record of these items: digests, and the values without secrets."""
        return msgspec.json.encode({name: self._item(name, value) for name, value in items.items()}).decode() + "\n"

    def read(self) -> dict[str, Item] | None:
        """Return the record; None if there is none that can be read."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, Item])
        except (OSError, msgspec.MsgspecError):
            return None

    def differences(self, items: Mapping[str, str]) -> list[str] | None:
        """Return in which items the record differs from these, each as a phrase; None if there is no record."""
        recorded = self.read()
        if recorded is None:
            return None
        now = {name: self._item(name, value) for name, value in items.items()}
        found = []
        for name in [*recorded, *(name for name in now if name not in recorded)]:
            was, wanted = recorded.get(name), now.get(name)
            if was is None or wanted is None:
                found.append(f"{name} is {'new' if was is None else 'gone'}")
            elif was.digest != wanted.digest:
                both = was.shown and wanted.shown and was.shown != wanted.shown
                found.append(f"{name} is {was.shown}, not {wanted.shown}" if both else f"{name} has changed")
        return found

    def _item(self, name: str, value: str) -> Item:
        masked = self._mask(value)
        shown = masked if len(masked) <= SHOWN and "\n" not in masked and name not in self._hidden else ""
        return Item(hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:32], shown)


def sentence(differences: list[str] | None) -> str:
    """Return the first differences in parentheses, to stand behind what they explain; empty without a record."""
    if not differences:
        return ""
    more = f", and {len(differences) - NAMED} more" if len(differences) > NAMED else ""
    return f" ({'; '.join(differences[:NAMED])}{more})"
