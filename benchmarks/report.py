"""What was measured, as a table and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.rounds import Timings


_PROCESSOR: Final = "  of it the processor's"


@dataclass(frozen=True, slots=True)
class Result:
    """Ours against a yardstick: the median of the rounds' ratios, the larger the better for ours.

    `processor` is the same of the seconds that client and server session have had of a processor.
    """

    benchmark: str
    ours: str
    against: str
    our_value: float
    their_value: float
    unit: str
    ratios: Sequence[float]
    goal: float | None = None
    processor: tuple[float, float, Sequence[float]] | None = None
    ratio: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", statistics.median(self.ratios))

    @property
    def verdict(self) -> str:
        """Say whether the goal was reached; nothing where there is none."""
        if self.goal is None:
            return ""
        return "ok" if self.ratio >= self.goal else "below"


def compare(
    benchmark: str, timings: Timings, ours: tuple[str, str], against: tuple[str, str], goal: float | None
) -> Result:
    """Compare two lanes, each given as its name and how the table calls it."""
    lane, label = ours
    other, other_label = against
    return Result(
        benchmark,
        label,
        other_label,
        timings.median(lane),
        timings.median(other),
        "s",
        timings.speed_ups(lane, other),
        goal,
        timings.compare_processor(lane, other),
    )


def table(results: Sequence[Result]) -> str:
    """Lay the results out in at most 100 columns."""
    rows = [("", "ours", "", "against", "", "goal", "ratio", "")]
    for result in results:
        rows.append(
            (
                result.benchmark,
                result.ours,
                _human(result.our_value, result.unit),
                result.against,
                _human(result.their_value, result.unit),
                "" if result.goal is None else f"{result.goal:.2f}",
                f"{result.ratio:.2f}",
                result.verdict,
            )
        )
        if result.processor is not None:
            ours, theirs, ratios = result.processor
            ratio = f"{statistics.median(ratios):.2f}"
            rows.append(("", _PROCESSOR, _human(ours, "s"), _PROCESSOR, _human(theirs, "s"), "", ratio, ""))
    widths = (9, 26, 9, 25, 9, 5, 5, 5)
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if place in (2, 4, 5, 6) else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(" ".join(cells).rstrip())
    return "\n".join(lines)


def document(server: str, results: Sequence[Result]) -> dict[str, Any]:
    """Compose what --json prints."""
    return {
        "server": server,
        "machine": machine(),
        "results": [{**asdict(result), "verdict": result.verdict} for result in results],
    }


def machine() -> str:
    """Describe where it ran."""
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


def _human(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1e6:,.1f} µs" if value < 1e-4 else f"{value * 1e6:,.0f} µs"
    if unit == "/s":
        return f"{value:,.0f}/s"
    return f"{value:,.1f} {unit}"
