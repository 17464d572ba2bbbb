"""Conversations: what the last tenth of a large ledger costs, beside the first tenth of a fresh one."""

from __future__ import annotations

import statistics
import time
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final
from uuid import UUID

from benchmarks.report import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.databases import Connection, Databases
    from benchmarks.scale import Scale

TENANT: Final = "bench"
USER: Final = "bench-user"
_APPEND: Final = """
    SELECT * FROM conversation.append_turn(
      %s, %s, %s, 'bench-user', 'USER', 'TYPED_TEXT', %s, 'PUBLIC_CHAT', 'bench-session', 'bench-phone', %s)
"""
_READ: Final = "SELECT * FROM conversation.read_turns(%s, %s, %s, %s)"
_TEXT: Final = "Could you move my appointment with the dentist to Thursday, some time after four? "
_GROUP: Final = 50  # calls on one side, before it is the other's turn


def turns(databases: Databases, scale: Scale) -> list[Result]:
    """Append a turn to each of many conversations, read it, and a page from anywhere, round by round.

    One session lives through the growth of its ledger from nothing. Its last tenth is timed, group by group
    in turns with the first tenth of a session on a fresh database: what disturbs one disturbs the other.
    A page is as long on either side, half of the shorter conversation.
    """
    threads = [UUID(int=1 + number) for number in range(scale.conversations)]
    rounds = scale.turns // scale.conversations
    tenth = max(1, rounds // 10)
    appended: list[tuple[float, float]] = []
    read: list[tuple[float, float]] = []
    paged: list[tuple[float, float]] = []
    with databases.new() as grown, databases.new() as fresh, grown.app() as last, fresh.app() as first:
        for conn in (last, first):
            _furnish(conn)
        for turn_id in range(1, rounds - tenth + 1):
            with last.transaction():
                _append(last, threads, turn_id)
        for turn_id in range(1, tenth + 1):
            for start in range(0, len(threads), _GROUP):
                group = threads[start : start + _GROUP]
                sides = ((last, rounds - tenth + turn_id), (first, turn_id))
                appended.append(_in_turns(_append, group, sides, swapped=len(appended) % 2 == 1))
                read.append(_in_turns(_read, group, sides, swapped=len(read) % 2 == 1))
                page = partial(_read_page, Random(start), (turn_id + 1) // 2)
                paged.append(_in_turns(page, group, sides, swapped=len(paged) % 2 == 1))
    label = f"last of {rounds * len(threads):,}"
    timed = {"append": appended, "read": read, "page": paged}
    return [_result(f"{what}, {label}", seconds) for what, seconds in timed.items()]


def _furnish(app: Connection) -> None:
    app.execute("SELECT os_core.register_identity(%s, %s)", (TENANT, USER))
    app.execute("SELECT os_core.register_device(%s, %s, 'bench-phone', 'mobile')", (TENANT, USER))
    app.execute("SELECT os_core.open_session(%s, 'bench-session', %s, 'bench-phone')", (TENANT, USER))


def _append(app: Connection, threads: Sequence[UUID], turn_id: int) -> None:
    for thread in threads:
        arguments = (TENANT, thread, turn_id, f"{_TEXT}{turn_id}", f"turn-{turn_id}")
        app.execute(_APPEND, arguments, prepare=True)


def _read(app: Connection, threads: Sequence[UUID], turn_id: int) -> None:
    for thread in threads:
        _fetch(app, thread, turn_id - 1, 10, expected=1)


def _read_page(luck: Random, length: int, app: Connection, threads: Sequence[UUID], turn_id: int) -> None:
    for thread in threads:
        _fetch(app, thread, luck.randint(0, turn_id - length), length, expected=length)


def _fetch(app: Connection, thread: UUID, after: int, limit: int, *, expected: int) -> None:
    if len(app.execute(_READ, (TENANT, thread, after, limit), prepare=True).fetchall()) != expected:
        raise LookupError(thread)


def _in_turns(
    work: Callable[[Connection, Sequence[UUID], int], None],
    threads: Sequence[UUID],
    sides: Sequence[tuple[Connection, int]],
    *,
    swapped: bool,
) -> tuple[float, float]:
    """Return the seconds a call took on either side."""
    seconds = [0.0, 0.0]
    for side in (1, 0) if swapped else (0, 1):
        conn, turn_id = sides[side]
        start = time.perf_counter()
        work(conn, threads, turn_id)
        seconds[side] = (time.perf_counter() - start) / len(threads)
    return seconds[0], seconds[1]


def _result(label: str, seconds: Sequence[tuple[float, float]]) -> Result:
    last, first = (statistics.median(side) for side in zip(*seconds, strict=True))
    ratios = [theirs / ours for ours, theirs in seconds]
    return Result("turns", label, "first tenth, fresh", last, first, "s", ratios, 0.8)
