"""Merging: a backup's rows added to what is there, in one transaction; what is there stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from devstack.data import census, load
from devstack.data.load import Mismatch, Source
from devstack.data.manifest import now
from devstack.data.session import Session, session
from devstack.data.streams import chunks
from devstack.errors import StackError
from devstack.services.postgres import PSQL, literal
from devstack.shell import Command

if TYPE_CHECKING:
    from devstack.stack import Stack

TABLES = """
SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relkind = 'p' AS partitioned,
       coalesce((SELECT jsonb_agg(jsonb_build_array(quote_ident(attname), format_type(atttypid, atttypmod))
                                  ORDER BY attnum)
                   FROM pg_attribute a WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
                    AND attgenerated = ''), '[]') AS columns,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique) AS has_key,
       (SELECT jsonb_agg(format('%I.%I', ln.nspname, l.relname))
          FROM pg_class l JOIN pg_namespace ln ON ln.oid = l.relnamespace
         WHERE l.relkind = 'r'
           AND l.oid IN (SELECT c.oid UNION ALL SELECT relid FROM pg_partition_tree(c.oid))) AS parts,
       pg_get_userbyid(c.relowner) AS owner, pg_has_role({role}, c.relowner, 'USAGE') AS own
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT IN {foreign}
   AND n.nspname !~ '^pg_(toast_)?temp_'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                      AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')
 ORDER BY 1
"""
"""Tables with their columns, generated ones left out; a partitioned one stands for its partitions, and ``parts`` are
the tables that have the rows. ``own`` is whether ``role`` may do with it what its owner may."""

PAUSES = """
WITH tables AS (
    SELECT c.oid FROM pg_class c
     WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND pg_has_role({role}, c.relowner, 'USAGE'))
SELECT format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', tgrelid::regclass, tgname) AS pause,
       format('ALTER TABLE ONLY %s ENABLE TRIGGER %I', tgrelid::regclass, tgname) AS resume
  FROM pg_trigger JOIN tables ON tables.oid = tgrelid WHERE NOT tgisinternal AND tgenabled = 'O'
UNION ALL
SELECT format('ALTER TABLE %s DISABLE RULE %I', ev_class::regclass, rulename),
       format('ALTER TABLE %s ENABLE RULE %I', ev_class::regclass, rulename)
  FROM pg_rewrite JOIN tables ON tables.oid = ev_class WHERE ev_type = '3' AND ev_enabled = 'O'
UNION ALL
SELECT format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', c.oid::regclass),
       format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', c.oid::regclass)
  FROM pg_class c JOIN tables USING (oid) WHERE relforcerowsecurity
UNION ALL
SELECT format('ALTER TABLE %s ALTER CONSTRAINT %I DEFERRABLE INITIALLY DEFERRED', conrelid::regclass, conname),
       format('ALTER TABLE %s ALTER CONSTRAINT %I %s', conrelid::regclass, conname,
              CASE WHEN condeferrable THEN 'DEFERRABLE INITIALLY IMMEDIATE' ELSE 'NOT DEFERRABLE' END)
  FROM pg_constraint JOIN tables ON tables.oid = conrelid WHERE contype = 'f' AND conparentid = 0 AND NOT condeferred
"""
"""Statements that pause, for the time of one transaction, what keeps rows out that had been written before, each with
the one that brings it back: triggers and rules ran then, policies are not the merge's, and foreign keys are checked at
the end."""

FOREIGN_KEYS = """
SELECT conname AS name, conrelid::regclass::text AS child, confrelid::regclass::text AS parent,
       (SELECT jsonb_agg(quote_ident(attname) ORDER BY n) FROM unnest(conkey) WITH ORDINALITY k(num, n)
          JOIN pg_attribute ON attrelid = conrelid AND attnum = num) AS columns,
       (SELECT jsonb_agg(quote_ident(attname) ORDER BY n) FROM unnest(confkey) WITH ORDINALITY k(num, n)
          JOIN pg_attribute ON attrelid = confrelid AND attnum = num) AS keys
  FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND convalidated
   AND has_table_privilege(conrelid, 'SELECT') AND has_table_privilege(confrelid, 'SELECT') ORDER BY 2, 1
"""

SEQUENCES = """
SELECT format('%I.%I', n.nspname, c.relname) AS name, s.seqincrement > 0 AS rising,
       (SELECT format('SELECT %s(%I) FROM %s', CASE WHEN s.seqincrement > 0 THEN 'max' ELSE 'min' END, attname,
                      d.refobjid::regclass)
          FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
         WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
           AND d.deptype IN ('a', 'i') LIMIT 1) AS used,
       pg_sequence_last_value(c.oid) AS value
  FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE has_table_privilege(c.oid, 'UPDATE') ORDER BY 1
"""
"""Sequences with their last value, and the query for the furthest value in the column that they serve."""


class TableMerged(Struct, frozen=True):
    """Rows of one table: added, and left out because they, or their key, are there."""

    name: str
    added: int
    skipped: int
    note: str = ""


class Merged(Struct, frozen=True):
    source: str
    tables: list[TableMerged]
    large_objects: int
    safety: str
    seconds: float


def merge(stack: Stack, source: Source, safety: str) -> Merged:
    """Add a backup's rows.

    :raises StackError: the schemas differ, or rows would contradict each other; nothing is changed then.
    """
    began = now()
    name = stack.settings.db.name
    with load.scratch(stack, "merge", source.name) as scratch:
        load.load(stack, source, scratch, lambda: _check_counts(stack, source, scratch))
        values = {"role": literal(stack.settings.db.user), "foreign": census.FOREIGN}
        with session(stack.db, scratch, "read the restored rows") as sql:
            theirs = {row["name"]: row for row in sql.rows(TABLES.format(**values))}
            positions = {row["name"]: row["value"] for row in sql.rows(SEQUENCES)}
            objects = sql.value(census.LARGE_OBJECTS)
        with session(stack.db, name, "merge the rows", role="owner") as sql:
            sql.run("BEGIN")
            ours, pauses = _look(stack, values)
            _check_shape(source, theirs, ours)
            # others may write when this is done
            for table in ours.keys() & theirs.keys():
                if ours[table]["own"]:
                    sql.run(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
            for pause in pauses:
                sql.run(pause["pause"])
            merged = [_merge_table(stack, sql, scratch, theirs[table], ours[table]) for table in theirs]
            added = _merge_objects(stack, sql, scratch) if objects else 0
            _check_references(sql)
            sql.run("SET CONSTRAINTS ALL IMMEDIATE")
            for pause in pauses:
                sql.run(pause["resume"])
            _advance_sequences(sql, positions)
            sql.run("COMMIT")
    seconds = round((now() - began).total_seconds(), 3)
    return Merged(source.name, merged, added, safety, seconds)


def _check_counts(stack: Stack, source: Source, scratch: str) -> None:
    """:raises StackError: the backup holds something else than its manifest says."""
    if source.manifest is None:
        return
    try:
        load.check_counts(stack, source.manifest, scratch)
    except Mismatch as error:
        raise StackError(
            f"{source.name} holds something else than its manifest says",
            why="nothing was changed",
            evidence=error.lines,
        ) from None


def _look(stack: Stack, values: dict[str, str]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return the tables of the database in use, and what to pause."""
    with session(stack.db, stack.settings.db.name, "look at the database") as sql:
        return {row["name"]: row for row in sql.rows(TABLES.format(**values))}, sql.rows(PAUSES.format(**values))


def _check_shape(source: Source, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """:raises StackError: a table or column of the backup is not in the database."""
    lines = [f"table {name} is not there" for name in theirs if name not in ours]
    for name in theirs.keys() & ours.keys():
        there = dict(ours[name]["columns"])
        for column, kind in theirs[name]["columns"]:
            if column not in there:
                lines.append(f"table {name} has no column {column}")
            elif there[column] != kind:
                lines.append(f"column {column} of table {name} is {there[column]}, in the backup {kind}")
    if lines:
        raise StackError(
            f"{source.name} does not fit the database",
            why="rows can be added only to the tables that they came from; nothing was changed",
            evidence=sorted(lines)[:20],
            fix="run the migrations that lie between, or replace the database: inv data.restore --file …",
        )


def _rows(stack: Stack, command: Command) -> Iterator[bytes]:
    with stack.context.stream_out(command, "read the restored rows") as source:
        yield from chunks(source)


def _merge_table(
    stack: Stack, sql: Session, scratch: str, table: dict[str, Any], target: dict[str, Any]
) -> TableMerged:
    name, columns = table["name"], ", ".join(column for column, _ in table["columns"])
    only = "" if table["partitioned"] else "ONLY "
    if not columns:
        return TableMerged(name, 0, 0, "it has no columns")
    if not target["own"]:
        return TableMerged(name, 0, 0, f"left out: it belongs to {target['owner']}")
    sql.run(f"CREATE TEMP TABLE nv_staging ON COMMIT DROP AS SELECT {columns} FROM {name} WITH NO DATA")
    # as the reader, whom no policy hides a row from; of the table itself, which takes no plan and runs no code
    for part in table["parts"] or ():
        copy = stack.db.as_reader([*PSQL, "-c", f"COPY {part} ({columns}) TO STDOUT"], scratch)
        sql.copy_in(f"COPY nv_staging ({columns}) FROM STDIN", _rows(stack, copy))
    total = sql.value("SELECT count(*) FROM nv_staging")
    insert = f"INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE"
    if table["has_key"]:
        added = _inserted(sql, f"{insert} SELECT {columns} FROM nv_staging ON CONFLICT DO NOTHING")
    else:
        # without a key, a row is there if one like it is, as many times as it is in the backup
        staged = ", ".join(f"s.{column}" for column, _ in table["columns"])
        there = f"SELECT ROW({columns})::text AS k, count(*) AS n FROM {only}{name} GROUP BY 1"
        added = _inserted(
            sql,
            f"{insert} SELECT {staged} FROM (SELECT *, ROW({columns})::text AS nv_k, row_number() OVER (PARTITION BY"
            f" ROW({columns})::text) AS nv_n FROM nv_staging) s LEFT JOIN ({there}) l ON l.k = s.nv_k"
            " WHERE s.nv_n > coalesce(l.n, 0)",
        )
    sql.run("DROP TABLE nv_staging")
    return TableMerged(name, added, total - added, "" if table["has_key"] else "no key: compared as whole rows")


def _inserted(sql: Session, insert: str) -> int:
    return int(sql.run(f"WITH new AS ({insert} RETURNING 1) SELECT count(*) FROM new")[0])


def _merge_objects(stack: Stack, sql: Session, scratch: str) -> int:
    """Large objects whose number is free."""
    sql.run("CREATE TEMP TABLE nv_objects (n oid, content bytea) ON COMMIT DROP")
    query = "COPY (SELECT oid, pg_catalog.lo_get(oid) FROM pg_catalog.pg_largeobject_metadata) TO STDOUT"
    # not as the owner: what the dump has made must meet no session of that role
    sql.copy_in("COPY nv_objects FROM STDIN", _rows(stack, stack.db.as_superuser([*PSQL, "-c", query], scratch)))
    new = "nv_objects WHERE NOT EXISTS (SELECT FROM pg_largeobject_metadata m WHERE m.oid = n)"
    return int(sql.run(f"SELECT count(lo_from_bytea(n, content)) FROM {new}")[0])


def _check_references(sql: Session) -> None:
    """:raises StackError: a row would refer to one that is not there."""
    for key in sql.rows(FOREIGN_KEYS):
        given = " AND ".join(f"c.{column} IS NOT NULL" for column in key["columns"])
        same = " AND ".join(f"p.{k} = c.{column}" for column, k in zip(key["columns"], key["keys"], strict=True))
        dangling = sql.value(
            f"SELECT count(*) FROM {key['child']} c WHERE {given}"
            f" AND NOT EXISTS (SELECT FROM {key['parent']} p WHERE {same})"
        )
        if dangling:
            raise StackError(
                "the rows can't be merged",
                why=f"{dangling} rows of {key['child']} would refer to rows that are not in {key['parent']}"
                f" ({key['name']}): those of the backup have a key that others have here; nothing was changed",
                fix="replace the database instead: inv data.restore --file …; or mend the rows that differ",
            )


def _advance_sequences(sql: Session, positions: dict[str, int | None]) -> None:
    """Past what the backup had given out, and what is in the column that they serve."""
    for row in sql.rows(SEQUENCES):
        furthest = sql.value(row["used"]) if row["used"] else None
        values = [v for v in (row["value"], positions.get(row["name"]), furthest) if v is not None]
        wanted = (max if row["rising"] else min)(values) if values else None
        if wanted is not None and wanted != row["value"]:
            sql.run(f"SELECT setval({literal(row['name'])}, {wanted})")
