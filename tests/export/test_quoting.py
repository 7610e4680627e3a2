"""Values as YAML and in units: never anything but what they are."""

from __future__ import annotations

import io

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from invoke.vendor.yaml import safe_load as other_safe_load

from devstack.errors import UsageError
from devstack.export.quoting import Value, block, text, unit

ANY = st.text(st.characters(exclude_categories=["Cs"]))
MISREAD = [
    "on",
    "No",
    "y",
    "~",
    "null",
    "1e3",
    "0x10",
    "0o7",
    "1_000",
    "12:30:45",
    "2001-01-01",
    "",
    " a ",
    "- a",
    "a: b",
]
MISREAD += [
    "a #b",
    "*a",
    "&a",
    "!a",
    "%a",
    "@a",
    "`a",
    "'",
    '"',
    "\\",
    "\n",
    "\t",
    "\x85",
    "\u2028",
    "\ufeff",
    "\x7f",
    "🐘",
]


@given(ANY)
def test_every_text_is_read_back_as_it_was(value: str) -> None:
    assert yaml.safe_load(text(value)) == value


@pytest.mark.parametrize("value", MISREAD)
def test_what_a_reader_would_take_for_something_else_stays_a_text(value: str) -> None:
    written = block({"list": [value, {value: value}], value: {"inner": value}}, 2)
    assert yaml.safe_load(written) == {"list": [value, {value: value}], value: {"inner": value}}
    assert other_safe_load(io.StringIO(f"a: {text(value)}")) == {"a": value}  # type: ignore[no-untyped-call]


def test_blocks_read_well() -> None:
    value: Value = {"a": 1, "on": True, "list": [{"name": "x", "value": "1"}, "y"], "none": [], "empty": {}}
    assert block(value, 2) == (
        '  a: 1\n  "on": true\n  list:\n    - name: "x"\n      value: "1"\n    - "y"\n  none: []\n  empty: {}'
    )


def test_a_unit_has_no_character_that_systemd_would_read() -> None:
    assert unit("/srv/50%/api", "the folder") == "/srv/50%%/api"
    for bad in "\"'\\$:;, \n":
        with pytest.raises(UsageError, match="can't be named in a unit"):
            unit(f"/srv/a{bad}b", "the folder")
