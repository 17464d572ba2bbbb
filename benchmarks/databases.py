"""Databases to measure in: clones of one migrated template, with a login for the application's role."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier, Literal

from selene_core.migrations import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Engine

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Database:
    """One database, and the two who come in; can be sent to another process."""

    admin_url: URL
    app_url: URL

    def admin(self) -> Connection:
        """Connect as the superuser, in autocommit."""
        return _connect(self.admin_url)

    def app(self) -> Connection:
        """Connect as the application, in autocommit."""
        return _connect(self.app_url)

    @contextmanager
    def app_engine(self) -> Iterator[Engine]:
        """Make the application's engine."""
        engine = sa.create_engine(self.app_url)
        try:
            yield engine
        finally:
            engine.dispose()


@dataclass(frozen=True, slots=True)
class Databases:
    """Where databases come from."""

    admin_url: URL
    login: str
    password: str
    template: str

    @contextmanager
    def new(self) -> Iterator[Database]:
        """Make a freshly migrated database, and drop it at the end."""
        with _new_database(self.admin_url, self.template) as admin_url:
            yield Database(admin_url, admin_url.set(username=self.login, password=self.password))


@contextmanager
def databases(admin_url: URL) -> Iterator[Databases]:
    """Migrate a template on the superuser's server and make the login; both go at the end."""
    login = f"selene_bench_{secrets.token_hex(4)}"
    password = secrets.token_urlsafe()
    with _new_database(admin_url, "template1") as template_url:
        upgrade(template_url)
        with _connect(admin_url) as conn:
            conn.execute(
                SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE selene_app").format(
                    Identifier(login), Literal(password)
                )
            )
        try:
            yield Databases(admin_url, login, password, template_url.database or "")
        finally:
            with _connect(admin_url) as conn:
                conn.execute(SQL("DROP ROLE {}").format(Identifier(login)))


@contextmanager
def _new_database(admin_url: URL, template: str) -> Iterator[URL]:
    name = f"selene_bench_{secrets.token_hex(4)}"
    with _connect(admin_url) as conn:
        conn.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template)))
    try:
        yield admin_url.set(database=name)
    finally:
        with _connect(admin_url) as conn:
            conn.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def session_of(engine: Engine) -> int:
    """Return the process id of the session that an engine's pool has, or makes, and uses next."""
    with engine.connect() as conn:
        driver: Any = conn.connection.driver_connection
        pid: int = driver.info.backend_pid
    return pid


def _connect(url: URL) -> Connection:
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(dsn, autocommit=True)
