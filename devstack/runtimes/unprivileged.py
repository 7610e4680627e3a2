"""Start a program under another account, as root. Run as a script, of the standard library alone::

env -i NAME=VALUE… python -I -S unprivileged.py ACCOUNT PROGRAM ARGUMENT…
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping

LOCALE = ("ALL", "COLLATE", "CTYPE", "MESSAGES", "MONETARY", "NUMERIC", "TIME")
"""Categories of a locale that PostgreSQL has."""
KEPT = ("PATH", "LANG", "LANGUAGE", *(f"LC_{category}" for category in LOCALE), "TZ", "LD_LIBRARY_PATH")
"""The caller's variables that a program of another account gets."""


def kept(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a program of another account gets of an environment."""
    return {name: value for name, value in environ.items() if name in KEPT}


def main(account: str, program: list[str]) -> None:
    """Become a program that runs under an account, with its home directory."""
    entry = pwd.getpwnam(account)
    os.initgroups(account, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.execve(program[0], program, {**os.environ, "HOME": entry.pw_dir})  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
