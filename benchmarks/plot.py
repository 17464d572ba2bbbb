"""Draw lines over a logarithmic axis as SVG."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 120, 30, 45
_COLOURS: Final = ("#1b6ca8", "#b3541e", "#3a7d44", "#7b4b94", "#8a6d00", "#444444")


def lines(title: str, unit: str, xs: Sequence[float], ys: Mapping[str, Sequence[float]]) -> str:
    """Draw one line for each name, its values above the same places."""
    low, high = math.log10(xs[0]), math.log10(xs[-1])
    top = max(max(values) for values in ys.values()) * 1.1

    def x(value: float) -> float:
        share = (math.log10(value) - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_WIDTH / 2, 18, title, "middle"), _text(_LEFT - 60, _TOP - 5, unit)]
    for tick in range(5):
        value = top * tick / 4
        parts.append(_line(_LEFT, y(value), _WIDTH - _RIGHT, y(value), "#dddddd"))
        written = f"{value:,.0f}" if top > 10 else f"{value:.2f}"
        parts.append(_text(_LEFT - 8, y(value) + 4, written, "end"))
    parts += [_text(x(value), _HEIGHT - _BOTTOM + 18, f"{value:,.0f}", "middle") for value in xs]
    for (name, values), colour in zip(ys.items(), _COLOURS, strict=False):
        points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in zip(xs, values, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(_WIDTH - _RIGHT + 8, y(values[-1]) + 4, name, colour=colour))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "events in the ledger", "middle"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
        ' font-size="12">\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#222222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
