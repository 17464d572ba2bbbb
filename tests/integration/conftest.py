"""The sessions that tests of the SQL functions work with: a database a module, a tenant a test."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.calls import Tenant
from tests.support.factories import new_id
from tests.support.servers import Database, Server
from tests.support.sessions import Sessions


@pytest.fixture(scope="module")
def shared_database(server: Server, template_database: str) -> Iterator[Database]:
    """Return a clone of the template that the module's tests share."""
    with server.new_database("shared", template_database) as database:
        yield database


@pytest.fixture
def sessions(shared_database: Database) -> Iterator[Sessions]:
    """Open sessions of the application's on demand."""
    with closing(Sessions(shared_database.app_url, shared_database.admin_url)) as sessions:
        yield sessions


@pytest.fixture
def acme(sessions: Sessions) -> Tenant:
    """Return a tenant of the test's own."""
    return sessions.tenant(new_id("acme"))
