"""Backups that are proven, restores that can't lose anything."""
