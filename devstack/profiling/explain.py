"""auto_explain, switched on for a while: the server's settings are put back, if need be by the next command."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from devstack import console
from devstack.errors import StackError
from devstack.lock import StackLock
from devstack.providers import PLANS
from devstack.services.postgres import MAINTENANCE, literal
from devstack.shell import Command

if TYPE_CHECKING:
    from devstack.paths import Paths
    from devstack.stack import Stack

KNOWN = """
SELECT json_build_object(
    'known', (SELECT json_object_agg(name, setting) FROM pg_settings WHERE name LIKE 'auto_explain.%'),
    'written', (SELECT json_object_agg(name, setting) FROM pg_file_settings
                 WHERE name LIKE 'auto_explain.%' AND sourcefile LIKE '%/postgresql.auto.conf'))
"""
"""What the server has loaded, and what somebody else set by ALTER SYSTEM before."""

QUIET = ["SET log_min_error_statement = panic", "SET log_error_verbosity = terse"]
"""So that a line in the log is one line."""


RELOAD = 3.0
"""Seconds for the server to take over its settings."""


class Changed(Struct, frozen=True):
    """What was changed, and what was written there before, as ALTER SYSTEM has it; None where nothing was."""

    before: dict[str, str | None]
    pid: int


def settings(threshold_ms: float, *, timing: bool) -> dict[str, str]:
    """auto_explain as we want it. Rows are counted, which shows what a filter throws away; each node's time is measured
    only if so wanted: it slows down every statement, whether it is logged or not. No values of parameters."""
    return {
        "log_min_duration": f"{threshold_ms:.0f}",
        "log_format": "json",
        "log_analyze": "on",
        "log_timing": "on" if timing else "off",
        "log_buffers": "on",
        "log_verbose": "on",  # with the statement's identifier, from PostgreSQL 16 on
        "log_nested_statements": "off",
        "log_level": "log",
        "log_parameter_max_length": "0",
        "sample_rate": "1",
    }


def lock(stack: Stack) -> StackLock:
    """Held while a window is open; the kernel frees it with the process."""
    return StackLock(stack.paths.state / "window-lock", stack.settings.stack.lock_timeout)


def admin(stack: Stack, *statements: str) -> Command:
    """Statements as the superuser, each a transaction of its own."""
    return stack.db.ask(MAINTENANCE, *statements)


@contextlib.contextmanager
def switched_on(stack: Stack, threshold_ms: float, *, timing: bool) -> Iterator[str]:
    """Have auto_explain log plans; why it does not, empty when it does. The window's lock is held."""
    wanted = {f"{PLANS}.{key}": value for key, value in settings(threshold_ms, timing=timing).items()}
    answer = stack.context.read(admin(stack, KNOWN))
    if not answer.ok:
        yield f"the server does not say whether it is loaded: {answer.stderr.strip()[:200]}"
        return
    found = json.loads(answer.stdout)
    known, written = found["known"] or {}, found["written"] or {}
    if f"{PLANS}.log_min_duration" not in known:
        yield f"{PLANS} is not loaded; inv db.start loads it, where PostgreSQL has it"
        return
    # what is so already stays as it is: each change is a line in the server's log
    wanted = {name: value for name, value in wanted.items() if known.get(name, value) != value}
    changed = Changed({name: written.get(name) for name in wanted}, os.getpid())
    stack.context.host.write_file(stack.paths.window, msgspec.json.encode(changed) + b"\n", 0o600)
    try:
        problem = ""
        try:
            _alter(stack, wanted)
        except StackError as error:
            problem = "; ".join([error.why, *error.evidence[:1]])
        yield problem or _overruled(stack, wanted)
    finally:
        try:
            _restore(stack, changed)
        except StackError as error:  # it was stopped meanwhile: its next start does it
            console.note(f"{PLANS} of {stack.db.name} is still on; the next command puts that right ({error.why})")


def raise_threshold(stack: Stack, threshold_ms: float) -> None:
    """Log less."""
    _alter(stack, {f"{PLANS}.log_min_duration": f"{threshold_ms:.0f}"})


def _overruled(stack: Stack, wanted: Mapping[str, str]) -> str:
    """Which setting the server has otherwise: what is on its command line, from db.parameters, wins. A new session may
    still have the old ones for a moment."""
    deadline = time.monotonic() + RELOAD
    while True:
        answer = stack.context.read(admin(stack, KNOWN))
        now = json.loads(answer.stdout)["known"] or {} if answer.ok else {}
        others = [name for name, value in wanted.items() if now.get(name) != value]
        if not others:
            return ""
        if time.monotonic() > deadline:
            return f"{others[0]} stays {now.get(others[0])}: take it out of db.parameters"
        time.sleep(0.02)


def _alter(stack: Stack, values: Mapping[str, str | None]) -> None:
    statements = [
        f"ALTER SYSTEM RESET {name}" if value is None else f"ALTER SYSTEM SET {name} = {literal(value)}"
        for name, value in values.items()
    ]
    # the sessions that are open take it over with their next statement
    stack.context.run(admin(stack, *statements, "SELECT pg_reload_conf()"), f"set {PLANS}")


def _restore(stack: Stack, changed: Changed) -> None:
    _alter(stack, changed.before)
    stack.context.host.remove(stack.paths.window)


def left_behind(paths: Paths) -> bool:
    """Whether a window is open, or was cut off."""
    return paths.window.exists()


def put_right(stack: Stack) -> None:
    """Put back what a killed command has left changed, as soon as the database runs."""
    if stack.context.dry or not left_behind(stack.paths):
        return
    held = lock(stack)
    if not held.try_acquire():
        return  # it is going on
    try:
        content = stack.context.host.read_file(stack.paths.window)
        if content is None or not stack.context.states(stack.names)[stack.db.name].running:
            return
        try:
            changed = msgspec.json.decode(content, type=Changed)
        except msgspec.MsgspecError:
            changed = Changed({f"{PLANS}.{key}": None for key in settings(0, timing=False)}, 0)
        try:
            _restore(stack, changed)
        except StackError as error:
            console.note(f"{PLANS} of {stack.db.name} is still on, after a db.profile that was cut off: {error.why}")
            return
        console.note(f"a db.profile was cut off: {PLANS} of {stack.db.name} is as it was before")
    finally:
        held.release()
