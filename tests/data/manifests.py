"""Manifests for tests: made up, and changed as anybody can who may write the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from devstack.data.manifest import Manifest, encode, path_of


def made_up(**changes: Any) -> Manifest:
    """Return a manifest of a backup that is not there."""
    fields = {
        "file": "backup-1.sql.gz",
        "sequence": 1,
        "kind": "full",
        "layout": "sql",
        "created": "2026-11-23T10:00:00.000+00:00",
        "seconds": 1.0,
        "sha256": "0" * 64,
        "bytes": 0,
        "raw_bytes": 0,
        "environment": "dev",
        "database": "nina",
        "database_bytes": 1,
        "owner": "nina",
        "system_identifier": "1",
        "server_version": "18.0",
        "tool_version": "18.0",
    }
    return Manifest(**{**fields, **changes})


def write(backup: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest of a backup, with the right checksum and the signature that it has."""
    path_of(backup).write_bytes(encode(msgspec.convert(content, Manifest)))
