"""Connections without selene_core in between: what the database does whoever writes."""

from typing import Any

import psycopg
from sqlalchemy.engine import URL

from tests.support.pooler import driver_options

Connection = psycopg.Connection[tuple[Any, ...]]


def connect(url: URL, *, autocommit: bool = False) -> Connection:
    """Connect with psycopg alone."""
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(dsn, autocommit=autocommit, **driver_options(url))
