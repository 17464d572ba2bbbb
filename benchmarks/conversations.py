"""Conversations: one session that appends and reads while the ledger grows from nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from uuid import UUID

from benchmarks.report import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.databases import Connection, Databases
    from benchmarks.scale import Scale

TENANT: Final = "bench"
USER: Final = "bench-user"
_APPEND: Final = """
    SELECT * FROM conversation.append_turn(
      %s, %s, %s, 'bench-user', 'USER', 'TYPED_TEXT', %s, 'PUBLIC_CHAT', 'bench-session', 'bench-phone', %s)
"""
_ONE_IN: Final = 10
_READ: Final = "SELECT * FROM conversation.read_turns(%s, %s, %s, 10)"
_TEXT: Final = "Could you move my appointment with the dentist to Thursday, some time after four? "


def turns(databases: Databases, scale: Scale) -> list[Result]:
    """Append a turn to each of many conversations in rounds, and read the newest turn of one in ten."""
    count = scale.conversations
    rounds = max(10, scale.turns // count)
    appended: list[float] = []
    read: list[float] = []
    with databases.new() as database, database.app() as app:
        _furnish(app)
        for turn_id in range(1, rounds + 1):
            threads = [UUID(int=1 + number) for number in range(count)]
            start = time.perf_counter()
            for thread in threads:
                arguments = (TENANT, thread, turn_id, f"{_TEXT}{turn_id}", f"turn-{turn_id}")
                app.execute(_APPEND, arguments, prepare=True)
            appended.append((time.perf_counter() - start) / count)
            start = time.perf_counter()
            some = threads[turn_id % _ONE_IN :: _ONE_IN] or threads
            for thread in some:
                app.execute(_READ, (TENANT, thread, turn_id - 1), prepare=True).fetchall()
            read.append((time.perf_counter() - start) / len(some))
    label = f"to {rounds * count:,} turns"
    return [_tenths(f"append, {label}", appended), _tenths(f"read, {label}", read)]


def _furnish(app: Connection) -> None:
    app.execute("SELECT os_core.register_identity(%s, %s)", (TENANT, USER))
    app.execute("SELECT os_core.register_device(%s, %s, 'bench-phone', 'mobile')", (TENANT, USER))
    app.execute("SELECT os_core.open_session(%s, 'bench-session', %s, 'bench-phone')", (TENANT, USER))


def _tenths(label: str, seconds: Sequence[float]) -> Result:
    """Compare the last tenth with the first: the last 10,000 turns of 100,000 with the first 10,000."""
    tenth = len(seconds) // 10
    first, last = sum(seconds[:tenth]) / tenth, sum(seconds[-tenth:]) / tenth
    return Result("turns", label, "its first tenth", last, first, "s", [first / last], 0.8)
