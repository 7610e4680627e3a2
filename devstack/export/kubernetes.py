"""The stack as manifests for Kubernetes, with CloudNativePG for PostgreSQL and PgBouncer
(https://cloudnative-pg.io/documentation/current/)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack.builds import CONTAINERFILE
from devstack.errors import UsageError
from devstack.export import cloudnative_pg
from devstack.export.containers import build_command
from devstack.export.folder import File, signed
from devstack.export.plan import Peers, Plan
from devstack.export.quoting import block, scalar
from devstack.settings import PROJECT_FILES
from devstack.shell import argv, sh
from devstack.templates import render

if TYPE_CHECKING:
    from devstack.stack import Stack

SESSION = """ In pool mode session a client keeps its connection until it leaves:
# more than default_pool_size of them at a time wait, at each instance."""
THEIR_IMAGE = "one of CloudNativePG's own, which has the extension vector; another one needs every extension below"
OWN_IMAGE = "one that is made for CloudNativePG, and has every extension below"
QUANTITY = re.compile(r"[1-9]\d*(\.\d+)?([KMGTPE]i|[kMGTPE])?")
IMAGE = re.compile(r"[A-Za-z0-9][\w.:/@-]*", re.ASCII)


class Cluster(Struct, frozen=True):
    """What the settings do not know of a cluster; empty is the default."""

    storage: str = ""
    instances: int = 0
    image: str = ""
    """Of the application, with its source."""
    db_image: str = ""

    def check_unused(self) -> None:
        """:raises UsageError: something was given that another format has no place for."""
        flags = {
            "--storage": self.storage,
            "--instances": self.instances,
            "--image": self.image,
            "--db-image": self.db_image,
        }
        if given := [flag for flag, value in flags.items() if value]:
            raise UsageError(f"only --format kubernetes takes {' and '.join(given)}", fix="leave it out")

    def check(self) -> None:
        """:raises UsageError: a value can't be taken."""
        if self.storage and not QUANTITY.fullmatch(self.storage):
            raise UsageError(f"--storage {self.storage!r} is no amount", fix="write it as 10Gi, or 500Mi")
        if not 0 <= self.instances <= 100:
            raise UsageError(f"--instances {self.instances} is out of range", fix="1 to 100; 3 are usual in production")
        for flag, image in (("--image", self.image), ("--db-image", self.db_image)):
            if image and not IMAGE.fullmatch(image):
                raise UsageError(f"{flag} {image!r} is no image's name", fix="write it as registry/name:tag")


def render_kubernetes(stack: Stack, folder: Path, cluster: Cluster) -> list[File]:
    """The manifests, the secrets apart from the rest, and what the application's image is built from.

    :raises UsageError: a setting has no place in CloudNativePG.
    """
    cluster.check()
    s = stack.settings
    names = {name: s.service_name(name) for name in ("db", "pgbouncer", "api")}
    peers = Peers((f"{names['db']}-rw", cloudnative_pg.PORT), (names["pgbouncer"], cloudnative_pg.PORT))
    plan = Plan(stack, peers, reload=False)
    cloudnative_pg.check_taken(s, cluster.db_image)
    public, secret = plan.variables()
    api, inside = plan.api.spec(), str(plan.api.inside)
    image = cluster.image or f"{names['api']}:{s.stack.env}"
    major = cloudnative_pg.major_of(cluster.db_image, s.db.image)
    base, own = plan.images.of_api(), _own(plan, folder)
    values: dict[str, object] = {
        **{name.replace("pgbouncer", "pgb"): value for name, value in names.items()},
        "db_secret": f"{names['db']}-owner",
        "stack": scalar(s.service_name("stack")),
        "db_image": scalar(cluster.db_image or cloudnative_pg.image_of(major)),
        "db_image_says": OWN_IMAGE if cluster.db_image else THEIR_IMAGE,
        "instances": cluster.instances or 1,
        "storage": scalar(cluster.storage or "1Gi"),
        "db_name": scalar(s.db.name),
        "db_user": scalar(s.db.user),
        "locale": block(cloudnative_pg.locale(major), 6),
        "sql": block(cloudnative_pg.sql(s), 8),
        "parameters": block(cloudnative_pg.parameters(s), 6),
        "libraries": block({"shared_preload_libraries": cloudnative_pg.libraries(s)}, 4),
        "db_memory": f"{s.db.memory_mb}Mi",
        "pool_mode": s.pgb.pool_mode,
        "pool_mode_says": SESSION if s.pgb.pool_mode == "session" else "",
        "pgb_parameters": block(cloudnative_pg.pooler_parameters(plan), 6),
        "pgb_memory": f"{s.pgb.memory_mb}Mi",
        "image": scalar(image),
        "command": block([_plain(word) for word in api.argv], 12),
        "env": block([{"name": name, "value": _plain(value)} for name, value in public.items()], 12),
        "cwd": scalar(inside),
        "port": s.api.port,
        "health": scalar(s.api.health_path),
        "failures": max(3, -(-int(s.stack.start_timeout) // 2)),
        "api_memory": f"{s.api.memory_mb}Mi",
        "grace": api.stop_seconds + 5,
        "nobody": NOBODY,
        "build": "\n".join(f"#     {line}" for line in _builds(plan, image)),
    }
    hidden = {
        "stack": values["stack"],
        "db_secret": values["db_secret"],
        "api": names["api"],
        "user": values["db_user"],
        "password": scalar(plan.db.credentials.db_password),
        "variables": block(dict(secret), 2),
    }
    made = [
        File("stack.yaml", signed(render(s.templates / "export/kubernetes.yaml", **values))),
        File("secrets.yaml", signed(render(s.templates / "export/kubernetes-secrets.yaml", **hidden)), secret=True),
        File(f"build/app.{CONTAINERFILE}", signed(_app(plan, base.name, own))),
        File(f"build/app.{CONTAINERFILE}.dockerignore", signed(_ignored(own))),
        File(".gitignore", signed("/secrets.yaml\n")),
    ]
    if base.build:
        made += [File(f"build/packages/{name}", signed(content)) for name, content in base.build.files.items()]
    return made


def _plain(text: str) -> str:
    """What the cluster would fill in, it leaves alone
    (https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/)."""
    return text.replace("$(", "$$(")


# the application's image

NOBODY = 65532
"""Whom it runs as, by a number that is nobody's anywhere."""

LEFT_OUT = (".env", ".env.*", ".git", ".venv", "__pycache__")
"""Names that do not go into it, wherever they are: secrets before all."""


def _own(plan: Plan, folder: Path) -> list[Path]:
    """What the stack itself has in the application's folder, where that is the project's: settings that may have a
    password, exports, backups, logs, data; not a package of the application's that has such a name. Relative to it."""
    s, app = plan.settings, plan.api.folder
    places = ["export", s.data.dir, s.stack.log_dir, s.stack.state_dir, s.stack.cache_dir, *PROJECT_FILES]
    here = [s.root / Path(place).expanduser() for place in places if place]
    own = {path.resolve() for path in here if not (path / "__init__.py").exists()} | {folder.resolve()}
    return sorted(path.relative_to(app) for path in own if app in path.parents and own.isdisjoint(path.parents))


def _ignored(own: Sequence[Path]) -> str:
    """The file that keeps them out of a build, where the builder looks for one of this name
    (https://docs.docker.com/build/concepts/context/#dockerignore-files)."""
    names = [f"**/{name}" for name in LEFT_OUT]
    return "\n".join([*names, *(re.sub(r"([*?\[\]\\])", r"\\\1", path.as_posix()) for path in own), ""])


def _app(plan: Plan, packages: str, own: Sequence[Path]) -> str:
    """Builders that look for no such file leave nothing of it either: it is removed before a layer is kept."""
    inside = plan.api.inside
    names = " -o ".join(f"-name {argv([name])}" for name in LEFT_OUT)
    paths = f" && rm -rf -- {argv([f'./{path.as_posix()}' for path in own])}" if own else ""
    return (
        "# The application: its source on top of the image with its packages.\n"
        f"ARG PACKAGES={packages}\n"
        "FROM ${PACKAGES} AS source\n"
        "USER 0:0\n"
        f"COPY . {inside}/\n"
        f"WORKDIR {inside}\n"
        "# what is no source: secrets, and what the stack keeps here\n"
        f"RUN find . \\( {names} \\) -prune -exec rm -rf '{{}}' +{paths}\n"
        "# a checkout may be closed to others, and it runs as one of them\n"
        "RUN chmod -R a+rX .\n\n"
        "FROM ${PACKAGES}\n"
        f"COPY --from=source {inside}/ {inside}/\n"
        f"WORKDIR {inside}\n"
        f"USER {NOBODY}:{NOBODY}\n"
    )


def _builds(plan: Plan, image: str) -> list[str]:
    base, folder = plan.images.of_api(), plan.api.folder
    first = [build_command("docker", base.name, base.build, "build/packages")] if base.build else []
    last = sh(
        "docker build --tag $tag --file $file $folder",
        tag=image,
        file=f"build/app.{CONTAINERFILE}",
        folder=folder,
    )
    return [*first, last]
