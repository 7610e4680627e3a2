"""Containers on another host: the same stack, its engine's commands run there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.provide import Engine
from tests.remote import host as hosts
from tests.remote.host import Remote

NAME = "ssh"


@pytest.fixture
def there(workspace: Path, cache: Path, podman: Engine) -> Iterator[Remote]:
    """An environment of its own: the engine may have that of other tests too."""
    folder = Path(tempfile.mkdtemp(dir=workspace))
    folder.chmod(0o755)
    box = folder / "box"
    box.mkdir()
    with hosts.beside(box, **podman.env) as host:
        host.know()
        made = Remote(folder, cache, host)
        made.env |= {**podman.settings, "INVOKE_STACK_RUNTIME": "podman", "NV_ENV": NAME}
        try:
            yield made
        finally:
            made.end()
            for kind in ("container", "volume", "network"):
                for name in podman.run(kind, "ls", "--format", "{{.Name}}{{.Names}}", check=False).split():
                    if name.startswith(f"nv-{NAME}"):
                        podman.run(kind, "rm", "--force", name, check=False)
    shutil.rmtree(folder, ignore_errors=True)


def test_up_health_backup_and_down(there: Remote, podman: Engine) -> None:
    there.inv("dev.up")
    names = podman.run("ps", "--format", "{{.Names}}").split()
    assert {f"nv-{NAME}-db", f"nv-{NAME}-pgbouncer", f"nv-{NAME}-api"} <= {*names}
    found = json.loads(there.inv("health", "--json").stdout)
    assert {service["verdict"] for service in found["services"]} == {"healthy"}
    there.sql("CREATE TABLE kept AS SELECT 7 AS n")
    made = json.loads(there.inv("data.backup", "--json").stdout)["file"]
    assert (there.root / "backups" / NAME / made).is_file()
    there.sql("DROP TABLE kept")
    there.inv("data.restore")
    assert "7" in there.sql("SELECT n FROM kept")
    there.inv("dev.down")
    assert not [name for name in podman.run("ps", "--all", "--format", "{{.Names}}").split() if f"nv-{NAME}-" in name]
