"""The search path of functions that PostgreSQL runs while it loads a dump.

pg_dump writes all names with their schema, and empties ``search_path``. The bodies of functions stay as they are: one
that a generated column, a check constraint or an index calls, and that names another object without its schema, fails
then. From PostgreSQL 17 on indexes and materialized views are made with an empty path whatever the session has
(https://www.postgresql.org/docs/17/release-17.html#RELEASE-17-MIGRATION), so the path goes to the functions themselves,
for the time of the restore.
"""

from __future__ import annotations

from devstack.data.session import Session
from devstack.services.postgres import literal

MARK = '"nv restore"'
"""A schema that is not there, at the end of a path of ours: so the functions are found that have it."""

CHECKS = '"nv checks"'
"""Schema of the table that holds dropped check constraints until the rows are loaded."""

PATH = """
SELECT replace(coalesce(
           (SELECT substr(setting, length('search_path=') + 1)
              FROM pg_db_role_setting s, unnest(setconfig) setting
             WHERE starts_with(setting, 'search_path=') AND setdatabase IN (0, d.oid) AND setrole IN (0, d.datdba)
             ORDER BY setrole <> 0 DESC, setdatabase <> 0 DESC LIMIT 1),
           {default}, (SELECT boot_val FROM pg_settings WHERE name = 'search_path')),
       '"$user"', quote_ident(pg_get_userbyid(datdba))) AS path
  FROM pg_database d WHERE datname = {name}
"""
"""The search path of a database's owner in it; what wins is in
https://www.postgresql.org/docs/current/sql-alterrole.html."""

LEND = """
DECLARE
    before text := pg_catalog.current_setting('search_path');
    found record;
    more boolean := true;
BEGIN
    PERFORM pg_catalog.set_config('search_path', '', false);
    FOR found IN
        SELECT p.oid, pg_catalog.quote_ident(n.nspname) AS schema,
               (SELECT pg_catalog.string_agg(DISTINCT pg_catalog.quote_ident(en.nspname), ', ')
                  FROM pg_catalog.pg_extension JOIN pg_catalog.pg_namespace en ON en.oid = extnamespace) AS others
          FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
               JOIN pg_catalog.pg_language l ON l.oid = p.prolang
         WHERE p.oid >= 16384 AND l.lanname NOT IN ('c', 'internal') AND p.prokind IN ('f', 'w')
           AND p.prorettype NOT IN ('pg_catalog.trigger'::pg_catalog.regtype,
                                    'pg_catalog.event_trigger'::pg_catalog.regtype)
           AND pg_catalog.to_jsonb(p) ->> 'prosqlbody' IS NULL AND pg_catalog.pg_has_role(p.proowner, 'USAGE')
           AND NOT EXISTS (SELECT FROM pg_catalog.unnest(p.proconfig) c
                            WHERE pg_catalog.starts_with(c, 'search_path='))
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e
                            WHERE e.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND e.objid = p.oid
                              AND e.deptype = 'e')
    LOOP
        PERFORM pg_catalog.set_config('search_path',
            pg_catalog.concat_ws(', ', NULLIF({path}, ''), found.schema, found.others, {mark}), false);
        EXECUTE pg_catalog.format('ALTER FUNCTION %s SET search_path FROM CURRENT',
                                  found.oid::pg_catalog.regprocedure);
        PERFORM pg_catalog.set_config('search_path', '', false);
    END LOOP;
    WHILE more LOOP
        more := false;
        FOR found IN
            SELECT CASE WHEN c.contypid = 0 THEN 'TABLE' ELSE 'DOMAIN' END AS kind,
                   CASE WHEN c.contypid = 0 THEN c.conrelid::pg_catalog.regclass::text
                        ELSE c.contypid::pg_catalog.regtype::text END AS target,
                   pg_catalog.quote_ident(c.conname) AS name, pg_catalog.pg_get_constraintdef(c.oid) AS definition,
                   pg_catalog.obj_description(c.oid, 'pg_constraint') AS remark
              FROM pg_catalog.pg_constraint c LEFT JOIN pg_catalog.pg_class t ON t.oid = c.conrelid
                   LEFT JOIN pg_catalog.pg_type y ON y.oid = c.contypid
             WHERE c.contype = 'c' AND c.coninhcount = 0
               AND pg_catalog.pg_has_role(coalesce(t.relowner, y.typowner), 'USAGE')
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class r ON r.oid = a.attrelid
                                WHERE a.atttypid = y.typarray OR (a.atttypid = y.oid AND r.relkind = 'c'))
               AND EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_proc p ON p.oid = d.refobjid
                                  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
                            WHERE d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND d.objid = c.oid
                              AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND p.oid >= 16384
                              AND l.lanname NOT IN ('c', 'internal')
                              AND (p.prosrc ~* 'from' OR pg_catalog.to_jsonb(p) ->> 'prosqlbody' IS NOT NULL))
        LOOP
            more := true;
            CREATE SCHEMA IF NOT EXISTS {checks};
            CREATE TABLE IF NOT EXISTS {checks}.checks (n serial, kind text, target text, name text,
                                                        definition text, remark text);
            INSERT INTO {checks}.checks (kind, target, name, definition, remark)
                VALUES (found.kind, found.target, found.name, found.definition, found.remark);
            EXECUTE pg_catalog.format('ALTER %s %s DROP CONSTRAINT %s', found.kind, found.target, found.name);
        END LOOP;
    END LOOP;
    PERFORM pg_catalog.set_config('search_path', before, false);
END"""
"""Give the path to the functions that have none, are none of an extension, and whose bodies are texts. After the path
come the schema of the function and those of extensions: of a dump without a manifest, the path is not known.

The path may hide names of PostgreSQL's own: those of a function's arguments are written while it is set.

Then drop the check constraints whose functions may read tables, and store them: rows that they look for may be loaded
later. Where a table's is gone, partitions and other tables that inherit it have theirs of their own, which go next. A
domain keeps its constraints where it is in an array or in a row type: they could not be added again
(https://www.postgresql.org/docs/current/sql-alterdomain.html)."""

CHECK = """
DECLARE
    found record;
BEGIN
    PERFORM pg_catalog.set_config('search_path', '', true);
    IF pg_catalog.to_regclass('{checks}.checks') IS NOT NULL THEN
        FOR found IN SELECT * FROM {checks}.checks ORDER BY n DESC LOOP
            EXECUTE pg_catalog.format('ALTER %s %s ADD CONSTRAINT %s %s', found.kind, found.target, found.name,
                                      found.definition);
            IF found.remark IS NOT NULL THEN
                EXECUTE pg_catalog.format('COMMENT ON CONSTRAINT %s ON %s %s IS %L', found.name,
                                          NULLIF(found.kind, 'TABLE'), found.target, found.remark);
            END IF;
        END LOOP;
        DROP SCHEMA {checks} CASCADE;
    END IF;
END"""

TAKE_BACK = """
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT p.oid::pg_catalog.regprocedure::text AS name FROM pg_catalog.pg_proc p
         WHERE pg_catalog.pg_has_role(p.proowner, 'USAGE')
           AND EXISTS (SELECT FROM pg_catalog.unnest(p.proconfig) c
                        WHERE pg_catalog.starts_with(c, 'search_path=') AND pg_catalog.right(c, {size}) = {mark})
    LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s RESET search_path', found.name);
    END LOOP;
END"""

UNQUALIFIED = """
WITH used AS (
    SELECT DISTINCT refobjid AS oid FROM pg_depend d
     WHERE refclassid = 'pg_proc'::regclass AND deptype = 'n' AND refobjid >= 16384
       AND (classid = 'pg_constraint'::regclass
            OR classid = 'pg_statistic_ext'::regclass
            OR (classid = 'pg_class'::regclass AND EXISTS (SELECT FROM pg_index WHERE indexrelid = objid))
            OR (classid = 'pg_attrdef'::regclass AND EXISTS (
                SELECT FROM pg_attrdef JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
                 WHERE pg_attrdef.oid = objid AND attgenerated <> ''))
            OR (classid = 'pg_rewrite'::regclass AND EXISTS (
                SELECT FROM pg_rewrite r JOIN pg_class v ON v.oid = ev_class
                 WHERE r.oid = objid AND relkind = 'm')))),
named AS (
    SELECT proname AS name FROM pg_proc WHERE oid >= 16384
    UNION SELECT relname FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    UNION SELECT typname FROM pg_type WHERE oid >= 16384 AND typtype IN ('d', 'e'))
SELECT DISTINCT format('%I.%I', nspname, proname) AS name
  FROM used JOIN pg_proc p USING (oid) JOIN pg_namespace n ON n.oid = pronamespace
       JOIN pg_language l ON l.oid = prolang,
       regexp_split_to_table(lower(left(prosrc, 100000)), '[^a-z0-9_.]+') word
 WHERE lanname NOT IN ('c', 'internal') AND to_jsonb(p) ->> 'prosqlbody' IS NULL
   AND NOT EXISTS (SELECT FROM unnest(proconfig) c WHERE starts_with(c, 'search_path='))
   AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid
                      AND e.deptype = 'e')
   AND word IN (SELECT name FROM named) AND NOT word = ANY (coalesce(proargnames, '{}'))
 ORDER BY 1
"""
"""Functions of generated columns, constraints, indexes, statistics and materialized views in whose bodies there is a
word that is the name of a function, table or type, with no schema before it."""


def of(sql: Session, database: str, default: str = "") -> str:
    """Return the search path of a database's owner in it.

    :param default: what the server's own configuration has.
    """
    path: str = sql.value(PATH.format(name=literal(database), default=literal(default) if default else "NULL"))
    return path


def unqualified(sql: Session) -> list[str]:
    """Return functions that fail where a dump is loaded with an empty search path, as far as their text tells."""
    return [row["name"] for row in sql.rows(UNQUALIFIED)]


def lend(path: str) -> str:
    """Return a statement, in one line, that gives this search path to a database's functions."""
    body = " ".join(LEND.split()).format(path=literal(path), mark=literal(MARK), checks=CHECKS)
    return f"DO {literal(body)}"


def check() -> str:
    """Return the statement that adds the constraints again that :func:`lend` has dropped, which checks them."""
    return f"DO {literal(CHECK.format(checks=CHECKS).strip())}"


def take_back() -> str:
    """Return the statement that undoes :func:`lend`."""
    return f"DO {literal(TAKE_BACK.format(size=len(MARK), mark=literal(MARK)).strip())}"
