"""The feed: positions without gaps, every event once, and consumers that missed nothing."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from soak.checker.finding import Finding
from soak.checker.tables import exists

CONSUMED = "public.soak_consumed"
# Without any key: what comes twice is to be seen.
MAKE_CONSUMED = (
    f"CREATE TABLE {CONSUMED}"
    " (tenant_id text, consumer text, feed_position bigint, work_order_event_id bigint);"
    f" GRANT INSERT ON {CONSUMED} TO PUBLIC"
)


def check_feed(conn: psycopg.Connection[Any], tenants: Sequence[str]) -> Iterator[Finding]:
    """Look at the feeds of tenants; every consumer is to be at its end."""
    if not exists(conn, "os_core.work_order_feed"):
        return
    ledger: defaultdict[str, dict[int, tuple[str, int]]] = defaultdict(dict)
    for tenant, event_id, order, seq in conn.execute(
        "SELECT tenant_id, work_order_event_id, work_order_id, work_order_seq FROM os_core.work_order_ledger"
        " WHERE tenant_id = ANY(%s)",
        [[*tenants]],
    ):
        ledger[tenant][event_id] = order, seq
    feed: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for tenant, position, event_id in conn.execute(
        "SELECT tenant_id, feed_position, work_order_event_id FROM os_core.work_order_feed"
        " WHERE tenant_id = ANY(%s) ORDER BY 1, 2",
        [[*tenants]],
    ):
        feed[tenant].append((position, event_id))
    for tenant in ledger.keys() | feed.keys():
        for what in _feed(ledger[tenant], feed[tenant]):
            yield Finding("feed", tenant, "its feed", what)
    for tenant, consumer, place in conn.execute(
        "SELECT tenant_id, consumer, feed_position FROM os_core.work_order_feed_consumers"
        " WHERE tenant_id = ANY(%s)",
        [[*tenants]],
    ).fetchall():
        taken = conn.execute(
            f"SELECT feed_position, work_order_event_id FROM {CONSUMED}"
            " WHERE tenant_id = %s AND consumer = %s ORDER BY feed_position".encode(),
            [tenant, consumer],
        ).fetchall()
        for what in _consumer(feed[tenant], place, taken):
            yield Finding("feed", tenant, f"consumer {consumer}", what)


def _feed(ledger: dict[int, tuple[str, int]], feed: list[tuple[int, int]]) -> Iterator[str]:
    if [position for position, _ in feed] != [*range(1, len(feed) + 1)]:
        yield "its positions are not 1, 2, 3, …"
    for event_id, times in Counter(event_id for _, event_id in feed).items():
        if times > 1:
            yield f"event {event_id} has {times} positions"
        if event_id not in ledger:
            yield f"event {event_id} is in the feed and not in the ledger"
    if missed := ledger.keys() - {event_id for _, event_id in feed}:
        yield f"events {sorted(missed)[:5]} were never given positions ({len(missed)} in all)"
    last: dict[str, int] = {}
    for position, event_id in feed:
        order, seq = ledger.get(event_id, ("", 0))
        if order and seq != last.get(order, 0) + 1:
            yield f"position {position} is seq {seq} of {order}, after seq {last.get(order, 0)}"
        last[order] = seq


def _consumer(feed: list[tuple[int, int]], place: int, taken: list[tuple[int, int]]) -> Iterator[str]:
    if place != len(feed):
        yield f"its place is {place}, and the feed's end is {len(feed)}"
    if taken != feed[:place]:
        missed, more = Counter(feed[:place]) - Counter(taken), Counter(taken) - Counter(feed[:place])
        yield f"it missed {[*missed][:5]} and had {[*more][:5]} too often, as (position, event)"
