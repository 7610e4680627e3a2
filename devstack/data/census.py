"""What a database holds, in figures: taken when it is dumped, compared when it is restored."""

from __future__ import annotations

from msgspec import Struct, field

from devstack.data.session import Session

FOREIGN = "('pg_catalog', 'information_schema', 'pg_toast')"

TABLES = f"""
SELECT format('%I.%I', n.nspname, c.relname) AS name,
       (SELECT format('(%I)', a.attname) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
         ORDER BY t.typbyval DESC, a.attlen < 0, a.attnum LIMIT 1) AS columns
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND n.nspname NOT IN {FOREIGN} AND n.nspname !~ '^pg_(toast_)?temp_'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                      AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')
 ORDER BY c.relpages DESC, 1
"""
"""Ordinary tables and partitions; an extension's own are created with it. ``columns`` is the column of each that takes
least to copy: a short one near its beginning."""

SEQUENCES = """
SELECT format('%I.%I', schemaname, sequencename) AS name, last_value FROM pg_sequences
 WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e'
                      AND d.objid = format('%I.%I', schemaname, sequencename)::regclass)
 ORDER BY 1
"""

EXTENSIONS = "SELECT extname AS name, extversion AS version FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1"

LARGE_OBJECTS = "SELECT count(*) FROM pg_largeobject_metadata"


class Census(Struct, frozen=True, kw_only=True):
    """Rows by table (quoted names), last values by sequence, versions by extension."""

    tables: dict[str, int] = field(default_factory=dict)
    sequences: dict[str, int | None] = field(default_factory=dict)
    extensions: dict[str, str] = field(default_factory=dict)
    large_objects: int = 0

    def differences(self, other: Census, *, data: bool = True) -> list[str]:
        """What another one has otherwise, in words; with ``data`` off, apart from rows and values."""
        lines = []
        for name in sorted(self.tables.keys() | other.tables.keys()):
            mine, its = self.tables.get(name), other.tables.get(name)
            if mine is None or its is None:
                lines.append(f"table {name} is {'missing' if its is None else 'too many'}")
            elif data and mine != its:
                lines.append(f"table {name} has {its} rows, not {mine}")
        for name, value in sorted(self.sequences.items()):
            if name not in other.sequences:
                lines.append(f"sequence {name} is missing")
            elif data and value != other.sequences[name]:
                lines.append(f"sequence {name} is at {other.sequences[name]}, not {value}")
        lines += [f"extension {name} is missing" for name in sorted(self.extensions.keys() - other.extensions.keys())]
        if data and self.large_objects != other.large_objects:
            lines.append(f"there are {other.large_objects} large objects, not {self.large_objects}")
        return lines


def table_names(sql: Session) -> list[str]:
    """The largest first."""
    return [row["name"] for row in sql.rows(TABLES)]


def sequence_values(sql: Session) -> dict[str, int | None]:
    """Sequences are in no snapshot: what is read now is what they are now."""
    return {row["name"]: row["last_value"] for row in sql.rows(SEQUENCES)}


def take(sql: Session) -> Census:
    """Count everything; in a snapshot if the session is in one.

    No code of the application's runs for it. Planning a query would: it evaluates expressions of the indexes and the
    statistics that a table has at that moment, whatever was looked up before. So a column is copied, and counted here.
    """
    tables = {row["name"]: sql.count_rows(row["name"], row["columns"] or "") for row in sql.rows(TABLES)}
    return Census(
        tables=dict(sorted(tables.items())),
        sequences=sequence_values(sql),
        extensions={row["name"]: row["version"] for row in sql.rows(EXTENSIONS)},
        large_objects=sql.value(LARGE_OBJECTS),
    )
