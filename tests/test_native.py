"""The native dialect: exactly what runs and what is written, and a real supervisord that takes it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest
from invoke import Context

from devstack.container import ContainerContext
from devstack.errors import StackError
from devstack.host import Host
from devstack.paths import Paths
from devstack.runtimes import EngineError, File, ServiceSpec, ServiceState, Step, Usage, unprivileged
from devstack.runtimes.native import STATUS, Native
from devstack.shell import sh
from tests.conftest import wait_for

ROOT = Path(__file__).resolve().parent.parent
NASTY = "o'hara 100% $(id) ü"
BASE = f"/srv/{NASTY}"
"""A folder as it may be called."""
QUOTED = "'/srv/o'\"'\"'hara 100% $(id) ü"
"""The same in a shell, its closing quote left off."""
INI = "/srv/o'hara 100%% $(id) ü"
"""The same in Supervisor's files."""


def native(base: str = BASE, *, is_root: bool = False, environ: Mapping[str, str] = MappingProxyType({})) -> Native:
    folder = Path(base)
    paths = Paths(
        root=folder, state=folder / "state", cache=folder / "cache", run=folder / "run", log=folder / "my logs"
    )
    return Native(paths, ROOT / "templates", "/opt/my py/bin/python", "postgres", is_root, environ)


DB = ServiceSpec(
    name="nv-db",
    argv=["/usr/bin/postgres", "-c", "log_line_prefix=%m [%p] "],
    cwd=Path(BASE) / "state",
    env={"ZONE": "UTC", "GREETING": "it's\n$HOME"},
    unset=["PGHOST", "PGPORT"],
    own_account=True,
    stop_signal="INT",
    stop_seconds=60,
)


def files(steps: Any) -> dict[str, File]:
    return {str(step.path).removeprefix(BASE): step for step in steps if isinstance(step, File)}


def commands(steps: Any) -> list[Step]:
    return [step for step in steps if not isinstance(step, File)]


# whole commands


CURL = f"curl -sS -m 30 --unix-socket {QUOTED}/run/supervisor.sock' -H 'Content-Type: text/xml' --data "


def test_the_engine_starts_with_its_rendered_file() -> None:
    steps = native().engine_start()
    assert commands(steps) == [
        f"umask 077; {{ [ ! -e {QUOTED}/state/logs/supervisord.log' ]"
        f" || chmod 600 {QUOTED}/state/logs/supervisord.log'; }}"
        f" && cd / && exec '/opt/my py/bin/python' -m supervisor.supervisord -c {QUOTED}/state/config/supervisord.conf'"
    ]
    (file,) = files(steps).values()
    assert (str(file.path), file.mode, file.account) == (f"{BASE}/state/config/supervisord.conf", 0o600, False)


def test_the_engine_stops_by_one_request() -> None:
    assert native().engine_stop() == [
        CURL + "'<methodCall><methodName>supervisor.shutdown</methodName><params></params></methodCall>'"
        " http://supervisor/RPC2"
    ]
    assert native().engine_pid() == Path(f"{BASE}/run/supervisord.pid")


def test_a_service_runs_by_three_files_and_one_request() -> None:
    steps = native().run(DB)
    assert [str(step.path).removeprefix(BASE) if isinstance(step, File) else step for step in steps] == [
        "/state/config/nv-db.sh",
        "/state/config/services/nv-db.conf",
        "/state/config/services/nv-db.xml",
        CURL + "'@" + QUOTED[1:] + "/state/config/services/nv-db.xml' http://supervisor/RPC2",
    ]
    # the services' account reads its launcher, and nobody reads anything else
    assert [(file.mode, file.account) for file in files(steps).values()] == [
        (0o600, True),
        (0o600, False),
        (0o600, False),
    ]


def test_a_service_stops_by_a_request_that_is_answered_at_once() -> None:
    assert native().stop("nv-db") == [
        CURL + "'<methodCall><methodName>supervisor.stopProcessGroup</methodName><params><param><value>nv-db</value>"
        "</param><param><value><boolean>0</boolean></value></param></params></methodCall>' http://supervisor/RPC2"
    ]
    assert native().stop("nv-db", signal="INT", instead="QUIT")[1:] == [
        CURL + "'<methodCall><methodName>supervisor.signalProcessGroup</methodName><params><param><value>nv-db</value>"
        "</param><param><value>QUIT</value></param></params></methodCall>' http://supervisor/RPC2"
    ]


def test_states_are_asked_of_all_services_at_once() -> None:
    assert native().states(["nv-db"]) == (
        CURL.replace("-m 30", "-m 3")
        + "'<methodCall><methodName>supervisor.getAllProcessInfo</methodName><params></params></methodCall>'"
        " http://supervisor/RPC2"
    )


def test_a_command_in_a_service_s_surroundings_is_the_command_with_its_variables() -> None:
    assert native().exec("nv-db", ["psql", "-c", "SELECT 1"], {}) == "psql -c 'SELECT 1'"
    env = {"PGHOST": "/a b", "PGUSER": "it's"}
    assert native().exec("nv-db", ["/opt/a=b/psql", "-l"], env) == (
        "PGHOST='/a b' PGUSER='it'\"'\"'s' /opt/a=b/psql -l"
    )


def test_logs_are_the_file_s_last_lines() -> None:
    log = f"{QUOTED}/my logs/nv-db.log'"
    assert native().logs("nv-db", tail=5, follow=False) == f"tail -n 5 {log}"
    assert native().logs("nv-db", tail=0, follow=True) == f"tail -n 0 -F {log}"
    assert native().logs("nv-db", tail=5, follow=False, skip=100) == f"tail -c +101 {log} | tail -n 5"


def test_only_root_takes_another_account_and_a_folder_that_it_may_enter() -> None:
    command = sh("echo $text", text="it's")
    assert native().as_account(command) == "echo 'it'\"'\"'s'"
    assert native(is_root=True).as_account(command) == (
        f"cd {QUOTED}/state' && env -i  su -s /bin/sh postgres -c "
        + "'echo '\"'\"'it'\"'\"'\"'\"'\"'\"'\"'\"'s'\"'\"''"
    )


# whole files


def supervisord_conf(user: str) -> str:
    return f"""\
; Rendered by nv-devstack at every start; edit templates/supervisord.conf instead.
[supervisord]
logfile = {INI}/state/logs/supervisord.log
logfile_maxbytes = 1MB
logfile_backups = 1
pidfile = {INI}/run/supervisord.pid
childlogdir = {INI}/state/logs
directory = {INI}/state
umask = 077
{user}
[unix_http_server]
file = {INI}/run/supervisor.sock
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl = unix://{INI}/run/supervisor.sock

[include]
files = services/*.conf
"""


def program(name: str, signal: str, seconds: int) -> str:
    return f"""\
; Rendered by nv-devstack at every start; edit templates/supervisor-service.conf instead.
[program:{name}]
command = /bin/sh "{INI}/state/config/{name}.sh"
autostart = false
autorestart = true
startsecs = 1
startretries = 10
stopsignal = {signal}
stopwaitsecs = {seconds}
stopasgroup = false
killasgroup = true
redirect_stderr = true
stdout_logfile = {INI.replace("%%", "%%%%")}/state/logs/{name}.log
stdout_logfile_maxbytes = 10MB
stdout_logfile_backups = 3
"""


@pytest.mark.parametrize(("is_root", "user"), [(False, ""), (True, "user = root\n")])
def test_supervisord_conf(is_root: bool, user: str) -> None:
    rendered = files(native(is_root=is_root).engine_start())["/state/config/supervisord.conf"].content
    assert rendered == supervisord_conf(user)


@pytest.mark.parametrize("is_root", [False, True])
def test_the_definition_of_a_service(is_root: bool) -> None:
    rendered = files(native(is_root=is_root).run(DB))["/state/config/services/nv-db.conf"].content
    assert rendered == program("nv-db", "INT", 60)


def test_what_supervisor_starts_for_another_account_is_a_script_of_root_s_that_changes_it() -> None:
    made = files(native(is_root=True, environ={"PATH": "/bin", "LC_ALL": "C.UTF-8", **CANARY}).run(DB))
    assert made["/state/config/nv-db-account.sh"].content == files(native().run(DB))["/state/config/nv-db.sh"].content
    assert made["/state/config/nv-db-account.sh"].account
    launcher = made["/state/config/nv-db.sh"]
    assert (launcher.mode, launcher.account) == (0o600, False)
    assert launcher.content == (
        "# Rendered by nv-devstack at every start.\n"
        "exec env -i PATH=/bin LC_ALL=C.UTF-8 '/opt/my py/bin/python' -I -S"
        f" {ROOT}/devstack/runtimes/unprivileged.py postgres"
        f" /bin/sh {QUOTED}/state/config/nv-db-account.sh'\n"
    )


def test_a_service_that_may_run_as_root_does() -> None:
    spec = ServiceSpec(name="nv-api", argv=["x"], cwd=Path("/"))
    assert files(native(is_root=True).run(spec)) == files(native().run(spec))


def test_the_launcher_of_a_service() -> None:
    assert files(native().run(DB))["/state/config/nv-db.sh"].content == (
        "# Rendered by nv-devstack at every start.\n"
        "ulimit -c 0\n"
        "unset PGHOST PGPORT\n"
        "export GREETING='it'\"'\"'s\n$HOME'\n"
        "export NV_SERVICE=nv-db\n"
        f"export NV_STACK={QUOTED}/state'\n"
        "export ZONE=UTC\n"
        f"cd {QUOTED}/state' || exit 1\n"
        "exec /usr/bin/postgres -c 'log_line_prefix=%m [%p] '\n"
    )


def test_a_watched_service_has_a_second_program_in_its_group_that_restarts_it() -> None:
    spec = ServiceSpec(name="nv-api", argv=["uvicorn"], cwd=Path("/srv/api"), watch=[Path("/srv/my api")])
    made = files(native().run(spec))
    assert list(made) == [
        "/state/config/nv-api.sh",
        "/state/config/nv-api-reload.sh",
        "/state/config/services/nv-api.conf",
        "/state/config/services/nv-api.xml",
    ]
    assert made["/state/config/services/nv-api.conf"].content == (
        program("nv-api", "TERM", 10)
        + "\n"
        + program("nv-api-reload", "TERM", 10)
        + "\n[group:nv-api]\nprograms = nv-api,nv-api-reload\n"
    )
    assert made["/state/config/nv-api-reload.sh"].content == (
        "# Rendered by nv-devstack at every start.\n"
        "ulimit -c 0\n"
        "export NV_SERVICE=nv-api-reload\n"
        f"export NV_STACK={QUOTED}/state'\n"
        f"export PYTHONPATH={ROOT}\n"
        f"cd {QUOTED}/state' || exit 1\n"
        f"exec '/opt/my py/bin/python' -m devstack.reload {QUOTED}/run/supervisor.sock' nv-api:nv-api '/srv/my api'\n"
    )


def test_the_request_replaces_whatever_had_the_name_before_it_starts() -> None:
    request = files(native().run(DB))["/state/config/services/nv-db.xml"].content
    (calls,), method = xmlrpc.client.loads(request)
    assert method == "system.multicall"
    assert [(call["methodName"], call["params"]) for call in calls] == [  # type: ignore[union-attr, index, call-overload]
        ("supervisor.reloadConfig", []),
        ("supervisor.stopProcessGroup", ["nv-db"]),
        ("supervisor.removeProcessGroup", ["nv-db"]),
        ("supervisor.addProcessGroup", ["nv-db"]),
        ("supervisor.startProcessGroup", ["nv-db", False]),
    ]


def test_no_value_of_a_variable_is_on_a_command_line() -> None:
    spec = ServiceSpec(name="nv-api", argv=["x"], cwd=Path("/"), env={"TOKEN": "correct-horse"})
    steps = native().run(spec)
    assert not [command for command in commands(steps) if "correct-horse" in str(command)]
    assert [path for path, file in files(steps).items() if "correct-horse" in file.content] == [
        "/state/config/nv-api.sh"
    ]


# the launcher, really run


def test_a_program_gets_exactly_its_words_variables_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / NASTY
    folder.mkdir()
    values = ["", " ", "it's", '"', "$HOME `id` $(id)", "a\nb\n", "\\", "%s", "é 日本", "-n", "a=b;c", "\x01\x7f"]
    env = {f"V{i}": value for i, value in enumerate(values)}
    show = "import os, sys, json; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"
    spec = ServiceSpec(
        name="nv-x", argv=[sys.executable, "-c", show, *values], cwd=folder, env=env, unset=["PGHOST", "GONE"]
    )
    launcher = tmp_path / "launch er.sh"
    launcher.write_text(native().launch_script(spec))
    surroundings = {"PATH": os.environ["PATH"], "PGHOST": "elsewhere", "KEPT": "yes"}
    done = subprocess.run(["/bin/sh", launcher], env=surroundings, cwd="/", capture_output=True, text=True, check=True)
    import json

    words, variables, cwd = json.loads(done.stdout)
    assert words == values
    assert {key: variables.get(key) for key in env} == env
    assert cwd == str(folder)
    assert "PGHOST" not in variables
    assert (variables["KEPT"], variables["NV_SERVICE"], variables["NV_STACK"]) == ("yes", "nv-x", f"{BASE}/state")


def test_a_service_that_crashes_leaves_no_memory_in_a_file(tmp_path: Path) -> None:
    show = "import resource; print(*resource.getrlimit(resource.RLIMIT_CORE))"
    spec = ServiceSpec(name="nv-x", argv=[sys.executable, "-c", show], cwd=tmp_path, env={})
    launcher = tmp_path / "launcher.sh"
    launcher.write_text(native().launch_script(spec))
    shell = 'ulimit -S -c unlimited 2>/dev/null; exec /bin/sh "$1"'
    done = subprocess.run(["/bin/sh", "-c", shell, "sh", launcher], capture_output=True, text=True, check=True)
    assert done.stdout == "0 0\n"


def test_a_launcher_becomes_its_program_so_that_signals_reach_it(tmp_path: Path) -> None:
    spec = ServiceSpec(name="nv-x", argv=["/bin/sh", "-c", "echo $$"], cwd=tmp_path)
    (tmp_path / "x.sh").write_text(native().launch_script(spec))
    process = subprocess.Popen(["/bin/sh", str(tmp_path / "x.sh")], stdout=subprocess.PIPE, text=True)
    assert process.communicate()[0] == f"{process.pid}\n"


def test_a_program_is_not_run_in_another_folder_than_its_own(tmp_path: Path) -> None:
    spec = ServiceSpec(name="nv-x", argv=["echo", "ran"], cwd=tmp_path / "gone")
    (tmp_path / "x.sh").write_text(native().launch_script(spec))
    done = subprocess.run(["/bin/sh", str(tmp_path / "x.sh")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("folder", ["plain", "a=b", NASTY])
def test_a_program_in_any_folder_is_found_also_with_variables(tmp_path: Path, folder: str) -> None:
    program = tmp_path / folder / "show"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$A|$1"\n')
    program.chmod(0o755)
    command = native().exec("nv-db", [str(program), "x y"], {"A": "it's $HOME"})
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "it's $HOME|x y\n"


# another account, really taken

CANARY = {"CANARY_TOKEN": "correct-horse", "AWS_SECRET_ACCESS_KEY": "battery", "HOME": "/root", "SSH_AUTH_SOCK": "/x"}
"""What root may have in its environment."""
PASSED_ON = {"LC_TIME": "C", "LANG": "C.UTF-8", "TZ": "UTC", "LD_LIBRARY_PATH": "/nowhere"}
"""What a program of another account gets of it, with ``PATH``."""


def variables(program: str) -> dict[str, str]:
    """Return what ``env -0`` has printed."""
    return dict(line.split("=", 1) for line in program.split("\0") if line)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_a_program_of_another_account_gets_nothing_of_root_s_environment_but_what_is_listed() -> None:
    given = {"PATH": os.environ["PATH"], **CANARY, **PASSED_ON}
    expected = {"PATH": os.environ["PATH"], **PASSED_ON}
    tool = native(is_root=True, environ=given)
    tool.account = "nobody"
    command = tool.as_account(sh("cat /proc/self/environ"), Path("/"))
    assert not [word for word in ("correct-horse", "battery") if word in command]
    done = subprocess.run(["/bin/sh", "-c", command], env=given, capture_output=True, text=True, check=True)
    seen = variables(done.stdout)
    assert {name: seen.get(name) for name in given} == {**dict.fromkeys(CANARY), **expected, "HOME": seen["HOME"]}
    assert seen["HOME"] == pwd.getpwnam("nobody").pw_dir

    words = [sys.executable, "-I", "-S", unprivileged.__file__, "nobody", "/bin/sh", "-c"]
    show = "cat /proc/self/environ; id -un >&2; id -G >&2; umask >&2"
    done = subprocess.run(
        [*words, show], env=expected, cwd="/", capture_output=True, text=True, check=True, umask=0o077
    )
    seen = variables(done.stdout)
    seen.pop("PWD", None)  # the shell's own
    assert seen == {**expected, "HOME": pwd.getpwnam("nobody").pw_dir}
    assert done.stderr.split() == ["nobody", str(pwd.getpwnam("nobody").pw_gid), "0077"]


# answers


def info(**changed: Any) -> dict[str, Any]:
    """What Supervisor says of a process (http://supervisord.org/api.html)."""
    base = {
        "name": "nv-db",
        "group": "nv-db",
        "start": 1_700_000_000,
        "stop": 0,
        "now": 1_700_000_100,
        "state": 20,
        "statename": "RUNNING",
        "spawnerr": "",
        "exitstatus": 0,
        "logfile": "",
        "stdout_logfile": "",
        "stderr_logfile": "",
        "pid": 4711,
        "description": "pid 4711, uptime 0:01:40",
    }
    return {**base, **changed}


def answer(value: Any) -> str:
    return xmlrpc.client.dumps(value if isinstance(value, xmlrpc.client.Fault) else (value,), methodresponse=True)


def state_of(**changed: Any) -> ServiceState:
    return native().parse_states(answer([info(**changed)]), ["nv-db"])["nv-db"]


@pytest.mark.parametrize(
    ("told", "understood"),
    [
        ({}, ServiceState("nv-db", "running", 4711, 1_700_000_000.0)),
        (
            {"statename": "STARTING", "description": ""},
            ServiceState("nv-db", "starting", 4711, 1_700_000_000.0),
        ),
        (
            {"statename": "STOPPED", "pid": 0, "description": "Nov 26 10:07 PM"},
            ServiceState("nv-db", "stopped"),
        ),
        (
            {"statename": "STOPPING", "description": "x"},
            ServiceState("nv-db", "stopping", 4711),
        ),
        (
            {"statename": "EXITED", "pid": 0, "exitstatus": 3, "description": "Exited too soon"},
            ServiceState("nv-db", "failed", exit_code=3, detail="Exited too soon"),
        ),
        (
            {"statename": "FATAL", "pid": 0, "spawnerr": "can't find command '/x'", "description": "y"},
            ServiceState("nv-db", "failed", detail="can't find command '/x'"),
        ),
        (
            {"statename": "BACKOFF", "pid": 0, "spawnerr": "Exited too quickly", "description": "y"},
            ServiceState("nv-db", "failed", detail="Exited too quickly"),
        ),
        ({"statename": "UNKNOWN", "pid": 0, "description": ""}, ServiceState("nv-db", "failed")),
        ({"statename": "NEVER HEARD OF", "pid": 0, "description": ""}, ServiceState("nv-db", "failed")),
    ],
)
def test_a_state_is_read_as_it_is_told(told: dict[str, Any], understood: ServiceState) -> None:
    assert state_of(**told) == understood


def test_every_state_of_supervisor_is_known() -> None:
    from supervisor.states import ProcessStates

    assert set(STATUS) == {name for name in vars(ProcessStates) if name.isupper()}


def test_a_service_that_the_engine_does_not_know_is_stopped_and_others_are_not_shown() -> None:
    told = answer([info(), info(name="nv-api-reload", group="nv-api")])
    assert native().parse_states(told, ["nv-api", "nv-db"]) == {
        "nv-api": ServiceState("nv-api"),
        "nv-db": state_of(),
    }
    assert native().parse_states("", ["nv-db"]) == {"nv-db": ServiceState("nv-db")}


@pytest.mark.parametrize("text", ["<html>502 Bad Gateway</html>", "not XML at all", "<methodResponse>"])
def test_an_answer_that_is_none_is_shown(text: str) -> None:
    with pytest.raises(EngineError, match="supervisord answered '"):
        native().parse_states(text, ["nv-db"])


def status(code: int, description: str) -> dict[str, Any]:
    return {"name": "nv-db", "group": "nv-db", "status": code, "description": description}


def fault(code: int, text: str) -> dict[str, Any]:
    return {"faultCode": code, "faultString": text}


RELOADED = [[["nv-db"], [], []]]
STARTED = [RELOADED, [status(80, "OK")], True, True, [status(80, "OK")]]


@pytest.mark.parametrize(
    "told",
    [
        STARTED,
        [RELOADED, fault(10, "BAD_NAME: nv-db"), fault(10, "BAD_NAME: nv-db"), True, [status(80, "OK")]],
        [RELOADED, [status(70, "NOT_RUNNING: nv-db")], True, fault(90, "ALREADY_ADDED: nv-db"), [status(80, "OK")]],
        [*STARTED[:4], [status(60, "ALREADY_STARTED: nv-db")]],
    ],
)
def test_a_start_of_what_already_is_so_is_no_failure(told: Any) -> None:
    native().check_run(answer(told))


@pytest.mark.parametrize(
    "told",
    [
        [status(80, "OK"), status(70, "NOT_RUNNING: nv-db")],
        [],
        True,
        xmlrpc.client.Fault(10, "BAD_NAME: nv-db"),
        xmlrpc.client.Fault(70, "NOT_RUNNING: nv-db"),
    ],
)
def test_a_stop_of_what_does_not_run_is_no_failure(told: Any) -> None:
    native().check_stop(answer(told))


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ([*STARTED[:4], [status(20, "NO_FILE: nv-db")]], "NO_FILE: nv-db"),
        ([*STARTED[:4], [status(50, "SPAWN_ERROR: nv-db")]], "SPAWN_ERROR: nv-db"),
        ([*STARTED[:4], [status(80, "OK"), status(40, "ABNORMAL_TERMINATION: x")]], "ABNORMAL_TERMINATION: x"),
        ([fault(92, "CANT_REREAD: bad"), *STARTED[1:]], "CANT_REREAD: bad"),
        ([*STARTED[:2], fault(91, "STILL_RUNNING: nv-db"), *STARTED[3:]], "STILL_RUNNING: nv-db"),
        ([*STARTED[:3], fault(10, "BAD_NAME: nv-db"), STARTED[4]], "BAD_NAME: nv-db"),
        ([*STARTED[:4], fault(10, "BAD_NAME: nv-db")], "BAD_NAME: nv-db"),
        ([*STARTED[:4], [status(70, "NOT_RUNNING: nv-db")]], "NOT_RUNNING: nv-db"),
        (xmlrpc.client.Fault(6, "SHUTDOWN_STATE"), "SHUTDOWN_STATE"),
        (xmlrpc.client.Fault(10, "BAD_NAME: nv-db"), "BAD_NAME: nv-db"),
    ],
)
def test_a_refused_start_is_raised_in_the_engine_s_own_words(told: Any, reason: str) -> None:
    with pytest.raises(EngineError) as raised:
        native().check_run(answer(told))
    assert str(raised.value) == reason


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ([status(30, "FAILED: nv-db")], "FAILED: nv-db"),
        ([status(60, "ALREADY_STARTED: nv-db")], "ALREADY_STARTED: nv-db"),
        (xmlrpc.client.Fault(6, "SHUTDOWN_STATE"), "SHUTDOWN_STATE"),
    ],
)
def test_a_refused_stop_is_raised_in_the_engine_s_own_words(told: Any, reason: str) -> None:
    with pytest.raises(EngineError) as raised:
        native().check_stop(answer(told))
    assert str(raised.value) == reason


@pytest.mark.parametrize("text", ["", "<html>"])
def test_no_answer_to_a_start_or_stop_is_a_refusal(text: str) -> None:
    for check in (native().check_run, native().check_stop):
        with pytest.raises(EngineError, match="supervisord answered"):
            check(text)


def test_an_answer_to_something_else_than_the_five_calls_is_a_refusal() -> None:
    for told in (True, STARTED[:4]):
        with pytest.raises(EngineError, match="supervisord answered"):
            native().check_run(answer(told))


# a real supervisord


@pytest.fixture
def supervised() -> Iterator[ContainerContext]:
    """A context with a supervisord of its own; whatever it started is ended by its process id."""
    folder = Path(tempfile.mkdtemp(prefix="nv-", dir="/tmp"))
    home = folder / NASTY
    paths = Paths(root=home, state=home / "s", cache=home / "c", run=home / "r", log=home / "my logs")
    for made in (paths.log, paths.run, paths.config):
        made.mkdir(parents=True)
    paths.logs.symlink_to(paths.log)
    runtime = Native(paths, ROOT / "templates", sys.executable, "", Host().is_root)
    context = ContainerContext(Context(), runtime, Host(), paths)
    try:
        yield context
    finally:
        left = [p for p in psutil.process_iter() if _belongs(p, str(folder))]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        shutil.rmtree(folder)


def _belongs(process: psutil.Process, folder: str) -> bool:
    with contextlib.suppress(psutil.Error):
        marks = [process.environ().get("NV_STACK", ""), *process.cmdline()]
        return process.pid != os.getpid() and any(folder in mark for mark in marks)
    return False


def service(context: ContainerContext, script: str, **changed: Any) -> ServiceSpec:
    values: dict[str, Any] = {"env": {"GREETING": "it's 100% $HOME"}, "stop_seconds": 5, **changed}
    return ServiceSpec(name="nv-x", argv=["/bin/sh", "-c", script], cwd=context.paths.root, **values)


def test_a_real_supervisord_runs_a_service_brings_it_back_and_leaves_nothing(
    supervised: ContainerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # as companies have it; the socket needs no proxy
    assert supervised.states(["nv-x"]) == {"nv-x": ServiceState("nv-x")}
    assert not supervised.engine_runs()
    supervised.start_engine()
    assert supervised.engine_runs()
    pid_file = supervised.runtime.engine_pid()
    assert pid_file is not None
    # it answers a moment before it writes this file
    supervisord = wait_for(lambda: psutil.Process(int(pid_file.read_text())))

    supervised.start(service(supervised, 'echo "$GREETING in $(pwd)"; exec sleep 1000'))
    state = wait_for(lambda: (s := supervised.states(["nv-x"])["nv-x"]).status == "running" and s)
    process = psutil.Process(state.pid)
    wait_for(lambda: process.cmdline() == ["sleep", "1000"])
    assert process.ppid() == supervisord.pid
    assert supervised.log_tail("nv-x") == [f"it's 100% $HOME in {supervised.paths.root}"]

    began = time.time()
    process.kill()
    again = wait_for(lambda: (s := supervised.states(["nv-x"])["nv-x"]).running and s.pid not in (0, state.pid) and s)
    assert psutil.Process(again.pid).ppid() == supervisord.pid
    (crash,) = supervised.crashes(["nv-x"], 0)["nv-x"]
    assert crash.how == "terminated by SIGKILL"
    assert began - 1 <= crash.when <= time.time()

    # another definition under the same name takes the place of the first
    supervised.start(service(supervised, "echo another; exec sleep 1001"))
    third = wait_for(lambda: (s := supervised.states(["nv-x"])["nv-x"]).running and s.pid not in (0, again.pid) and s)
    assert not psutil.pid_exists(again.pid)
    assert len(supervised.crashes(["nv-x"], 0)["nv-x"]) == 1  # what it is told to do is no crash

    supervised.stop("nv-x")
    wait_for(lambda: supervised.states(["nv-x"])["nv-x"].status == "stopped")
    assert not psutil.pid_exists(third.pid)
    supervised.stop("nv-x")  # stopped already is fine

    supervised.stop_engine()
    assert not supervised.engine_runs()
    wait_for(lambda: not supervisord.is_running())
    assert not pid_file.exists()


@pytest.mark.variations
@pytest.mark.parametrize("umask", [0, 0o002])
def test_logs_are_private_whatever_the_umask_and_what_was_there(supervised: ContainerContext, umask: int) -> None:
    (supervised.paths.log / "supervisord.log").touch(0o666)
    (supervised.paths.log / "supervisord.log").chmod(0o666)
    before = os.umask(umask)
    try:
        supervised.start_engine()
        supervised.start(service(supervised, "echo x; exec sleep 1000"))
    finally:
        os.umask(before)
    wait_for(lambda: supervised.log_tail("nv-x") == ["x"])
    assert {path.name: path.stat().st_mode & 0o777 for path in supervised.paths.log.glob("*.log")} == {
        "supervisord.log": 0o600,
        "nv-x.log": 0o600,
        "devstack.log": 0o600,
    }
    supervised.stop_engine()


def test_a_service_that_ends_at_once_is_failed_with_the_engine_s_reason(supervised: ContainerContext) -> None:
    supervised.start_engine()
    # a program that ended before the request was answered is a refused start too
    with contextlib.suppress(StackError):
        supervised.start(service(supervised, "echo wrong >&2; exit 3"))
    state = wait_for(lambda: (s := supervised.states(["nv-x"])["nv-x"]).status == "failed" and s)
    assert "Exited too quickly" in state.detail
    assert "wrong" in supervised.log_tail("nv-x")
    supervised.stop("nv-x")
    wait_for(lambda: supervised.states(["nv-x"])["nv-x"].status == "stopped")
    supervised.stop_engine()


@pytest.mark.faults
def test_an_engine_that_hangs_is_not_taken_for_one_that_is_gone(supervised: ContainerContext) -> None:
    supervised.start_engine()
    pid_file = supervised.runtime.engine_pid()
    assert pid_file is not None
    supervisord = wait_for(lambda: psutil.Process(int(pid_file.read_text())))
    supervisord.suspend()
    try:
        with pytest.raises(StackError) as raised:
            supervised.states(["nv-x"])
    finally:
        supervisord.resume()
    assert raised.value.what == "the native runtime does not say what runs"
    assert raised.value.why == f"its supervisord (pid {supervisord.pid}) is frozen (SIGSTOP)"
    assert raised.value.fix == [f"inv dev.heal, or: kill -CONT {supervisord.pid}"]
    supervised.stop_engine()


@pytest.mark.slow
def test_the_usage_of_a_service_is_that_of_all_its_processes(supervised: ContainerContext) -> None:
    supervised.start_engine()
    burn = f"{sys.executable} -c 'b = bytearray(40_000_000); [i * i for i in range(10**6)]; input()'"
    supervised.start(service(supervised, f"sleep 1000 | {burn} & sleep 1000 | {burn}"))

    def usage() -> Usage | None:
        found = supervised.usage(supervised.states(["nv-x"])).get("nv-x", Usage())
        return found if found.memory > 80_000_000 and found.processes >= 5 and found.cpu > 0.02 else None

    assert not wait_for(usage).frozen
    process = psutil.Process(supervised.states(["nv-x"])["nv-x"].pid)
    process.suspend()
    assert supervised.usage(supervised.states(["nv-x"]))["nv-x"].frozen
    process.resume()
    supervised.stop("nv-x")
    wait_for(lambda: supervised.usage(supervised.states(["nv-x"])) == {})
    supervised.stop_engine()


@pytest.mark.faults
def test_an_engine_that_is_shutting_down_says_so(supervised: ContainerContext) -> None:
    supervised.start_engine()
    supervised.start(service(supervised, "trap '' TERM; echo up; sleep 1000", stop_seconds=2))
    wait_for(lambda: "up" in supervised.log_tail("nv-x"))
    supervised.perform(supervised.runtime.engine_stop(), "shut down")
    with pytest.raises(StackError) as raised:
        supervised.states(["nv-x"])
    assert raised.value.why == "SHUTDOWN_STATE"


@pytest.mark.slow
def test_a_stop_right_after_a_start_waits_until_the_engine_is_gone(supervised: ContainerContext) -> None:
    for _ in range(5):
        supervised.start_engine()
        supervised.stop_engine()
        assert not (supervised.paths.run / "supervisord.pid").exists()
        assert not (supervised.paths.run / "supervisor.sock").exists()
        assert supervised.states(["nv-x"]) == {"nv-x": ServiceState("nv-x")}
        assert not supervised.engine_runs()


@pytest.mark.faults
@pytest.mark.parametrize("frozen", [False, True])
def test_an_engine_that_does_not_end_is_an_error_not_passed_over(
    supervised: ContainerContext, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    supervised.start_engine()
    pid_file = supervised.paths.run / "supervisord.pid"
    supervisord = wait_for(lambda: psutil.Process(int(pid_file.read_text())))
    if frozen:
        pid_file.unlink()  # so that it has to be asked
        supervisord.suspend()
    monkeypatch.setattr("devstack.container.ENGINE_SECONDS", 0.2)
    monkeypatch.setattr(supervised.runtime, "engine_stop", lambda: [sh("true")])
    with pytest.raises(StackError) as raised:
        supervised.stop_engine()
    assert "supervisor did not end within 0.2 s" in raised.value.what
    assert ("no answer within 3 s" if frozen else f"{pid_file} is still there") in raised.value.why
    assert "kill -CONT" in raised.value.fix[0]
