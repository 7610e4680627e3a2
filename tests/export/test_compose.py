"""dev.export --format compose: what is written; tests/engines runs it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg2
import pytest
import yaml

from devstack.credentials import proves, scram_verifier
from devstack.export.folder import SIGNATURE
from devstack.services.postgres import PINNED
from tests.conftest import Project
from tests.export.conftest import HOSTILE, ODD, PASSWORD, Exporter, documents, golden, sourced


def plain(value: Any) -> Any:
    """What Compose makes of the values of a file: no variable is filled in, ``$$`` is a dollar sign."""
    if isinstance(value, str):
        assert "$" not in value.replace("$$", "")
        return value.replace("$$", "$")
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def test_the_file_as_a_whole(exporter: Exporter) -> None:
    folder = exporter.export("--format", "compose")
    assert folder == exporter.root / "export" / "compose"
    golden("compose.yaml", exporter.normal((folder / "compose.yaml").read_text()))
    again = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    exporter.export("--format", "compose")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == again


@pytest.mark.variations
@pytest.mark.parametrize("env", [{}, HOSTILE])
def test_the_compose_specification_takes_it(exporter: Exporter, env: dict[str, str], tmp_path: Path) -> None:
    folder = exporter.export("--format", "compose", "--output", str(tmp_path / "out"), **env)
    file, checker = folder / "compose.yaml", [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    done = subprocess.run([*checker, "vendor.compose-spec", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    file.write_text(file.read_text().replace("    healthcheck:", "    healthcheque:"))
    assert subprocess.run([*checker, "vendor.compose-spec", str(file)], capture_output=True).returncode != 0


def test_secrets_are_in_files_that_only_the_owner_may_read_and_nowhere_else(exporter: Exporter) -> None:
    folder = exporter.export("--format", "compose")
    secrets = exporter.secrets()
    for path in folder.rglob("*"):
        if path.is_file():
            found = [name for name, secret in secrets.items() if secret in path.read_text(errors="replace")]
            mode = stat.S_IMODE(path.stat().st_mode)
            private = path.parent.name == "secrets" and path.name != ".gitignore"
            assert mode == (0o600 if private else 0o644), path
            assert private or not found, path
    assert stat.S_IMODE((folder / "secrets").stat().st_mode) == 0o700
    # the database's service and PgBouncer's have verifiers, and no password
    assert [p.name for p in (folder / "secrets").iterdir() if secrets["db_password"] in p.read_text()] == ["nv-api"]


def test_hostile_settings_are_read_back_as_they_are(exporter: Exporter, tmp_path: Path) -> None:
    folder = exporter.export("--format", "compose", "--output", str(tmp_path / "out"), **HOSTILE)
    found = plain(yaml.safe_load((folder / "compose.yaml").read_text()))
    db, api = found["services"]["nv-db"], found["services"]["nv-api"]
    assert db["environment"]["NV_DATABASE"] == "on"
    words = db["command"]
    for parameter in ("work_mem=8MB", "jit=false", "search_path=\"$user\", 'a: b' #"):
        assert words[words.index(parameter) - 1] == "-c"
    assert api["environment"]["MEMORY_PROVIDER"] == "no"
    variables = sourced(folder / "secrets" / "nv-api")
    assert {name: variables[name] for name in ODD} == ODD
    assert variables["NINAIVALAIGAL_JWT_SECRET"] == PASSWORD[::-1]
    url = urlsplit(variables["DATABASE_URL"])
    assert (unquote(url.password or ""), url.username, url.hostname, url.path) == (
        PASSWORD,
        "0x10",
        "nv-pgbouncer",
        "/on",
    )
    assert variables["URL"] == variables["DATABASE_URL"]
    listed = (folder / "secrets" / "nv-pgbouncer").read_text().splitlines()[1]
    user, verifier = listed.split(" ", 1)
    assert user == '"0x10"'
    assert proves(verifier.strip('"'), PASSWORD)


PASSWORDS = ["plain", PASSWORD, "\u00aa\u2168", "a\u00adb", "a\u00a0b", "\u0627\u0628", "\u0627a", "\u0221"]
"""Mapped to others, to nothing, to a space; from the right; prohibited, and so taken as they are (RFC 4013)."""


@pytest.mark.slow
def test_a_verifier_is_what_the_server_would_make_of_the_password(stack: Project) -> None:
    for password in PASSWORDS:
        made = scram_verifier(password, b"0123456789abcdef")
        stack.inv("db.shell", "--admin", "--command", f"ALTER ROLE nina PASSWORD '{made}'")
        assert stack.query("SELECT 1", password=password) == [(1,)], password
        with pytest.raises(psycopg2.OperationalError):
            stack.query("SELECT 1", password=password + "x")


def test_an_image_of_your_own_is_not_built(exporter: Exporter, tmp_path: Path) -> None:
    images = {"INVOKE_API_IMAGE": "registry.example/api:1", "INVOKE_PGB_IMAGE": "pgbouncer"}
    folder = exporter.export("--format", "compose", "--output", str(tmp_path / "out"), **images)
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    assert services["nv-api"]["image"] == "registry.example/api:1"
    assert services["nv-pgbouncer"]["image"] == "docker.io/library/pgbouncer"
    assert not any("build" in service for service in services.values())
    assert not (folder / "build").exists()


def test_a_digest_is_kept_in_every_format(exporter: Exporter, tmp_path: Path) -> None:
    digest = f"sha256:{'0123456789abcdef' * 4}"
    images: dict[str, Any] = {
        "INVOKE_DB_IMAGE": f"pgvector/pgvector@{digest}",
        "INVOKE_PGB_IMAGE": f"registry.example/pgbouncer@{digest}",
        "INVOKE_API_BASE_IMAGE": f"python@{digest}",
    }
    for kind, wanted in (
        ("compose", (f"docker.io/pgvector/pgvector@{digest}", f"registry.example/pgbouncer@{digest}")),
        ("quadlet", (f"docker.io/pgvector/pgvector@{digest}", f"registry.example/pgbouncer@{digest}")),
        ("kubernetes", (f"registry.example/db:17@{digest}",)),
    ):
        more = ("--db-image", f"registry.example/db:17@{digest}") if kind == "kubernetes" else ()
        out = tmp_path / kind
        exporter.inv("dev.export", "--format", kind, "--output", str(out), *more, **images)
        text = "".join(path.read_text() for path in out.rglob("*") if path.suffix in (".yaml", ".container"))
        for image in (*wanted, f"docker.io/library/python@{digest}"):
            assert re.search(rf"{re.escape(image)}[\"'\s]", text), (kind, image)


def test_another_environment_has_names_of_its_own(exporter: Exporter) -> None:
    folder = exporter.export("--format", "compose", NV_ENV="review")
    assert folder == exporter.root / "export" / "review-compose"
    [found] = documents(folder / "compose.yaml")
    assert found["name"] == "nv-review-compose"
    assert list(found["services"]) == ["nv-review-db", "nv-review-pgbouncer", "nv-review-api"]
    assert list(found["volumes"]) == ["nv-review-db-data"]
    assert "host=nv-review-db port=5432" in (folder / "pgbouncer" / "pgbouncer.ini").read_text()


def test_what_the_role_has_set_does_not_count_for_the_superuser_at_a_start(exporter: Exporter, tmp_path: Path) -> None:
    """The database's entry, with programs that show how they are called; test_superuser.py has its scripts."""
    folder = exporter.export("--format", "compose", "--output", str(tmp_path / "out"))
    programs, seen = tmp_path / "bin", tmp_path / "seen"
    programs.mkdir()
    version = 'if [ "$1" = --version ]; then echo "postgres (PostgreSQL) 17.5"; exit; fi'
    show = f'printf "%s %s\\n" "$(basename "$0")" "${{PGOPTIONS-none}}" >>{seen}'
    lasting = 'case "$*" in *listen_addresses=*) sleep 1 ;; esac'
    scripts = {"postgres": f"{version}\n{show}\n{lasting}", "pg_isready": f"[ -e {seen} ]", "psql": show}
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    (folder / "db/account.sh").write_text("as=\n")
    (folder / "db/setup.sh").write_text("")  # which makes the cluster
    entry = (folder / "db/entry.sh").read_text().replace("/run/secrets", f"{folder}/secrets")
    env = {"NV_RULES": str(tmp_path / "rules"), "NV_SOCKETS": "/none", "NV_DATABASE": "nina"}
    subprocess.run(
        ["/bin/sh", "-c", re.sub(r"/nv/(?=\w)", f"{folder}/db/", entry), "entry", "postgres"],
        env={**env, "PATH": f"{programs}:{os.environ['PATH']}"},
        check=True,
        timeout=30,
    )
    assert seen.read_text().splitlines() == ["postgres none", *[f"psql {PINNED}"] * 2, "postgres none"]


@pytest.mark.parametrize("service", ["db", "pgbouncer", "api"])
def test_root_writes_nothing_where_its_account_may_leave_links(
    exporter: Exporter, tmp_path: Path, service: str
) -> None:
    """A container's entry, with programs that write down who runs them and then are what they seem to be."""
    out, programs, seen = tmp_path / "out", tmp_path / "bin", tmp_path / "seen"
    folder = exporter.export("--format", "compose", "--output", str(out))
    programs.mkdir()
    postgres = 'case "$*" in --version) echo "postgres (PostgreSQL) 17.5" ;; *listen_addresses=*) sleep 1 ;; esac'
    answers = {"postgres": postgres, "initdb": 'mkdir -p "$2"', "psql": "", "pg_isready": ""}
    for name in ("mkdir", "rm", "mv", "cp", "cat", "chown", "chmod", *answers):
        show = f'printf "%s %s %s\\n" {name} "${{WHO-root}}" "${{NV_VERIFIER+verifier}}" >>{seen}'
        itself = f'exec {shutil.which(name)} "$@"'
        (programs / name).write_text(f"#!/bin/sh\n{show}\n{answers.get(name, itself)}\n")
        (programs / name).chmod(0o755)
    account = "account" if service == "db" else "drop"
    (folder / service / f"{account}.sh").write_text('as=\n[ "${WHO-}" = account ] || as="env WHO=account"\n')
    (folder / service / "reload.py").write_text("")
    for file in (folder / service).glob("*.sh"):
        text = file.read_text().replace("/tmp/nv", f"{tmp_path}/inside").replace("/run/secrets", f"{folder}/secrets")
        file.write_text(re.sub(r"(?<![\w.])/nv/(?=\w)", f"{folder}/{service}/", text))
    places = {
        name: str(tmp_path / "inside" / name[3:].lower()) for name in ("NV_VOLUME", "NV_DATA", "NV_RULES", "NV_SOCKETS")
    }
    done = subprocess.run(
        ["/bin/sh", str(folder / service / "entry.sh"), "postgres"],
        env={**places, "NV_DATABASE": "nina", "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done
    lines = [line.split() for line in seen.read_text().splitlines()]
    assert {who for _, who, *_ in lines} == {"account"}, lines
    assert not [line for line in lines if "verifier" in line and line[0] != "psql"], lines


# what is refused


def test_what_somebody_has_changed_is_never_written_over(exporter: Exporter, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("dev.export", "--format", "compose", "--output", str(out))
    exporter.inv(*words)
    before = (out / "compose.yaml").read_text()
    assert SIGNATURE in before.splitlines()[0]
    first, rest = before.split("\n", 1)
    for changed in (before.replace("restart: on-failure", "restart: always"), rest, f"{first}\n"):
        (out / "compose.yaml").write_text(changed)
        (out / "secrets" / "nv-db").write_text("NV_VERIFIER=theirs\n")
        refusal = exporter.inv(*words, expect=2, INVOKE_DB_PORT="5999").stderr
        assert f"error: {out}/compose.yaml was changed since dev.export wrote it, or is somebody else's" in refusal
        assert f"so is {out}/secrets/nv-db" in refusal
        assert "nothing was written" in refusal
        assert (out / "compose.yaml").read_text() == changed
        assert "5999" not in "".join(p.read_text(errors="replace") for p in out.rglob("*") if p.is_file())
    (out / "compose.yaml").unlink()
    (out / "secrets" / "nv-db").unlink()
    exporter.inv(*words)
    assert (out / "compose.yaml").read_text() == before


def test_what_is_asked_for_wrongly_is_said(exporter: Exporter, tmp_path: Path) -> None:
    for words, said in (
        ((), "dev.export needs --format"),
        (("--format", "helm"), "--format 'helm' is not known"),
        (("--format", "compose", "--storage", "1Gi"), "only --format kubernetes takes --storage"),
        (("--format", "compose", "--output", "/dev/null/x"), "can't be written to /dev/null/x"),
    ):
        assert said in exporter.inv("dev.export", *words, expect=1 if "/dev/null/x" in words else 2).stderr
    chosen = {"INVOKE_API_PYTHON": "/usr/bin/python3", "INVOKE_DB_BIN_DIR": "/usr/lib/postgresql/15/bin"}
    refusal = exporter.inv("dev.export", "--format", "compose", expect=2, **chosen).stderr
    assert "db.bin_dir from the variable INVOKE_DB_BIN_DIR" in refusal or "db.bin_dir from" in refusal
    assert "INVOKE_DB_BIN_DIR= INVOKE_API_PYTHON= inv dev.export" in refusal
    exporter.inv("dev.export", "--format", "compose", "--output", str(tmp_path / "out"))


def test_a_dry_run_writes_nothing_and_shows_no_secret(exporter: Exporter, tmp_path: Path) -> None:
    said = exporter.inv("--dry", "dev.export", "--format", "compose", "--output", str(tmp_path / "out")).stdout
    assert f"# write {tmp_path}/out/compose.yaml (0644" in said
    assert not (tmp_path / "out").exists()
