"""The ports and settings of a stack, as facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devstack.errors import StackError
from devstack.settings import FIELDS, SECRETS, Settings
from devstack.system import Fact

if TYPE_CHECKING:
    from devstack.services import Service
    from devstack.stack import Stack


def ports(stack: Stack) -> list[Fact]:
    """Each port: free, ours, or held by somebody else, which keeps the stack from starting."""
    try:
        states = stack.context.states(stack.names)
    except StackError as error:
        return [Fact("ports", "runtime", f"{error.what}: {error.why}", False, "; ".join(error.fix))]
    return [_port(stack, service, running=states[service.name].running) for service in stack.services]


def _port(stack: Stack, service: Service, *, running: bool) -> Fact:
    exposure = stack.settings.exposure(service.label)

    def fact(value: str, advice: str = "") -> Fact:
        value = f"{value}; {exposure}" if exposure else value
        return Fact("ports", str(service.port), value, not advice, advice, bool(advice), service.port)

    if running:
        return fact(f"in use by {service.name}")
    try:
        holder = stack.context.host.port_holder(service.bind, service.port)
    except StackError as error:
        return fact(f"{error.what}: {error.why}", "; ".join(error.fix))
    if holder is None:
        return fact(f"free, for {service.name}")
    if holder.stack == str(stack.paths.state):
        return fact(f"{holder}, left behind by this stack: the next start ends it")
    end = f"end it (kill {holder.pid})" if holder.pid else "end it"
    return fact(stack.context.mask(str(holder)), f"{end}, or set {service.label}.port for {service.name}")


def in_force(stack: Stack) -> list[Fact]:
    """Every setting with its value and origin, those first that the project's invoke.yaml does not say."""
    project = str(stack.settings.root / "invoke.yaml")
    facts = [
        Fact("settings", path, stack.context.mask(shown(stack.settings, path)), origin=stack.settings.origin(path))
        for path in FIELDS
    ]
    return sorted(facts, key=lambda fact: fact.origin in (project, "the default"))


def shown(settings: Settings, path: str) -> str:
    """A setting's value for the screen; of secrets only whether and where there are any."""
    section, _, name = path.partition(".")
    value: Any = getattr(getattr(settings, section), name)
    if path not in SECRETS:
        return repr(value)
    if isinstance(value, dict):
        return repr(dict.fromkeys(value, "***"))
    return "***" if value is not None else "*** generated"
