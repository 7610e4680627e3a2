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

from devstack import builds, providers
from devstack.credentials import Credentials
from devstack.data import wal_check
from devstack.errors import StackError, UsageError
from devstack.paths import is_plain, paths_of
from devstack.remote.talk import starter
from devstack.runtimes import File, ServiceSpec
from devstack.runtimes.native import Native
from devstack.services.api import Api
from devstack.services.folders import Folders
from devstack.services.postgres import Postgres
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
KINDS = (
    *("root", "state", "cache", "log", "data", "api"),
    *("bin", "pgbouncer", "python", "bundle", "remote", "file"),
)


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
        below = {kind: self.base / f"for-{kind}" / names[kind] for kind in KINDS}
        """Names that are not the project's own, each in a directory of its own."""
        self.bin, self.pgbouncer, self.python = below["bin"], below["pgbouncer"], below["python"]
        self.bundle, self.file = below["bundle"], below["file"]
        self.remote = names["remote"]
        given = {
            "INVOKE_STACK_STATE_DIR": str(self.base / names["state"]),
            "INVOKE_STACK_CACHE_DIR": str(self.base / names["cache"]),
            "INVOKE_STACK_LOG_DIR": f"./{names['log']}",
            "INVOKE_DATA_DIR": f"./{names['data']}",
            "INVOKE_API_DIR": f"./{names['api']}",
            "INVOKE_DB_BIN_DIR": str(self.bin),
            "INVOKE_PGB_BINARY": str(self.pgbouncer),
            "INVOKE_API_PYTHON": str(self.python),
            "INVOKE_STACK_CA_BUNDLE": str(self.bundle),
            "INVOKE_REMOTE_DIR": self.remote,
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
        for program in (*(self.bin / name for name in providers.PROGRAMS), self.pgbouncer, self.python):
            program.parent.mkdir(parents=True, exist_ok=True)
            program.symlink_to(self.show)
        for file in (self.bundle, self.file):
            file.parent.mkdir()
            file.write_text("content")
        # named so that the services' account gets it
        self.environ = {"PATH": os.environ["PATH"], "LC_CANARY": str(self.canary)}
        self.native = Native(self.paths, ROOT / "templates", self.show, "nobody", os.getuid() == 0, self.environ)

    @property
    def nasty(self) -> list[Path]:
        paths = self.paths
        project = [paths.root, paths.state, paths.cache, paths.run, paths.log, self.data, self.settings.application]
        return [*project, self.bin, self.pgbouncer, self.python, self.bundle, self.file]

    def shell(self, command: str, folder: Path = Path("/"), **env: str) -> list[str]:
        """Run a command as the stack does; the arguments that its program got, and where it ran."""
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env={**self.environ, **env},
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
        check_programs(case)
        check_files(case)
        check_host(case)
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


def check_programs(case: Case) -> None:
    """Programs of this machine that settings name: each is found out about, and becomes a service."""
    asked: list[list[str]] = []

    def read(command: Command) -> Any:
        asked.append(case.shell(command))
        return SimpleNamespace(ok=True, stdout="no version", stderr="")

    host: Any = SimpleNamespace(closed_to_account=lambda folder: None, account="")
    context: Any = SimpleNamespace(read=read, exec=case.native.exec, host=host, paths=case.paths)
    with pytest.raises(StackError, match=r"db\.bin_dir can't be used"):
        providers.find_postgres(context, case.settings)
    # PostgreSQL's programs start each other by a shell
    assert asked == ([["--version", "in /"]] if is_plain(case.bin) else [])
    binary = providers.pgbouncer_binary(case.settings)
    with pytest.raises(StackError, match="is not a PgBouncer"):
        providers.pgbouncer_version(context, binary)
    assert asked[-1] == ["--version", "in /"]
    secrets = Credentials(db_password="d", pgbouncer_password="p", jwt_secret="j")
    api = Api(context, case.settings, secrets)
    where = f"in {case.settings.application}"
    with api.apart([api.python, "-c", "code", str(case.file)]) as command:
        assert case.shell(command) == ["-c", "code", str(case.file), where]
    for words in ([str(binary), str(case.file)], [str(case.bin / "postgres"), str(case.file)], api.spec().argv):
        spec = ServiceSpec(name="nv-any", argv=words, cwd=case.settings.application, env=api.environment())
        script = case.paths.config / "nv-any.sh"
        script.write_bytes(os.fsencode(case.native.launch_script(spec)))
        assert case.shell(argv(["/bin/sh", script])) == [*words[1:], where]


def check_files(case: Case) -> None:
    """Files that a setting or a flag names: certificates that are built in, a dump that PostgreSQL's programs read."""
    assert builds.pgbouncer(case.settings).files[builds.BUNDLE] == "content"
    db: Any = SimpleNamespace(
        context=SimpleNamespace(exec=case.native.exec, runtime=case.native),
        name="nv-db",
        account="",
        programs=SimpleNamespace(path=lambda name: case.show),
        as_owner=lambda words, database, env: argv([case.show, *words[1:]]),
    )
    for own in (True, False):
        words = case.shell(Postgres.reading(db, ["pg_restore", "-l", str(case.file)], own=own))
        assert words[:-1] == ["-l", str(case.file)]


def check_host(case: Case) -> None:
    """The project's directory on a host, where its Python is looked for by a shell."""
    home = case.base / "home"
    there = home if case.remote == "~" else home / case.remote
    python = there / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(case.show)
    first = f"{case.remote}/.venv/bin/python"
    assert case.shell(starter(first, "code", case.remote), home, HOME=str(home)) == [
        *("-S", "-c", "code", case.remote),
        f"in {home}",
    ]


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
