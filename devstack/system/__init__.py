"""What the stack needs, and what this machine has. Asking changes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from devstack.stack import Stack


class Fact(Struct, frozen=True):
    """One thing about the machine. ``ok`` is None where it can't be right or wrong; ``advice`` mends what is not."""

    topic: str
    name: str
    value: str
    ok: bool | None = None
    advice: str = ""
    needed: bool = False
    """Whether the stack can't start as long as this is not right."""
    number: int | None = None
    """The value for a program: bytes, or a count."""
    origin: str = ""
    """Where a setting's value came from."""


def system_information(stack: Stack) -> list[Fact]:
    """Everything worth knowing before a start, or in a report of a problem."""
    from devstack.system import machine, programs, settings

    with ThreadPoolExecutor(max_workers=16) as pool:
        # what asks other programs begins first and is collected last
        asked = programs.Survey(stack, pool)
        folders = pool.submit(machine.folders, stack)
        facts = [*machine.hardware(stack), *machine.disks(stack)]
        if stack.context.runtime.contained:
            services = programs.in_images(stack)
        else:
            services = [*programs.postgres(stack, asked), *programs.pgbouncer(stack)]
        return [
            *facts,
            *asked.engines(),
            programs.runtime(stack, asked),
            *services,
            *asked.tools(),
            *settings.ports(stack),
            *folders.result(),
            *settings.in_force(stack),
        ]
