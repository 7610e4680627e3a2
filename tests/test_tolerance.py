"""A wrong setting keeps nobody from stopping, inspecting or backing up what runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from invoke import Collection, Config
from invoke.parser.context import ParserContext

import tasks
from devstack.errors import UsageError
from devstack.settings import FIELDS, SECRETS, SPECIFIED, Settings, variable_of
from devstack.tolerance import IDENTITY, Memory, Place, Tolerance, note, recorded, tolerant_settings, with_service
from tasks.tolerated import ALWAYS, SOMETIMES, are_tolerant
from tests.conftest import Project

SECRET = "hunter2hunter2"


def settings(
    folder: Path,
    *,
    yaml: str = "",
    dotenv: str = "",
    environ: Mapping[str, str] | None = None,
    record: Mapping[str, Mapping[str, Any]] | None = None,
    broken: bool = False,
    places: list[str] | None = None,
) -> Settings:
    """Settings as a command that goes on reads them, from real files."""
    for name, content in (("invoke.yaml", yaml), (".env", dotenv)):
        (folder / name).write_text(content)
    nowhere = str(folder / "nowhere") + "/"
    config = Config(system_prefix=nowhere, user_prefix=nowhere, project_location=folder)
    if not broken:
        config.load_project()
    found = []
    for env in places or ["dev"]:
        path = folder / env / "settings.json"
        path.parent.mkdir(exist_ok=True)
        if record is not None:
            path.write_text(json.dumps(record))
        found.append(Place(env, folder, path))
    memory = Memory(lambda settings: folder / settings.stack.env / "settings.json", lambda: found)
    problem = UsageError(
        "a configuration file is not valid YAML", evidence=["expected x", "  in line 1"], fix="correct it"
    )
    tolerance = Tolerance(problem, yaml) if broken else Tolerance()
    return tolerant_settings(config, folder, environ or {}, (), tolerance, memory)


def value(found: Settings, path: str) -> Any:
    section, _, key = path.partition(".")
    return getattr(getattr(found, section), key)


def refusal(folder: Path, **given: Any) -> str:
    with pytest.raises(UsageError) as raised:
        settings(folder, **given)
    return raised.value.text()


STARTED: dict[str, Any] = {
    "stack": {"lock_timeout": 7.0, "log_dir": "old-logs"},
    "db": {"port": 7001, "max_connections": 55, "password": SECRET, "parameters": {"work_mem": "1MB"}},
    "api": {"port": 7003, "reload": False, "env": {"TOKEN": SECRET}, "log_level": "ERROR"},
    "data": {"dir": "old-backups"},
}

# what takes the place of a wrong value


@pytest.mark.parametrize("path", [path for path in FIELDS if path not in IDENTITY])
def test_a_wrong_value_of_any_setting_has_a_replacement(tmp_path: Path, path: str) -> None:
    section, key = path.split(".")
    found = settings(tmp_path, yaml=json.dumps({section: {key: {"no": ["such", SECRET]}}}))
    default = value(Settings(root=tmp_path), path)
    if found.wrong:  # a map of anything is no mistake in a map of parameters
        assert value(found, path) == default
        assert [wrong.refusal.path for wrong in found.wrong] == [path, *(["api.bind"] if path == "stack.bind" else [])]
        text = note(found.wrong)
        assert f"{tmp_path}/invoke.yaml" in " ".join(text.split())
        assert text.startswith("note:  ")
        assert path not in SECRETS or SECRET not in text
    else:
        assert path in ("db.parameters", "pgb.parameters")


@pytest.mark.parametrize("name", [variable_of("db.max_connections"), variable_of("api.port"), "LOG_LEVEL"])
@pytest.mark.parametrize("place", ["dotenv", "environ"])
def test_what_was_recorded_at_the_last_start_wins_over_other_files(tmp_path: Path, name: str, place: str) -> None:
    given: dict[str, Any] = {"dotenv": f"{name}=x\n"} if place == "dotenv" else {"environ": {name: "x"}}
    path = {variable_of(path): path for path in FIELDS}.get(name) or SPECIFIED[name]
    yaml = "db: {max_connections: 60}\napi: {port: 7002, log_level: INFO}\n"
    found = settings(tmp_path, yaml=yaml, record=STARTED, **given)
    section, key = path.split(".")
    assert value(found, path) == STARTED[section][key]
    text = note(found.wrong)
    assert f"{path}: 'x'" in text
    assert name in text
    assert f"used instead: {STARTED[section][key]!r}, as at the last start" in text
    # the others are as the files say
    others = {"db.max_connections": 60, "api.port": 7002, "api.log_level": "INFO"}
    assert {other: value(found, other) for other in others if other != path} == {
        other: value for other, value in others.items() if other != path
    }
    without = settings(tmp_path, yaml=yaml, record={}, **given)
    assert value(without, path) == others[path]


def test_a_later_value_that_is_right_stands(tmp_path: Path) -> None:
    found = settings(tmp_path, yaml="api: {port: 99999}\n", environ={"INVOKE_API_PORT": "7005"}, record=STARTED)
    assert found.api.port == 7005
    assert "used instead: 7005, from variable INVOKE_API_PORT" in note(found.wrong)


@pytest.mark.parametrize(
    ("yaml", "environ", "expected"),
    [
        ("db: {port: 7001}\napi: {port: 7001}\n", {}, {"db.port": 7001, "api.port": 7003}),
        ("api: {workers: 3, reload: true}\n", {}, {"api.workers": 1, "api.reload": False}),
        ("db: {name: postgres}\n", {}, {"db.name": "nina"}),
        ("stack: {bind: '::1'}\napi: {bind: 0.0.0.0}\n", {}, {"api.bind": "127.0.0.1"}),
        ("api: {env: {A: $nonsense}}\n", {}, {"api.env": {"TOKEN": SECRET}}),
        ("", {"NINAIVALAIGAL_DATABASE_URL": f"mysql://me:{SECRET}x@here/x"}, {"db.port": 7001, "db.password": SECRET}),
        ("db: {password: ''}\n", {}, {"db.password": SECRET}),
    ],
)
def test_what_contradicts_is_replaced_together(
    tmp_path: Path, yaml: str, environ: dict[str, str], expected: dict[str, Any]
) -> None:
    found = settings(tmp_path, yaml=yaml, environ=environ, record=STARTED)
    assert {path: value(found, path) for path in expected} == expected
    assert found.wrong
    assert SECRET not in note(found.wrong)


def test_unknown_keys_are_left_out(tmp_path: Path) -> None:
    found = settings(tmp_path, yaml=f"db: {{prot: 1}}\nnonsense: {SECRET}\npasword: {{x: {SECRET}}}\n")
    text = note(found.wrong)
    assert "did you mean db.port?" in text
    assert "left out" in text
    assert SECRET not in text


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    found = settings(tmp_path, yaml="api: {port: x}\n", record={"api": {"port": 0, "nonsense": 1}, "none": {"x": 1}})
    assert found.api.port == 13370
    (tmp_path / "dev" / "settings.json").write_text("{")
    assert recorded(tmp_path / "dev" / "settings.json") == {}


def test_a_record_has_each_service_s_section_from_its_own_start(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    first, second = Settings(root=tmp_path), Settings(root=tmp_path)
    first = msgspec.structs.replace(
        first, db=msgspec.structs.replace(first.db, port=1), api=msgspec.structs.replace(first.api, port=2)
    )
    path.write_text(with_service(path, first, "db"))
    assert "api.port" not in recorded(path)
    path.write_text(with_service(path, second, "api"))
    found = recorded(path)
    assert (found["db.port"], found["api.port"]) == (1, 13370)
    assert set(found) == {name for name in FIELDS if not name.startswith("pgb.")}


# which environment is meant


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"environ": {"NV_ENV": "Not Valid"}}, "stack.env"),
        ({"environ": {"NV_HOST": "a b"}}, "stack.host"),
        ({"yaml": "stack: {state_dir: 5}\n"}, "stack.state_dir"),
        ({"yaml": "data: {dir: ''}\n"}, "data.dir"),
        ({"yaml": "remote: {dir: 5}\n"}, "remote.dir"),
        ({"yaml": "stack: {enviroment: review}\n"}, "stack.enviroment"),
        ({"yaml": "stack: {state-dir: /x}\n"}, "stack.state-dir"),
        ({"yaml": "stak: {env: review}\n"}, "stak.env"),
        ({"yaml": "data: {folder: /x}\n"}, "data.folder"),
        ({"yaml": "stack: review\n"}, "stack"),
        ({"environ": {"INVOKE_STACK_STATEDIR": "/x"}}, "stack.statedir"),
        ({"dotenv": "NV_ENV review\n"}, ".env:1 is malformed"),
        ({"dotenv": "A=1\nexport INVOKE_STACK_STATE_DIR /x\n"}, ".env:2 is malformed"),
    ],
)
def test_what_names_the_environment_can_not_be_guessed(tmp_path: Path, given: dict[str, Any], named: str) -> None:
    assert named in refusal(tmp_path, record=STARTED, **given)


def test_other_malformed_lines_are_left_out(tmp_path: Path) -> None:
    found = settings(tmp_path, dotenv=f"A=1\npassword {SECRET}\nINVOKE_API_PORT=7009\n")
    assert (found.dotenv.values, found.api.port) == ({"A": "1"}, 7009)
    text = note(found.wrong)
    assert ".env:2 is malformed" in " ".join(text.split())
    assert SECRET not in text


def test_without_the_project_s_file_the_only_environment_goes_on_with_its_record(tmp_path: Path) -> None:
    found = settings(
        tmp_path, yaml="db: [", broken=True, record=STARTED, dotenv="INVOKE_DB_PORT=7009\n", places=["review"]
    )
    assert (found.stack.env, found.db.port, found.api.port, found.data.dir) == ("review", 7009, 7003, "old-backups")
    assert "what environment review was last started with" in note(found.wrong)


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"places": ["dev", "review"]}, "-e dev; there are dev, review"),
        ({"record": None}, "correct it"),
        ({"record": {"db": {"port": 7001}}}, "correct it"),
        ({"yaml": "stack: {host: me@far}\ndb: ["}, "correct it"),
        ({"yaml": "stack:\n  host: 'far' # x\ndb: ["}, "correct it"),
        ({"environ": {"NV_ENV": "other"}}, "correct it"),
    ],
)
def test_without_the_project_s_file_another_environment_is_never_taken(
    tmp_path: Path, given: dict[str, Any], fix: str
) -> None:
    text = refusal(tmp_path, **{"yaml": "db: [", "record": STARTED, "broken": True, **given})
    assert "not valid YAML" in text
    assert fix in text


def test_a_named_environment_is_taken_without_the_project_s_file(tmp_path: Path) -> None:
    yaml = "stack:\n  host: ''   # user@host\ndb: ["
    given: dict[str, Any] = {"yaml": yaml, "record": STARTED, "broken": True, "places": ["dev", "review"]}
    assert settings(tmp_path, environ={"NV_ENV": "review"}, **given).stack.env == "review"


# which commands go on


def contexts(*typed: str) -> list[ParserContext]:
    collection: Collection = tasks.ns
    known = {context.name: context for context in collection.to_contexts()}
    return [known[name] for name in typed]


STRICT = {
    *(
        "dev.up",
        "dev.restart",
        "dev.heal",
        "dev.watch",
        "dev.reset",
        "dev.remove",
        "dev.move",
        "dev.load",
        "dev.export",
    ),
    *("dev.init", "dev.ide", "dev.completion", "db.start", "db.profile", "pgb.start", "pgb.reload", "api.start"),
    *(
        "api.profile",
        "data.restore",
        "data.undo",
        "data.cleanup",
        "data.pin",
        "data.unpin",
        "data.seed",
        "data.generate",
    ),
    *("remote.accept", "remote.bootstrap"),
}


def test_every_task_is_one_that_goes_on_or_one_that_does_not() -> None:
    names = {context.name for context in tasks.ns.to_contexts()}
    assert names == STRICT | ALWAYS | set(SOMETIMES)
    assert not STRICT & (ALWAYS | set(SOMETIMES))


@pytest.mark.parametrize(
    ("typed", "goes_on"),
    [
        (("dev.down",), True),
        (("dev.down", "health"), True),
        (("dev.down", "dev.up"), False),
        (("dev.restart",), False),
        (("data.schedule",), True),
        (("data.migrate",), False),
        ((), False),
    ],
)
def test_a_command_goes_on_if_all_of_its_tasks_do(typed: tuple[str, ...], goes_on: bool) -> None:
    assert are_tolerant(contexts(*typed)) is goes_on


def test_flags_decide_where_they_change_what_a_task_does() -> None:
    for name, flag, goes_on in (
        ("data.schedule", "every", False),
        ("data.migrate", "status", True),
        ("dev.images", "save", False),
    ):
        [context] = contexts(name)
        context.args[flag]._value = "x"
        assert are_tolerant([context]) is goes_on


# for real

WRONG = [
    {"INVOKE_API_PORT": "99999"},
    {
        "INVOKE_DB_MAX_CONNECTIONS": "x",
        "INVOKE_STACK_STOP_TIMEOUT": "soon",
        "INVOKE_NONSENSE": "1",
        "INVOKE_DB_PRT": "1",
    },
    {"INVOKE_DB_BIN_DIR": "/nonexistent", "INVOKE_PGB_BINARY": "/nonexistent"},
    {
        "INVOKE_STACK_RUNTIME": "docker",
        "INVOKE_STACK_LOG_DIR": "/proc/nowhere",
        "INVOKE_STACK_ACCOUNT": "nobody-at-all",
    },
    {"INVOKE_API_ENV": '{"TOKEN": "' + SECRET + '$nonsense"}', "INVOKE_HOOKS_PRE_DOWN": "[1"},
]
LOOKING: list[tuple[str, ...]] = [
    *[("dev.status",), ("health",), ("dev.logs", "--tail", "1"), ("metrics", "--interval", "0.2"), ("dev.list",)],
    *[("data.backup",), ("data.list",), ("data.verify",), ("db.shell", "--command", "SELECT 1"), ("dev.env",)],
    *[("dev.exec", "--", "true"), ("db.stats",), ("pgb.stats",)],
]
FEWER = [
    ("health",),
    ("data.backup",),
    ("db.shell", "--command", "SELECT 1"),
    ("dev.logs", "--tail", "1"),
    ("dev.env",),
]


@pytest.mark.variations
@pytest.mark.parametrize(("wrong", "commands"), [*((wrong, FEWER) for wrong in WRONG[1:]), (WRONG[0], LOOKING)])
def test_what_runs_is_inspected_and_backed_up_while_settings_are_wrong(
    stack: Project, wrong: dict[str, str], commands: list[tuple[str, ...]]
) -> None:
    pids = stack.pids()
    for args in commands:
        done = stack.inv(*args, expect=0, **wrong)
        assert SECRET not in done.stderr
        assert done.stdout or args[0] == "dev.exec"
    for args in (("dev.up",), ("dev.restart",), ("dev.down", "dev.up"), ("data.restore",)):
        if commands is LOOKING:
            assert "a setting is wrong" in stack.inv(*args, expect=2, **wrong).stderr
    assert stack.pids() == pids


def test_what_runs_is_stopped_while_files_of_settings_are_wrong(project: Project) -> None:
    project.inv("dev.up")
    with (project.root / ".env").open("a") as file:
        file.write("LOG_LEVEL=loud\nnot a line\n")
    noted = project.inv("api.stop").stderr
    assert noted.startswith("note:  2 settings are wrong; this command goes on without them\n")
    assert f"{project.root / '.env'} (LOG_LEVEL)" in noted
    assert set(project.pids()) == {"nv-db", "nv-pgbouncer"}
    (project.root / "invoke.yaml").write_text(f"db: {{password: {SECRET}\n")
    text = project.inv("data.backup").stderr
    assert f'in "{project.root / "invoke.yaml"}", line 2' in text
    assert SECRET not in text
    assert project.inv("dev.up", expect=2).stderr.startswith("error: a configuration file is not valid YAML\n")
    assert "stopped in" in project.inv("dev.down").stdout
    assert project.processes() == []
    assert (project.state / "settings.json").stat().st_mode & 0o777 == 0o600
