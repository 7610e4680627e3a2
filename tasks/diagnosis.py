"""How the machine and a bundle look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from devstack import console
from devstack.errors import FAILED

if TYPE_CHECKING:
    from devstack.bundle import Bundle
    from devstack.system import Fact


def show_system(facts: list[Fact], *, as_json: bool, where: str = "here") -> int:
    """What a machine has; exit code 1 when the stack could not start there."""
    missing = [fact for fact in facts if fact.needed and fact.ok is False]
    if as_json:
        console.data({"can_start": not missing, "facts": [msgspec.to_builtins(fact) for fact in facts]})
        return FAILED if missing else 0
    width = max(console.width(fact.name) for fact in facts if console.width(fact.name) <= 40)
    for topic in dict.fromkeys(fact.topic for fact in facts):
        console.out(console.paint(topic, "bold"))
        for fact in (f for f in facts if f.topic == topic):
            origin = console.paint(f"  {fact.origin}", "dim") if fact.origin else ""
            value = console.pad(fact.value, 24) if origin else fact.value
            console.out(f"  {_mark(fact)}  {console.pad(fact.name, width)}  {value}{origin}")
            if fact.advice:
                console.out(f"      {' ' * width}  {fact.advice}")
        console.out()
    if missing:
        console.out(f"The stack can't start {where}: {', '.join(f'{fact.topic} {fact.name}' for fact in missing)}.")
    else:
        console.out(f"The stack can start {where}.")
    return FAILED if missing else 0


def _mark(fact: Fact) -> str:
    if fact.ok is None:
        return "  "
    if fact.ok:
        return console.paint("ok", "good")
    return console.paint("!!", "bad") if fact.needed else console.paint("--", "warn")


def show_bundle(bundle: Bundle, *, as_json: bool) -> None:
    """What is in a bundle, and what to do before it is sent."""
    if as_json:
        console.data(msgspec.to_builtins(bundle, enc_hook=str) | {"path": str(bundle.path)})
        return
    console.out(f"{bundle.path}  ({console.size(bundle.size)})")
    console.out()
    rows = [(entry.name, console.size(entry.size), entry.problem or entry.what) for entry in bundle.entries]
    for line in console.table(rows, ("file", "size", "what it is"), right=[1]):
        console.out(line)
    console.lines(
        "\nPasswords, tokens and the values of .env and api.env are replaced by ***, as far as they are known."
        "\nLook through it before you send it; its logs are your application's own."
    )
