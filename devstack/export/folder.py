"""The folder of an export: written whole, and never over a file that somebody else wrote."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack.errors import StackError, UsageError
from devstack.shell import typed

if TYPE_CHECKING:
    from devstack.container import ContainerContext

SIGNATURE = "nv-devstack-generated"
"""In the first line of every file, with a digest of what follows: it is written anew only while both fit."""
LINE = "inv dev.export writes this file anew, unless you have changed it"
SIGNED = re.compile(rf"\S* ?{SIGNATURE} ([0-9a-f]{{16}}): ")
RENDERED = "Rendered by nv-devstack"
"""What a template says of itself, which is not so here."""


class File(Struct, frozen=True):
    """A file of the export, by its path in the folder."""

    path: str
    content: str
    secret: bool = False
    """Whether only its owner may read it."""


def signed(content: str, comment: str = "#") -> str:
    """The text with the signature as its first line; nothing stays nothing."""
    first, _, rest = content.partition("\n")
    if first.startswith(f"{comment} {RENDERED}"):
        content = rest
    return f"{comment} {SIGNATURE} {_digest(content.encode())}: {LINE}\n{content}" if content else ""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def write(context: ContainerContext, folder: Path, files: Sequence[File]) -> None:
    """Write all files, or none.

    :raises UsageError: somebody else's file is in the way, or he could exchange what is written.
    :raises StackError: the folder can't be written to.
    """
    _check_closed(context, folder, files)
    try:
        foreign = [file.path for file in files if not _is_ours(folder / file.path, file.content)]
        if foreign:
            raise UsageError(
                f"{folder / foreign[0]} was changed since dev.export wrote it, or is somebody else's",
                why="what is in it would be lost; nothing was written",
                evidence=[f"so is {folder / path}" for path in foreign[1:]],
                fix="move it away, or write somewhere else with --output and compare",
            )
        for file in sorted(files, key=lambda file: not file.secret):  # their folder is made for them
            path = folder / file.path
            if not context.dry:
                _make(context, path.parent, 0o700 if file.secret and path.parent != folder else 0o755)
            context.write_file(path, file.content, 0o600 if file.secret else 0o644)
    except OSError as error:
        raise StackError(
            f"the export can't be written to {folder}",
            why=f"{error.strerror or error}: {error.filename or folder}",
            fix="name another folder: --output DIR",
        ) from None


def _check_closed(context: ContainerContext, folder: Path, files: Sequence[File]) -> None:
    """Check that nobody else has a say in where files are written, before there is one.

    :raises UsageError: a directory is somebody else's or writable by others, or one in ``folder`` is a link.
    """
    inner = {parent for file in files for parent in Path(file.path).parents}
    for path in sorted(folder / name for name in inner):
        if path != folder and path.is_symlink():
            raise UsageError(
                f"the export can't be kept in {folder}",
                why=f"{path} is a link, to {os.path.realpath(path)}; nothing was written",
                fix=f"remove the link: rm {typed(path)}; or name another directory: --output DIR",
            )
        context.host.check_closed(path, "the export", setting="--output DIR", root=context.paths.root)


def _make(context: ContainerContext, folder: Path, mode: int) -> None:
    """A folder that is not there yet; what is there keeps its mode."""
    for parent in reversed([folder, *folder.parents]):
        if not parent.is_dir():
            context.make_dir(parent, mode if parent == folder else 0o755)


def _is_ours(path: Path, content: str) -> bool:
    """Whether a file may be written: it is not there, is as it was written, or would stay as it is."""
    if not os.path.lexists(path):
        return True
    if path.is_symlink() or not path.is_file():
        return False
    found = path.read_bytes()
    first, _, rest = found.partition(b"\n")
    line = SIGNED.match(first.decode(errors="replace"))
    return not found or found == content.encode() or (line is not None and line[1] == _digest(rest))
