"""Exports of a project that was never started."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Project, directory_of_its_own

HERE = Path(__file__).parent
USUAL = {"INVOKE_DB_PORT": "5433", "INVOKE_PGB_PORT": "6432", "INVOKE_API_PORT": "13370"}
PASSWORD = "a\"b'c\\d$e${HOME}`id`%n #: @/?&=+é\u2028ß🐘"
ODD = {"BOOL": "on", "NUMBER": "1e3", "HEX": "0x10", "NOTHING": "~", "LINES": "one\ntwo: three\n", "KUBE": "$(BOOL)"}
HOSTILE = {
    "INVOKE_DB_NAME": "on",
    "INVOKE_DB_USER": "0x10",
    "INVOKE_DB_PASSWORD": PASSWORD,
    "INVOKE_API_JWT_SECRET": PASSWORD[::-1],
    "INVOKE_DB_PARAMETERS": json.dumps({"work_mem": "8MB", "jit": False, "search_path": "\"$user\", 'a: b' #"}),
    "INVOKE_API_ENV": json.dumps({**{k: v.replace("$", "$$") for k, v in ODD.items()}, "URL": "$database_url"}),
    "INVOKE_API_HEALTH_PATH": "/health?a='b'&c=\"d\"$e",
    "INVOKE_API_MEMORY_PROVIDER": "no",
}


@pytest.fixture(scope="module")
def exporter(workspace: Path, cache: Path) -> Iterator[Exporter]:
    with directory_of_its_own(workspace) as folder:
        yield Exporter(folder, cache)


class Exporter(Project):
    """A project that writes exports."""

    def __init__(self, folder: Path, cache: Path) -> None:
        super().__init__(folder, cache)
        self.env |= USUAL

    def export(self, *words: str, **env: str) -> Path:
        """The folder that was written."""
        made = json.loads(self.inv("dev.export", *words, "--json", **env).stdout)  # type: ignore[arg-type]
        return Path(made["folder"])

    def normal(self, text: str) -> str:
        """A text without where this project is, which packages its images are built from, and digests of both."""
        text = re.sub(r"(nv-devstack-generated) [0-9a-f]{16}", r"\1 DIGEST", text.replace(str(self.root), "/project"))
        return re.sub(r"(localhost/nv-\w+):[0-9a-f]{12}", r"\1:DIGEST", text)


def golden(name: str, text: str) -> None:
    """Compare with a file beside the tests; ``NV_GOLDEN=1`` writes it."""
    file = HERE / name
    if os.environ.get("NV_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), f"NV_GOLDEN=1 pytest {HERE} writes it anew"


def documents(file: Path) -> list[Any]:
    return [found for found in yaml.safe_load_all(file.read_text()) if found]


def sourced(file: Path) -> Mapping[str, str]:
    """The variables that a shell has after it has read a file, in a clean environment."""
    script = '. "$1"; exec env -0'
    done = subprocess.run(["env", "-i", "/bin/sh", "-c", script, "sh", str(file)], capture_output=True, check=True)
    pairs = (entry.partition("=") for entry in done.stdout.decode().split("\0") if entry)
    return {name: value for name, _, value in pairs if name != "PWD"}
