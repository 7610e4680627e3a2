"""Measure the stack beside the floor, interleaved: ``python -m benchmarks [--rounds N] [--only PART]
[--json FILE] [--quick]``.

The exit code is 0 whatever the figures: a timing never decides. It is 1 when something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.data import Data
from benchmarks.floor import Floor
from benchmarks.report import FIRST, Samples, machine, markdown, results, verdict
from benchmarks.workspace import BenchmarkError, CommandLine, Workspace, free_ports, workspace

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "latest.json"
PARTS = ("stack", "containers", "remote", "data")
ROUNDS = {"stack": 7, "containers": 5, "remote": 5, "data": 3}
SERVICES = ("db", "pgb", "api")


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended and removed
    try:
        answer = measure(options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    text = markdown(answer)
    print(text)
    print(verdict(answer))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")
        options.json.with_suffix(".md").write_text(text)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the stack beside the floor.")
    parser.add_argument("--rounds", type=int, help="rounds to measure (7; 3 of backups and restores)")
    parser.add_argument("--only", choices=PARTS, help="a part; nothing is written without --json")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help=f"write here and beside it as .md ({_shown(RESULTS)})"
    )
    parser.add_argument(
        "--quick", action="store_true", help="two rounds, a tenth of the rows, nothing is written without --json"
    )
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    if options.json is None and not options.quick and not options.only:
        options.json = RESULTS
    return options


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds.

    :raises BenchmarkError: something does not run.
    """
    samples = Samples()
    parts = [options.only] if options.only else PARTS
    rounds = {part: options.rounds or (2 if options.quick else count) for part, count in ROUNDS.items()}
    with workspace(ROOT) as here:
        facts = {**machine(), "rounds": rounds[parts[0]], "load_before": os.getloadavg()[0]}
        if "stack" in parts:
            facts |= _measure_stack(here, samples, rounds["stack"])
        if "containers" in parts:
            facts |= _measure_containers(here, samples, rounds["containers"])
        if "remote" in parts:
            facts |= _measure_remote(here, samples, rounds["remote"], megabytes=100 if options.quick else 1_000)
        if "data" in parts:
            line = CommandLine(here, "data", dict(zip(SERVICES, free_ports(3), strict=True)))
            _say("the database for backups and restores")
            data = Data(line)
            facts |= _versions(data.floor)
            try:
                facts |= data.measure(samples, rounds=rounds["data"], megabytes=100 if options.quick else 1_000)
            finally:
                data.close()
        facts["load_after"] = os.getloadavg()[0]
    return results(samples, facts)


def _measure_stack(here: Workspace, samples: Samples, rounds: int) -> dict[str, Any]:
    """What the stack's own figures were measured with."""
    ports = free_ports(6)
    # the floor's programs, arguments and files are those of a stack that was up once
    template = CommandLine(here, "floor", dict(zip(SERVICES, ports[:3], strict=True)))
    ours = CommandLine(here, "dev", dict(zip(SERVICES, ports[3:], strict=True)))
    _say("the first dev.up, which unpacks PostgreSQL")
    samples.ours[FIRST].append(ours.inv("dev.up"))
    ours.inv("dev.down")
    template.environ["INVOKE_DB_PREPARED"] = "false"  # the floor's initdb is the one in its log
    template.inv("dev.up")
    template.inv("dev.down")
    floor = Floor(template)
    try:
        for number in range(1, rounds + 1):
            began = time.perf_counter()
            _round(floor, ours, samples)
            _say(f"round {number} of {rounds}: {time.perf_counter() - began:.0f} s")
    finally:
        floor.stop()
    return _versions(floor)


def _measure_containers(here: Workspace, samples: Samples, rounds: int) -> dict[str, Any]:
    """On a Podman of the benchmark's own, as the tests have it; left out where that can't be."""
    import pytest

    from benchmarks.containers import Containers
    from tests.engines import provide

    template = CommandLine(here, "images", dict(zip(SERVICES, free_ports(3), strict=True)))
    try:
        with provide.podman(here.folder / "podman") as engine:
            template.inv("db.start")
            programs = json.loads((template.state / "choices.json").read_text())["postgres_bin"]
            template.inv("db.stop")
            _say("the images")
            provide.make_images(engine, here.folder / "images", Path(programs).parent)
            line = CommandLine(here, "box", dict(zip(SERVICES, free_ports(3), strict=True)))
            Containers(line, engine).measure(samples, rounds)
            chosen = json.loads((line.state / "choices.json").read_text())
            return {"postgresql": chosen["postgres_version"], "pgbouncer": chosen["pgbouncer_version"]}
    except pytest.skip.Exception as why:
        _say(f"containers: left out, {why}")
        return {"postgresql": "none", "pgbouncer": "none"}


def _measure_remote(here: Workspace, samples: Samples, rounds: int, *, megabytes: int) -> dict[str, Any]:
    """Over SSH; left out where there can be no server."""
    import pytest

    from benchmarks.remote import Remote, over_ssh

    lines = [CommandLine(here, env, dict(zip(SERVICES, free_ports(3), strict=True))) for env in ("near", "far")]
    try:
        with over_ssh(lines[1]):
            Remote(*lines).measure(samples, rounds=rounds, megabytes=megabytes)
    except pytest.skip.Exception as why:
        _say(f"over SSH: left out, {why}")
        return {"postgresql": "none", "pgbouncer": "none"}
    chosen = json.loads((lines[0].state / "choices.json").read_text())
    return {"postgresql": chosen["postgres_version"], "pgbouncer": chosen["pgbouncer_version"]}


def _versions(floor: Floor) -> dict[str, Any]:
    return {"postgresql": _version(floor.bin / "postgres", floor.environ), "pgbouncer": _pgbouncer(floor)}


def _round(floor: Floor, ours: CommandLine, samples: Samples) -> None:
    """Each thing once, floor and ours in turn, so that a drift of the machine hits both. Only one side runs at a
    time; before each figure the disk is at rest."""
    floor.reset()
    os.sync()
    samples.floor["cold"].append(floor.cold())
    samples.floor["down"].append(floor.stop())
    ours.forget_clusters()
    ours.reset()
    os.sync()
    samples.floor["prepare"].append(samples.floor["cold"][-1])
    samples.ours["prepare"].append(ours.inv("dev.up"))
    ours.inv("dev.down")
    ours.reset()
    os.sync()
    samples.ours["cold"].append(ours.inv("dev.up"))
    for _ in range(2):
        samples.floor["second"].append(ours.inv("--list"))
        samples.ours["second"].append(ours.inv("dev.up"))
        samples.floor["health"].append(ours.inv("--list"))
        samples.ours["health"].append(ours.inv("health"))
    samples.ours["down"].append(ours.inv("dev.down"))

    os.sync()
    samples.floor["warm"].append(floor.warm())
    samples.floor["api"].append(floor.restart_api())
    samples.floor["restart"].append(floor.restart())
    floor.stop()
    os.sync()
    samples.ours["warm"].append(ours.inv("dev.up"))
    samples.ours["copy"].append(samples.ours["cold"][-1])
    samples.floor["copy"].append(samples.ours["warm"][-1])
    samples.ours["api"].append(ours.inv("api.stop", "api.start"))
    samples.ours["restart"].append(ours.inv("dev.restart"))
    ours.inv("dev.down")


def _version(program: Path, environ: dict[str, str]) -> str:
    """A program's version, such as 18.0."""
    answer = subprocess.run([str(program), "--version"], capture_output=True, text=True, env=environ).stdout
    match = re.search(r"\d+(\.\d+)+", answer)
    return match[0] if match else "unknown"


def _pgbouncer(floor: Floor) -> str:
    (program,) = re.findall(r"^exec (\S+)", floor.launchers["pgb"].read_text(), re.MULTILINE)
    return _version(Path(program), floor.environ)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
