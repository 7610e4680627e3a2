"""The root collection: what a person types, one file a namespace."""

from __future__ import annotations

from invoke import Collection

from tasks import api, data, db, dev, everywhere, health, pgb, remote, system

ns = Collection()
for module in (dev, db, pgb, api, data, remote):
    ns.add_collection(Collection.from_module(module))
ns.add_task(health.health)
ns.add_task(system.system_info)
ns.add_task(system.metrics)
everywhere.offer(ns)
