"""Directories whose names hold any byte that a name may hold: every command, script and file that is made of them, read
by the program that it is for. What runs real servers in such directories is in test_bad_input.py."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import Phase, example, given, note
from hypothesis import settings as setting
from hypothesis import strategies as st

from devstack.data import wal_check
from devstack.errors import UsageError
from devstack.paths import is_plain, paths_of
from devstack.runtimes import File, ServiceSpec
from devstack.runtimes.native import Native
from devstack.services.folders import Folders
from devstack.settings import load, variable_entries
from devstack.shell import Command, argv
from tests.conftest import ROOT

PLAIN = [
    *(
        "$(touch $LC_CANARY)",
        "`touch $LC_CANARY`",
        "|touch $LC_CANARY",
        "&touch $LC_CANARY&",
        "'",
        "\\",
        "\\\\",
        " ",
        "%",
        "%%",
    ),
    *(
        "%(here)s",
        "$",
        "${HOME}",
        "-",
        "--",
        "~",
        "{a,b}".replace(",", "."),
        "=",
        "!",
        "ü",
        "\u2028",
        "\x7f",
        ":",
        "<",
        ">",
    ),
]
"""Parts of names that every setting takes."""
PARTS = [
    *PLAIN,
    ";touch $LC_CANARY;",
    "\ntouch $LC_CANARY\n",
    '"',
    "\n",
    "\r",
    "\t",
    "#",
    "*",
    "[a]",
    ",",
    "\x01",
    "\udce9",
]
RAW = st.binary(min_size=1, max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"/", b"").replace(b"\0", b"")))
KINDS = ("root", "state", "cache", "log", "data", "api")


def names_of(part: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    """Names as a file system takes them; bytes that are not UTF-8 are lone surrogates, as Python has them."""
    name = st.lists(part, min_size=1, max_size=5).map("".join)
    fits = name.filter(lambda name: name not in ("", ".", "..") and len(os.fsencode(name)) < 200)
    return st.fixed_dictionaries(dict.fromkeys(KINDS, fits))


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that every account may enter, with a program that shows its arguments, each with a NUL after it."""
    folder = Path(tempfile.mkdtemp(prefix="nv-test-"))
    folder.chmod(0o755)
    (folder / "show").write_text('#!/bin/sh\nprintf "%s\\0" "$@" "in $PWD"\n')
    (folder / "show").chmod(0o755)
    (folder / "canaries").mkdir()
    (folder / "canaries").chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


class Case:
    """The paths of one set of names, with the directories made."""

    def __init__(self, place: Path, names: dict[str, str]) -> None:
        self.show = str(place / "show")
        self.canary = place / "canaries" / "canary"
        self.base = Path(tempfile.mkdtemp(dir=place))
        self.base.chmod(0o755)
        root = self.base / names["root"]
        root.mkdir()
        given = {
            "INVOKE_STACK_STATE_DIR": str(self.base / names["state"]),
            "INVOKE_STACK_CACHE_DIR": str(self.base / names["cache"]),
            "INVOKE_STACK_LOG_DIR": f"./{names['log']}",
            "INVOKE_DATA_DIR": f"./{names['data']}",
            "INVOKE_API_DIR": f"./{names['api']}",
        }
        self.settings = load(variable_entries(given, "variable {}"), root)
        self.paths = paths_of(self.settings, home=self.base, xdg={}, uid=os.getuid())
        self.data = root / self.settings.data.dir
        for path in (
            self.paths.config,
            self.paths.log,
            self.paths.volumes / "copy",
            self.data,
            self.settings.application,
        ):
            path.mkdir(parents=True, exist_ok=True)
        # named so that the services' account gets it
        self.environ = {"PATH": os.environ["PATH"], "LC_CANARY": str(self.canary)}
        self.native = Native(self.paths, ROOT / "templates", self.show, "nobody", os.getuid() == 0, self.environ)

    @property
    def nasty(self) -> list[Path]:
        paths = self.paths
        return [paths.root, paths.state, paths.cache, paths.run, paths.log, self.data, self.settings.application]

    def shell(self, command: str) -> list[str]:
        """Run a command as the stack does; the arguments that its program got, and where it ran."""
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd="/",
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert not self.canary.exists(), "a name was executed"
        return [os.fsdecode(word) for word in done.stdout.split(b"\0")][:-1]


# each example starts twenty programs: a failure shows its names and seed, and is not made smaller
@pytest.mark.campaign
@setting(
    max_examples=setting().max_examples * 2 // 5,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    database=None,
)
@given(names=st.one_of(names_of(st.sampled_from(PLAIN)), names_of(st.one_of(st.sampled_from(PARTS), RAW))))
@example(names=dict.fromkeys(KINDS, "$(touch $LC_CANARY)`touch $LC_CANARY`\\\\ '%(x)s'"))
@example(names=dict.fromkeys(KINDS, "~$(touch $LC_CANARY)"))
@example(names=dict.fromkeys(KINDS, "-$(touch $LC_CANARY) & \\ "))
def test_a_name_is_refused_or_arrives_as_it_is(place: Path, names: dict[str, str]) -> None:
    note(f"names: {names!r}")
    try:
        case = Case(place, names)
    except UsageError as refused:
        case, why = None, refused.why or "\n".join(refused.evidence)
    if case is None:
        assert re.search("UTF-8|one of the characters|control character|no home directory", why)
        return
    try:
        check_commands(case)
        check_launcher(case)
        check_supervisor(case)
        check_tools(case)
    finally:
        shutil.rmtree(case.base)


def check_commands(case: Case) -> None:
    """Commands, also under the services' account, whose shell is a second one."""
    words = [case.show, *map(str, case.nasty)]
    command = case.native.exec("nv-db", words, {"VALUE": str(case.paths.root)})
    assert case.shell(command) == [*words[1:], "in /"]
    assert case.shell(case.native.as_account(Command(f"cd / && {command}"))) == [*words[1:], "in /"]
    (start,) = (step for step in case.native.engine_start() if isinstance(step, Command))
    assert case.shell(start) == ["-m", "supervisor.supervisord", "-c", str(case.native.conf), "in /"]


def check_launcher(case: Case) -> None:
    """The script that becomes a service."""
    words = [case.show, *map(str, case.nasty)]
    spec = ServiceSpec(name="nv-api", argv=words, cwd=case.settings.application, env={"A": str(case.paths.log)})
    script = case.paths.config / "nv-api.sh"
    script.write_text(case.native.launch_script(spec))
    assert case.shell(argv(["/bin/sh", script])) == [*words[1:], f"in {case.settings.application}"]


def check_supervisor(case: Case) -> None:
    """Supervisor's files, read by Supervisor."""
    from supervisor.options import ServerOptions

    case.paths.logs.symlink_to(case.paths.log)
    case.paths.run.mkdir(exist_ok=True, parents=True)
    try:
        spec = ServiceSpec(name="nv-db", argv=[case.show], cwd=case.paths.state, own_account=True)
        for file in (*case.native.engine_start(), *case.native.run(spec)):
            if isinstance(file, File):
                file.path.parent.mkdir(exist_ok=True)
                file.path.write_text(file.content)
        options = ServerOptions()
        options.realize(["-c", str(case.native.conf), "-n"])
        assert options.pidfile == str(case.paths.run / "supervisord.pid")
        assert os.path.realpath(os.path.dirname(options.logfile)) == os.path.realpath(case.paths.log)
        ((server,),) = (group.process_configs for group in options.process_group_configs)
        # as supervisor/process.py, get_execv_args, splits it
        assert shlex.split(server.command) == ["/bin/sh", str(case.native.launcher("nv-db"))]
        assert server.stdout_logfile == str(case.paths.logs / "nv-db.log")
    finally:
        if case.paths.run.parent != case.paths.state:
            shutil.rmtree(case.paths.run)


def check_tools(case: Case) -> None:
    """The programs of PostgreSQL that start others by a shell: none gets a path that a shell would obey."""
    asked: list[str] = []
    context: Any = SimpleNamespace(runtime=case.native, exec=case.native.exec, run=lambda c, what: asked.append(c))
    programs = SimpleNamespace(path=lambda name: case.show, env={})
    db: Any = SimpleNamespace(
        context=context,
        programs=programs,
        name="nv-db",
        data=case.paths.volumes / "nv-db-data",
        reading=lambda words, own: argv([case.show, *words]),
    )
    log = str(case.paths.run / "try/log")
    assert is_plain(Path(log)), "pg_ctl opens its log by a shell, with the name in double quotes"
    got = case.shell(Folders(db).pg_ctl("copy", ["-l", log, "start"]))
    assert got == ["-D", ".", "-l", log, "start", f"in {os.path.realpath(case.paths.volumes / 'copy')}"]
    manifest = '{"WAL-Ranges": [{"Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000120"}]}'
    stack: Any = SimpleNamespace(db=db, context=context)
    wal_check.check(stack, case.data, manifest, "verify it", own=True)
    verify, waldump = map(case.shell, asked)
    assert verify == ["pg_verifybackup", "-q", "-n", str(case.data), "in /"]
    options = ["--timeline=1", "--start=0/2000028", "--end=0/2000120"]
    assert waldump == ["pg_waldump", "--quiet", f"--path={case.data / 'pg_wal'}", *options, "in /"]


RANGE = '{"WAL-Ranges": [{"Timeline": %s, "Start-LSN": "%s", "End-LSN": "0/2"}]}'


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", '{"WAL-Ranges": []}', '{"WAL-Ranges": [1]}'),
        *(
            RANGE % pair
            for pair in (('"1"', "0/1"), ("-1", "0/1"), ("1", ""), ("1", "-1"), ("1", "0/1 x"), ("1", "0/1\\n"))
        ),
    ],
)
def test_a_manifest_that_names_no_wal_is_damaged(text: str) -> None:
    from devstack.errors import StackError

    with pytest.raises(StackError, match="could not verify it"):
        wal_check.wal_ranges(text, "verify it")
