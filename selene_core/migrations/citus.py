"""Distribute a database by the scale-out profile's revisions, and check that every node is as it must be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, pool

from selene_core.citus import VERSION_TABLE, is_distributed, script_directory
from selene_core.migrations import MigrationRefused, configured_url, revision_of
from selene_core.migrations.runs import Run
from selene_core.store.engines import CONNECT_ARGS, psycopg_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import URL, Connection

    from selene_core.migrations import Revision


def upgrade(url: str | URL | None = None) -> list[Revision]:
    """Distribute the database, or bring its profile up to date; return the steps that this run made.

    Each step is a transaction. Raises MigrationRefused if the database is not at the core revision that a
    step is for, has no Citus, or the coordinator is not asked.
    """
    configuration = Config(attributes={} if url is None else {"url": url})
    scripts = _scripts(configuration)
    with _connected(configured_url(configuration)) as conn:
        if refusal := _refusal(conn):
            raise MigrationRefused(f"{refusal}. Nothing was changed: see docs/howto/citus.md")
    ran: list[Revision] = []

    def upgrade(heads: Any, _context: Any) -> Iterator[Any]:
        for step in scripts._upgrade_revs("head", heads):
            yield step
            ran.append(revision_of(step.revision))

    Run(configuration, scripts, fn=upgrade, destination_rev="head").start()
    return ran


def check(url: str | URL) -> list[str]:
    """Return what is wrong with the profile, on any node; an empty list if all is well."""
    with _connected(url) as conn:
        if refusal := _refusal(conn):
            return [refusal]
        if not is_distributed(conn):
            return ["the database is not distributed: run selene-core citus upgrade"]
        return [*_problems(conn)]


def _scripts(configuration: Config) -> ScriptDirectory:
    """Return the profile's revisions, and let the configuration name their folder."""
    configuration.set_main_option("script_location", str(script_directory()).replace("%", "%%"))
    return ScriptDirectory.from_config(configuration)


def _connected(url: str | URL) -> Connection:
    return create_engine(psycopg_url(url), poolclass=pool.NullPool, connect_args=CONNECT_ARGS).connect()


def _refusal(conn: Connection) -> str | None:
    """Say why the profile cannot be here."""
    if not conn.exec_driver_sql("SELECT TRUE FROM pg_catalog.pg_extension WHERE extname = 'citus'").scalar():
        return "the database has no Citus: CREATE EXTENSION citus, on every node"
    if conn.exec_driver_sql("SELECT groupid FROM pg_catalog.pg_dist_local_group").scalar_one() != 0:
        return "this is a worker: connect to the coordinator"
    if not conn.exec_driver_sql(_WORKERS).scalar_one():
        return "the cluster has no worker that takes tables: citus_add_node"
    owner = conn.exec_driver_sql("SELECT rolcanlogin FROM pg_catalog.pg_roles WHERE rolname = 'selene_owner'")
    if not owner.scalar():
        return "selene_owner may not log in: Citus connects to the nodes as the role that asks"
    return None


_WORKERS: Final = (
    "SELECT count(*) FROM pg_catalog.pg_dist_node WHERE groupid <> 0 AND shouldhaveshards AND isactive"
)
_OURS: Final = "('os_core'::pg_catalog.regnamespace, 'conversation'::pg_catalog.regnamespace)"
_LEFT_OUT: Final = f"""
    SELECT c.oid::pg_catalog.regclass::text FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
    LEFT JOIN pg_catalog.pg_dist_partition AS d ON d.logicalrelid = c.oid
    WHERE c.relnamespace IN {_OURS} AND c.relkind = 'r'
      AND (d.logicalrelid IS NULL OR d.partmethod <> 'h'
        OR pg_catalog.column_to_column_name(c.oid, d.partkey) <> 'tenant_id'
        OR d.colocationid <> (
          SELECT l.colocationid FROM pg_catalog.pg_dist_partition AS l
          WHERE l.logicalrelid = 'os_core.work_order_ledger'::pg_catalog.regclass
        ))
    ORDER BY 1
"""
_NOT_DELEGATED: Final = f"""
    SELECT p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc AS p
    LEFT JOIN pg_catalog.pg_dist_object AS o
      ON o.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND o.objid = p.oid
    WHERE p.pronamespace IN {_OURS} AND p.prosecdef AND p.proargnames[1] = 'p_tenant_id'
      AND p.proname <> 'require_tenant'
      AND (o.distribution_argument_index = 0 AND o.force_delegation) IS NOT TRUE
    ORDER BY 1
"""
# On every node, the coordinator too: one JSON object.
_ON_EACH: Final = """
    SELECT json_build_object(
      'functions', (
        SELECT json_object_agg(p.oid::regprocedure::text, md5(p.prosrc) || coalesce(p.proconfig::text, ''))
        FROM pg_proc AS p
        WHERE p.pronamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('os_core', 'conversation'))
      ),
      'open', (
        SELECT coalesce(json_agg(DISTINCT p.oid::regprocedure::text), '[]')
        FROM pg_proc AS p
        CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS item
        WHERE p.pronamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('os_core', 'conversation'))
          AND item.grantee = 0
      ),
      'unforced', (
        SELECT coalesce(json_agg(c.oid::regclass::text), '[]')
        FROM pg_class AS c
        WHERE c.relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('os_core', 'conversation'))
          AND c.relkind = 'r' AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
          AND EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id')
      ),
      'logins', (
        SELECT coalesce(json_agg(r.rolname), '[]') FROM pg_roles AS r
        WHERE r.rolcanlogin AND NOT r.rolsuper AND EXISTS (
          SELECT FROM pg_roles AS g
          WHERE g.rolname IN ('selene_owner', 'selene_app', 'selene_readonly', 'selene_feed')
            AND pg_has_role(r.oid, g.oid, 'MEMBER')
        )
      ),
      'propagates', current_setting('citus.propagate_set_commands')
    )
"""


def _problems(conn: Connection) -> Iterator[str]:
    stands = conn.exec_driver_sql(f"SELECT version_num FROM os_core.{VERSION_TABLE}").scalars().all()
    head = _scripts(Config()).get_current_head()
    if stands != [head]:
        told = " and ".join(stands) or "no step"
        yield f"the profile stands at {told}, not at {head}: run selene-core citus upgrade"
    yield from (
        f"table {name} is not distributed by tenant_id beside the others" for (name,) in _all(conn, _LEFT_OUT)
    )
    yield from (f"function {name} is not sent to the tenant's node" for (name,) in _all(conn, _NOT_DELEGATED))
    here: dict[str, Any] = conn.exec_driver_sql(_ON_EACH).scalar_one()
    for node, answered, result in _all(conn, _ASK_EACH.format(_ON_EACH.replace("'", "''"))):
        if answered:
            yield from (f"node {node}: {each}" for each in _compared(json.loads(result), here))
        else:
            yield f"node {node} does not answer: {result}"


_ASK_EACH: Final = """
    SELECT node.nodename || ':' || node.nodeport, asked.success, asked.result
    FROM pg_catalog.run_command_on_all_nodes('{}') AS asked
    JOIN pg_catalog.pg_dist_node AS node USING (nodeid)
    ORDER BY 1
"""


def _compared(there: dict[str, Any], here: dict[str, Any]) -> Iterator[str]:
    """Say how a node differs from the coordinator, and from what every node must be."""
    functions = here["functions"]
    for name in sorted({*functions} - {*there["functions"]}):
        yield f"function {name} is missing"
    for name, body in sorted(there["functions"].items()):
        if functions.get(name, body) != body:
            yield f"function {name} is not that of the coordinator"
    yield from (f"PUBLIC may execute {name}" for name in there["open"])
    yield from (f"row-level security is not forced on {name}" for name in there["unforced"])
    yield from (f"the login {name} is missing" for name in sorted({*here["logins"]} - {*there["logins"]}))
    if there["propagates"] != "local":
        yield "citus.propagate_set_commands is not 'local': ALTER DATABASE ... SET it, on every node"


def _all(conn: Connection, query: str) -> Iterable[Any]:
    return conn.exec_driver_sql(query.replace("%", "%%")).all()
