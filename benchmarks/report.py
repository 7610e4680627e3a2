"""What a run measured: its rows, its JSON and its Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """Something that is measured, what it is held against, and how many times that it may take."""

    key: str
    what: str
    against: str = "floor"
    goal: float | None = None


ROWS = (
    Row("cold", "`dev.up`, cold: initdb to a healthy API", goal=1.5),
    Row("warm", "`dev.up`, warm: existing data", goal=1.8),
    Row("second", "`dev.up` again, everything runs", against="`inv --list`", goal=3.0),
    Row("health", "`health` of a running stack", against="`inv --list`", goal=2.5),
    Row("restart", "`dev.restart`"),
    Row("api", "`api.stop api.start`"),
    Row("down", "`dev.down`"),
)

FIRST = "first"
"""The very first ``dev.up``, which also unpacks PostgreSQL and compiles the modules."""


@dataclass
class Samples:
    """Seconds by what was measured, in the order of measuring."""

    floor: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ours: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that says whose machine it is."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def results(samples: Samples, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything as JSON: medians, ratios, goals, and each single figure."""
    rows = []
    for row in ROWS:
        floor, ours = samples.floor[row.key], samples.ours[row.key]
        ratio = statistics.median(ours) / statistics.median(floor)
        rows.append(
            {
                "key": row.key,
                "what": row.what,
                "against": row.against,
                "floor_s": round(statistics.median(floor), 4),
                "ours_s": round(statistics.median(ours), 4),
                "ratio": round(ratio, 3),
                "goal": row.goal,
                "met": None if row.goal is None else ratio <= row.goal,
                "floor_samples_s": [round(s, 4) for s in floor],
                "ours_samples_s": [round(s, 4) for s in ours],
            }
        )
    return {"machine": facts, "first_s": round(samples.ours[FIRST][0], 3), "rows": rows}


def markdown(answer: dict[str, Any]) -> str:
    """The table and the machine that it was measured on."""
    lines = [
        "| what | floor median s | ours median s | ratio | goal | met? |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in answer["rows"]:
        floor = f"{row['floor_s']:.3f}" + ("" if row["against"] == "floor" else f" ({row['against']})")
        goal = "" if row["goal"] is None else f"≤ {row['goal']:g}"
        met = {None: "", True: "yes", False: "**no**"}[row["met"]]
        lines.append(f"| {row['what']} | {floor} | {row['ours_s']:.3f} | {row['ratio']:.2f} | {goal} | {met} |")
    m = answer["machine"]
    lines += [
        "",
        f"{m['system']}, {m['cores']} cores, Python {m['python']}, PostgreSQL {m['postgresql']}, "
        f"PgBouncer {m['pgbouncer']}; {m['rounds']} rounds, load {m['load_before']:.2f} before and "
        f"{m['load_after']:.2f} after. Spread (lowest to highest, s):",
        "",
    ]
    for row in answer["rows"]:
        floor, ours = row["floor_samples_s"], row["ours_samples_s"]
        lines.append(
            f"- {row['what']}: floor {min(floor):.3f} to {max(floor):.3f}, ours {min(ours):.3f} to {max(ours):.3f}"
        )
    lines += ["", f"Once a machine: the very first `dev.up`, which unpacks PostgreSQL, took {answer['first_s']:.1f} s."]
    return "\n".join(lines) + "\n"


def verdict(answer: dict[str, Any]) -> str:
    """In one line, which goals were missed."""
    missed = [row for row in answer["rows"] if row["met"] is False]
    if not missed:
        return "every goal was met"
    texts = [
        f"{row['what']} took {row['ratio']:.2f} x {row['against']}, the goal is {row['goal']:g} x" for row in missed
    ]
    return "MISSED: " + "; ".join(texts)
