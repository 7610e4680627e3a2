"""The fault matrix: what is broken is named with its cause and its fix, and dev.heal mends what it claims to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from filelock import FileLock

from devstack.health.examination import examine
from devstack.health.heal import heal
from devstack.host import Host
from tests.conftest import Project, directory_of_its_own, ended, wait_for


def health(project: Project, **env: str) -> dict[str, Any]:
    """The answer of ``inv health --json``; its exit code must agree with it, and it never takes long."""
    began = time.monotonic()
    done = project.inv("health", "--json", expect=None, **env)
    seconds = time.monotonic() - began
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["verdict"] in ("healthy", "degraded") else 1), done
    assert found["seconds"] < 15, done  # the probes have 3 s, a busy machine takes longer; what hangs does so for 30 s
    assert seconds < 30
    for service in found["services"]:
        assert bool(service["cause"]) == (service["verdict"] != "healthy"), service
        if service["verdict"] != "healthy" and not service["because_of"]:
            assert service["fix"], service
    return {**found, **{service["service"]: service for service in found["services"]}}


def well(project: Project) -> dict[str, Any]:
    found = health(project)
    assert found["verdict"] == "healthy", [(s["name"], s["verdict"], s["cause"]) for s in found["services"]]
    return found


def supervisorctl(project: Project, *words: str) -> None:
    conf = project.state / "config" / "supervisord.conf"
    command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(conf), *words]
    subprocess.run(command, check=True, capture_output=True)


def stop(name: str) -> Callable[[Project], None]:
    return lambda project: supervisorctl(project, "stop", name)


def freeze(name: str) -> Callable[[Project], None]:
    return lambda project: os.kill(project.pids()[name], signal.SIGSTOP)


def kill(project: Project, name: str) -> None:
    """Kill a service and wait until the supervisor has started it again."""
    before = project.pids()[name]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: project.pids().get(name, before) != before)


def break_for_good(name: str) -> Callable[[Project], None]:
    """Have the service end as soon as it is started again."""

    def inject(project: Project) -> None:
        launcher = project.state / "config" / f"{name}.sh"
        before = project.pids()[name]
        launcher.write_text("echo 'broken by the test'; exit 3\n")
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: "failed" in project.inv("dev.status", expect=None).stdout)

    return inject


def edit(file: str, pattern: str, replacement: str, *, then: str = "restart") -> Callable[[Project], None]:
    """Edit a rendered file of PgBouncer by hand, and have it read."""

    def inject(project: Project) -> None:
        path = project.state / "config" / file
        text = path.read_text()
        changed = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        assert changed != text
        path.write_text(changed)
        if then == "restart":
            supervisorctl(project, "restart", "nv-pgbouncer")

    return inject


def admin_sql(sql: str) -> Callable[[Project], None]:
    def inject(project: Project) -> None:
        project.inv("db.shell", "--admin", "--command", sql)

    return inject


def console_command(command: str) -> Callable[[Project], None]:
    def inject(project: Project) -> None:
        secret = project.secrets()["pgbouncer_password"]
        connection = project.connect(project.pgb_port, user="nv_admin", dbname="pgbouncer", password=secret)
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(command)

    return inject


def three_crashes(project: Project) -> None:
    for _ in range(3):
        kill(project, "nv-api")
    wait_for(lambda: project.http("/health")[0] == 200)


def reject_in_pg_hba(project: Project) -> None:
    path = project.state / "config" / "pg_hba.conf"
    path.write_text(re.sub(r"^host +all +all.*", "host all all all reject", path.read_text(), flags=re.MULTILINE))
    os.kill(project.pids()["nv-db"], signal.SIGHUP)


def freeze_checkpointer(project: Project) -> None:
    below = psutil.Process(project.pids()["nv-db"]).children()
    next(process for process in below if "checkpointer" in " ".join(process.cmdline())).suspend()


DB, PGB, API = "nv-db", "nv-pgbouncer", "nv-api"
HEALED, LEFT = True, False

MATRIX: dict[str, tuple[Callable[[Project], None], str, str, str, str, dict[str, str], bool]] = {
    # fault: (how, whose, verdict, cause, fix, {consequence: its root}, whether dev.heal mends it)
    "database stopped": (
        stop(DB),
        "db",
        "stopped",
        r"^it is stopped$",
        r"^inv db\.start$",
        {"pgb": DB, "api": DB},
        HEALED,
    ),
    "PgBouncer stopped": (stop(PGB), "pgb", "stopped", r"^it is stopped$", r"^inv pgb\.start$", {"api": PGB}, HEALED),
    "API stopped": (stop(f"{API}:*"), "api", "stopped", r"^it is stopped$", r"^inv api\.start$", {}, HEALED),
    "database killed for good": (
        break_for_good(DB),
        "db",
        "unhealthy",
        r"^it is failed \(.*\); its last words: broken by the test$",
        r"inv db\.logs",
        {"pgb": DB, "api": DB},
        HEALED,
    ),
    "PgBouncer killed for good": (
        break_for_good(PGB),
        "pgb",
        "unhealthy",
        r"^it is failed \(.*\); its last words: broken by the test$",
        r"inv pgb\.logs",
        {"api": PGB},
        HEALED,
    ),
    "API killed for good": (
        break_for_good(API),
        "api",
        "unhealthy",
        r"^it is failed \(.*\); its last words: broken by the test$",
        r"inv api\.logs",
        {},
        HEALED,
    ),
    "database frozen": (
        freeze(DB),
        "db",
        "unhealthy",
        r"^its process \d+ is frozen \(SIGSTOP\); it takes connections at 127\.0\.0\.1:\d+ and says nothing",
        r"^inv dev\.heal, or: kill -CONT \d+$",
        {},
        HEALED,
    ),
    "PgBouncer frozen": (
        freeze(PGB),
        "pgb",
        "unhealthy",
        r"^its process \d+ is frozen \(SIGSTOP\); it takes connections at 127\.0\.0\.1:\d+ and says nothing",
        r"^inv dev\.heal, or: kill -CONT \d+$",
        {"api": PGB},
        HEALED,
    ),
    "API frozen": (
        freeze(API),
        "api",
        "unhealthy",
        r"^its process \d+ is frozen \(SIGSTOP\); .*/health",
        r"^inv dev\.heal, or: kill -CONT \d+$",
        {},
        HEALED,
    ),
    "wrong password in userlist": (
        edit("userlist.txt", r'^("nina") .*', r'\1 "wrong"'),
        "pgb",
        "unhealthy",
        r"^the password of nina in userlist\.txt is not the one in the settings$",
        r"^inv pgb\.reload renders it again$",
        {"api": PGB},
        HEALED,
    ),
    "user missing in userlist": (
        edit("userlist.txt", r'^"nina" .*\n', ""),
        "pgb",
        "unhealthy",
        r"^userlist\.txt has no user nina$",
        r"^inv pgb\.reload renders it again$",
        {"api": PGB},
        HEALED,
    ),
    "wrong port of the database in the ini": (
        edit("pgbouncer.ini", r"port=\d+", "port=1"),
        "pgb",
        "unhealthy",
        r"^pgbouncer\.ini is not as the settings say: nina is host=127\.0\.0\.1 port=1 dbname='nina', not host=",
        r"^inv pgb\.reload renders it again$",
        {"api": PGB},
        HEALED,
    ),
    "wrong port to listen on in the ini": (
        edit("pgbouncer.ini", r"^listen_port = .*", "listen_port = 1027"),
        "pgb",
        "unhealthy",
        r"^pgbouncer\.ini is not as the settings say: listen_port is 1027, not \d+$",
        r"^inv pgb\.start renders it again$",
        {"api": PGB},
        HEALED,
    ),
    "a value edited in the ini": (
        edit("pgbouncer.ini", r"^query_wait_timeout = .*", "query_wait_timeout = 11", then="nothing"),
        "pgb",
        "degraded",
        r"^pgbouncer\.ini is not as the settings say: query_wait_timeout is 11, not 10$",
        r"^inv pgb\.reload renders it again$",
        {},
        HEALED,
    ),
    "a value set at run time": (
        console_command("SET query_wait_timeout = 12"),
        "pgb",
        "degraded",
        r"^what it has loaded is not as the settings say: query_wait_timeout is 12, not 10$",
        r"^inv pgb\.reload renders it again$",
        {},
        HEALED,
    ),
    "database disabled in PgBouncer": (
        console_command("DISABLE nina"),
        "pgb",
        "unhealthy",
        r"^nina is paused or disabled in PgBouncer: clients wait$",
        r"^inv dev\.heal resumes it$",
        {},
        HEALED,
    ),
    "login rejected in pg_hba.conf": (
        reject_in_pg_hba,
        "db",
        "unhealthy",
        r"^its pg_hba\.conf does not let nina in: .* rejects connection",
        r"^inv db\.start renders it again$",
        {"pgb": DB, "api": DB},
        HEALED,
    ),
    "a process of the database frozen": (
        freeze_checkpointer,
        "db",
        "degraded",
        r"^a part of it is frozen \(SIGSTOP\): pid \d+$",
        r"^inv dev\.heal, or: kill -CONT \d+$",
        {},
        HEALED,
    ),
    "role has another password": (
        admin_sql("ALTER ROLE nina PASSWORD 'other'"),
        "db",
        "unhealthy",
        r"^it refuses nina: the role has another password than the settings$",
        r"^inv db\.start sets the role's password$",
        {},
        HEALED,
    ),
    "extension missing": (
        admin_sql('DROP EXTENSION "uuid-ossp"'),
        "db",
        "unhealthy",
        r"^extension uuid-ossp is missing in database nina$",
        r"^inv dev\.heal creates it$",
        {},
        HEALED,
    ),
    "API crashes again and again": (
        three_crashes,
        "api",
        "degraded",
        r"^it came back from 3 crashes, the last one .* ago \(terminated by SIGKILL\)$",
        r"^inv api\.logs shows why$",
        {},
        LEFT,
    ),
}


@pytest.mark.variations
@pytest.mark.parametrize("fault", MATRIX)
def test_a_fault_is_named_with_cause_and_fix_and_what_follows_from_it_and_is_mended(stack: Project, fault: str) -> None:
    inject, whose, verdict, cause, fix, consequences, mended = MATRIX[fault]
    well(stack)
    inject(stack)
    try:

        def named() -> dict[str, Any] | None:
            now = health(stack)
            return now if now[whose]["verdict"] == verdict and re.search(cause, now[whose]["cause"]) else None

        try:
            found = wait_for(named, 15)
        except AssertionError:
            now = health(stack)["services"]
            raise AssertionError([(s["name"], s["verdict"], s["cause"]) for s in now]) from None
        assert re.search(fix, found[whose]["fix"]), found[whose]
        assert found[whose]["because_of"] is None
        for follower, root in consequences.items():
            if found[follower]["verdict"] != "healthy":  # connections that were open may go on
                assert found[follower]["because_of"] == root, found[follower]
                assert (found[follower]["fix"], found[follower]["cause"][: len(root)]) == ("", root)
        text = stack.inv("health", expect=None).stdout
        assert "cause:   " in text
        done = stack.inv("dev.heal", expect=None)
        if mended:
            assert done.returncode == 0, done
            assert done.stdout.endswith("everything is healthy\n"), done
            assert f"\n{found[whose]['name']} " in f"\n{done.stdout}"
            wait_for(lambda: well(stack))
        else:
            assert f"is {verdict}" in done.stdout
    finally:
        _mend(stack)


def _mend(stack: Project) -> None:
    """Whatever a failed test left behind must not fail the next one."""
    for pid in stack.pids().values():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)
    if health(stack)["verdict"] == "healthy":
        return
    stack.inv("dev.restart", expect=None)


@pytest.mark.faults
def test_a_database_whose_connections_are_all_taken_says_by_whom(stack: Project) -> None:
    import psycopg2

    taken = []
    with contextlib.ExitStack() as open_ones:
        with contextlib.suppress(psycopg2.OperationalError):
            while True:
                taken.append(open_ones.enter_context(contextlib.closing(stack.connect(application_name="greedy"))))
        assert len(taken) > 50
        found = health(stack)
        assert found["db"]["verdict"] == "unhealthy"
        pattern = rf"^all its connections are taken \({len(taken)} idle of greedy"
        assert re.search(pattern, found["db"]["cause"]), found["db"]
        assert found["db"]["fix"] == "inv db.stats shows by whom: end those, or raise db.max_connections"
        assert found["pgb"]["because_of"] in (None, DB)
    wait_for(lambda: well(stack))


@pytest.mark.faults
def test_open_transactions_and_waiting_queries_are_degraded_and_named(stack: Project) -> None:
    impatient = {"INVOKE_HEALTH_TRANSACTION_SECONDS": "0.2", "INVOKE_HEALTH_LOCK_SECONDS": "0.2"}
    stack.query("CREATE TABLE IF NOT EXISTS locked (id int); SELECT 1")
    with contextlib.closing(stack.connect()) as holder, contextlib.closing(stack.connect()) as waiter:
        for connection in (holder, waiter):
            connection.autocommit = False
        with holder.cursor() as cursor:
            cursor.execute("LOCK TABLE locked")
        blocked = subprocess.Popen(
            [sys.executable, "-c", WAITER],
            env={**stack.env, "DSN": waiter.dsn, "PASSWORD": stack.secrets()["db_password"]},
        )
        try:

            def both() -> dict[str, Any] | None:
                db = health(stack, **impatient)["db"]
                found = {check["name"]: check for check in db["checks"]}
                return found if found["locks"]["cause"] and found["transactions"]["cause"] else None

            found = wait_for(both)
        finally:
            blocked.kill()
            blocked.wait()
        holder_pid = holder.info.backend_pid
        assert re.search(rf"^pid \d+ has waited .* for a lock that pid {holder_pid} holds$", found["locks"]["cause"])
        assert f"pg_terminate_backend({holder_pid})" in found["locks"]["fix"]
        assert re.search(
            rf"^a transaction of nina \(.*, pid {holder_pid}, idle in transaction\)", found["transactions"]["cause"]
        )
    stack.query("DROP TABLE locked; SELECT 1")


WAITER = """
import os, psycopg2
connection = psycopg2.connect(os.environ["DSN"], password=os.environ["PASSWORD"])
connection.cursor().execute("LOCK TABLE locked")
"""


@pytest.mark.faults
def test_a_data_folder_that_is_moved_away_is_found_again(stack: Project) -> None:
    data, away = stack.data, stack.data.with_name("away")
    data.rename(away)
    try:
        found = health(stack)["db"]
        healed = stack.inv("dev.heal", expect=None)
    finally:
        assert not data.exists()
        away.rename(data)
    assert found["verdict"] == "unhealthy"
    assert found["cause"] == f"the folder of its data is not at {data} any more: it is {away} now"
    assert found["fix"] == f"before anything is restarted: mv {away} {data}"
    assert healed.returncode == 1
    assert well(stack)


@pytest.mark.faults
def test_a_service_is_not_stopped_for_a_port_that_somebody_else_has(stack: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        before = stack.pids()[DB]
        found = health(stack, INVOKE_DB_PORT=port)["db"]
        assert found["fix"] == "inv db.start restarts it with those"
        was = f"it runs with other settings than there are now (parameter port is {stack.db_port}, not {port}); "
        assert found["cause"].startswith(was)
        stack.inv("dev.heal", expect=None, INVOKE_DB_PORT=port)
        assert f"port {port} of nv-db is taken" in stack.inv("db.start", INVOKE_DB_PORT=port, expect=1).stderr
    assert stack.pids()[DB] == before
    assert well(stack)


@pytest.mark.parametrize("address", ["::1", "::"])
def test_who_listens_where_localhost_may_lead_is_named(stack: Project, address: str) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as stranger:
        stranger.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            stranger.bind((address, stack.api_port))
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        stranger.listen()
        api = health(stack)["api"]
        assert api["verdict"] == "degraded"
        cause = (
            rf"^localhost may lead to another program: \[::1\]:{stack.api_port} is held by .* \(pid {os.getpid()}\)$"
        )
        assert re.search(cause, api["cause"]), api["cause"]
        url = f"http://127.0.0.1:{stack.api_port}"
        assert api["fix"] == f"use {url}; end what listens there, or set api.port; then inv dev.up"
        assert f"API: {url}\n" in stack.inv("health").stdout
        # one of the application's own processes is no stranger
        assert Host().stranger_on_ipv6(stack.api_port, os.getppid()) is None
    assert Host().stranger_on_ipv6(stack.api_port, os.getpid()) is None
    found = well(stack)
    assert found["api"]["address"] == f"127.0.0.1:{stack.api_port}"
    assert {
        url.partition("//")[2].partition(":")[0] for name, url in found["endpoints"].items() if name != "database"
    } == {"127.0.0.1"}


def test_thresholds_are_settings(stack: Project) -> None:
    for variable, whose, check in (
        ("INVOKE_API_MEMORY_MB", "api", "memory"),
        ("INVOKE_HEALTH_API_RESPONSE_MS", "api", "http"),
        ("INVOKE_HEALTH_CONNECTIONS_PERCENT", "db", "connections"),
    ):
        found = health(stack, **{variable: "8" if "MEMORY" in variable else "1"})
        assert found["verdict"] == "degraded", variable
        assert [c["name"] for c in found[whose]["checks"] if c["verdict"] == "degraded"] == [check]
    stack.inv("health", INVOKE_API_MEMORY_MB="8")
    assert "exit code 0 (1 with --strict)" in stack.inv("health", INVOKE_API_MEMORY_MB="8").stderr
    stack.inv("health", "--strict", INVOKE_API_MEMORY_MB="8", expect=1)
    assert "memory_mb" in stack.inv("dev.heal", INVOKE_API_MEMORY_MB="8").stdout


@pytest.mark.faults
def test_a_url_of_the_application_s_own_that_has_another_password_is_named(stack: Project) -> None:
    url = f"postgresql://nina:wrong@localhost:{stack.pgb_port}/nina"
    found = health(stack, INVOKE_API_ENV=json.dumps({"MY_URL": url}))
    (check,) = (check for check in found["api"]["checks"] if check["name"] == "credentials")
    assert check["verdict"] == "degraded"
    assert check["cause"] == "the variable MY_URL of the application has another password for nina than the settings"
    assert check["fix"].startswith("write MY_URL: $database_url below api.env")
    assert "wrong" not in json.dumps(found).replace("nothing is wrong", "")


@pytest.mark.faults
def test_settings_that_changed_since_the_start_are_named(stack: Project) -> None:
    found = health(stack, INVOKE_PGB_DEFAULT_POOL_SIZE="21")
    assert found["pgb"]["verdict"] == "degraded"
    causes = {check["name"]: check["cause"] for check in found["pgb"]["checks"] if check["cause"]}
    assert {"settings", "config"} <= causes.keys()
    assert "default_pool_size is 20, not 21" in causes["settings"]


@pytest.mark.faults
def test_a_supervisor_that_hangs_makes_everything_unknown(stack: Project) -> None:
    supervisord = psutil.Process(int((stack.state / "run" / "supervisord.pid").read_text()))
    supervisord.suspend()
    try:
        found = health(stack)
    finally:
        supervisord.resume()
    assert {service["verdict"] for service in found["services"]} == {"unknown"}
    assert found["verdict"] == "unknown"
    cause = f"the native runtime does not say what runs: its supervisord (pid {supervisord.pid}) is frozen (SIGSTOP)"
    assert found["db"]["cause"] == cause
    assert "kill -CONT" in found["db"]["fix"]


@pytest.mark.faults
def test_watching_heals_again_and_again_until_it_is_told_to_stop(stack: Project) -> None:
    said = stack.folder / "healer"
    with said.open("w") as stream:
        command = stack.command("dev.heal", "--watch", "0.3")
        healer = subprocess.Popen(command, cwd=stack.root, env=stack.env, stdout=stream, stderr=stream, text=True)
    stack.commands.append(healer)
    try:
        for name in (DB, API):
            os.kill(stack.pids()[name], signal.SIGSTOP)
            wait_for(lambda: well(stack), 30)
        stack.inv("api.stop")  # on purpose: it stays so
        os.kill(stack.pids()[DB], signal.SIGSTOP)
        wait_for(lambda: health(stack)["db"]["verdict"] == "healthy", 30)
        assert health(stack)["api"]["verdict"] == "stopped"
        stack.inv("api.start")
        supervisorctl(stack, "stop", f"{API}:*")  # by no command of ours
        wait_for(lambda: well(stack), 30)
        wait_for(lambda: re.search(r"started\n(.*\n)*everything is healthy\n$", said.read_text()), 60)
    finally:
        print(said.read_text())  # shown if it fails
        healer.send_signal(signal.SIGINT)
        healer.wait(30)
    assert healer.returncode == 0, said.read_text()
    assert said.read_text().count("(SIGCONT)") == 3
    assert said.read_text().count("started") == 1


@pytest.mark.faults
def test_what_another_command_is_at_is_looked_at_again_before_it_is_repaired(stack: Project) -> None:
    with FileLock(stack.state / "lock"):
        supervisorctl(stack, "stop", f"{API}:*")
        healer = stack.popen("dev.heal")
        assert healer.stderr
        assert "waiting for" in healer.stderr.readline()
        supervisorctl(stack, "start", f"{API}:*")
        wait_for(lambda: well(stack), 30)
    out, err = healer.communicate(timeout=60)
    assert (healer.returncode, out) == (0, "everything is healthy\n"), err


@pytest.mark.faults
def test_what_another_command_has_stopped_meanwhile_is_not_started_again(stack: Project) -> None:
    """It was seen in the middle of that: it ran, and nothing listened."""
    opened = stack.open_stack()
    before = examine(opened)
    seen = [
        msgspec.structs.replace(service, verdict="unhealthy", cause="nothing listens", remedy="restart")
        if service.service == "api"
        else service
        for service in before.services
    ]
    stack.inv("api.stop")
    try:
        with pytest.raises(StopIteration) as ended:
            next(heal(opened, msgspec.structs.replace(before, services=seen), asked=False))
        assert ended.value.value.service("api").verdict == "stopped"
    finally:
        opened.lock.release()
        stack.inv("api.start")


@pytest.mark.faults
def test_a_watcher_that_could_not_repair_is_in_nobody_s_way(stack: Project) -> None:
    app = stack.root / "api" / "main.py"
    source = app.read_text()
    healer = stack.popen("dev.heal", "--watch", "0.3")
    try:
        app.write_text("raise SystemExit('broken')\n")
        supervisorctl(stack, "stop", f"{API}:*")
        assert healer.stdout
        while "not repaired" not in healer.stdout.readline():
            assert healer.poll() is None
        app.write_text(source)
        started = stack.inv("api.start", INVOKE_STACK_LOCK_TIMEOUT="20")
        assert "in use" not in started.stderr
        wait_for(lambda: well(stack), 30)
    finally:
        app.write_text(source)
        healer.send_signal(signal.SIGINT)
        healer.communicate(timeout=30)


# stacks of their own


@pytest.mark.slow
def test_a_stack_that_is_down_is_stopped_and_healed_only_where_there_are_data(project: Project) -> None:
    found = health(project)
    assert found["verdict"] == "stopped"
    assert [service["fix"].split(" ")[:2] for service in found["services"]] == [
        ["inv", f"{label}.start"] for label in ("db", "pgb", "api")
    ]
    assert "there are no data at" in found["db"]["cause"]
    refused = project.inv("dev.heal", expect=1)
    assert "not repaired: there are no data at" in refused.stdout
    assert not (project.state / "volumes").exists() or not any((project.state / "volumes").iterdir())
    with socket.create_server(("127.0.0.1", project.db_port)):
        found = health(project)
        assert f"held by {' '.join(psutil.Process().cmdline())}"[:40] in found["db"]["cause"]
        assert f"(pid {os.getpid()})" in found["db"]["cause"]
        assert "or set db.port" in found["db"]["fix"]
    project.inv("dev.up")
    project.inv("dev.down")
    assert health(project)["verdict"] == "stopped"
    assert project.inv("dev.heal").stdout.endswith("everything is healthy\n")


APPLICATION = """
import json, time
from pathlib import Path
here = Path(__file__).parent

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return
    wanted = json.loads((here / "wanted.json").read_text())
    if scope["path"] in wanted.get("only", scope["path"]):
        time.sleep(wanted["seconds"])
    await send({"type": "http.response.start", "status": wanted["status"], "headers": []})
    await send({"type": "http.response.body", "body": b"the kettle is cold"})
"""


@pytest.fixture(scope="module")
def other(workspace: Path, cache: Path) -> Iterator[Project]:
    """A stack with an application that has a health path and nothing else, and behaves as a file says."""
    with directory_of_its_own(workspace) as folder, ended(Project(folder, cache)) as project:
        (folder / "app").mkdir()
        (folder / "app" / "kettle.py").write_text(APPLICATION)
        (folder / "app" / "wanted.json").write_text('{"seconds": 0, "status": 200}')
        project.env |= {
            "INVOKE_API_DIR": str(folder / "app"),
            "INVOKE_API_APP": "kettle:app",
            "INVOKE_API_HEALTH_PATH": "/up",
            "RELOAD_ON_CHANGE": "false",
            "INVOKE_PGB_DEFAULT_POOL_SIZE": "1",
        }
        project.inv("dev.up")
        yield project


@pytest.mark.faults
@pytest.mark.parametrize(
    ("wanted", "verdict", "cause", "fix"),
    [
        ({"seconds": 0, "status": 200}, "healthy", "^$", "^$"),
        ({"seconds": 0, "status": 500}, "unhealthy", "^/up answers 500: the kettle is cold$", r"^inv api\.logs$"),
        ({"seconds": 0, "status": 302}, "unhealthy", "^/up answers 302", r"^set api\.health_path to where /up leads"),
        ({"seconds": 0, "status": 401}, "unhealthy", "^/up answers 401", r"^set api\.health_path to one that asks for"),
        ({"seconds": 0, "status": 404}, "unhealthy", "^/up answers 404", r"^set api\.health_path; /up is not there$"),
        ({"seconds": 0.3, "status": 200}, "degraded", r"^/up took \d+ ms \(target: <200 ms\)$", "inv metrics"),
        (
            {"seconds": 30, "status": 200, "only": "/health/detailed"},
            "degraded",
            "^it hangs: waited 3 s for the answer of /health/detailed$",
            r"^inv api\.logs",
        ),
        (
            {"seconds": 30, "status": 200},
            "unhealthy",
            "/up.* (no answer within|waited) 3 s|waited 3 s for .*/up",
            r"inv api\.logs",
        ),
    ],
)
def test_an_application_is_judged_by_its_health_path_alone_if_it_has_nothing_else(
    other: Project, wanted: dict[str, float], verdict: str, cause: str, fix: str
) -> None:
    (other.root.parent / "app" / "wanted.json").write_text(json.dumps(wanted))
    slow = "200" if wanted["seconds"] == 0.3 else "60000"
    found = health(other, INVOKE_HEALTH_API_RESPONSE_MS=slow)
    assert found["api"]["verdict"] == verdict, found["api"]
    assert re.search(cause, found["api"]["cause"]), found["api"]
    assert re.search(fix, found["api"]["fix"]), found["api"]
    assert {check["name"] for check in found["api"]["checks"]} <= {
        *("process", "credentials", "http", "localhost", "answer", "settings", "exposure", "restarts", "memory")
    }
    if wanted["seconds"] == 30:  # it is at it for so long
        (other.root.parent / "app" / "wanted.json").write_text('{"seconds": 0, "status": 200}')
        if verdict == "unhealthy":
            assert "restarted" in other.inv("dev.heal").stdout
        else:
            other.inv("api.stop", "api.start")
        assert other.inv("dev.heal").stdout == "everything is healthy\n"


@pytest.mark.faults
def test_what_does_not_answer_is_not_restarted_with_a_setting_that_is_refused(other: Project) -> None:
    wanted = other.root.parent / "app" / "wanted.json"
    wanted.write_text('{"seconds": 5, "status": 200}')
    before = other.pids()
    done = other.inv("dev.heal", expect=1, INVOKE_API_APP="nosuch:app")
    wanted.write_text('{"seconds": 0, "status": 200}')
    assert "not repaired" in done.stdout
    assert "module nosuch was not found" in done.stdout
    assert other.pids() == before
    wait_for(lambda: well(other), 30)
    assert other.pids() == before


@pytest.mark.faults
def test_a_pool_that_an_idle_client_holds_is_named(other: Project) -> None:
    (other.root.parent / "app" / "wanted.json").write_text('{"seconds": 0, "status": 200}')
    well(other)
    with contextlib.closing(other.connect(other.pgb_port)) as idle:
        with idle.cursor() as cursor:
            cursor.execute("SELECT 1")
        found = health(other)
    assert found["pgb"]["verdict"] == "unhealthy"
    cause = (
        "1 of the 1 server connections of pool nina/nina are taken, also by idle clients, since pool_mode is session"
    )
    assert found["pgb"]["cause"].startswith(f"{cause}: 1 client waits"), found["pgb"]
    assert found["pgb"]["fix"].endswith("raise pgb.default_pool_size, or set pgb.pool_mode: transaction")
    assert (found["db"]["verdict"], found["api"]["verdict"]) == ("healthy", "healthy")
    wait_for(lambda: well(other))


@pytest.fixture
def small_disk(workspace: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=workspace))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m,mode=755", "none", folder], capture_output=True)
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip(f"a small disk can't be made here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


@pytest.mark.faults
def test_a_disk_that_is_nearly_full_and_one_that_is(small_disk: Path, project: Project) -> None:
    project.state_base = small_disk
    project.env["INVOKE_STACK_STATE_DIR"] = str(small_disk)
    project.inv("dev.up")
    try:
        assert health(project)["verdict"] == "healthy"
        fill = small_disk / "fill"
        free = shutil.disk_usage(small_disk).free
        fill.write_bytes(bytes(free - (33 << 20)))
        found = health(project, INVOKE_HEALTH_DISK_FREE_MB="1000000")
        assert found["db"]["verdict"] == "healthy" or "nearly full" in found["db"]["cause"]
        with fill.open("ab") as file:
            file.write(bytes(shutil.disk_usage(small_disk).free - (20 << 20)))
        found = health(project)
        assert found["db"]["verdict"] == "unhealthy"
        assert re.search(r"^the disk of its data is full: \d+ MB of 300 MB free$", found["db"]["cause"]), found["db"]
        assert found["db"]["fix"] == f"make room at {project.data}"
        before = project.pids()
        assert "is full" in project.inv("dev.restart", expect=1).stderr
        assert project.pids() == before
        fill.unlink()
        well(project)
    finally:
        project.end()
