"""Every table is distributed by its tenant, all in one group, and the functions are known to the nodes.

Revision ID: c0001
Revises:
"""

from alembic import op

from selene_core.citus import by_columns, row_rule

revision = "c0001"
down_revision = None
branch_labels = None
depends_on = None

CORE = "0017"
SHARDS = 32
TABLES = """
    SELECT c.oid, c.oid::regclass::text
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
    WHERE c.relnamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace) AND c.relkind = 'r'
    ORDER BY 2
"""
PARENTS = """
    SELECT conrelid, confrelid FROM pg_constraint
    WHERE contype = 'f' AND conrelid <> confrelid
      AND connamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)
"""
KEYS = """
    SELECT k.conrelid::regclass::text, quote_ident(k.conname),
      string_agg(quote_ident(a.attname), ', ' ORDER BY n.place)
    FROM pg_constraint AS k
    CROSS JOIN LATERAL unnest(k.conkey) WITH ORDINALITY AS n (number, place)
    JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = n.number
    WHERE k.contype = 'p' AND k.conrelid = ANY(%(tables)s::oid[])
    GROUP BY k.conrelid, k.conname
    HAVING NOT bool_or(a.attname = 'tenant_id')
"""
POLICIES = """
    SELECT p.polrelid::regclass::text, quote_ident(p.polname), concat_ws(' ',
      'AS ' || CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
      'FOR ' || CASE p.polcmd WHEN '*' THEN 'ALL' WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT'
        WHEN 'w' THEN 'UPDATE' ELSE 'DELETE' END,
      'TO ' || (
        SELECT string_agg(CASE WHEN r = 0 THEN 'PUBLIC' ELSE r::regrole::text END, ', ')
        FROM unnest(p.polroles) AS r
      ),
      'USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',
      'WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
    FROM pg_policy AS p
    WHERE p.polrelid = ANY(%(tables)s::oid[])
    ORDER BY p.oid
"""
# The ledger's CHECK takes the row.
ROW_CHECK = """
    SELECT pg_get_constraintdef(k.oid), (
      SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
      FROM pg_attribute AS a WHERE a.attrelid = k.conrelid AND a.attnum > 0 AND NOT a.attisdropped
    )
    FROM pg_constraint AS k
    WHERE k.conrelid = 'os_core.work_order_ledger'::regclass AND k.conname = 'ck_work_order_ledger_contract'
"""
FUNCTIONS = """
    SELECT p.oid::regprocedure::text
    FROM pg_proc AS p
    WHERE p.pronamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)
"""
MISSING = f"""
    {FUNCTIONS} AND NOT EXISTS (
      SELECT FROM pg_dist_object AS o WHERE o.classid = 'pg_proc'::regclass AND o.objid = p.oid
    )
"""
ROWS = """
    SELECT FROM pg_type AS t LEFT JOIN pg_type AS e ON e.oid = t.typelem
    WHERE (t.oid = p.prorettype OR t.oid = ANY(p.proargtypes)) AND 'c' IN (t.typtype, e.typtype)
"""
IN_ORDER = "ORDER BY p.prokind = 'a', 1"  # an aggregate after its function


def run(statement: str, **parameters: object) -> list[tuple[str, ...]]:
    found = op.get_bind().exec_driver_sql(
        statement.replace("%", "%%") if not parameters else statement, parameters or None
    )
    return [tuple(row) for row in found] if found.returns_rows else []


def upgrade() -> None:
    ((stands,),) = run("SELECT string_agg(version_num, ', ') FROM os_core.alembic_version")
    if stands != CORE:
        raise ValueError(f"this step is for a database at revision {CORE}, and this one stands at {stands}")
    run("SET LOCAL search_path = pg_catalog")
    tables = in_order(run(TABLES), run(PARENTS))
    oids = [oid for oid, _ in tables]
    keys, policies = run(KEYS, tables=oids), run(POLICIES, tables=oids)
    (check,) = run(ROW_CHECK)
    run("ALTER TABLE os_core.work_order_ledger DROP CONSTRAINT ck_work_order_ledger_contract")
    run(row_rule())
    # Under FORCE, a copy of rows by the owner is refused.
    for _, table in tables:
        run(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    for table, name, columns in keys:
        run(
            f"ALTER TABLE {table} DROP CONSTRAINT {name},"
            f" ADD CONSTRAINT {name} PRIMARY KEY (tenant_id, {columns})"
        )
    # Citus compares the tenant of a call with that of a statement, with the collation: a parameter has the
    # database's.
    for table, name, _ in policies:
        run(f"DROP POLICY {name} ON {table}")
    for _, table in tables:
        run(f'ALTER TABLE {table} ALTER COLUMN tenant_id TYPE text COLLATE "default"')
    for table, name, definition in policies:
        run(f"CREATE POLICY {name} ON {table} {definition}")
    # The CHECKs of the rows that are copied call rules, and these call others by name.
    for (name,) in run(f"{MISSING} AND p.provolatile = 'i' AND NOT EXISTS ({ROWS}) {IN_ORDER}"):
        run(f"SELECT pg_catalog.create_distributed_function('{name}')")
    first = tables[0][1]
    for _, table in tables:
        how = (
            f"shard_count := {SHARDS}, colocate_with := 'none'"
            if table == first
            else f"colocate_with := '{first}'"
        )
        run(f"SELECT pg_catalog.create_distributed_table('{table}', 'tenant_id', {how})")
    for _, table in tables:
        run(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    # A statement whose plan depends on its values cannot be planned without them.
    for (name,) in run(f"{FUNCTIONS} AND 'plan_cache_mode=force_generic_plan' = ANY(p.proconfig) ORDER BY 1"):
        run(f"ALTER FUNCTION {name} RESET plan_cache_mode")
    # A guard fires on a part of a table and asks another table: of the same tenant, and so on the same node.
    for (name,) in run(f"{FUNCTIONS} AND p.prorettype = 'trigger'::regtype ORDER BY 1"):
        run(f"ALTER FUNCTION {name} SET citus.allow_nested_distributed_execution = on")
    # What has to do with a table's row could not be sent to the nodes before the table.
    for (name,) in run(f"{MISSING} {IN_ORDER}"):
        run(f"SELECT pg_catalog.create_distributed_function('{name}')")
    run(
        "ALTER TABLE os_core.work_order_ledger"
        f" ADD CONSTRAINT ck_work_order_ledger_contract {by_columns(*check)}"
    )
    # Default privileges stay on the coordinator: on the other nodes PUBLIC could execute everything.
    for (name,) in run(f"{FUNCTIONS} ORDER BY 1"):
        run(f"REVOKE EXECUTE ON ROUTINE {name} FROM PUBLIC")


def in_order(tables: list[tuple[str, ...]], keys: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Put the tables that others refer to before these."""
    ordered: list[tuple[str, ...]] = []
    while rest := [table for table in tables if table not in ordered]:
        done = {oid for oid, _ in ordered}
        ordered += [
            each for each in rest if all(parent in done for child, parent in keys if child == each[0])
        ]
    return ordered


def downgrade() -> None:
    raise NotImplementedError("the way back is a copy: docs/howto/citus.md")
