"""What was found, and what was not."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Found(Struct, frozen=True):
    """A setting, and why it is this one."""

    path: str
    value: Any
    why: str


class Missing(Struct, frozen=True):
    """What the application needs and was not found, and what mends that."""

    what: str
    fix: str


class Findings(Struct, kw_only=True):
    """All that is known of a project."""

    root: str
    settings: list[Found]
    missing: list[Missing]
    notes: list[str]
