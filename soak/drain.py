"""Bring every consumer to the end of its feed, so that the checker can say what was missed."""

import time
from contextlib import suppress
from typing import Any

import psycopg

from soak.checker.tables import exists
from soak.clients.roles import CONSUMERS
from soak.clients.session import STATEMENTS

PATIENCE_SECONDS, PAGE = 30, 1000


def drain(conn: psycopg.Connection[Any], tenants: tuple[str, ...]) -> None:
    """Give all positions and take all events. If it cannot, the checker will find what is missing."""
    if exists(conn, "os_core.work_order_feed"):
        with suppress(psycopg.Error):
            _drain(conn, tenants)


def _drain(conn: psycopg.Connection[Any], tenants: tuple[str, ...]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    for tenant in tenants:
        while conn.execute(STATEMENTS["advance"].encode(), {"tenant": tenant, "limit": PAGE}).fetchone() != (
            0,
        ):
            if time.monotonic() > deadline:
                return
        for consumer in CONSUMERS:
            given = {"tenant": tenant, "consumer": consumer, "limit": PAGE}
            while conn.execute(STATEMENTS["consume"].encode(), given).rowcount:
                if time.monotonic() > deadline:
                    return
