"""Settings for commands that stop, inspect or back up what runs: a wrong setting does not keep them from it.

What is refused is replaced by what the services were last started with, which is recorded with the environment; else by
the value of the layer before, or the default. Settings that say *which* environment is meant have no replacement.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from devstack.envfile import EnvFile, read_env_file
from devstack.errors import UsageError, labelled
from devstack.settings import (
    FIELDS,
    SECRETS,
    SECTIONS,
    Entry,
    Judged,
    Refusal,
    Replaced,
    Settings,
    assemble,
    contradictions,
    judge,
    layers_of,
    refused,
    shown_value,
    yaml_entries,
)

IDENTITY = ("stack.env", "stack.host", "stack.state_dir", "data.dir", "remote.dir")
"""Settings that say which environment is meant, where it is, and where its backups are."""
IDENTITY_VARIABLES = re.compile(r"NV_ENV|NV_HOST|STACK_ENV|STACK_HOST|STATE_DIR|DATA_DIR|REMOTE_DIR", re.IGNORECASE)
LIKE_IDENTITY = re.compile(r"env|host|state|dir|folder|path", re.IGNORECASE)
"""Names of settings that may be meant for one of these."""
HOST = re.compile(r"^[^#\n]*\bhost[\"']?\s*:\s*[\"']?[^\s\"'#,}]", re.MULTILINE)
"""A line of YAML that may name another machine."""
COMMON = ("stack", "data", "health", "hooks", "remote")
"""Sections that are of no service alone."""
WIDTH = 73
"""Columns of a note, beside its label."""
ROUNDS = 3
"""Times that contradictions are resolved: by what is recorded, then by defaults."""


class Place(NamedTuple):
    """Where an environment is, as the list of environments has it."""

    env: str
    base: Path
    """What ``stack.state_dir`` would be."""
    record: Path


class Tolerance(NamedTuple):
    """What a command that tolerates wrong settings knows besides the files that can be read."""

    broken: UsageError | None = None
    """Why the project's file is not read at all."""
    text: str = ""
    """The text of that file."""


class Memory(NamedTuple):
    """What is known of the project's environments from before."""

    record: Callable[[Settings], Path]
    """Return the file with the settings that an environment was last started with."""
    places: Callable[[], Collection[Place]]
    """Return the environments of the project."""


def tolerant_settings(
    config: Any, root: Path, environ: Mapping[str, str], given: Iterable[Entry], tolerance: Tolerance, memory: Memory
) -> Settings:
    """Return the settings for a command that goes on without those that are wrong.

    :raises UsageError: what is wrong may say which environment is meant.
    """
    path = root / ".env"
    file = read_env_file(path, environ)
    layers = layers_of(config, root, environ, file, given)
    project: list[Entry] = []
    wrong: list[Replaced] = []
    if broken := tolerance.broken:
        place = _place([*layers.shared, *layers.own], tolerance, memory)
        project = _remembered(place, broken)
        why = broken.why or "\n".join(broken.evidence[-2:])
        instead = f"what environment {place.env} was last started with"
        wrong.append(Replaced(Refusal(broken.what, "", why, (broken.fix or ["correct it"])[0]), instead))
    wrong += _lines(file)
    judged = judge([*layers.shared, *project, *layers.own])
    settings, found = _despite(judged, lambda: assemble(judged, root, layers.dotenv), memory)
    return msgspec.structs.replace(layers.finish(settings), wrong=[*wrong, *found])


def _lines(file: EnvFile) -> list[Replaced]:
    """Return the lines of a ``.env`` file that are left out.

    :raises UsageError: one may say which environment is meant.
    """
    for problem in file.problems:
        if IDENTITY_VARIABLES.search(problem.text):
            raise problem.error
    return [
        Replaced(Refusal(error.what, "", error.why, error.fix[0]), "the other lines")
        for error in (problem.error for problem in file.problems)
    ]


def _place(layers: Iterable[Entry], tolerance: Tolerance, memory: Memory) -> Place:
    """Return the one environment that can be meant though the project's file is not read.

    :raises UsageError: there are several, or none, or the file may name another machine.
    """
    assert tolerance.broken
    named = {entry.path: str(entry.value) for entry in layers if entry.path in ("stack.env", "stack.state_dir")}
    found = [
        place for place in memory.places() if place.env == named.get("stack.env", place.env) and place.record.is_file()
    ]
    if len(found) != 1 or HOST.search(tolerance.text):
        broken, several = tolerance.broken, sorted(place.env for place in found)
        fix = [f"or name the environment: -e {several[0]}; there are {', '.join(several)}"] if len(several) > 1 else []
        raise UsageError(broken.what, why=broken.why, evidence=broken.evidence, fix=[*broken.fix, *fix])
    return found[0]


def _remembered(place: Place, broken: UsageError) -> list[Entry]:
    """Return the settings that an environment was last started with, in place of the project's file.

    :raises UsageError: there are none.
    """
    values = {**recorded(place.record), "stack.env": place.env, "stack.state_dir": str(place.base)}
    if "data.dir" not in values:
        raise broken
    return [Entry(path, value, str(place.record), False) for path, value in values.items()]


def _despite(judged: Judged, make: Callable[[], Settings], memory: Memory) -> tuple[Settings, list[Replaced]]:
    """Return settings with replacements for what is refused, and what that is.

    :raises UsageError: what is refused may say which environment is meant, or nothing goes together.
    """
    refusals = list(judged.refusals)
    if any(_identifies(refusal.path) for refusal in refusals):
        raise refused(refusals)
    settings = make()
    if not refusals and not any(contradictions(settings)):
        return settings, []
    record = memory.record(settings)
    known = recorded(record)
    for path in judged.refused:
        if path in known:
            judged.values[path], judged.origins[path] = known[path], str(record)
    for number in range(ROUNDS):
        settings = make()
        more = list(contradictions(settings))
        if not more:
            break
        refusals += [refusal for refusal in more if refusal not in refusals]
        for path in {path for refusal in more for path in (refusal.path, *refusal.others)}:
            if path in known and not number:
                judged.values[path], judged.origins[path] = known[path], str(record)
            else:
                judged.values.pop(path, None)
                judged.origins.pop(path, None)
    else:
        raise refused(refusals)
    return settings, [Replaced(refusal, _instead(settings, refusal, str(record))) for refusal in refusals]


def _identifies(path: str) -> bool:
    """Check whether a setting, or the one that was probably meant, says which environment is meant."""
    section, _, key = path.partition(".")
    if path in FIELDS:
        return path in IDENTITY
    sections = [section] if section in SECTIONS else difflib.get_close_matches(section, SECTIONS, n=2, cutoff=0.5)
    for name in sections:
        keys = [known.partition(".")[2] for known in FIELDS if known.startswith(f"{name}.")]
        meant = difflib.get_close_matches(key.lower(), keys, n=1, cutoff=0.5)
        if any(one.startswith(f"{name}.") for one in IDENTITY) and (not key or LIKE_IDENTITY.search(key)):
            return True
        if meant and f"{name}.{meant[0]}" in IDENTITY:
            return True
    return False


def _instead(settings: Settings, refusal: Refusal, record: str) -> str:
    paths = [path for path in (refusal.path, *refusal.others) if path in FIELDS]
    return ", ".join(_value(settings, path, record, named=len(paths) > 1) for path in paths)


def _value(settings: Settings, path: str, record: str, *, named: bool) -> str:
    section, _, key = path.partition(".")
    value = getattr(getattr(settings, section), key)
    text = "***" if path in SECRETS and value else shown_value(value)
    origin = settings.origin(path)
    where = "as at the last start" if origin == record else origin if path not in settings.origins else f"from {origin}"
    return f"{f'{path} ' if named else ''}{text}, {where}"


def replaced(settings: Settings, path: str, value: Any, refusal: Refusal, instead: str) -> Settings:
    """Return settings with another value for one that can't be used on this machine."""
    section, _, key = path.partition(".")
    changed = msgspec.structs.replace(getattr(settings, section), **{key: value})
    wrong = [*settings.wrong, Replaced(refusal, instead)]
    return msgspec.structs.replace(settings, wrong=wrong, **{section: changed})


def note(wrong: list[Replaced]) -> str:
    """Return what to say of settings that a command goes on without."""
    one = len(wrong) == 1
    lines = ["a setting is wrong" if one else f"{len(wrong)} settings are wrong"]
    lines[0] += f"; this command goes on without {'it' if one else 'them'}"
    for refusal, instead in wrong:
        *said, fix = refusal.lines()
        lines += [*said, f"  used instead: {instead}" if instead else "  left out", fix]
    lines = [part for text in lines for line in text.splitlines() for part in _wrapped(line)]
    rows = [("note" if not number else "", line) for number, line in enumerate(lines)]
    return labelled([*rows, ("fix", f"correct {'it' if one else 'them'}; until then nothing is started or changed")])


def _wrapped(line: str) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    further = f"{indent}  "
    return textwrap.wrap(line, WIDTH, subsequent_indent=further, break_long_words=False, break_on_hyphens=False)


# the record


def recorded(record: Path) -> dict[str, Any]:
    """Return the settings that an environment was last started with, by path; none if there is no record."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        for entry in yaml_entries(msgspec.json.decode(record.read_bytes(), type=dict[str, dict[str, Any]]), ""):
            with contextlib.suppress(KeyError, msgspec.MsgspecError):  # of another version of this program
                found[entry.path] = msgspec.convert(entry.value, FIELDS[entry.path].type)
    return found


def with_service(record: Path, settings: Settings, label: str) -> str:
    """Return the record with the settings that a service was started with now."""
    known: dict[str, dict[str, Any]] = {}
    for path, value in recorded(record).items():
        section, _, key = path.partition(".")
        known.setdefault(section, {})[key] = value
    known |= {section: msgspec.to_builtins(getattr(settings, section)) for section in (label, *COMMON)}
    return msgspec.json.encode(known).decode() + "\n"
