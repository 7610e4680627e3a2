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
from tests.engines.provide import Engine
from tests.export.test_quadlet import read

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

    def export(self, name: str, **env: str) -> Path:
        return Path(json.loads(self.inv("dev.export", "--format", name, "--json", **env).stdout)["folder"])  # type: ignore[arg-type]

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


def test_quadlet_s_units_ask_podman_for_what_works(project: Composed) -> None:
    """As podman-systemd.unit(5) says what each key stands for; Podman's own generator is tried where it is."""
    folder = project.export("quadlet")
    engine = project.engine
    for container in folder.glob("*.container"):
        image = dict(read(container)["Container"])["Image"]
        name = container.stem.removeprefix("nv-export-")
        if (folder / "build" / name).is_dir() and not engine.run("images", "--quiet", image, check=False).strip():
            [line] = [line for line in container.read_text().splitlines() if line.startswith("#     podman build")]
            words = shlex.split(line.removeprefix("#     podman build"))
            done = subprocess.run(
                ["podman", "build", "--network=host", *words], cwd=folder, env={**os.environ, **engine.env}
            )
            assert done.returncode == 0
    engine.run("network", "create", "systemd-nv-export-net")
    engine.run("volume", "create", "systemd-nv-export-db-data")
    names = [f"systemd-{service}" for service in SERVICES]
    try:
        for service in SERVICES:
            engine.run("run", "--detach", *arguments(read(folder / f"{service}.container")["Container"]))
        project.works("systemd-", "")
    finally:
        engine.run("rm", "--force", "--time", "10", *reversed(names), check=False)
        engine.run("volume", "rm", "systemd-nv-export-db-data", check=False)
        engine.run("network", "rm", "systemd-nv-export-net", check=False)


OPTIONS = {
    "ContainerName": "--name",
    "User": "--user",
    "PublishPort": "--publish",
    "HealthCmd": "--health-cmd",
    "HealthInterval": "--health-interval",
    "HealthTimeout": "--health-timeout",
    "HealthRetries": "--health-retries",
    "HealthStartPeriod": "--health-start-period",
}


def arguments(lines: list[tuple[str, str]]) -> list[str]:
    """The arguments of ``podman run`` for a section [Container]."""
    options, image, command = [], "", []
    for key, value in lines:
        if key in OPTIONS:
            options.append(f"{OPTIONS[key]}={value}")
        elif key == "PodmanArgs":
            options += shlex.split(value)
        elif key == "Network":
            options.append(f"--network=systemd-{value.removesuffix('.network')}")
        elif key == "Volume":
            source, _, rest = value.partition(":")
            name = f"systemd-{source.removesuffix('.volume')}" if source.endswith(".volume") else source
            options.append(f"--volume={name}:{rest}")
        elif key == "SecurityLabelDisable":
            options.append("--security-opt=label=disable")
        elif key == "Image":
            image = value
        elif key == "Exec":
            command = shlex.split(value)
        else:
            assert key in ("Group", "Notify"), key
    return [*options, image, *command]
