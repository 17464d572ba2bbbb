"""What a migration must lead to, and clusters that know nothing of us."""

from collections.abc import Callable, Iterator

import pytest
from psycopg.sql import SQL, Identifier

from selene_core.migrations import upgrade
from tests.migrations.runs import catalogue_of
from tests.support.servers import Database, Server


@pytest.fixture(scope="session")
def catalogue_at(server: Server) -> Callable[[str], str]:
    """Return the catalogue that a plain upgrade to a revision makes."""
    known: dict[str, str] = {}

    def look_up(revision: str) -> str:
        if revision not in known:
            with server.new_database("expected") as database:
                upgrade(database.admin_url, revision)
                known[revision] = catalogue_of(database)
        return known[revision]

    return look_up


@pytest.fixture
def cluster(fresh_server: Server) -> Server:
    """Return a server without any database or role that a test made."""
    with fresh_server.admin() as conn:
        for (name,) in conn.execute(
            "SELECT datname FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1')"
        ).fetchall():
            conn.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
        for (name,) in conn.execute(
            "SELECT rolname FROM pg_roles WHERE rolname NOT LIKE 'pg\\_%' AND rolname <> current_user"
            " ORDER BY rolname LIKE 'selene%' DESC"  # first what the others granted to each other
        ).fetchall():
            conn.execute(SQL("DROP ROLE {}").format(Identifier(name)))
    return fresh_server


@pytest.fixture
def bare_database(cluster: Server) -> Iterator[Database]:
    """Return a database of a server on which nothing of us was ever made."""
    with cluster.new_database("bare") as database:
        yield database
