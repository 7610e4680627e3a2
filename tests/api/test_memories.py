"""Memories over HTTP, against a real database."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.bodies import MAX_BYTES
from tests.api.conftest import Sql


def remember(client: TestClient, content: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/memories", json={"content": content, **more})
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


def test_what_is_created_can_be_read(client: TestClient) -> None:
    metadata = {"source": "diary", "nested": {"n": [1, 2.5, None, True]}}
    created = remember(client, "The cat sleeps.", tags=["home", "cat"], metadata=metadata)
    assert created == {
        "id": str(uuid.UUID(created["id"])),
        "content": "The cat sleeps.",
        "tags": ["home", "cat"],
        "metadata": metadata,
        "created_at": created["created_at"],
    }
    moment = datetime.fromisoformat(created["created_at"].replace("Z", "+00:00"))
    assert moment.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - moment) < timedelta(minutes=1)
    assert client.get(f"/memories/{created['id']}").json() == created


def test_tags_and_metadata_may_be_left_out(client: TestClient) -> None:
    created = remember(client, "plain")
    assert (created["tags"], created["metadata"]) == ([], {})


@pytest.mark.parametrize(
    "content",
    [
        "நினைவலைகள் — the waves of memory",
        "猫が眠る 🐈‍⬛",
        "e\u0301 stays as it was written, not é",
        "line\none\ttab \\ 'quote' \"double\" %s %(x)s {}",
        "'; DROP TABLE memories; --",
        "x" * 20_000,
        "🐈" * 20_000,
    ],
)
def test_content_comes_back_as_it_was_sent(client: TestClient, content: str) -> None:
    created = remember(client, content, tags=["நினைவு", "%s"], metadata={"ключ": content[:100]})
    read = client.get(f"/memories/{created['id']}").json()
    assert (read["content"], read["tags"], read["metadata"]) == (content, ["நினைவு", "%s"], {"ключ": content[:100]})
    assert [m["id"] for m in client.get("/memories/search", params={"q": content[:200]}).json()["items"]] == [
        created["id"]
    ]


def test_a_deleted_memory_is_gone(client: TestClient) -> None:
    path = f"/memories/{remember(client, 'to be forgotten')['id']}"
    answer = client.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert client.get(path).status_code == 404
    assert client.delete(path).status_code == 404
    assert client.get("/memories").json() == {"items": [], "total": 0}


def test_what_is_not_there_is_named(client: TestClient) -> None:
    missing = uuid.uuid4()
    answer = client.get(f"/memories/{missing}")
    assert (answer.status_code, answer.json()) == (404, {"detail": f"there is no memory {missing}"})


def test_the_list_is_newest_first_in_pages(client: TestClient) -> None:
    ids = [remember(client, f"number {n}")["id"] for n in range(7)]
    ids.reverse()
    pages = [client.get("/memories", params={"limit": 3, "offset": n}).json() for n in (0, 3, 6, 9)]
    assert [[m["id"] for m in page["items"]] for page in pages] == [ids[:3], ids[3:6], ids[6:], []]
    assert {page["total"] for page in pages} == {7}
    assert len(client.get("/memories").json()["items"]) == 7


def test_a_tag_narrows_the_list_and_its_total(client: TestClient) -> None:
    tagged = remember(client, "both", tags=["a", "b"])
    remember(client, "one", tags=["a"])
    remember(client, "none")
    assert client.get("/memories", params={"tag": "b"}).json() == {"items": [tagged], "total": 1}
    assert client.get("/memories", params={"tag": "a", "limit": 1}).json()["total"] == 2
    assert client.get("/memories", params={"tag": "A"}).json()["total"] == 0


THINGS = {
    "python": "Python generators produce values lazily with yield.",
    "bread": "Sourdough bread needs flour, water, salt and a day of patience.",
    "postgres": "PostgreSQL vacuum removes dead rows from tables.",
    "bicycle": "The bicycle chain wants oil after every ride in the rain.",
    "garden": "Tomatoes in the garden grow best with plenty of sun.",
    "tamil": "நினைவலைகள் என்றால் நினைவுகளின் அலைகள்.",
}


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("how does a python generator work", "python"),
        ("baking bread with flour", "bread"),
        ("POSTGRESQL: vacuuming a table", "postgres"),
        ("oiling my bicycle's chain", "bicycle"),
        ("when do tomatoes grow", "garden"),
        ("நினைவலைகள்", "tamil"),
    ],
)
def test_search_finds_the_sensible_memory_first(client: TestClient, query: str, best: str) -> None:
    for content in THINGS.values():
        remember(client, content)
    items = client.get("/memories/search", params={"q": query}).json()["items"]
    assert items[0]["content"] == THINGS[best]
    scores = [item["score"] for item in items]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[1] + 0.05
    assert len(items) == len(THINGS)


def test_the_same_text_scores_one(client: TestClient) -> None:
    created = remember(client, "Café au lait", tags=["drink"], metadata={"n": 1})
    (found,) = client.get("/memories/search", params={"q": "CAFE\u0301 AU LAIT"}).json()["items"]
    assert found.pop("score") == pytest.approx(1, abs=1e-6)
    assert found == created


def test_search_fills_its_limit_behind_a_rare_tag(client: TestClient, sql: Sql) -> None:
    for n in range(5):
        remember(client, f"a letter from far away, number {n}", tags=["rare"])
    # nearer than the five, and more than the 40 rows an HNSW scan takes by default
    sql("""
        INSERT INTO memories (content, embedding)
        SELECT 'near', (SELECT embedding FROM memories WHERE content LIKE '%%number 0') FROM generate_series(1, 300)
    """)
    sql("ANALYZE memories")
    answer = client.get("/memories/search", params={"q": "a letter from far away, number 0", "tag": "rare", "limit": 5})
    assert [item["tags"] for item in answer.json()["items"]] == [["rare"]] * 5
    answer = client.get("/memories/search", params={"q": "a letter from far away, number 0", "limit": 100})
    assert len(answer.json()["items"]) == 100


def test_search_can_use_the_index(client: TestClient, sql: Sql) -> None:
    remember(client, "anything")
    sql("SET enable_seqscan = off; SET enable_sort = off")
    vector = f"[{','.join(['1'] * 384)}]"
    plan = sql("EXPLAIN SELECT *, embedding <=> %s::vector AS distance FROM memories ORDER BY distance LIMIT 3", vector)
    assert "memories_embedding" in "\n".join(line for (line,) in plan)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "Field required"),
    ({"content": ""}, "at least 1 character"),
    ({"content": " \n\t"}, "must not be blank"),
    ({"content": "a\0b"}, "NUL"),
    ({"content": "x" * 20_001}, "at most 20000 characters"),
    ({"content": 5}, "valid string"),
    ({"content": None}, "valid string"),
    ({"content": "x", "tags": "a"}, "valid list"),
    ({"content": "x", "tags": [1]}, "valid string"),
    ({"content": "x", "tags": [" "]}, "must not be blank"),
    ({"content": "x", "tags": ["a\0"]}, "NUL"),
    ({"content": "x", "tags": ["t"] * 51}, "at most 50 items"),
    ({"content": "x", "metadata": []}, "valid dictionary"),
    ({"content": "x", "metadata": {"a": ["\0"]}}, "NUL"),
    ({"content": "x", "metadata": {"\0": 1}}, "NUL"),
    ({"content": "x", "metadata": {"a": "y" * 20_001}}, "20000 characters"),
]


@pytest.mark.parametrize(("body", "why"), REFUSED)
def test_bad_input_is_refused_with_its_reason(client: TestClient, body: dict[str, Any], why: str) -> None:
    answer = client.post("/memories", json=body)
    assert answer.status_code == 422
    assert why in answer.text
    assert client.get("/memories").json()["total"] == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"content": "x", "metadata": {"n": NaN}}', "not a JSON number"),
        (b'{"content": "x", "metadata": {"n": 1e999}}', "not a JSON number"),
        (b'{"content": "x", "metadata": {"s": "\\ud800"}}', "surrogate"),
        (b'{"content": "\\ud800"}', "string"),
        (b'{"content": "x", "metadata": {"a": ' + b"[" * 100 + b"]" * 100 + b"}}", "nested deeper"),
        (b'{"content": "x"', "JSON decode error"),
        (b"", "Field required"),
    ],
)
def test_what_only_raw_json_can_say_is_refused(client: TestClient, text: bytes, why: str) -> None:
    answer = client.post("/memories", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert why in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/memories?limit=0",
        "/memories?limit=101",
        "/memories?limit=ten",
        "/memories?offset=-1",
        "/memories?offset=99999999999999999999",
        "/memories?tag=",
        "/memories?tag=%00",
        "/memories/search",
        "/memories/search?q=",
        "/memories/search?q=%20",
        "/memories/search?q=%00",
        "/memories/search?q=x&limit=0",
        "/memories/not-a-uuid",
    ],
)
def test_bad_parameters_are_refused(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"]


def test_the_interface_describes_itself(client: TestClient) -> None:
    assert {"/memories", "/memories/{memory_id}", "/memories/search", "/health", "/health/detailed"} == set(
        client.get("/openapi.json").json()["paths"]
    )


def test_a_refusal_names_the_place_and_repeats_nothing(client: TestClient) -> None:
    answer = client.post("/memories", json={"content": "private" * 5000, "tags": ["fine", 7]})
    assert answer.json() == {
        "detail": [
            {
                "type": "string_too_long",
                "loc": ["body", "content"],
                "msg": "String should have at most 20000 characters",
            },
            {"type": "string_type", "loc": ["body", "tags", 1], "msg": "Input should be a valid string"},
        ]
    }


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused_before_it_is_all_there(client: TestClient, announced: bool) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        while sent < 50 * MAX_BYTES:
            sent += MAX_BYTES // 2
            yield b"x" * (MAX_BYTES // 2)

    headers = {"Content-Type": "application/json"} | ({"Content-Length": str(50 * MAX_BYTES)} if announced else {})
    answer = client.post("/memories", content=pieces(), headers=headers)
    assert (answer.status_code, answer.text) == (413, f"a body has at most {MAX_BYTES} bytes here\n")
    remember(client, "x" * 20_000)
