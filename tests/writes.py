"""What writes every table: calls for a tenant, by names that no other tenant uses."""

from uuid import NAMESPACE_DNS, UUID, uuid5

# {thread} is a correlation_id.
EVENT = """os_core.append_work_order_events('{tenant}', '[{{
    "work_order_id": "{tenant}-order", "correlation_id": "{thread}", "turn_id": 1, "event_type": "{type}",
    "work_order_status": "DRAFT", "reason_code": 1, "idempotency_key": "{type}"}}]')"""
TURN = """conversation.append_turn(
    '{tenant}', '{thread}', {turn}, '{tenant}-user', '{role}', '{source}', '{text}', 'PUBLIC_CHAT',
    '{tenant}-session', '{tenant}-device', 'turn-{turn}')"""
CREATE = EVENT.replace("{type}", "WORK_ORDER_CREATED")
SAY = (
    TURN.replace("{turn}", "1")
    .replace("{role}", "USER")
    .replace("{source}", "TYPED_TEXT")
    .replace("{text}", "Hello")
)
CALLS = {
    "create": CREATE,
    "step": EVENT.replace("{type}", "STEP_STARTED"),
    "lease": """os_core.acquire_lease('{tenant}', '{tenant}-order', 'worker-1', 'lease-token-of-{tenant}',
        60000, 'lease')""",
    "attempt": """os_core.start_step_attempt('{tenant}', '{tenant}-order', 'book', 1000, 1, 1000, 'attempt',
        'lease-token-of-{tenant}')""",
    "identity": "os_core.register_identity('{tenant}', '{tenant}-user', '{tenant}-speaker', 'de')",
    "device": "os_core.register_device('{tenant}', '{tenant}-user', '{tenant}-device', 'phone')",
    "session": "os_core.open_session('{tenant}', '{tenant}-session', '{tenant}-user', '{tenant}-device')",
    "turn": SAY,
    "answer": TURN.replace("{turn}", "2")
    .replace("{role}", "SELENE")
    .replace("{source}", "SELENE_OUTPUT")
    .replace("{text}", "Good day"),
    "tombstone": """conversation.tombstone_turn('{tenant}', '{thread}', (
        SELECT conversation_turn_id FROM conversation.read_turns('{tenant}', '{thread}', 0, 1)), 7)""",
}


def thread_of(tenant_id: str) -> UUID:
    """Return the correlation_id of all that a tenant writes here."""
    return uuid5(NAMESPACE_DNS, tenant_id)


def statement(call: str, tenant_id: str, **ids: int) -> str:
    """Return the SELECT that makes a call for a tenant."""
    return f"SELECT * FROM {call.format(tenant=tenant_id, thread=thread_of(tenant_id), **ids)}"
