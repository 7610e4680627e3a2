"""``dev.up`` on Podman beside the same three ``podman run`` by hand, each waited for by asking it something real; and
beside ``podman-compose up`` of an equal Compose file, where that is installed.

Images, arguments and the script inside each container are those of a stack that was up once.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks.report import Samples
from benchmarks.workspace import BenchmarkError, CommandLine
from tests.engines.provide import BASE, BUNDLE, DATABASE, Engine

DEADLINE, INTERVAL = 60.0, 0.01
RESTING = 1.0
"""Seconds."""
SERVICES = ("db", "pgbouncer", "api")


class Containers:
    """An environment on Podman, by ``inv`` and by hand."""

    def __init__(self, line: CommandLine, engine: Engine) -> None:
        self.line, self.engine = line, engine
        line.environ |= {
            **engine.env,
            "INVOKE_STACK_RUNTIME": "podman",
            "INVOKE_DB_IMAGE": DATABASE,
            "INVOKE_PGB_BASE_IMAGE": BASE,
            "INVOKE_API_BASE_IMAGE": BASE,
            "INVOKE_STACK_CA_BUNDLE": str(BUNDLE) if BUNDLE.is_file() else "",
        }
        line.inv("dev.up")
        self.password = json.loads((line.state / "secrets.json").read_text())["db_password"]
        self.names = [f"nv-{line.env}-{service}" for service in SERVICES]
        self.network = f"nv-{line.env}-net"
        self.folder = line.workspace.folder / "by-hand"
        self.folder.mkdir()
        self.commands = {name: self._command(name) for name in self.names}
        line.inv("dev.down")

    def _command(self, name: str) -> list[str]:
        """The command that made a container, its variables in a file as they were then."""
        (found,) = json.loads(self.engine.run("inspect", name))
        words: list[str] = found["Config"]["CreateCommand"]
        (start,) = (text for text in found["Config"]["Env"] if text.startswith("NV_START="))
        file = self.folder / f"{name}.env"
        file.write_text(f"{start}\n")
        words[words.index("--env-file") + 1] = str(file)
        return words

    def measure(self, samples: Samples, rounds: int) -> None:
        """Each in turn, existing data, everything gone in between.

        :raises BenchmarkError: something does not run.
        """
        compose = self._compose()
        for number in range(1, rounds + 1):
            _rest()
            samples.floor["containers"].append(self._by_hand())
            _rest()
            samples.ours["containers"].append(self.line.inv("dev.up"))
            self.line.inv("dev.down")
            if compose:
                _rest()
                samples.floor["compose"].append(self._composed(compose))
                samples.ours["compose"].append(samples.ours["containers"][-1])
            print(f"containers, round {number} of {rounds}", file=sys.stderr, flush=True)

    def _by_hand(self) -> float:
        began = time.perf_counter()
        self.engine.run("network", "create", self.network)
        for name, answers in zip(self.names, (self._database, self._pooler, self._application), strict=True):
            self._run(self.commands[name])
            _await(answers)
        seconds = time.perf_counter() - began
        for name in reversed(self.names):
            self.engine.run("stop", name)
            self.engine.run("rm", "--volumes", name)
        self.engine.run("network", "rm", self.network)
        return seconds

    def _run(self, words: list[str]) -> None:
        done = subprocess.run(words, env=self.line.environ, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"{' '.join(words[:4])} … ended with {done.returncode}: {done.stderr}")

    # what is asked

    def _query(self, port: int) -> None:
        psycopg2.connect(
            host="127.0.0.1", port=port, user="nina", dbname="nina", password=self.password, connect_timeout=5
        ).close()

    def _database(self) -> None:
        self._query(self.line.ports["db"])

    def _pooler(self) -> None:
        self._query(self.line.ports["pgb"])

    def _application(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.line.ports["api"], timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status != 200:
                raise OSError
        finally:
            connection.close()

    # Compose

    def _compose(self) -> list[str]:
        """podman-compose and its file; empty where there is none."""
        program = shutil.which("podman-compose", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if program is None:
            return []
        services: dict[str, Any] = {}
        before = ""
        for name, check in zip(self.names, CHECKS, strict=True):
            words = self.commands[name]
            options = [word for word in words if word.startswith("--")]
            split = words.index("--entrypoint")
            services[name] = {
                "container_name": name,
                "image": words[split + 2],
                "entrypoint": ["/bin/sh", "-c", words[-1].replace("$", "$$")],
                "env_file": [str(self.folder / f"{name}.env")],
                "ports": [o.partition("=")[2] for o in options if o.startswith("--publish=")],
                "volumes": [o.partition("=")[2] for o in options if o.startswith("--volume=")],
                "mem_limit": next(o.partition("=")[2] for o in options if o.startswith("--memory=")),
                "healthcheck": {"test": ["CMD-SHELL", check], "interval": "1s", "retries": 60},
                **({"depends_on": {before: {"condition": "service_healthy"}}} if before else {}),
            }
            before = name
        volume = f"nv-{self.line.env}-db-data"
        content = {"services": services, "volumes": {volume: {"external": True}}}
        file = self.folder / "compose.yaml"
        file.write_text(json.dumps(content))  # JSON is YAML
        return [program, "--in-pod", "false", "--file", str(file)]

    def _composed(self, compose: list[str]) -> float:
        began = time.perf_counter()
        self._run([*compose, "up", "--detach"])
        _await(self._application)
        seconds = time.perf_counter() - began
        self._run([*compose, "down"])
        return seconds


CHECKS = (
    "pg_isready -h /tmp/nv/run",
    "grep -q :1920 /proc/net/tcp",  # 6432 listens
    "true",
)
"""What a Compose file can ask inside these images."""


def _rest() -> None:
    """Have what the last one left behind be over: the disk's writes, and the networks that the kernel takes down."""
    os.sync()
    time.sleep(RESTING)


def _await(answers: Callable[[], None]) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return answers()
        except (OSError, psycopg2.Error, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"no answer within {DEADLINE:g} s: {error}") from None
        time.sleep(INTERVAL)
