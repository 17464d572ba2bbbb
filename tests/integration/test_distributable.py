"""What an engine that distributes the tables by tenant asks of statements and functions, seen on one node.

What it does with them is tried on a cluster: tests/citus.
"""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from types import ModuleType
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import BindParameter
from sqlalchemy.sql import visitors
from sqlalchemy.sql.functions import Function
from sqlalchemy.sql.selectable import Select

from selene_core.citus import script_directory
from selene_core.store import (
    attempts,
    conversation,
    erasure,
    feed_statements,
    identities,
    leases,
    work_order_statements,
)
from selene_core.store.tables import METADATA
from tests.integration.test_jit import RARE, explained, nodes
from tests.support.calls import Tenant, refused
from tests.support.catalogue_rules import PUBLIC_FUNCTIONS
from tests.support.factories import wire
from tests.support.feeds import advance, drained, head, problems, value, wrong
from tests.support.raw import Connection, connect
from tests.support.servers import Database
from tests.support.writes import STORY, known, run

MODULES = (attempts, conversation, erasure, feed_statements, identities, leases, work_order_statements)
NODE = 1 << 48  # Citus gives each node the ids of a range of this size

__all__ = ["explained"]


def statements(module: ModuleType) -> Iterator[tuple[str, Select[Any]]]:
    """Return the statements that a module keeps."""
    for name, kept in vars(module).items():
        if isinstance(kept, Select):
            yield name, kept


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_statement__gives_the_tenant_as_a_value(module: ModuleType) -> None:
    called = [
        (name, found.clauses.clauses[0])
        for name, statement in statements(module)
        for found in visitors.iterate(statement)
        if isinstance(found, Function)
        and found.name != "require_tenant"
        and {*found.packagenames} & {"os_core", "conversation"}
    ]
    assert called
    assert [name for name, tenant in called if not isinstance(tenant, BindParameter)] == []


@pytest.fixture
def plans(database: Database, explained: tuple[Connection, list[Any]]) -> list[Any]:
    """Return the plans of every statement that the functions carry out."""
    conn, found = explained
    with connect(database.admin_url, autocommit=True) as admin:
        for name, call in (STORY | RARE).items():
            if name != "drift":
                run(conn, call, "acme", known(admin, "acme"))
    return found


def test_update__has_no_volatile_function(database: Database, plans: list[Any]) -> None:
    with connect(database.admin_url) as admin:
        rows = admin.execute("SELECT DISTINCT proname FROM pg_proc WHERE provolatile = 'v'").fetchall()
    volatile = re.compile(rf"\b({'|'.join(name for (name,) in rows)})\(")
    changes = [told for told in plans if told["Plan"].get("Operation") in ("Update", "Delete")]
    assert changes
    offenders = [told["Query Text"] for told in changes if volatile.search(json.dumps(told["Plan"]))]
    assert offenders == []


def test_function__takes_no_whole_row_of_a_table(plans: list[Any]) -> None:
    whole_row = re.compile(r"\w\([^()]*\b(ledger|current|attempt|lease|turn|prior)\.\*")
    offenders = {
        told["Query Text"][:200]
        for told in plans
        for node in nodes(told["Plan"])
        if any(whole_row.search(each) for each in node.get("Output", []))
    }
    assert offenders == set()


def to_node(acme: Tenant, sequence: str, node: int) -> None:
    """Go on with the ids of another node, as after a move of the tenant."""
    acme.admin.execute("SELECT setval(%s, %s)", (sequence, node * NODE + uuid4().int % 1_000_000 + 1))


@pytest.fixture
def acme(database: Database) -> Iterator[Tenant]:
    """Return a tenant in a database of the test's own: the sequences are everybody's."""
    with (
        closing(connect(database.app_url, autocommit=True)) as app,
        closing(connect(database.admin_url, autocommit=True)) as admin,
    ):
        yield Tenant("acme", app, admin)


ATTEMPTS = "os_core.work_order_step_attempts_step_attempt_id_seq"


def attempt(acme: Tenant, order: str, key: str) -> int:
    """Start an attempt, and end it with a retry that is due at once."""
    row = acme.app.execute(
        "SELECT step_attempt_id FROM os_core.start_step_attempt(%s, %s, 'book', 1000, 9, 1, %s)",
        (acme.id, order, key),
    ).fetchone()
    assert row is not None
    acme.app.execute(
        "SELECT * FROM os_core.finish_step_attempt(%s, %s, 'FAILED', 1, TRUE)", (acme.id, row[0])
    )
    acme.app.execute("SELECT pg_sleep(0.002)")  # the backoff is a millisecond
    return int(row[0])


def test_attempt__follows_one_of_a_node_with_higher_ids(acme: Tenant) -> None:
    order = acme.order("EXECUTING")
    to_node(acme, ATTEMPTS, 2)
    first = attempt(acme, order, "first")
    to_node(acme, ATTEMPTS, 1)
    second = attempt(acme, order, "second")
    assert second < first
    acme.admin.execute("SELECT setval(%s, %s)", (ATTEMPTS, NODE))
    with refused("55000"):
        attempt(acme, order, "third")


def test_guard__names_the_table_and_not_its_part(acme: Tenant) -> None:
    acme.order()
    # A part of a distributed table has the table's triggers, and a name with a number.
    acme.admin.execute("ALTER TABLE os_core.work_order_ledger RENAME TO work_order_ledger_102008")
    with pytest.raises(psycopg.Error) as caught:
        acme.admin.execute("DELETE FROM os_core.work_order_ledger_102008")
    assert json.loads(caught.value.diag.message_detail or "")["table"] == "os_core.work_order_ledger"


EVENTS = "os_core.work_order_ledger_work_order_event_id_seq"


def test_append__follows_an_event_of_a_node_with_higher_ids(acme: Tenant) -> None:
    to_node(acme, EVENTS, 2)
    order = acme.order()
    to_node(acme, EVENTS, 1)
    (one,) = acme.append(wire("FIELD_SET", order))
    to_node(acme, EVENTS, 3)
    acme.append(wire("FIELD_SET", order))
    to_node(acme, EVENTS, 1)
    both = acme.append(wire("FIELD_SET", order), wire("FIELD_SET", order))
    assert [each.work_order_seq for each in both] == [4, 5]
    assert (acme.verify(order), acme.verify_chain(order)) == ({}, {})
    # As it was after an event whose id is higher than that of a later one.
    state = acme.as_of(order, event_id=one.work_order_event_id)
    assert state is not None
    assert state["last_seq"] == 2
    acme.admin.execute("SELECT setval(%s, %s)", (EVENTS, NODE))
    with refused("55000"):
        acme.append(wire("FIELD_SET", order))


def test_feed__follows_a_tenant_from_node_to_node(acme: Tenant) -> None:
    last = {1: 0, 2: 0, 3: 0}

    def on(node: int, *orders: str) -> list[str]:
        """Go on where the node was, and append to these orders; without a name to a new one."""
        acme.admin.execute("SELECT setval(%s, %s)", (EVENTS, node * NODE + last[node] + 1))
        made = [acme.order() if order == "new" else order for order in orders]
        for order, name in zip(made, orders, strict=True):
            if name != "new":
                acme.append(wire("FIELD_SET", order))
        last[node] = value(acme.admin, f"SELECT last_value FROM {EVENTS}") - node * NODE
        return made

    def behind() -> int:
        return int(value(acme.app, "SELECT behind FROM os_core.feed_status(%s)", acme.id))

    first, second = on(2, "new", "new")
    advance(acme.app, acme.id)
    on(2, first)
    on(1, first, second, "new")
    # Back again, and nobody has looked meanwhile.
    on(2, second, first)
    on(1, second)
    on(3, second, first)
    acme.app.execute("SELECT os_core.enroll_feed(%s, 'billing')", (acme.id,))
    assert behind() == 11
    while advance(acme.app, acme.id, 2):
        assert problems(acme.app, acme.id) == []
    assert behind() == 11
    on(3, first)
    on(2, "new")
    assert behind() == 13
    got = drained(acme)
    assert wrong(acme, got) == []
    assert len(got) == 13
    assert problems(acme.app, acme.id) == []
    # All is settled again: a poll that finds nothing only reads.
    for _ in range(3):
        advance(acme.app, acme.id)
    assert advance(acme.app, acme.id) == 0
    assert head(acme)["settled_event_id"] == last[2] + 2 * NODE


def test_profile__has_every_table_and_every_public_function(database: Database) -> None:
    """The steps ask the catalogue: what a later revision brings, they distribute and delegate."""
    scripts = ScriptDirectory(script_directory())
    tables, functions = (scripts.get_revision(step).module for step in ("c0001", "c0002"))
    with connect(database.admin_url, autocommit=True) as admin:
        admin.execute("SET search_path = pg_catalog")
        distributed = [name for _, name in admin.execute(tables.TABLES.encode())]
        delegated = {name for (name,) in admin.execute(functions.PUBLIC.encode())}
    assert sorted(distributed) == sorted(table.fullname for table in METADATA.sorted_tables)
    assert {*PUBLIC_FUNCTIONS} - delegated == {"os_core.require_tenant(text)"}
    # What selene_owner calls to remove a tenant.
    assert {name.partition("(")[0] for name in delegated - {*PUBLIC_FUNCTIONS}} == {
        f"os_core.{name}"
        for name in ("open_tenant_removal", "count_tenant_rows", "remove_tenant_rows", "close_tenant_removal")
    }


def test_removal__knows_a_table_from_its_parts_and_a_key_that_begins_with_the_tenant(acme: Tenant) -> None:
    """A part lies beside its table on a node: taken for a table, it keeps the removal from ending."""
    asked = "SELECT * FROM os_core.tenant_tables()"
    tables = acme.admin.execute(asked).fetchall()
    orders = {table: order for table, order in tables if order}
    assert orders == {"conversation.conversation_ledger": "ORDER BY conversation_turn_id DESC"}
    with acme.admin.transaction(force_rollback=True):
        acme.admin.execute("CREATE TABLE os_core.tenant_removals_102008 (LIKE os_core.tenant_removals)")
        acme.admin.execute("CREATE TABLE os_core.table_to_come_2 (tenant_id text)")
        key = "pk_conversation_ledger"
        acme.admin.execute(
            f"ALTER TABLE conversation.conversation_ledger DROP CONSTRAINT {key} CASCADE,"
            f" ADD CONSTRAINT {key} PRIMARY KEY (tenant_id, conversation_turn_id)".encode()
        )
        assert {*acme.admin.execute(asked)} == {*tables, ("os_core.table_to_come_2", None)}
