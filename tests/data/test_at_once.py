"""Several commands at the same time on one stack, while a client commits rows."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Rounds
from tests.data.campaigns import LONGEST, OTHERS, Busy, Ledger, busy_stack, check_clear, commands, telling


@pytest.fixture(scope="module")
def stack(workspace: Path, cache: Path) -> Iterator[Busy]:
    with busy_stack(workspace, cache) as made:
        yield made


REPLACING = {"restore", "cluster", "undo"}
"""Commands that replace the database. Two of them may remove the copy that the first one has kept."""


@pytest.mark.campaign
def test_commands_at_the_same_time_wait_for_each_other_or_say_why_they_can_not(
    stack: Busy, chance: random.Random, rounds: Rounds
) -> None:
    ledger = Ledger(stack)
    counts: Counter[str] = Counter()
    for number in rounds(200, share=100):
        known = {**commands(stack, chance), **OTHERS}
        names = chance.choices(list(known), k=chance.randint(2, 4))
        while len(REPLACING.intersection(names)) > 1 or any(names.count(name) > 1 for name in REPLACING):
            names = chance.choices(list(known), k=len(names))
        story = [f"round {number}: {', '.join(' '.join(known[name]) for name in names)}"]
        with telling(story):
            ledger.mark()
            with stack.written() as acknowledged:
                running = []
                for name in names:
                    running.append((known[name], stack.popen(*known[name])))
                    time.sleep(chance.choice([0, 0.2, 0.5]))
                ended = [(words, process, process.communicate(timeout=LONGEST)) for words, process in running]
                for words, process, (stdout, stderr) in ended:
                    story += [f"inv {' '.join(words)} ended with {process.returncode}", stdout, stderr]
                    counts[f"{words[0]} ended with {process.returncode}"] += 1
                for words, process, (stdout, stderr) in ended:
                    check_clear(words, process.returncode, stdout, stderr)
                done = stack.inv("dev.up")
                story += ["inv dev.up", done.stdout, done.stderr]
            stack.inv("health", "--wait", "20")
            stack.check_well()
            ledger.check(acknowledged)
            if number % 20 == 19:
                stack.tidy()
    print(dict(sorted(counts.items())))
    stack.check_nothing_left()
