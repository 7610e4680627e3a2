"""dev.export --format quadlet: units as podman-systemd.unit(5) has them; tests/engines runs their containers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.export.conftest import HOSTILE, ODD, PASSWORD, Exporter, golden, sourced

KNOWN = {
    "Unit": {"Description", "Requires", "After"},
    "Container": {
        *("ContainerName", "Exec", "Group", "HealthCmd", "HealthInterval", "HealthRetries", "HealthStartPeriod"),
        *(
            "AddCapability",
            "DropCapability",
            "NoNewPrivileges",
            "HealthTimeout",
            "Image",
            "Network",
            "Notify",
            "PodmanArgs",
            "PublishPort",
            "SecurityLabelDisable",
            "User",
        ),
        "Volume",
    },
    "Volume": {"VolumeName"},
    "Network": {"NetworkName"},
    "Service": {"Restart", "TimeoutStartSec", "TimeoutStopSec"},
    "Install": {"WantedBy"},
}
"""Sections and keys of podman-systemd.unit(5) that Podman 4.6 knows, of systemd.unit(5) and systemd.service(5)."""
GENERATORS = (
    "/usr/libexec/podman/quadlet",
    "/usr/lib/systemd/user-generators/podman-user-generator",
    "/usr/local/libexec/nv-tests/quadlet",
)
"""Podman's own, from 4.4 on; the last is what tests/engines/install.sh brings where Podman is older."""


def read(unit: Path) -> dict[str, list[tuple[str, str]]]:
    """A unit's sections; what is no line of one fails."""
    sections: dict[str, list[tuple[str, str]]] = {}
    here: list[tuple[str, str]] = []
    for line in unit.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if section := re.fullmatch(r"\[(\w+)\]", line):
            here = sections.setdefault(section[1], [])
            continue
        key, equals, value = line.partition("=")
        assert equals, line
        assert value, line
        assert not value.endswith("\\"), line
        here.append((key, value))
    return sections


def units(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".container", ".volume", ".network"))


@pytest.fixture(scope="module")
def usual(exporter: Exporter) -> Path:
    return exporter.export("--format", "quadlet")


def test_the_units_as_a_whole(exporter: Exporter, usual: Path) -> None:
    text = "".join(f"==> {path.name}\n{path.read_text()}" for path in units(usual))
    golden("quadlet.txt", exporter.normal(text))


def test_units_have_only_sections_and_keys_that_podman_knows(usual: Path) -> None:
    found = units(usual)
    assert [path.name for path in found] == [
        *("nv-api.container", "nv-db-data.volume", "nv-db.container", "nv-net.network", "nv-pgbouncer.container"),
    ]
    for path in found:
        sections = read(path)
        assert path.suffix[1:].capitalize() in sections
        for section, lines in sections.items():
            assert {key for key, _ in lines} <= KNOWN[section], path


def test_units_lead_to_each_other_and_to_files_that_are_there(usual: Path) -> None:
    names = {path.name for path in units(usual)}
    for path in usual.glob("*.container"):
        sections = read(path)
        container = sections["Container"]
        assert dict(container)["Network"] in names
        for key, value in container:
            if key == "Volume":
                source = value.split(":")[0]
                assert source in names or Path(source).exists()
        for key, value in sections["Unit"]:
            if key in ("Requires", "After"):
                assert value.replace(".service", ".container") in names
    ini = (usual / "pgbouncer" / "pgbouncer.ini").read_text()
    assert f"host={dict(read(usual / 'nv-db.container')['Container'])['ContainerName']} " in ini


def test_hostile_settings_never_come_into_a_unit(exporter: Exporter, usual: Path, tmp_path: Path) -> None:
    folder = exporter.export("--format", "quadlet", "--output", str(tmp_path / "out"), **HOSTILE)
    for path in units(folder):
        same = path.read_text().replace(str(folder), str(usual)), (usual / path.name).read_text()
        assert exporter.normal(same[0]) == exporter.normal(same[1])
    variables = sourced(folder / "secrets" / "nv-api")
    assert {name: variables[name] for name in ODD} == ODD
    words = subprocess.run(
        ["/bin/sh", "-c", '. "$1"; printf "%s\\0" "$NV_DATABASE" "$@"', "sh", str(folder / "db" / "words.sh")],
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert words.split("\0")[:2] == ["on", "postgres"]
    assert "search_path=\"$user\", 'a: b' #" in words.split("\0")


def test_a_folder_that_a_unit_can_t_name_is_refused(exporter: Exporter, tmp_path: Path) -> None:
    out = tmp_path / "a b"
    done = exporter.inv("dev.export", "--format", "quadlet", "--output", str(out), expect=2)
    assert f"the folder '{out}' can't be named in a unit" in done.stderr
    assert not out.exists()


def generate(folder: Path, made: Path) -> str:
    """What Podman's generator makes of a folder's units; its complaint, which it has in a dry run only."""
    generator = next((path for path in GENERATORS if os.access(path, os.X_OK)), None)
    if generator is None:
        pytest.skip("there is no generator of Podman's, which has one from 4.4 on (tests/engines/install.sh)")
    made.mkdir()
    env = {**os.environ, "QUADLET_UNIT_DIRS": str(folder)}
    tried = subprocess.run([generator, "-dryrun", "-user"], env=env, capture_output=True, text=True)
    subprocess.run([generator, "-user", str(made)], env=env, capture_output=True)
    return tried.stderr if tried.returncode else ""


def started(service: Path) -> list[str]:
    """The words of the command that a unit of systemd starts."""
    [line] = [line for line in service.read_text().splitlines() if line.startswith("ExecStart=")]
    return shlex.split(line.removeprefix("ExecStart="))


ODD_UNITS = {
    **HOSTILE,
    "INVOKE_DB_BIND": "::1",
    "INVOKE_PGB_BIND": "::1",
    "INVOKE_API_BIND": "::1",
    "INVOKE_API_IMAGE": "registry.example:5000/api:1",
    "NV_ENV": "odd-1",
}


@pytest.mark.parametrize("env", [{}, ODD_UNITS])
def test_podman_s_own_generator_takes_them(exporter: Exporter, env: dict[str, str], tmp_path: Path) -> None:
    folder = exporter.export("--format", "quadlet", "--output", str(tmp_path / "50%é"), **env)
    made, prefix = tmp_path / "made", "nv-odd-1" if env else "nv"
    assert generate(folder, made) == ""
    services = [f"{prefix}-{name}.service" for name in ("api", "db", "pgbouncer")]
    others = [f"{prefix}-db-data-volume.service", f"{prefix}-net-network.service"]
    assert sorted(path.name for path in made.glob("*.service")) == sorted([*services, *others])
    assert sorted(path.name for path in (made / "default.target.wants").iterdir()) == services
    for name in services:
        unit, words = (made / name).read_text(), started(made / name)
        assert words[1] == "run"
        assert f"{prefix}-net-network.service" in unit
        assert f"systemd-{prefix}-net" in words[words.index("--network") + 1]
        assert words[words.index("--publish") + 1].startswith("[::1]:" if env else "127.0.0.1:")
        assert words[words.index("--user") + 1] == "0:0"
        assert words[words.index("--health-cmd") + 1] == "/bin/sh /nv/health.sh"
        assert words[-1] == "/nv/entry.sh"
        assert not any(secret in unit for secret in exporter.secrets().values())
        assert PASSWORD not in unit
    database = started(made / services[1])
    assert f"systemd-{prefix}-db-data:/var/lib/nv-db" in database
    assert f"{folder}/secrets/nv-db:/run/secrets/nv-db:ro".replace("%", "%%") in database
    verify(made)


def verify(made: Path) -> None:
    """Have systemd itself read the units, where there is one that can."""
    if shutil.which("systemd-analyze") is None or not Path("/usr/bin/podman").exists():
        return
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", "--man=no", *map(str, sorted(made.glob("*.service")))],
        env={**os.environ, "XDG_RUNTIME_DIR": str(made.parent), "HOME": str(made.parent)},
        capture_output=True,
        text=True,
    )
    assert not [line for line in done.stderr.splitlines() if str(made) in line or "nv-" in line], done.stderr


def test_podman_s_own_generator_refuses_what_it_does_not_know(usual: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(usual, spoiled)
    unit = spoiled / "nv-db.container"
    unit.write_text(unit.read_text().replace("\nHealthCmd=", "\nHealthCommand="))
    assert "unsupported key 'HealthCommand'" in generate(spoiled, tmp_path / "made")
