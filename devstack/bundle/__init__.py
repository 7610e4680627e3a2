"""One zip for a report of a problem: what runs, how it is set, what it said; without secrets."""

from __future__ import annotations

import functools
import io
import json
import os
import time
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack import console
from devstack.bundle.parts import PATIENCE, Part, parts_of
from devstack.bundle.redact import LEAST, Redactor
from devstack.bundle.secrets import secrets_of
from devstack.errors import StackError, UsageError
from devstack.threads import run_at_once

if TYPE_CHECKING:
    from devstack.stack import Stack


NOT_REDACTED = (
    "Known secrets, and what looks like a password, token or key, are replaced by ***. Not found are secrets of other"
    " programs that look like none of these, and ones that are compressed, encrypted, or written in unusual ways; and"
    " nobody knows what the application logs of its users' data. Look through these files before you send them."
)


class Withheld(Exception):
    """What can't be redacted surely stays out; the text says why, and nothing of it."""


class Entry(Struct, frozen=True):
    """A file of a bundle. ``size`` is in bytes; ``problem`` says why its content is missing."""

    name: str
    size: int
    what: str
    seconds: float
    problem: str = ""


class Bundle(Struct, frozen=True):
    """A bundle that was written."""

    path: Path
    size: int
    entries: list[Entry]


def write_bundle(stack: Stack, output: str, now: datetime) -> Bundle:
    """Collect and write a bundle: to a file or into a folder if given, otherwise into the folder of logs.

    :raises StackError: it could not be written.
    :raises UsageError: there is such a file already, or no folder for it.
    """
    name = f"nv-bundle-{now:%Y%m%d-%H%M%SZ}"
    paths = _destinations(stack, output, name)
    path = next(paths)
    files, entries = _collected(stack)
    content = _zip(path.stem, files, now)
    if stack.context.dry:
        console.out(f"# write {path} (0600, {len(content)} bytes)")
        return Bundle(path, len(content), entries)
    try:
        if not path.parent.is_dir():
            stack.context.make_dir(path.parent, 0o755)
    except OSError as error:
        raise _unwritable(path, error) from None
    while True:
        try:
            stack.context.host.write_file(path, content, 0o600, replace=False)
            return Bundle(path, len(content), entries)
        except FileExistsError:  # another one of the same second
            path = next(paths)
        except OSError as error:
            raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> StackError:
    return StackError(
        f"the bundle can't be written to {path}",
        why=error.strerror or str(error),
        fix="name a file elsewhere: inv dev.bundle --output FILE",
    )


def _destinations(stack: Stack, output: str, name: str) -> Iterator[Path]:
    """Files that are not there yet, best first.

    :raises UsageError: the file that was asked for is there, or its folder is not.
    """
    path = Path(output).expanduser().absolute() if output else stack.paths.log
    folder = path
    names = [f"{name}.zip", *(f"{name}-{n}.zip" for n in range(2, 100))]
    if output and not path.is_dir():
        folder, names = path.parent, [path.name]
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}", fix="make it, or name a file in another")
    yield from (folder / name for name in names if not os.path.lexists(folder / name))
    raise UsageError(f"{path} is there already", fix="name another file, or leave out --output")


def _zip(folder: str, files: dict[str, str], now: datetime) -> bytes:
    """All files in a folder of the zip's name, each private also when unpacked."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            info = zipfile.ZipInfo(f"{folder}/{name}", now.timetuple()[:6])
            info.external_attr = 0o100600 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, text)
    return memory.getvalue()


# collecting


def _collected(stack: Stack) -> tuple[dict[str, str], list[Entry]]:
    """Every part, all at once, each redacted; one that fails or hangs is replaced by the reason."""
    redactor = Redactor(secrets_of(stack))
    answers: dict[str, tuple[str, str, float]] = {}
    began = time.monotonic()

    def run(part: Part) -> None:
        try:
            text, problem = _redacted(redactor, part), ""
        except FileNotFoundError:
            problem = "there is none"
            text = problem + "\n"
        except Withheld as error:
            problem = f"left out: {error}"
            text = problem + "\n"
        except Exception as error:  # whatever it is, the other parts are worth having
            reason = "" if redactor.too_short else f": {redactor.text(str(error)) or type(error).__name__}"
            problem = f"left out{reason}".splitlines()[0]
            text = f"left out{reason}\n"
        answers[part.name] = (text, problem, time.monotonic() - began)

    parts = list(parts_of(stack))
    run_at_once([functools.partial(run, part) for part in parts], PATIENCE)
    late = f"left out: no answer within {PATIENCE:g} s"
    files, entries = {}, []
    for part in parts:
        text, problem, seconds = answers.get(part.name, (late + "\n", late, PATIENCE))
        files[part.name] = text
        entries.append(Entry(part.name, len(text.encode()), part.what, round(seconds, 3), problem))
    timings = [{"file": e.name, "what": e.what, "seconds": e.seconds, "problem": e.problem or None} for e in entries]
    text = json.dumps({"redacted": True, "not_redacted": NOT_REDACTED, "collected": timings}, indent=2) + "\n"
    files["contents.json"] = text
    return files, [*entries, Entry("contents.json", len(text.encode()), "this list, with how long each took", 0.0)]


def _redacted(redactor: Redactor, part: Part) -> str:
    """A part's text.

    :raises Withheld: it can't be shown.
    """
    if part.free and redactor.too_short:
        raise Withheld(f"a secret of fewer than {LEAST} characters can't be found surely")
    found = part.collect()
    text = redactor.text(found) if isinstance(found, str) else json.dumps(redactor.data(found), indent=2) + "\n"
    if redactor.finds(text):
        raise Withheld("it holds a secret in a way that could not be redacted")
    return text
