"""Read our schemas from the system catalogues, as facts that are the same on every server version.

A fact is a thing, an aspect of it, and a value. Names are quoted for SQL, so that a statement that repairs a
fact can be built from it. Every role may read these facts. They do not depend on settings of the session, nor
on the line ends of the script that made something.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from selene_core.citus import as_on_one_node, has_version_table, is_distributed
from selene_core.schema.drift import expected_schema
from selene_core.schema.neighbours import NEIGHBOURS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

Facts: TypeAlias = "dict[str, dict[str, str]]"
"""Thing, aspect, value: facts["relation os_core.work_order_ledger"]["row security"] == "enabled"."""

# These settings change how the server prints definitions. They override those of session, role and database.
_SETTINGS: Final = {
    # To print a constraint, the server locks its table for reading.
    "lock_timeout": "5s",
    # Names in the search path would be printed without their schema.
    "search_path": "pg_catalog",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
}
_ROLES: Final = "('selene_owner', 'selene_app', 'selene_readonly', 'selene_feed')"
_OURS: Final = "(SELECT n.oid FROM pg_namespace AS n WHERE n.nspname IN ('os_core', 'conversation'))"


def read(conn: Connection) -> Facts:
    """Read the roles, everything in os_core and conversation, and what others made around it.

    It needs a transaction, and tells a distributed schema as that of one node. Where a migration holds a
    table's lock it waits for some seconds, then the database raises 55P03.
    """
    facts: Facts = {}
    with plain_settings(conn):
        for query in _QUERIES:
            rows = [(thing, aspect, value) for thing, aspect, value in conn.exec_driver_sql(query)]
            # Sorted by Python, because collations differ between databases. Columns keep their order.
            for thing, aspect, value in rows if query is _COLUMNS else sorted(rows):
                facts.setdefault(thing, {})[aspect] = value
        if is_distributed(conn):
            as_on_one_node(facts, expected_schema().facts)
    return dict(sorted(facts.items()))


@contextmanager
def plain_settings(conn: Connection) -> Iterator[None]:
    """Read as in a session without settings; needs a transaction, and rolls back what the block does."""
    with conn.begin_nested() as savepoint:
        for name, value in _SETTINGS.items():
            conn.exec_driver_sql(f"SET LOCAL {name} = '{value}'")
        yield
        savepoint.rollback()


def read_revisions(conn: Connection) -> tuple[str, ...] | None:
    """Return the rows of the version table: one revision if all is well; None without the table."""
    if not has_version_table(conn, "alembic_version"):
        return None
    found = conn.exec_driver_sql("SELECT version_num FROM os_core.alembic_version ORDER BY 1")
    return tuple(found.scalars())


def render(facts: Mapping[str, Mapping[str, str]]) -> str:
    """Write facts as text, one a line."""
    return "\n".join(
        "\n  ".join([thing, *(f"{aspect}: {value}" for aspect, value in aspects.items())]) + "\n"
        for thing, aspects in facts.items()
    )


def _grants(things: str) -> str:
    """Compose SQL for access lists; what an owner has by default depends on the version, and is called ALL.

    `things` selects thing, part, kind, acl and owner. The owner is written as OWNER: who it is is a separate
    fact.
    """
    return f"""
    SELECT listed.thing,
      'grant' || listed.part || ' to '
        || CASE item.grantee WHEN 0 THEN 'PUBLIC' WHEN listed.owner THEN 'OWNER'
          ELSE quote_ident(pg_get_userbyid(item.grantee)) END
        || CASE WHEN item.grantor <> listed.owner
          THEN ' by ' || quote_ident(pg_get_userbyid(item.grantor)) ELSE '' END,
      CASE
        WHEN item.grantee = listed.owner
          AND array_agg(item.privilege_type ORDER BY item.privilege_type) = (
            SELECT array_agg(usual.privilege_type ORDER BY usual.privilege_type)
            FROM aclexplode(acldefault(listed.kind::"char", listed.owner)) AS usual
            WHERE usual.grantee = listed.owner
          ) THEN 'ALL'
        ELSE string_agg(
          item.privilege_type || CASE WHEN item.is_grantable THEN '*' ELSE '' END, ','
          ORDER BY item.privilege_type
        )
      END
    FROM ({things}) AS listed (thing, part, kind, acl, owner)
    CROSS JOIN LATERAL aclexplode(coalesce(listed.acl, acldefault(listed.kind::"char", listed.owner))) AS item
    GROUP BY listed.thing, listed.part, listed.kind, listed.owner, item.grantee, item.grantor
    """


_RELATIONS: Final = f"""
    SELECT c.*, 'relation ' || c.oid::regclass::text AS thing
    FROM pg_class AS c WHERE c.relnamespace IN {_OURS} AND c.relkind NOT IN ('i', 'I', 'S', 'c')
"""
_SEQUENCES: Final = f"""
    SELECT c.*, 'sequence ' || c.oid::regclass::text AS thing
    FROM pg_class AS c WHERE c.relnamespace IN {_OURS} AND c.relkind = 'S'
"""
_FUNCTIONS: Final = f"""
    SELECT p.*, 'function ' || p.oid::regprocedure::text AS thing
    FROM pg_proc AS p WHERE p.pronamespace IN {_OURS}
"""

_COLUMNS: Final = f"""
    SELECT c.thing, 'column ' || quote_ident(a.attname), concat_ws(' ',
      format_type(a.atttypid, a.atttypmod),
      'COLLATE ' || nullif(a.attcollation, 0)::regcollation::text,
      CASE WHEN a.attnotnull AND NOT EXISTS (
        -- From 18 on it may hold for new rows only.
        SELECT FROM pg_constraint AS n
        WHERE n.conrelid = a.attrelid AND n.contype = 'n' AND n.conkey = ARRAY[a.attnum]
          AND NOT n.convalidated
      ) THEN 'NOT NULL' END,
      CASE a.attidentity WHEN 'a' THEN 'GENERATED ALWAYS AS IDENTITY'
        WHEN 'd' THEN 'GENERATED BY DEFAULT AS IDENTITY' END,
      CASE a.attgenerated
        WHEN '' THEN 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid)
        ELSE 'GENERATED ALWAYS AS (' || pg_get_expr(d.adbin, d.adrelid) || ') '
          || CASE a.attgenerated WHEN 's' THEN 'STORED' ELSE 'VIRTUAL' END
      END)
    FROM ({_RELATIONS}) AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    ORDER BY c.oid, a.attnum
"""

# Each query returns thing, aspect and value. NULL parts of a value fall out.
_QUERIES: Final = (
    f"""
    SELECT 'role ' || rolname, 'attributes', concat_ws(' ',
      CASE WHEN rolcanlogin THEN 'LOGIN' ELSE 'NOLOGIN' END,
      CASE WHEN rolsuper THEN 'SUPERUSER' END,
      CASE WHEN rolbypassrls THEN 'BYPASSRLS' END,
      CASE WHEN rolcreaterole THEN 'CREATEROLE' END,
      CASE WHEN rolcreatedb THEN 'CREATEDB' END,
      CASE WHEN rolreplication THEN 'REPLICATION' END)
    FROM pg_roles WHERE rolname IN {_ROLES}
    """,
    f"""
    SELECT 'role ' || member.rolname,
      'member of ' || quote_ident(role.rolname) || coalesce(' by ' || quote_ident(grantor.rolname), ''),
      CASE WHEN m.admin_option THEN 'WITH ADMIN OPTION' ELSE 'plain' END
    FROM pg_auth_members AS m
    JOIN pg_roles AS member ON member.oid = m.member
    JOIN pg_roles AS role ON role.oid = m.roleid
    LEFT JOIN pg_roles AS grantor ON grantor.oid = m.grantor
    WHERE member.rolname IN {_ROLES}
    """,
    f"""
    SELECT 'schema ' || nspname, 'owner', quote_ident(pg_get_userbyid(nspowner))
    FROM pg_namespace WHERE oid IN {_OURS}
    """,
    # Default privileges of the owner: the database-wide list replaces the server's defaults. The list of a
    # schema is added to that, for every creator.
    *(
        _grants(f"""
        SELECT 'default privileges of selene_owner', ' on {called}', '{kind}', d.defaclacl, r.oid
        FROM pg_roles AS r
        LEFT JOIN pg_default_acl AS d ON d.defaclrole = r.oid AND d.defaclnamespace = 0
          AND d.defaclobjtype = '{objects}'
        WHERE r.rolname = 'selene_owner'
        UNION ALL
        SELECT 'default privileges of ' || quote_ident(pg_get_userbyid(defaclrole))
          || ' in schema ' || defaclnamespace::regnamespace, ' on {called}', '{kind}', defaclacl, defaclrole
        FROM pg_default_acl WHERE defaclnamespace IN {_OURS} AND defaclobjtype = '{objects}'
        """)
        for kind, objects, called in (
            ("r", "r", "TABLES"),
            ("s", "S", "SEQUENCES"),
            ("f", "f", "FUNCTIONS"),
            ("T", "T", "TYPES"),
            ("n", "n", "SCHEMAS"),
        )
    ),
    f"""
    SELECT c.thing, fact.*
    FROM ({_RELATIONS}) AS c
    CROSS JOIN LATERAL (VALUES
      ('kind', CASE c.relkind WHEN 'r' THEN 'TABLE' WHEN 'p' THEN 'PARTITIONED TABLE' WHEN 'v' THEN 'VIEW'
        WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'f' THEN 'FOREIGN TABLE' ELSE c.relkind::text END),
      ('owner', quote_ident(pg_get_userbyid(c.relowner))),
      ('persistence', CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED' WHEN 't' THEN 'TEMPORARY' END),
      ('row security', CASE WHEN c.relrowsecurity THEN 'enabled' ELSE 'disabled' END),
      ('force row security', CASE WHEN c.relforcerowsecurity THEN 'enabled' ELSE 'disabled' END),
      ('replica identity', nullif(c.relreplident::text, 'd')),
      ('options', array_to_string(c.reloptions, ', ')),
      ('columns', (
        SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
        FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      ))
    ) AS fact (aspect, value)
    WHERE fact.value IS NOT NULL
    """,
    _COLUMNS,
    # The default is -1 up to 16, and NULL from 17 on.
    f"""
    SELECT c.thing, 'statistics target of ' || quote_ident(a.attname), a.attstattarget::text
    FROM ({_RELATIONS}) AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attstattarget <> -1
    """,
    f"""
    SELECT c.thing, 'extended statistics ' || quote_ident(n.nspname) || '.' || quote_ident(s.stxname),
      pg_get_statisticsobjdef(s.oid)
    FROM pg_statistic_ext AS s
    JOIN ({_RELATIONS}) AS c ON c.oid = s.stxrelid
    JOIN pg_namespace AS n ON n.oid = s.stxnamespace
    """,
    # From 18 on, NOT NULL is a constraint ('n'), too; here it is a fact of its column.
    f"""
    SELECT 'relation ' || conrelid::regclass::text, 'constraint ' || quote_ident(conname),
      pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace IN {_OURS} AND conrelid <> 0 AND contype NOT IN ('n', 't')
    """,
    f"""
    SELECT 'relation ' || i.indrelid::regclass::text, 'index ' || quote_ident(c.relname), concat_ws(' ',
      pg_get_indexdef(i.indexrelid),
      CASE WHEN NOT (i.indisvalid AND i.indisready AND i.indislive) THEN 'INVALID' END)
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relnamespace IN {_OURS}
    """,
    f"""
    SELECT c.thing, 'policy ' || quote_ident(p.polname), concat_ws(' ',
      'AS ' || CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
      'FOR ' || CASE p.polcmd WHEN '*' THEN 'ALL' WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT'
        WHEN 'w' THEN 'UPDATE' ELSE 'DELETE' END,
      'TO ' || (
        SELECT string_agg(
          CASE WHEN r.oid = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.oid)) END, ', ' ORDER BY r.oid
        )
        FROM unnest(p.polroles) AS r (oid)
      ),
      'USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',
      'WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
    FROM pg_policy AS p JOIN ({_RELATIONS}) AS c ON c.oid = p.polrelid
    """,
    # The triggers of a foreign key are named by numbers: a fact only if one is switched off.
    f"""
    SELECT c.thing, 'trigger ' || quote_ident(t.tgname),
      CASE WHEN t.tgisinternal THEN 'of a foreign key' ELSE pg_get_triggerdef(t.oid) END
      || ', enabled '
      || CASE t.tgenabled WHEN 'A' THEN 'ALWAYS' WHEN 'R' THEN 'REPLICA' WHEN 'O' THEN 'ORIGIN'
        ELSE 'NEVER' END
    FROM pg_trigger AS t JOIN ({_RELATIONS}) AS c ON c.oid = t.tgrelid
    WHERE NOT t.tgisinternal OR t.tgenabled <> 'O'
    """,
    f"""
    SELECT c.thing, 'rule ' || quote_ident(r.rulename), pg_get_ruledef(r.oid)
    FROM pg_rewrite AS r JOIN ({_RELATIONS}) AS c ON c.oid = r.ev_class
    """,
    # A query of a parent needs no privilege on its children, and does not apply their policies.
    f"""
    SELECT c.thing, CASE c.oid WHEN i.inhparent THEN 'child ' || i.inhrelid::regclass
      ELSE 'parent ' || i.inhparent::regclass END, 'there'
    FROM ({_RELATIONS}) AS c JOIN pg_inherits AS i ON c.oid IN (i.inhparent, i.inhrelid)
    """,
    f"""
    SELECT c.thing, fact.*
    FROM ({_SEQUENCES}) AS c
    JOIN pg_sequence AS s ON s.seqrelid = c.oid
    CROSS JOIN LATERAL (VALUES
      ('owner', quote_ident(pg_get_userbyid(c.relowner))),
      ('definition', concat_ws(' ',
        'AS', format_type(s.seqtypid, NULL), 'INCREMENT', s.seqincrement,
        'MINVALUE', s.seqmin, 'MAXVALUE', s.seqmax, 'START', s.seqstart, 'CACHE', s.seqcache,
        CASE WHEN s.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END)),
      ('owned by', (
        SELECT d.refobjid::regclass || '.' || quote_ident(a.attname)
        FROM pg_depend AS d
        JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
      ))
    ) AS fact (aspect, value)
    WHERE fact.value IS NOT NULL
    """,
    f"""
    SELECT p.thing, fact.*
    FROM ({_FUNCTIONS}) AS p
    JOIN pg_language AS l ON l.oid = p.prolang
    LEFT JOIN pg_aggregate AS a ON a.aggfnoid = p.oid
    CROSS JOIN LATERAL (VALUES
      ('signature', '(' || pg_get_function_arguments(p.oid) || ') -> '
        || coalesce(pg_get_function_result(p.oid), '')),
      ('attributes', concat_ws(', ',
        'kind ' || p.prokind::text,
        l.lanname,
        CASE p.provolatile WHEN 'i' THEN 'IMMUTABLE' WHEN 's' THEN 'STABLE' ELSE 'VOLATILE' END,
        'PARALLEL ' || CASE p.proparallel WHEN 's' THEN 'SAFE' WHEN 'r' THEN 'RESTRICTED' ELSE 'UNSAFE' END,
        CASE WHEN p.proisstrict THEN 'STRICT' END,
        CASE WHEN p.proleakproof THEN 'LEAKPROOF' END,
        CASE WHEN p.prosecdef THEN 'SECURITY DEFINER' ELSE 'SECURITY INVOKER' END)),
      ('owner', quote_ident(pg_get_userbyid(p.proowner))),
      -- Stored with the quotes of quote_all_identifiers where the session that made it had them.
      ('settings', coalesce(
        regexp_replace(array_to_string(p.proconfig, '; '), '"([a-z_][a-z0-9_]*)"', '\\1', 'g'), 'none')),
      ('body', concat_ws(' ',
        -- A script may have been saved with other line ends.
        md5(replace(coalesce(pg_get_function_sqlbody(p.oid), p.prosrc), chr(13) || chr(10), chr(10))),
        a.aggtransfn,
        a.aggtranstype::regtype,
        a.agginitval))
    ) AS fact (aspect, value)
    """,
    _grants(f"""
    SELECT 'schema ' || nspname, '', 'n', nspacl, nspowner FROM pg_namespace WHERE oid IN {_OURS}
    UNION ALL SELECT thing, '', 'r', relacl, relowner FROM ({_RELATIONS}) AS c
    UNION ALL SELECT thing, '', 's', relacl, relowner FROM ({_SEQUENCES}) AS c
    UNION ALL SELECT thing, '', 'f', proacl, proowner FROM ({_FUNCTIONS}) AS p
    """),
    _grants(f"""
    SELECT c.thing, ' (' || quote_ident(a.attname) || ')', 'c', a.attacl, c.relowner
    FROM ({_RELATIONS}) AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE a.attacl IS NOT NULL AND NOT a.attisdropped
    """),
    # A table's row type and its array come with the table.
    f"""
    SELECT 'type ' || t.oid::regtype::text, fact.*
    FROM pg_type AS t
    CROSS JOIN LATERAL (VALUES
      ('kind', t.typtype::text), ('owner', quote_ident(pg_get_userbyid(t.typowner)))
    ) AS fact (aspect, value)
    WHERE t.typnamespace IN {_OURS} AND t.typelem = 0
      AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = t.typrelid AND c.relkind <> 'c')
    """,
    NEIGHBOURS,
)
