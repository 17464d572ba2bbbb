"""What writes every table and what calls every public function, for a tenant, by names of its own."""

import re
from collections.abc import Mapping
from typing import Any
from uuid import NAMESPACE_DNS, UUID, uuid5

import psycopg

from tests.support.raw import Connection

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
    "personal": EVENT.replace("{type}", "FIELD_SET").replace(
        '"reason_code": 1',
        '"reason_code": 1, "payload": {{"field_key": "name", "value":'
        ' {{"$personal": {{"subject": "{tenant}-user", "value": "Anna"}}}}}}',
    ),
    "positions": "os_core.advance_feed('{tenant}')",
    "consumer": "os_core.enroll_feed('{tenant}', 'billing')",
    "tombstone": """conversation.tombstone_turn('{tenant}', '{thread}', (
        SELECT conversation_turn_id FROM conversation.read_turns('{tenant}', '{thread}', 0, 1)), 7)""",
    "erase": "os_core.erase_subject('{tenant}', '{tenant}-other', 7)",
}

ORDER = "'{tenant}', '{tenant}-order'"
TOKEN = "'lease-token-of-{tenant}'"
STEP = EVENT.replace('"idempotency_key": "{type}"', '"lease_token": "lease-token-of-{tenant}"').replace(
    "{type}", "STEP_STARTED"
)
STORY = {
    "create": CALLS["create"],
    "identity": CALLS["identity"],
    "identity, again": CALLS["identity"].replace("'de'", "'fr'"),
    "device": CALLS["device"],
    "device, again": CALLS["device"],
    "session": CALLS["session"],
    "session, again": CALLS["session"],
    "touch": "os_core.touch_session('{tenant}', '{tenant}-session')",
    "turn": CALLS["turn"],
    "tombstone": "conversation.tombstone_turn('{tenant}', '{thread}', {turn}, 7)",
    "read": "conversation.read_turns('{tenant}', '{thread}', 0, 10)",
    "suspend": "os_core.move_session('{tenant}', '{tenant}-session', 'SUSPENDED')",
    "suspend, again": "os_core.move_session('{tenant}', '{tenant}-session', 'SUSPENDED')",
    "personal": CALLS["personal"],
    "resolve": """os_core.resolve_values('{tenant}', '{{"$subject": "{tenant}-user", "$ref": "unknown"}}')""",
    "erase": "os_core.erase_subject('{tenant}', '{tenant}-user', 7)",
    "erase, again": "os_core.erase_subject('{tenant}', '{tenant}-user', 7)",
    "lock": f"os_core.lock_work_order({ORDER})",
    "lease": CALLS["lease"],
    "lease, again": CALLS["lease"],
    "claim": f"os_core.claim_work_order('{{tenant}}', 'worker-1', {TOKEN}, 60000, '{{{{DRAFT}}}}')",
    "renew": f"os_core.renew_lease({ORDER}, {TOKEN}, 60000)",
    "attempt": CALLS["attempt"],
    "attempt, again": CALLS["attempt"],
    "finish": f"os_core.finish_step_attempt('{{tenant}}', {{attempt}}, 'FAILED', 1, TRUE, {TOKEN}, 'key')",
    "due": "os_core.due_step_retries('{tenant}', 10)",
    "step": STEP,
    "batch": re.sub(r"\[(.*)\]", r"[\1, \1]", STEP, flags=re.DOTALL),
    "release": f"os_core.release_lease({ORDER}, {TOKEN})",
    "ask": f"os_core.ask_field({ORDER}, '{{{{place}}}}', p_idempotency_key => 'ask')",
    "ask, again": f"os_core.ask_field({ORDER}, '{{{{place}}}}', p_idempotency_key => 'ask')",
    "notify": f"os_core.notify_wait({ORDER})",
    "cancel": f"os_core.cancel_work_order({ORDER}, 7, 'cancel')",
    "as of": f"os_core.work_order_as_of({ORDER}, p_seq => 1)",
    "verify": "os_core.verify_work_orders('{tenant}')",
    "verify chain": "os_core.verify_chain('{tenant}')",
    "verify chain, part": "os_core.verify_chain_part('{tenant}', NULL, NULL, NULL, 10)",
    "rebuild": f"os_core.rebuild_work_order({ORDER})",
    "rebuild all": "os_core.rebuild_work_orders('{tenant}', NULL, 10)",
    "tenant": "os_core.require_tenant('{tenant}')",
    "positions": "os_core.advance_feed('{tenant}')",
    "positions, settled": "os_core.advance_feed('{tenant}', 2)",
    "feed": "os_core.read_feed('{tenant}', 0, 10)",
    "feed, ids in a row": "os_core.read_feed('{tenant}', 0, 1)",
    "consumer": "os_core.enroll_feed('{tenant}', 'billing')",
    "poll": "os_core.poll_feed('{tenant}', 'billing')",
    "take": "os_core.take_feed('{tenant}', 'billing', 2)",
    "lease feed": "os_core.lease_feed('{tenant}', 'relay', 'relay-1', 60000)",
    "ack feed": "os_core.ack_feed('{tenant}', 'relay', 1, 0, 2)",
    "release feed": "os_core.release_feed('{tenant}', 'relay', 1)",
    "status": "os_core.feed_status('{tenant}')",
    "verify feed": "os_core.verify_feed('{tenant}')",
}


def thread_of(tenant_id: str) -> UUID:
    """Return the correlation_id of all that a tenant writes here."""
    return uuid5(NAMESPACE_DNS, tenant_id)


def statement(call: str, tenant_id: str, **ids: int) -> str:
    """Return the SELECT that makes a call for a tenant."""
    return f"SELECT * FROM {call.format(tenant=tenant_id, thread=thread_of(tenant_id), **ids)}"


def make(conn: Connection, call: str, tenant_id: str) -> psycopg.Cursor[tuple[Any, ...]]:
    """Make a call for a tenant. What it looks up is a call before: a cluster takes one at a time."""
    made = statement(call, tenant_id)
    if lookup := re.search(r"\(\s*(SELECT [^()]*\([^()]*\))\)", made):
        found = conn.execute(lookup[1].encode()).fetchone()
        made = made.replace(lookup[0], str(found[0]) if found else "NULL")
    return conn.execute(made.encode())


def known(admin: Connection, tenant_id: str) -> dict[str, int]:
    """Return the ids that the calls name; 0 before there is one."""
    ids = {}
    for name, column, table in (
        ("turn", "conversation_turn_id", "conversation.conversation_ledger"),
        ("attempt", "step_attempt_id", "os_core.work_order_step_attempts"),
    ):
        query = f"SELECT coalesce(min({column}), 0) FROM {table} WHERE tenant_id = %s"
        row = admin.execute(query.encode(), (tenant_id,)).fetchone()
        assert row is not None
        ids[name] = row[0]
    return ids


def run(
    conn: Connection, call: str, tenant_id: str, ids: Mapping[str, int], *, for_good: bool = True
) -> list[tuple[Any, ...]]:
    """Make a call in a transaction of the tenant's."""
    with conn.transaction(force_rollback=not for_good):
        conn.execute(f"SET LOCAL selene.tenant_id = '{tenant_id}'".encode())
        return conn.execute(statement(call, tenant_id, **ids).encode()).fetchall()
