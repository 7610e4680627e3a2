"""What was chosen for an environment."""

from __future__ import annotations

from msgspec import Struct


class Choices(Struct, kw_only=True):
    """What was chosen for an environment at its first start. Never what runs: that is asked of the engine."""

    runtime: str = ""
    postgres_bin: str = ""
    postgres_version: str = ""
    extensions: list[str] = []
    """What the PostgreSQL was chosen for."""
    tracks_statements: bool | None = None
    """Whether the PostgreSQL has pg_stat_statements; None: it was chosen before anybody asked."""
    postgres_image: str = ""
    """In containers: the image's name and its id, of which the version is true."""
    pgbouncer: str = ""
    """The program's path and time of change, or the image's name and id, that the version is true of."""
    pgbouncer_version: str = ""
