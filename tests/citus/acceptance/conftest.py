"""The tests' server is the given cluster here: a template that is distributed once, one clone of it a test.

Each node clones its own template: Citus keeps its tables in the database, names nodes by host and port, and
connects to the database of the same name.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pytest
from psycopg.sql import SQL, Identifier

from tests.citus.cluster import Cluster, distributed_database, given_nodes
from tests.citus.differences import DIFFERENCES
from tests.support.servers import Database, Server

# What a new session must find in each clone: ALTER DATABASE is not part of a template.
SETTINGS = {
    "citus.propagate_set_commands": "local",
    # The tests of guards switch triggers off, one by one. On a cluster that needs leave.
    "citus.enable_unsafe_triggers": "on",
}


@dataclass(frozen=True, slots=True)
class ClusterServer(Server):
    """The coordinator, for tests that know one server."""

    @contextmanager
    def new_database(self, purpose: str, template: str = "template1") -> Iterator[Database]:
        """Make a database on every node."""
        cluster = Cluster(given_nodes(), f"selene_{purpose}_{os.getpid()}_{secrets.token_hex(4)}")
        cluster.everywhere(
            SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(cluster.name), Identifier(template))
        )
        try:
            for setting, value in SETTINGS.items():
                cluster.everywhere(
                    SQL("ALTER DATABASE {} SET {} = {}").format(Identifier(cluster.name), SQL(setting), value)
                )
            with closing(Database(self, cluster.name)) as database:
                yield database
        finally:
            cluster.drop()


@pytest.fixture(scope="session")
def server() -> Server:
    """Return the coordinator as the tests' server."""
    coordinator = Cluster(given_nodes(), "postgres")
    with coordinator.connect() as conn:
        release = conn.info.parameter_status("server_version") or ""
        return ClusterServer("given", coordinator.url, conn.info.server_version // 10000, release)


@pytest.fixture(scope="session")
def template_database(server: Server) -> Iterator[str]:
    """Name a distributed database, for cloning. Nothing may stay connected to it."""
    with distributed_database() as cluster:
        cluster.everywhere(SQL("ALTER DATABASE {} ALLOW_CONNECTIONS FALSE").format(Identifier(cluster.name)))
        cluster.everywhere(
            SQL("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = {}").format(
                cluster.name
            )
        )
        yield cluster.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect what differs on a cluster, each for its reason."""
    here = f"{__package__}."
    for item in items:
        if not isinstance(item, pytest.Function) or not item.module.__name__.startswith(here):
            continue
        for each in DIFFERENCES:
            if item.originalname == each.test and (
                not each.parameters or item.callspec.id in each.parameters
            ):
                item.add_marker(pytest.mark.xfail(reason=each.what, strict=True))
