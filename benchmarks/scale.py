"""How much each benchmark does: enough to be believed, or as little as shows that it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Counts; `rounds` are those that count, after `warmup` rounds that do not."""

    warmup: int = 3
    rounds: int = 24
    rounds_of_many: int = 20
    connections: int = 8
    operations: int = 200
    operations_of_many: int = 50
    batch: int = 500
    imports: int = 3
    import_orders: int = 10_000
    grown_orders: int = 20_000
    growth_orders: int = 20_000
    rebuilds: int = 3
    rebuild_orders: int = 30_000
    few_orders: int = 3_000
    pending_orders: int = 100_000
    conversations: int = 1_000
    turns: int = 100_000
    writers: int = 16
    tasks: int = 64
    events_of_task: int = 10
    appends_of_order: int = 20
    growth_steps: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    growth_working: int = 50
    growth_operations: int = 100
    use_helpdesk: bool = True


FULL: Final = Scale()
LONG: Final = Scale(growth_orders=100_000)
TINY: Final = Scale(
    warmup=1,
    rounds=2,
    rounds_of_many=2,
    connections=2,
    operations=3,
    operations_of_many=3,
    batch=4,
    imports=1,
    import_orders=4,
    grown_orders=4,
    growth_orders=40,
    rebuilds=1,
    rebuild_orders=12,
    few_orders=4,
    pending_orders=40,
    conversations=2,
    turns=20,
    writers=2,
    tasks=4,
    events_of_task=2,
    appends_of_order=4,
    growth_steps=(200, 400, 600),
    growth_working=1,
    growth_operations=3,
    use_helpdesk=False,
)
