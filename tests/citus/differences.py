"""What the acceptance tests find otherwise on a cluster."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Difference:
    """Tests that must fail on a cluster, and what is otherwise there."""

    what: str
    tests: tuple[str, ...]


DIFFERENCES: Final = ()
