"""What leads to the stack: for a shell, a file, a program, and for a command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from devstack.envfile import parse_env_file, read_env_file
from devstack.errors import StackError
from devstack.remote.variables import from_host, through
from devstack.settings import Settings, load, yaml_entries
from devstack.variables import ANSWERS, Login, dotenv_lines, shell_lines, without_answers
from tests.conftest import ROOT, Project, wait_for

NASTY = {
    "A": 'it\'s "quoted" `date` $HOME ${HOME} $(date) \\\\ \\n ! # ~ * é',
    "B": "two\nlines\n",
    "C": "",
    "D": "plain-1.2/x",
}
SHELLS = [name for name in ("bash", "dash", "zsh", "sh", "busybox") if shutil.which(name)]


TOLD = {"user": "nina", "password": "gener-ated_1", "name": "nina", "jwt_secret": "j-w_t"}
"""What a host gives."""
PORTS = {"db": 20_103, "pgb": 20_102, "api": 20_100}
"""Where the tunnel is."""


def reached(yaml: dict[str, object], env: bytes = b"") -> Settings:
    """Settings of a project whose stack is reached through a tunnel."""
    entries = yaml_entries({"stack": {}, **yaml}, "a test")
    return through(replace(load(entries, ROOT), dotenv=parse_env_file(env, {})), PORTS)


def test_a_host_names_no_variable_that_a_program_here_would_obey() -> None:
    own = {"PYTHONPATH": "$dir/src", "LD_LIBRARY_PATH": "$dir/lib", "PATH": "$dir/bin:/usr/bin", "DSN": "$direct_url"}
    settings = reached(
        {"api": {"env": {**own, "CACHE": "redis://here"}, "bind": "0.0.0.0"}, "db": {"bind": "10.1.2.3"}},
        b"GREETING=hello\nLOG_LEVEL=DEBUG\nSEEN=${DATABASE_URL}\n",
    )
    evil = (
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "PATH", "PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV"),
        *("ENV", "PS4", "IFS", "GIT_SSH_COMMAND", "PGSERVICEFILE", "PGSSLKEY", "PGPASSFILE", "PGHOSTADDR"),
        *("GREETING", "SEEN", "CACHE", "DSN", "x;touch PWNED;y", "DATABASE_URL", "DIRECT_URL", "API_URL", "PGHOST"),
        *(
            "PGPORT",
            "PGUSER",
            "PGREQUIREAUTH",
            "LOG_LEVEL",
            "NINAIVALAIGAL_DATABASE_URL",
            "NINAIVALAIGAL_HOSTS",
            ANSWERS,
        ),
    )
    found = from_host({**dict.fromkeys(evil, "/evil"), **TOLD}, settings)
    pooled, direct = (f"postgresql://nina:gener-ated_1@127.0.0.1:{port}/nina" for port in (20_102, 20_103))
    assert found == {
        "PYTHONPATH": f"{ROOT}/api/src",
        "LD_LIBRARY_PATH": f"{ROOT}/api/lib",
        "PATH": f"{ROOT}/api/bin:/usr/bin",
        "DSN": direct,
        "CACHE": "redis://here",
        "GREETING": "hello",
        "SEEN": pooled,
        "LOG_LEVEL": "INFO",
        "MEMORY_PROVIDER": "native",
        "NINAIVALAIGAL_DEBUG": "0",
        "NINAIVALAIGAL_JWT_SECRET": "j-w_t",
        "DATABASE_URL": pooled,
        "NINAIVALAIGAL_DATABASE_URL": pooled,
        "DIRECT_URL": direct,
        "API_URL": "http://127.0.0.1:20100",
        "PGHOST": "127.0.0.1",
        "PGPORT": "20103",
        "PGUSER": "nina",
        "PGPASSWORD": "gener-ated_1",
        "PGDATABASE": "nina",
        "PGREQUIREAUTH": "scram-sha-256",
        ANSWERS: found[ANSWERS],
    }
    assert without_answers(found) == {}, "a setting is none of them when they come back"
    assert from_host(TOLD, settings, direct=True)["DATABASE_URL"] == direct


@pytest.mark.parametrize("env", [b"PGREQUIREAUTH=\n", b"PGREQUIREAUTH=md5\n"])
def test_an_empty_pgrequireauth_is_left_out_as_libpq_lets_nobody_in_with_it(env: bytes) -> None:
    assert from_host(TOLD, reached({}, env)).get("PGREQUIREAUTH") == ("md5" if b"md5" in env else None)
    assert "PGREQUIREAUTH" not in from_host(TOLD, reached({"api": {"env": {"PGREQUIREAUTH": ""}}}, env))


@pytest.mark.parametrize("field", Login.__struct_fields__)
@pytest.mark.parametrize(
    "value",
    [
        *("", "x host=evil.example", "x' host='evil.example", "nina@evil.example", "postgresql://evil.example/x"),
        *("a/b", "a:b", "../x", "/evil", "$(x)", "a\nb", "a\0b", "\ud800", "é", "x" * 200),
        *("a?host=b", "a b", "a\\", "%2f"),
    ],
)
def test_a_login_of_a_host_that_means_more_than_itself_is_refused(field: str, value: str) -> None:
    dsn = {"DSN": "host=$db_host user=$db_user password=$db_password dbname=$db_name options=$jwt_secret"}
    with pytest.raises(StackError, match="is refused") as raised:
        from_host({**TOLD, field: value}, reached({"api": {"env": dsn}}))
    assert not value or value not in raised.value.text()


def test_what_is_set_here_may_be_anything() -> None:
    db = {"user": "größe & co", "password": "it's $(x) a=b", "name": "a b@c/d"}
    told = {**db, "jwt_secret": "j w t"}
    found = from_host(told, reached({"db": db, "api": {"jwt_secret": "j w t"}}))
    assert (found["PGUSER"], found["PGPASSWORD"], found["PGDATABASE"]) == (db["user"], db["password"], db["name"])
    assert found["NINAIVALAIGAL_JWT_SECRET"] == "j w t"


@pytest.mark.parametrize("name", ["-fevil", "--help"])
def test_a_hosts_name_of_a_database_is_no_option(name: str) -> None:
    with pytest.raises(StackError, match=r"db\.name is refused"):
        from_host({**TOLD, "name": name}, reached({}))
    assert from_host({**TOLD, "password": "-f"}, reached({}))["PGPASSWORD"] == "-f", "one may be generated like that"


@pytest.mark.parametrize("said", [[], "x", None, {}, {**TOLD, "user": 1}, {**TOLD, "password": None}])
def test_what_a_host_gives_that_is_no_login_is_refused(said: object) -> None:
    with pytest.raises(StackError, match="gives no login"):
        from_host(said, reached({}))


@pytest.mark.parametrize("shell", SHELLS)
def test_any_shell_takes_any_value(shell: str) -> None:
    script = "\n".join(shell_lines(NASTY, ["GONE"]))
    print_all = f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    words = [shell, "sh"] if shell == "busybox" else [shell]
    done = subprocess.run(
        [*words, "-c", f'eval "$SCRIPT"\n{print_all}'],
        env={"SCRIPT": script, "GONE": "x", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout)
    assert {name: seen[name] for name in NASTY} == NASTY
    assert "GONE" not in seen


def test_a_file_of_them_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("\n".join(dotenv_lines(NASTY)) + "\n")
    assert read_env_file(tmp_path / ".env", {}).values == NASTY
    assert dotenv_lines({"D": NASTY["D"]}) == ["D=plain-1.2/x"]


def test_before_the_first_start_there_are_none_and_asking_makes_nothing(project: Project) -> None:
    refused = project.inv("dev.env", expect=1)
    assert refused.stdout == ""
    assert "there are no secrets yet" in refused.stderr
    assert "inv dev.up" in refused.stderr
    assert "there are no secrets yet" in project.inv("dev.exec", "--", "true", expect=1).stderr
    assert not project.state_base.exists()
    # nothing has to be generated: they are known
    given = project.inv("dev.env", expect=0, NINAIVALAIGAL_JWT_SECRET="x", INVOKE_DB_PASSWORD="p w").stdout
    assert "export PGPASSWORD='p w'\n" in given
    assert f"export DATABASE_URL=postgresql://nina:p%20w@127.0.0.1:{project.pgb_port}/nina\n" in given
    assert not project.state_base.exists()


def variables(project: Project, *flags: str, **env: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(project.inv("dev.env", "--format", "json", *flags, expect=0, **env).stdout)
    return found


def test_what_they_are(stack: Project) -> None:
    secret = stack.secrets()
    server = f"postgresql://nina:{secret['db_password']}@127.0.0.1"
    (stack.root / ".env").write_text("OF_MINE='a b'\n")
    try:
        found = variables(stack, INVOKE_API_ENV='{"DSN": "$direct_url", "HERE": "$dir", "KEY": "$jwt_secret"}')
    finally:
        (stack.root / ".env").unlink()
    del found[ANSWERS]
    assert found == {
        "DIRECT_URL": f"{server}:{stack.db_port}/nina",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(stack.db_port),
        "PGUSER": "nina",
        "PGPASSWORD": secret["db_password"],
        "PGDATABASE": "nina",
        "PGREQUIREAUTH": "scram-sha-256",
        "API_URL": f"http://127.0.0.1:{stack.api_port}",
        "OF_MINE": "a b",
        "NINAIVALAIGAL_DATABASE_URL": f"{server}:{stack.pgb_port}/nina",
        "DATABASE_URL": f"{server}:{stack.pgb_port}/nina",
        "NINAIVALAIGAL_JWT_SECRET": secret["jwt_secret"],
        "MEMORY_PROVIDER": "native",
        "NINAIVALAIGAL_DEBUG": "0",
        "LOG_LEVEL": "INFO",
        "DSN": f"{server}:{stack.db_port}/nina",
        "HERE": str(stack.root / "api"),
        "KEY": secret["jwt_secret"],
    }
    assert variables(stack, "--direct")["DATABASE_URL"] == f"{server}:{stack.db_port}/nina"
    assert "one of shell, dotenv, json" in stack.inv("dev.env", "--format", "toml", expect=2).stderr


def test_a_shell_that_has_them_can_still_say_something_else(stack: Project) -> None:
    found = variables(stack)
    stack.inv("dev.status", expect=0, **found)  # PgBouncer's port is not taken for the database's
    assert "already running" in stack.inv("dev.up", expect=0, **found).stdout
    shown = stack.inv("system-info", "--json", expect=0, **{**found, "LOG_LEVEL": "DEBUG"}).stdout
    facts = {fact["name"]: fact for fact in json.loads(shown)["facts"] if fact["topic"] == "settings"}
    assert facts["api.log_level"]["origin"] == "variable LOG_LEVEL"
    assert facts["db.port"]["origin"] == "variable INVOKE_DB_PORT"
    assert without_answers(found) == {}
    assert without_answers({**found, "PGHOST": "elsewhere"}) == {"PGHOST": "elsewhere"}


def test_a_file_of_them_beside_the_settings_is_no_setting(stack: Project) -> None:
    text = stack.inv("dev.env", "--format", "dotenv").stdout
    (stack.root / ".env").write_text(text)
    try:
        stack.inv("dev.status")
        assert stack.inv("dev.env", "--format", "dotenv").stdout == text
    finally:
        (stack.root / ".env").unlink()


def test_misleading_variables_of_the_caller_are_unset(stack: Project) -> None:
    given = stack.inv("dev.env", PGSERVICE="other", PGHOSTADDR="10.0.0.1").stdout
    assert given.startswith("unset PGHOSTADDR PGSERVICE\n")
    seen = stack.inv("dev.exec", "--", "env", PGSERVICE="other", MINE="kept").stdout.splitlines()
    assert "MINE=kept" in seen
    assert not [line for line in seen if line.startswith("PGSERVICE=")]


def test_a_command_s_words_code_and_folder_are_its_own(stack: Project) -> None:
    done = stack.inv("dev.exec", "--", "sh", "-c", 'echo "$0|$1|$PGPORT"; exit 7', "a b", "--dry", expect=7)
    assert done.stdout == f"a b|--dry|{stack.db_port}\n"
    psql = "import os, psycopg2; print(psycopg2.connect(os.environ['DATABASE_URL']).get_dsn_parameters()['port'])"
    assert stack.inv("dev.exec", "--", sys.executable, "-c", psql).stdout == f"{stack.pgb_port}\n"
    assert stack.inv("dev.exec", "--direct", "--", sys.executable, "-c", psql).stdout == f"{stack.db_port}\n"
    assert stack.inv("--dry", "dev.exec", "--", "echo", "a b").stdout == "echo 'a b'\n"
    assert stack.inv("dev.exec", "-e", "dev", "--", "echo", "dev").stdout == "dev\n"


def test_a_signal_reaches_the_command_itself(stack: Project) -> None:
    process = stack.popen("dev.exec", "--", "sh", "-c", "echo $$; exec sleep 60")
    assert process.stdout
    assert int(process.stdout.readline()) == process.pid
    process.send_signal(signal.SIGTERM)
    assert wait_for(lambda: process.poll() is not None)
    assert process.returncode == -signal.SIGTERM


def test_a_command_that_can_not_be_run(stack: Project, tmp_path: Path) -> None:
    assert "no command nonesuch" in stack.inv("dev.exec", "--", "nonesuch", expect=127).stderr
    assert "can't be run" in stack.inv("dev.exec", "--", str(tmp_path), expect=126).stderr
    assert "what follows --" in stack.inv("dev.exec", expect=2).stderr
    assert "put dev.exec last" in stack.inv("dev.exec", "dev.down", "--", "true", expect=2).stderr
