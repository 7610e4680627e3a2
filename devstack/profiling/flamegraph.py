"""A flame graph as py-spy draws it (https://github.com/jonhoo/inferno): read, and made easier to look at."""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

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

OWN = ((142, 195, 235), (168, 212, 242), (120, 180, 226))
OTHERS = ((240, 228, 206), (246, 236, 218), (234, 219, 192), (249, 241, 227))
ROOT = (224, 224, 224)
"""Light, so that black text on it can be read, also in print and by who does not see red from green."""


@dataclass(frozen=True)
class Function:
    """What a function took, in samples: ``own`` in itself, ``total`` with all that it called."""

    name: str
    file: str
    line: int
    own: int
    total: int
    application: bool
    """Whether it is in the application's own source."""


@dataclass(frozen=True)
class _Frame:
    name: str
    depth: int
    start: int
    samples: int


def samples(svg: str) -> int:
    """How many there are altogether."""
    return max((frame.samples for frame in _frames(svg)), default=0)


def _frames(svg: str) -> list[_Frame]:
    found = [
        _Frame(html.unescape(match["name"]), int(match["y"]), int(match["x"]), int(match["w"]))
        for match in FRAME.finditer(svg)
    ]
    return sorted(found, key=lambda frame: (frame.depth, frame.start))


def functions(svg: str, is_own: Callable[[str], bool]) -> list[Function]:
    """Every function by the time in itself; ``is_own`` is asked about files, as they are named in the graph."""
    own: dict[str, int] = {}
    total: dict[str, int] = {}
    above: list[tuple[_Frame, frozenset[str]]] = []
    level: list[tuple[_Frame, frozenset[str]]] = []
    depth = -1
    for frame in _frames(svg):
        if frame.depth != depth:
            above, level, depth = level, [], frame.depth
        callers: frozenset[str] = frozenset()
        for caller, names in above:
            if caller.start <= frame.start < caller.start + caller.samples:
                own[caller.name] -= frame.samples
                callers = names
                break
        own[frame.name] = own.get(frame.name, 0) + frame.samples
        if frame.name not in callers:  # what calls itself counts once
            total[frame.name] = total.get(frame.name, 0) + frame.samples
        level.append((frame, callers | {frame.name}))
    found = []
    for name in own:
        if place := PLACE.fullmatch(name):
            file = place["file"]
            found.append(Function(place["function"], file, int(place["line"]), own[name], total[name], is_own(file)))
    return sorted(found, key=lambda one: (-one.own, -one.total, one.name))


def dressed(svg: str, title: str, subtitle: str, is_own: Callable[[str], bool]) -> str:
    """The graph with a title that says what it shows, the application's own functions in a colour of their own."""

    def coloured(match: re.Match[str]) -> str:
        name = html.unescape(match["name"])
        place = PLACE.fullmatch(name)
        shades = (ROOT,) if place is None else OWN if is_own(place["file"]) else OTHERS
        red, green, blue = shades[zlib.crc32(name.encode()) % len(shades)]
        text = match[0]
        begin, end = match.start("fill") - match.start(), match.end("fill") - match.start()
        return f"{text[:begin]}rgb({red},{green},{blue}){text[end:]}"

    below = f'<text id="subtitle" fill="rgb(90,90,90)" x="50.0000%" y="{SUBTITLE_Y}">{html.escape(subtitle)}</text>'
    svg = FRAME.sub(coloured, svg).replace("</style>", STYLE, 1)
    svg = TITLE.sub(lambda match: f"{match[1]}{html.escape(title)}{match[2]}{below}", svg, count=1)
    return BACKGROUND.sub(r"\g<1>#ffffff", svg)
