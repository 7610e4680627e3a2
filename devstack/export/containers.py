"""What Compose and Quadlet have in common: each service in a container, with a folder of files that is mounted there.

A container's entry is a script of its own. It reads the secret, which is a file that only its owner may read, as root,
and runs the service without root. What the stack does from outside when it starts a service, role, database and
extensions, the database's entry does before it lets anybody in.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack.builds import CONTAINERFILE, Build
from devstack.export.folder import File, signed
from devstack.runtimes.containers import BASE
from devstack.runtimes.docker import with_registry
from devstack.services.contained import ACCOUNT, DB_PORT, PGB_PORT, SETUP
from devstack.services.postgres import PINNED, PINNING, ROLE_SQL, literal
from devstack.shell import argv, sh
from devstack.templates import Templates

if TYPE_CHECKING:
    from devstack.export.plan import Plan
    from devstack.runtimes import ServiceSpec

INSIDE = "/nv"
"""Where a service's folder is inside."""
ENTRY = ["/bin/sh", f"{INSIDE}/entry.sh"]
HEALTH = ["/bin/sh", f"{INSIDE}/health.sh"]
SECRETS = "/run/secrets"
"""Where Compose mounts secrets (https://docs.docker.com/compose/how-tos/use-secrets/)."""

BASH_OR_NC = """\
# somebody listens; whether queries come through is what the application's health says
if command -v bash >/dev/null; then exec bash -c ': </dev/tcp/127.0.0.1/$port'; fi
exec nc -z 127.0.0.1 $port
"""
GET = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"


class Container(Struct, frozen=True):
    """A service as a container of another engine."""

    label: str
    """``db``, ``pgb`` or ``api``."""
    name: str
    folder: str
    """Of its files, in the export; the secret of this service has its name in the folder ``secrets``."""
    image: str
    build: Build | None
    words: Sequence[str]
    env: Mapping[str, str]
    """What is no secret."""
    port: tuple[int, int]
    """Inside, and on this machine."""
    bind: str
    """The address of this machine that it is published on."""
    memory_mb: int
    shm_mb: int
    stop_signal: str
    stop_seconds: int
    cwd: str
    after: str = ""
    """The service that has to be healthy before."""
    volume: tuple[str, str] | None = None
    """Its name, and the path inside."""
    source: tuple[Path, str] | None = None
    """A folder of this machine, and where it is inside, read-only."""

    @property
    def secret(self) -> str:
        return f"nv-{self.folder}"


def containers(plan: Plan) -> list[Container]:
    """The services in the order of their start."""
    s, images, (public, _) = plan.settings, plan.images, plan.variables()
    db, pgb, api = plan.db.spec(), plan.pgb.spec(), plan.api.spec()
    setup = {name: value for name, value in db.env.items() if name not in ("NV_MAJOR", "NV_INITDB")}
    given = {
        "db": (images.of_db(), {**setup, "NV_DATABASE": s.db.name}, (DB_PORT, s.db.port), ""),
        "pgbouncer": (images.of_pgb(), dict(pgb.env), (PGB_PORT, s.pgb.port), db.name),
        "api": (images.of_api(), public, (s.api.port, s.api.port), pgb.name),
    }
    made = []
    for (folder, (wanted, env, port, after)), spec in zip(given.items(), (db, pgb, api), strict=True):
        inside = spec.inside
        assert inside
        made.append(
            Container(
                label=wanted.label,
                name=spec.name,
                folder=folder,
                image=wanted.name,
                build=wanted.build,
                words=list(spec.argv),
                env=env,
                port=port,
                bind="127.0.0.1" if inside.bind == "localhost" else inside.bind,
                memory_mb=inside.memory_mb,
                shm_mb=inside.shm_mb,
                stop_signal=f"SIG{spec.stop_signal}",
                stop_seconds=spec.stop_seconds,
                cwd=str(spec.cwd),
                after=after,
                volume=next(iter(inside.volumes.items()), None),
                source=next(iter(inside.folders.items()), None),
            )
        )
    return made


def files(plan: Plan) -> list[File]:
    """The files of all services, their secrets, and what their images are built from."""
    templates = plan.settings.templates
    db, pgb, api = plan.db.spec(), plan.pgb.spec(), plan.api.spec()
    drop = _read(templates / "export/drop.sh")
    made = [
        *_service("db", templates, db, _db_health(plan)),
        File("db/account.sh", signed(_read(templates / ACCOUNT))),
        File("db/setup.sh", signed(_read(templates / SETUP))),
        File("db/initdb.sh", signed(_initdb(plan))),
        File("db/options.sh", signed(f"PGOPTIONS={argv([PINNED])}\n")),
        File("db/role.sql", signed(_role(plan), "--")),
        File("db/database.sql", signed(plan.db.database_script(), "--")),
        *_service("pgbouncer", templates, pgb, string.Template(BASH_OR_NC).substitute(port=PGB_PORT)),
        File("pgbouncer/drop.sh", signed(drop)),
        File("pgbouncer/pgbouncer.ini", signed(plan.pgb.render_ini(), ";")),
        *_service("api", templates, api, _api_health(plan)),
        File("api/drop.sh", signed(drop)),
    ]
    for container in containers(plan):
        if container.build:
            made += _build(f"build/{container.folder}", container.build)
    _, secret = plan.variables()
    exports = "".join(f"export {name}={argv([value])}\n" for name, value in secret.items())
    verifier = f"# of the role {argv([plan.settings.db.user])}\nNV_VERIFIER={argv([plan.db.verifier()])}\n"
    return [
        *made,
        File("secrets/.gitignore", signed("*\n")),
        File("secrets/nv-db", signed(verifier), secret=True),
        File("secrets/nv-pgbouncer", signed(plan.pgb.render_userlist(), ";"), secret=True),
        File("secrets/nv-api", signed(exports), secret=True),
    ]


def _service(folder: str, templates: Templates, spec: ServiceSpec, health: str) -> list[File]:
    assert spec.inside
    entry = File(f"{folder}/entry.sh", signed(_read(templates / f"export/{folder}.sh")))
    own = [File(f"{folder}/{PurePosixPath(path).name}", signed(text)) for path, text in spec.inside.files.items()]
    return [entry, *own, File(f"{folder}/health.sh", signed(health))]


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _build(folder: str, build: Build) -> list[File]:
    return [File(f"{folder}/{name}", signed(content)) for name, content in build.files.items()]


def build_command(program: str, tag: str, build: Build, folder: str) -> str:
    """For people: what makes an image, from inside the export's folder."""
    arguments = [f"--build-arg={k}={with_registry(v) if k == BASE else v}" for k, v in build.arguments.items()]
    return sh(
        "$program build --tag $tag $arguments --file $file $folder",
        program=program,
        tag=tag,
        arguments=arguments,
        file=f"{folder}/{CONTAINERFILE}",
        folder=folder,
    )


def _db_health(plan: Plan) -> str:
    # the setting up listens on no address: until it is done, nobody answers there
    return sh(
        "exec pg_isready -q -h 127.0.0.1 -p $port -U $user -d $name\n",
        port=DB_PORT,
        user=plan.settings.db.user,
        name=plan.settings.db.name,
    )


def _api_health(plan: Plan) -> str:
    url = f"http://127.0.0.1:{plan.settings.api.port}{plan.settings.api.health_path}"
    return sh("exec python -c $script $url\n", script=GET, url=url)


def _initdb(plan: Plan) -> str:
    """What the versions of PostgreSQL take differently: which one it is, the image knows."""
    cases = [(pattern, argv(plan.db.of_major(major).initdb_options())) for pattern, major in MAJORS]
    lines = [f"    {pattern}) NV_INITDB={argv([options])} ;;" for pattern, options in cases]
    return "\n".join(["case $NV_MAJOR in", *lines, "esac", ""])


MAJORS = (("[1-9] | 1[0-6]", 16), ("17", 17), ("*", 18))
"""Patterns of sh(1), and a version of each."""


def _role(plan: Plan) -> str:
    """Holds no password, and no verifier either."""
    values = {"user": plan.settings.db.user, "name": plan.settings.db.name}
    more = {"verifier": ":'verifier'", "pinning": PINNING}
    sql = string.Template(ROLE_SQL).substitute({k: literal(v) for k, v in values.items()} | more)
    return '\\set verifier `printf %s "$NV_VERIFIER"`\n' + sql
