"""What is printed: where it goes, when it has colour, how it is aligned."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import console
from devstack.errors import StackError
from tests.conftest import ROOT


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


HOSTILE = {
    "\x1b[31mred\x1b[0m": "\x1b[31mred\x1b[0m",
    "to \x1b]52;c;ZXZpbA==\x07clipboard": "to \ufffd]52;c;ZXZpbA==\ufffdclipboard",
    "asks \x1b[6n\x1b[c\x1b[?25l": "asks \ufffd\ufffd\ufffd",
    "/a/.\x1b[J./etc": "/a/.\ufffd./etc",
    "/a/.\u2028./\udcff": "/a/.\ufffd./\ufffd",
    "back\b\b\rover": "back\ufffd\ufffd\ufffdover",
    "line\r\nend\tx": "line\nend\tx",
    "C1 \x9b6n \x9d0;t": "C1 \ufffd6n \ufffd0;t",
    "\u202eturned": "\ufffdturned",
    "ü ✅ عربي": "ü ✅ عربي",
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items(), ids=map(repr, HOSTILE))
def test_a_terminal_acts_on_nothing_but_colours(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.lines(text)
    console.notes(text)
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{shown}\n", f"{shown}\n")
    one = shown.replace("\n", " ")
    console.out(text)
    with console.screen(False) as show:
        show([text, *console.table([[text, "x"]])])
    assert capsys.readouterr().out == f"{one}\n{one}\n{one}  x\n"
    plain = re.sub(r"\x1b\[[0-9]*m", "\ufffd", shown)
    console.note(text)
    assert capsys.readouterr().err == plain.replace("\n", " ") + "\n"
    error = StackError("x", evidence=[text])
    assert error.text().split("\n")[1:] == [f"       | {line}" for line in plain.split("\n")]


FORGED = "nc\n       fix:   sudo rm -rf /etc\rfix:   x\u2028fix:   x\x85fix:   x\x0bfix:   x"


def test_no_text_of_others_makes_a_line_of_an_error() -> None:
    error = StackError(FORGED, why=FORGED, evidence=[FORGED], fix=[f"end {FORGED}"])
    lines = error.adding(FORGED).text().split("\n")
    assert [line[:9] for line in lines] == ["error: nc", "cause: nc", "       | ", "       | ", "fix:   en"]
    assert not set("\r\x0b\x85\u2028") & set("".join(lines))


def test_no_cell_makes_a_line_of_a_table() -> None:
    assert len(console.table([[FORGED, "x"]], ["a", "b"])) == 2


@pytest.mark.parametrize("echo", [False, True])
def test_a_command_that_is_not_shown_as_it_is_becomes_a_comment(echo: bool, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("rm '/a/.\x1b[J./etc'", "rm '/a/.\x1b[0m./etc'", "rm '/a/.\r./etc'", "rm '/a/.\u202e./etc'"):
        console.command(command, echo=echo)
        said = capsys.readouterr()
        assert said.err + said.out == "# rm '/a/.\ufffd./etc'\n"
    console.command("printf 'a\n\tb'", echo=echo)
    said = capsys.readouterr()
    assert said.err + said.out == "printf 'a\n\tb'\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_json_holds_what_a_terminal_would_act_on_without_showing_it(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console.data([text])
    printed = capsys.readouterr().out
    assert json.loads(printed) == [text]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", printed)


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


@pytest.mark.parametrize(
    ("text", "columns", "cropped"),
    [
        ("nv-db running", 5, "nv-db"),
        ("nv-db", 5, "nv-db"),
        ("日本語", 5, "日本"),
        ("\x1b[32mrunning\x1b[0m and more", 3, "\x1b[32mrun\x1b[0m"),
        ("e\u0301a", 1, "e\u0301"),
    ],
)
def test_a_line_is_cropped_to_columns_with_its_colours(text: str, columns: int, cropped: str) -> None:
    assert console.crop(text, columns) == cropped


class Utf8Terminal(Terminal):
    encoding = "utf-8"


@pytest.mark.parametrize(
    ("variables", "terminal", "pipe"),
    [
        ({"LANG": "en_US.UTF-8"}, True, True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, False, True),
        ({"LC_CTYPE": "C.UTF-8", "LANG": "C"}, True, True),
        ({}, True, True),
    ],
)
def test_characters_beyond_ascii_go_where_they_can_be_shown(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], terminal: bool, pipe: bool
) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert console.readable(Utf8Terminal()) is terminal
    assert console.readable(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) is pipe
    assert console.readable(io.TextIOWrapper(io.BytesIO(), encoding="ascii")) is False


# what is shown again and again

PROGRAM = """
import sys, time
from devstack import console
from devstack.errors import StackError
from tests.conftest import ROOT

def sleep():
    # not one long sleep: a signal that comes a moment before it would be handled after it
    for _ in range(1200):
        time.sleep(0.05)

def command(error=None):
    try:
        print("asleep", flush=True)
        sleep()
    except KeyboardInterrupt:
        if error:
            raise error

with console.screen(True) as show:
    for i in range({count}):
        show([f"display {{i}}", *["line " * 10] * {lines}])
        {then}
print("afterwards")
"""


class OnTerminal:
    """A program on a terminal of 20 columns and 4 lines."""

    def __init__(self, program: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 4, 20, 0, 0))
        environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import os, fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{program}"],
            cwd=Path(__file__).parent.parent,
            env={**environ, "TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def read_until(self, text: str) -> None:
        while text not in self.text:
            self.text += os.read(self.master, 1000).decode()

    def end(self) -> int:
        with contextlib.suppress(OSError):  # a terminal's way to say that nobody writes to it any more
            while part := os.read(self.master, 1000):
                self.text += part.decode()
        return self.process.wait(10)


@contextlib.contextmanager
def on_terminal(count: int, lines: int, then: str) -> Iterator[OnTerminal]:
    made = OnTerminal(PROGRAM.format(count=count, lines=lines, then=then))
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.master)


BEGIN, END = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def test_what_is_printed_as_one_line_is_written_as_one() -> None:
    """A line's end would be shown as a space: several lines go through ``console.lines`` and ``console.notes``."""
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for folder in ("devstack", "tasks")
        for path in (ROOT / folder).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("console.out", "console.note", "out", "note")
        for part in ast.walk(call)
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and "\n" in part.value
    ]
    assert found == []


def test_a_progress_bar_leaves_no_thread_and_nothing_on_the_screen() -> None:
    program = """
import threading
from devstack.console import progress_bar
with progress_bar("a\\x1b[2J name", 10) as show:
    show(5)
print(threading.active_count())
"""
    terminal = OnTerminal(program)
    try:
        assert terminal.end() == 0
    finally:
        terminal.process.kill()
        os.close(terminal.master)
    assert "a\ufffd name:" in terminal.text
    assert terminal.text.endswith("\r1\r\n")


def test_displays_take_each_other_s_place_on_a_terminal_and_the_last_stays() -> None:
    with on_terminal(count=2, lines=1, then="") as terminal:
        assert terminal.end() == 0
        cropped = "line line line line "
        assert terminal.text == (
            BEGIN
            + "".join(f"\x1b[H\x1b[Kdisplay {i}\r\n\x1b[K{cropped}\r\n\x1b[J" for i in range(2))
            + END
            + f"display 1\r\n{'line ' * 10}\r\nafterwards\r\n"
        )


def test_a_display_higher_than_the_terminal_is_cut_there_and_whole_afterwards() -> None:
    with on_terminal(count=1, lines=5, then="") as terminal:
        assert terminal.end() == 0
        inside, _, after = terminal.text.removeprefix(BEGIN).partition(END)
        rows = inside.removeprefix("\x1b[H").split("\r\n")
        assert len(rows) == 4
        assert "3 more lines" in rows[-1]
        assert after.count("line " * 10) == 5


def test_control_c_ends_watching_without_an_error() -> None:
    with on_terminal(count=99, lines=1, then="sleep()") as terminal:
        terminal.read_until("display 0")
        os.write(terminal.master, b"\x03")
        assert terminal.end() == 0
        assert terminal.text.partition(END)[2].split()[:2] == ["display", "0"]
        assert terminal.text.endswith("afterwards\r\n")


def test_control_c_that_a_command_swallowed_ends_watching_at_the_next_display() -> None:
    with on_terminal(count=99, lines=1, then="command()") as terminal:
        terminal.read_until("asleep")
        os.write(terminal.master, b"\x03")
        assert terminal.end() == 0
        assert "display 1" not in terminal.text


def test_control_c_hides_the_error_that_it_caused_in_a_command() -> None:
    with on_terminal(count=99, lines=1, then="command(OSError)") as terminal:
        terminal.read_until("asleep")
        os.write(terminal.master, b"\x03")
        assert terminal.end() == 0
        assert "OSError" not in terminal.text


def test_an_error_or_a_signal_gives_the_terminal_back() -> None:
    with on_terminal(count=9, lines=1, then="raise ValueError('broken')") as terminal:
        assert terminal.end() == 1
        assert terminal.text.index("display 0") < terminal.text.index(END) < terminal.text.index("ValueError: broken")
    with on_terminal(count=9, lines=1, then="sleep()") as terminal:
        terminal.read_until("display 0")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 128 + signal.SIGTERM
        assert END in terminal.text


def test_a_suspended_display_gives_the_terminal_back_and_takes_it_again() -> None:
    with on_terminal(count=99, lines=1, then="time.sleep(0.02)") as terminal:
        terminal.read_until("display 1")
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.read_until(END)
        assert os.WIFSTOPPED(os.waitpid(terminal.process.pid, os.WUNTRACED)[1])
        terminal.process.send_signal(signal.SIGCONT)
        assert terminal.end() == 0
        assert terminal.text.partition(END)[2].startswith(BEGIN)


def test_in_a_pipe_displays_follow_one_another_without_escapes() -> None:
    program = PROGRAM.format(count=2, lines=1, then="")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    line = "line " * 10
    assert done.stdout == f"display 0\n{line}\n\ndisplay 1\n{line}\nafterwards\n"
