"""Memories: create, read, list, search, delete."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import AfterValidator, BaseModel, Field

from .embedding import embed, literal
from .services import Running

MAX_CONTENT = 20_000
MAX_METADATA = 20_000
MAX_DEPTH = 16
MAX_OFFSET = 2**31 - 1

router = APIRouter(prefix="/memories", tags=["memories"])


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not have a NUL character, which PostgreSQL can't store")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return _storable(text)


def _json_storable(metadata: dict[str, Any]) -> dict[str, Any]:
    """Refuse what Python reads as JSON and jsonb does not take."""
    _check(metadata, 1)
    size = len(json.dumps(metadata))
    if size > MAX_METADATA:
        raise ValueError(f"must not have more than {MAX_METADATA} characters as JSON, it has {size}")
    return metadata


def _check(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"must not be nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        _storable(value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("must not have half a surrogate pair") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must not have {value}, which is not a JSON number")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check(key, depth)
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)


Content = Annotated[str, Field(min_length=1, max_length=MAX_CONTENT), AfterValidator(_not_blank)]
Tag = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_not_blank)]
Metadata = Annotated[dict[str, Any], AfterValidator(_json_storable)]
Limit = Annotated[int, Query(ge=1, le=100)]
Moment = Annotated[datetime, AfterValidator(lambda moment: moment.astimezone(timezone.utc))]


class NewMemory(BaseModel):
    """What a client sends."""

    content: Content
    tags: Annotated[list[Tag], Field(max_length=50)] = []
    metadata: Metadata = {}


class Memory(BaseModel):
    """What is stored."""

    id: UUID
    content: str
    tags: list[str]
    metadata: dict[str, Any]
    created_at: Moment


class FoundMemory(Memory):
    """A memory and its cosine similarity to what was searched for, from -1 to 1."""

    score: float


class MemoryPage(BaseModel):
    """A part of the memories, and how many there are altogether."""

    items: list[Memory]
    total: int


class SearchResult(BaseModel):
    """The most similar memories, best first."""

    items: list[FoundMemory]


INSERT = """
INSERT INTO memories (content, tags, metadata, embedding)
VALUES (%(content)s, %(tags)s::text[], %(metadata)s::jsonb, %(embedding)s::vector)
RETURNING id, content, tags, metadata, created_at
"""

SELECT = "SELECT id, content, tags, metadata, created_at FROM memories WHERE id = %(id)s::uuid"

DELETE = "DELETE FROM memories WHERE id = %(id)s::uuid RETURNING id"

LIST = """
SELECT id, content, tags, metadata, created_at FROM memories
WHERE %(tag)s::text IS NULL OR tags @> ARRAY[%(tag)s::text]
ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(offset)s
"""

COUNT = "SELECT count(*) AS total FROM memories WHERE %(tag)s::text IS NULL OR tags @> ARRAY[%(tag)s::text]"

# An HNSW scan takes the 40 nearest rows and filters those; with iterative_scan it goes on until the limit is full.
SEARCH = """
SET LOCAL hnsw.iterative_scan = strict_order;
SELECT id, content, tags, metadata, created_at, 1 - distance AS score
FROM (
  SELECT *, embedding <=> %(embedding)s::vector AS distance FROM memories
  WHERE %(tag)s::text IS NULL OR tags @> ARRAY[%(tag)s::text]
  ORDER BY distance LIMIT %(limit)s
) AS nearest
ORDER BY distance
"""


@router.post("", status_code=201)
def create(new: NewMemory, running: Running) -> Memory:
    """Store a memory."""
    values = {
        "content": new.content,
        "tags": new.tags,
        "metadata": json.dumps(new.metadata),
        "embedding": literal(embed(new.content)),
    }
    row = running.database.fetch(INSERT, values)[0]
    running.metrics.memories.labels("created").inc()
    return Memory(**row)


@router.get("")
def list_newest(
    running: Running,
    limit: Limit = 20,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
    tag: Tag | None = None,
) -> MemoryPage:
    """List memories, the newest first."""
    values = {"limit": limit, "offset": offset, "tag": tag}
    with running.database.session() as session:
        items = session.fetch(LIST, values)
        total = session.fetch(COUNT, values)[0]["total"]
    return MemoryPage(items=[Memory(**row) for row in items], total=total)


# before /{memory_id}, which would take it
@router.get("/search")
def search(running: Running, q: Content, limit: Limit = 10, tag: Tag | None = None) -> SearchResult:
    """Find the memories most similar to a text."""
    values = {"embedding": literal(embed(q)), "limit": limit, "tag": tag}
    rows = running.database.fetch(SEARCH, values)
    running.metrics.memories.labels("searched").inc()
    return SearchResult(items=[FoundMemory(**row) for row in rows])


@router.get("/{memory_id}")
def read(memory_id: UUID, running: Running) -> Memory:
    """Read one memory."""
    rows = running.database.fetch(SELECT, {"id": str(memory_id)})
    if not rows:
        raise HTTPException(404, f"there is no memory {memory_id}")
    return Memory(**rows[0])


@router.delete("/{memory_id}", status_code=204)
def delete(memory_id: UUID, running: Running) -> Response:
    """Delete one memory."""
    if not running.database.fetch(DELETE, {"id": str(memory_id)}):
        raise HTTPException(404, f"there is no memory {memory_id}")
    running.metrics.memories.labels("deleted").inc()
    return Response(status_code=204)
