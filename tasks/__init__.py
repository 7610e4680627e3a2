"""The root collection: what a person types, one file a namespace."""

from __future__ import annotations

import os
import sys

from invoke import Collection

from tasks import api, commandline, data, db, dev, everywhere, health, pgb, remote, session, system

session.have_streams()
sys.excepthook = session.explain
commandline.take_over()
session.take_environment(os.environ)
session.heed_the_terminal()

ns = Collection()
for module in (dev, db, pgb, api, data, remote):
    ns.add_collection(Collection.from_module(module))
ns.add_task(health.health)
ns.add_task(system.system_info)
ns.add_task(system.metrics)
everywhere.offer(ns)

if main := sys.modules.get("invoke.main"):
    # `inv` has split its words by now, and is about to look for tasks among them
    session.take_path(getattr(getattr(main.program, "core", None), "unparsed", []), ns.task_names)
