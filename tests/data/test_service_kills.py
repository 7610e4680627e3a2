"""Services and their supervisor, killed while a command runs and a client commits rows."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import Rounds
from tests.data.campaigns import LONGEST, OTHERS, Busy, Ledger, busy_stack, check_clear, commands, telling

VICTIMS = ["nv-db", "nv-pgbouncer", "nv-api", "a backend", "the supervisor"]


@pytest.fixture(scope="module")
def stack(workspace: Path, cache: Path) -> Iterator[Busy]:
    with busy_stack(workspace, cache) as made:
        yield made


def victim(stack: Busy, name: str, chance: random.Random) -> psutil.Process | None:
    """Return a process to kill; None if it does not run at this moment."""
    with contextlib.suppress(psutil.Error, OSError, ValueError, IndexError):
        if name in ("nv-db", "a backend"):
            server = psutil.Process(int((stack.data / "postmaster.pid").read_text().split()[0]))
            return server if name == "nv-db" else chance.choice(server.children())
        supervisor = psutil.Process(int((stack.state / "run" / "supervisord.pid").read_text()))
        if name == "the supervisor":
            return supervisor
        return next((child for child in supervisor.children() if child.environ().get("NV_SERVICE") == name), None)
    return None


@pytest.mark.campaign
def test_a_service_killed_while_a_command_runs_costs_no_row_and_the_next_start_is_healthy(
    stack: Busy, chance: random.Random, rounds: Rounds
) -> None:
    ledger = Ledger(stack)
    counts: Counter[str] = Counter()
    for number in rounds(300, share=60):
        name, known = chance.choice(VICTIMS), {**commands(stack, chance), **OTHERS}
        words, moment = known[chance.choice(list(known))], chance.uniform(0.1, 2.0)
        story = [f"round {number}: {name} killed {moment:.2f} s after the start of inv {' '.join(words)}"]
        with telling(story):
            ledger.mark()
            with stack.written() as acknowledged:
                process = stack.popen(*words)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(moment)
                if found := victim(stack, name, chance):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        found.kill()
                stdout, stderr = process.communicate(timeout=LONGEST)
                story += [f"killed {found}; it ended with {process.returncode}", stdout, stderr]
                check_clear(words, process.returncode, stdout, stderr)
                done = stack.inv("dev.up")
                story += ["inv dev.up", done.stdout, done.stderr]
            stack.inv("health", "--wait", "20")
            stack.check_well()
            ledger.check(acknowledged)
            if number % 20 == 19:
                stack.tidy()
        counts[f"{name}: {words[0]} ended with {process.returncode}" if found else "nothing to kill"] += 1
    print(dict(sorted(counts.items())))
    stack.check_nothing_left()
