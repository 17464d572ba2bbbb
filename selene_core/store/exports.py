"""What is held about a person, for whoever must answer that question (contract §18)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Text, bindparam, select, text

from selene_core.contract.personal import SUBJECT
from selene_core.store.conversation import ConversationRepository
from selene_core.store.repository import fetch
from selene_core.store.scope import scope_tenant
from selene_core.store.tables import (
    conversation_ledger,
    devices,
    identities,
    sessions,
    subject_erasures,
    subject_values,
    work_order_ledger,
    work_orders_current,
)
from selene_core.store.work_orders import WorkOrderRepository

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select


_RESOLVED_AT_ONCE: Final = 100


def export_subject(conn: Connection, subject_id: str) -> dict[str, Any]:
    """Return what a tenant holds about a person, in a tenant_scope; raises ContractViolation.

    Payloads are as they are stored: of the values in them, only the person's own are in `values`. A text that
    a tombstone hides is None. For members of selene_app.
    """
    subject = SUBJECT.check("subject_id", subject_id)
    tenant = scope_tenant(conn)

    def rows(statement: Select[Any], **more: object) -> list[dict[str, Any]]:
        found = fetch(conn, statement, tenant_id=tenant, subject_id=subject, **more)
        return [dict(row) for row in found]

    values = rows(_VALUES)
    resolve = WorkOrderRepository(conn).resolve
    for start in range(0, len(values), _RESOLVED_AT_ONCE):
        part = values[start : start + _RESOLVED_AT_ONCE]
        found = resolve([{"$subject": subject, "$ref": held["value_ref"]} for held in part])
        for held, value in zip(part, found, strict=True):
            held["value"] = value
    return {
        "tenant_id": tenant,
        "subject_id": subject,
        "identity": next(iter(rows(_IDENTITY)), None),
        "devices": rows(_DEVICES),
        "sessions": rows(_SESSIONS),
        "values": values,
        "events": rows(_EVENTS),
        "work_orders": rows(_WORK_ORDERS),
        "turns": [
            turn
            for thread in rows(_THREADS)
            for turn in ConversationRepository(conn).turns(thread["correlation_id"])
            if turn.user_id == subject
        ],
        "erasures": rows(_ERASURES),
    }


_TENANT: Final = bindparam("tenant_id", type_=Text)
_SUBJECT: Final = bindparam("subject_id", type_=Text)


def _of_user(table: Any) -> Select[Any]:
    return select(table).where(table.c.tenant_id == _TENANT, table.c.user_id == _SUBJECT)


_IDENTITY: Final = _of_user(identities)
_DEVICES: Final = _of_user(devices).order_by(devices.c.device_id)
_SESSIONS: Final = _of_user(sessions).order_by(sessions.c.opened_at)
_VALUES: Final = (
    select(subject_values.c.value_ref, subject_values.c.created_at)
    .where(subject_values.c.tenant_id == _TENANT, subject_values.c.subject_id == _SUBJECT)
    .order_by(subject_values.c.created_at)
)
# Where a reference to the person, or the person's id, stands in the payload.
_IN_PAYLOAD: Final = text("""jsonb_path_exists(
    payload,
    'strict $.** ? (@.type() == "object"
      && (@."$subject" == $id || @."requester_user_id" == $id || @."target_user_id" == $id))',
    jsonb_build_object('id', CAST(:subject_id AS text))
)""")
_LEDGER: Final = work_order_ledger.c
_EVENTS: Final = (
    select(
        _LEDGER.work_order_id,
        _LEDGER.work_order_seq,
        _LEDGER.work_order_event_id,
        _LEDGER.event_type,
        _LEDGER.created_at,
        _LEDGER.payload,
    )
    .where(_LEDGER.tenant_id == _TENANT, _IN_PAYLOAD)
    .order_by(_LEDGER.work_order_event_id)
)
_CURRENT: Final = work_orders_current.c
_WORK_ORDERS: Final = (
    select(
        _CURRENT.work_order_id, _CURRENT.work_order_status, _CURRENT.created_at, _CURRENT.requester_user_id
    )
    .where(
        _CURRENT.tenant_id == _TENANT,
        # Whoever requests one, or is asked for approval, is in an event, too.
        _CURRENT.work_order_id.in_(
            select(_LEDGER.work_order_id).where(_LEDGER.tenant_id == _TENANT, _IN_PAYLOAD)
        ),
    )
    .order_by(_CURRENT.work_order_id)
)
_THREADS: Final = (
    select(conversation_ledger.c.correlation_id)
    .where(conversation_ledger.c.tenant_id == _TENANT, conversation_ledger.c.user_id == _SUBJECT)
    .group_by(conversation_ledger.c.correlation_id)
    .order_by(conversation_ledger.c.correlation_id)
)
_ERASURES: Final = (
    # Not its place in the feed.
    select(*(column for column in subject_erasures.c if column.name != "drawn_event_id"))
    .where(subject_erasures.c.tenant_id == _TENANT, subject_erasures.c.subject_id == _SUBJECT)
    .order_by(subject_erasures.c.erasure_id)
)
