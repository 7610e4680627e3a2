"""The application's health: its health path, and what else it says of itself if it does."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import unquote, urlsplit

from devstack.errors import UsageError
from devstack.files import load_json
from devstack.health.findings import Findings, Probe, fastest
from devstack.health.records import LOCALHOST, Check, slow
from devstack.metrics.application import Requests
from devstack.metrics.sampling import sample_application
from devstack.services import NotReady
from devstack.services.api import Api
from devstack.settings import is_loopback, reachable_address

LONGEST_MS = 1e9
"""Latencies from here on, in milliseconds, are not taken for one."""


def probe_application(api: Api) -> Probe:
    """Its variables, its health path, and then what else it says: asked at the same time, one worker would answer them
    one after the other, and the time of the health path would be that of all."""

    def probe(findings: Findings) -> None:
        findings.add(_urls(api))
        answer = _health_path(api, findings)
        findings.add(answer)
        if answer.verdict != "unhealthy":
            findings.extend(_extras(api, findings))

    return probe


def probe_localhost(api: Api, pid: int) -> Probe:
    """Look at ``::1``, which the name ``localhost`` may lead to as well. Another account can listen there while the
    application has 127.0.0.1.

    :param pid: of the application.
    """

    def probe(findings: Findings) -> None:
        if api.bind != "127.0.0.1":
            return
        with findings.waiting_for("what listens on ::1"):
            stranger = api.context.host.stranger_on_ipv6(api.port, pid)
        findings.add(
            Check(
                name=LOCALHOST,
                text="nothing else listens on ::1",
                **slow(
                    stranger is not None,
                    f"localhost may lead to another program: {stranger}",
                    f"use {api.address}; end what listens there, or set api.port; then inv dev.up",
                ),
            )
        )

    return probe


def _health_path(api: Api, findings: Findings) -> Check:
    """The health path answers 2xx, and how soon."""
    path, limits = api.settings.api.health_path, api.settings.health
    try:
        with findings.waiting_for(f"the answer of {path}"):
            (status, body), ms = fastest(
                lambda: api.get(path, seconds=limits.timeout), limits.api_response_ms, limits.timeout / 2
            )
    except OSError as error:
        return _silent(api, error)
    if 200 <= status < 300:
        return Check(
            name="http",
            text=f"{path} answers {status} in {ms:.0f} ms",
            value=round(ms, 2),
            unit="ms",
            limit=limits.api_response_ms,
            **slow(
                ms > limits.api_response_ms,
                f"{path} took {ms:.0f} ms (target: <{limits.api_response_ms} ms)",
                "inv metrics shows what it is busy with; inv api.logs",
            ),
        )
    said = " ".join(api.context.mask(body.decode(errors="replace")).split())[:200]
    broken = status >= 500
    return Check(
        name="http",
        verdict="unhealthy",
        value=str(status),
        cause=f"{path} answers {status}{f': {said}' if said else ''}",
        fix="inv api.logs" if broken else f"set api.health_path{_why_another(path, status)}",
        remedy="restart" if broken else "",
        upstream=broken,
    )


def _why_another(path: str, status: int) -> str:
    """What is wrong with a health path that is answered by an application which works."""
    if status < 400:
        return f" to where {path} leads: no redirection is followed"
    if status in (401, 403):
        return " to one that asks for no login"
    return f"; {path} is not there" if status == 404 else " to one that answers GET with 2xx"


def _silent(api: Api, error: OSError) -> Check:
    path = api.settings.api.health_path
    refused = isinstance(error, ConnectionRefusedError)
    cause = f"{path} gave no answer: {error}"
    if refused:
        cause = f"nothing listens on port {api.port}, though its process runs: it is starting, or hangs before it does"
    elif isinstance(error, TimeoutError):
        cause = f"it takes connections, but {path} gave no answer within {api.settings.health.timeout:g} s"
    fix = "inv api.logs shows what it does; inv dev.heal restarts it"
    return Check(name="http", verdict="unhealthy", cause=cause, fix=fix, remedy="restart", upstream=True)


def _extras(api: Api, findings: Findings) -> list[Check]:
    """Pool and memory provider from the detailed health path, latencies from the metrics. An application without these
    is healthy on its health path alone."""
    details: dict[str, Any] = {}
    requests = None
    if path := api.settings.api.detail_path:
        with contextlib.suppress(OSError, ValueError), findings.waiting_for(f"the answer of {path}"):
            answer = load_json(api.get(path, seconds=api.settings.health.timeout)[1])
            details = answer if isinstance(answer, dict) else {}
    with contextlib.suppress(NotReady), findings.waiting_for(f"the answer of {api.settings.api.metrics_path}"):
        requests = sample_application(api).requests
    return [*_details(details), *_latencies(requests, details)]


def _latencies(requests: Requests | None, details: dict[str, Any]) -> list[Check]:
    """Percentiles from the metrics' histogram, or else as the detailed health path has them."""
    checks = []
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        seconds = requests.quantile(share) if requests else None
        ms = details.get(f"latency_ms_{name}") if seconds is None else seconds * 1000
        if isinstance(ms, int | float) and not isinstance(ms, bool) and abs(ms) < LONGEST_MS:
            checks.append(Check(name=f"latency {name}", text=f"{ms:.1f} ms", value=round(ms, 3), unit="ms"))
    return checks


def _details(content: dict[str, Any]) -> list[Check]:
    """No application has to have this: what is not as expected is left out."""
    checks = []
    db = content.get("db")
    if isinstance(db, dict) and type(db.get("active_connections")) is int:
        active, most = db["active_connections"], db.get("max_connections")
        text = f"{active}{f' of {most}' if type(most) is int else ''} connections of its pool in use"
        checks.append(Check(name="pool", text=text, value=active, unit="count"))
    provider = content.get("memory_provider")
    if isinstance(provider, dict) and isinstance(provider.get("healthy"), bool):
        name = str(provider.get("name", "unknown"))
        if provider["healthy"]:
            checks.append(Check(name="memory provider", text=f"{name} is healthy", value=name))
        else:
            cause = f"its memory provider {name} is not healthy"
            checks.append(
                Check(
                    name="memory provider",
                    verdict="unhealthy",
                    value=name,
                    cause=cause,
                    fix="inv api.logs says why",
                    upstream=True,
                )
            )
    return checks


def _urls(api: Api) -> Check:
    """The database URLs among the application's variables lead to this stack, with its password."""
    settings = api.settings
    ours = {settings.pgb.port, settings.db.port}
    try:
        environment = api.environment()
    except UsageError as error:
        return Check(name="credentials", verdict="degraded", cause=error.what, fix=error.fix[0])
    for name, value in environment.items():
        try:
            url = urlsplit(value)
            port = url.port or 5432
        except ValueError:
            continue
        if not url.scheme.startswith("postgres") or not url.hostname:
            continue
        here = (reachable_address(settings.db.bind), reachable_address(settings.pgb.bind))
        if not is_loopback(url.hostname) and url.hostname not in here:
            continue  # another machine's database is the application's own affair
        wrong = ""
        if port in ours and unquote(url.username or "") == settings.db.user:
            if unquote(url.password or "") != api.credentials.db_password:
                wrong = f"another password for {settings.db.user} than the settings"
            elif unquote(url.path[1:]) != settings.db.name:
                wrong = f"the database {unquote(url.path[1:])!r}, not {settings.db.name}"
        if wrong:
            return Check(
                name="credentials",
                verdict="degraded",
                cause=f"the variable {name} of the application has {wrong}",
                fix=f"write {name}: $database_url below api.env (it comes from {settings.origin('api.env')})",
            )
    return Check(name="credentials", text="its database URLs have the password of the settings")
