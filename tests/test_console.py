"""What is printed: where it goes, when it has colour, how it is aligned."""

from __future__ import annotations

import io
import json

import pytest

from devstack import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_pipe_gets_the_answer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    console.note("waiting")
    console.out("the answer")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("the answer\n", "waiting\n")


def test_json_keeps_text_readable_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "nüna 🏥", "rows": [1, None, True]}
    console.data(value)
    text = capsys.readouterr().out
    assert json.loads(text) == value
    assert "nüna 🏥" in text


def test_colour_appears_on_a_terminal_only() -> None:
    assert console.paint("up", "good", Terminal()) == "\x1b[32mup\x1b[0m"
    assert console.paint("up", "good", io.StringIO()) == "up"
    assert console.paint("", "good", Terminal()) == ""


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("NO_COLOR", "0"), ("TERM", "dumb")])
def test_colour_can_be_declined(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert console.paint("up", "good", Terminal()) == "up"


def test_an_empty_no_color_declines_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert console.colourful(Terminal())


@pytest.mark.parametrize(
    ("text", "columns"),
    [("nv-db", 5), ("", 0), ("日本", 4), ("🏥", 2), ("é", 1), ("e\u0301", 1), ("✓", 1)],
)
def test_width_is_what_a_terminal_uses(text: str, columns: int) -> None:
    assert console.width(text) == columns
    assert console.width(console.pad(text, 10)) == 10


def test_padding_never_cuts() -> None:
    assert console.pad("nv-pgbouncer", 3) == "nv-pgbouncer"


def test_a_table_aligns_columns_by_what_a_terminal_shows() -> None:
    assert console.table([("日本", "7", "x"), ("db", "1234", "")], ("name", "rows", "note"), right=[1]) == [
        "name  rows  note",
        "日本     7  x",
        "db    1234",
    ]


def test_a_table_without_rows_shows_its_header_or_nothing() -> None:
    assert console.table([], ("a", "b")) == ["a  b"]
    assert console.table([]) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.00 s"),
        (0.004, "0.00 s"),
        (0.42, "0.42 s"),
        (38.4, "38 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h 0 min"),
        (12000, "3 h 20 min"),
        (48 * 3600, "2 d 0 h"),
        (98 * 3600 + 59, "4 d 2 h"),
    ],
)
def test_a_duration_is_for_people(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 kB"),
        (1536, "1.5 kB"),
        (10 * 1024, "10 kB"),
        (12 * 1024**2, "12 MB"),
        (5 * 1024**3, "5.0 GB"),
        (3 * 1024**4, "3.0 TB"),
        (5000 * 1024**4, "5000.0 TB"),
    ],
)
def test_a_size_is_for_people(count: float, text: str) -> None:
    assert console.size(count) == text
