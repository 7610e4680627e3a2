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
    unit: str = "s"
    """``MB`` where bytes are measured."""


ROWS = (
    Row("cold", "`dev.up`, cold: no data, to a healthy API", against="floor, with initdb", goal=0.75),
    Row("prepare", "the first cold `dev.up` with these settings", against="floor, with initdb", goal=1.3),
    Row("copy", "`dev.up`, cold", against="`dev.up`, warm", goal=1.5),
    Row("warm", "`dev.up`, warm: existing data", goal=1.8),
    Row("second", "`dev.up` again, everything runs", against="`inv --list`", goal=3.0),
    Row("health", "`health` of a running stack", against="`inv --list`", goal=2.5),
    Row("restart", "`dev.restart`"),
    Row("api", "`api.stop api.start`"),
    Row("down", "`dev.down`"),
    Row("containers", "`dev.up` on Podman, existing data", against="three `podman run`", goal=1.3),
    Row("compose", "`dev.up` on Podman, existing data", against="`podman-compose up`"),
    Row("ssh_cold", "`dev.up` over SSH on loopback, cold", against="without SSH", goal=1.5),
    Row("ssh_warm", "`dev.up` over SSH on loopback, existing data", against="without SSH", goal=1.5),
    Row("ssh_health", "`health` over SSH on loopback", against="without SSH"),
    Row("ssh_memory", "memory of `data.backup` over SSH", against="a tenth of the rows", goal=1.2, unit="MB"),
    Row("backup", "`data.backup`, compressed and verified", against="`pg_dump > /dev/null`", goal=1.3),
    Row(
        "restore_alone",
        "`data.restore --no-safety-backup`: judged, filled, analysed, counted, switched",
        against="`psql` of the same dump",
        goal=1.3,
    ),
    Row(
        "restore",
        "`data.restore`, with a verified backup of what is there beside it",
        against="`psql` of the same dump",
    ),
    Row("backup_memory", "memory of `data.backup`", against="a tenth of the rows", goal=1.2, unit="MB"),
    Row("restore_memory", "memory of `data.restore`", against="a tenth of the rows", goal=1.2, unit="MB"),
    Row("increment", "`data.backup --incremental`, 1 % of the rows changed", against="full", goal=0.05, unit="MB"),
)

FIRST = "first"
"""The very first ``dev.up``, which also unpacks PostgreSQL and compiles the modules."""


@dataclass
class Samples:
    """Seconds, or bytes, by what was measured, in the order of measuring."""

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
        if not (floor and ours):
            continue
        ratio = statistics.median(ours) / statistics.median(floor)
        suffix, scale = ("s", 1) if row.unit == "s" else ("mb", 1_000_000)
        rows.append(
            {
                "key": row.key,
                "what": row.what,
                "against": row.against,
                "unit": row.unit,
                f"floor_{suffix}": round(statistics.median(floor) / scale, 4),
                f"ours_{suffix}": round(statistics.median(ours) / scale, 4),
                "ratio": round(ratio, 3),
                "goal": row.goal,
                "met": None if row.goal is None else ratio <= row.goal,
                f"floor_samples_{suffix}": [round(s / scale, 4) for s in floor],
                f"ours_samples_{suffix}": [round(s / scale, 4) for s in ours],
            }
        )
    first = {"first_s": round(samples.ours[FIRST][0], 3)} if samples.ours[FIRST] else {}
    return {"machine": facts, **first, "rows": rows}


def markdown(answer: dict[str, Any]) -> str:
    """The table and the machine that it was measured on."""
    lines = [
        "| what | floor, median | ours, median | ratio | goal | met? |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in answer["rows"]:
        floor = _figure(row, "floor") + ("" if row["against"] == "floor" else f" ({row['against']})")
        goal = "" if row["goal"] is None else f"≤ {row['goal']:g}"
        met = {None: "", True: "yes", False: "**no**"}[row["met"]]
        lines.append(f"| {row['what']} | {floor} | {_figure(row, 'ours')} | {row['ratio']:.2f} | {goal} | {met} |")
    m = answer["machine"]
    lines += [
        "",
        f"{m['system']}, {m['cores']} cores, Python {m['python']}, PostgreSQL {m['postgresql']}, "
        f"PgBouncer {m['pgbouncer']}; {m['rounds']} rounds, load {m['load_before']:.2f} before and "
        f"{m['load_after']:.2f} after.",
    ]
    if "data_bytes" in m:
        lines[-1] += (
            f" Backups and restores: {m['data_rounds']} rounds on {m['data_rows']:,} memories in"
            f" {m['data_bytes'] / 1e6:,.0f} MB, without their index of vectors."
        )
    lines += ["", "Spread (lowest to highest):", ""]
    for row in answer["rows"]:
        spread = ", ".join(
            f"{side} {min(found):.3f} to {max(found):.3f} {row['unit']}"
            for side in ("floor", "ours")
            if (found := row[f"{side}_samples_{row['unit'].lower()}"])
        )
        lines.append(f"- {row['what']}: {spread}")
    if "first_s" in answer:
        lines += [
            "",
            f"Once a machine: the very first `dev.up`, which unpacks PostgreSQL, took {answer['first_s']:.1f} s.",
        ]
    return "\n".join(lines) + "\n"


def _figure(row: dict[str, Any], side: str) -> str:
    figure = row[f"{side}_{row['unit'].lower()}"]
    return f"{figure:.3f} s" if row["unit"] == "s" else f"{figure:,.1f} MB"


def verdict(answer: dict[str, Any]) -> str:
    """In one line, which goals were missed."""
    missed = [row for row in answer["rows"] if row["met"] is False]
    if not missed:
        return "every goal was met"
    texts = [f"{row['what']}: {row['ratio']:.2f} x {row['against']}, the goal is {row['goal']:g} x" for row in missed]
    return "MISSED: " + "; ".join(texts)
