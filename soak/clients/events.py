"""Random events: every type, mostly such as an order in use would see."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import NAMESPACE_URL, uuid5

Event = dict[str, Any]

FIELDS = ("who", "when", "where", "how")
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    1.5,
    "1",
    "",
    "é",
    "\U0001f600",
    [],
    {},
    [1, {"x": 1}],
    {"x": [1, 2]},
)
STATUSES = ("CLARIFY",) * 8 + ("EXECUTING",) * 6 + ("CONFIRM", "DRAFT")
ENVELOPE = ("correlation_id", "turn_id", "work_order_status", "reason_code")
ENDS = ("DONE", "FAILED", "REFUSED")
TYPES = (
    ("FIELD_SET",) * 8
    + ("FIELD_PROMPTED",) * 6
    + ("FIELD_CONFLICT_DETECTED",) * 3
    + ("FIELD_CONFLICT_RESOLVED",) * 3
    + ("STATUS_CHANGED",) * 3
    + ("STEP_STARTED", "STEP_FINISHED", "STEP_FAILED", "STEP_RETRY_SCHEDULED")
)
# What an open order takes, whatever its state: a batch of others would rarely be taken.
ALWAYS = ("FIELD_SET",) * 4 + ("FIELD_CONFLICT_DETECTED", "FIELD_CONFLICT_RESOLVED", "STATUS_CHANGED")


def correlation_of(work_order_id: str) -> str:
    """Return the thread that an order begins with."""
    return str(uuid5(NAMESPACE_URL, work_order_id))


def creation(work_order_id: str) -> Event:
    """Compose the first event: the same one, whoever of the clients comes first."""
    return {
        "work_order_id": work_order_id,
        "correlation_id": correlation_of(work_order_id),
        "turn_id": 1,
        "event_type": "WORK_ORDER_CREATED",
        "work_order_status": "CLARIFY",
        "reason_code": 1,
        "payload": {"fields": {"place": "Oslo"}, "requester_user_id": "alice"},
        "idempotency_key": "created",
    }


class Events:
    """Compose events with a reason code of their own, by which the checker knows them again."""

    def __init__(self, luck: Random, number: int) -> None:
        self._luck, self._next, self._number = luck, number << 20, number

    def reason(self) -> int:
        """Return a number that no other event has; 1 is that of creations."""
        self._next += 1
        return self._next

    def key(self) -> str:
        """Return a key that nothing else has."""
        return f"k-{self.reason()}"

    def event(self, work_order_id: str, event_type: str | None = None, **given: Any) -> Event:
        """Compose an event of an order."""
        luck = self._luck
        event_type = event_type or luck.choice(TYPES)
        status = luck.choice(ENDS) if luck.random() < 0.003 else luck.choice(STATUSES)
        event = {
            "work_order_id": work_order_id,
            "correlation_id": correlation_of(work_order_id),
            "turn_id": luck.randint(1, 9),
            "event_type": event_type,
            "work_order_status": status,
            "reason_code": self.reason(),
            "payload": self._payload(event_type),
            **given,
        }
        if luck.random() < 0.7:
            event["idempotency_key"] = f"k-{event['reason_code']}"
        if luck.random() < 0.1:
            # Left out, they are the order's own; the key tells the event.
            event["idempotency_key"] = f"k-{event['reason_code']}"
            for name in luck.sample(ENVELOPE, k=luck.randint(1, len(ENVELOPE))):
                if name != "work_order_status" or event_type != "STATUS_CHANGED":
                    del event[name]
        if luck.random() < 0.1:
            event["step_id"], event["step_input_hash"] = luck.choice(("one", "two")), "h"
        if luck.random() < 0.3:
            event["occurred_at"] = self._some_time()
        return event

    def _payload(self, event_type: str) -> Event:
        luck = self._luck
        field, request = luck.choice(FIELDS), luck.choice(("ask-1", "ask-2"))
        value = luck.choice(VALUES)
        makers: dict[str, Callable[[], Event]] = {
            "FIELD_SET": lambda: {"field_key": field, "value": value},
            "FIELD_PROMPTED": lambda: {
                "field_key": field,
                "prompt_dedupe_key": f"{field}#{luck.randint(1, 6)}",
            },
            "FIELD_CONFLICT_DETECTED": lambda: {"field_key": field, "candidates": [value, 1]},
            "FIELD_CONFLICT_RESOLVED": lambda: {"field_key": field, "value": value},
            "STATUS_CHANGED": lambda: {"note": "so"},
            "EXTERNAL_APPROVAL_REQUESTED": lambda: {
                "request_id": request,
                "target_user_id": "carol",
                "expires_at": self._soon(),
            },
            "EXTERNAL_APPROVAL_WAIT_NOTIFIED": lambda: {"request_id": request},
            "EXTERNAL_APPROVAL_RESOLVED": lambda: {
                "request_id": request,
                "outcome": luck.choice(("APPROVED", "REJECTED", "EXPIRED")),
            },
        }
        return makers.get(event_type, lambda: {"resource": "crane"})()

    def _soon(self) -> str:
        return (datetime.now(UTC) + timedelta(milliseconds=self._luck.randint(-200, 300))).isoformat()

    def _some_time(self) -> str:
        """Return what the caller's clock says: right, a little or wildly wrong, in any zone."""
        luck = self._luck
        offset = timedelta(days=luck.choice((0, 0, -1, 1, -300_000, 2_000_000)), seconds=luck.randint(-5, 5))
        hours = luck.choice(("+00:00", "-08:00", "+05:45"))
        return (datetime.now(UTC) + offset).replace(tzinfo=None).isoformat(timespec="microseconds") + hours
