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
    "INVOKE_DB_PARAMETERS": json.dumps({"work_mem": "9MB", "search_path": '"$user", public'}),
    "INVOKE_PGB_POOL_MODE": "transaction",
    "INVOKE_API_RELOAD": "false",
}
SERVICES = ("nv-db", "nv-pgbouncer", "nv-api")


class Exported(Running):
    """A project whose export runs."""

    def __init__(self, folder: Path, cache: Path, engine: Engine) -> None:
        super().__init__(folder, cache, engine)
        self.env |= {**SETTINGS, "INVOKE_STACK_RUNTIME": "native"}
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
            ports = json.loads(self.engine.run("inspect", f"{prefix}{service}{suffix}"))[0]["NetworkSettings"]["Ports"]
            assert {found["HostIp"] for bound in ports.values() for found in bound or ()} == {"127.0.0.1"}


class Composed(Exported):
    """One that podman-compose runs."""

    def compose(self, *words: str) -> None:
        program = [sys.executable, "-m", "podman_compose", "--podman-build-args=--network=host", *words]
        folder = self.root / "export" / "compose"
        done = subprocess.run(program, cwd=folder, env=self.env, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def project(workspace: Path, cache: Path, podman: Engine) -> Iterator[Composed]:
    with running(workspace, cache, podman, Composed) as made:
        yield made


def test_compose_comes_up_as_it_was_exported_and_keeps_its_data(project: Composed) -> None:
    project.export("compose")
    try:
        project.compose("up", "--detach")
        project.works("nv-compose_", "_1")
        [(mode,)] = [(row["value"],) for row in pgbouncer(project, "SHOW CONFIG") if row["key"] == "pool_mode"]
        assert mode == "transaction"
        project.ask("CREATE TABLE kept AS SELECT 7 AS n; SELECT 1")
        project.compose("restart")
        wait_for(lambda: project.ask("SELECT n FROM kept", project.pgb_port) == [(7,)], 30)
        project.compose("down")
        assert [name for name in project.containers() if "nv-compose" in name] == []
        assert [name for name in project.networks() if "nv-compose" in name] == []
        assert [name for name in project.volumes() if "nv-compose" in name] == ["nv-compose_nv-db-data"]
        # another password: the role has it when the database lets anybody in
        project.password = "another ' one"
        project.export("compose", INVOKE_DB_PASSWORD=project.password)
        project.compose("up", "--detach")
        project.works("nv-compose_", "_1")
        assert project.ask("SELECT n FROM kept", project.pgb_port) == [(7,)]
        log = project.engine.run("logs", "nv-compose_nv-db_1")
        assert "SCRAM-SHA-256$" not in log
    finally:
        project.password = PASSWORD
        project.compose("down", "--volumes")
    assert project.volumes() == []


def pgbouncer(project: Exported, sql: str) -> list[dict[str, object]]:
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
        name = container.stem.removeprefix("nv-")
        if (folder / "build" / name).is_dir() and not engine.run("images", "--quiet", image, check=False).strip():
            [line] = [line for line in container.read_text().splitlines() if line.startswith("#     podman build")]
            words = shlex.split(line.removeprefix("#     podman build"))
            done = subprocess.run(
                ["podman", "build", "--network=host", *words], cwd=folder, env={**os.environ, **engine.env}
            )
            assert done.returncode == 0
    engine.run("network", "create", "systemd-nv-net")
    engine.run("volume", "create", "systemd-nv-db-data")
    names = [f"systemd-{service}" for service in SERVICES]
    try:
        for service in SERVICES:
            engine.run("run", "--detach", *arguments(read(folder / f"{service}.container")["Container"]))
        project.works("systemd-", "")
    finally:
        engine.run("rm", "--force", "--time", "10", *reversed(names), check=False)
        engine.run("volume", "rm", "systemd-nv-db-data", check=False)
        engine.run("network", "rm", "systemd-nv-net", check=False)


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
