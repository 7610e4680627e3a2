"""Start a program under another account, as root, without the rest of root's environment.

The account could read it in ``/proc/PID/environ``. Run as a script, of the standard library alone::

    python -I -S unprivileged.py ACCOUNT PROGRAM ARGUMENT…
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping, Sequence

KEPT = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH")
"""The caller's variables that a program of another account gets, besides those of the locale."""
LOCALE_PREFIX = "LC_"
CLEAN = "--clean"
"""First argument of the script once its own environment has nothing else any more."""


def kept(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a program of another account gets of an environment."""
    return {name: value for name, value in environ.items() if name in KEPT or name.startswith(LOCALE_PREFIX)}


def main(words: Sequence[str]) -> None:
    """Become the program. The environment goes first, in a start of this script that is still root's: from the change
    of the account on there is no process that the account could read it from."""
    if words[0] != CLEAN:
        again = [sys.executable, "-I", "-S", __file__, CLEAN, *words]
        os.execve(again[0], again, kept(os.environ))  # noqa: S606
    account, *program = words[1:]
    entry = pwd.getpwnam(account)
    os.initgroups(account, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.execve(program[0], program, {**kept(os.environ), "HOME": entry.pw_dir})  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
