"""A distributed database on the given cluster, by the steps of docs/howto/citus.md."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy import URL

from selene_core import migrations
from tests.integration.test_documents import guides_block
from tests.support.commands import selene_core

LOGIN = "selene_test_app"
PASSWORD = "selene-test"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A database on every node; the first node is the coordinator. Logins are postgres and LOGIN."""

    nodes: tuple[tuple[str, int], ...]
    name: str

    @property
    def url(self) -> URL:
        """Address the coordinator as the superuser."""
        return self._url(self.nodes[0], "postgres", self.name)

    @property
    def app_url(self) -> URL:
        """Address the coordinator as a member of selene_app."""
        return self._url(self.nodes[0], LOGIN, self.name)

    def connect(self, node: int = 0, database: str | None = None) -> psycopg.Connection[Any]:
        """Connect to a node as the superuser, in autocommit."""
        url = self._url(self.nodes[node], "postgres", database or self.name)
        return psycopg.connect(_dsn(url), autocommit=True)

    def app(self) -> psycopg.Connection[Any]:
        """Connect to the coordinator as a member of selene_app, in autocommit."""
        return psycopg.connect(_dsn(self.app_url), autocommit=True)

    def everywhere(self, statement: SQL | Any, database: str = "postgres") -> None:
        """Run a statement on every node."""
        for node in range(len(self.nodes)):
            with self.connect(node, database) as conn:
                conn.execute(statement)

    def _url(self, node: tuple[str, int], user: str, database: str) -> URL:
        password = PASSWORD if user == LOGIN else os.environ.get("SELENE_TEST_CITUS_PASSWORD")
        return URL.create("postgresql+psycopg", user, password, *node, database)


def _dsn(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def distributed_database(every_node: str, the_nodes: str, distribute: str) -> Iterator[Cluster]:
    """Make a database on every node and distribute it by the guide's blocks; drop it at the end."""
    given = (each.rpartition(":") for each in os.environ["SELENE_TEST_CITUS"].split(","))
    nodes = tuple((host, int(port)) for host, _, port in given)
    cluster = Cluster(nodes, f"selene_citus_{os.getpid()}_{secrets.token_hex(4)}")
    cluster.everywhere(SQL("CREATE DATABASE {} TEMPLATE template0").format(Identifier(cluster.name)))
    try:
        migrations.upgrade(cluster.url)
        for node in range(len(nodes)):
            with cluster.connect(node) as conn:
                conn.execute(guides_block(every_node, "sql").encode())
                _make_login(conn)
        with cluster.connect() as conn:
            places = {
                "coordinator": nodes[0],
                **{f"worker_{place}": node for place, node in enumerate(nodes[1:], 1)},
            }
            for statement in guides_block(the_nodes, "sql").split(";")[:-1]:
                conn.execute(_filled(statement, places).encode())
        for command in guides_block(distribute, "sh").splitlines():
            program, *arguments = command.split()
            assert program == "selene-core"
            ran = selene_core(
                *arguments, SELENE_DATABASE_URL=cluster.url.render_as_string(hide_password=False)
            )
            assert ran.returncode == 0, ran
        yield cluster
    finally:
        cluster.everywhere(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(cluster.name)))


def _make_login(conn: psycopg.Connection[Any]) -> None:
    if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (LOGIN,)).fetchone() is None:
        conn.execute(f"CREATE ROLE {LOGIN} LOGIN PASSWORD '{PASSWORD}' IN ROLE selene_app".encode())


def _filled(statement: str, places: dict[str, tuple[str, int]]) -> str:
    """Put values in the place of psql's variables."""
    for name, (host, port) in places.items():
        statement = statement.replace(f":'{name}'", f"'{host}'").replace(f":{name}_port", str(port))
    return statement
