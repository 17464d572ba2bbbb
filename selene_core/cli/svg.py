"""What pictures are drawn with: SVG as text, the same on every run, legible on light and dark pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape, quoteattr

CHARACTER: Final = 0.602
"""The width of a character of a monospaced font, in parts of its size."""

# A picture has a ground of its own, so that the page's does not matter; a viewer that prefers dark gets dark.
_LIGHT: Final = {
    "ground": "fill:#ffffff;stroke:#d0d7de",
    "box": "fill:#f6f8fa;stroke:#8c959f",
    "head": "fill:#dbe4ee",
    "rule": "stroke:#d0d7de;fill:none",
    "edge": "stroke:#57606a;fill:none;stroke-width:1.4",
    "tip": "fill:#57606a",
    "text": "fill:#1f2328",
    "faint": "fill:#57606a",
    "strong": "fill:#1f2328;font-weight:bold",
    "key": "fill:#0a5bb5;font-weight:bold",
    "link": "fill:#8250df;font-weight:bold",
    "badge": "fill:#fff1d6;stroke:#bf8700",
    "asking": "fill:#fff1d6;stroke:#bf8700",
    "working": "fill:#ddf0ff;stroke:#0a69da",
    "good": "fill:#dcf7e3;stroke:#1a7f37",
    "bad": "fill:#ffe3e0;stroke:#cf222e",
}
_DARK: Final = {
    "ground": "fill:#0d1117;stroke:#30363d",
    "box": "fill:#161b22;stroke:#6e7681",
    "head": "fill:#263140",
    "rule": "stroke:#30363d;fill:none",
    "edge": "stroke:#9198a1;fill:none;stroke-width:1.4",
    "tip": "fill:#9198a1",
    "text": "fill:#e6edf3",
    "faint": "fill:#9da7b3",
    "strong": "fill:#e6edf3;font-weight:bold",
    "key": "fill:#79b8ff;font-weight:bold",
    "link": "fill:#d2a8ff;font-weight:bold",
    "badge": "fill:#3d2e00;stroke:#d29922",
    "asking": "fill:#3d2e00;stroke:#d29922",
    "working": "fill:#0c2d4d;stroke:#58a6ff",
    "good": "fill:#0f3a1d;stroke:#3fb950",
    "bad": "fill:#4b1113;stroke:#f85149",
}


def text_width(text: str, size: float = 12) -> float:
    """Estimate how wide a text is."""
    return len(text) * size * CHARACTER


@dataclass
class Picture:
    """Shapes in the order in which they are painted."""

    title: str
    description: str
    _shapes: list[str] = field(default_factory=list)

    def rect(self, style: str, x: float, y: float, width: float, height: float, radius: float = 0) -> None:
        """Paint a rectangle."""
        rounded = f' rx="{_n(radius)}"' if radius else ""
        self._shapes.append(
            f'<rect class="{style}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"'
            f"{rounded}/>"
        )

    def circle(self, style: str, x: float, y: float, radius: float) -> None:
        """Paint a disc."""
        self._shapes.append(f'<circle class="{style}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"/>')

    def path(self, style: str, points: list[tuple[float, float]]) -> None:
        """Draw a line through points."""
        drawn = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self._shapes.append(f'<path class="{style}" d="{drawn}"/>')

    def tip(self, x: float, y: float) -> None:
        """End a line that comes from the right with an arrow's tip at a point."""
        self._shapes.append(f'<path class="tip" d="M{_n(x)} {_n(y)}l9 -4.5v9z"/>')

    def text(
        self, style: str, x: float, y: float, text: str, *, size: float = 12, anchor: str = "start"
    ) -> None:
        """Write a line of text; y is its base line."""
        where = f' text-anchor="{anchor}"' if anchor != "start" else ""
        clean = "".join(each if each.isprintable() else "�" for each in text)
        self._shapes.append(
            f'<text class="{style}" x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}"{where}>'
            f"{escape(clean)}</text>"
        )

    def badge(self, style: str, x: float, y: float, text: str, *, size: float = 10) -> float:
        """Write a word in a frame whose upper left corner is given; return how wide it is."""
        width = text_width(text, size) + 12
        self.rect(style, x, y, width, size + 6, (size + 6) / 2)
        self.text("text", x + width / 2, y + size + 1, text, size=size, anchor="middle")
        return width

    def render(self, width: float, height: float) -> str:
        """Return the document."""
        styles = [f".{name}{{{value}}}" for name, value in _LIGHT.items()]
        dark = "".join(f".{name}{{{value}}}" for name, value in _DARK.items())
        ground = (
            f'<rect class="ground" x="0.5" y="0.5" width="{_n(width - 1)}" height="{_n(height - 1)}" rx="8"/>'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{_n(width)}" height="{_n(height)}"'
                f' viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label={quoteattr(self.title)}>',
                f"<title>{escape(self.title)}</title>",
                f"<desc>{escape(self.description)}</desc>",
                "<style>",
                "text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}",
                *styles,
                f"@media (prefers-color-scheme:dark){{{dark}}}",
                "</style>",
                ground,
                *self._shapes,
                "</svg>",
                "",
            ]
        )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
