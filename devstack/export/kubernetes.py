"""The stack as manifests for Kubernetes, with CloudNativePG for PostgreSQL and PgBouncer
(https://cloudnative-pg.io/documentation/current/)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devstack.builds import CONTAINERFILE
from devstack.errors import UsageError
from devstack.export import cloudnative_pg
from devstack.export.containers import build_command
from devstack.export.folder import File, signed
from devstack.export.plan import Peers, Plan
from devstack.export.quoting import block, scalar
from devstack.shell import sh
from devstack.templates import render

if TYPE_CHECKING:
    from devstack.stack import Stack

QUANTITY = re.compile(r"[1-9]\d*(\.\d+)?([KMGTPE]i|[kMGTPE])?")
IMAGE = re.compile(r"[A-Za-z0-9][\w.:/@-]*", re.ASCII)


@dataclass(frozen=True)
class Cluster:
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


def render_kubernetes(stack: Stack, cluster: Cluster) -> list[File]:
    """The manifests, the secrets apart from the rest, and what the application's image is built from.

    :raises UsageError: a setting has no place in CloudNativePG.
    """
    cluster.check()
    s = stack.settings
    names = {name: s.service_name(name) for name in ("db", "pgbouncer", "api")}
    peers = Peers((f"{names['db']}-rw", cloudnative_pg.PORT), (names["pgbouncer"], cloudnative_pg.PORT))
    plan = Plan(stack, peers, reload=False)
    cloudnative_pg.check_taken(s)
    public, secret = plan.variables()
    api, folder = plan.api.spec(), str(plan.api.inside)
    image = cluster.image or f"{names['api']}:{s.stack.env}"
    major = cloudnative_pg.major_of(cluster.db_image or s.db.image)
    base = plan.images.of_api(plan.api.folder)
    values: dict[str, object] = {
        **{name.replace("pgbouncer", "pgb"): value for name, value in names.items()},
        "db_secret": f"{names['db']}-owner",
        "stack": scalar(s.service_name("stack")),
        "db_image": scalar(cluster.db_image or cloudnative_pg.image_of(major)),
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
        "pgb_parameters": block(cloudnative_pg.pooler_parameters(plan), 6),
        "pgb_memory": f"{s.pgb.memory_mb}Mi",
        "image": scalar(image),
        "command": block([_plain(word) for word in api.argv], 12),
        "env": block([{"name": name, "value": _plain(value)} for name, value in public.items()], 12),
        "cwd": scalar(folder),
        "port": s.api.port,
        "health": scalar(s.api.health_path),
        "failures": max(3, -(-int(s.stack.start_timeout) // 2)),
        "api_memory": f"{s.api.memory_mb}Mi",
        "grace": api.stop_seconds + 5,
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
        File(f"build/app.{CONTAINERFILE}", signed(_app(plan, base.name))),
        File(f"build/app.{CONTAINERFILE}.dockerignore", signed(LEFT_OUT)),
    ]
    if base.build:
        made += [File(f"build/packages/{name}", signed(content)) for name, content in base.build.files.items()]
    return made


def _plain(text: str) -> str:
    """What the cluster would fill in, it leaves alone
    (https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/)."""
    return text.replace("$(", "$$(")


# the application's image

LEFT_OUT = """\
.env*
.git
**/.venv
**/__pycache__
"""
"""What does not go into it: secrets before all (https://docs.docker.com/build/concepts/context/#dockerignore-files)."""


def _app(plan: Plan, packages: str) -> str:
    folder = str(plan.api.inside)
    return (
        "# The application: its source on top of the image with its packages.\n"
        f"ARG PACKAGES={packages}\n"
        "FROM ${PACKAGES}\n"
        f'COPY [".", "{folder}"]\n'
        f'WORKDIR "{folder}"\n'
    )


def _builds(plan: Plan, image: str) -> list[str]:
    base, folder = plan.images.of_api(plan.api.folder), plan.api.folder
    first = [build_command("docker", base.name, base.build, "build/packages")] if base.build else []
    last = sh(
        "docker build --tag $tag --file $file $folder",
        tag=image,
        file=f"build/app.{CONTAINERFILE}",
        folder=folder,
    )
    return [*first, last]
