"""Signatures of manifests: which backups this environment has made itself; and of what it has kept.

What was brought from another host, copied from a colleague, or made before signatures existed counts as foreign: its
dump is loaded all the same, by a role of its own, but nothing that it says of itself is believed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from devstack.errors import StackError

if TYPE_CHECKING:
    from devstack.data.manifest import Manifest
    from devstack.paths import Paths
    from devstack.stack import Stack

BYTES = 32
"""Length of the key."""

UNSIGNED = {"signature", "checksum", "file", "sequence", "pinned", "fetched_from"}
"""Fields that the signature does not cover: they say where a backup is kept, and for how long, not what it is."""


def sign(stack: Stack, manifest: Manifest) -> Manifest:
    """Return the manifest with this environment's signature.

    :raises StackError: the key is damaged.
    """
    return msgspec.structs.replace(manifest, signature=_signature(_key(stack), manifest))


def is_signed(paths: Paths, manifest: Manifest) -> bool:
    """Check whether this environment has signed a manifest."""
    try:
        key = paths.signing_key.read_bytes()
    except OSError:
        return False
    return len(key) == BYTES and hmac.compare_digest(
        _signature(key, manifest).encode(), manifest.signature.encode(errors="replace")
    )


def seal(stack: Stack, facts: Sequence[object]) -> str:
    """Return this environment's signature of facts, which are text and numbers.

    No signature of a manifest can be taken for one, nor the other way round: a manifest is signed as a JSON object,
    facts as a JSON array.

    :raises StackError: the key is damaged.
    """
    return _of_facts(_key(stack), facts)


def is_sealed(paths: Paths, facts: Sequence[object], signature: str) -> bool:
    """Check whether this environment has signed facts."""
    try:
        key = paths.signing_key.read_bytes()
    except OSError:
        return False
    return len(key) == BYTES and hmac.compare_digest(_of_facts(key, facts).encode(), signature.encode(errors="replace"))


def _of_facts(key: bytes, facts: Sequence[object]) -> str:
    return hmac.new(key, msgspec.json.encode(list(facts)), hashlib.sha256).hexdigest()


def _signature(key: bytes, manifest: Manifest) -> str:
    # empty fields are left out: a later version, which has more of them, comes to the same
    signed = {name: value for name, value in msgspec.to_builtins(manifest).items() if value and name not in UNSIGNED}
    return hmac.new(key, msgspec.json.encode(signed, order="deterministic"), hashlib.sha256).hexdigest()


def _key(stack: Stack) -> bytes:
    """Return the environment's key, made at the first call."""
    path, host = stack.paths.signing_key, stack.context.host
    key = host.read_file(path)
    if key is None:
        key = secrets.token_bytes(BYTES)
        try:
            host.write_file(path, key, 0o600, replace=False)
        except FileExistsError:  # another command's first moment too: there is one key
            key = path.read_bytes()
    if len(key) != BYTES:
        raise StackError(
            f"the key that signs backups, {path}, is damaged",
            why=f"it has {len(key)} bytes, not {BYTES}",
            fix="remove it: a new one is made, and the backups made until now count as foreign",
        )
    return key
