"""What a service calls while a revision gives its table a column waits, and works (SPEC.md section 13)."""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from selene_core.tables import METADATA
from tests.catalogue_rules import PUBLIC_FUNCTIONS
from tests.races import wait_until
from tests.raw import Connection
from tests.servers import Database
from tests.sessions import Session, Sessions
from tests.writes import CALLS, EVENT, statement

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
    "lock": f"os_core.lock_work_order({ORDER})",
    "lease": CALLS["lease"],
    "lease, again": CALLS["lease"],
    "renew": f"os_core.renew_lease({ORDER}, {TOKEN}, 60000)",
    "attempt": CALLS["attempt"],
    "attempt, again": CALLS["attempt"],
    "finish": f"os_core.finish_step_attempt('{{tenant}}', {{attempt}}, 'FAILED', 1, TRUE, {TOKEN}, 'key')",
    "due": "os_core.due_step_retries('{tenant}', 10)",
    "step": STEP,
    "batch": re.sub(r"\[(.*)\]", r"[\1, \1]", STEP, flags=re.DOTALL),
    "release": f"os_core.release_lease({ORDER}, {TOKEN})",
    "notify": f"os_core.notify_wait({ORDER})",
    "cancel": f"os_core.cancel_work_order({ORDER}, 7, 'cancel')",
    "as of": f"os_core.work_order_as_of({ORDER}, p_seq => 1)",
    "verify": "os_core.verify_work_orders('{tenant}')",
    "rebuild": f"os_core.rebuild_work_order({ORDER})",
    "rebuild all": "os_core.rebuild_work_orders('{tenant}', NULL, 10)",
    "tenant": "os_core.require_tenant('{tenant}')",
}


@pytest.fixture
def own_sessions(database: Database) -> Iterator[Sessions]:
    """Open sessions on a database that is changed."""
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        yield sessions


def known(sessions: Sessions, tenant_id: str) -> dict[str, int]:
    """Return the ids that the calls name; 0 before there is one."""
    ids = {}
    for name, column, table in (
        ("turn", "conversation_turn_id", "conversation.conversation_ledger"),
        ("attempt", "step_attempt_id", "os_core.work_order_step_attempts"),
    ):
        query = f"SELECT coalesce(min({column}), 0) FROM {table} WHERE tenant_id = %s"
        row = sessions.admin.execute(query.encode(), (tenant_id,)).fetchone()
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


def test_story__is_of_every_public_function() -> None:
    called = {call.partition("(")[0] for call in STORY.values()}
    assert called == {signature.partition("(")[0] for signature in PUBLIC_FUNCTIONS}


@pytest.mark.parametrize("table", [table.fullname for table in METADATA.sorted_tables])
def test_waiting_call__works_when_its_table_has_got_a_column(own_sessions: Sessions, table: str) -> None:
    """What is in the session's caches is of before, and so is what the statement is to return."""
    app = own_sessions.open()
    waiting = []
    for number, (name, call) in enumerate(STORY.items()):
        run(app.conn, call, "before", known(own_sessions, "before"))
        ids = known(own_sessions, "acme")
        run(app.conn, call, "acme", ids, for_good=False)
        migration = own_sessions.open_as_superuser()
        migration.conn.execute(f"ALTER TABLE {table} ADD COLUMN new_{number} text".encode())
        answer = app.start(partial(run, call=call, tenant_id="acme", ids=ids))
        if wait_until(partial(waits_or_is_done, own_sessions, app, answer), f"{name} waits") == "waits":
            waiting.append(name)
        migration.conn.commit()
        answer.result()
        migration.conn.execute(f"ALTER TABLE {table} DROP COLUMN new_{number}".encode())
        migration.conn.commit()
    assert waiting
    # The story went as where nobody disturbs it.
    undisturbed, acme = (own_sessions.tenant(tenant_id) for tenant_id in ("before", "acme"))
    last = undisturbed.projection("before-order")["last_seq"]
    assert acme.projection("acme-order")["last_seq"] == last
    assert acme.verify() == {}


def waits_or_is_done(sessions: Sessions, session: Session, answer: Future[Any]) -> str | None:
    """Tell which it is, once it is one."""
    if answer.done():
        return "is done"
    return "waits" if sessions.blockers_now(session) else None
