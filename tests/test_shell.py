"""Commands as quoted templates: checked by a real shell, which is the only judge of quoting."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from devstack.shell import Command, argv, chain, sh, words

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
NASTY = [
    "",
    " ",
    "'",
    "''",
    '"',
    "\\",
    "\\\\'",
    "$HOME",
    "${HOME}",
    "$(touch pwned)",
    "`touch pwned`",
    "a;b",
    "a&&b|c>d<e",
    "*",
    "~",
    "!!",
    "#x",
    "-n",
    "--",
    "a\nb\n",
    "a\tb\r",
    "%s%n",
    "é 日本 🏥",
    "{a,b}",
    "a=b",
    "$$",
]


def words_of(command: Command, shell: str = "/bin/sh") -> list[str]:
    """The words as a program gets them; each one printed with a NUL behind it."""
    out = subprocess.run([shell, "-c", command], stdout=subprocess.PIPE, check=True).stdout
    return [os.fsdecode(word) for word in out.split(b"\0")[:-1]]


@settings(max_examples=150, deadline=None)
@given(values=st.lists(ANY_TEXT, min_size=1, max_size=4))
@example(values=NASTY)
def test_any_text_reaches_the_program_unchanged(values: list[str]) -> None:
    assert words_of(sh(r"printf '%s\0' $values", values=values)) == values


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_nasty_text_reaches_the_program_unchanged_in_every_shell(shell: str) -> None:
    assert words_of(argv(["printf", r"%s\0", *NASTY]), shell) == NASTY


def test_bytes_that_are_no_text_reach_the_program_unchanged() -> None:
    name = os.fsdecode(b"caf\xe9")
    assert words_of(sh(r"printf '%s\0' $name", name=name)) == [name]


def test_a_value_in_the_middle_of_a_word_stays_one_word() -> None:
    assert words_of(sh(r"printf '%s\0' --file=$path/x", path=Path("/a b/$c"))) == ["--file=/a b/$c/x"]


def test_a_list_becomes_several_words_and_an_empty_one_none() -> None:
    assert sh("psql $args -l", args=["-c", "SELECT 1", 5, 0.5, Path("/a b")]) == "psql -c 'SELECT 1' 5 0.5 '/a b' -l"
    assert words_of(sh(r"printf '%s\0' a $none b", none=[])) == ["a", "b"]


def test_a_text_is_one_word_never_a_list_of_letters() -> None:
    assert sh("x $a", a="a b") == "x 'a b'"


def test_a_command_goes_into_another_as_it_is_and_as_text_it_is_quoted() -> None:
    inner = sh("echo $a", a="it's")
    assert sh("cd / && $inner", inner=inner) == "cd / && echo 'it'\"'\"'s'"
    assert words_of(sh(r"sh -c $inner | { read -r x; printf '%s\0' " + '"$$x"; }', inner=str(inner))) == ["it's"]


def test_commands_in_a_chain_stop_at_the_first_that_fails() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", chain(argv(["echo", "one"]), argv(["false"]), argv(["echo", "two"]))], stdout=subprocess.PIPE
    )
    assert (done.returncode, done.stdout) == (1, b"one\n")


def test_two_dollar_signs_are_the_shell_s_own() -> None:
    assert sh("echo $$HOME $a", a="$HOME") == "echo $HOME '$HOME'"


def test_a_value_that_the_template_does_not_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not in the template 'psql \$user': password, port"):
        sh("psql $user", user="nina", port=1, password="x")


def test_a_name_without_a_value_is_refused() -> None:
    with pytest.raises(KeyError, match="user"):
        sh("psql $user")
    with pytest.raises(KeyError, match="user"):
        sh("psql ${user}x")


def test_an_escaped_dollar_sign_names_nothing() -> None:
    with pytest.raises(ValueError, match="not in the template"):
        sh("echo $$user", user="x")


@pytest.mark.parametrize("value", ["a\0b", ["ok", "\0"], Path("a\0")])
def test_a_nul_byte_is_refused(value: str | list[str] | Path) -> None:
    with pytest.raises(ValueError, match="NUL"):
        sh("echo $value", value=value)
    with pytest.raises(ValueError, match="NUL"):
        words(["a\0"])
