"""Backups that are proven, restores that can't lose anything."""

from devstack.data.journal import restoring

__all__ = ["restoring"]
