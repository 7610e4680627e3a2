"""The stack over SSH, on a server of the benchmark's own on loopback, beside the same stack without it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.data import PART, PATIENCE, ROW_BYTES
from benchmarks.report import Samples
from benchmarks.workspace import CommandLine
from tests.remote import host as hosts


class Remote:
    """Two environments of one checkout: one here, one on the host."""

    def __init__(self, here: CommandLine, there: CommandLine) -> None:
        self.here, self.there = here, there

    def measure(self, samples: Samples, *, rounds: int, megabytes: int) -> None:
        """Each thing once a round, here and there in turn."""
        for line in (self.here, self.there):
            line.inv("dev.up")
            line.inv("dev.down")
        for number in range(1, rounds + 1):
            for line, found in ((self.here, samples.floor), (self.there, samples.ours)):
                line.reset()
                os.sync()
                found["ssh_cold"].append(line.inv("dev.up"))
                line.inv("health")
                found["ssh_health"].append(line.inv("health"))
                line.inv("dev.down")
                os.sync()
                found["ssh_warm"].append(line.inv("dev.up"))
                line.inv("dev.down")
            print(f"over SSH, round {number} of {rounds}", file=sys.stderr, flush=True)
        self._backups(samples, megabytes * 1_000_000 // ROW_BYTES)

    def _backups(self, samples: Samples, rows: int) -> None:
        """The memory of the command here, while the backup is made there and comes."""
        line = self.there
        line.patience = PATIENCE
        line.inv("dev.up")
        # building it would take minutes, and none of them is the backup's
        line.inv("db.shell", "--command", "DROP INDEX memories_embedding")
        try:
            for count, found in ((rows // PART, samples.floor), (rows - rows // PART, samples.ours)):
                line.inv("data.generate", "--rows", str(count), "--seed", str(count))
                line.inv("data.backup")
                found["ssh_memory"].append(line.peak)
        finally:
            line.inv("dev.down")


@contextmanager
def over_ssh(line: CommandLine) -> Iterator[None]:
    """Have a command line work on a host that is this machine."""
    folder = line.workspace.folder / "box"
    folder.mkdir()
    with hosts.beside(folder) as box:
        box.know()
        settings = line.workspace.checkout / "invoke.yaml"
        settings.write_text(f"{settings.read_text()}\nssh_config_path: {box.config}\n")
        line.environ |= {
            "NV_HOST": "box",
            "INVOKE_REMOTE_DIR": str(line.workspace.folder / "there"),
            "INVOKE_REMOTE_PYTHON": sys.executable,
        }
        yield
