"""The work-order repository: append, read, replay (contract §4, §5, §9 and §14).

The rules are in the database. Each method sends one statement and turns rows into types.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from selene_core.contract.enums import WorkOrderStatus
from selene_core.contract.errors import ContractViolation
from selene_core.contract.events import WorkOrderLedgerEventInput, check_work_order_id, events_to_json
from selene_core.contract.frozen_json import MAX_INT64, thaw
from selene_core.contract.personal import holds_references
from selene_core.contract.rows import (
    AppendResult,
    BrokenChain,
    DriftedOrder,
    OrderCursor,
    PendingCursor,
    RebuildReport,
    WorkOrder,
    WorkOrderEvent,
    check_order_cursor,
    check_pending_cursor,
    check_statuses,
)
from selene_core.contract.rules import EVENT_RULES, flag, identifier, integer, time_span
from selene_core.store import work_order_statements as statements
from selene_core.store.intentions import Intentions
from selene_core.store.repository import Secret, send
from selene_core.store.scope import scope_tenant

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

MAX_BATCH: Final = 1000

MAX_PENDING: Final = 1000

_POSITION: Final = integer(0, MAX_INT64)
_LIMIT: Final = integer(1, MAX_PENDING)
_FLAG: Final = flag()
_WINDOW: Final = time_span(timedelta(days=36_500))
_USER: Final = identifier(128)


class WorkOrderRepository(Intentions):
    """Append to, read and rebuild work orders, for the tenant of the connection's tenant_scope.

    Every method raises TenantScopeViolation outside the scope, and after its transaction has ended.
    """

    def append(self, event: WorkOrderLedgerEventInput) -> AppendResult:
        """Append one event; raises what append_many raises."""
        return self.append_many([event])[0]

    def append_many(self, events: Iterable[WorkOrderLedgerEventInput]) -> list[AppendResult]:
        """Append 1..1000 events, all or none, and return a result for each, in order (contract §4).

        Raises ContractViolation, IdempotencyConflict, ConcurrencyConflict, WorkOrderNotFound,
        InvalidTransition, CancelInvalidState, LeaseHeld, LeaseLost, PromptSuppressed,
        ExternalApprovalPending, BoundExceeded, CorrelationConflict, WorkOrderIdUnavailable and
        ProjectionDamaged. After any of these the transaction can only be rolled back, at least to a savepoint
        (conn.begin_nested()).
        """
        wire = batch_to_wire(events)
        tenant_id = scope_tenant(self._conn)
        rows = send(self._conn, statements.APPEND_IN_SCOPE, tenant_id=tenant_id, events=wire)
        return [statements.APPEND_IN_SCOPE.read(row) for row in rows]

    def get(self, work_order_id: str, *, resolve: bool = False) -> WorkOrder | None:
        """Return the work order as it is now, or None; raises ContractViolation (contract §9).

        resolve=True: with personal values in the place of their references, in fields_json and
        resolved_fields_json; an erased one reads {"$erased": True} (contract §18).
        """
        found = self._read_in_scope(statements.GET, work_order_id=check_work_order_id(work_order_id))
        if not found:
            return None
        return self._resolved(found[0]) if _FLAG.check("resolve", resolve) else found[0]

    def resolve(self, value: Any) -> Any:
        """Return JSON, such as an event's payload, with personal values in the place of their references.

        What is erased reads {"$erased": True}. Not for members of selene_readonly (contract §18).
        """
        wire = json.dumps(thaw(value), ensure_ascii=False, allow_nan=False)
        return self._run(statements.RESOLVE, value=wire)[0]["value"]

    def _resolved(self, order: WorkOrder) -> WorkOrder:
        held = {"fields_json": order.fields_json, "resolved_fields_json": order.resolved_fields_json}
        return replace(order, **self.resolve(held)) if holds_references(held) else order

    def get_by_correlation(self, correlation_id: UUID) -> WorkOrder | None:
        """Return the work order whose newest thread this is; raises ContractViolation (contract §9)."""
        checked = EVENT_RULES["correlation_id"].check("correlation_id", correlation_id)
        found = self._read_in_scope(statements.GET_BY_CORRELATION, correlation_id=checked)
        return found[0] if found else None

    def events(self, work_order_id: str, after: int = 0) -> Iterator[WorkOrderEvent]:
        """Iterate over the events with work_order_seq > `after` in order, a page in memory at a time.

        Raises ContractViolation for invalid arguments. Each page can raise TenantScopeViolation
        (contract §9).
        """
        scope_tenant(self._conn)  # raise now, and not when the iteration begins
        return self._events(check_work_order_id(work_order_id), _POSITION.check("after", after))

    def list_pending(
        self,
        requester_user_id: str | None = None,
        within: timedelta | None = None,
        limit: int = 20,
        oldest_first: bool = False,
        after: WorkOrder | PendingCursor | None = None,
    ) -> list[WorkOrder]:
        """Return a page of the work orders in DRAFT, CLARIFY or CONFIRM, most recently updated first.

        `within`: only those updated in this time before now, by the database's clock. `limit`: 1..1000.
        `after`: the last order of the previous page, or its PendingCursor. An order that does not change
        between two pages is neither skipped nor repeated. Orders updated at the same time are sorted by
        last_event_id. Raises ContractViolation (contract §9).
        """
        cursor = None if after is None else check_pending_cursor(after)
        statement = statements.pending(
            of_requester=requester_user_id is not None,
            within=within is not None,
            after=after is not None,
            oldest_first=_FLAG.check("oldest_first", oldest_first),
            limit=_LIMIT.check("limit", limit),
        )
        return self._read_in_scope(
            statement,
            requester_user_id=_USER.check_optional("requester_user_id", requester_user_id),
            within=_WINDOW.check_optional("within", within),
            after_at=cursor and cursor.last_updated_at,
            after_event_id=cursor and cursor.last_event_id,
        )

    def list_orders(
        self,
        statuses: Iterable[WorkOrderStatus | str] | None = None,
        requester_user_id: str | None = None,
        lease_owner_id: str | None = None,
        limit: int = 20,
        oldest_first: bool = False,
        after: WorkOrder | OrderCursor | None = None,
    ) -> list[WorkOrder]:
        """Return a page of work orders by creation, newest first: all, or those in some of the statuses.

        `lease_owner_id`: those whose last lease was not given back and is this owner's, also an expired one.
        `limit`: 1..1000. `after`: the last order of the previous page, or its OrderCursor. An order that is
        in one of the statuses all the while is neither skipped nor repeated. Raises ContractViolation
        (contract §9).
        """
        cursor = None if after is None else check_order_cursor(after)
        statement = statements.by_creation(
            of_requester=requester_user_id is not None,
            of_lease_owner=lease_owner_id is not None,
            after=after is not None,
            oldest_first=_FLAG.check("oldest_first", oldest_first),
        )
        return self._read_in_scope(
            statement,
            statuses=check_statuses(WorkOrderStatus if statuses is None else statuses),
            requester_user_id=_USER.check_optional("requester_user_id", requester_user_id),
            lease_owner_id=_USER.check_optional("lease_owner_id", lease_owner_id),
            limit=_LIMIT.check("limit", limit),
            after_at=cursor and cursor.created_at,
            after_work_order_id=cursor and cursor.work_order_id,
        )

    def rebuild(
        self, work_order_id: str | None = None, progress: Callable[[RebuildReport], object] | None = None
    ) -> RebuildReport:
        """Write the projection of one work order, or all, again from the ledger (contract §5).

        It keeps its locks until the caller's transaction ends: for a whole tenant use rebuild_tenant.
        """
        if work_order_id is None:
            return rebuild_by_groups(
                lambda after: self._run(statements.REBUILD_NEXT, after=after)[0], progress
            )
        checked = check_work_order_id(work_order_id)
        report = RebuildReport(**self._run(statements.REBUILD_ONE, work_order_id=checked)[0])
        if progress is not None:
            progress(report)
        return report

    def verify(self, work_order_id: str | None = None) -> list[DriftedOrder]:
        """Return the work orders whose projection is not the fold of their ledger (contract §5)."""
        checked = None if work_order_id is None else check_work_order_id(work_order_id)
        return [DriftedOrder(**row) for row in self._run(statements.VERIFY, work_order_id=checked)]

    def verify_chain(
        self, work_order_id: str | None = None, progress: Callable[[int], object] | None = None
    ) -> list[BrokenChain]:
        """Return the events whose hash is not that of their columns and of the event before (contract §17).

        It sends a statement for each group of events, and calls `progress` with the number of events so far.
        """
        checked = None if work_order_id is None else check_work_order_id(work_order_id)
        place: dict[str, str | int | None] = {"after": checked or "", "after_seq": None}
        broken, events = [], 0
        while place["after"] is not None:
            part = self._run(statements.VERIFY_CHAIN_PART, last=checked, **place)[0]
            broken += [BrokenChain(**link) for link in part["broken"] or ()]
            place = {"after": part["last_work_order_id"], "after_seq": part["last_seq"]}
            events += part["events"]
            if progress is not None:
                progress(events)
        return broken

    def as_of(
        self,
        work_order_id: str,
        *,
        event_id: int | None = None,
        seq: int | None = None,
        at: datetime | None = None,
    ) -> WorkOrder | None:
        """Return the state after an event, or after the last event created until a time (contract §5).

        None before the first event. Raises ContractViolation for a naive datetime, and unless exactly one of
        the three is given.
        """
        if [event_id, seq, at].count(None) != 2:
            raise ContractViolation(field="as_of", rule="takes exactly one of event_id, seq and at")
        rows = self._run(
            statements.AS_OF,
            work_order_id=check_work_order_id(work_order_id),
            event_id=_POSITION.check_optional("event_id", event_id),
            seq=_POSITION.check_optional("seq", seq),
            at=EVENT_RULES["occurred_at"].check_optional("at", at),
        )
        return statements.only_work_order(rows)

    def _events(self, work_order_id: str, after: int) -> Iterator[WorkOrderEvent]:
        # Pages, not a cursor: nothing stays open if the caller stops, and each page checks the tenant.
        while page := self._read_in_scope(statements.EVENTS, work_order_id=work_order_id, after=after):
            yield from page
            if len(page) < statements.EVENTS_PAGE:
                return
            after = page[-1].work_order_seq


def rebuild_by_groups(
    rebuild_group: Callable[[str], RowMapping], progress: Callable[[RebuildReport], object] | None
) -> RebuildReport:
    """Rebuild group after group, each after the last id of the previous one, and add up the reports."""
    report = RebuildReport(0, 0, 0)
    group = rebuild_group("")
    while (last_work_order_id := group["last_work_order_id"]) is not None:
        report = RebuildReport(
            work_orders=report.work_orders + group["work_orders"],
            events=report.events + group["events"],
            changed=report.changed + group["changed"],
        )
        if progress is not None:
            progress(report)
        group = rebuild_group(last_work_order_id)
    return report


def batch_to_wire(events: object) -> str:
    """Write 1..1000 events as the JSON text that the append function takes; raises ContractViolation."""
    batch = list(islice(events, MAX_BATCH + 1)) if isinstance(events, Iterable) else []
    if not 1 <= len(batch) <= MAX_BATCH:
        raise ContractViolation(field="events", rule=f"must be 1..{MAX_BATCH} events")
    for index, event in enumerate(batch):
        if not isinstance(event, WorkOrderLedgerEventInput):
            raise ContractViolation(
                field="events", rule="must be WorkOrderLedgerEventInput values", event_index=index
            )
    # Secret: an event may contain a lease token.
    return Secret(events_to_json(batch))
