"""Backups by the clock: the host's own scheduler, with everything else in it left alone."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from devstack.data import signing
from devstack.data.cron import parse
from devstack.data.manifest import Manifest, encode
from devstack.data.schedulers import with_block, without_block
from devstack.errors import UsageError
from devstack.host import Host
from tests.conftest import ROOT, wait_for
from tests.data.conftest import Data, _project

NAME = "nv-devstack-x-1234-dev"
BLOCK = f"# >>> {NAME}: backups\n0 3 * * * /bin/sh /x\n# <<< {NAME}\n".encode()


@pytest.mark.parametrize(
    ("text", "after", "following"),
    [
        ("0 3 * * *", "2026-11-24 02:59", ["2026-11-24 03:00", "2026-11-25 03:00"]),
        ("0 3 * * *", "2026-11-24 03:00", ["2026-11-25 03:00"]),
        ("*/20 9-10 * * *", "2026-11-24 09:30", ["2026-11-24 09:40", "2026-11-24 10:00", "2026-11-24 10:20"]),
        ("30 3 * * mon-fri", "2026-11-27 12:00", ["2026-11-30 03:30"]),
        ("0 0 1 * sun", "2026-11-24 00:00", ["2026-11-29 00:00", "2026-12-01 00:00"]),
        ("0 0 29 feb *", "2026-11-24 00:00", ["2028-02-29 00:00"]),
        ("5,7 1 * * 7", "2026-11-24 00:00", ["2026-11-29 01:05", "2026-11-29 01:07"]),
    ],
)
def test_an_expression_names_the_moments_that_cron_does(text: str, after: str, following: list[str]) -> None:
    runs = parse(text).after(datetime.fromisoformat(after))
    assert [f"{next(runs):%Y-%m-%d %H:%M}" for _ in following] == following


@pytest.mark.parametrize(
    "text",
    ["", "dayly", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "*/0 * * * *",
     "5-1 * * * *", "a * * * *", "0 0 31 2 *", "1;reboot * * * *", "% * * * *", "* * * * *\n* * * * * x", "@daily",
     "0 0 */2 * mon", "0 0 1 * */2"],
)  # fmt: skip
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_systemd_and_launchd_get_the_same_moments() -> None:
    assert parse("0 3 * * *").calendar() == ["*-*-* 3:0:00"]
    assert parse("*/30 3 * * mon-wed").calendar() == ["Mon,Tue,Wed *-*-* 3:0,30:00"]
    assert parse("0 3 1 6 sun").calendar() == ["*-6-1 3:0:00", "Sun *-6-* 3:0:00"]
    assert parse("0 3 * * *").intervals() == [{"Minute": 0, "Hour": 3}]
    assert parse("0 3,4 * * 1").intervals() == [
        {"Minute": 0, "Hour": 3, "Weekday": 1},
        {"Minute": 0, "Hour": 4, "Weekday": 1},
    ]
    if shutil.which("systemd-analyze"):
        for text in ("0 3 * * *", "*/30 3-5 * * mon-wed", "0 3 1 6 sun"):
            for line in parse(text).calendar():
                subprocess.run(["systemd-analyze", "calendar", line], check=True, capture_output=True)


def test_the_agent_of_launchd_is_a_property_list() -> None:
    import string
    from xml.sax.saxutils import escape

    text = (ROOT / "templates/schedule.plist").read_text()
    script = "/a b/<&>'/run.sh"
    made = string.Template(text).substitute(
        name=NAME, script=escape(script), intervals="<dict><key>Hour</key><integer>3</integer></dict>"
    )
    parsed = plistlib.loads(made.encode())
    assert parsed["ProgramArguments"] == ["/bin/sh", script]
    assert parsed["StartCalendarInterval"] == [{"Hour": 3}]


@pytest.mark.parametrize(
    "others",
    [b"", b"# mine\n0 1 * * * x\n", b"\xff\xfe not utf-8\n\n", b"MAILTO=a%b\r\n", BLOCK.replace(b"1234", b"9999")],
)
def test_the_rest_of_a_crontab_stays_byte_for_byte(others: bytes) -> None:
    once = with_block(others, BLOCK, NAME)
    assert once == others + BLOCK
    assert without_block(once, NAME) == others
    changed = BLOCK.replace(b"0 3", b"5 4")
    assert with_block(once + b"# after\n", changed, NAME) == others + changed + b"# after\n"


@pytest.fixture(scope="module")
def stack(workspace: Path, cache: Path) -> Iterator[Data]:
    """A project in a folder whose name means something to a shell, to cron and to a template."""
    with _project(workspace, cache) as made:
        home = made.folder / "it's 100 %d $(touch PWN)"
        home.mkdir()
        made.root = made.root.rename(home / "project")
        made.own_program = True
        made.state_base = home / "state"
        made.env["INVOKE_STACK_STATE_DIR"] = str(made.state_base)
        made.inv("db.start")
        yield made


@pytest.fixture
def crontab(stack: Data) -> Iterator[bytes]:
    """The real one of this user, with something in it that must stay; as it was afterwards."""
    if not shutil.which("crontab"):
        pytest.skip("there is no crontab on this machine")
    if shutil.which("systemctl") and subprocess.run(["systemctl", "--user", "show-environment"]).returncode == 0:
        pytest.skip("this machine has systemd for its users")
    before = subprocess.run(["crontab", "-l"], capture_output=True)
    content = (before.stdout if before.returncode == 0 else b"") + b"# theirs: 5 % \xff\n@reboot true\n"
    subprocess.run(["crontab", "-"], input=content, check=True)
    yield content
    if before.returncode == 0:
        subprocess.run(["crontab", "-"], input=before.stdout, check=True)
    else:
        subprocess.run(["crontab", "-r"], check=True)


def entries() -> bytes:
    return subprocess.run(["crontab", "-l"], capture_output=True, check=True).stdout


def as_cron(line: bytes) -> subprocess.CompletedProcess[str]:
    """Run an entry as cron does: % undone, by /bin/sh, with four variables."""
    command = line.split(b" ", 5)[5].replace(rb"\%", b"%").decode()
    env = {"HOME": os.environ["HOME"], "LOGNAME": "x", "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
    return subprocess.run(["/bin/sh", "-c", command], env=env, capture_output=True, text=True, timeout=60, cwd="/")


def test_the_entry_makes_backups_with_what_cron_gives_it(stack: Data, crontab: bytes) -> None:
    stack.popen("data.schedule", "--every", "daily", "--at", "4:05").wait()
    assert entries().startswith(crontab)
    stack.popen("data.schedule", "--every", "hourly").wait()
    (line,) = [line for line in entries()[len(crontab) :].splitlines() if b"/bin/sh" in line]
    assert line.startswith(b"0 * * * * /bin/sh ")
    done = as_cron(line)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), stack.log("schedule")
    (backup,) = stack.json("data.list")["backups"]
    assert (backup["label"], backup["verified"]["how"]) == ("scheduled", "read")
    status = json.loads(stack.popen("data.schedule", "--json").communicate()[0])
    assert status["last"]["ok"]
    assert backup["file"] in status["last"]["said"]
    assert backup["file"] in stack.log("schedule")

    # a database that does not run is started for it, and stopped again
    stack.inv("dev.down")
    assert as_cron(line).returncode == 0
    assert stack.pids() == {}
    assert len(stack.json("data.list")["backups"]) == 2

    # and one that fails says so
    (stack.data / "global/pg_control").rename(stack.folder / "pg_control")
    assert as_cron(line).returncode == 1
    (stack.folder / "pg_control").rename(stack.data / "global/pg_control")
    status = json.loads(stack.popen("data.schedule", "--json").communicate()[0])
    assert not status["last"]["ok"]
    assert "nv-db did not become ready" in status["trouble"]

    stack.inv("data.schedule", "--remove")
    assert entries() == crontab
    assert not (stack.state / "schedule").exists()
    assert not list(stack.folder.rglob("PWN"))


@pytest.mark.slow
def test_a_run_that_is_told_to_end_says_that_it_was_interrupted(stack: Data) -> None:
    stack.inv("db.start")
    stack.sql("CREATE TABLE bulk AS SELECT g, md5(g::text) FROM generate_series(1, 300000) g")
    process = stack.popen("data.schedule", "--run")
    wait_for(lambda: list(stack.backups.glob(".nv-*.partial")))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    last = json.loads((stack.state / "schedule/last.json").read_text())
    assert (last["ok"], last["said"]) == (False, "it was interrupted")
    assert last["ended"]
    assert not list(stack.backups.glob(".nv-*"))
    shutil.rmtree(stack.state / "schedule")


@pytest.mark.slow
def test_a_stack_that_was_started_during_a_run_goes_on(stack: Data) -> None:
    stack.inv("dev.down")
    process = stack.popen("data.schedule", "--run")
    wait_for(lambda: list(stack.backups.glob(".nv-*.partial")))
    process.send_signal(signal.SIGSTOP)
    stack.inv("dev.up")
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert stack.query("SELECT 1", port=stack.pgb_port) == [(1,)]
    shutil.rmtree(stack.state / "schedule")


def test_an_old_backup_is_overdue_by_its_schedule(stack: Data, tmp_path: Path) -> None:
    from types import SimpleNamespace as Names

    from devstack.data.schedule import overdue

    stack.inv("db.start")
    shutil.rmtree(stack.backups, ignore_errors=True)
    made = stack.backup("--schema-only"), stack.backup("--no-verify"), stack.backup()
    shutil.copytree(stack.backups, tmp_path / "b")
    settings = Names(root=tmp_path, data=Names(dir="b"), stack=Names(env="dev"))
    paths = Names(schedule=tmp_path / "schedule", signing_key=tmp_path / "key")
    fake: Any = Names(paths=paths, settings=settings, context=Names(host=Host()))

    def ago(**age: int) -> str:
        return (datetime.now(timezone.utc) - timedelta(**age)).isoformat(timespec="milliseconds")

    def verdict(every: str, expression: str, *, installed: str, created: str) -> str:
        (tmp_path / "schedule").mkdir(exist_ok=True)
        record = {"every": every, "expression": expression, "installed": installed}
        (tmp_path / "schedule/schedule.json").write_text(json.dumps(record))
        for path in (tmp_path / "b").glob("*.json"):
            manifest = json.loads(path.read_text())
            newest = path.name.startswith(made[-1].name)
            changes = {"created": created if newest else ago(minutes=1)}
            one = signing.sign(fake, msgspec.convert({**manifest, **changes}, Manifest))
            path.write_bytes(encode(one))
        return overdue(fake)

    assert overdue(fake) == ""
    daily = ("daily at 03:00", "0 3 * * *")
    assert verdict(*daily, installed=ago(days=9), created=ago(hours=30)) == ""
    expected = "the newest verified backup is 3 d 0 h old, the schedule says daily at 03:00"
    # neither a schema nor an unverified one from a minute ago counts
    assert verdict(*daily, installed=ago(days=9), created=ago(days=3)) == expected
    assert verdict(*daily, installed=ago(hours=1), created=ago(days=3)) == ""
    assert verdict("hourly", "0 * * * *", installed=ago(days=9), created=ago(hours=2)) != ""
    weekly = ("30 3 * * mon-fri", "30 3 * * mon-fri")
    assert verdict(*weekly, installed=ago(days=9), created=ago(days=4)) == ""
    shutil.rmtree(tmp_path / "b")
    assert verdict(*daily, installed=ago(days=9), created="") == (
        "there is no verified backup, and the schedule of 9 d 0 h ago says daily at 03:00"
    )


def test_health_is_degraded_while_a_backup_is_overdue(stack: Data) -> None:
    shutil.rmtree(stack.backups, ignore_errors=True)
    record = {"every": "hourly", "expression": "0 * * * *", "installed": "2026-01-01T00:00:00+00:00"}
    folder = stack.state / "schedule"
    folder.mkdir()
    (folder / "schedule.json").write_text(json.dumps(record))

    def check() -> dict[str, str] | None:
        found = json.loads(stack.inv("health", "--json", expect=None).stdout)
        return next((check for check in found["services"][0]["checks"] if check["name"] == "backups"), None)

    try:
        late = check()
        assert late is not None
        assert late["verdict"] == "degraded"
        assert late["cause"].startswith("there is no verified backup, and the schedule of ")
        assert late["fix"].startswith("inv data.backup")
        stack.backup()
        assert check() is None
    finally:
        shutil.rmtree(folder)


@pytest.mark.variations
@pytest.mark.parametrize(
    "flags",
    [("--every", "daily", "--at", "25:00"), ("--every", "hourly", "--at", "03:00"), ("--at", "03:00"),
     ("--every", "daily", "--remove"), ("--every", "0 3 * *"), ("--every", "0 3 * * *", "--at", "03:00")],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(stack: Data, flags: tuple[str, ...]) -> None:
    stack.refused("data.schedule", *flags, says="fix: ", code=2)
