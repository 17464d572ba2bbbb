"""What a service calls while a revision gives its table a column waits, and works (contract §13)."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from selene_core.store.tables import METADATA
from tests.support.catalogue_rules import PUBLIC_FUNCTIONS
from tests.support.races import wait_until
from tests.support.servers import Database
from tests.support.sessions import Session, Sessions
from tests.support.writes import STORY, known, run


@pytest.fixture
def own_sessions(database: Database) -> Iterator[Sessions]:
    """Open sessions on a database that is changed."""
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        yield sessions


def test_story__is_of_every_public_function() -> None:
    called = {call.partition("(")[0] for call in STORY.values()}
    assert called == {signature.partition("(")[0] for signature in PUBLIC_FUNCTIONS}


# No public function reads or writes the records of removals.
TABLES = [table.fullname for table in METADATA.sorted_tables if table.name != "tenant_removals"]


@pytest.mark.parametrize("table", TABLES)
def test_waiting_call__works_when_its_table_has_got_a_column(own_sessions: Sessions, table: str) -> None:
    """What is in the session's caches is of before, and so is what the statement is to return."""
    app = own_sessions.open()
    waiting = []
    for number, (name, call) in enumerate(STORY.items()):
        run(app.conn, call, "before", known(own_sessions.admin, "before"))
        ids = known(own_sessions.admin, "acme")
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
