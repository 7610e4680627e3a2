"""Where everything of one environment lives on its host."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

from msgspec import Struct

from devstack.errors import UsageError
from devstack.settings import Settings

UNFIT = re.compile(r"[\x00-\x1f;#,\"*?\[\]]|%\(here\)s")
"""Characters that Supervisor's file format, or a list of directories for sockets, can't hold. Supervisor replaces
``%(here)s`` before it looks at ``%%``: nothing escapes it."""
RUN_NAMES = 64
"""Names that are tried for a directory in /tmp."""
SOCKET_ROOM = 80
"""Bytes a socket's folder may have: sun_path holds 104 on macOS, ``/.s.PGSQL.65535.lock`` takes 20 of them."""

SETTINGS = "settings.json"
"""The file in an environment's directory that has the settings that its services were last started with."""
PORTS = "ports.json"
"""The file in an environment's folder that has the ports chosen for it."""


class Paths(Struct, frozen=True):
    """The folders of one environment of one checkout.

    Data and state live outside the checkout: ``git clean -fdx`` must not take the database along, and as root
    the checkout may be below a home that PostgreSQL's account can't enter.
    """

    root: Path
    """The checkout."""
    state: Path
    """The environment's own folder."""
    cache: Path
    """What can be made again: unpacked PostgreSQL programs, shared by all stacks of the user."""
    run: Path
    """Sockets; short enough for a socket's address."""
    log: Path
    """The services' logs."""

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def config(self) -> Path:
        """Rendered files: launchers, pgbouncer.ini, pg_hba.conf, supervisord.conf."""
        return self.state / "config"

    @property
    def applied(self) -> Path:
        """The configuration that each service became ready with."""
        return self.state / "applied"

    @property
    def logs(self) -> Path:
        """A link to :attr:`log`: Supervisor's file format can't hold every path that a checkout may have."""
        return self.state / "logs"

    @property
    def secrets(self) -> Path:
        return self.state / "secrets.json"

    @property
    def signing_key(self) -> Path:
        """Key that signs the manifests of backups; a reset leaves it, as it leaves the backups."""
        return self.state / "signing-key"

    @property
    def choices(self) -> Path:
        return self.state / "choices.json"

    @property
    def settings(self) -> Path:
        """The settings that the services were last started with, secrets among them."""
        return self.state / SETTINGS

    @property
    def ports(self) -> Path:
        """The ports that were chosen for the environment; a reset leaves them."""
        return self.state / PORTS

    @property
    def data_lock(self) -> Path:
        """Of commands that read or write backups, or what of the database they are made of."""
        return self.state / "data-lock"

    @property
    def journal(self) -> Path:
        """What a restore is at, so that the next command can finish or undo it."""
        return self.state / "journal.json"

    @property
    def swap(self) -> Path:
        """What a restore of a cluster's copy is at."""
        return self.state / "swap.json"

    @property
    def previous(self) -> Path:
        """Which database, or cluster, the last restore kept."""
        return self.state / "previous.json"

    @property
    def window(self) -> Path:
        """What db.profile has changed in the server's settings, until it is put back."""
        return self.state / "window.json"

    @property
    def schedule(self) -> Path:
        """What the host's scheduler runs, and how that went; a reset leaves it."""
        return self.state / "schedule"

    @property
    def aside(self) -> Path:
        """What a reset is removing."""
        return self.state / ".reset"

    @property
    def lock(self) -> Path:
        return self.state / "lock"


def paths_of(settings: Settings, *, home: Path, xdg: dict[str, str], uid: int) -> Paths:
    """The paths for these settings and this user.

    :raises UsageError: a folder whose name Supervisor's file format can't hold.
    """
    root = settings.root
    base = (
        Path(settings.stack.state_dir).expanduser() if settings.stack.state_dir else _default(home, xdg, uid, "state")
    )
    cache = (
        Path(settings.stack.cache_dir).expanduser() if settings.stack.cache_dir else _default(home, xdg, uid, "cache")
    )
    base, cache = root / base, root / cache
    for what, path in (("the project", root), ("the state", base), ("the cache", cache)):
        if not _is_utf8(path):
            raise UsageError(
                f"{what} can't be in {str(path)!r}",
                why="the name is not UTF-8, which records and rendered files are written in",
                fix="rename the directory, or choose another one",
            )
    if UNFIT.search(str(base)):
        raise UsageError(
            f"the state can't live in {str(base)!r}",
            why="the folder's name has one of the characters ; # , \" * ? [ ], a control character, or %(here)s",
            fix="set stack.state_dir to another folder",
        )
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-")[:24] or "stack"
    state = base / f"{slug}-{digest}" / settings.stack.env
    run = state / "run"
    if len(os.fsencode(run)) > SOCKET_ROOM or not is_plain(run):
        run = _short_run(state, uid)
    log = root / settings.stack.log_dir
    if settings.stack.env != "dev":
        log /= settings.stack.env
    return Paths(root=root, state=state, cache=cache, run=run, log=log)


def _short_run(state: Path, uid: int) -> Path:
    """Return the directory for sockets in the system's directory for temporary files, where others write too.

    One that is there and belongs to us is in use. Otherwise it is the first name that nobody has taken.

    :raises UsageError: others have taken them all.
    """
    short = hashlib.sha256(os.fsencode(state)).hexdigest()[:12]
    places = [Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 - checked here, and before each use
    base = next(place for place in places if not UNFIT.search(str(place)) and is_plain(place))
    free = None
    for name in (f"nv-{uid}-{short}", *(f"nv-{uid}-{short}-{number}" for number in range(2, RUN_NAMES + 1))):
        try:
            info = (base / name).lstat()
        except FileNotFoundError:
            free = free or base / name
            continue
        if stat.S_ISDIR(info.st_mode) and info.st_uid == uid:
            return base / name
    if free is None:
        raise UsageError(
            f"there is no directory for sockets in {base}",
            why=f"somebody else has taken all {RUN_NAMES} names from nv-{uid}-{short} on",
            fix="set stack.state_dir to a directory with a shorter path",
        )
    return free


def _is_utf8(path: Path) -> bool:
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def is_plain(path: Path) -> bool:
    """Check whether a shell takes a path in double quotes as it is: some of PostgreSQL's programs give their own
    directory and others to one that way."""
    return not re.search(r"[\x00-\x1f\x7f$`\"\\]", os.fspath(path))


def registry_of(home: Path, xdg: dict[str, str], uid: int) -> Path:
    """Where all of this user's environments are listed, of whatever checkout, and wherever their state is."""
    return _default(home, xdg, uid, "state") / "environments"


def _default(home: Path, xdg: dict[str, str], uid: int, kind: str) -> Path:
    """https://specifications.freedesktop.org/basedir-spec; for root /var, which other accounts can enter."""
    if uid == 0:
        return Path({"state": "/var/lib", "cache": "/var/cache"}[kind]) / "nv-devstack"
    variable, fallback = {"state": ("XDG_DATA_HOME", ".local/share"), "cache": ("XDG_CACHE_HOME", ".cache")}[kind]
    return Path(xdg.get(variable) or home / fallback) / "nv-devstack"
