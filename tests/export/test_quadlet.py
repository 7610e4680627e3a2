"""dev.export --format quadlet: units as podman-systemd.unit(5) has them; tests/engines runs their containers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.export.conftest import HOSTILE, ODD, Exporter, golden, sourced

KNOWN = {
    "Unit": {"Description", "Requires", "After"},
    "Container": {
        *("ContainerName", "Exec", "Group", "HealthCmd", "HealthInterval", "HealthRetries", "HealthStartPeriod"),
        *("HealthTimeout", "Image", "Network", "Notify", "PodmanArgs", "PublishPort", "SecurityLabelDisable", "User"),
        "Volume",
    },
    "Volume": {"VolumeName"},
    "Network": {"NetworkName"},
    "Service": {"Restart", "TimeoutStartSec", "TimeoutStopSec"},
    "Install": {"WantedBy"},
}
"""Sections and keys of podman-systemd.unit(5) that Podman 4.6 knows, of systemd.unit(5) and systemd.service(5)."""
GENERATORS = ("/usr/lib/systemd/system-generators/podman-system-generator", "/usr/libexec/podman/quadlet")


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
        assert path.read_text().replace(str(folder), str(usual)) == (usual / path.name).read_text()
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


def test_podman_s_own_generator_takes_them(usual: Path, tmp_path: Path) -> None:
    generator = next((path for path in GENERATORS if os.access(path, os.X_OK)), None)
    if generator is None:
        version = (
            subprocess.run(["podman", "--version"], capture_output=True, text=True) if shutil.which("podman") else None
        )
        pytest.skip(f"{version.stdout.strip() if version else 'no Podman'}: Quadlet came with Podman 4.4")
    for path in units(usual):
        shutil.copy(path, tmp_path)
    done = subprocess.run(
        [generator, "--user", "--dryrun"],
        env={**os.environ, "QUADLET_UNIT_DIRS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in ("nv-db", "nv-pgbouncer", "nv-api"):
        assert f"---{name}.service---" in done.stdout
