"""Several things at once, with one deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextvars import copy_context


def run_at_once(jobs: Iterable[Callable[[], object]], seconds: float) -> None:
    """Run each job in a thread of its own and wait until all have ended, at most so many seconds.

    What hangs is left behind and ends with this process: jobs leave their answers where the caller can see them, and
    raise nothing.
    """
    threads = [threading.Thread(target=copy_context().run, args=(job,), daemon=True) for job in jobs]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
