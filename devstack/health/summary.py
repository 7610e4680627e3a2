"""The health summary as lines: the manner of the specification's section 4.2."""

from __future__ import annotations

from collections.abc import Sequence

from devstack import console
from devstack.errors import addressed
from devstack.escapes import one_line
from devstack.health.records import EXPOSURE, LOCALHOST, Check, Health, ServiceHealth, Verdict

TITLES = {"db": ("🗄️ ", "Database"), "pgb": ("🔄", "PgBouncer"), "api": ("🚀", "API Server")}
# each takes two columns on every terminal; those with a variation selector, as ⚠️ has, do not
MARKS: dict[Verdict, str] = {"healthy": "✅", "degraded": "🟡", "unhealthy": "❌", "stopped": "⚪", "unknown": "❓"}
COLOURS: dict[Verdict, str] = {
    "healthy": "good",
    "degraded": "warn",
    "unhealthy": "bad",
    "stopped": "dim",
    "unknown": "warn",
}
RULE = 39
ENDPOINTS = {"api": "API", "health": "Health", "metrics": "Metrics", "database": "Database"}


class Style:
    """How it is drawn: with emoji and lines, or in plain ASCII."""

    def __init__(self, *, plain: bool) -> None:
        self.plain = plain
        self.rule = ("=" if plain else "═") * RULE
        self.branch, self.last, self.stem = ("|-", "`-", "| ") if plain else ("├─", "└─", "│ ")

    def icon(self, icon: str) -> str:
        return "" if self.plain else f"{icon} "

    def tree(self, items: Sequence[Sequence[str]]) -> list[str]:
        """Items under a heading; the further lines of each below its first."""
        lines = []
        for number, item in enumerate(items, 1):
            final = number == len(items)
            lines.append(f"{self.last if final else self.branch} {item[0]}")
            lines += [f"{'  ' if final else self.stem}    {line}".rstrip() for line in item[1:]]
        return lines


def summary(health: Health, *, plain: bool, details: bool = False) -> list[str]:
    """The whole display; ``details`` adds every check."""
    style = Style(plain=plain)
    title = "NINAIVALAIGAL HEALTH SUMMARY"
    if health.environment != "dev":
        title += f" ({health.environment})"
    lines = [console.paint(style.icon("🏥") + title, "bold"), style.rule, ""]
    lines += [style.icon("📊") + "SYSTEM STATUS"]
    lines += style.tree([_service(service, health, style, details) for service in health.services])
    lines += ["", style.icon("📈") + "PERFORMANCE METRICS", *style.tree([[line] for line in _performance(health)])]
    endpoints = [[f"{ENDPOINTS[name]}: {_named(url, health)}"] for name, url in health.endpoints.items()]
    lines += ["", style.icon("🔗") + "ENDPOINTS", *style.tree(endpoints)]
    return lines


def _named(address: str, health: Health) -> str:
    """Return an address with the name ``localhost``, as the specification shows it; with 127.0.0.1 if another program
    can be reached by that name."""
    check = health.service("api").check(LOCALHOST)
    return address if check and not check.well else address.replace("127.0.0.1:", "localhost:")


def _service(service: ServiceHealth, health: Health, style: Style, details: bool) -> list[str]:
    icon, title = TITLES[service.service]
    word = console.paint(service.verdict.upper(), COLOURS[service.verdict])
    mark = style.icon(MARKS[service.verdict])
    address = _named(service.address, health) if service.service == "api" else service.address
    lines = [f"{style.icon(icon)}{title} ({service.name}): {mark}{word} ({address})"]
    if service.verdict != "healthy":
        lines += _labelled("because" if service.because_of else "cause", service.cause)
        lines += _labelled("fix", addressed(service.fix))
    exposure = service.check(EXPOSURE)
    if exposure and exposure.value and not details:
        lines += _labelled("note", exposure.text)
    more = (
        [c for c in service.checks if c.verdict == "degraded" and c.cause not in service.cause] if not details else []
    )
    said = {service.fix}
    for check in more:
        lines += _labelled("also", check.cause) + (
            _labelled("fix", addressed(check.fix)) if check.fix not in said else []
        )
        said.add(check.fix)
    if details:
        lines += [_check(check) for check in service.checks]
    return lines


def _labelled(label: str, text: str) -> list[str]:
    return [f"{label + ':':<8} {one_line(text)}"] if text else []


def _check(check: Check) -> str:
    word = {"healthy": "ok", "degraded": "warn", "stopped": "--"}.get(check.verdict, "bad")
    mark = console.paint(word, COLOURS[check.verdict]) + " " * (4 - len(word))
    return f"{mark}  {console.pad(check.name, 20)}  {one_line(check.text or check.cause)}"


def _performance(health: Health) -> list[str]:
    http = health.service("api").check("http")
    connections = health.service("db").check("connections")
    response = "unknown"
    if http and isinstance(http.value, float) and http.limit is not None:
        response = f"{http.value:.0f}ms (target: <{http.limit:.0f}ms)"
    used = [service.memory_bytes for service in health.services]
    allotted = sum(service.memory_limit_bytes or 0 for service in health.services)
    memory = f"{sum(filter(None, used)) >> 20}MB/{allotted >> 20}MB allocated" if any(used) else "unknown"
    return [
        f"API Response Time: {response}",
        f"Database Connections: {connections.text.removesuffix(' connections').replace(' of ', '/')} active"
        if connections and connections.text
        else "Database Connections: unknown",
        f"Memory Usage: {memory}",
    ]
