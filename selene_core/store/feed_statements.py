"""The statements of the feed, built once, and how their rows are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Boolean, Integer, Text, bindparam, select

from selene_core.contract.enums import FeedEventType, WorkOrderEventType, WorkOrderStatus
from selene_core.contract.rows import FeedEvent
from selene_core.store.instants import Instant
from selene_core.store.repository import TENANT, call, scoped
from selene_core.store.tables import work_order_feed_heads, work_order_ledger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import RowMapping

_CONSUMER: Final = bindparam("consumer", type_=Text)
_FENCE: Final = bindparam("fence", type_=BigInteger)
_AFTER: Final = bindparam("after", type_=BigInteger)
_LIMIT: Final = bindparam("limit", type_=Integer)
_INSTANT: Final = Instant()
_EVENTS: Final[dict[str, Any]] = {
    "feed_position": BigInteger,
    **{column.name: column.type for column in work_order_ledger.columns},
}

ADVANCE: Final = call("advance_feed", [TENANT, _LIMIT], result=Integer)
ENROLL: Final = call("enroll_feed", [TENANT, _CONSUMER], result=Boolean)
POLL: Final = call("poll_feed", [TENANT, _CONSUMER, _LIMIT], result=Boolean)
READ: Final = call("read_feed", [TENANT, _AFTER, _LIMIT], **_EVENTS)
TAKE: Final = call("take_feed", scoped(_CONSUMER, _LIMIT), **_EVENTS)
LEASE: Final = call(
    "lease_feed",
    [TENANT, _CONSUMER, bindparam("owner", type_=Text), bindparam("ttl_ms", type_=BigInteger)],
    fence=BigInteger,
    feed_position=BigInteger,
    lease_expires_at=_INSTANT,
)
ACK: Final = call(
    "ack_feed",
    [TENANT, _CONSUMER, _FENCE, bindparam("from", type_=BigInteger), bindparam("to", type_=BigInteger)],
    result=Boolean,
)
RELEASE: Final = call("release_feed", [TENANT, _CONSUMER, _FENCE], result=Boolean)
STATUS: Final = call(
    "feed_status",
    [TENANT, _CONSUMER],
    consumer=Text,
    feed_position=BigInteger,
    last_position=BigInteger,
    behind=BigInteger,
    waiting_since=_INSTANT,
    lease_owner_id=Text,
    lease_expires_at=_INSTANT,
    updated_at=_INSTANT,
)
VERIFY: Final = call(
    "verify_feed",
    [TENANT],
    feed_position=BigInteger,
    work_order_event_id=BigInteger,
    work_order_id=Text,
    consumer=Text,
    problem=Text,
)

_HEADS: Final = work_order_feed_heads.columns
LAST_POSITION: Final = select(_HEADS.last_position).where(_HEADS.tenant_id == TENANT)
"""For a connection in a tenant_scope."""


def events(rows: Sequence[RowMapping]) -> list[FeedEvent]:
    """Return the events of rows."""
    return [FeedEvent(**{**row, **_words(row)}) for row in rows]


def _words(row: RowMapping) -> dict[str, Any]:
    if row["event_type"] == FeedEventType.SUBJECT_ERASED:
        return {"event_type": FeedEventType.SUBJECT_ERASED}
    return {
        "event_type": WorkOrderEventType(row["event_type"]),
        "work_order_status": WorkOrderStatus(row["work_order_status"]),
    }
