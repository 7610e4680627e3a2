"""Find what of a database its owner alone can't restore as it was; a backup says it.

A dump is loaded as the database's owner. What belongs to others becomes the owner's; what only a superuser may create
is left out, or refused by PostgreSQL.
"""

from __future__ import annotations

import re

from devstack.data.session import Session
from devstack.services.postgres import literal

FIRST = 16384
"""First number of an object that is not PostgreSQL's own (FirstNormalObjectId)."""

OBJECTS = """
WITH me AS (SELECT oid FROM pg_roles WHERE rolname = {owner}),
owned (class, id, owner, what) AS (
    SELECT 'pg_class'::regclass, oid, relowner, '' FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    UNION ALL
    SELECT 'pg_proc'::regclass, p.oid, proowner,
           CASE WHEN NOT lanpltrusted THEN 'language ' || lanname WHEN proleakproof THEN 'leakproof' ELSE '' END
      FROM pg_proc p JOIN pg_language l ON l.oid = prolang
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid, typowner, CASE WHEN typtype = 'b' THEN 'superuser' ELSE '' END
      FROM pg_type t LEFT JOIN pg_class c ON c.oid = typrelid WHERE typtype <> 'c' OR relkind = 'c'
    UNION ALL SELECT 'pg_namespace'::regclass, oid, nspowner, '' FROM pg_namespace
    UNION ALL SELECT 'pg_operator'::regclass, oid, oprowner, '' FROM pg_operator
    UNION ALL SELECT 'pg_collation'::regclass, oid, collowner, '' FROM pg_collation
    UNION ALL SELECT 'pg_conversion'::regclass, oid, conowner, '' FROM pg_conversion
    UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgowner, '' FROM pg_ts_config
    UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictowner, '' FROM pg_ts_dict
    UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxowner, '' FROM pg_statistic_ext
    UNION ALL
    SELECT 'pg_publication'::regclass, oid, pubowner, CASE WHEN puballtables THEN 'superuser' ELSE '' END
      FROM pg_publication
    UNION ALL SELECT 'pg_event_trigger'::regclass, oid, evtowner, 'superuser' FROM pg_event_trigger
    UNION ALL SELECT 'pg_subscription'::regclass, s.oid, subowner, 'superuser' FROM pg_subscription s
                JOIN pg_database d ON d.oid = subdbid AND datname = current_database()
    UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, fdwowner, 'superuser' FROM pg_foreign_data_wrapper
    UNION ALL SELECT 'pg_foreign_server'::regclass, oid, srvowner, 'superuser' FROM pg_foreign_server
    UNION ALL SELECT 'pg_language'::regclass, oid, lanowner, 'superuser' FROM pg_language
    UNION ALL SELECT 'pg_opclass'::regclass, oid, opcowner, 'superuser' FROM pg_opclass
    UNION ALL SELECT 'pg_opfamily'::regclass, oid, opfowner, 'superuser' FROM pg_opfamily
    UNION ALL SELECT 'pg_am'::regclass, oid, NULL, 'superuser' FROM pg_am
    UNION ALL SELECT 'pg_cast'::regclass, oid, NULL, 'superuser' FROM pg_cast WHERE castmethod = 'b'
    UNION ALL SELECT 'pg_transform'::regclass, oid, NULL, 'superuser' FROM pg_transform
    UNION ALL SELECT 'pg_ts_parser'::regclass, oid, NULL, 'superuser' FROM pg_ts_parser
    UNION ALL SELECT 'pg_ts_template'::regclass, oid, NULL, 'superuser' FROM pg_ts_template
),
acl (class, id, owner, acl) AS (
    SELECT 'pg_class'::regclass, oid, relowner, relacl FROM pg_class
     WHERE relnamespace <> 'information_schema'::regnamespace
    UNION ALL
    SELECT 'pg_proc'::regclass, oid, proowner, proacl FROM pg_proc
     WHERE pronamespace <> 'information_schema'::regnamespace
    UNION ALL
    SELECT 'pg_namespace'::regclass, oid, nspowner, nspacl FROM pg_namespace
     WHERE nspname NOT IN ('public', 'information_schema')
),
member (class, id) AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e' AND objsubid = 0)
SELECT concat(pg_describe_object(class, id, 0),
              ' (' || nullif(concat_ws(', ', nullif(replace(what, 'superuser', ''), ''),
                                       'owner ' || CASE WHEN owner <> me.oid THEN pg_get_userbyid(owner) END), '')
              || ')') AS name
  FROM owned, me
 WHERE id >= {first} AND (owner <> me.oid OR what <> '')
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = class AND d.objid = id AND d.objsubid = 0
                      AND d.deptype IN ('e', 'i'))
UNION ALL
SELECT format('privileges on %s, granted by %s', pg_describe_object(class, id, 0),
              string_agg(DISTINCT pg_get_userbyid(grantor)::text, ', '))
  FROM me, acl, aclexplode(acl) a
 WHERE id >= {first} AND a.grantor NOT IN (acl.owner, me.oid) AND (class, id) NOT IN (SELECT class, id FROM member)
 GROUP BY class, id
UNION ALL
SELECT 'privileges on ' || pg_describe_object(class, id, 0)
  FROM acl LEFT JOIN pg_init_privs i ON i.classoid = class AND i.objoid = id AND i.objsubid = 0
 WHERE (id < {first} OR (class, id) IN (SELECT class, id FROM member)) AND acl IS DISTINCT FROM i.initprivs
UNION ALL
SELECT DISTINCT 'default privileges of role ' || pg_get_userbyid(defaclrole) FROM pg_default_acl, me
 WHERE defaclrole <> me.oid
UNION ALL
SELECT 'security label on ' || pg_describe_object(classoid, objoid, objsubid) FROM pg_seclabel
UNION ALL
SELECT DISTINCT format('tablespace %s of %s', spcname, pg_describe_object('pg_class'::regclass, c.oid, 0))
  FROM me, pg_class c JOIN pg_tablespace t ON t.oid = reltablespace
 WHERE c.oid >= {first} AND NOT has_tablespace_privilege(me.oid, t.oid, 'CREATE')
UNION ALL
SELECT format('%s large object%s (owner %s)', count(*), CASE WHEN count(*) > 1 THEN 's' ELSE '' END,
              pg_get_userbyid(lomowner))
  FROM pg_largeobject_metadata, me WHERE lomowner <> me.oid GROUP BY lomowner
 ORDER BY 1
"""


def found(sql: Session, owner: str) -> list[str]:
    """Return what a database holds that its owner can't restore as it is, in words."""
    return [row["name"] for row in sql.rows(OBJECTS.format(owner=literal(owner), first=FIRST))]


def shown(names: list[str]) -> str:
    """Return a list that fits into a sentence, without what a terminal would obey: a dump may name things anyhow."""
    plain = [re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", name) for name in names[:5]]
    return ", ".join(plain) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
