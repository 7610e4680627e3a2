"""The latencies of a load, drawn as SVG: by percentile, and over time."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from devstack.profiling.load import Outcome

WIDTH, HEIGHT = 960, 776
LEFT, RIGHT = 84, 936
PERCENTILES = ((0, "0"), (50, "50"), (90, "90"), (99, "99"), (99.9, "99.9"), (99.99, "99.99"))
"""Spread so that what is rare has as much room as what is usual."""

STYLES = {"db": ("#0072b2", "", "circle"), "pgb": ("#d55e00", "9 4", "square"), "api": ("#007a5a", "2 4", "triangle")}
"""Colours that who does not see red from green can tell apart, and lines that differ without any
(https://jfly.uni-koeln.de/color/)."""


class Frame(Struct, frozen=True):
    """A panel: where values are on the paper."""

    top: int
    bottom: int
    x: Callable[[float], float]
    low: float
    high: float

    def y(self, value: float) -> float:
        share = (math.log10(max(value, self.low)) - math.log10(self.low)) / (math.log10(self.high / self.low))
        return self.bottom - share * (self.bottom - self.top)


def draw(outcomes: Sequence[Outcome], title: str, *subtitles: str) -> str:
    """The drawing, for a browser or a printer."""
    shown = [outcome for outcome in outcomes if outcome.done]
    low, high = _range(shown)
    most = max((outcome.done for outcome in shown), default=1)
    last = next((p for p, _ in PERCENTILES[2:] if most <= 10 / (1 - p / 100)), PERCENTILES[-1][0])
    seconds = max((max(outcome.at) for outcome in shown), default=1.0)
    whole = max(1.0, math.ceil(seconds))
    upper = Frame(176, 420, lambda percent: LEFT + (RIGHT - LEFT) * _rarity(percent) / _rarity(last), low, high)
    lower = Frame(508, 710, lambda second: LEFT + (RIGHT - LEFT) * second / whole, low, high)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
            ' font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222">',
            f"<title>{html.escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            _text(LEFT, 34, title, size=20, weight="bold"),
            *(_text(LEFT, 56 + 18 * i, line, fill="#555") for i, line in enumerate(subtitles)),
            *_legend(outcomes, 108),
            *_panel(upper, "By percentile", "Share of the answers that took no longer"),
            *_percentile_ticks(upper, last),
            *(line for outcome in shown for line in _by_percentile(upper, outcome, last)),
            *_panel(lower, "Over time: a dot for each answer, the line is their median", "Seconds since the beginning"),
            *_second_ticks(lower, whole),
            *(line for outcome in shown for line in _over_time(lower, outcome, whole)),
            "</svg>",
            "",
        ]
    )


def _rarity(percent: float) -> float:
    return -math.log10(1 - percent / 100)


def _range(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """From a step of the axis below the quickest answer to one above the slowest."""
    values = [value for outcome in outcomes for value in (min(outcome.latencies), max(outcome.latencies))]
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    steps = [step * 10**power for power in range(-4, 7) for step in (1, 2, 5)]
    below = max((step for step in steps if step <= low), default=steps[0])
    above = min((step for step in steps if step >= high), default=steps[-1])
    return below, above if above > below * 2 else below * 10


# what is around


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "start", **style: str) -> str:
    more = "".join(f' {"font-weight" if key == "weight" else key}="{value}"' for key, value in style.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{more}>{html.escape(text)}</text>'


def _legend(outcomes: Sequence[Outcome], y: int) -> Iterator[str]:
    room = (RIGHT - LEFT) / max(1, len(outcomes))
    for i, outcome in enumerate(outcomes):
        x = LEFT + i * room
        colour, dash, mark = STYLES[outcome.target]
        line = f'stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"'
        yield f'<path d="M{x:.1f} {y - 4}h34" {line} fill="none"/>'
        yield _mark(mark, x + 17, y - 4, colour)
        title = outcome.title if len(outcome.title) <= 28 else outcome.title[:27] + "…"
        yield _text(x + 42, y, title, weight="bold")
        p50, p99 = outcome.percentile(50), outcome.percentile(99)
        figures = "no answer" if p50 is None or p99 is None else f"p50 {milliseconds(p50)}, p99 {milliseconds(p99)}"
        failed = f", {outcome.errors} errors" if outcome.errors else ""
        yield _text(x + 42, y + 17, figures + failed, fill="#555", size=12)


def milliseconds(value: float) -> str:
    """A latency with three digits that count."""
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def _panel(frame: Frame, above: str, below: str) -> Iterator[str]:
    yield _text(LEFT, frame.top - 10, above, weight="bold", size=12)
    power = math.floor(math.log10(frame.low))
    while 10**power <= frame.high:
        for step in (1, 2, 5):
            value = step * 10.0**power
            if frame.low * 0.999 <= value <= frame.high * 1.001:
                y = frame.y(value)
                yield f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="{"#ccc" if step == 1 else "#eee"}"/>'
                yield _text(LEFT - 8, y + 4, f"{value:g}", anchor="end", size=12)
        power += 1
    yield f'<path d="M{LEFT} {frame.top}V{frame.bottom}H{RIGHT}" stroke="#222" fill="none"/>'
    yield _text(RIGHT, frame.bottom + 38, below, anchor="end", fill="#555", size=12)
    middle = (frame.top + frame.bottom) / 2
    yield (
        f'<text x="26" y="{middle}" font-size="12" fill="#555" text-anchor="middle"'
        f' transform="rotate(-90 26 {middle})">Latency in ms</text>'
    )


def _percentile_ticks(frame: Frame, last: float) -> Iterator[str]:
    for percent, label in PERCENTILES:
        if percent <= last:
            x = frame.x(percent)
            yield f'<path d="M{x:.1f} {frame.top}V{frame.bottom + 5}" stroke="#ddd"/>'
            yield _text(x, frame.bottom + 20, f"{label} %", anchor="middle", size=12)


def _second_ticks(frame: Frame, whole: float) -> Iterator[str]:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if whole / step <= 10)
    for second in range(0, int(whole) + 1, step):
        yield f'<path d="M{frame.x(second):.1f} {frame.bottom}v5" stroke="#222"/>'
        yield _text(frame.x(second), frame.bottom + 20, str(second), anchor="middle", size=12)


# the figures


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    if kind == "square":
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"/>'
    return f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z" fill="{colour}"/>'


def _line(points: Sequence[tuple[float, float]], target: str, *, width: float = 2.5) -> str:
    colour, dash, _ = STYLES[target]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return (
        f'<path d="M{path}" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}" fill="none"'
        ' stroke-linejoin="round"/>'
    )


def _by_percentile(frame: Frame, outcome: Outcome, last: float) -> Iterator[str]:
    ordered = outcome.ordered
    count = len(ordered)
    # as far as there are answers to tell: of a hundred none is the 99.9th percentile
    end = min(last, 100 * (1 - 1 / count)) if count > 1 else 0.0
    steps = [i * _rarity(end) / 200 for i in range(201)]
    ranks = [(rarity, min(count - 1, int((1 - 10**-rarity) * count))) for rarity in steps]
    yield _line([(frame.x(100 * (1 - 10**-rarity)), frame.y(ordered[rank])) for rarity, rank in ranks], outcome.target)
    for percent, _ in PERCENTILES[1:]:
        value = outcome.percentile(percent)
        if percent <= end and value is not None:
            colour, _, mark = STYLES[outcome.target]
            yield _mark(mark, frame.x(percent), frame.y(value), colour)


def _over_time(frame: Frame, outcome: Outcome, whole: float) -> Iterator[str]:
    """Every answer as a dot, as many as can be told apart, and the median of each step of time."""
    colour, _, mark = STYLES[outcome.target]
    every = max(1, outcome.done // 2000)
    for at, latency in list(zip(outcome.at, outcome.latencies, strict=True))[::every]:
        yield f'<circle cx="{frame.x(at):.1f}" cy="{frame.y(latency):.1f}" r="1.4" fill="{colour}" opacity="0.35"/>'
    step = whole / min(30, max(4, outcome.done // 10))
    buckets: dict[int, list[float]] = {}
    for at, latency in zip(outcome.at, outcome.latencies, strict=True):
        buckets.setdefault(int(at / step), []).append(latency)
    points = [
        (frame.x((bucket + 0.5) * step), frame.y(sorted(values)[(len(values) - 1) // 2]))
        for bucket, values in sorted(buckets.items())
    ]
    yield _line(points, outcome.target)
    yield from (_mark(mark, x, y, colour) for x, y in points[:: max(1, len(points) // 8)])
