"""The stack as another engine is to run it: the same services, told where they reach each other there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from devstack.credentials import Credentials, owner_verifier
from devstack.errors import UsageError
from devstack.providers import Programs
from devstack.services.contained import ContainedApi, ContainedPgBouncer, ContainedPostgres
from devstack.services.images import UNKNOWN_PGBOUNCER, UNKNOWN_POSTGRES, Images
from devstack.variables import AUTH_VARIABLE

if TYPE_CHECKING:
    from devstack.container import ContainerContext
    from devstack.settings import Settings
    from devstack.stack import Stack

NATIVE = {
    "db.bin_dir": "its PostgreSQL comes with db.image",
    "pgb.binary": "its PgBouncer comes with pgb.image, or is installed from the distribution",
    "api.python": "its Python comes with api.image, its packages from requirements.txt or pyproject.toml",
}
"""Settings that choose a program of this machine, and what there is in a container instead."""


class Peers(Struct, frozen=True):
    """Host and port that the services reach the database and PgBouncer by."""

    db: tuple[str, int]
    pgb: tuple[str, int]


class PlannedPostgres(ContainedPostgres):
    """nv-db, which nobody here can ask."""

    def __init__(
        self, context: ContainerContext, settings: Settings, credentials: Credentials, images: Images, peers: Peers
    ) -> None:
        super().__init__(context, settings, credentials, images)
        self.peers = peers

    @property
    def peer(self) -> tuple[str, int]:
        return self.peers.db

    def verifier(self) -> str:
        return owner_verifier(self.credentials)

    def of_major(self, major: int, *, tracks: bool = True) -> PlannedPostgres:
        """The same with a PostgreSQL of this version."""
        made = PlannedPostgres(self.context, self.settings, self.credentials, self.images, self.peers)
        made.programs = Programs(Path(), f"{major}.0", tracks_statements=tracks, image=self.settings.db.image)
        return made


class PlannedPgBouncer(ContainedPgBouncer):
    """nv-pgbouncer, the same way."""

    database: PlannedPostgres

    @property
    def peer(self) -> tuple[str, int]:
        return self.database.peers.pgb


class Plan:
    """The services of one environment for an export.

    :raises UsageError: a setting chooses a program of this machine.
    """

    def __init__(self, stack: Stack, peers: Peers, *, reload: bool | None = None) -> None:
        settings = stack.settings
        check_portable(settings)
        if reload is not None:
            settings = msgspec.structs.replace(settings, api=msgspec.structs.replace(settings.api, reload=reload))
        self.settings = settings
        credentials = stack.db.credentials
        self.images = Images(stack.context, settings, lambda: stack.chosen, _choose_nothing)
        db = PlannedPostgres(stack.context, settings, credentials, self.images, peers)
        major = int(UNKNOWN_POSTGRES.split(".")[0])
        self.db = db.of_major(major, tracks=_tracks(stack))
        self.pgb = PlannedPgBouncer(stack.context, settings, credentials, self.db, self.images)
        self.pgb.programs = Programs(Path(), UNKNOWN_PGBOUNCER, image=self.images.of_pgb().name)
        self.api = ContainedApi(stack.context, settings, credentials, self.pgb, self.images)
        self.api.check_files()

    def variables(self) -> tuple[dict[str, str], dict[str, str]]:
        """The application's variables: what anybody may read, and what may be a secret."""
        env, given = self.api.environment(), {**self.settings.dotenv.values, **self.settings.api.env}
        open_ = ("MEMORY_PROVIDER", "NINAIVALAIGAL_DEBUG", "LOG_LEVEL", "PYTHONUNBUFFERED", "PYTHONPATH", AUTH_VARIABLE)
        public = {name: env[name] for name in open_ if name not in given}
        return public, {name: value for name, value in sorted(env.items()) if name not in public}


def check_portable(settings: Settings) -> None:
    """:raises UsageError: a setting chooses a program of this machine, which no container has."""
    section = {"db": settings.db, "pgb": settings.pgb, "api": settings.api}
    found = [path for path in NATIVE if getattr(section[path.split(".")[0]], path.split(".")[1])]
    if found:
        variables = " ".join(f"INVOKE_{path.upper().replace('.', '_')}=" for path in found)
        raise UsageError(
            "a setting chooses a program of this machine, and no container has it",
            evidence=[f"{path} from {settings.origin(path)}: without it, {NATIVE[path]}" for path in found],
            fix=f"leave it out for the export: {variables} inv dev.export …",
        )


def _tracks(stack: Stack) -> bool:
    """Whether the image counts statements: as it was asked, where this environment has run on it; else it should."""
    chosen, image = stack.chosen, stack.settings.db.image
    return chosen.tracks_statements is not False or chosen.postgres_image.partition(" ")[0] != image


def _choose_nothing(**_: object) -> None:
    return
