"""The SQL functions as a service in any language calls them, and what they leave in the tables."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, cast

import psycopg
import pytest
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from selene_core.contract.enums import TERMINAL_STATUSES
from selene_core.contract.errors import BY_SQLSTATE
from tests.support.factories import new_id, wire
from tests.support.raw import Connection

Row = dict[str, Any]
Event = dict[str, Any]
TERMINAL = tuple(sorted(status.value for status in TERMINAL_STATUSES))


@dataclass(frozen=True, slots=True)
class Appended:
    """One row of os_core.append_work_order_events."""

    work_order_event_id: int
    work_order_seq: int
    replayed: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild reports."""

    work_orders: int
    events: int
    changed: int


@dataclass(slots=True)
class Refusal:
    """What a refused call says; filled in when the block ends."""

    message: str = ""
    facts: Row = field(default_factory=dict)


@contextmanager
def refused(sqlstate: str) -> Iterator[Refusal]:
    """Expect an error with this SQLSTATE."""
    refusal = Refusal()
    with pytest.raises(psycopg.Error) as caught:
        yield refusal
    assert caught.value.sqlstate == sqlstate, caught.value
    refusal.message = caught.value.diag.message_primary or ""
    if sqlstate.startswith("SL"):
        refusal.facts = json.loads(caught.value.diag.message_detail or "")
        declared = {fact.name for fact in fields(BY_SQLSTATE[sqlstate])}
        assert refusal.facts.keys() <= declared, "a fact that its error class does not declare is lost"


def append(conn: Connection, tenant_id: str | None, *events: Mapping[str, Any]) -> list[Appended]:
    """Append events in one call."""
    with conn.cursor(row_factory=class_row(Appended)) as cursor:
        cursor.execute(
            "SELECT * FROM os_core.append_work_order_events(%s, %s)", (tenant_id, Jsonb([*events]))
        )
        return cursor.fetchall()


def verify(conn: Connection, tenant_id: str, work_order_id: str | None = None) -> dict[str, str]:
    """Return what is wrong with which work order."""
    rows = conn.execute("SELECT * FROM os_core.verify_work_orders(%s, %s)", (tenant_id, work_order_id))
    return dict(cast("list[tuple[str, str]]", rows.fetchall()))


def rebuild(conn: Connection, tenant_id: str, limit: int = 1000) -> Rebuilt:
    """Rebuild a tenant group by group; in autocommit each group is a transaction."""
    total = Rebuilt(0, 0, 0)
    after: str | None = ""
    while after is not None:
        row = conn.execute(
            "SELECT * FROM os_core.rebuild_work_orders(%s, %s, %s)", (tenant_id, after, limit)
        ).fetchone()
        assert row is not None
        work_orders, events, changed, after = row
        total = Rebuilt(total.work_orders + work_orders, total.events + events, total.changed + changed)
    return total


def rebuild_one(conn: Connection, tenant_id: str, work_order_id: str) -> Rebuilt:
    """Rebuild one work order."""
    with conn.cursor(row_factory=class_row(Rebuilt)) as cursor:
        cursor.execute("SELECT * FROM os_core.rebuild_work_order(%s, %s)", (tenant_id, work_order_id))
        row = cursor.fetchone()
    assert row is not None
    return row


def verify_chain(
    conn: Connection, tenant_id: str, work_order_id: str | None = None
) -> dict[tuple[str, int], str]:
    """Return what is wrong with which event's hash."""
    rows = conn.execute("SELECT * FROM os_core.verify_chain(%s, %s)", (tenant_id, work_order_id))
    return {(order, seq): problem for order, seq, problem in rows}


def as_of(
    conn: Connection,
    tenant_id: str,
    work_order_id: str,
    *,
    seq: int | None = None,
    event_id: int | None = None,
    at: datetime | None = None,
) -> Row | None:
    """Return a work order's state as it then was."""
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT * FROM os_core.work_order_as_of(%s, %s, %s, %s, %s)",
            (tenant_id, work_order_id, seq, event_id, at),
        )
        return cursor.fetchone()


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant: the application's connection writes, the superuser's looks at what is there."""

    id: str
    app: Connection
    admin: Connection

    def append(self, *events: Mapping[str, Any]) -> list[Appended]:
        """Append events in one call."""
        return append(self.app, self.id, *events)

    def order(self, status: str = "DRAFT", **payload: Any) -> str:
        """Create a work order, bring it to a status, and return its id."""
        first = "DRAFT" if status in TERMINAL else status
        created = wire("WORK_ORDER_CREATED", new_id(), work_order_status=first, payload=payload)
        order: str = created["work_order_id"]
        self.append(created)
        if status in TERMINAL:
            self.append(wire("STATUS_CHANGED", order, work_order_status=status))
        return order

    def verify(self, work_order_id: str | None = None) -> dict[str, str]:
        """Return what is wrong with which work order."""
        return verify(self.app, self.id, work_order_id)

    def verify_chain(self, work_order_id: str | None = None) -> dict[tuple[str, int], str]:
        """Return what is wrong with which event's hash."""
        return verify_chain(self.app, self.id, work_order_id)

    def rebuild(self, limit: int = 1000) -> Rebuilt:
        """Rebuild all work orders, group by group."""
        return rebuild(self.app, self.id, limit)

    def rebuild_one(self, work_order_id: str) -> Rebuilt:
        """Rebuild one work order."""
        return rebuild_one(self.app, self.id, work_order_id)

    def as_of(
        self,
        work_order_id: str,
        *,
        seq: int | None = None,
        event_id: int | None = None,
        at: datetime | None = None,
    ) -> Row | None:
        """Return a work order's state as it then was."""
        return as_of(self.app, self.id, work_order_id, seq=seq, event_id=event_id, at=at)

    def ledger(self, *work_order_ids: str) -> list[Row]:
        """Return events in the order of their ids: of the named work orders, or of all."""
        with self.admin.cursor(row_factory=dict_row) as cursor:
            cursor.execute(
                "SELECT * FROM os_core.work_order_ledger WHERE tenant_id = %s"
                " AND (work_order_id = ANY(%s) OR %s) ORDER BY work_order_event_id",
                (self.id, [*work_order_ids], not work_order_ids),
            )
            return cursor.fetchall()

    def projections(self) -> dict[str, Row]:
        """Return the projection rows by work order."""
        with self.admin.cursor(row_factory=dict_row) as cursor:
            cursor.execute("SELECT * FROM os_core.work_orders_current WHERE tenant_id = %s", (self.id,))
            return {row["work_order_id"]: row for row in cursor}

    def projection(self, work_order_id: str) -> Row:
        """Return one projection row; KeyError where there is none."""
        return self.projections()[work_order_id]

    def everything(self) -> tuple[list[Row], dict[str, Row]]:
        """Return the ledger and the projection, to compare them with what they are later."""
        return self.ledger(), self.projections()

    def damage(self, statement: str, *parameters: Any) -> int:
        """Do as a superuser what nothing of ours does, with foreign keys off; return the rows it changed."""
        with self.admin.transaction():
            self.admin.execute("SET LOCAL session_replication_role = replica")
            return self.admin.execute(statement.encode(), parameters).rowcount

    def unsound(self) -> list[tuple[Any, ...]]:
        """Return the events that break the ledger's order: a gap, an id or a time that runs backwards."""
        return self.admin.execute(
            """
            SELECT work_order_id, work_order_seq, work_order_event_id, created_at
            FROM (
              SELECT *,
                row_number() OVER this_order AS expected_seq,
                lag(work_order_event_id, 1, 0::bigint) OVER this_order AS event_id_before,
                lag(created_at, 1, '-infinity') OVER this_order AS created_before
              FROM os_core.work_order_ledger
              WHERE tenant_id = %s
              WINDOW this_order AS (PARTITION BY work_order_id ORDER BY work_order_seq)
            ) AS event
            WHERE work_order_seq <> expected_seq
              OR work_order_event_id <= event_id_before
              OR created_at < created_before
            """,
            (self.id,),
        ).fetchall()
