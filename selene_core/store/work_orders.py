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

from selene_core.contract.enums import TERMINAL_STATUSES, PromptAction, PromptReason, WorkOrderEventType
from selene_core.contract.errors import ContractViolation, IdempotencyConflict, InvalidTransition
from selene_core.contract.events import WorkOrderLedgerEventInput, check_work_order_id
from selene_core.contract.frozen_json import MAX_INT64, thaw
from selene_core.contract.personal import holds_references
from selene_core.contract.prompts import (
    PromptDecision,
    check_prefilled_fields,
    check_required_fields,
    decide_prompt,
)
from selene_core.contract.rows import (
    AppendResult,
    DriftedOrder,
    PendingCursor,
    RebuildReport,
    WorkOrder,
    WorkOrderEvent,
    check_pending_cursor,
)
from selene_core.contract.rules import EVENT_RULES, PAYLOAD_RULES, flag, identifier, integer, time_span
from selene_core.store import work_order_statements as statements
from selene_core.store.repository import Repository, Secret
from selene_core.store.scope import scope_tenant

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

MAX_BATCH: Final = 1000

MAX_PENDING: Final = 1000

_POSITION: Final = integer(0, MAX_INT64)
_LIMIT: Final = integer(1, MAX_PENDING)
_FLAG: Final = flag()
_WINDOW: Final = time_span(timedelta(days=36_500))
_NOTE: Final = PAYLOAD_RULES[WorkOrderEventType.WORK_ORDER_CANCELED].optional["note"]
_USER: Final = identifier(128)


class WorkOrderRepository(Repository):
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
        return [AppendResult(**row) for row in self._run(statements.APPEND_IN_SCOPE, events=wire)]

    def get(self, work_order_id: str, *, resolve: bool = False) -> WorkOrder | None:
        """Return the work order as it is now, or None; raises ContractViolation (contract §9).

        resolve=True: with personal values in the place of their references, in fields_json and
        resolved_fields_json; an erased one reads {"$erased": True} (contract §18).
        """
        rows = self._read(statements.GET, work_order_id=check_work_order_id(work_order_id))
        found = statements.only_work_order(rows)
        return self._resolved(found) if found is not None and _FLAG.check("resolve", resolve) else found

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
        return statements.only_work_order(self._read(statements.GET_BY_CORRELATION, correlation_id=checked))

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
        )
        rows = self._read(
            statement,
            requester_user_id=_USER.check_optional("requester_user_id", requester_user_id),
            within=_WINDOW.check_optional("within", within),
            limit=_LIMIT.check("limit", limit),
            after_at=cursor and cursor.last_updated_at,
            after_event_id=cursor and cursor.last_event_id,
        )
        return [statements.work_order(row) for row in rows]

    def cancel(
        self, work_order_id: str, reason_code: int, idempotency_key: str, note: str | None = None
    ) -> AppendResult:
        """Append WORK_ORDER_CANCELED with the order's thread and turn (contract §9).

        The same key again returns the original, replayed. Raises ContractViolation, WorkOrderNotFound,
        CancelInvalidState if the order has ended, IdempotencyConflict and ProjectionDamaged.
        """
        rows = self._run(
            statements.CANCEL,
            work_order_id=check_work_order_id(work_order_id),
            reason_code=EVENT_RULES["reason_code"].check("reason_code", reason_code),
            idempotency_key=EVENT_RULES["idempotency_key"].check("idempotency_key", idempotency_key),
            note=_NOTE.check_optional("note", note),
        )
        return AppendResult(**rows[0])

    def ask(
        self,
        work_order_id: str,
        required_fields: Iterable[str],
        prefilled_fields: Iterable[str] = (),
        turn_id: int | None = None,
        reason_code: int | None = None,
        idempotency_key: str | None = None,
    ) -> PromptDecision:
        """Lock the order, decide by decide_prompt() and record the prompt, if any (contract §6).

        If several processes ask at once, one may; the others get the next field or nothing. The prompt has
        the order's thread and status, and its turn_id and last_reason_code if none are given. The key of a
        recorded prompt returns that prompt, with prompt.replayed.

        Raises ContractViolation, WorkOrderNotFound, BoundExceeded and ProjectionDamaged; IdempotencyConflict
        if another event has the key; InvalidTransition if it would ask about an order that has ended.
        """
        work_order_id = check_work_order_id(work_order_id)
        given = {
            "turn_id": EVENT_RULES["turn_id"].check_optional("turn_id", turn_id),
            "reason_code": EVENT_RULES["reason_code"].check_optional("reason_code", reason_code),
        }
        key = EVENT_RULES["idempotency_key"].check_optional("idempotency_key", idempotency_key)
        required, prefilled = check_required_fields(required_fields), check_prefilled_fields(prefilled_fields)
        current = statements.work_order(self._run(statements.LOCK, work_order_id=work_order_id)[0])
        decided = decide_prompt(current, required, prefilled)
        if key is not None and (recorded := self._event_of_key(work_order_id, key)):
            return self._recorded_prompt(recorded, required, prefilled)
        if decided.field_key is None:
            return decided
        if current.work_order_status in TERMINAL_STATUSES:
            # The prompt repeats the status: on a canceled order it would be taken for a cancel.
            raise InvalidTransition(
                f"work order {work_order_id} is {current.work_order_status}: nothing is asked",
                work_order_id=work_order_id,
                work_order_status=current.work_order_status,
                event_type=WorkOrderEventType.FIELD_PROMPTED,
            )
        prompt = self.append(
            WorkOrderLedgerEventInput(
                work_order_id=work_order_id,
                correlation_id=current.correlation_id,
                turn_id=given["turn_id"] or current.turn_id,
                event_type=WorkOrderEventType.FIELD_PROMPTED,
                work_order_status=current.work_order_status,
                reason_code=given["reason_code"] or current.last_reason_code,
                payload={"field_key": decided.field_key, "prompt_dedupe_key": decided.prompt_dedupe_key},
                idempotency_key=key,
            )
        )
        return replace(decided, prompt=prompt)

    def notify_wait(
        self, work_order_id: str, turn_id: int | None = None, reason_code: int | None = None
    ) -> bool:
        """Tell whether this caller must tell the user of the wait for an approval, and record that it does.

        True once for each request, and once more after its expiry. False if the user was told or nothing is
        pending. The event has the order's turn_id and last_reason_code if none are given. Raises
        ContractViolation, WorkOrderNotFound and ProjectionDamaged (contract §7).
        """
        rows = self._run(
            statements.NOTIFY_WAIT,
            work_order_id=check_work_order_id(work_order_id),
            turn_id=EVENT_RULES["turn_id"].check_optional("turn_id", turn_id),
            reason_code=EVENT_RULES["reason_code"].check_optional("reason_code", reason_code),
        )
        speaks: bool = rows[0]["speaks"]
        return speaks

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

    def _event_of_key(self, work_order_id: str, idempotency_key: str) -> WorkOrderEvent | None:
        rows = self._read(
            statements.EVENT_OF_KEY, work_order_id=work_order_id, idempotency_key=idempotency_key
        )
        return statements.event(rows[0]) if rows else None

    def _recorded_prompt(
        self, event: WorkOrderEvent, required: tuple[str, ...], prefilled: tuple[str, ...]
    ) -> PromptDecision:
        """Return the decision that recorded the event, computed from the state before it."""
        if event.event_type is not WorkOrderEventType.FIELD_PROMPTED:
            raise IdempotencyConflict(
                work_order_id=event.work_order_id,
                idempotency_key=event.idempotency_key,
                work_order_event_id=event.work_order_event_id,
            )
        prompt = AppendResult(event.work_order_event_id, event.work_order_seq, True, event.created_at)
        asked = (event.payload["field_key"], event.payload["prompt_dedupe_key"])
        reason = PromptReason.POLICY_NEXT_FIELD
        before = self.as_of(event.work_order_id, seq=event.work_order_seq - 1)
        if before is not None:
            decided = decide_prompt(before, required, prefilled)
            if (decided.field_key, decided.prompt_dedupe_key) == asked:
                return replace(decided, prompt=prompt)
            # The prompt was for other required fields, or from a caller with a policy of its own.
            if before.conflicts_json.get(asked[0], {}).get("asked") is False:
                reason = PromptReason.POLICY_CONFLICT_REQUIRES_ONE_ASK
        return PromptDecision(PromptAction.ASK, *asked, reason, prompt)

    def _events(self, work_order_id: str, after: int) -> Iterator[WorkOrderEvent]:
        # Pages, not a cursor: nothing stays open if the caller stops, and each page checks the tenant.
        while page := self._read(statements.EVENTS, work_order_id=work_order_id, after=after):
            yield from map(statements.event, page)
            if len(page) < statements.EVENTS_PAGE:
                return
            after = page[-1]["work_order_seq"]


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
    wire = [event.to_wire() for event in batch]
    # Secret: an event may contain a lease token.
    return Secret(json.dumps(wire, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
