"""What the functions switch off in the planner does not make PostgreSQL compile their statements."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

import psycopg
import pytest

from tests.support.factories import wire
from tests.support.raw import Connection, connect
from tests.support.servers import LOGIN_ROLES, Database
from tests.support.writes import STORY, known, run

SWITCHED_OFF_COST = 1e9  # before PostgreSQL 18 a node that is switched off costs ten times as much
EXPLAIN = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_format": "json",
    "auto_explain.log_level": "notice",
    "auto_explain.log_settings": "on",
    "auto_explain.log_verbose": "on",
    "jit": "on",
}
_PAIR = [
    wire("WORK_ORDER_CREATED", f"{{tenant}}-{name}", correlation_id=str(uuid5(NAMESPACE_DNS, name)))
    for name in ("one", "two")
]
_CROSSWISE = [
    {**wire("FIELD_SET", mine["work_order_id"]), "correlation_id": other["correlation_id"]}
    for mine, other in zip(_PAIR, reversed(_PAIR), strict=True)
]


def _appended(*events: dict[str, Any]) -> str:
    text = json.dumps(events).replace("{", "{{").replace("}", "}}").replace("{{tenant}}", "{tenant}")
    return f"os_core.append_work_order_events('{{tenant}}', '{text}')"


# What the story has not: two orders that exchange their threads, and rows that have drifted.
RARE = {
    "pair": _appended(*_PAIR),
    "pair, crosswise": _appended(*_CROSSWISE),
    "one, new thread": _appended({**_CROSSWISE[0], "correlation_id": str(uuid5(NAMESPACE_DNS, "new"))}),
    "drift": "UPDATE os_core.work_orders_current SET turn_id = 99 WHERE tenant_id = '{tenant}'",
    "drifted": "os_core.verify_work_orders('{tenant}')",
    "mended": "os_core.rebuild_work_orders('{tenant}', NULL, 10)",
}


@pytest.fixture
def explained(database: Database) -> Iterator[tuple[Connection, list[Any]]]:
    """Return a session of the application's, and the plans of all that it has carried out."""
    with connect(database.admin_url, autocommit=True) as admin:
        for name, value in EXPLAIN.items():
            admin.execute(f"ALTER DATABASE {database.name} SET {name} = '{value}'".encode())
    plans: list[Any] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        _, found, plan = (diagnostic.message_primary or "").partition("plan:\n")
        if found:
            plans.append(json.loads(plan))

    with closing(
        connect(database.server.url_for(LOGIN_ROLES["app"], database.name), autocommit=True)
    ) as conn:
        conn.add_notice_handler(note)
        yield conn, plans


def nodes(plan: Any) -> Iterator[Any]:
    """Walk through a plan."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def offence(told: Any) -> bool:
    """Tell whether a statement was compiled, or would be where it has a node that is switched off."""
    switched_off = any(
        node["Total Cost"] > SWITCHED_OFF_COST or node.get("Disabled") is True for node in nodes(told["Plan"])
    )
    return "JIT" in told or (switched_off and told.get("Settings", {}).get("jit") != "off")


def test_functions__compile_nothing_for_what_they_switch_off(
    database: Database, explained: tuple[Connection, list[Any]]
) -> None:
    conn, plans = explained
    offenders: list[tuple[str, str]] = []
    with connect(database.admin_url, autocommit=True) as admin:
        for tenant_id in ("empty", "acme"):
            for name, call in (STORY | RARE).items():
                if call.startswith("UPDATE"):
                    with admin.transaction():
                        admin.execute("SET LOCAL session_replication_role = replica")
                        admin.execute(call.format(tenant=tenant_id).encode())
                    continue
                plans.clear()
                run(conn, call, tenant_id, known(admin, tenant_id))
                assert plans, f"{name}: auto_explain told nothing"
                offenders += [(name, told["Query Text"]) for told in plans if offence(told)]
    assert offenders == []
