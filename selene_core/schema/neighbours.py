"""Find views, rules and functions of others that show our tables past row-level security (contract §10).

The catalogue says which tables a view, a rule or a BEGIN ATOMIC body uses. For other functions the text is
searched: it names a table of ours with its schema, or has our schema in its search_path (its own, or else one
that a role or the database sets). SQL that a function builds while it runs cannot be seen, nor can copies.
"""

from __future__ import annotations

from typing import Final

from selene_core.schema.logins import EDGES

_OPEN: Final = "({item}.grantee <> {owner} AND {item}.grantee NOT IN (SELECT passing.role FROM passing))"
UNSHARED: Final = "; nobody else may use it"

# A security_invoker view reads as the querying role, even below another view. A materialized view is filled
# as its owner. Functions of triggers and indexes on our tables run as selene_owner, who writes them.
NEIGHBOURS: Final = f"""
    WITH RECURSIVE {EDGES},
    passing AS (SELECT r.oid AS role FROM pg_roles AS r WHERE r.rolsuper OR r.rolbypassrls),
    tables AS (
      SELECT c.oid, c.relname, c.relacl, c.relowner
      FROM pg_class AS c
      JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname IN ('os_core', 'conversation')
      WHERE c.relkind IN ('r', 'p') AND c.relname <> 'alembic_version'
    ),
    uses AS (
      SELECT DISTINCT rule.oid AS rule, c.oid AS relation, c.relkind, c.relowner, d.refobjid AS used,
        rule.ev_type = '1' AS is_view,
        c.relowner IN (SELECT passing.role FROM passing) AS passes,
        rule.ev_type = '1' AND EXISTS (
          SELECT FROM pg_options_to_table(c.reloptions) AS o
          WHERE CASE WHEN o.option_name = 'security_invoker' THEN o.option_value::boolean END
        ) AS is_invoker
      FROM pg_rewrite AS rule
      JOIN pg_class AS c ON c.oid = rule.ev_class
      JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = rule.oid
        AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> rule.ev_class
      WHERE rule.oid >= 16384 AND rule.ev_class NOT IN (SELECT tables.oid FROM tables)
    ),
    granted AS (
      SELECT a.attrelid AS relation, item.grantee, item.privilege_type
      FROM pg_attribute AS a
      JOIN pg_class AS c ON c.oid = a.attrelid
      CROSS JOIN LATERAL (SELECT * FROM aclexplode(c.relacl) UNION SELECT * FROM aclexplode(a.attacl)) AS item
      WHERE a.attrelid IN (SELECT tables.oid FROM tables UNION SELECT uses.relation FROM uses)
    ),
    opened AS (
      SELECT DISTINCT granted.relation FROM granted JOIN uses ON uses.relation = granted.relation
      WHERE {_OPEN.format(item="granted", owner="uses.relowner")}
    ),
    shown AS (
      SELECT tables.oid AS relation, FALSE AS is_invoker FROM tables
      UNION
      SELECT uses.relation, uses.is_invoker
      FROM shown JOIN uses ON uses.used = shown.relation AND uses.is_view
      WHERE uses.is_invoker OR (uses.passes AND (NOT shown.is_invoker OR uses.relkind = 'm'))
    ),
    attached AS (
      SELECT part.class, part.object, d.refobjid AS function, tables.relowner
      FROM (
        SELECT 'pg_trigger'::regclass AS class, t.oid AS object, t.tgrelid AS relation
        FROM pg_trigger AS t WHERE NOT t.tgisinternal
        UNION ALL SELECT 'pg_class'::regclass, i.indexrelid, i.indrelid FROM pg_index AS i
        UNION ALL SELECT 'pg_statistic_ext'::regclass, s.oid, s.stxrelid FROM pg_statistic_ext AS s
      ) AS part
      JOIN tables ON tables.oid = part.relation
      JOIN pg_depend AS d ON d.classid = part.class AND d.objid = part.object
        AND d.refclassid = 'pg_proc'::regclass
    ),
    code AS (
      SELECT p.oid, p.proowner, p.prosecdef, coalesce(p.proacl, acldefault('f', p.proowner)) AS acl,
        p.proowner IN (SELECT passing.role FROM passing) AS passes, (
          EXISTS (
            SELECT FROM pg_depend AS d JOIN shown ON shown.relation = d.refobjid
            WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.refclassid = 'pg_class'::regclass
          )
          OR p.prosrc ~* ('[[:<:]](os_core|conversation)"?[[:space:]]*[.][[:space:]]*"?' || names.any_of)
          OR (p.prosrc ~* ('[[:<:]]' || names.any_of) AND EXISTS (
            SELECT FROM unnest(CASE
                WHEN array_to_string(p.proconfig, ' ') ~ 'search_path=' THEN p.proconfig ELSE names.settings
              END) AS setting
            WHERE setting ~ '^search_path=.*[[:<:]](os_core|conversation)[[:>:]]'
          ))
        ) IS TRUE AS uses_ours
      FROM pg_proc AS p
      CROSS JOIN (
        SELECT '(' || string_agg(tables.relname, '|') || ')[[:>:]]', ARRAY(
          SELECT unnest(s.setconfig) FROM pg_db_role_setting AS s
          LEFT JOIN pg_database AS db ON db.oid = s.setdatabase
          WHERE coalesce(db.datname, current_database()) = current_database()
        )
        FROM tables
      ) AS names (any_of, settings)
      WHERE (p.prosecdef OR p.oid IN (SELECT attached.function FROM attached)) AND p.pronamespace NOT IN (
        SELECT n.oid FROM pg_namespace AS n
        WHERE n.nspname IN ('os_core', 'conversation', 'pg_catalog', 'information_schema')
      )
    ),
    readers AS (
      SELECT tables.oid AS relation, granted.grantee AS role, granted.grantee AS granted
      FROM tables JOIN granted ON granted.relation = tables.oid AND granted.privilege_type = 'SELECT'
      WHERE granted.grantee <> tables.relowner AND granted.grantee NOT IN (
        SELECT 0 UNION SELECT r.oid FROM pg_roles AS r
        WHERE r.rolname IN ('selene_owner', 'selene_app', 'selene_readonly', 'selene_feed')
      )
      UNION
      SELECT readers.relation, m.member, readers.granted
      FROM readers JOIN memberships AS m ON m.roleid = readers.role AND m.is_usable AND NOT m.is_own
    )
    SELECT 'outside ' || named.type || ' ' || named.identity, 'kind', found.what || ' with the rights of '
      || quote_ident(pg_get_userbyid(found.owner)) || ', for whom row-level security does not hold'
      || CASE WHEN found.is_open THEN '' ELSE '{UNSHARED}' END
    FROM (
      SELECT 'pg_class'::regclass AS class, uses.relation AS object, uses.relowner AS owner,
        CASE uses.relkind WHEN 'm' THEN 'is filled from' ELSE 'shows' END || ' our tables' AS what,
        uses.relation IN (SELECT opened.relation FROM opened) AS is_open
      FROM uses JOIN shown ON shown.relation = uses.relation AND NOT shown.is_invoker
      WHERE uses.is_view
      UNION
      SELECT 'pg_rewrite'::regclass, uses.rule, uses.relowner, 'uses our tables',
        uses.relation IN (SELECT opened.relation FROM opened)
      FROM uses JOIN shown ON shown.relation = uses.used AND NOT shown.is_invoker
      WHERE NOT uses.is_view AND uses.passes
      UNION
      SELECT 'pg_proc'::regclass, code.oid, code.proowner, 'uses our tables',
        EXISTS (
          SELECT FROM aclexplode(code.acl) AS item WHERE {_OPEN.format(item="item", owner="code.proowner")}
        )
      FROM code
      WHERE code.prosecdef AND code.passes AND code.uses_ours
        AND code.oid NOT IN (SELECT attached.function FROM attached)
    ) AS found
    CROSS JOIN LATERAL pg_identify_object(found.class, found.object, 0) AS named
    -- Not dropped meanwhile, and none that our schemas must not have anyway.
    WHERE named.identity IS NOT NULL AND coalesce(named.schema, '') NOT IN ('os_core', 'conversation')
    UNION
    SELECT 'outside ' || named.type || ' ' || named.identity, 'kind', string_agg(DISTINCT found.what, '; ')
    FROM (
      SELECT attached.class, attached.object, CASE
          WHEN code.uses_ours THEN 'uses our tables with rights by which it could change them'
          ELSE 'runs code as selene_owner that belongs to ' || quote_ident(pg_get_userbyid(code.proowner))
            || ', who may not act as selene_owner'
        END AS what
      FROM attached JOIN code ON code.oid = attached.function
      WHERE (code.uses_ours AND (NOT code.prosecdef OR code.passes OR code.proowner = attached.relowner))
        OR (NOT code.prosecdef AND NOT pg_has_role(code.proowner, attached.relowner, 'MEMBER'))
      UNION
      SELECT 'pg_authid'::regclass, r.oid, 'may read ' || readers.relation::regclass
        || CASE WHEN r.oid <> readers.granted THEN ' as a member of ' || readers.granted::regrole ELSE '' END
        || ', and row-level security does not hold for it'
      FROM readers JOIN pg_roles AS r ON r.oid = readers.role
      WHERE r.rolbypassrls AND NOT r.rolsuper OR r.rolsuper AND r.oid = readers.granted
    ) AS found
    CROSS JOIN LATERAL pg_identify_object(found.class, found.object, 0) AS named
    WHERE named.identity IS NOT NULL
    GROUP BY named.type, named.identity
"""
