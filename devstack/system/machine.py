"""The machine itself, its disks, and the stack's folders on them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from devstack import console
from devstack.errors import UsageError
from devstack.host import ACCOUNT
from devstack.shell import typed
from devstack.system import Fact

if TYPE_CHECKING:
    from devstack.stack import Stack

LITTLE_DISK = 1 << 30
"""Bytes free below which a disk is worth a warning: a first start takes about a tenth of it."""
MAKE_ACCOUNT = f"useradd --system --user-group --no-create-home --shell /bin/false {ACCOUNT}"
COUNTING = 0.4
"""Seconds to add up a folder's files for; a database may have very many."""


def hardware(stack: Stack) -> list[Fact]:
    """Operating system, processors, memory, Python and user."""
    import psutil

    memory = psutil.virtual_memory()
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    model = _processor()
    return [
        Fact("machine", "system", f"{_system()}, {platform.system()} {platform.release()}, {platform.machine()}"),
        Fact("machine", "processors", f"{processors}{f' × {model}' if model else ''}", number=processors),
        Fact(
            "machine",
            "memory",
            f"{console.size(memory.available)} of {console.size(memory.total)} available",
            number=memory.available,
        ),
        Fact("machine", "Python", f"{platform.python_version()} at {sys.executable}", True),
        _user(stack),
    ]


def _system() -> str:
    """The system's name for people: ``Debian GNU/Linux 12 (bookworm)``, ``macOS 15.1``."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"  # from the file that sw_vers reads
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        return platform.processor() if sys.platform == "darwin" else ""
    return match[1] if match else ""


def _user(stack: Stack) -> Fact:
    host = stack.context.host
    if not host.is_root:
        return Fact("machine", "user", f"{host.user} (uid {host.uid})")
    try:
        value = f"{host.user} (uid 0); PostgreSQL and PgBouncer run as {host.account}"
        return Fact("machine", "user", value, False if host.shares_account else None, own_account(stack))
    except UsageError as error:
        return Fact("machine", "user", f"{host.user} (uid 0); {error.what}")


def own_account(stack: Stack) -> str:
    """Return how the services get an account of their own; empty if they have one."""
    host, data = stack.context.host, stack.db.data
    if not host.shares_account:
        return ""
    advice = [] if host.has_account else [f"make the account {ACCOUNT}: {MAKE_ACCOUNT}"]
    if data.is_dir():
        advice.append(f"give it the data: inv dev.down && chown -R -h {typed(f'{ACCOUNT}:', data)}")
    return "; ".join(advice)


def disks(stack: Stack) -> list[Fact]:
    """Free space where the stack writes."""
    return [
        _disk(name, folder)
        for name, folder in (("disk of the state", stack.paths.state), ("disk of the logs", stack.paths.log))
    ]


def _disk(name: str, folder: Path) -> Fact:
    there = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    try:
        disk = shutil.disk_usage(there)
    except OSError as error:
        return Fact("machine", name, f"{there}: {error.strerror}", False)
    enough = disk.free >= LITTLE_DISK
    value = f"{console.size(disk.free)} of {console.size(disk.total)} free, at {there}"
    return Fact("machine", name, value, enough, "" if enough else "free some space on it", number=disk.free)


def folders(stack: Stack) -> list[Fact]:
    """Where things are, and how much there is."""
    paths = stack.paths
    named = {
        "state": paths.state,
        "cache": paths.cache,
        "logs": paths.log,
        "backups": stack.settings.root / stack.settings.data.dir,
    }
    return [_folder(name, path, needed=name in ("state", "logs")) for name, path in named.items()]


def _folder(name: str, path: Path, *, needed: bool) -> Fact:
    there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK) or not there.is_dir():
        advice = f"let this user write in {there}, or set another folder (stack.state_dir, stack.log_dir)"
        return Fact("folders", name, f"{path} (can't be written: see {there})", False, advice, needed)
    if there != path:
        return Fact("folders", name, f"{path} (not there yet)", number=0)
    deadline = time.monotonic() + COUNTING
    total, whole = 0, True
    for size in _sizes(path):
        total += size
        if time.monotonic() > deadline:
            whole = False
            break
    return Fact("folders", name, f"{path} ({'' if whole else 'more than '}{console.size(total)})", number=total)


def _sizes(folder: Path) -> Iterator[int]:
    """Bytes on the disk of each file below."""
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:
                continue  # gone meanwhile
