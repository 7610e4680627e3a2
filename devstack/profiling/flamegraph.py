"""A flame graph as py-spy draws it (https://github.com/jonhoo/inferno): read, and made easier to look at."""

from __future__ import annotations

import html
import re
import zlib
from collections import Counter
from collections.abc import Callable

from msgspec import Struct

FRAME = re.compile(
    r"<g><title>(?P<name>[^<]*) \((?P<samples>[\d,]+) samples, [^<]*</title>"
    r'<rect x="[^"]*" y="(?P<y>\d+)" width="[^"]*" height="\d+" fill="(?P<fill>[^"]*)"'
    r' fg:x="(?P<x>\d+)" fg:w="(?P<w>\d+)"/>'
)
PLACE = re.compile(r"(?P<function>.*) \((?P<file>.*):(?P<line>\d+)\)$", re.DOTALL)
TITLE = re.compile(r'(<text id="title"[^>]*>)[^<]*(</text>)')
BACKGROUND = re.compile(r'(<stop stop-color=")#[0-9a-f]+')
STYLE = "#frames rect { stroke:white; stroke-width:0.7 }\n</style>"
"""Neighbours stay apart, whatever their shades."""
SUBTITLE_Y = 42
"""Below the title, above the frames, of which the first holds them all."""

WAITING = {("wait", "threading.py"), ("select", "selectors.py"), ("poll", "selectors.py"), ("get", "queue.py")}
"""Functions of the standard library, and their files."""

OWN = ((142, 195, 235), (168, 212, 242), (120, 180, 226))
OTHERS = ((240, 228, 206), (246, 236, 218), (234, 219, 192), (249, 241, 227))
GREY = (224, 224, 224)
"""Light, so that black text on it can be read, also in print and by who does not see red from green."""


class Function(Struct, frozen=True):
    """What a function took, in samples: ``own`` in itself, ``total`` with all that it called."""

    name: str
    file: str
    line: int
    own: int
    total: int
    application: bool
    """Whether it is in the application's own source."""


class Graph(Struct, frozen=True):
    """What a graph shows, in samples altogether, and those ``waiting``, which are in no function."""

    samples: int
    waiting: int
    functions: list[Function]
    """By the time in themselves."""


class _Frame(Struct, frozen=True):
    name: str
    depth: int
    start: int
    samples: int

    def holds(self, other: _Frame) -> bool:
        return self.start <= other.start < self.start + self.samples


class _Seen(Struct, frozen=True):
    """A frame, with the names of all that are on its way."""

    frame: _Frame
    names: frozenset[str]
    waits: bool


def _frames(svg: str) -> list[_Frame]:
    found = [
        _Frame(html.unescape(match["name"]), int(match["y"]), int(match["x"]), int(match["w"]))
        for match in FRAME.finditer(svg)
    ]
    return sorted(found, key=lambda frame: (frame.depth, frame.start))


def read(svg: str, is_own: Callable[[str], bool]) -> Graph:
    """What is in a graph; ``is_own`` is asked about files, as they are named in it."""
    frames = _frames(svg)
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    waiting = 0
    above: list[_Seen] = []
    level: list[_Seen] = []
    depth = -1
    for frame in frames:
        if frame.depth != depth:
            above, level, depth = level, [], frame.depth
        caller = next((seen for seen in above if seen.frame.holds(frame)), None)
        callers = caller.names if caller else frozenset[str]()
        waits = bool(caller and caller.waits) or _waits(frame.name)
        if caller and not caller.waits:
            own[caller.frame.name] -= frame.samples
        if not waits:
            own[frame.name] += frame.samples
            # what calls itself counts once
            total.update({frame.name: frame.samples} if frame.name not in callers else {})
        elif not (caller and caller.waits):
            waiting += frame.samples
            total.subtract(dict.fromkeys(callers, frame.samples))
        level.append(_Seen(frame, callers | {frame.name}, waits))
    found = [
        Function(place["function"], place["file"], int(place["line"]), own[name], total[name], is_own(place["file"]))
        for name in own
        if (place := PLACE.fullmatch(name))
    ]
    found.sort(key=lambda one: (-one.own, -one.total, one.name))
    return Graph(max((frame.samples for frame in frames), default=0), waiting, [one for one in found if one.total])


def _waits(name: str) -> bool:
    """Whether a function does nothing but wait. A thread is in it for a moment after it was woken, and where the
    processor is in demand that moment is long: py-spy takes it for work."""
    place = PLACE.fullmatch(name)
    return bool(place) and (place["function"].rpartition(".")[2], place["file"]) in WAITING  # type: ignore[index]


def dressed(svg: str, title: str, subtitle: str, is_own: Callable[[str], bool]) -> str:
    """The graph with a title that says what it shows, the application's own functions in a colour of their own."""

    def coloured(match: re.Match[str]) -> str:
        name = html.unescape(match["name"])
        place = PLACE.fullmatch(name)
        shades = (GREY,) if place is None or _waits(name) else OWN if is_own(place["file"]) else OTHERS
        red, green, blue = shades[zlib.crc32(name.encode()) % len(shades)]
        text = match[0]
        begin, end = match.start("fill") - match.start(), match.end("fill") - match.start()
        return f"{text[:begin]}rgb({red},{green},{blue}){text[end:]}"

    below = f'<text id="subtitle" fill="rgb(90,90,90)" x="50.0000%" y="{SUBTITLE_Y}">{html.escape(subtitle)}</text>'
    svg = FRAME.sub(coloured, svg).replace("</style>", STYLE, 1)
    svg = TITLE.sub(lambda match: f"{match[1]}{html.escape(title)}{match[2]}{below}", svg, count=1)
    return BACKGROUND.sub(r"\g<1>#ffffff", svg)
