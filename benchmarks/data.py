"""Backups and restores beside PostgreSQL's own programs, on a database that ``data.generate`` made.

Its index of vectors is left out: building it takes the same minutes on either side, which would hide everything else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.floor import Floor
from benchmarks.report import Samples
from benchmarks.workspace import BenchmarkError, CommandLine

ROW_BYTES = 2_140
"""Of a memory with its vector and indexes, in the database."""
PART = 10
"""The small database is this part of the large one."""
PATIENCE = 3_600.0
"""Seconds that a command on the large database may take."""


class Data:
    """A stack whose database is filled, backed up and restored; it runs."""

    def __init__(self, line: CommandLine) -> None:
        line.patience = PATIENCE
        self.line = line
        line.inv("dev.up")
        self.floor = Floor(line)
        folder = line.workspace.folder / "backups"
        line.environ["INVOKE_DATA_DIR"] = str(folder)
        self.backups = folder / line.env
        self.sql("DROP INDEX memories_embedding")

    def close(self) -> None:
        self.line.inv("dev.down")

    def measure(self, samples: Samples, *, rounds: int, megabytes: int) -> dict[str, Any]:
        """All rows of the report, and what they were measured on.

        :raises BenchmarkError: something does not run.
        """
        rows = megabytes * 1_000_000 // ROW_BYTES
        small = rows // PART
        self._generate(small, seed=1)
        for key, peak in (("backup_memory", self.backup()[1]), ("restore_memory", self.restore(self._made())[1])):
            samples.floor[key].append(peak)
        self._generate(rows - small, seed=2)
        size = int(self.sql("SELECT pg_database_size(current_database())"))
        self._clear()
        for number in range(1, rounds + 1):
            self._round(samples)
            print(f"data, round {number} of {rounds}", file=sys.stderr, flush=True)
        if int(self.sql("SHOW server_version_num")) >= 170_000:
            self._increment(samples, rows)
        return {"data_bytes": size, "data_rows": rows, "data_rounds": rounds}

    def _round(self, samples: Samples) -> None:
        """Floor and ours in turn; before each figure the disk is at rest."""
        self._rest()
        samples.floor["backup"].append(self._program("pg_dump", stdout=Path(os.devnull)))
        self._rest()
        seconds, peak = self.backup()
        samples.ours["backup"].append(seconds)
        samples.ours["backup_memory"].append(peak)
        dump = self._made()

        plain = self.line.workspace.folder / "dump.sql"
        with plain.open("wb") as file:
            subprocess.run(["gzip", "-dc", str(dump)], stdout=file, check=True)
        self.sql("CREATE DATABASE bare TEMPLATE template0", database="postgres")
        self._rest()
        words = ["psql", "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, "-f", str(plain)]
        samples.floor["restore"].append(self._program(*words, database="bare"))
        self.sql("DROP DATABASE bare", database="postgres")
        plain.unlink()
        samples.floor["restore_alone"].append(samples.floor["restore"][-1])
        self._rest()
        samples.ours["restore_alone"].append(self.restore(dump, "--no-safety-backup")[0])
        self._rest()
        seconds, peak = self.restore(dump)
        samples.ours["restore"].append(seconds)
        samples.ours["restore_memory"].append(peak)
        self._clear()

    def _increment(self, samples: Samples, rows: int) -> None:
        # as autovacuum does it within minutes of a restore: until then whoever reads a row first changes its page
        self.sql("VACUUM memories")
        self.line.inv("data.backup", "--incremental")
        base = self._manifest(self._made())
        # those that were written one after the other, as those of a day are
        self.sql(
            "UPDATE memories SET content = content || '.' WHERE id IN"
            f" (SELECT id FROM memories ORDER BY ctid LIMIT {rows // 100})"
        )
        self.line.inv("data.backup", "--incremental")
        made = self._manifest(self._made())
        if made["kind"] != "incremental":
            raise BenchmarkError("the second copy of the cluster was not an incremental one")
        samples.floor["increment"].append(base["bytes"])
        samples.ours["increment"].append(made["bytes"])

    # ours

    def backup(self) -> tuple[float, int]:
        """Seconds, and bytes of memory at the most."""
        return self.line.inv("data.backup"), self.line.peak

    def restore(self, dump: Path, *flags: str) -> tuple[float, int]:
        """All of it: the file judged, what is there backed up, the new database filled, compared, switched to."""
        return self.line.inv("data.restore", "--file", dump.name, *flags), self.line.peak

    def _generate(self, rows: int, *, seed: int) -> None:
        self.line.inv("data.generate", "--rows", str(rows), "--seed", str(seed))

    def _made(self) -> Path:
        """The newest backup."""
        found = [path.with_suffix("") for path in self.backups.glob("backup-*.json")]
        return max(found, key=lambda path: int(self._manifest(path)["sequence"]))

    def _manifest(self, backup: Path) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(backup.with_name(f"{backup.name}.json").read_text())
        return manifest

    def _clear(self) -> None:
        """No backups, and no database that a restore kept: the disk is as full in every round."""
        shutil.rmtree(self.backups)
        kept = self.sql("SELECT datname FROM pg_database WHERE datname LIKE 'nina\\_old\\_%'", database="postgres")
        for name in kept.splitlines():
            self.sql(f"DROP DATABASE {name}", database="postgres")

    # PostgreSQL's own

    def sql(self, statement: str, *, database: str = "nina") -> str:
        words = [str(self.floor.bin / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement]
        done = subprocess.run(words, env=self._environ(database), capture_output=True, text=True)
        if done.returncode != 0:
            raise BenchmarkError(f"{statement}: {done.stderr.strip()}")
        return done.stdout.strip()

    def _program(self, name: str, *words: str, database: str = "nina", stdout: Path | None = None) -> float:
        with (stdout or self.line.workspace.output).open("ab") as output:
            began = time.perf_counter()
            done = subprocess.run(
                [str(self.floor.bin / name), *words],
                env=self._environ(database),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
            )
            seconds = time.perf_counter() - began
        if done.returncode != 0:
            raise BenchmarkError(f"{name}: {done.stderr.decode(errors='replace').strip()}")
        return seconds

    def _environ(self, database: str) -> dict[str, str]:
        own = {"PGHOST": self.floor.sockets, "PGPORT": str(self.line.ports["db"]), "PGUSER": "postgres"}
        return {**self.floor.environ, **own, "PGDATABASE": database}

    def _rest(self) -> None:
        self.sql("CHECKPOINT", database="postgres")
        os.sync()
