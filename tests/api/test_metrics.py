"""Prometheus metrics."""

from __future__ import annotations

import uuid

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api import main


def samples(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def requests(found: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> dict[tuple[str, str, str], float]:
    counted = {}
    for (name, labels), value in found.items():
        if name == "http_requests_total":
            by = dict(labels)
            counted[by["method"], by["path"], by["status"]] = value
    return counted


def test_requests_are_counted_by_route(client: TestClient) -> None:
    created = client.post("/memories", json={"content": "counted"}).json()
    client.post("/memories", json={})
    client.get(f"/memories/{created['id']}")
    client.get(f"/memories/{uuid.uuid4()}")
    client.get("/memories/search", params={"q": "private words"})
    client.delete(f"/memories/{created['id']}")
    client.get("/no/such/path")
    client.put("/memories")
    client.request("BREW", "/memories")
    client.get("/health")
    found = samples(client)
    counted = requests(found)
    # which path a 405 is counted under is the framework's affair; that it is no path of the client's is ours
    refused = {key: value for key, value in counted.items() if key[2] == "405"}
    assert {(method, value) for (method, _, _), value in refused.items()} == {("PUT", 1), ("OTHER", 1)}
    assert {path for _, path, _ in refused} <= {"/memories", "unmatched"}
    assert {key: value for key, value in counted.items() if key not in refused} == {
        ("POST", "/memories", "201"): 1,
        ("POST", "/memories", "422"): 1,
        ("GET", "/memories/{memory_id}", "200"): 1,
        ("GET", "/memories/{memory_id}", "404"): 1,
        ("GET", "/memories/search", "200"): 1,
        ("DELETE", "/memories/{memory_id}", "204"): 1,
        ("GET", "unmatched", "404"): 1,
        ("GET", "/health", "200"): 1,
    }
    route = frozenset({"method": "GET", "path": "/memories/search"}.items())
    assert found["http_request_duration_seconds_count", route] == 1
    assert 0 < found["http_request_duration_seconds_sum", route] < 10
    for operation in ("created", "deleted", "searched"):
        assert found["memories_total", frozenset({("operation", operation)})] == 1
    assert "private" not in client.get("/metrics").text
    assert created["id"] not in client.get("/metrics").text


def test_the_pool_and_the_process_are_shown(client: TestClient) -> None:
    client.get("/memories")
    found = samples(client)
    nothing: frozenset[tuple[str, str]] = frozenset()
    assert found["db_pool_active_connections", nothing] == 0
    assert found["db_pool_idle_connections", nothing] == 1
    assert found["db_pool_max_connections", nothing] == main.POOL_SIZE
    assert any(name == "python_info" for name, _ in found)


def test_two_applications_in_a_process_count_apart(client: TestClient, environ: dict[str, str]) -> None:
    client.get("/memories")
    with TestClient(main.create_app(environ)) as other:
        assert requests(samples(other)) == {}
