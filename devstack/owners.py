"""Who may change a file or a directory, by its owner and its mode."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Collection, Mapping
from functools import lru_cache


def uids(environ: Mapping[str, str]) -> set[int]:
    """Return the user ids whose files this user obeys: his own, root's, and under sudo those of whoever called it."""
    found = {os.getuid(), 0}
    if os.getuid() == 0 and (caller := environ.get("SUDO_UID", "")).isdecimal():
        found.add(int(caller))
    return found


def is_trusted(uid: int, trusted: Collection[int]) -> bool:
    """Check whether a user id is trusted: it is one of ``trusted``, or owns the root directory.

    Whoever owns ``/`` can exchange everything. In a user namespace that may be an id that root has no other name for.
    """
    return uid in trusted or uid == os.stat("/").st_uid


def others(info: os.stat_result, trusted: Collection[int]) -> str:
    """Return who else may change a file, or what is in a directory; empty if nobody."""
    if not is_trusted(info.st_uid, trusted):
        return f"belongs to {name_of(info.st_uid)}"
    if stat.S_ISLNK(info.st_mode):
        return ""
    if info.st_mode & stat.S_IWOTH:
        return "is writable by everybody"
    if info.st_mode & stat.S_IWGRP and not _is_private(info.st_gid, frozenset(trusted)):
        return f"is writable by the group {group_of(info.st_gid)}"
    return ""


def name_of(uid: int) -> str:
    """Return the name of a user; ``uid N`` if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def group_of(gid: int) -> str:
    """Return the name of a group, or its number."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


@lru_cache
def _is_private(gid: int, trusted: frozenset[int]) -> bool:
    """Check whether a group has nobody but a trusted user, whose own it is: many systems give each user one, and have
    files writable by it."""
    try:
        group = grp.getgrgid(gid)
        owner = pwd.getpwnam(group.gr_name)
    except KeyError:
        return False
    members = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == gid} | set(group.gr_mem)
    return owner.pw_gid == gid and owner.pw_uid in trusted and members <= {owner.pw_name}
