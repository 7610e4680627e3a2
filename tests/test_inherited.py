"""The caller's variables for libpq and Python: no command and nothing that is started obeys them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import psutil
import psycopg2
import pytest

from devstack.inherited import LIBPQ_VARIABLES, POSTGRES_VARIABLES, is_foreign, take_out, without_foreign
from devstack.testing.project import surroundings
from tests.conftest import Project

HOSTILE = {
    **dict.fromkeys(POSTGRES_VARIABLES, "nonsense"),
    "PGHOST": "192.0.2.1",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "1",
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "system",
    "PGSSLNEGOTIATION": "direct",
    "PGCHANNELBINDING": "require",
    "PGREQUIREAUTH": "none",
    "PGREQUIREPEER": "somebody",
    "PGGSSENCMODE": "require",
    "PGTARGETSESSIONATTRS": "standby",
    "PGCLIENTENCODING": "LATIN1",
    "PGCONNECT_TIMEOUT": "abc",
    "PGOPTIONS": "-c default_transaction_read_only=on -c search_path=nowhere",
    "PGDATESTYLE": "German",
    "PG_COLOR": "always",
}
"""Every variable of the list, with a value that breaks or misleads whoever reads it."""


def read_by(library: Path) -> set[str]:
    """The names of variables in a compiled libpq."""
    return {name.decode() for name in re.findall(rb"\0(PG[A-Z_]+)(?=\0)", library.read_bytes())}


def test_the_list_has_what_libpq_reads(stack: Project) -> None:
    choices = json.loads((stack.state / "choices.json").read_text())
    found = [*Path(choices["postgres_bin"]).parent.glob("lib*/libpq.so.5"), *Path("/usr/lib").glob("*/libpq.so.5")]
    found += [*Path(psycopg2.__file__).parent.parent.glob("psycopg2_binary.libs/libpq*")]
    if not found:
        pytest.skip("no libpq is found where it is looked for")
    for library in found:
        names = {name for name in read_by(library) if not name.startswith("PGRES_")}
        assert "PGREQUIREPEER" in names, library  # it was read at all
        assert names - {*LIBPQ_VARIABLES} == set(), library


@pytest.mark.variations
@pytest.mark.parametrize(
    "command",
    [
        "dev.status",
        "db.stats",
        "pgb.stats",
        "metrics --interval 0.2",
        "health",
        "db.shell --command SELECT",
        "db.shell --admin --command SELECT",
        "data.backup",
        "dev.up",
    ],
)
def test_commands_work_whatever_the_caller_has_set_for_libpq(stack: Project, command: str) -> None:
    stack.inv(*command.split(), expect=0, **HOSTILE)


def test_a_command_of_the_persons_own_gets_ours_in_their_place(stack: Project) -> None:
    (stack.root / ".env").write_text("PGAPPNAME=of-mine\nPYTHONWARNINGS=ignore\n")
    try:
        seen = stack.inv("dev.exec", "--", "env", expect=0, **HOSTILE).stdout.splitlines()
    finally:
        (stack.root / ".env").unlink()
    given = dict(line.partition("=")[::2] for line in seen if line.startswith("PG") and not line.startswith("PG_"))
    assert {name for name, value in given.items() if value == HOSTILE.get(name)} == {
        "PGDATA"
    }  # which libpq never reads
    assert given["PGREQUIREAUTH"] == "scram-sha-256"
    assert given["PGAPPNAME"] == "of-mine"  # from .env, which is the application's
    assert "PYTHONWARNINGS=ignore" in seen


def test_a_hook_gets_none_of_libpqs_and_keeps_those_of_python(stack: Project) -> None:
    """``PGHOSTADDR`` would have psql send the password in ``DATABASE_URL`` to another machine."""
    given = {"INVOKE_HOOKS_PRE_BACKUP": "env; exit 7", "PYTHONWARNINGS": "ignore"}
    said = stack.inv("data.backup", expect=1, **{**HOSTILE, **given}).stdout.splitlines()
    found = {line.partition("=")[0] for line in said} & {*LIBPQ_VARIABLES}
    assert found == {"PGREQUIREAUTH"}
    assert "PGREQUIREAUTH=scram-sha-256" in said
    assert "PYTHONWARNINGS=ignore" in said
    opted_out = {**HOSTILE, **given, "INVOKE_API_ENV": '{"PGREQUIREAUTH": ""}'}
    said = stack.inv("data.backup", expect=1, **opted_out).stdout.splitlines()
    assert {line.partition("=")[0] for line in said} & {*LIBPQ_VARIABLES} == set()


@pytest.mark.slow
def test_nothing_that_is_started_obeys_the_callers_variables_for_python(stack: Project, tmp_path: Path) -> None:
    """``PYTHONWARNINGS`` alone made a supervisor that answered nothing, and that no command could stop."""
    seen = tmp_path / "seen"
    record = f"import sys\nwith open({str(seen)!r}, 'a') as file: file.write(repr(sys.orig_argv) + '\\n')\n"
    (tmp_path / "sitecustomize.py").write_text(record)
    foreign = {
        "PYTHONWARNINGS": "error::DeprecationWarning",
        "PYTHONPATH": str(tmp_path),
        "PYTHONSTARTUP": str(tmp_path / "sitecustomize.py"),
        "PYTHONINSPECT": "1",
        "PYTHONVERBOSE": "",
        "PYTHONNOUSERSITE": "1",
    }
    (stack.root / ".env").write_text("PYTHONWARNINGS=default\n")
    stack.inv("dev.down")
    try:
        stack.process("dev.up", expect=0, **foreign)
        stack.process("dev.status", expect=0, **foreign)
        running = stack.processes()
        assert len(running) >= 5  # the supervisor, its reloader, and the services
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                theirs = {name: value for name, value in process.environ().items() if foreign.get(name) == value}
                assert theirs == {}, process.cmdline()
        application = next(p for p in running if "uvicorn" in p.cmdline())
        assert application.environ()["PYTHONWARNINGS"] == "default"  # .env is not the caller's environment
        assert [line for line in seen.read_text().splitlines() if "invoke" not in line] == []
    finally:
        (stack.root / ".env").unlink()
        stack.inv("dev.restart")


def test_tests_of_a_project_have_them_back_once_the_stack_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**HOSTILE, "PYTHONWARNINGS": "error"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with surroundings():
        assert [name for name in os.environ if is_foreign(name)] == []
    assert dict(os.environ) == before


def test_only_those_are_taken_out() -> None:
    environ = {
        "PGHOST": "x",
        "PYTHONPATH": "x",
        "PGADMIN_SETUP": "x",
        "PSQLRC": "x",
        "INVOKE_DB_PORT": "1",
        "PATH": "x",
    }
    assert without_foreign(environ).keys() == {"PGADMIN_SETUP", "PSQLRC", "INVOKE_DB_PORT", "PATH"}
    assert take_out(environ, ("INVOKE_DB_",)).keys() == {"PGHOST", "PYTHONPATH", "INVOKE_DB_PORT"}
    assert environ.keys() == {"PGADMIN_SETUP", "PSQLRC", "PATH"}


def test_importing_the_tasks_changes_no_environment() -> None:
    script = "import os; before = dict(os.environ); import tasks; assert dict(os.environ) == before"
    done = psutil.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent.parent, env={**os.environ, **HOSTILE})
    assert done.wait(60) == 0
