"""What the checker has found."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

# The columns of a run's result, and what a number other than 0 in one of them says.
KINDS = {
    "lost": "an acknowledged write is not there, or not as it was sent",
    "twice": "one write is there more than once",
    "ghost": "something is there that was refused, undone, or never sent",
    "torn": "a call or transaction is there in part",
    "order": "numbers, ids or times of an order do not grow as they must",
    "fold": "a row of the projection is not the fold of its events",
    "rule": "an event stands where the contract forbids it",
    "lease": "two hold one lease, or its table and its events disagree",
    "attempt": "attempts, their events and what their workers were told disagree",
    "replay": "the same call was given another answer",
    "read": "a reader saw what was not, or went back in time",
    "turn": "the conversation is not what was said",
    "feed": "a consumer missed an event, had one twice or out of its order",
    "chain": "a hash is not that of its event and the one before",
    "error": "an error that nobody may meet",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that must not be."""

    kind: str
    tenant: str
    subject: str
    what: str
    calls: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.kind}: {self.tenant} {self.subject}: {self.what}"


def moment(value: Any) -> Any:
    """Leave a time as it can be compared with a history's: text, UTC, six digits."""
    return value.astimezone(UTC).isoformat(timespec="microseconds") if isinstance(value, datetime) else value
