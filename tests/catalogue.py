"""What our schemas are, as text that no server version changes: it is compared with catalogue.txt.

After a change that is meant, write it anew and read the difference:

    python -m tests.catalogue > tests/catalogue.txt
"""

import sys
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa

from selene_core.migrations import upgrade
from tests.servers import open_server

GOLDEN = Path(__file__).with_name("catalogue.txt")
_OURS = "('os_core'::regnamespace, 'conversation'::regnamespace)"


def _acl(kind: str, acl: str, owner: str) -> str:
    """Compose SQL for an access list; an owner's defaults depend on the version, and are called ALL."""
    return f"""(
      SELECT 'acl: ' || coalesce(string_agg(entry.line, ' ' ORDER BY entry.line), 'none')
      FROM (
        SELECT
          CASE WHEN item.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(item.grantee) END
          || CASE WHEN item.grantor <> {owner} THEN ' by ' || pg_get_userbyid(item.grantor) ELSE '' END
          || '='
          || CASE
            WHEN item.grantee = {owner}
              AND array_agg(item.privilege_type ORDER BY item.privilege_type) = (
                SELECT array_agg(usual.privilege_type ORDER BY usual.privilege_type)
                FROM aclexplode(acldefault('{kind}', {owner})) AS usual
                WHERE usual.grantee = {owner}
              ) THEN 'ALL'
            ELSE string_agg(
              item.privilege_type || CASE WHEN item.is_grantable THEN '*' ELSE '' END, ','
              ORDER BY item.privilege_type
            )
          END AS line
        FROM aclexplode(coalesce({acl}, acldefault('{kind}', {owner}))) AS item
        GROUP BY item.grantee, item.grantor
      ) AS entry
    )"""


# Each query returns what a line belongs to, and the line. NULL parts fall out.
_QUERIES = (
    """
    SELECT 'role ' || rolname, concat_ws(', ',
      CASE WHEN rolcanlogin THEN 'LOGIN' ELSE 'NOLOGIN' END,
      CASE WHEN rolsuper THEN 'SUPERUSER' END,
      CASE WHEN rolbypassrls THEN 'BYPASSRLS' END,
      CASE WHEN rolcreaterole THEN 'CREATEROLE' END,
      CASE WHEN rolcreatedb THEN 'CREATEDB' END,
      CASE WHEN rolreplication THEN 'REPLICATION' END)
    FROM pg_roles WHERE rolname IN ('selene_owner', 'selene_app', 'selene_readonly')
    """,
    """
    SELECT 'role ' || member.rolname, 'member of ' || role.rolname
    FROM pg_auth_members AS m
    JOIN pg_roles AS member ON member.oid = m.member
    JOIN pg_roles AS role ON role.oid = m.roleid
    WHERE member.rolname IN ('selene_owner', 'selene_app', 'selene_readonly')
    """,
    f"""
    SELECT 'schema ' || nspname,
      'owner: ' || pg_get_userbyid(nspowner) || ', ' || {_acl("n", "nspacl", "nspowner")}
    FROM pg_namespace WHERE oid IN {_OURS}
    """,
    """
    SELECT 'default privileges', pg_get_userbyid(defaclrole)
      || coalesce(' in schema ' || nullif(defaclnamespace, 0)::regnamespace::text, '')
      || ' for ' || defaclobjtype::text || ': '
      || (SELECT coalesce(string_agg(line, ' ' ORDER BY line), 'none')
          FROM (
            SELECT CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee) END
              || '=' || privilege_type AS line
            FROM aclexplode(defaclacl)
          ) AS item)
    FROM pg_default_acl
    """,
    f"""
    SELECT 'relation ' || oid::regclass::text, concat_ws(', ',
      'attributes: kind ' || relkind::text,
      'owner: ' || pg_get_userbyid(relowner),
      CASE WHEN relpersistence <> 'p' THEN 'persistence ' || relpersistence::text END,
      CASE WHEN relrowsecurity THEN 'row security' ELSE 'NO row security' END,
      CASE WHEN relforcerowsecurity THEN 'forced' ELSE 'NOT forced' END,
      CASE WHEN relreplident <> 'd' THEN 'replica identity ' || relreplident::text END,
      CASE WHEN relispartition THEN 'partition' END,
      'options: ' || reloptions::text,
      {_acl("r", "relacl", "relowner")})
    FROM pg_class WHERE relnamespace IN {_OURS} AND relkind NOT IN ('i', 'I', 'S', 'c')
    """,
    f"""
    SELECT 'relation ' || c.oid::regclass::text, concat_ws(' ',
      'column',
      lpad((row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum))::text, 2, '0'),
      a.attname,
      format_type(a.atttypid, a.atttypmod),
      'COLLATE ' || nullif(a.attcollation, 0)::regcollation::text,
      CASE WHEN a.attnotnull THEN 'NOT NULL' END,
      'IDENTITY ' || nullif(a.attidentity::text, ''),
      'GENERATED ' || nullif(a.attgenerated::text, ''),
      'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
      'acl: ' || a.attacl::text)
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace IN {_OURS} AND c.relkind NOT IN ('i', 'I', 'S')
    """,
    # From 18 on, NOT NULL is a constraint ('n') too; here it stands with its column.
    f"""
    SELECT 'relation ' || conrelid::regclass::text,
      'constraint ' || conname || ' ' || pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace IN {_OURS} AND conrelid <> 0 AND contype <> 'n'
    """,
    f"""
    SELECT 'relation ' || i.indrelid::regclass::text, concat_ws(' ',
      'index',
      pg_get_indexdef(i.indexrelid),
      CASE WHEN NOT (i.indisvalid AND i.indisready AND i.indislive) THEN 'INVALID' END)
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid WHERE c.relnamespace IN {_OURS}
    """,
    f"""
    SELECT 'relation ' || c.oid::regclass::text, concat_ws(' ',
      'policy',
      p.polname,
      CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
      'FOR ' || CASE p.polcmd WHEN '*' THEN 'ALL' ELSE p.polcmd::text END,
      'TO ' || (
        SELECT string_agg(CASE WHEN r = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(r) END, ', ')
        FROM unnest(p.polroles) AS r
      ),
      'USING ' || pg_get_expr(p.polqual, p.polrelid),
      'WITH CHECK ' || pg_get_expr(p.polwithcheck, p.polrelid))
    FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid WHERE c.relnamespace IN {_OURS}
    """,
    # The triggers of a foreign key have numbers for names: told only when one is switched off.
    f"""
    SELECT 'relation ' || c.oid::regclass::text,
      CASE WHEN t.tgisinternal THEN 'trigger of a foreign key' ELSE 'trigger ' || pg_get_triggerdef(t.oid) END
      || ', enabled ' || t.tgenabled::text
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    WHERE c.relnamespace IN {_OURS} AND (NOT t.tgisinternal OR t.tgenabled <> 'O')
    """,
    f"""
    SELECT 'relation ' || c.oid::regclass::text, 'rule ' || pg_get_ruledef(r.oid)
    FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class WHERE c.relnamespace IN {_OURS}
    """,
    f"""
    SELECT 'sequence ' || c.oid::regclass::text, concat_ws(', ',
      'owner: ' || pg_get_userbyid(c.relowner),
      format_type(s.seqtypid, NULL),
      concat('start ', seqstart, ', increment ', seqincrement, ', from ', seqmin, ' to ', seqmax),
      concat('cache ', seqcache),
      CASE WHEN seqcycle THEN 'CYCLE' END,
      'of ' || (
        SELECT d.refobjid::regclass || '.' || a.attname
        FROM pg_depend AS d
        JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
      ),
      {_acl("S", "relacl", "relowner")})
    FROM pg_class AS c JOIN pg_sequence AS s ON s.seqrelid = c.oid WHERE c.relnamespace IN {_OURS}
    """,
    f"""
    SELECT 'function ' || p.oid::regprocedure::text, unnest(ARRAY[
      '(' || pg_get_function_arguments(p.oid) || ') -> ' || coalesce(pg_get_function_result(p.oid), ''),
      concat_ws(', ',
        'kind ' || p.prokind::text,
        l.lanname,
        CASE p.provolatile WHEN 'i' THEN 'IMMUTABLE' WHEN 's' THEN 'STABLE' ELSE 'VOLATILE' END,
        'PARALLEL ' || CASE p.proparallel WHEN 's' THEN 'SAFE' WHEN 'r' THEN 'RESTRICTED' ELSE 'UNSAFE' END,
        CASE WHEN p.proisstrict THEN 'STRICT' END,
        CASE WHEN p.proleakproof THEN 'LEAKPROOF' END,
        CASE WHEN p.prosecdef THEN 'SECURITY DEFINER' ELSE 'SECURITY INVOKER' END),
      'owner: ' || pg_get_userbyid(p.proowner) || ', ' || {_acl("f", "p.proacl", "p.proowner")},
      'settings: ' || coalesce(array_to_string(p.proconfig, '; '), 'none'),
      concat_ws(' ',
        'body: ' || md5(coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)),
        a.aggtransfn,
        a.aggtranstype::regtype,
        a.agginitval)])
    FROM pg_proc AS p
    JOIN pg_language AS l ON l.oid = p.prolang
    LEFT JOIN pg_aggregate AS a ON a.aggfnoid = p.oid
    WHERE p.pronamespace IN {_OURS}
    """,
    # A table's row type and its array come with the table.
    f"""
    SELECT 'type ' || t.oid::regtype::text,
      'kind ' || t.typtype::text || ', owner: ' || pg_get_userbyid(t.typowner)
    FROM pg_type AS t
    WHERE t.typnamespace IN {_OURS} AND t.typelem = 0
      AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = t.typrelid AND c.relkind <> 'c')
    """,
)


def catalogue(conn: sa.Connection) -> str:
    """Describe the roles and everything in os_core and conversation, one fact a line."""
    facts: dict[str, list[str]] = {}
    with conn.begin():
        # What stands in the search path would be printed without its schema.
        conn.exec_driver_sql("SET LOCAL search_path = pg_catalog")
        for query in _QUERIES:
            for thing, line in conn.exec_driver_sql(query):
                facts.setdefault(thing, []).append(line)
    # A function's lines come in their order; the lines of anything else in none.
    return "\n".join(
        "\n  ".join([thing, *(lines if thing.startswith("function ") else sorted(lines))]) + "\n"
        for thing, lines in sorted(facts.items())
    )


def _main() -> None:
    with ExitStack() as stack:
        server = open_server(stack)
        with server.new_database("catalogue") as database:
            upgrade(database.admin_url)
            with database.engine("admin").connect() as conn:
                sys.stdout.write(catalogue(conn))


if __name__ == "__main__":
    _main()
