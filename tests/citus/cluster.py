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
from selene_core.store.tables import METADATA
from tests.integration.test_documents import guides_block
from tests.support.commands import selene_core
from tests.support.raw import connect
from tests.support.servers import LOGIN_ROLES, PASSWORD


@dataclass(frozen=True, slots=True)
class Cluster:
    """A database on every node; the first node is the coordinator."""

    nodes: tuple[tuple[str, int], ...]
    name: str

    @property
    def url(self) -> URL:
        """Address the coordinator as the superuser."""
        return self._url(self.nodes[0], "postgres", self.name)

    @property
    def app_url(self) -> URL:
        """Address the coordinator as a member of selene_app."""
        return self._url(self.nodes[0], LOGIN_ROLES["app"], self.name)

    def connect(self, node: int = 0, database: str | None = None) -> psycopg.Connection[Any]:
        """Connect to a node as the superuser, in autocommit."""
        url = self._url(self.nodes[node], "postgres", database or self.name)
        return connect(url, autocommit=True)

    def app(self) -> psycopg.Connection[Any]:
        """Connect to the coordinator as a member of selene_app, in autocommit."""
        return connect(self.app_url, autocommit=True)

    def everywhere(self, statement: SQL | Any, database: str = "postgres") -> None:
        """Run a statement on every node."""
        for node in range(len(self.nodes)):
            with self.connect(node, database) as conn:
                conn.execute(statement)

    def drop(self) -> None:
        """Drop the database on every node."""
        self.everywhere(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(self.name)))

    def _url(self, node: tuple[str, int], user: str, database: str) -> URL:
        password = os.environ.get("SELENE_TEST_CITUS_PASSWORD") if user == "postgres" else PASSWORD
        return URL.create("postgresql+psycopg", user, password, *node, database)


def shown(url: URL) -> str:
    """Write a URL for psql, and for the command."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def given_nodes() -> tuple[tuple[str, int], ...]:
    """Return the nodes of the given cluster; the first is the coordinator."""
    given = (each.rpartition(":") for each in os.environ["SELENE_TEST_CITUS"].split(","))
    return tuple((host, int(port)) for host, _, port in given)


@contextmanager
def distributed_database() -> Iterator[Cluster]:
    """Make a migrated database and distribute it; drop it at the end."""
    with empty_database() as cluster:
        migrations.upgrade(cluster.url)
        make_cluster(cluster)
        distribute(cluster)
        yield cluster


@contextmanager
def empty_database() -> Iterator[Cluster]:
    """Make a database on every node; drop it at the end."""
    cluster = Cluster(given_nodes(), f"selene_citus_{os.getpid()}_{secrets.token_hex(4)}")
    cluster.everywhere(SQL("CREATE DATABASE {} TEMPLATE template0").format(Identifier(cluster.name)))
    try:
        yield cluster
    finally:
        cluster.drop()


def make_cluster(cluster: Cluster) -> None:
    """Do what the guide says under "Make the cluster"."""
    for node in range(len(cluster.nodes)):
        with cluster.connect(node) as conn:
            conn.execute(guides_block("citus-every-node", "sql").encode())
            for role, login in LOGIN_ROLES.items():
                _make_login(conn, login, f"selene_{role}")
    with cluster.connect() as conn:
        places = {
            "coordinator": cluster.nodes[0],
            **{f"worker_{place}": node for place, node in enumerate(cluster.nodes[1:], 1)},
        }
        for statement in guides_block("citus-nodes", "sql").split(";")[:-1]:
            conn.execute(_filled(statement, places).encode())


def distribute(cluster: Cluster) -> None:
    """Run the commands that the guide has under "Distribute"."""
    for command in guides_block("citus-upgrade", "sh").splitlines():
        program, *arguments = command.split()
        assert program == "selene-core"
        ran = selene_core(*arguments, SELENE_DATABASE_URL=shown(cluster.url))
        assert ran.returncode == 0, ran


def _make_login(conn: psycopg.Connection[Any], name: str, group: str) -> None:
    if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is None:
        conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' IN ROLE {group}".encode())
    if group == "selene_owner":
        conn.execute(f"ALTER ROLE {name} SET role = 'selene_owner'".encode())


def _filled(statement: str, places: dict[str, tuple[str, int]]) -> str:
    """Put values in the place of psql's variables."""
    for name, (host, port) in places.items():
        statement = statement.replace(f":'{name}'", f"'{host}'").replace(f":{name}_port", str(port))
    return statement


def carry_out(conn: psycopg.Connection[Any], name: str) -> None:
    """Run the statements that a block of the guide makes, as psql does."""
    made = conn.execute(guides_block(name, "psql").replace("\\gexec", "").encode()).fetchall()
    for (statement,) in made:
        conn.execute(statement.encode())


def move(conn: psycopg.Connection[Any], tenants: list[str], number: int = 0) -> None:
    """Move a part of the tables that has rows of tenants to another worker; numbers take turns."""
    rows = conn.execute(
        "SELECT shardid, nodename, nodeport FROM pg_dist_shard_placement JOIN pg_dist_shard USING (shardid)"
        " WHERE logicalrelid = 'os_core.work_order_ledger'::regclass AND shardid IN ("
        "   SELECT get_shard_id_for_distribution_column('os_core.work_order_ledger', t)"
        "   FROM unnest(%s::text[]) AS t)"
        " ORDER BY 1",
        (tenants,),
    ).fetchall()
    shard, *source = rows[number % len(rows)]
    workers = conn.execute(
        "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid <> 0 AND shouldhaveshards"
    ).fetchall()
    (target, *_) = [each for each in workers if each != tuple(source)]
    carry_out(conn, "citus-unforce")
    conn.execute(
        "SELECT citus_move_shard_placement(%s, %s, %s, %s, %s, 'force_logical')", (shard, *source, *target)
    )
    carry_out(conn, "citus-force")
    conn.execute(guides_block("citus-clean", "sql").encode())


def rows_of(admin: psycopg.Connection[Any], tenant_id: str) -> dict[str, list[str]]:
    """Return the tenant's rows, by the tables that have some."""
    found = {}
    for table in METADATA.sorted_tables:
        query = f"SELECT row::text FROM {table.fullname} AS row WHERE tenant_id = %s ORDER BY 1"
        found[table.fullname] = [row for (row,) in admin.execute(query.encode(), (tenant_id,))]
    return {table: rows for table, rows in found.items() if rows}
