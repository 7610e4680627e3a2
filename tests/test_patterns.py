"""Regular expressions on text that somebody else has written. Where one takes quadratic or exponential time again, the
sizes here are such that a test takes hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from devstack.data import cluster, dumptext, source
from devstack.data.ownership import owned
from devstack.ide import jsonc

pytestmark = pytest.mark.usefixtures("alarm")


@pytest.mark.parametrize("line", [b"COPY " + b'""' * 5_000, b"COPY (" + b'""' * 40 + b"x", b'COPY "a" ' * 20_000])
def test_a_dump_s_copy_with_many_quotes(line: bytes) -> None:
    assert dumptext.COPY.fullmatch(line + b" FROM x;\n") is None


@pytest.mark.parametrize("name", [b'"a""b"."c"', b'"a;$ x" (b, "c"" d")', b'public."x" (y)', b'""""'])
def test_a_dump_s_copy_with_names_in_quotes(name: bytes) -> None:
    assert dumptext.COPY.fullmatch(b"COPY " + name + b" FROM stdin;\n")
    assert not dumptext.COPY.fullmatch(b"COPY " + name + b'" FROM stdin;\n')


@pytest.mark.parametrize("line", [b"CREATE EXTENSION x\n" * 50_000, b"CREATE EXTENSION x" + b" " * 1_000_000])
def test_a_dump_s_extensions_without_an_end(line: bytes) -> None:
    assert source._extensions(line) == {}


@pytest.mark.parametrize(
    "statement",
    [b"GRANT x" + b" $a$" * 100_001, b"ALTER " + b"a DROP" * 200_000, b"CREATE POLICY a ON b TO " + b"a, " * 9**5],
)
def test_a_dump_s_statements_that_are_judged(statement: bytes) -> None:
    assert b"".join(owned([statement + b";\n"], "nina", major=18)).endswith(b"\n")


@pytest.mark.parametrize("rest", ["/**/" * 20_000, "/* */ " * 20_000, "/*" + "*" * 100_000, " " * 100_000])
def test_comments_behind_a_value_in_a_file_of_an_editor(rest: str) -> None:
    text = f"[1{rest if rest.endswith(('/', ' ')) else rest + '/'}]\n"
    root = jsonc.parse(text)
    assert root
    changed = jsonc.parse(jsonc.appended(text, root, 2))
    assert changed
    assert changed.value == [1, 2]


def test_the_settings_of_a_cluster_s_copy(tmp_path: Path) -> None:
    file = tmp_path / "postgresql.auto.conf"
    file.write_text("\n" * (cluster.MOST - 100) + "\n  a.b = 1\n\tc\t=2\n# d = 3\n")
    assert cluster._set_in(file) == {"a.b", "c"}
