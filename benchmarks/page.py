"""Write results into the performance page: a table between two marks, a picture beside it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from benchmarks.report import machine

DOCS = Path(__file__).parents[1] / "docs"


def where() -> str:
    """Say on which machine, and at which commit, something was measured."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 - whichever git there is
        capture_output=True,
        text=True,
        check=False,
        cwd=DOCS,
    )
    return f"{machine()}; commit {told.stdout.strip() or 'unknown'}"


def put(text: str, name: str, content: str) -> str:
    """Return a page with other content between the marks of this name; raises LookupError without them."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not found.search(text):
        raise LookupError(f"the page has no marks for {name}")
    return found.sub(lambda _: f"{begin}\n\n{content}\n\n{end}", text)


def write(name: str, content: str, picture: str | None = None) -> None:
    """Write a table, and the picture docs/<name>.svg, into the page."""
    page = DOCS / "performance.md"
    if picture is not None:
        (DOCS / f"{name}.svg").write_text(picture, encoding="utf-8")
        content = f"{content}\n\n![{name}]({name}.svg)"
    page.write_text(put(page.read_text(encoding="utf-8"), name, content), encoding="utf-8")
