"""The normal form of a password, as PostgreSQL and its clients have it before SCRAM (SASLprep, RFC 4013)."""

from __future__ import annotations

import stringprep
import unicodedata
from collections.abc import Callable

_PROHIBITED: tuple[Callable[[str], bool], ...] = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
    stringprep.in_table_a1,
)


def normal_form(password: str) -> bytes:
    """What is hashed. A password that SASLprep prohibits is taken as it is, as PostgreSQL does
    (https://www.postgresql.org/docs/current/sasl-authentication.html)."""
    if password.isascii():
        return password.encode()
    mapped = (" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    text = unicodedata.normalize("NFKC", "".join(mapped))
    fits = text and not any(prohibits(c) for c in text for prohibits in _PROHIBITED) and _directions_fit(text)
    return (text if fits else password).encode()


def _directions_fit(text: str) -> bool:
    """RFC 3454, section 6: what is written from the right has nothing from the left in it."""
    right = [stringprep.in_table_d1(c) for c in text]
    if not any(right):
        return True
    return right[0] and right[-1] and not any(stringprep.in_table_d2(c) for c in text)
