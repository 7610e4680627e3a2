"""JSON that somebody else has written: nested too deeply, it is an error that is explained, not one of Python's."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from devstack import settings
from devstack.container import Talk
from devstack.data import wal_check
from devstack.data.session import Session
from devstack.errors import ContentError, StackError
from devstack.files import MAX_JSON_DEPTH, load_json
from devstack.remote import backups
from devstack.runtimes import EngineError, containers

DEEP = ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000]


def lists(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("text", ["5", "null", '"text"', "[]", lists(MAX_JSON_DEPTH), '{"a": [{"b": 1}]}'])
def test_a_document_of_a_reasonable_depth_is_read(text: str) -> None:
    assert load_json(text) == json.loads(text)


@pytest.mark.parametrize("text", [*DEEP, lists(MAX_JSON_DEPTH + 1), '{"a":' * 300 + "1" + "}" * 300, "", "{", "x"])
def test_any_other_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|line 1"):
        load_json(text)


@pytest.mark.parametrize("text", DEEP)
def test_an_engine_s_answer(text: str) -> None:
    with pytest.raises(EngineError):
        containers.loads(text)
    assert list(containers.objects(f'{text}\n{{"a": 1}}')) == [{"a": 1}]


@pytest.mark.parametrize("text", DEEP)
def test_the_manifest_in_a_copy_of_a_cluster(text: str) -> None:
    with pytest.raises(ContentError, match="could not verify it"):
        wal_check.wal_ranges(text, "verify it")


@pytest.mark.parametrize("text", DEEP)
def test_the_list_of_files_in_a_copy_that_a_host_has_sent(text: str, tmp_path: Path) -> None:
    (tmp_path / backups.LIST).write_text(f'{{"Files": [], "x": {text}}}')
    assert "can't be read" in backups._lacking(tmp_path)


class Pipe(io.BytesIO):
    """psql's input, which an external server answers with lines of its own."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer = answer
        self.out = io.BytesIO()

    def write(self, text: Any) -> int:
        end = text.decode().removeprefix("SELECT '").removesuffix("';\n")
        self.out = io.BytesIO(self.answer + b"\n" + end.encode() + b"\n")
        return len(text)

    def __iter__(self) -> Any:
        return iter(self.out)


@pytest.mark.parametrize("answer", [*DEEP, "", "5", '{"a": 1}', "[5]"])
def test_an_external_server_s_rows(answer: str) -> None:
    psql = Pipe(answer.encode())
    with pytest.raises(StackError, match="the server does not answer as expected"):
        Session(Talk(psql, psql, psql.close)).rows("SELECT 1")


@pytest.mark.parametrize("text", DEEP)
def test_a_variable_that_is_a_setting(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        settings._json(text)
