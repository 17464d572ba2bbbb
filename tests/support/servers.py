"""Open what the tests run on: SELENE_TEST_DATABASE_URL, else a container, else an embedded server.

With SELENE_TEST_POOLER=pgbouncer the application's logins come in through PgBouncer: tests.support.pooler.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psycopg
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier
from sqlalchemy.engine import URL, Engine, make_url

from selene_core.local import LocalServer, LocalServerUnavailable, local_server
from selene_core.local.binaries import find_binaries
from tests.support.containers import NoContainer, start_container
from tests.support.pooler import BYPASS, POOLED_ROLES, NoPooler, Pooler, driver_options, pgbouncer

CONTAINER_VERSION = 18
MEMORY_BYTES = 4 << 30
PASSWORD = "selene-test"
SETTINGS = {
    "max_connections": "100",
    "max_prepared_transactions": "20",
    "wal_level": "logical",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",  # a killed server must lose no commit, only a killed machine may
    "statement_timeout": "120s",  # a race that went wrong ends as a failure, not as a session that hangs
}

# The login role for each of our group roles, selene_<role>.
LOGIN_ROLES = {
    "app": "selene_test_app",
    "readonly": "selene_test_readonly",
    "owner": "selene_test_owner_login",
}
Role = Literal["admin", "app", "readonly", "owner"]


class NoServer(Exception):
    """There is no PostgreSQL to run the tests on; the message has every reason."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server of the tests' own, on which they may do anything as the superuser."""

    kind: Literal["given", "container", "embedded"]
    address: URL
    version: int
    release: str
    binaries: Path | None = None
    local: LocalServer | None = None
    passed_over: tuple[str, ...] = ()
    pooler: Pooler | None = None

    def admin_url(self, database: str = "postgres") -> URL:
        """Address a database as the superuser."""
        return self.address.set(database=database)

    def url_for(self, user: str, database: str) -> URL:
        """Address a database as one of the test's login roles, past a pooler."""
        return self.address.set(username=user, password=PASSWORD, database=database)

    def admin(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Connect as the superuser, in autocommit."""
        return _connect(self.admin_url(database))

    def describe(self) -> list[str]:
        """Say what the tests run on, and why on nothing else."""
        programs = self.binaries or "none"
        pooled = [self.pooler.describe()] if self.pooler else []
        return [f"PostgreSQL {self.release}, {self.kind}, programs: {programs}", *pooled, *self.passed_over]

    @contextmanager
    def new_database(self, purpose: str, template: str = "template1") -> Iterator["Database"]:
        """Make a database, and drop it at the end whoever is still in it."""
        name = f"selene_{purpose}_{os.getpid()}_{secrets.token_hex(4)}"
        with self.admin() as conn:
            conn.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template)))
        try:
            with closing(Database(self, name)) as database:
                yield database
        finally:
            with self.admin() as conn:
                conn.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))

    def make_login_roles(self) -> None:
        """Make the login roles of the tests, once the migrations have made the group roles."""
        with self.admin() as conn:
            for role, login in LOGIN_ROLES.items():
                group = f"selene_{role}"
                acts_as = f"ALTER ROLE {login} SET role = '{group}';" if role == "owner" else ""
                # One block: with others at it on a given server, a role is made with its setting or found.
                conn.execute(
                    f"DO $$ BEGIN CREATE ROLE {login} LOGIN PASSWORD '{PASSWORD}' IN ROLE {group}; {acts_as}"
                    " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$".encode()
                )


@dataclass(frozen=True, slots=True)
class Database:
    """One test's database, and the engines on it."""

    server: Server
    name: str
    _engines: list[Engine] = field(default_factory=list)

    def url(self, role: Role) -> URL:
        """Address this database as a role."""
        if role == "admin":
            return self.server.admin_url(self.name)
        if self.server.pooler is not None and role in POOLED_ROLES and BYPASS.reason is None:
            return self.server.pooler.url_for(LOGIN_ROLES[role], PASSWORD, self.name)
        return self.server.url_for(LOGIN_ROLES[role], self.name)

    @property
    def admin_url(self) -> URL:
        """The superuser's."""
        return self.url("admin")

    @property
    def app_url(self) -> URL:
        """That of a member of selene_app."""
        return self.url("app")

    @property
    def readonly_url(self) -> URL:
        """That of a member of selene_readonly."""
        return self.url("readonly")

    @property
    def owner_url(self) -> URL:
        """That of a login which acts as selene_owner."""
        return self.url("owner")

    def engine(self, role: Role = "app", **options: Any) -> Engine:
        """Make an engine that is disposed of at the test's end; options are those of create_engine."""
        url = self.url(role)
        connect_args = {**driver_options(url), **options.pop("connect_args", {})}
        engine = sa.create_engine(url, connect_args=connect_args, **options)
        self._engines.append(engine)
        return engine

    def close(self) -> None:
        """Dispose of the engines."""
        for engine in self._engines:
            engine.dispose()


def open_server(stack: ExitStack) -> Server:
    """Open the first server that is to be had, and a pooler if one is asked for. Raises NoServer."""
    server = _first_server(stack)
    match os.environ.get("SELENE_TEST_POOLER", ""):
        case "":
            return server
        case "pgbouncer":
            users = {LOGIN_ROLES[role]: PASSWORD for role in POOLED_ROLES}
            try:
                return replace(server, pooler=stack.enter_context(pgbouncer(server.address, users)))
            except NoPooler as exc:
                raise NoServer(f"SELENE_TEST_POOLER: {exc}") from exc
        case other:
            raise NoServer(f"SELENE_TEST_POOLER is {other!r}: pgbouncer is the only one that is known")


def _first_server(stack: ExitStack) -> Server:
    version = int(os.environ["SELENE_TEST_PG"]) if os.environ.get("SELENE_TEST_PG") else None
    if given := os.environ.get("SELENE_TEST_DATABASE_URL"):
        return _given_server(make_url(given).set(drivername="postgresql+psycopg"), version)
    passed_over = ["no given server: SELENE_TEST_DATABASE_URL is not set"]
    try:
        address = start_container(stack, version or CONTAINER_VERSION, PASSWORD, SETTINGS)
    except NoContainer as exc:
        passed_over.append(f"no container: {exc}")
    else:
        found = _version(address)
        return Server("container", address, *found, _programs(found[0]), passed_over=tuple(passed_over))
    try:
        return embedded_server(stack, version, passed_over)
    except LocalServerUnavailable as exc:
        raise NoServer("; ".join([*passed_over, f"no embedded server: {exc}"])) from exc


def embedded_server(stack: ExitStack, version: int | None, passed_over: list[str] | None = None) -> Server:
    """Start an embedded server with the tests' settings. Raises LocalServerUnavailable."""
    with _files_in_memory():
        local = stack.enter_context(local_server(version=version, settings=SETTINGS))
    address = make_url(local.admin_url)
    return Server("embedded", address, *_version(address), local.binaries, local, tuple(passed_over or ()))


@contextmanager
def _files_in_memory() -> Iterator[None]:
    """Put what is made in here into memory, where there is enough: half of a test's time is copying files."""
    memory, usual = Path("/dev/shm"), tempfile.tempdir
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= MEMORY_BYTES:
        tempfile.tempdir = str(memory)
    try:
        yield
    finally:
        tempfile.tempdir = usual


def _given_server(address: URL, wanted: int | None) -> Server:
    try:
        with _connect(address) as conn:
            superuser = conn.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
        version, release = _version(address)
    except psycopg.OperationalError as exc:
        raise NoServer(f"SELENE_TEST_DATABASE_URL: {exc}") from exc
    if superuser != (True,):
        raise NoServer(f"SELENE_TEST_DATABASE_URL: {address.username} is not a superuser")
    if wanted not in (None, version):
        raise NoServer(f"SELENE_TEST_DATABASE_URL is PostgreSQL {version}, SELENE_TEST_PG asks for {wanted}")
    return Server("given", address, version, release, _programs(version))


def _programs(version: int) -> Path | None:
    """Find psql and pg_dump for a server that runs elsewhere."""
    try:
        return find_binaries(version).folder
    except LocalServerUnavailable:
        return None


def _version(address: URL) -> tuple[int, str]:
    with _connect(address) as conn:
        return conn.info.server_version // 10000, conn.info.parameter_status("server_version") or ""


def _connect(address: URL) -> psycopg.Connection[Any]:
    dsn = address.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(dsn, autocommit=True)
