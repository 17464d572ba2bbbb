"""The benchmarks by name, in the order in which they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import (
    appends,
    batches,
    conversations,
    feed,
    imports,
    leases,
    pending,
    reads,
    replay,
    writers,
    writes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.databases import Databases
    from benchmarks.report import Result
    from benchmarks.scale import Scale

SUITE: Final[Mapping[str, Callable[[Databases, Scale], list[Result]]]] = {
    "append-1": appends.append_1,
    "append-8": appends.append_8,
    "personal": appends.personal,
    "scope-1": appends.scope_1,
    "scope-8": appends.scope_8,
    "lease": leases.lease,
    "naive-1": appends.naive_1,
    "naive-8": appends.naive_8,
    "batch-new": batches.batch_new,
    "batch-old": batches.batch_old,
    "import": imports.first_import,
    "session": imports.growth,
    "rebuild": replay.rebuild,
    "get": reads.get,
    "pending": pending.bulk,
    "turns": conversations.turns,
    "feed-page": feed.feed_page,
    "tail": feed.tail,
    "hot-16": writers.hot_16,
    "tasks-64": writers.tasks_64,
    "hot": writes.hot_updates,
    "wal": writes.wal_bytes,
}
