"""A trip, from the user's words to the order to book it: what the requests of the application do."""

# --- imports
from typing import Any

from selene_core import (
    AppendResult,
    ApprovalOutcome,
    PromptAction,
    PromptDecision,
    WorkOrderRepository,
    WorkOrderStatus,
)

# --- what to ask
REQUIRED_FIELDS = ("city", "date")


def next_question(
    orders: WorkOrderRepository, order_id: str, turn_id: int, message_id: str
) -> PromptDecision:
    """Decide what to ask the user for; once all is known, the order is to be confirmed."""
    asked = orders.ask(order_id, REQUIRED_FIELDS, turn_id=turn_id, idempotency_key=f"ask-{message_id}")
    if asked.decision is PromptAction.SKIP:
        orders.change_status(order_id, WorkOrderStatus.CONFIRM, idempotency_key="known")
    return asked


def answer(
    orders: WorkOrderRepository, order_id: str, field_key: str, value: Any, turn_id: int, message_id: str
) -> PromptDecision:
    """Record what the user has answered, and return what to ask for next."""
    said = f"{message_id}-{field_key}"  # one message may answer several questions
    orders.set_field(order_id, field_key, value, turn_id=turn_id, idempotency_key=f"answer-{said}")
    return next_question(orders, order_id, turn_id, said)


# --- the approval
def decide(
    orders: WorkOrderRepository, order_id: str, request_id: str, outcome: ApprovalOutcome, turn_id: int
) -> AppendResult:
    """Record the answer to a request for approval: the work begins, or the order is refused."""
    decided = orders.resolve_approval(
        order_id, request_id, outcome, turn_id=turn_id, idempotency_key=f"decide-{request_id}"
    )
    approved = outcome is ApprovalOutcome.APPROVED
    status = WorkOrderStatus.EXECUTING if approved else WorkOrderStatus.REFUSED
    orders.change_status(
        order_id, status, previous_status=WorkOrderStatus.CONFIRM, idempotency_key=f"follow-{request_id}"
    )
    return decided
