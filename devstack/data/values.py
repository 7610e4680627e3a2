"""Values for a column, as COPY's text format has them (https://www.postgresql.org/docs/current/sql-copy.html)."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta

from devstack.data.columns import Bounds, Column
from devstack.data.words import COUNT, TAGS, Words

Maker = Callable[[int], str]
"""The value of the row with this number."""

NULL = "\\N"
NULL_SHARE = 0.1
BEGIN = datetime(2024, 1, 1)
"""Moments lie in the two years from here on: the same for a seed whatever the day."""
SECONDS = 2 * 365 * 86_400
PROSE = ("content", "text", "body", "description", "message", "note", "notes", "summary", "comment")
INTEGERS = {"int2": 32_000, "int4": 2_000_000_000, "int8": 9_000_000_000_000_000}
NUMBERS = ("numeric", "float4", "float8", "money")
TEXTS = ("text", "varchar", "bpchar", "citext", "name")
MOMENTS = ("timestamptz", "timestamp", "date")
PER_NAME = {"age": (18, 90), "year": (1990, 2025), "rating": (1, 5), "percent": (0, 100), "quantity": (1, 20)}
ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
DISTINCT = ("uuid", *INTEGERS, *TEXTS, *MOMENTS, *NUMBERS)
"""The types of which a column can have a different value in each row, the best first."""


class Values:
    """Makers of one table's values, all from one source of chance."""

    def __init__(self, seed: int, table: str, words: Words) -> None:
        self.seed = seed
        self.chance = random.Random(f"{seed} {table}")
        self.words = words
        self.mark = f"{random.Random(f'mark {seed}').getrandbits(20):x}"
        """What keeps unique texts of different seeds apart."""
        self.parts = (0, 0, 0)
        """The parts of the last sentence, for its vector."""
        self.written = (-1, 0)
        """The last row's number and the second at which it is written."""

    def maker(self, column: Column, bounds: Bounds, *, rows: int, start: int | None) -> Maker | None:
        """How to make a column's values in so many rows; with ``start`` each differs from all others.

        None: the type is not known."""
        if bounds.choices and start is None:
            make: Maker | None = self._choice(bounds.choices)
        elif column.labels:
            make = self._choice(column.labels)
        elif column.written and column.type in MOMENTS and start is None:
            make = self._writing(column.type, rows)
        else:
            make = self._of_type(column, bounds, start)
        if make is None:
            return None
        if column.array:
            make = self._array(make)
        if column.required or column.default or start is not None:
            return make
        inner, chance = make, self.chance.random
        return lambda i: NULL if chance() < NULL_SHARE else inner(i)

    def _of_type(self, column: Column, bounds: Bounds, start: int | None) -> Maker | None:
        kind = column.type
        if kind in TEXTS:
            return self._text(column, bounds, start)
        if kind in INTEGERS:
            return self._integer(column, bounds, start)
        if kind in NUMBERS:
            return self._number(column, bounds, start)
        if kind in MOMENTS:
            return self._moment(kind, start)
        chance = self.chance
        bits, whole = chance.getrandbits, chance.randrange
        phrases, companies = self.words.words, self.words.companies
        makers: dict[str, Maker] = {
            "uuid": lambda _: _uuid(bits(128)),
            "bool": lambda _: "t" if bits(1) else "f",
            "json": lambda _: _json(bits(24), phrases),
            "jsonb": lambda _: _json(bits(24), phrases),
            "bytea": lambda _: "\\\\x" + f"{bits(256):064x}",
            "time": lambda _: f"{whole(24):02}:{whole(60):02}:{whole(60):02}",
            "timetz": lambda _: f"{whole(24):02}:{whole(60):02}:{whole(60):02}+00",
            "interval": lambda _: f"{whole(10_000)} minutes",
            "inet": lambda _: f"10.{bits(8)}.{bits(8)}.{1 + whole(254)}",
            "cidr": lambda _: f"10.{bits(8)}.{bits(8)}.0/24",
            "macaddr": lambda _: "02:" + ":".join(f"{bits(8):02x}" for _ in range(5)),
            "tsvector": lambda _: companies[whole(COUNT)].replace("'", "''").replace(",", ""),
        }
        return makers.get(kind)

    def _choice(self, values: list[str]) -> Maker:
        listed, pick = [value.translate(ESCAPES) for value in values], self.chance.choice
        return lambda _: pick(listed)

    def _array(self, make: Maker) -> Maker:
        upto = self.chance.randrange

        def array(i: int) -> str:
            items = [make(i) for _ in range(upto(4))]
            return (
                "{"
                + ",".join(items if all(t.isalnum() and t.lower() != "null" for t in items) else map(_quoted, items))
                + "}"
            )

        return array

    # texts

    def _text(self, column: Column, bounds: Bounds, start: int | None) -> Maker:
        make = self._worded(column)
        if column.name in PROSE:
            make = self._sentence
        limit = column.modifier - 4 if column.type in ("varchar", "bpchar") and column.modifier > 4 else 63
        longest = min(limit if column.type not in ("text", "citext") and limit else 10**9, bounds.longest or 10**9)
        if column.type == "varchar" and column.modifier <= 4:
            longest = bounds.longest or 10**9
        shortest, inner = bounds.shortest, make
        if start is not None:
            return self._distinct_text(inner, longest, start)
        if longest > 200 and shortest <= 1:
            return make
        return lambda i: inner(i).ljust(shortest, "x")[:longest].rstrip("\\")

    def _distinct_text(self, make: Maker, longest: int, start: int) -> Maker:
        def distinct(i: int) -> str:
            text, mark = make(i), f"{self.mark}.{start + i}"
            if "@" in text:
                name, _, host = text.partition("@")
                text = f"{name}.{mark}@{host}"
                return text if len(text) <= longest else f"{mark}@{host}"[:longest]
            if len(mark) + 1 >= longest:
                return str(start + i)
            return f"{text[: longest - len(mark) - 1].rstrip(chr(92))} {mark}"

        return distinct

    def _sentence(self, _: int) -> str:
        chance, words = self.chance.random, self.words
        who, what, where = int(chance() * COUNT), int(chance() * COUNT), int(chance() * COUNT)
        self.parts = (who, COUNT + what, 2 * COUNT + where)
        return f"{words.who[who]} {words.what[what]} {words.where[where]}."

    def _worded(self, column: Column) -> Maker:
        words, chance = self.words, self.chance.random

        def one(listed: list[str] | tuple[str, ...]) -> Maker:
            count = len(listed)
            return lambda _: listed[int(chance() * count)]

        first, last = one(words.first_names), one(words.last_names)
        word, company = one(words.words), one(words.companies)
        by_name: list[tuple[str, Maker]] = [
            ("mail", lambda i: f"{first(i)}.{last(i)}@example.org".lower().replace(" ", "")),
            ("first", first),
            ("last", last),
            ("surname", last),
            ("tag", one(TAGS)),
            ("city", one(words.cities)),
            ("country", one(words.countries)),
            ("compan", company),
            ("job", one(words.jobs)),
            ("address", one(words.streets)),
            ("street", one(words.streets)),
            ("phone", lambda _: f"+1 555 {int(chance() * 10**7):07}"),
            ("url", lambda i: f"https://example.org/{word(i)}/{word(i)}"),
            ("slug", lambda i: f"{word(i)}-{word(i)}-{word(i)}"),
            ("title", one(words.phrases)),
            ("name", lambda i: f"{first(i)} {last(i)}"),
        ]
        found = next((make for hint, make in by_name if hint in column.name.lower()), None)
        return found or (lambda i: f"{word(i)} {word(i)}")

    # numbers and moments

    def _integer(self, column: Column, bounds: Bounds, start: int | None) -> Maker:
        least, most = bounds.range(1)
        if start is not None:
            first = start if least is None else max(start, int(least))
            return lambda i: str(first + i)
        low, high = next((r for hint, r in PER_NAME.items() if hint in column.name.lower()), (0, 1000))
        width = high - low
        if least is not None:
            low = max(low, int(least)) if most is None or most >= low else int(least)
            high = max(high, low + width)
        if most is not None:
            high = min(high, int(most))
            low = low if least is not None else min(low, high - width)
        high = min(high, INTEGERS[column.type])
        whole = self.chance.randrange
        return lambda _: str(low + whole(max(1, high - low + 1)))

    def _number(self, column: Column, bounds: Bounds, start: int | None) -> Maker:
        scale = 2
        least, most = bounds.range(0.01)
        high = most if most is not None else max(1000.0, (least or 0.0) + 1000)
        low = least if least is not None else min(0.0, high)
        if column.type == "numeric" and column.modifier > 4:
            digits, scale = (column.modifier - 4) >> 16 & 65_535, (column.modifier - 4) & 2047
            high = min(high, 10.0 ** (digits - scale) - 1 if digits > scale else 0.9)
        if start is not None:
            return lambda i: str(start + i)
        chance = self.chance.random
        return lambda _: f"{low + chance() * (high - low):.{scale}f}"

    def _moment(self, kind: str, start: int | None) -> Maker:
        form, chance = _form(kind), self.chance.random
        if start is None:
            return lambda _: form(int(chance() * SECONDS))
        step = 86_400 if kind == "date" else 1
        return lambda i: form(step * (start + i))

    def _writing(self, kind: str, rows: int) -> Maker:
        """When a row is written: later than the one before it, and the same for all such columns of a row."""
        chance, form = self.chance.random, _form(kind)

        def moment(i: int) -> str:
            if self.written[0] != i:
                self.written = (i, int((i + chance()) / rows * SECONDS))
            return form(self.written[1])

        return moment


def _form(kind: str) -> Callable[[int], str]:
    """How the moment so many seconds after the first one is written."""
    if kind == "date":
        return lambda seconds: str((BEGIN + timedelta(seconds=seconds)).date())
    zone = "+00" if kind == "timestamptz" else ""
    return lambda seconds: (BEGIN + timedelta(seconds=seconds)).isoformat(" ") + zone


def _uuid(bits: int) -> str:
    """Version 4, as RFC 9562 has it, from 128 random bits."""
    digits = f"{bits & ~(0xF << 76) & ~(0x3 << 62) | 0x4 << 76 | 0x2 << 62:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _json(bits: int, words: list[str]) -> str:
    source = ("chat", "note", "mail", "call")[bits & 3]
    return f'{{"source": "{source}", "importance": {(bits >> 2) % 10}, "about": "{words[(bits >> 6) % COUNT]}"}}'


def _quoted(item: str) -> str:
    """An element of an array, already escaped for COPY, in the quotes of an array."""
    if item == NULL:
        return "NULL"
    return '"' + item.replace("\\", "\\\\").replace('"', '\\\\"') + '"'
