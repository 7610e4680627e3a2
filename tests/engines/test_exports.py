"""Exports that really run: Compose by podman-compose, and what Quadlet's units ask Podman for."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.engines.conftest import Running, running
from tests.engines.provide import BASE, Engine
from tests.export.test_quadlet import generate, read, started

PASSWORD = "p\"q'r\\s$t${HOME}`id`%n #: @/?&=+é"
SETTINGS = {
    "INVOKE_DB_NAME": "on",
    "INVOKE_DB_USER": "o'hara",
    "INVOKE_DB_PASSWORD": PASSWORD,
    "INVOKE_API_JWT_SECRET": PASSWORD[::-1],
    "INVOKE_DB_PARAMETERS": json.dumps({"work_mem": "9MB", "search_path": '"$user", public'}),
    "INVOKE_PGB_POOL_MODE": "transaction",
    "INVOKE_API_RELOAD": "false",
}
SERVICES = ("nv-export-db", "nv-export-pgbouncer", "nv-export-api")
COMPOSED = "nv-export-compose_"


class Apart(Running):
    """A project with names of its own: another may be running on the engine."""

    def __init__(self, folder: Path, cache: Path, engine: Engine) -> None:
        super().__init__(folder, cache, engine)
        self.env |= {**SETTINGS, "NV_ENV": "export"}

    @property
    def state(self) -> Path:
        return next(self.state_base.glob("*/export"))


class Exported(Apart):
    """A project whose export runs."""

    def __init__(self, folder: Path, cache: Path, engine: Engine) -> None:
        super().__init__(folder, cache, engine)
        self.env["INVOKE_STACK_RUNTIME"] = "native"
        self.password = PASSWORD

    def export(self, name: str, *words: str, **env: str) -> Path:
        return Path(json.loads(self.inv("dev.export", "--format", name, *words, "--json", **env).stdout)["folder"])  # type: ignore[arg-type]

    def ask(self, sql: str, port: int | None = None) -> list[tuple[object, ...]]:
        return self.query(sql, port, user="o'hara", dbname="on", password=self.password)

    def works(self, prefix: str, suffix: str) -> None:
        """All of it answers, as the settings say."""
        wait_for(lambda: self.http("/health")[0] == 200, 60)
        assert self.ask("SHOW work_mem", self.pgb_port) == [("9MB",)]
        assert self.ask("SHOW max_connections") == [("100",)]
        assert self.ask("SELECT current_user, current_database()", self.pgb_port) == [("o'hara", "on")]
        extensions = {name for (name,) in self.ask("SELECT extname FROM pg_extension")}
        assert extensions >= {"vector", "uuid-ossp"}
        assert self.ask("SELECT pg_has_role('pg_monitor', 'member')") == [(True,)]
        for service in SERVICES:
            # what the engine would ask from time to time, where systemd is there to do it
            self.engine.run("healthcheck", "run", f"{prefix}{service}{suffix}")
            ids = self.engine.run("exec", f"{prefix}{service}{suffix}", "cat", "/proc/1/status")
            [uids] = [line.split()[1:] for line in ids.splitlines() if line.startswith("Uid:")]
            assert "0" not in uids, service
            said = self.engine.run("inspect", f"{prefix}{service}{suffix}")
            assert "DATABASE_URL" not in said  # nor any other secret: they are in files
            ports = json.loads(said)[0]["NetworkSettings"]["Ports"]
            assert {found["HostIp"] for bound in ports.values() for found in bound or ()} == {"127.0.0.1"}


class Composed(Exported):
    """One that podman-compose runs."""

    def compose(self, *words: str) -> None:
        program = [sys.executable, "-m", "podman_compose", "--podman-build-args=--network=host", *words]
        folder = self.root / "export" / "export-compose"
        done = subprocess.run(program, cwd=folder, env=self.env, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def project(workspace: Path, cache: Path, podman: Engine) -> Iterator[Composed]:
    with running(workspace, cache, podman, Composed) as made:
        yield made


@pytest.fixture
def composed(project: Composed) -> Iterator[Composed]:
    """Compose's services, up."""
    project.export("compose")
    try:
        project.compose("up", "--detach")
        wait_for(lambda: project.http("/health")[0] == 200, 60)
        yield project
    finally:
        project.password = PASSWORD
        project.compose("down", "--volumes")
    assert left(project.volumes()) == []


def test_compose_runs_what_inv_dev_up_runs(composed: Composed, workspace: Path, cache: Path, podman: Engine) -> None:
    composed.works(COMPOSED, "_1")
    with running(workspace, cache, podman, Apart) as other:
        said = other.inv("dev.up").stderr
        assert "building" not in said  # its images are those that were built for Compose
        assert described(composed, COMPOSED, "_1") == described(other, "", "")


OWN = ("HOSTNAME", "NV_STACK", "NV_SERVICE", "PWD", "OLDPWD")
"""Variables that are a container's own."""


def left(names: list[str]) -> list[str]:
    return [name for name in names if "nv-export" in name]


def described(project: Running, prefix: str, suffix: str) -> dict[str, object]:
    """What runs, as the services and the engine themselves have it."""
    as_owner: dict[str, Any] = {"user": "o'hara", "dbname": "on", "password": PASSWORD}
    found: dict[str, object] = {
        "postgres": project.query("SELECT name, setting FROM pg_settings ORDER BY name", **as_owner),
        "database": project.query(
            "SELECT datlocprovider, datcollate, encoding FROM pg_database ORDER BY 1", **as_owner
        ),
        "extensions": project.query("SELECT extname, extversion FROM pg_extension ORDER BY 1", **as_owner),
        "pgbouncer": [(row["key"], row["value"]) for row in pgbouncer(project, "SHOW CONFIG")],
        "pooled": [(r["name"], r["host"], r["port"], r["database"]) for r in pgbouncer(project, "SHOW DATABASES")],
    }
    for service in SERVICES:
        [one] = json.loads(project.engine.run("inspect", f"{prefix}{service}{suffix}"))
        host = one["HostConfig"]
        shared = host["ShmSize"] if service == "nv-export-db" else "the engine's usual"
        limits = host["Memory"], shared, host["RestartPolicy"]["Name"], one["Config"]["StopSignal"]
        found[service] = (one["Image"], *limits)
    words = ["exec", "--user", "65532:65532", f"{prefix}nv-export-api{suffix}", "cat"]
    variables = dict(
        entry.partition("=")[::2] for entry in project.engine.run(*words, "/proc/1/environ").split("\0") if entry
    )
    found["variables"] = {k: v for k, v in variables.items() if k not in OWN}
    found["command"] = project.engine.run(*words, "/proc/1/cmdline").replace(str(project.api_port), "PORT")
    return found


def test_data_stay_over_a_restart_and_down_leaves_nothing_but_the_volume(composed: Composed) -> None:
    composed.ask("CREATE TABLE kept AS SELECT 7 AS n; SELECT 1")
    composed.compose("restart")
    wait_for(lambda: composed.ask("SELECT n FROM kept", composed.pgb_port) == [(7,)], 30)
    composed.compose("down")
    assert left(composed.containers()) == []
    assert left(composed.networks()) == []
    assert left(composed.volumes()) == [f"{COMPOSED}nv-export-db-data"]
    # another password: the role has it before the database lets anybody in
    composed.password = "another ' one"
    composed.export("compose", INVOKE_DB_PASSWORD=composed.password)
    composed.compose("up", "--detach")
    composed.works(COMPOSED, "_1")
    assert composed.ask("SELECT n FROM kept", composed.pgb_port) == [(7,)]
    assert "SCRAM-SHA-256$" not in composed.engine.run("logs", f"{COMPOSED}nv-export-db_1")


def pgbouncer(project: Running, sql: str) -> list[dict[str, object]]:
    password = project.secrets()["pgbouncer_password"]
    connection = project.connect(project.pgb_port, user="nv_admin", dbname="pgbouncer", password=password)
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(sql)
        return [dict(zip([c.name for c in cursor.description], row, strict=True)) for row in cursor.fetchall()]


def test_quadlet_s_units_ask_podman_for_what_works(project: Composed, tmp_path: Path) -> None:
    """What Podman's own generator makes of them is run, but for what only systemd can answer."""
    folder = project.export("quadlet")
    engine = project.engine
    for container in folder.glob("*.container"):
        image = dict(read(container)["Container"])["Image"]
        name = container.stem.removeprefix("nv-export-")
        if (folder / "build" / name).is_dir() and not engine.run("images", "--quiet", image, check=False).strip():
            [line] = [line for line in container.read_text().splitlines() if line.startswith("#     podman build")]
            build(engine, folder, line.removeprefix("#     podman build"))
    made = tmp_path / "made"
    assert generate(folder, made) == ""
    names = [f"systemd-{service}" for service in SERVICES]
    try:
        for unit in ("nv-export-net-network", "nv-export-db-data-volume", *SERVICES):
            words = [word.replace("%%", "%") for word in started(made / f"{unit}.service")]
            engine.run(*(word for word in words[1:] if not word.startswith(SYSTEMD)))
        project.works("systemd-", "")
    finally:
        engine.run("rm", "--force", "--time", "10", *reversed(names), check=False)
        engine.run("volume", "rm", "systemd-nv-export-db-data", check=False)
        engine.run("network", "rm", "systemd-nv-export-net", check=False)


SYSTEMD = ("--cidfile=", "--cgroups=", "--sdnotify=", "--rm", "--ignore")
"""Options that need systemd around them; that leave nothing behind to look at when it fails; and that the tests'
older Podman has not."""


def build(engine: Engine, folder: Path, words: str, *more: str) -> None:
    done = subprocess.run(
        ["podman", "build", "--network=host", *more, *shlex.split(words)],
        cwd=folder,
        env={**os.environ, **engine.env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_for_kubernetes_has_the_source_and_no_secret(project: Composed) -> None:
    """Also of a folder that is closed to others, and whose name a shell would read something into."""
    engine, app = project.engine, project.root / 'an "app" $HOME é'
    (app / "inner").mkdir(parents=True)
    (app / "export").mkdir()
    for name in ("main.py", "inner/__init__.py", "inner/.env", ".env", ".env.prod", "export/db"):
        (app / name).write_text(f"# {name}\n")
        (app / name).chmod(0o600)
    (app / "inner").chmod(0o700)
    (app / "requirements.txt").write_text("fastapi\n")
    folder = project.export("kubernetes", "--output", str(app / "export" / "k"), INVOKE_API_DIR=str(app))
    [line] = [x for x in (folder / "stack.yaml").read_text().splitlines() if x.endswith(shlex.quote(str(app)))]
    tag = "localhost/nv-export-api:export"
    try:
        build(engine, folder, line.removeprefix("#     docker build"), f"--build-arg=PACKAGES={BASE}")
        words = ["run", "--rm", "--network=none", tag, "sh", "-c", "id -u; pwd; find . -type f | sort; cat inner/*.py"]
        uid, here, *found = engine.run(*words).splitlines()
        assert (uid, here) == ("65532", "/srv/app/app")
        assert found == [
            *("./export/db", "./inner/__init__.py", "./main.py", "./requirements.txt"),
            "# inner/__init__.py",
        ]
    finally:
        engine.run("rmi", "--force", tag, check=False)
