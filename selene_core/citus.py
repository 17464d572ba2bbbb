"""The scale-out profile: what a schema that is distributed by Citus has otherwise (docs/howto/citus.md).

It is made by the revisions in alembic_citus/, and never without being asked for. Here is what the rest of the
library has to know about it: where the revisions are, and the facts of a distributed schema.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from selene_core.sql_files import read_sql

if TYPE_CHECKING:
    from typing import TypeAlias

    from sqlalchemy import Connection

    Facts: TypeAlias = dict[str, dict[str, str]]

VERSION_TABLE: Final = "alembic_version_citus"
GUARD: Final = """BEGIN
  IF (SELECT node.groupid FROM pg_catalog.pg_dist_local_group AS node) = 0 THEN
    RAISE EXCEPTION USING
      ERRCODE = 'feature_not_supported',
      MESSAGE = 'the call was not sent to the node that has the tenant',
      HINT = 'Call it alone, as SELECT ... FROM function(...), with the tenant as a value.';
  END IF;
"""
"""The begin of os_core.enter_tenant: a call that stays on the coordinator would read without the tenant."""


def script_directory() -> Path:
    """Return the folder of the revisions: inside the installed package, else the checkout's."""
    package = Path(__file__).parent
    installed = package / "_alembic_citus"
    return installed if installed.is_dir() else package.parent / "alembic_citus"


def is_distributed(conn: Connection) -> bool:
    """Tell whether the profile's revisions have been run here: an empty cluster is no profile yet."""
    return has_version_table(conn, VERSION_TABLE)


def has_version_table(conn: Connection, name: str) -> bool:
    """Tell whether os_core has a version table of this name; every role may ask."""
    # Not to_regclass(): without USAGE on the schema it raises.
    asked = """
        SELECT TRUE FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'os_core' AND c.relname = %s
    """
    return bool(conn.exec_driver_sql(asked, (name,)).scalar())


def as_on_one_node(found: Facts, expected: Facts) -> None:
    """Replace what the profile changes by the facts of one node; any other value stays, and is drift."""
    found.pop(f"relation os_core.{VERSION_TABLE}", None)
    for thing, aspects in found.items():
        wanted = expected.get(thing, {})
        for aspect, value in aspects.items():
            if aspect in wanted and _distributed(thing, aspect, wanted[aspect], wanted) == value:
                aspects[aspect] = wanted[aspect]


def _distributed(thing: str, aspect: str, value: str, wanted: dict[str, str]) -> str:
    """Return what the profile makes of a fact of one node."""
    if thing == "role selene_owner" and aspect == "attributes":
        return value.replace("NOLOGIN", "LOGIN")  # Citus connects to the other nodes as the role that asks
    if thing == "function os_core.enter_tenant(text)" and aspect == "body":
        # As pg_proc keeps it: what stands between the quotes.
        body = read_sql("tenant/enter_tenant", version=1).split("$$")[1]
        return hashlib.md5(guarded(body).encode(), usedforsecurity=False).hexdigest()
    if thing.startswith("function os_core.write_projection(") and aspect == "body":
        body = read_sql("append/write_projection", version=1).split("$$")[1]
        return hashlib.md5(by_value(body).encode(), usedforsecurity=False).hexdigest()
    if thing.startswith("function os_core.append_work_order_event(") and aspect == "body":
        body = read_sql("append/append_work_order_event", version=1).split("$$")[1]
        return hashlib.md5(without_lock(body).encode(), usedforsecurity=False).hexdigest()
    if aspect == "settings":
        if wanted.get("signature") == "() -> trigger":
            value += "; citus.allow_nested_distributed_execution=on"
        return re.sub(r"(; )?plan_cache_mode=force_generic_plan", "", value) or "none"
    if aspect == "column tenant_id":
        return value.replace('COLLATE "C"', 'COLLATE "default"')
    if aspect.startswith("constraint pk_"):
        return re.sub(r"KEY \((?!tenant_id\b)", "KEY (tenant_id, ", value)
    if aspect.startswith("index pk_"):
        return re.sub(r"\((?!tenant_id\b)", "(tenant_id, ", value)
    return value


def guarded(body: str) -> str:
    """Put the guard into the body of os_core.enter_tenant."""
    return body.replace("BEGIN\n", GUARD, 1)


def by_value(definition: str) -> str:
    """Give the tenant as a value to os_core.write_projection: where the rows give it, it cannot be sent."""
    return definition.replace(".tenant_id = next.tenant_id", ".tenant_id = _tenant_id")


def without_lock(definition: str) -> str:
    """Let os_core.append_work_order_event look again after a conflict: a part that moves loses its locks."""
    return re.sub(r";(\s+)EXIT;", r"\1ON CONFLICT DO NOTHING;\1EXIT WHEN FOUND;", definition, count=1)
