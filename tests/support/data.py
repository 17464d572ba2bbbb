"""Input files: synthetic ones, and the help-desk log where it lies beside the checkout."""

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.factories import wire

HELPDESK = Path(__file__).resolve().parents[2] / "shared" / "data" / "helpdesk.events.jsonl.gz"
HELPDESK_EVENTS = 30_508


def synthetic_events(
    orders: int, *, tenants: tuple[str, ...] = ("tenant_a", "tenant_b", "tenant_c")
) -> list[dict[str, Any]]:
    """Make a few events for each of some work orders, in sequence within an order, the orders mixed."""
    rng = random.Random(orders)
    queues = []
    for number in range(orders):
        order = f"wo_{number:05}"
        types = ["WORK_ORDER_CREATED", "FIELD_SET", "STEP_STARTED", "STEP_FINISHED", "STATUS_CHANGED"]
        queues.append(
            [
                {
                    "tenant_id": tenants[number % len(tenants)],
                    **wire(event_type, order, turn_id=turn, idempotency_key=f"{order}:{turn}"),
                }
                for turn, event_type in enumerate(types, start=1)
            ]
        )
    events = []
    while queues:
        queue = rng.choice(queues)
        events.append(queue.pop(0))
        if not queue:
            queues.remove(queue)
    return events


def write_lines(path: Path, lines: Iterable[object]) -> Path:
    """Write values as JSON lines, and bytes as they are, compressed if the name says so."""
    data = b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
