"""Hostile names and values: each is refused with its setting and place, or arrives unchanged wherever it is used.

Cases that a seed makes, against the code that real commands run, and as commands on a project with a database.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import stat
import string
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import msgspec
import psutil
import pytest
from psycopg2.extensions import parse_dsn

from devstack.container import ContainerContext
from devstack.credentials import Credentials, owner_verifier, pgpass_line
from devstack.data import catalogue
from devstack.data.backup import Request
from devstack.envfile import checked, parse_env_file
from devstack.errors import USAGE, UsageError
from devstack.escapes import safe
from devstack.files import load_yaml
from devstack.paths import paths_of
from devstack.providers import Programs
from devstack.runtimes.native import Native
from devstack.services.api import Api
from devstack.services.pgbouncer import PgBouncer
from devstack.settings import (
    FIELDS,
    SECRETS,
    SPECIFIED,
    URL_VARIABLE,
    Entry,
    Settings,
    load,
    variable_entries,
    variable_of,
    yaml_entries,
)
from devstack.shell import argv, sh
from devstack.variables import dotenv_lines, shell_lines
from tests.conftest import Project, Rounds, directory_of_its_own, ended

CASES = 10_000
"""In a campaign; a tenth otherwise."""
SECRET = "canary-Zq7"
"""Part of every secret: no error may show it."""

PARTS = [
    *(
        "a",
        "Z",
        "0",
        "_",
        "-",
        ".",
        " ",
        "  ",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\0",
        "\x01",
        "\x1b[31m",
        "\x7f",
        "\x85",
        "\u2028",
    ),
    *(
        "'",
        '"',
        "\\",
        "\\\\",
        "`",
        "$",
        "$$",
        "$x",
        "${x}",
        "$(id)",
        "`id`",
        ";",
        "&",
        "|",
        "<",
        ">",
        "(",
        ")",
        "{",
        "}",
    ),
    *(
        "!",
        "#",
        " # x",
        "%",
        "%%",
        "%s",
        "%(x)s",
        "%20",
        "%00",
        "%ff",
        "%zz",
        "*",
        "?",
        "[",
        "]",
        "[x]",
        "~",
        "~nobody-x",
        "^",
    ),
    *(
        ":",
        "::1",
        "%eth0",
        "@",
        "/",
        "//",
        "/../",
        "..",
        "=",
        "==",
        ",",
        "+",
        "é",
        "ß",
        "𝄞",
        "\u202e",
        "\ufeff",
        "٣",
        "null",
        "true",
    ),
    *(
        "\ud800",
        "-c",
        "--",
        "host=x",
        "postgresql://",
        "\nadmin_users = nina",
        '"\n"x" "y',
        "pg_",
        "template1",
        "x" * 70,
    ),
]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**40, 0.5, -0.0, float("nan"), float("inf"), float("-inf")),
    *([], {}, [[]], [None], {"a": []}, {"a": {"b": 1}}, {1: 2}, ["x", 1], {"": ""}, "", " ", b"bytes"),
]
GOOD = ["nina", "shop-1", "127.0.0.1", "::1", "/srv/data", "./x", "7001", "true", "30", "vector", "api.main:app", "1.5"]


def hostile(chance: random.Random) -> str:
    return "".join(chance.choices(PARTS, k=chance.randrange(1, 5)))


def text(chance: random.Random) -> str:
    return chance.choice(GOOD) if chance.random() < 0.25 else hostile(chance)


def typed(chance: random.Random, path: str) -> Any:
    """Return a value as YAML gives it."""
    if path in ("db.password", "api.jwt_secret"):
        return chance.choice([f"{SECRET}{hostile(chance)}", [SECRET], {"x": SECRET}, f"{hostile(chance)}{SECRET}"])
    if path == "api.env":
        value = chance.choice([f"{SECRET}{text(chance)}", True, 5, [SECRET], {SECRET: 1}])
        return {chance.choice(["TOKEN", "A_1", "a-b", hostile(chance)]): value}
    if chance.random() < 0.25:
        return chance.choice(ODD)
    outline = msgspec.inspect.type_info(FIELDS[path].type)
    if isinstance(outline, msgspec.inspect.ListType):
        return [text(chance) for _ in range(chance.randrange(3))]
    if isinstance(outline, msgspec.inspect.DictType):
        return {chance.choice(["work_mem", "x", hostile(chance)]): text(chance)}
    if isinstance(outline, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        return chance.choice([chance.randrange(-5, 70_000), chance.random() * 100, text(chance)])
    return text(chance)


class Case:
    """Settings of one project, from one place, with the names that an error may have."""

    def __init__(self, chance: random.Random) -> None:
        self.place = chance.choice(["invoke.yaml", "variable", ".env", "URL"])
        known = {**{variable_of(path): path for path in FIELDS}, **SPECIFIED}
        self.values: dict[str, Any] = {}
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            if self.place == "invoke.yaml":
                path = chance.choice([*FIELDS, *FAVOURITES])
                self.values[path] = typed(chance, path)
            else:
                name = chance.choice([*known, *(name for name, path in known.items() if path in FAVOURITES)])
                value = typed(chance, known[name])
                plain = value if isinstance(value, str) else json.dumps(value, default=str)
                self.values[name] = plain if known[name] in SECRETS else chance.choice([plain, text(chance)])
        if self.place == "URL":
            self.values = {URL_VARIABLE: self.url(chance)}

    def url(self, chance: random.Random) -> str:
        raw = [text(chance), f"{SECRET}{text(chance)}", text(chance)]
        user, password, name = raw if chance.random() < 0.4 else [_quoted(part) for part in raw]
        return f"postgresql://{user}:{password}@{chance.choice(['localhost', '127.0.0.1', '[::1]'])}:7001/{name}"

    def entries(self) -> list[Entry]:
        """Return the values as they come in, read by the reader of their place."""
        if self.place == "invoke.yaml":
            sections: dict[str, dict[str, Any]] = {}
            for path, value in self.values.items():
                section, _, key = path.partition(".")
                sections.setdefault(section, {})[key] = value
            return list(yaml_entries(sections, "invoke.yaml"))
        if self.place != "invoke.yaml":  # bytes that are not UTF-8, and none that is 0
            self.values = {
                name: value.replace("\ud800", "\udcff").replace("\0", "") for name, value in self.values.items()
            }
        if self.place == ".env":
            file = checked(parse_env_file("\n".join(dotenv_lines(self.values)).encode("utf-8", "surrogateescape"), {}))
            return list(variable_entries(file.values, ".env ({})"))
        return list(variable_entries(self.values, "variable {}"))


FAVOURITES = (
    *(
        "db.name",
        "db.user",
        "db.password",
        "stack.env",
        "db.bind",
        "api.bind",
        "api.env",
        "db.parameters",
        "pgb.parameters",
    ),
    *("stack.state_dir", "data.dir", "api.dir", "api.health_path", "hooks.pre_up", "stack.start_timeout"),
)


def _quoted(part: str) -> str:
    return quote(part, safe="", errors="surrogatepass")


@pytest.mark.campaign
def test_a_hostile_value_is_refused_or_arrives_unchanged(tmp_path: Path, chance: random.Random, rounds: Rounds) -> None:
    words: list[str] = []
    counts = {"taken": 0, "refused": 0}
    wrong: list[str] = []
    for number in rounds(CASES):
        case = Case(chance)
        try:
            done, given = judge(case, tmp_path)
            words += given
            counts[done] += 1
        except Exception as error:  # also an assertion: all that is wrong is shown
            wrong.append(f"case {number}: {case.place} {case.values!r}: {type(error).__name__}: {str(error)[:400]}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(rounds(CASES))}", *wrong[:20]])
    check_shell(words)
    assert min(counts.values()) > len(rounds(CASES)) / 10, counts


def judge(case: Case, folder: Path) -> tuple[str, list[str]]:
    """Return whether a case is taken or refused, and the words that a shell is to give back."""
    try:
        settings = load(case.entries(), folder)
        paths_of(settings, home=folder, xdg={}, uid=os.getuid())
    except UsageError as error:
        check_refusal(case, error)
        return "refused", []
    check_values(case, settings)
    return "taken", check_uses(settings, folder)


def check_refusal(case: Case, error: UsageError) -> None:
    """An error names the setting, or the line, and its place; it shows no secret and nothing that a terminal obeys."""
    shown = error.text()
    assert error.code == USAGE
    assert SECRET not in shown, shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x80-\x9f\ud800-\udfff]", shown), repr(shown)
    shown.encode()
    assert len(shown) < 6000
    if " is malformed" in error.what:
        assert re.match(r"\.env:\d+ is malformed", error.what)
        return
    names = {**{variable_of(path): path for path in FIELDS}, **SPECIFIED}
    paths = {names.get(name, name) for name in case.values}
    related = {
        *paths,
        *(RELATED if paths & {*RELATED, URL_VARIABLE} else ()),
        *(["api.bind"] if "stack.bind" in paths else []),
    }
    if error.what.startswith("the state can't live in"):
        assert "stack.state_dir" in paths
        return
    assert any(path in shown for path in related), shown
    place = {"invoke.yaml": "from invoke.yaml", ".env": "from .env (", "variable": "from variable "}
    assert place.get(case.place, f"from variable {URL_VARIABLE}") in shown, shown


RELATED = {
    "db.port",
    "pgb.port",
    "api.port",
    "api.debug_port",
    "api.workers",
    "api.reload",
    "db.name",
    "db.user",
    "db.password",
}


def check_values(case: Case, settings: Settings) -> None:
    """What was given is what is used."""
    for name, given in case.values.items():
        if name == URL_VARIABLE:
            parts = urlsplit(given)
            expected = [
                unquote(part or "", errors="strict") for part in (parts.username, parts.password, parts.path[1:])
            ]
            defaults = [settings.db.user, settings.db.password, settings.db.name]
            assert [settings.db.user, settings.db.password or "", settings.db.name] == [
                part or default or "" for part, default in zip(expected, defaults, strict=True)
            ]
            continue
        path = name if name in FIELDS else SPECIFIED.get(name) or next(p for p in FIELDS if variable_of(p) == name)
        section, _, key = path.partition(".")
        used = getattr(getattr(settings, section), key)
        if (isinstance(given, str) and not given and name in SPECIFIED) or len(case.values) > 1:
            continue
        if case.place == "invoke.yaml" and path != "api.log_level":
            assert used == given or (isinstance(given, int) and used == float(given)), (path, given, used)
        elif isinstance(used, str) and path not in ("api.log_level", "stack.runtime", "pgb.pool_mode"):
            assert used == given, (path, given, used)


def check_uses(settings: Settings, folder: Path) -> list[str]:
    """Each rendered file, URL and script has the values as they are; the words for a shell are returned."""
    password = settings.db.password or "generated"
    credentials = Credentials(db_password=password, pgbouncer_password="q", jwt_secret=settings.api.jwt_secret or "j")
    paths = paths_of(settings, home=folder, xdg={}, uid=os.getuid())
    native = Native(paths, settings.templates, "python3", "", False)
    context: Any = ContainerContext.__new__(ContainerContext)
    context.paths, context.runtime = paths, native
    database: Any = SimpleNamespace(
        verifier=lambda: owner_verifier(credentials), peer=(settings.db.bind, settings.db.port)
    )
    check_pgbouncer(PgBouncer(context, settings, credentials, database, lambda: Programs(Path(), "1.18")), settings)
    api = Api(context, settings, credentials)
    env = api.environment()
    check_url(env["DATABASE_URL"], settings, password, settings.pgb.port)
    line = pgpass_line(
        {"host": "h", "port": 1, "name": settings.db.name, "user": settings.db.user, "password": password}
    )
    assert [re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in fields(line.rstrip("\n"))] == [
        *("h", "1", settings.db.name, settings.db.user, password)
    ]
    for name, value in settings.api.env.items():
        assert "$" in str(value) or env[name] == (str(value).lower() if isinstance(value, bool) else str(value))
    script = native.launch_script(api.spec())
    given = [settings.db.name, settings.db.user, password, *map(str, settings.hooks.pre_up), *env.values()]
    assert shlex.split(sh("x $words", words=given))[1:] == given
    exported = shlex.split("\n".join(shell_lines(env)))
    assert {word.partition("=")[0]: word.partition("=")[2] for word in exported if word != "export"} == env
    lines = shlex.split(script, comments=True)
    assert all(f"{name}={value}" in lines for name, value in env.items())
    assert checked(parse_env_file("\n".join(dotenv_lines(env)).encode(), {})).values == env
    return given


def check_pgbouncer(pgb: PgBouncer, settings: Settings) -> None:
    """As PgBouncer reads them: https://www.pgbouncer.org/config.html"""
    ini = pgb.render_ini().split("\n")
    sections = {line.strip("[]"): at for at, line in enumerate(ini) if re.fullmatch(r"\[\w+\]", line)}
    assert list(sections) == ["databases", "pgbouncer"]
    alias, _, target = ini[1 + sections["databases"]].partition(" = ")
    assert alias in (settings.db.name, "*")
    found = re.fullmatch(r"host=(\S+) port=(\d+) dbname='((?:[^']|'')*)'", target)
    assert found
    assert found[3].replace("''", "'") == settings.db.name
    pairs = [line.partition("=") for line in ini[sections["pgbouncer"] + 1 :] if line and not line.startswith(";")]
    values = {key.strip(): value.strip(" ") for key, _, value in pairs}
    assert values["admin_users"] == "nv_admin"
    assert values["listen_addr"] == settings.pgb.bind
    for name, value in settings.pgb.parameters.items():
        assert values[name] == (str(int(value)) if isinstance(value, bool) else str(value)), (name, value)
    users = re.findall(r'^"((?:[^"]|"")*)" "((?:[^"]|"")*)"$', pgb.render_userlist(), re.MULTILINE)
    assert [user.replace('""', '"') for user, _ in users] == [settings.db.user, "nv_admin"]


def check_url(url: str, settings: Settings, password: str, port: int) -> None:
    expected = {"user": settings.db.user, "password": password, "dbname": settings.db.name, "port": str(port)}
    assert {name: value for name, value in parse_dsn(url).items() if name != "host"} == expected
    parts = urlsplit(url)
    assert [unquote(part or "") for part in (parts.username, parts.password, parts.path[1:])] == [
        *(settings.db.user, password, settings.db.name)
    ]


def fields(line: str) -> list[str]:
    """Return the fields of a password file's line; a backslash takes a colon's meaning."""
    return re.findall(r"((?:\\.|[^:\\])*)(?::|$)", line)[:5]


def check_shell(words: Iterable[str]) -> None:
    """A real shell gives every word back as it is."""
    given = list(dict.fromkeys(words))
    for at in range(0, len(given), 200):
        part = given[at : at + 200]
        done = subprocess.run(["/bin/sh", "-c", argv(["printf", "%s\\0", *part])], capture_output=True, check=True)
        assert done.stdout.decode().split("\0")[:-1] == part


@pytest.mark.campaign
def test_a_label_is_refused_or_kept_as_it_is(chance: random.Random, rounds: Rounds) -> None:
    for _ in rounds(CASES):
        request = Request(label=hostile(chance))
        try:
            request.check()
        except UsageError as error:
            if "the label can't be kept" in error.text():
                continue
            raise
        assert msgspec.json.decode(msgspec.json.encode(request.label)) == request.label
        assert "\n" not in request.label


@pytest.mark.campaign
def test_a_yaml_file_of_hostile_texts_is_read_as_it_is_or_refused(chance: random.Random, rounds: Rounds) -> None:
    for _ in rounds(1_000):
        value = "".join(chance.choices(string.printable, k=8))
        content = load_yaml(json.dumps({"db": {"name": value}}), "invoke.yaml")
        assert content == {"db": {"name": value}}


COMMANDS = 1_000
"""Commands on a real project in a campaign; a tenth otherwise."""
DEEP = "a/b/c/d/e/f/g/h"
"""A directory below which a path may go up a few times without leaving the project."""
LEFT_ALONE = {
    *("stack.host", "remote.dir"),  # another machine's
    *("stack.cache_dir", "stack.runtime", "db.prepared"),
}
"""Settings that would take commands to other machines, to engines, or through long preparations."""
PLACES = {"stack.state_dir", "data.dir"}
LOOKS: list[tuple[str, ...]] = [("dev.status",), ("data.list",), ("dev.env", "--json"), ("--dry", "dev.up")]


class Typed:
    """A command as a person might type it, with a hostile value somewhere."""

    def __init__(self, chance: random.Random, project: Project) -> None:
        self.env: dict[str, str] = {}
        self.kind = chance.choice(["label", "output", "file", "environment", "password", "setting", "setting"])
        value = given(text(chance))
        self.value = value
        if self.kind == "label":
            self.args = ["data.backup", "--schema-only", "--no-verify", "--json", f"--label={value}"]
        elif self.kind == "output":
            self.value = f"{project.root}/{DEEP}/{value}"
            self.args = ["data.backup", "--schema-only", "--no-verify", "--json", f"--output={self.value}"]
        elif self.kind == "file":
            self.args = [*chance.choice([("data.verify", "--file"), ("data.restore", "--file"), ("data.pin",)]), value]
        elif self.kind == "environment":
            self.args = [*chance.choice(LOOKS), "-e", value]
        elif self.kind == "password":
            self.args = [*chance.choice(LOOKS)]
            secret = given(f"{SECRET}{hostile(chance)}")
            url = f"postgresql://nina:{secret}@localhost:{project.pgb_port}/nina"
            names = {"INVOKE_DB_PASSWORD": secret, "NINAIVALAIGAL_JWT_SECRET": secret, URL_VARIABLE: url}
            name = chance.choice([*names])
            self.env = {name: names[name]}
        else:
            self.args = [*chance.choice(LOOKS)]
            path = chance.choice([path for path in FIELDS if path not in LEFT_ALONE])
            self.env = {variable_of(path): f"{project.root}/{DEEP}/{value}" if path in PLACES else value}

    def __repr__(self) -> str:
        return f"{self.args} {self.env}"


def given(value: str) -> str:
    """Return a value as a system can give it to a process."""
    return value.replace("\ud800", "\udcff").replace("\0", "")


@pytest.fixture(scope="module")
def hostage(workspace: Path, cache: Path) -> Iterator[Project]:
    """A project with secrets of its own and a running database."""
    with directory_of_its_own(workspace) as folder, ended(Project(folder, cache)) as made:
        made.env |= {
            "INVOKE_DB_PASSWORD": f"{SECRET}-of-the-database",
            "NINAIVALAIGAL_JWT_SECRET": f"{SECRET}-of-the-application",
            "INVOKE_API_ENV": json.dumps({"TOKEN": f"{SECRET}-of-its-own"}),
        }
        (made.root / DEEP).mkdir(parents=True)
        made.inv("db.start")
        made.inv("data.backup", "--schema-only", "--no-verify")
        yield made


@pytest.mark.campaign
def test_a_command_with_a_hostile_value_is_refused_or_does_all_of_it(
    hostage: Project, chance: random.Random, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No secret is seen, and what is refused has changed nothing."""
    lines: list[str] = []
    start = subprocess.Popen.__init__

    def noted(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        lines.append(str(args))
        start(self, args, *rest, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", noted)
    codes: Counter[tuple[str, int]] = Counter()
    wrong: list[str] = []
    before = traces(hostage)
    for number in rounds(COMMANDS):
        typed = Typed(chance, hostage)
        try:
            codes[typed.kind, carry_out(hostage, typed, before)] += 1
        except Exception as error:  # also an assertion: all that is wrong is shown
            wrong.append(f"command {number}: {typed!r}: {type(error).__name__}: {str(error)[:600]}")
            before = traces(hostage)
    assert not wrong, "\n".join([f"{len(wrong)} of {len(rounds(COMMANDS))}", *wrong[:20]])
    assert not [line for line in lines if SECRET in line]
    assert not [log for log in (hostage.root / "logs").rglob("*") if log.is_file() and SECRET in read(log)]
    assert {"label", "output", "setting"} <= {kind for kind, code in codes if code == 0}, codes
    assert {code for _, code in codes} == {0, 1, 2}, codes


def carry_out(project: Project, typed: Typed, before: dict[str, object]) -> int:
    """Run a command, and judge what it said and left; its exit code."""
    done = project.inv(*typed.args, expect=None, **typed.env)
    assert done.returncode in (0, 1, 2), done
    shown = done.stderr if typed.args[0] == "dev.env" else f"{done.stdout}{done.stderr}"
    assert SECRET not in shown, shown
    assert safe(shown) == shown, repr(shown)
    assert "defect of the tool" not in done.stderr, done.stderr
    if done.returncode and typed.args[0] != "dev.status":  # whose exit code is its answer
        assert re.search(r"^error\b", done.stderr, re.MULTILINE), done
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if SECRET in read(path)]
    if done.returncode == 0 and typed.args[0] == "data.backup":
        made = json.loads(done.stdout)
        files = {made["path"], f"{made['path']}.json"}
        assert catalogue.read(Path(made["path"]))
        if typed.kind == "label":
            assert made["label"] == typed.value
        else:
            place = os.path.abspath(typed.value)  # of the file, or of an existing directory
            assert place == (os.path.dirname(made["path"]) if os.path.isdir(place) else made["path"])
        now = traces(project)
        assert now.keys() - before.keys() == files, now.keys() ^ before.keys()
        for file in files:
            os.unlink(file)
    now = traces(project)
    assert now == before, [name for name in {*now, *before} if now.get(name) != before.get(name)]
    return done.returncode


def traces(project: Project) -> dict[str, object]:
    """Return the processes of a project, and its files with their content; of logs, and of the database, the names."""
    supervisor = psutil.Process(int((project.state / "run" / "supervisord.pid").read_text()))
    found: dict[str, object] = {"pids": (supervisor.pid, *sorted(child.pid for child in supervisor.children()))}
    for folder, folders, names in os.walk(project.folder):
        if Path(folder) == project.state:
            folders.remove("volumes")
        for name in [*folders, *names]:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            content = read(Path(path)) if stat.S_ISREG(mode) and "/logs/" not in path else ""
            found[path] = (mode, content)
    return found


def read(path: Path) -> str:
    with contextlib.suppress(OSError):  # a process that has ended
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
