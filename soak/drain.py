"""Bring every consumer to the end of its feed, so that the checker can say what was missed."""

import time
from typing import Any

import psycopg

from soak.checker.tables import exists
from soak.clients.roles import CONSUMERS
from soak.clients.session import STATEMENTS

PATIENCE_SECONDS, PAGE = 30, 1000


def drain(conn: psycopg.Connection[Any], tenants: tuple[str, ...]) -> None:
    """Give all positions and take all events; after a while it stops, and the checker will say so."""
    if not exists(conn, "os_core.work_order_feed"):
        return
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
