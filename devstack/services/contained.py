"""What the services are where each runs in a container of its own: images, paths and addresses inside."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from devstack import volumes
from devstack.container import ContainerContext
from devstack.credentials import Credentials
from devstack.errors import StackError, UsageError
from devstack.runtimes import Inside, ServiceSpec
from devstack.runtimes.containers import Containers
from devstack.services import passage
from devstack.services.api import Api, Beside
from devstack.services.folders import Folders, VolumeFolders
from devstack.services.images import Images
from devstack.services.pgbouncer import PgBouncer, nowhere
from devstack.services.postgres import ENGLISH, SHARED_MEMORY, Postgres
from devstack.settings import Settings
from devstack.shell import Command, argv

OWN = Path("/tmp/nv")  # noqa: S108 - inside a container, where nobody else is
"""Where the files of the stack are inside."""

VOLUME = Path("/var/lib/nv-db")
"""Where the database's volume is inside. Not where images declare theirs: PostgreSQL 18's have moved it."""

INDEX_MB = 320
"""Shared memory for building an index with :data:`devstack.services.postgres.BUILDING`, and what else is in it."""

ROOM = Path("/tmp")  # noqa: S108 - inside a container, where nobody else is
"""Where files are put in a container that is not the database's."""

DB_PORT, PGB_PORT = 5432, 6432
"""Inside, where nothing can be in the way."""

SIZED = '[ "$(stty size)" != "0 0" ] || stty rows "$1" cols "$2"; shift 2; exec "$@"'
"""Gives a terminal inside the size of the one outside. Docker does so a moment after the start, and gives up where that
takes long: psql shows one row page by page then."""

RELOADER = "containers/reload.py"
ACCOUNT, SETUP = "containers/account.sh", "containers/db.sh"


def peer(service: Postgres | PgBouncer) -> str:
    """What the other containers reach a service by: its name, or its address where names lead nowhere."""
    runtime = service.context.runtime
    if isinstance(runtime, Containers) and runtime.named:
        return service.name
    return service.context.address(service.name) or "unknown"


class ContainedPostgres(Postgres):
    """nv-db, from an image that has PostgreSQL and the extensions."""

    account = "postgres"

    def __init__(self, context: ContainerContext, settings: Settings, credentials: Credentials, images: Images) -> None:
        super().__init__(context, settings, credentials, images.postgres)
        self.images = images
        self._programs_in = ""
        """Name of the container that programs run in while the database's does not."""
        self._shared: int | None = None
        """Bytes of shared memory, once the container was asked: an engine takes a while to answer."""

    @property
    def volume(self) -> str:
        return f"{self.name}-data"

    @property
    def data(self) -> Path:
        return VOLUME / "pgdata"

    @property
    def sockets(self) -> Path:
        return OWN / "run"

    @property
    def rules(self) -> Path:
        return OWN

    @property
    def listens(self) -> tuple[str, int]:
        return "*", DB_PORT

    @property
    def peer(self) -> tuple[str, int]:
        return peer(self), DB_PORT

    def spec(self) -> ServiceSpec:
        setup = {
            "NV_VOLUME": str(VOLUME),
            "NV_DATA": str(self.data),
            "NV_RULES": str(self.rules),
            "NV_SOCKETS": str(self.sockets),
            "NV_MAJOR": str(self.programs.major),
            "NV_INITDB": argv(self.initdb_options()),
        }
        spec = super().spec()
        db = self.settings.db
        inside = Inside(
            image=db.image,
            ports={DB_PORT: db.port},
            bind=db.bind,
            volumes={self.volume: str(VOLUME)},
            files={
                str(self.rules / "pg_hba.conf"): self._hba(),
                str(self.rules / "pg_ident.conf"): self._ident(),
            },
            account=self._account_script(),
            setup=(self.settings.templates / SETUP).read_text(encoding="utf-8"),
            memory_mb=db.memory_mb,
            root=True,
            # enough to build an index by several processes, where that leaves as much for the rest
            shm_mb=max(64, min(INDEX_MB, db.memory_mb // 2), db.memory_mb // 4),
        )
        return replace(spec, cwd=Path("/"), env={**spec.env, **setup}, inside=inside)

    def _account_script(self) -> str:
        return (self.settings.templates / ACCOUNT).read_text(encoding="utf-8")

    def _idents(self) -> set[str]:
        return {self.account}

    def _program(self, words: Sequence[str], env: Mapping[str, str], *, tty: bool = False) -> Command:
        if not tty:
            return super()._program(words, env)
        size = shutil.get_terminal_size()
        sized = ["sh", "-c", SIZED, "sh", str(size.lines), str(size.columns), self.programs.path(words[0]), *words[1:]]
        return self.context.exec(self.name, sized, env, user=self.account, tty=True)

    def data_is_there(self) -> bool:
        return volumes.is_there(self.context, self.volume)

    def remove_data(self) -> None:
        volumes.remove(self.context, self.volume)

    def data_fits(self) -> bool:
        return self._major_of_data() == str(self.programs.major)

    def has_server(self) -> bool:
        return self.context.states([self.name])[self.name].running

    def runs_programs(self) -> bool:
        """Whether the container that runs is of the image that it would be started from."""
        state = self.context.states([self.name])[self.name]
        return state.running and state.image == self.images.id_of(self.settings.db.image).removeprefix("sha256:")

    def check(self, *, fresh: bool = False) -> None:
        """Check the same, in the container that runs where it has the same image, else in one of its own without the
        data."""
        self.programs = self.images.postgres(start=True)
        super().check(fresh=fresh)

    def _major_of_data(self) -> str:
        return self.folders.read(self.data.name, "PG_VERSION")

    def _check_major(self) -> None:
        major = self._major_of_data()
        if major and major != str(self.programs.major):
            raise UsageError(
                f"the data of {self.name} was made by PostgreSQL {major}, this is {self.programs.version}",
                why=f"PostgreSQL {self.programs.major} can't read {self.place}; nothing was changed",
                fix=f"set db.image to one with PostgreSQL {major}",
            )

    def _read_rules(self) -> str | None:
        answer = self.context.read(self._run(["cat", str(self.rules / "pg_hba.conf")]))
        return answer.stdout if answer.ok else None

    def _write_rules(self, name: str, content: str) -> None:
        self.context.write_inside(self.name, self.rules / name, content, user=self.account)

    def prepare(self) -> ServiceSpec:
        self.programs = self.images.postgres(start=True)
        spec = self.spec()
        self._fresh = volumes.make(self.context, self.volume, user=self.name)
        return spec

    def questions(self) -> Sequence[Command]:
        return [*self.images.questions(self.images.of_db()), *volumes.questions(self.context, self.volume)]

    def check_removable(self) -> None:
        volumes.check_removable(self.context, self.volume, user=self.name)

    @property
    def folders(self) -> Folders:
        return VolumeFolders(self)

    def helper(self, words: Sequence[str]) -> ServiceSpec:
        """A command on the volume as PostgreSQL's account, for when no server uses it."""
        inside = Inside(
            image=self.settings.db.image,
            volumes={self.volume: str(VOLUME)},
            account=self._account_script(),
            memory_mb=256,
            network=False,
            root=True,
        )
        name, env = f"{self.name}-{secrets.token_hex(4)}", {"NV_VOLUME": str(VOLUME)}
        return ServiceSpec(name=name, argv=words, cwd=Path("/"), env=env, inside=inside)

    @property
    def place(self) -> str:
        return f"the volume {self.volume}"

    def room(self, seconds: float = 5.0) -> tuple[int, int] | None:
        return self._room(str(VOLUME), seconds)

    def shared_memory(self) -> int:
        if self._shared is None:
            self._shared, _ = self._room(SHARED_MEMORY, 5.0) or (0, 0)
        return self._shared

    def _room(self, path: str, seconds: float) -> tuple[int, int] | None:
        """Return the bytes free, and in all, of a path's file system inside; None where it can't be asked."""
        answer = self.context.probe(self.context.exec(self.name, ["df", "-Pk", path], user=self.account), seconds)
        words = answer.text.splitlines()[-1].split() if answer.ok and answer.text else []
        # https://pubs.opengroup.org/onlinepubs/9699919799/utilities/df.html: its second and fourth column, in KiB
        return (int(words[3]) << 10, int(words[1]) << 10) if len(words) >= 6 else None

    def take_back_data(self) -> str:
        return "inv db.start"

    @contextlib.contextmanager
    def programs_at_hand(self) -> Iterator[None]:
        """In the database's container; while that does not run, in one that is made for it and ends with this command,
        also if that is killed. It has no part in the volume: the database can start at any time."""
        if self._programs_in or self.context.dry or self.context.states([self.name])[self.name].running:
            yield
            return
        image = self.settings.db.image
        answer = self.context.read(self.images.engine.images([image]))
        if not answer.ok:
            raise StackError(
                "PostgreSQL's programs are not at hand",
                why=f"{self.name} does not run, and no container can be made from the image {image}",
                evidence=answer.stderr.strip().splitlines()[-3:],
                fix="start the stack, and try again: inv dev.up",
            )
        inside = Inside(image=image, memory_mb=256, network=False)
        name = f"{self.name}-{secrets.token_hex(4)}"
        spec = ServiceSpec(name=name, argv=["sh", "-c", "echo ready; exec cat"], cwd=Path("/"), inside=inside)
        with (
            self.context.one_off(spec) as command,
            self.context.talk(command, "run PostgreSQL's programs in a container of their own") as talk,
        ):
            if talk.stdout.readline() == b"ready\n":
                self._programs_in = name
                try:
                    yield
                finally:
                    self._programs_in = ""
                    talk.stdin.close()
                    talk.stdout.read()  # until it is gone

    def reading(self, words: Sequence[str], *, own: bool = False) -> Command:
        return self._run([self.programs.path(words[0]), *words[1:]])

    def _run(self, words: list[str]) -> Command:
        return self.context.exec(self._programs_in or self.name, words, ENGLISH, user=self.account)

    @contextlib.contextmanager
    def inward(self, path: Path, *, own: bool = False) -> Iterator[Path]:
        room = ROOM if self._programs_in else VOLUME
        with passage.inward(self.context, self._run, room, path) as inside:
            yield inside

    @contextlib.contextmanager
    def outward(self, folder: Path) -> Iterator[Path]:
        with passage.outward(self.context, self._run, VOLUME, folder) as inside:
            yield inside

    @contextlib.contextmanager
    def receiving(self, folder: Path) -> Iterator[tuple[Path, Callable[[Command], Command]]]:
        with self.outward(folder) as inside:
            yield inside, lambda command: command

    def write_passfile(self, content: str, path: Path, *, account: bool = False) -> None:
        self.context.write_inside(self.name, path, content, user=self.account)

    def remove_passfile(self, path: Path) -> None:
        self.context.read(self._run(["rm", "-f", str(path)]))

    @property
    def own_address(self) -> tuple[str, int]:
        return "127.0.0.1", DB_PORT


class ContainedPgBouncer(PgBouncer):
    """nv-pgbouncer, from an image that has PgBouncer."""

    def __init__(
        self,
        context: ContainerContext,
        settings: Settings,
        credentials: Credentials,
        database: Postgres,
        images: Images,
    ) -> None:
        super().__init__(context, settings, credentials, database, images.pgbouncer)
        self.images = images

    @property
    def folder(self) -> Path:
        return OWN

    @property
    def listens(self) -> tuple[str, int]:
        return "*", PGB_PORT

    @property
    def peer(self) -> tuple[str, int]:
        return peer(self), PGB_PORT

    def spec(self) -> ServiceSpec:
        spec, pgb = super().spec(), self.settings.pgb
        inside = Inside(image=self.programs.image, ports={PGB_PORT: pgb.port}, bind=pgb.bind, memory_mb=pgb.memory_mb)
        return replace(spec, cwd=Path("/"), inside=inside)

    def questions(self) -> Sequence[Command]:
        return self.images.questions(self.images.of_pgb())

    def check(self, *, fresh: bool = False) -> None:
        """Check the same in a container of its own: the image may be another one by now."""
        self.programs = self.images.pgbouncer(start=True)
        super().check(fresh=fresh)

    def _check_apart(self, ini: str) -> None:
        file = OWN / "pgbouncer-check.ini"
        spec = ServiceSpec(
            name=f"{self.name}-{secrets.token_hex(4)}",
            argv=[self.programs.path("pgbouncer"), str(file)],
            cwd=Path("/"),
            env=self.programs.env,
            inside=Inside(
                image=self.programs.image,
                files={str(file): nowhere(f"{ini}\n[pgbouncer]\nauth_file = /dev/null\n")},
                memory_mb=64,
                network=False,
            ),
        )
        if not self.context.dry:
            with self.context.one_off(spec) as command:
                result = self.context.read(command)
            self._judge(result.stdout + result.stderr)

    def prepare(self) -> ServiceSpec:
        self.programs = self.images.pgbouncer(start=True)
        spec, ini = self.spec(), self.render_ini()
        assert spec.inside
        files = {str(self.folder / "pgbouncer.ini"): ini, str(self.folder / "userlist.txt"): self.render_userlist()}
        # what is wrong with it is seen when it starts; a copy stays here for people and the health report
        self.context.write_file(self.ini, ini)
        self.context.write_file(self.userlist, self.render_userlist())
        return replace(spec, inside=replace(spec.inside, files=files))

    def write_config(self) -> None:
        """Render both files inside, for the one that runs."""
        ini, userlist = self.render_ini(), self.render_userlist()
        self.context.write_inside(self.name, self.folder / "userlist.txt", userlist)
        if (self.context.host.read_file(self.ini) or b"").decode() != ini:
            self._check(ini)
        self.context.write_inside(self.name, self.folder / "pgbouncer.ini", ini)
        self.context.write_file(self.ini, ini)
        self.context.write_file(self.userlist, userlist)

    def _put(self, file: Path, content: str) -> None:
        self.context.write_inside(self.name, file, content)

    def _take_away(self, file: Path) -> None:
        self.context.read(self.context.exec(self.name, ["rm", "-f", str(file)]))


class ContainedApi(Api):
    """nv-api, from an image with the application's packages; its source is the one on the host."""

    def __init__(
        self,
        context: ContainerContext,
        settings: Settings,
        credentials: Credentials,
        pgb: PgBouncer,
        images: Images,
    ) -> None:
        super().__init__(context, settings, credentials)
        self.pgb = pgb
        self.images = images

    @property
    def inside(self) -> Path:
        """In its container: the folder's name stays, for modules that are named by it. One that no module can have is
        left out: some of what reads it there, as a Containerfile, would read something into it."""
        name = self.folder.name
        return Path("/srv/app") / (name if re.fullmatch(r"[\w.-]+", name) else "app")

    @property
    def python(self) -> str:
        return "python"

    @property
    def listens(self) -> tuple[str, int]:
        return "0.0.0.0", self.port

    def peer_urls(self, *, direct: bool = False) -> dict[str, str]:
        return self._urls(self.pgb.database.peer, None if direct else self.pgb.peer)

    def places(self) -> dict[str, str]:
        return {"PYTHONPATH": os.pathsep.join(map(str, [self.inside, self.inside.parent]))}

    def spec(self) -> ServiceSpec:
        spec, api = super().spec(), self.settings.api
        files, words = {}, list(spec.argv)
        if api.reload:
            reloader = OWN / "reload.py"
            files[str(reloader)] = (self.settings.templates / RELOADER).read_text(encoding="utf-8")
            words = [self.python, str(reloader), str(self.inside), "--", *words]
        inside = Inside(
            image=self.images.api(),
            ports={self.port: self.port},
            bind=api.bind,
            folders={self.folder: str(self.inside)},
            files=files,
            memory_mb=api.memory_mb,
        )
        return replace(spec, argv=words, cwd=self.inside, watch=(), inside=inside)

    @contextlib.contextmanager
    def beside(self, command: str, environ: Mapping[str, str], extra: Mapping[str, str]) -> Iterator[Beside]:
        self.images.api(start=True)
        spec = self.spec()
        assert spec.inside
        spec = replace(
            spec,
            name=f"{self.name}-{secrets.token_hex(4)}",
            argv=["/bin/sh", "-c", command],
            env={**self.environment(direct=True), **extra},
            inside=replace(spec.inside, ports={}, files={}),
        )
        with self.context.one_off(spec) as line:
            yield Beside(line, self.settings.root, dict(environ))

    def questions(self) -> Sequence[Command]:
        return self.images.questions(self.images.of_api())

    def prepare(self) -> ServiceSpec:
        self.check_files()
        self.images.api(start=True)
        return self.spec()

    def check(self, *, fresh: bool = False) -> None:
        """Check the same, with its image here."""
        self.check_files()
        self.images.api(start=True)
        super().check(fresh=fresh)

    @contextlib.contextmanager
    def apart(self, words: Sequence[str]) -> Iterator[Command]:
        spec = self.spec()
        assert spec.inside
        inside = replace(spec.inside, ports={}, files={}, network=False)
        name = f"{self.name}-{secrets.token_hex(4)}"
        path = {"PYTHONPATH": self.environment()["PYTHONPATH"]}
        with self.context.one_off(replace(spec, name=name, argv=words, env=path, inside=inside)) as command:
            yield command

    def check_files(self) -> None:
        """:raises UsageError: also for what there is in the native runtime alone."""
        self.check_folder()
        if self.settings.api.debug_port:
            raise UsageError(
                f"api.debug_port is {self.settings.api.debug_port}, and the application runs in a container",
                why="a debugger listens on loopback, which is the container's own there",
                fix="leave it at 0, and start the application under the debugger instead: inv dev.ide",
            )
