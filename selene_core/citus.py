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
    from collections.abc import Callable, Mapping
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
    maker = next(thing for thing in expected if thing.startswith("function os_core.event_of("))
    rule = {**expected[maker], "body": _md5(row_rule().split("$$")[1])}
    rule["signature"] = rule["signature"].replace("-> os_core.work_order_ledger", "-> boolean")
    if found.get(name := maker.replace("event_of", "is_event_row")) == rule:
        found.pop(name)
    for thing, aspects in found.items():
        wanted = expected.get(thing, {})
        for aspect, value in aspects.items():
            if aspect in wanted and _distributed(thing, aspect, wanted[aspect], wanted) == value:
                aspects[aspect] = wanted[aspect]


def _distributed(thing: str, aspect: str, value: str, wanted: dict[str, str]) -> str:
    """Return what the profile makes of a fact of one node."""
    if thing == "role selene_owner" and aspect == "attributes":
        return value.replace("NOLOGIN", "LOGIN")  # Citus connects to the other nodes as the role that asks
    if aspect == "body":
        for file, changed in CHANGED_BODIES.items():
            if thing.startswith(f"function os_core.{function_of(file)}("):
                # As pg_proc keeps it: what stands between the quotes.
                return _md5(changed(read_sql(file, version=1).split("$$")[1]))
    if aspect == "settings":
        if wanted.get("signature") == "() -> trigger":
            value += "; citus.allow_nested_distributed_execution=on"
        return re.sub(r"(; )?plan_cache_mode=force_generic_plan", "", value) or "none"
    if aspect == "constraint ck_work_order_ledger_contract":
        return by_columns(value, wanted["columns"])
    if aspect == "column tenant_id":
        return value.replace('COLLATE "C"', 'COLLATE "default"')
    if aspect.startswith("constraint pk_"):
        return re.sub(r"KEY \((?!tenant_id\b)", "KEY (tenant_id, ", value)
    if aspect.startswith("index pk_"):
        return re.sub(r"\((?!tenant_id\b)", "(tenant_id, ", value)
    return value


def guarded(body: str) -> str:
    """Put the guard into the body of os_core.enter_tenant, which sets the tenant by a statement here."""
    # Citus forwards the statement to the other nodes, and not what set_config() does.
    by_statement = "EXECUTE pg_catalog.format('SET LOCAL selene.tenant_id = %L', p_tenant_id)"
    by_function = "p_tenant_id := pg_catalog.set_config('selene.tenant_id', p_tenant_id, TRUE)"
    return _replaced(_replaced(body, "BEGIN\n", GUARD, 1), by_function, by_statement)


def by_value(definition: str) -> str:
    """Give the tenant as a value to os_core.write_projection: where the rows give it, it cannot be sent."""
    return _replaced(definition, ".tenant_id = next.tenant_id", ".tenant_id = _tenant_id")


def without_lock(definition: str) -> str:
    """Let os_core.append_work_order_event look again after a conflict: a part that moves loses its locks."""
    plain = "        );\n          EXIT;\n"
    return _replaced(
        definition, plain, "        )\n          ON CONFLICT DO NOTHING;\n          EXIT WHEN FOUND;\n"
    )


CHANGED_BODIES: Final[Mapping[str, Callable[[str], str]]] = {
    "tenant/enter_tenant": guarded,
    "append/write_projection": by_value,
    "append/append_work_order_event": without_lock,
}
"""The SQL files whose functions have another body here, and what makes it of theirs."""


def function_of(file: str) -> str:
    """Return the name of the function in an SQL file."""
    return file.rpartition("/")[2]


def by_columns(definition: str, columns: str) -> str:
    """Let the ledger's CHECK call row_rule(): a table's part has another name than the row in it."""
    return _replaced(definition, "work_order_ledger.*", columns)


def row_rule() -> str:
    """Return the function that the ledger's CHECK calls: it asks the rule about the row of some columns.

    A distributed table's CHECK may not depend on its row type, as event_of does. A body is no dependency.
    """
    maker = read_sql("fold/event_of", version=1)
    names = ", ".join(re.findall(r"^  (p_\w+) ", maker, re.MULTILINE))
    head, end = maker[maker.index("CREATE") :].split("\nAS $$")[0], "\nEND;\n$$"
    head = _replaced(head, "os_core.event_of(", "os_core.is_event_row(")
    head = _replaced(head, "RETURNS os_core.work_order_ledger", "RETURNS boolean")
    return f"{head}\nAS $$\nBEGIN\n  RETURN os_core.is_event_row(os_core.event_of({names}));{end}"


def _md5(body: str) -> str:
    return hashlib.md5(body.encode(), usedforsecurity=False).hexdigest()


def _replaced(text: str, old: str, new: str, count: int = -1) -> str:
    """Replace what must be there."""
    if old not in text:
        raise ValueError(f"the profile has nothing to replace: {old}")
    return text.replace(old, new, count)
