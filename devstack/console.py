"""Everything that is printed.

Answers go to stdout; what is going on and what went wrong go to stderr, so that a pipe gets the answer
alone. Colour appears on a terminal only, never under ``NO_COLOR``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from colorama import Fore, Style, just_fix_windows_console

from devstack.escapes import COLOUR, REPLACED, UNSAFE, one_line, safe
from devstack.wording import wording

just_fix_windows_console()

COLOURS = {
    "good": Fore.GREEN,
    "warn": Fore.YELLOW,
    "bad": Fore.RED,
    "dim": Style.DIM,
    "bold": Style.BRIGHT,
    "db": Fore.CYAN,
    "pgb": Fore.MAGENTA,
    "api": Fore.BLUE,
}

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The alternate screen without a cursor, and back (https://invisible-island.net/xterm/ctlseqs/ctlseqs.html)."""
ESCAPE = re.compile(r"(\x1b\[[0-9;]*m)")


def colourful(stream: TextIO) -> bool:
    """Whether colour is welcome on this stream (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def readable(stream: TextIO | None = None) -> bool:
    """Whether characters beyond ASCII can be shown on this stream.

    Python writes UTF-8 in the locale C too, where a terminal may not understand it.
    """
    stream = stream or sys.stdout
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(name))), "UTF-8")
    utf8 = "utf" in (getattr(stream, "encoding", None) or "utf-8").lower()
    return utf8 and (not stream.isatty() or "utf" in locale.lower())


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Text in one of :data:`COLOURS`, or as it is where colour is not welcome."""
    if not text or not colourful(stream or sys.stdout):
        return text
    return f"{COLOURS[colour]}{text}{Style.RESET_ALL}"


def width(text: str) -> int:
    """Columns that a terminal uses for the text: wide characters take two, combining ones and colours none."""
    text = ESCAPE.sub("", text) if "\x1b" in text else text
    wide = sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text if not unicodedata.combining(c))
    return wide - sum(1 for c in text if c == "\ufe0f")


def pad(text: str, columns: int) -> str:
    """The text with spaces up to a width in columns."""
    return text + " " * max(0, columns - width(text))


def crop(text: str, columns: int) -> str:
    """As much of the text as fits into a width in columns; colours take none and are kept."""
    kept, left = [], columns
    for i, part in enumerate(ESCAPE.split(text)):
        if i % 2:
            kept.append(part)
            continue
        for character in part:
            left -= width(character)
            if left < 0:
                break
            kept.append(character)
    return "".join(kept)


def shorten(text: str, columns: int, *, plain: bool = False) -> str:
    """The text on one line of so many columns, marked where it was cut; ``plain`` in ASCII."""
    text = " ".join(text.split())
    mark = "..." if plain or not readable() else "…"
    return text if width(text) <= columns else crop(text, columns - width(mark)) + mark


def out(text: str = "") -> None:
    """A line of the answer."""
    print(spoken(one_line(text, colours=True)), flush=True)


def lines(text: str) -> None:
    """Print several lines of the answer. Untrusted text in them must have no line ends."""
    print(spoken(safe(text)), flush=True)


def note(text: str = "") -> None:
    """A line on what is going on, apart from the answer."""
    print(spoken(one_line(text)), file=sys.stderr, flush=True)


def notes(text: str) -> None:
    """Print several lines about progress, such as an error. Untrusted text in them must have no line ends."""
    print(spoken(safe(text)), file=sys.stderr, flush=True)


def command(text: str, *, echo: bool = False) -> None:
    """Print a command line. One with characters that can't be shown is printed as a comment: pasted, it would run
    something else.

    :param echo: whether it is on what is going on.
    """
    shown = safe(text)
    if shown != text or re.search(COLOUR, text):
        shown = "\n".join(f"# {part}" for part in re.sub(COLOUR, REPLACED, shown).split("\n"))
    stream = sys.stderr if echo else sys.stdout
    print(paint(shown, "bold", stream) if echo else shown, file=stream, flush=True)


COMMAND = re.compile(r"\binv (?=-|health\b|metrics\b|system-info\b|(?:dev|db|pgb|api|data)\.)")


def spoken(text: str) -> str:
    """Text whose commands are those that the user types: they are written for ``inv``."""
    program = wording().program
    return text if program == "inv" else COMMAND.sub(f"{program} ", text)


def data(value: Any) -> None:
    """The answer as JSON."""
    print(spoken(json_of(value)), flush=True)


def json_of(value: Any) -> str:
    """JSON as it is shown: what a terminal would act on is escaped, also what JSON allows as it is."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@contextlib.contextmanager
def progress_bar(what: str, total: float | None, **look: Any) -> Iterator[Callable[[float], object]]:
    """Show a progress bar on stderr if that is a terminal, and erase it at the end.

    Yield a function that advances the bar by an amount in the unit of ``total``.

    :param total: total amount, or None if it is unknown.
    :param look: further arguments of tqdm (https://tqdm.github.io/docs/tqdm/).
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # a thread, to the end of the process
    with tqdm(desc=one_line(what), total=total, leave=False, **look) as bar:
        yield bar.update


@contextlib.contextmanager
def screen(watch: bool) -> Iterator[Callable[[Iterable[str]], None]]:
    """Where a display goes that is shown once, or with ``watch`` again and again: ``show(lines)``.

    On a terminal the next display takes the place of the one before, cut to the terminal's size, and the last one
    stays there in full, whatever ended it. Elsewhere displays follow one another, an empty line between them.
    Ctrl-C is the way to end watching, so it ends the block without an error.
    """
    terminal = watch and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    shown: list[str] = []
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def show(texts: Iterable[str]) -> None:
        if interrupted:  # while Invoke ran a command, which leaves Ctrl-C to the command
            raise KeyboardInterrupt
        if shown and not terminal:
            out()
        shown[:] = [spoken(one_line(text, colours=True)) for text in texts]
        if terminal:
            _redraw(shown)
        else:
            print("\n".join(shown), flush=True)

    try:
        with _handled({signal.SIGINT: interrupt} if watch else {}), _alternate_screen(terminal):
            yield show
    except BaseException:
        if not interrupted:
            raise
    finally:
        if terminal and shown:
            print("\n".join(shown), flush=True)


def _redraw(lines: Sequence[str]) -> None:
    columns, height = shutil.get_terminal_size()
    more = len(lines) - height
    visible = lines if more <= 0 else [*lines[: height - 1], paint(f"{more + 1} more lines", "dim")]
    # a line is erased before it is written: after its last column a terminal would erase that one again
    rows = "\n".join(f"\x1b[K{crop(line, columns)}" for line in visible)
    below = "\n\x1b[J" if more < 0 else ""
    sys.stdout.write(f"\x1b[H{rows}{below}")  # in one piece, or it flickers
    sys.stdout.flush()


@contextlib.contextmanager
def _alternate_screen(terminal: bool) -> Iterator[None]:
    """Give the terminal back as it was, also when a signal ends the program, and while it is suspended."""
    if not terminal:
        yield
        return

    def write(text: str) -> None:
        os.write(sys.stdout.fileno(), text.encode())  # in a signal handler sys.stdout may be in the middle of a write

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    def suspend(*_: object) -> None:
        write(LEAVE)
        os.kill(os.getpid(), signal.SIGSTOP)
        write(ENTER)

    with _handled({signal.SIGTERM: end, signal.SIGTSTP: suspend}):
        write(ENTER)
        try:
            yield
        finally:
            write(LEAVE)


@contextlib.contextmanager
def _handled(handlers: Mapping[signal.Signals, Callable[..., None]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def table(
    rows: Iterable[Sequence[str]],
    header: Sequence[str] = (),
    *,
    right: Iterable[int] = (),
    limit: int = 0,
    plain: bool = False,
) -> list[str]:
    """Rows as aligned lines; ``right`` names the columns aligned to the right. The header is dim. With a ``limit``
    of columns the last cell of a line is shortened to it, as :func:`shorten` does."""
    body = [[one_line(str(cell), colours=True) for cell in row] for row in rows]
    everything = [list(header), *body] if header else body
    if not everything:
        return []
    columns = [max(width(row[i]) for row in everything) for i in range(len(everything[0]))]
    if limit:
        room = max(8, limit - sum(columns[:-1]) - 2 * len(columns[:-1]))
        body = [[*row[:-1], shorten(row[-1], room, plain=plain)] for row in body]
        columns[-1] = min(columns[-1], room)
    flush_right = set(right)

    def aligned(row: Sequence[str]) -> str:
        cells = [
            " " * (columns[i] - width(cell)) + cell if i in flush_right else pad(cell, columns[i])
            for i, cell in enumerate(row)
        ]
        return "  ".join(cells).rstrip()

    shown = [aligned(row) for row in body]
    return [paint(aligned(header), "dim"), *shown] if header else shown


def duration(seconds: float) -> str:
    """A duration for people: ``0.42 s``, ``38 s``, ``5 min``, ``3 h 20 min``, ``4 d 2 h``."""
    if seconds < 10:
        return f"{max(seconds, 0):.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def size(count: float) -> str:
    """Bytes for people, in powers of 1024 as PostgreSQL's pg_size_pretty does: ``12 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def figure(key: str, value: Any) -> str:
    """A value for people, in the unit at the end of its key."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_per_s"):
        return f"{figure(key.removesuffix('_per_s'), value)}/s"
    if key.endswith("_bytes"):
        return size(value)
    if key.endswith("_ratio"):
        return f"{value:.1%}"
    if key.endswith("_ms"):
        return milliseconds(value)
    if key.endswith("_s"):
        return duration(value).replace(".00 ", " ") if isinstance(value, int) else duration(value)
    if isinstance(value, float):
        return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def milliseconds(value: float) -> str:
    """A short time for people: ``0.04 ms``, ``3.2 ms``, ``48 ms``; longer ones as :func:`duration`."""
    if value >= 1000:
        return duration(value / 1000)
    return f"{value:.2f} ms" if value < 1 else f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"
