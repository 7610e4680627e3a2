"""What will be refused is refused before anything is stopped: what runs goes on, the same processes as before."""

from __future__ import annotations

import json
import socket
import venv
from pathlib import Path

import pytest

from tests.conftest import Project


def refused(stack: Project, *command: str, says: str, **env: str) -> None:
    """Run a command that has to fail, and leave every process as it was."""
    before = stack.pids()
    assert len(before) == 3
    done = stack.inv(*command, expect=None, **env)
    assert done.returncode in (1, 2), done
    assert says in done.stderr, done
    assert "not touched" in done.stderr, done
    assert "stopped" not in done.stdout, done
    assert stack.pids() == before
    assert stack.http("/health")[0] == 200


def parameters(**values: object) -> str:
    return json.dumps(values)


SETTINGS = {
    "a value that PostgreSQL does not take": (
        {"INVOKE_DB_PARAMETERS": parameters(work_mem="much")},
        'invalid value for parameter "work_mem": "much"',
    ),
    "a parameter that PostgreSQL does not know": (
        {"INVOKE_DB_PARAMETERS": parameters(work_memory="4MB")},
        'unrecognized configuration parameter "work_memory"',
    ),
    "parameters that contradict each other": (
        {"INVOKE_DB_PARAMETERS": parameters(wal_level="minimal")},
        'requires "wal_level" to be "replica" or "logical"',
    ),
    "a library that is not there": (
        {"INVOKE_DB_PARAMETERS": parameters(shared_preload_libraries="no_such_library")},
        'could not access file "no_such_library"',
    ),
    "an extension that no PostgreSQL has": ({"INVOKE_DB_EXTENSIONS": "nosuch"}, "no PostgreSQL with nosuch was found"),
    "a directory without PostgreSQL's programs": ({"INVOKE_DB_BIN_DIR": "/nowhere"}, "of db.bin_dir can't be used"),
    "an address of another machine": ({"INVOKE_DB_BIND": "192.0.2.7"}, "no service can listen on 192.0.2.7"),
    "a parameter that PgBouncer does not know": (
        {"INVOKE_PGB_PARAMETERS": parameters(nosuch=1)},
        "unknown parameter: pgbouncer/nosuch",
    ),
    "a PgBouncer that is not there": ({"INVOKE_PGB_BINARY": "/nowhere"}, "PgBouncer was not found at /nowhere"),
    "a directory of the application that is not there": ({"INVOKE_API_DIR": "nowhere"}, "nowhere does not exist"),
    "a module of the application that is not there": (
        {"INVOKE_API_APP": "api.nosuch:app"},
        "the application's module api.nosuch was not found",
    ),
    "an interpreter that is not there": ({"INVOKE_API_PYTHON": "/nowhere/python"}, "interpreter /nowhere/python can't"),
}


@pytest.mark.variations
@pytest.mark.parametrize("fault", SETTINGS)
def test_a_restart_checks_every_setting_before_it_stops_anything(stack: Project, fault: str) -> None:
    env, says = SETTINGS[fault]
    refused(stack, "dev.restart", says=says, **env)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "env", "says"),
    [
        (["pgb.start"], {"INVOKE_PGB_PARAMETERS": parameters(nosuch=1)}, "unknown parameter"),
        (["api.start"], {"INVOKE_API_APP": "api.nosuch:app"}, "api.nosuch was not found"),
        (["dev.up"], {"INVOKE_API_DIR": "nowhere"}, "nowhere does not exist"),
        (["dev.reset", "--yes", "--no-backup"], {"INVOKE_API_DIR": "nowhere"}, "nowhere does not exist"),
        (["dev.reset", "--yes"], {"INVOKE_DB_PARAMETERS": parameters(wal_level="minimal")}, "wal_level"),
    ],
)
def test_a_service_before_the_refused_one_is_not_restarted_either(
    stack: Project, command: list[str], env: dict[str, str], says: str
) -> None:
    changed = {"INVOKE_DB_PARAMETERS": parameters(work_mem="5MB"), **env}
    stack.query("CREATE TABLE IF NOT EXISTS kept (id int); SELECT 1")
    refused(stack, *command, says=says, **changed)
    assert stack.query("SELECT count(*) FROM kept") == [(0,)]


@pytest.mark.slow
def test_an_interpreter_without_uvicorn_is_named_before_the_application_is_stopped(
    stack: Project, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = str(tmp_path / "bare/bin/python")
    refused(stack, "dev.restart", says="No module named uvicorn", INVOKE_API_PYTHON=python)
    refused(stack, "api.start", says="No module named uvicorn", INVOKE_API_PYTHON=python)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["db", "pgb", "api"])
def test_a_port_that_somebody_else_has_is_named_before_anything_is_stopped(stack: Project, label: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(stack, "dev.restart", says=f"port {port} of ", **{f"INVOKE_{label.upper()}_PORT": port})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "line", "says"),
    [
        ("pg_hba.conf", "host all all nonsense", "PostgreSQL refuses its pg_hba.conf"),
        ("pg_hba.conf", "$nosuch", "nosuch"),
        ("pg_ident.conf", "$nosuch", "nosuch"),
        ("pgbouncer.ini", "[pgbouncer]\nnosuch = 1", "unknown parameter: pgbouncer/nosuch"),
        ("userlist.txt", "$nosuch", "nosuch"),
        ("supervisor-service.conf", "$nosuch", "nosuch"),
        ("supervisord.conf", "$nosuch", "nosuch"),
    ],
)
def test_a_template_that_can_not_be_used_is_named_before_anything_is_stopped(
    stack: Project, template: str, line: str, says: str
) -> None:
    path = stack.root / "templates" / template
    text = path.read_text()
    rules = (stack.state / "config/pg_hba.conf").read_text()
    path.write_text(f"{text}\n{line}\n")
    try:
        refused(stack, "dev.restart", says=says)
    finally:
        path.write_text(text)
    assert (stack.state / "config/pg_hba.conf").read_text() == rules


@pytest.mark.slow
def test_a_copy_of_the_cluster_is_not_restored_for_what_could_not_be_started_again(stack: Project) -> None:
    stack.inv("data.backup", "--incremental")
    (made,) = json.loads(stack.inv("data.list", "--json").stdout)["backups"]
    stack.query("CREATE TABLE since (id int); SELECT 1")
    command = ["data.restore", "--file", Path(made["path"]).name]
    refused(stack, *command, says="nowhere does not exist", INVOKE_API_DIR="nowhere")
    assert stack.query("SELECT count(*) FROM since") == [(0,)]
    stack.inv(*command, "--no-safety-backup")
    refused(stack, "data.undo", says="nowhere does not exist", INVOKE_API_DIR="nowhere")
    assert stack.query("SELECT to_regclass('since')") == [(None,)]
    stack.inv("data.undo")
    assert stack.query("SELECT count(*) FROM since") == [(0,)]


RECORDED = {
    "db.bin_dir": {"INVOKE_DB_BIN_DIR": "/nowhere"},
    "db.extensions": {"INVOKE_DB_EXTENSIONS": "nosuch"},
    "pgb.binary": {"INVOKE_PGB_BINARY": "/nowhere"},
    "stack.runtime": {"INVOKE_STACK_RUNTIME": "apple"},
    "db.extensions, a choice of PostgreSQL": {"INVOKE_DB_EXTENSIONS": "pg_trgm", "INVOKE_DB_PORT": "TAKEN"},
    "db.port": {"INVOKE_DB_PORT": "TAKEN"},
    "pgb.port": {"INVOKE_PGB_PORT": "TAKEN"},
    "api.port": {"INVOKE_API_PORT": "TAKEN"},
}
"""Refused settings, by name, of what an environment records."""


@pytest.mark.slow
def test_a_refused_setting_is_not_recorded(project: Project) -> None:
    """Neither before the first start, which may have started the services before the refused one, nor afterwards."""
    for is_first in (True, False):
        for setting, env in RECORDED.items():
            records = recorded(project)
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = str(taken.getsockname()[1])
                wrong = {name: value.replace("TAKEN", port) for name, value in env.items()}
                done = project.inv("dev.up", expect=None, **wrong)
            assert done.returncode in (1, 2), (setting, done)
            left = recorded(project)
            for path, content in left.items():
                assert not [value for value in wrong.values() if value.encode() in content], (setting, path, content)
            assert is_first or left == records, setting
        project.inv("dev.up")
        assert len(project.pids()) == 3
        project.inv("dev.down")


def recorded(project: Project) -> dict[str, bytes]:
    """Return what the environment has recorded, by file."""
    return {str(path): path.read_bytes() for path in project.state_base.glob("*/*/*.json")}


@pytest.mark.slow
def test_settings_that_are_right_are_applied(stack: Project) -> None:
    before = stack.pids()
    stack.inv("dev.restart", INVOKE_DB_PARAMETERS=parameters(work_mem="5MB"))
    assert stack.query("SHOW work_mem") == [("5MB",)]
    stack.inv("dev.up")
    assert stack.query("SHOW work_mem") == [("4MB",)]
    assert not set(stack.pids().values()) & set(before.values())
    assert not list((stack.state / "run").glob("check*"))
    assert not list((stack.state / "config").glob("*check*"))


@pytest.mark.slow
def test_a_restart_of_what_is_stopped_just_starts_it(stack: Project) -> None:
    stack.inv("dev.down")
    stack.inv("dev.restart")
    assert len(stack.pids()) == 3
