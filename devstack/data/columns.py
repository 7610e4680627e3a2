"""The user's tables as the server describes them, as far as rows for them need it."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

MIGRATION_TABLES = {
    "alembic_version",
    "django_migrations",
    "schema_migrations",
    "flyway_schema_history",
    "_prisma_migrations",
}
"""What migration tools keep their own state in."""

TABLES = """
SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name, format('%I.%I', n.nspname, c.relname) AS quoted,
  coalesce((SELECT jsonb_agg(jsonb_build_object(
      'name', a.attname, 'type', coalesce(e.typname, b.typname), 'array', e.oid IS NOT NULL,
      'modifier', CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END,
      'required', a.attnotnull OR t.typnotnull, 'default', a.atthasdef OR t.typdefault IS NOT NULL,
      'made', a.attidentity <> '' OR a.attgenerated <> ''
              OR coalesce(pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%', false),
      'written', coalesce(pg_get_expr(d.adbin, d.adrelid) ~*
              '\\m(now|(transaction|statement|clock)_timestamp)\\(\\)|CURRENT_(TIMESTAMP|DATE)|LOCALTIMESTAMP', false),
      'labels', coalesce((SELECT jsonb_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum
                           WHERE enumtypid = coalesce(e.oid, b.oid)), '[]'),
      'checks', coalesce((SELECT jsonb_agg(replace(pg_get_constraintdef(k.oid), 'VALUE', quote_ident(a.attname)))
                            FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'), '[]'))
      ORDER BY a.attnum)
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
    LEFT JOIN pg_type e ON b.typcategory = 'A' AND e.oid = b.typelem
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]') AS columns,
  coalesce((SELECT jsonb_agg(pg_get_constraintdef(k.oid) ORDER BY k.conname)
    FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c'), '[]') AS checks,
  coalesce((SELECT jsonb_agg(jsonb_build_object('expression', coalesce(pg_get_expr(i.indexprs, i.indrelid), ''),
      'columns', coalesce((SELECT jsonb_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
                            WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey)), '[]')) ORDER BY i.indexrelid)
    FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique), '[]') AS unique_keys,
  coalesce((SELECT jsonb_agg(jsonb_build_object('parent', k.confrelid::bigint,
      'columns', (SELECT jsonb_agg(a.attname ORDER BY u.n) FROM unnest(k.conkey) WITH ORDINALITY u(k, n)
                    JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.k),
      'keys', (SELECT jsonb_agg(a.attname ORDER BY u.n) FROM unnest(k.confkey) WITH ORDINALITY u(k, n)
                 JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.k)) ORDER BY k.conname)
    FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f'), '[]') AS foreign_keys
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'nv_devstack') AND n.nspname !~ '^pg_temp_'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                      AND d.deptype = 'e')
 ORDER BY 2, 3
"""


class Column(Struct, frozen=True):
    """``type`` is the element's where ``array`` is set, and the base type of a domain."""

    name: str
    type: str
    array: bool
    modifier: int
    required: bool
    default: bool
    made: bool
    """By the server: an identity, a sequence's, a generated one."""
    written: bool
    """By default the moment at which the row is written."""
    labels: list[str]
    checks: list[str]


class UniqueKey(Struct, frozen=True):
    columns: list[str]
    expression: str


class ForeignKey(Struct, frozen=True):
    """``columns`` refer to ``keys`` of the table whose oid is ``parent``."""

    parent: int
    columns: list[str]
    keys: list[str]


class Table(Struct, frozen=True):
    oid: int
    schema: str
    name: str
    quoted: str
    columns: list[Column]
    checks: list[str]
    unique_keys: list[UniqueKey]
    foreign_keys: list[ForeignKey]

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    def unique_sets(self) -> list[list[str]]:
        """The columns that must differ together, where rows have to see to it."""
        sets = []
        for key in self.unique_keys:
            named = [c.name for c in self.columns if re.search(rf"\b{re.escape(c.name)}\b", key.expression)]
            names = list(dict.fromkeys([*key.columns, *named]))
            if names and not any(self.column(name).made for name in names):
                sets.append(names)
        return sets


class Bounds:
    """What simple check constraints allow of a column: a range, a list, a length."""

    def range(self, step: float) -> tuple[float | None, float | None]:
        """The least and the greatest value of a type whose values are ``step`` apart."""
        low = None if self.low is None else self.low + step * self.low_open
        high = None if self.high is None else self.high - step * self.high_open
        return low, high

    def __init__(self) -> None:
        self.low: float | None = None
        self.high: float | None = None
        self.low_open = False
        """Whether the least value itself is not allowed."""
        self.high_open = False
        self.choices: list[str] = []
        self.shortest = 0
        self.longest: int | None = None


def read(cursor: Any) -> list[Table]:
    """Every table of the user's own; of a partitioned one the whole."""
    cursor.execute(f"SELECT coalesce(jsonb_agg(to_jsonb(q)), '[]')::text FROM ({TABLES}) q")
    return msgspec.json.decode(cursor.fetchone()[0], type=list[Table])


NAME = r'("(?:[^"]|"")+"|[a-z_][\w$]*)'
COMPARED = re.compile(rf"^{NAME} (>=|<=|<>|>|<|=) '?(-?\d+(?:\.\d+)?)'?$")
SIZED = re.compile(rf"^(?:char_length|character_length|length) {NAME} (>=|<=|<>|>|<|=) (\d+)$")
LISTED = re.compile(rf"^{NAME} = ANY ARRAY\[(.*)\]$")
CAST = re.compile(r'::(?:"[^"]+"|[\w.])+(?: varying| precision| with(?:out)? time zone)?(?:\(\d+\))?(?:\[\])?')
FILLED = re.compile(rf"^{NAME} <> ''$")


def bounds_of(table: Table) -> dict[str, Bounds]:
    """What the checks that can be read say; one that is not simple is the server's to judge."""
    found = {column.name: Bounds() for column in table.columns}
    for check in [*table.checks, *(check for column in table.columns for check in column.checks)]:
        # casts and brackets say nothing that matters here
        text = CAST.sub("", check)
        text = re.sub(r"[()]", " ", text.removeprefix("CHECK").removesuffix("NOT VALID"))
        if re.search(r"\b(OR|NOT|CASE)\b", text):
            continue
        for clause in re.split(r"\bAND\b", text):
            _take(found, re.sub(r"\s+", " ", clause).strip())
    return found


def _take(found: dict[str, Bounds], clause: str) -> None:
    for pattern in (COMPARED, SIZED, LISTED, FILLED):
        if not (match := pattern.match(clause)):
            continue
        name = match[1].strip('"').replace('""', '"')
        if name not in found:
            return
        bounds = found[name]
        if pattern is LISTED:
            bounds.choices = [text.replace("''", "'") for text in re.findall(r"'((?:[^']|'')*)'", match[2])] or [
                text.strip() for text in match[2].split(",")
            ]
        elif pattern is FILLED:
            bounds.shortest = max(bounds.shortest, 1)
        elif pattern is SIZED:
            size = int(match[3])
            if match[2] in (">=", ">", "=", "<>"):
                bounds.shortest = max(bounds.shortest, size + (match[2] in (">", "<>")))
            if match[2] in ("<=", "<", "="):
                bounds.longest = size - (match[2] == "<")
        else:
            value = float(match[3])
            if match[2] in (">=", ">", "="):
                bounds.low, bounds.low_open = value, match[2] == ">"
            if match[2] in ("<=", "<", "="):
                bounds.high, bounds.high_open = value, match[2] == "<"
        return
