"""The same stack on each engine: one project an engine, whose tests leave it running."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.conftest import Project, directory_of_its_own, ended
from tests.engines import provide
from tests.engines.provide import BASE, BUNDLE, DATABASE, Engine

ENGINES = ("native", "podman", "docker", "apple")
WHOLE = "podman"
"""The engine that the suite runs on as a whole."""

R = TypeVar("R", bound="Running")


class Running(Project):
    """A project whose stack runs on an engine."""

    def __init__(self, folder: Path, cache: Path, engine: Engine) -> None:
        super().__init__(folder, cache)
        self.engine = engine
        self.env |= {**engine.env, **engine.settings, "INVOKE_STACK_RUNTIME": engine.name}

    @property
    def contained(self) -> bool:
        return self.engine.name != "native"

    def containers(self) -> list[str]:
        """Names of what the engine has, running or not."""
        if self.engine.name == "apple":
            return [found["id"] for found in json.loads(self.engine.run("list", "--all", "--format", "json"))]
        return self.engine.run("ps", "--all", "--format", "{{.Names}}").split()

    def volumes(self) -> list[str]:
        if self.engine.name == "apple":
            return [found["id"] for found in json.loads(self.engine.run("volume", "list", "--format", "json"))]
        return self.engine.run("volume", "ls", "--format", "{{.Name}}").split()

    def networks(self) -> list[str]:
        """Those that are not the engine's own."""
        if self.engine.name == "apple":
            return []
        names = self.engine.run("network", "ls", "--format", "{{.Name}}").split()
        return [name for name in names if name not in ("bridge", "host", "none", "podman")]

    def health(self, *, expect: int | None = 0) -> dict[str, dict[str, object]]:
        """The services' health by label."""
        done = self.inv("health", "--json", expect=expect)
        return {service["service"]: service for service in json.loads(done.stdout)["services"]}

    def runs(self) -> dict[str, tuple[int | None, float]]:
        """What tells one run of a service from the next: its pid, where the engine says it, and its start."""
        return {s["service"]: (s["pid"], s["started"]) for s in self.status() if s["started"]}

    def end(self) -> None:
        super().end()
        if self.contained:
            for name in self.containers():
                if name.startswith("nv-"):
                    self.engine.run("rm", "--force", name, check=False)
            for volume in self.volumes():
                if volume.startswith("nv-"):
                    self.engine.run("volume", "rm", volume, check=False)
            for network in self.networks():
                self.engine.run("network", "rm", network, check=False)


@pytest.fixture(scope="session")
def workspace() -> Iterator[Path]:
    """A directory on the disk: in memory Podman takes three times as long."""
    folder = Path(tempfile.mkdtemp(prefix="nv-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def place(workspace: Path) -> Iterator[Path]:
    """A folder for what the engines need."""
    folder = Path(tempfile.mkdtemp(dir=workspace, prefix="engines-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql(workspace: Path, cache: Path) -> Path:
    """The PostgreSQL that the native runtime has unpacked."""
    with directory_of_its_own(workspace) as folder, ended(Project(folder, cache)) as project:
        project.inv("db.start")
        found = json.loads((project.state / "choices.json").read_text())["postgres_bin"]
    return Path(found).parent


@pytest.fixture(scope="session")
def podman(place: Path, postgresql: Path) -> Iterator[Engine]:
    with provide.podman(place / "podman") as engine:
        provide.make_images(engine, place / "images", postgresql)
        engine.settings = settings()
        yield engine


@pytest.fixture(scope="session")
def docker(place: Path, podman: Engine) -> Iterator[Engine]:
    """With the images that Podman's tests have built, where they ran before: one build for both is enough."""
    with provide.docker(place / "docker") as engine:
        built = podman.run("images", "--filter", "label=nv-devstack.image", "--format", "{{.Repository}}:{{.Tag}}")
        provide.hand_over([BASE, DATABASE, *built.split()], podman, engine, place / "handed")
        engine.settings = settings()
        yield engine


@pytest.fixture(scope="session")
def apple(place: Path, podman: Engine) -> Iterator[Engine]:
    with provide.apple(place / "apple", podman) as engine:
        engine.settings = settings()
        yield engine


def settings() -> dict[str, str]:
    """What stands for the images of a registry; and the certificates of whoever is between here and the packages."""
    return {
        "INVOKE_DB_IMAGE": DATABASE,
        "INVOKE_PGB_BASE_IMAGE": BASE,
        "INVOKE_API_BASE_IMAGE": BASE,
        "INVOKE_STACK_CA_BUNDLE": str(BUNDLE) if BUNDLE.is_file() else "",
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of the contract on every engine, or on those that it names, any other on Podman alone."""
    if "engine" in metafunc.fixturenames:
        contract = metafunc.definition.get_closest_marker("contract")
        names = (contract.args or ENGINES) if contract else (WHOLE,)
        metafunc.parametrize("engine", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    name: str = request.param
    if name == "native":
        return Engine("native", "", {})
    found: Engine = request.getfixturevalue(name)
    return found


@contextlib.contextmanager
def running(workspace: Path, cache: Path, engine: Engine, kind: type[R]) -> Iterator[R]:
    """A project on an engine, nothing started yet."""
    with directory_of_its_own(workspace) as folder, ended(kind(folder, cache, engine)) as made:
        yield made


@pytest.fixture(scope="session")
def up(workspace: Path, cache: Path, engine: Engine) -> Iterator[Running]:
    """A running stack, which all tests of an engine share."""
    with running(workspace, cache, engine, Running) as made:
        made.inv("dev.up")
        yield made
