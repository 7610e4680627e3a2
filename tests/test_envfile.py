"""Files of variables: read as python-dotenv reads them, by one reader."""

from __future__ import annotations

import io
import os
import random
import string
from collections.abc import Mapping
from pathlib import Path

import pytest
from dotenv import dotenv_values, load_dotenv

from devstack.container import ContainerContext
from devstack.credentials import Credentials
from devstack.envfile import EnvFile, checked, literal, parse_env_file, read_env_file, surroundings
from devstack.errors import UsageError
from devstack.files import MAX_BYTES
from devstack.services.api import Api
from devstack.settings import load, yaml_entries
from devstack.variables import dotenv_lines
from tests.conftest import Rounds
from tests.test_settings import read

CASES = 10_000
"""In a campaign; a tenth otherwise."""


def values(content: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    return checked(parse_env_file(content.encode(), environ or {})).values


# the same as python-dotenv

NAMES = ["A", "B_1", "_c", "LONG_NAME", "HOME", "OUTSIDE", "BOTH"]
PIECES = [
    *(
        "x",
        "1",
        " ",
        "  ",
        "\t",
        "é",
        "#",
        " #",
        "$",
        "${",
        "}",
        "\\",
        "\\n",
        "\\\\",
        "\\'",
        '\\"',
        "'",
        '"',
        "=",
        ":-",
    ),
    *("${A}", "${B_1}", "${_c}", "${OUTSIDE}", "${BOTH}", "${NONE}", "${NONE:-else}", "${A:-${B_1}}", "${:-$}", "$A"),
]


def generated(chance: random.Random) -> str:
    """Return the text of a file with lines of every kind; most of them are well-formed."""
    return "".join(line(chance) for _ in range(chance.randrange(1, 8)))


def line(chance: random.Random) -> str:
    name = chance.choice(NAMES)
    value = "".join(chance.choices(PIECES, k=chance.randrange(6)))
    quote = chance.choice(["", "", "'", '"'])
    if quote:
        lines = value.replace("\\", "\\\\").replace(quote, f"\\{quote}") + chance.choice(["", "\nnext ${A} #\n"])
        value = f"{quote}{lines}{quote}" + chance.choice(["", " # comment", "  "])
    kind = chance.randrange(10)
    if kind == 0:
        return chance.choice(["\n", "# A=1\n", "   \n", "\r\n", "  # ${A}\n"])
    if kind == 1:
        return f"{chance.choice(['', 'export '])}{name}\n"
    between = chance.choice(["=", " = ", "= ", " ="])
    return f"{chance.choice(['', '', 'export ', '  '])}{name}{between}{value}{chance.choice(['', ''])}\n"


@pytest.mark.campaign
def test_a_file_gives_what_python_dotenv_gives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chance: random.Random, rounds: Rounds
) -> None:
    environ = surroundings({"HOME": "/home/me", "USER": "me", "LOGNAME": "me", "OUTSIDE": "out", "BOTH": "${A}"})
    for name in set(os.environ) - set(environ):
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    compared = 0
    path = tmp_path / ".env"
    for _ in rounds(CASES):
        content = generated(chance)
        path.write_bytes(content.encode())
        found = read_env_file(path, environ)
        if found.problems:  # it would skip such lines
            continue
        compared += 1
        expected = {name: value for name, value in dotenv_values(path).items() if value is not None}
        assert found.values == expected, content
    assert compared > len(rounds(CASES)) / 3


def test_what_the_stack_gives_wins_as_it_would_with_load_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    content = 'DATABASE_URL=theirs\nQUEUE="${DATABASE_URL}?queue"\nHERE=${HERE:-1}\n'
    own = {"DATABASE_URL": "ours"}
    given = parse_env_file(content.encode(), {}).filled(own)
    for name in ("QUEUE", "HERE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", "ours")
    load_dotenv(stream=io.StringIO(content))
    try:
        assert {**given, **own} == {name: os.environ[name] for name in ("DATABASE_URL", "QUEUE", "HERE")}
    finally:
        for name in ("QUEUE", "HERE"):
            os.environ.pop(name, None)
    assert given["QUEUE"] == "ours?queue"


def api(tmp_path: Path, content: str, environ: Mapping[str, str], **env: str) -> Api:
    settings = load(
        yaml_entries({"api": {"env": env}}, "invoke.yaml"), tmp_path, parse_env_file(content.encode(), environ)
    )
    credentials = Credentials(db_password="p", pgbouncer_password="q", jwt_secret="j")
    return Api(ContainerContext.__new__(ContainerContext), settings, credentials)


def test_the_application_gets_the_stack_s_url_wherever_a_line_uses_it(tmp_path: Path) -> None:
    content = (
        "DATABASE_URL=postgresql://me@localhost:5432/mine\nCELERY=db+${DATABASE_URL}\nKEPT=${FLAVOUR}\nFLAVOUR=b\n"
    )
    given = api(tmp_path, content, {"FLAVOUR": "a"}, FLAVOUR="c").environment()
    assert given["CELERY"] == "db+postgresql://nina:p@127.0.0.1:6432/nina"
    assert (given["KEPT"], given["FLAVOUR"]) == ("c", "c")


# what is taken


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("A=1\nB=${A}2\n", {"A": "1", "B": "12"}),
        ("A=1\nA=${A}2\n", {"A": "12"}),
        ("B=${A}\nA=1\n", {"A": "1", "B": "from outside"}),
        ("B=${NONE}${NONE:-x}\n", {"B": "x"}),
        ("B='${A}' # not\n", {"B": "from outside"}),  # quotes do not matter to it
        ("B=$A\n", {"B": "$A"}),
        ("A\nB=${A}\n", {"B": ""}),  # a name alone gives nothing, and hides what is outside
        ("A=1\nA\n", {}),
        ("export A=1\n", {"A": "1"}),
        ('A="one\\ttwo\nthree"\n', {"A": "one\ttwo\nthree"}),
        ("A='one\\'s \\n'\n", {"A": "one's \\n"}),
        ("A=x#y # z\n", {"A": "x#y"}),
        ('\ufeffA=1\r\nB="2\r\n3"\r\n', {"A": "1", "B": "2\n3"}),
    ],
)
def test_lines_of_every_kind(content: str, expected: dict[str, str]) -> None:
    assert values(content, {"A": "from outside"}) == expected


def test_a_virtual_environment_of_that_name_is_no_file_of_variables(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    (tmp_path / ".env" / "pyvenv.cfg").touch()
    assert read(tmp_path).dotenv == EnvFile()


def test_no_fifo_is_opened_and_no_large_file_read(tmp_path: Path, alarm: None) -> None:
    os.mkfifo(tmp_path / ".env")
    with pytest.raises(UsageError, match="can't be read"):
        read_env_file(tmp_path / ".env", {})
    (tmp_path / "large").write_text(f"A={'x' * MAX_BYTES}\n")
    with pytest.raises(UsageError, match="can't be read"):
        read_env_file(tmp_path / "large", {})


def test_a_few_lines_that_stand_for_gigabytes_are_refused(alarm: None) -> None:
    lines = ["A0=0123456789", *(f"A{i + 1}={'${A' + str(i) + '}'}" * 1 + f"${{A{i}}}" * 9 for i in range(12))]
    found = parse_env_file("\n".join(lines).encode(), {})
    assert "more than 1000000 characters" in found.problems[0].error.why


def test_a_file_of_many_lines_is_read_in_time(alarm: None) -> None:
    found = parse_env_file("".join(f"A{number}=1\n" for number in range(100_000)).encode(), {})
    assert len(found.values) == 100_000


@pytest.mark.parametrize("content", [b"A=\xff\n", b"A=a\0b\n", b"A=${BROKEN}\n"])
def test_a_value_that_no_program_can_be_given_is_refused_by_its_line(content: bytes) -> None:
    found = parse_env_file(b"B=1\n" + content, {"BROKEN": "\udcff"})
    assert [problem.error.what for problem in found.problems] == [".env:2 is malformed"]
    assert found.values == {"B": "1"}


# two terminals


def test_nothing_of_the_caller_s_that_nothing_may_inherit_is_filled_in() -> None:
    foreign = {"PGPASSWORD": "x", "PGHOST": "x", "PYTHONPATH": "x", "PYTHONWARNINGS": "x"}
    assert values("".join(f"X{name}=${{{name}:-none}}\n" for name in foreign), foreign) == {
        f"X{name}": "none" for name in foreign
    }
    assert values("PGHOST=db\nX=${PGHOST}\n", foreign)["X"] == "db"  # a line of the file's is no variable of the caller


def test_who_one_is_does_not_depend_on_the_terminal() -> None:
    here = {name: surroundings({})[name] for name in ("HOME", "USER", "LOGNAME")}
    assert values("A=${HOME}/${USER}/${LOGNAME}\n", {}) == values("A=${HOME}/${USER}/${LOGNAME}\n", here)


def test_another_terminal_changes_no_configuration_of_the_application(tmp_path: Path) -> None:
    content = "A=${PATH}\nB=${VIRTUAL_ENV:-none}\nC=${B}/x\nD=${FLAVOUR}\nE=${HOME}\n"
    one = api(tmp_path, content, {"PATH": "/a", "VIRTUAL_ENV": "/v", "FLAVOUR": "sweet", "HOME": "/home/me"})
    two = api(tmp_path, content, {"PATH": "/b", "FLAVOUR": "sweet", "HOME": "/home/me"})
    assert one.environment()["C"] == "/v/x"
    assert one.configuration() == two.configuration()
    three = api(tmp_path, content, {"PATH": "/b", "FLAVOUR": "sour", "HOME": "/home/me"})
    assert one.configuration() != three.configuration()
    edited = api(
        tmp_path, content.replace("${PATH}", "${PATH}:/x"), {"PATH": "/a", "FLAVOUR": "sweet", "HOME": "/home/me"}
    )
    assert one.configuration() != edited.configuration()


# writing


@pytest.mark.campaign
def test_what_is_written_for_python_dotenv_is_read_as_it_was(chance: random.Random, rounds: Rounds) -> None:
    for _ in rounds(5_000):
        letters = [*PIECES, *string.printable]
        given = {name: "".join(chance.choices(letters, k=chance.randrange(12))) for name in NAMES}
        text = "\n".join(dotenv_lines(given)) + "\n"
        assert values(text, {"A": "outside", "NONE": "outside"}) == given, text
        assert dotenv_values(stream=io.StringIO(text)) == given
    assert literal("$HOME $ {x} ${") == "$HOME $ {x} ${"
