"""The application as programs on this machine reach it: its address, its variables, and where its modules are."""

from __future__ import annotations

import os
import socket
import string
import sys
from collections.abc import Mapping
from pathlib import Path

from devstack.credentials import Credentials
from devstack.settings import URL_VARIABLE, Settings, database_url, reachable_address, with_port
from devstack.variables import with_required_auth

HOSTS_VARIABLE = "NINAIVALAIGAL_HOSTS"
"""Variable with the names that the default application answers to."""


class Application:
    """The application's addresses and variables, which follow from settings and secrets alone."""

    label = "api"

    def __init__(self, settings: Settings, credentials: Credentials) -> None:
        self.settings = settings
        self.credentials = credentials

    @property
    def port(self) -> int:
        return self.settings.api.port

    @property
    def bind(self) -> str:
        return self.settings.api.bind

    @property
    def address(self) -> str:
        """The URL on this machine."""
        return f"http://{with_port(reachable_address(self.bind), self.port)}"

    @property
    def folder(self) -> Path:
        return self.settings.application

    @property
    def interpreter(self) -> str:
        """Its Python on this machine."""
        wanted = self.settings.api.python
        # not resolved: a virtual environment's python is a link, and which one was called matters
        return str(self.settings.root / Path(wanted).expanduser()) if wanted else sys.executable

    def urls(self, *, direct: bool = False) -> dict[str, str]:
        """What commands on this machine reach the database by; with ``direct``, all of it leads past PgBouncer."""
        db, pgb = self.settings.db, self.settings.pgb
        pooler = (reachable_address(pgb.bind), pgb.port)
        return self._urls((reachable_address(db.bind), db.port), None if direct else pooler)

    def _urls(self, db: tuple[str, int], pooler: tuple[str, int] | None) -> dict[str, str]:
        scheme, password, settings = self.settings.api.url_scheme, self.credentials.db_password, self.settings.db
        host, port = pooler or db
        return {
            "database_url": database_url(scheme, settings.user, password, host, port, settings.name),
            "direct_url": database_url(scheme, settings.user, password, *db, settings.name),
            "db_host": host,
            "db_port": str(port),
            "db_user": settings.user,
            "db_password": password,
            "db_name": settings.name,
        }

    def places_here(self) -> dict[str, str]:
        """Where a command on this machine looks for the application's modules and programs."""
        return {
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(self.folder.parent)]),
            "PATH": os.pathsep.join([str(Path(self.interpreter).parent), *os.get_exec_path()]),
        }

    def environment_here(self, *, direct: bool = False) -> dict[str, str]:
        """The application's variables for a command on this machine, wherever the application itself runs: those of
        ``.env``, the specification's, and ``api.env``, which wins."""
        return self._environment(self.urls(direct=direct), self.places_here(), self.folder)

    def _environment(self, urls: Mapping[str, str], places: Mapping[str, str], folder: Path) -> dict[str, str]:
        api, hosts = self.settings.api, ",".join(self._hosts())
        known = {**urls, "jwt_secret": self.credentials.jwt_secret, "dir": str(folder)}
        env = {
            URL_VARIABLE: urls["database_url"],
            "DATABASE_URL": urls["database_url"],
            "NINAIVALAIGAL_JWT_SECRET": self.credentials.jwt_secret,
            "MEMORY_PROVIDER": api.memory_provider,
            "NINAIVALAIGAL_DEBUG": str(int(api.debug)),
            "LOG_LEVEL": api.log_level,
            **({HOSTS_VARIABLE: hosts} if hosts else {}),
            "PYTHONUNBUFFERED": "1",
            **places,
        }
        for key, value in api.env.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            env[key] = string.Template(text).substitute(known)  # the settings were checked for other names
        return with_required_auth({**self.settings.dotenv.filled(env), **env})

    def _hosts(self) -> list[str]:
        """The names by which the default application may be called, besides ``localhost`` and its addresses."""
        reached = [socket.gethostname()] if self.settings.exposure(self.label) else []
        return [*self.settings.api.hosts, *reached]
