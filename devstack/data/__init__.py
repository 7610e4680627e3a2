"""Backups that are proven, restores that can't lose anything."""

from devstack.data.journal import restoring
from devstack.data.schedule import overdue

__all__ = ["overdue", "restoring"]
