"""The pages show the code of examples/ as it is."""

import runpy
from pathlib import Path

import pytest

from tests.unit.test_references import ROOT

PROGRAM = runpy.run_path(str(ROOT / "docs" / "_ext" / "example_code.py"))
PAGES = [path for path in (ROOT / "docs").rglob("*.md") if "```python examples/" in path.read_text("utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_example_code__is_shown_as_it_is(page: Path) -> None:
    written = page.read_text(encoding="utf-8")
    assert written == PROGRAM["with_code"](written), "run python docs/_ext/example_code.py"


@pytest.mark.parametrize(
    ("page", "file"), [("fastapi", "app"), ("fastapi", "trips"), ("tutorial", "trips"), ("workers", "worker")]
)
def test_example_code__is_shown_whole_and_in_order(page: str, file: str) -> None:
    (text,) = [path.read_text(encoding="utf-8") for path in PAGES if path.stem == page]
    name = f"examples/service/{file}.py"
    shown = [block["section"] for block in PROGRAM["BLOCK"].finditer(text) if block["file"] == name]
    assert [each for each in PROGRAM["sections"](name) if (page, each) != ("fastapi", "imports")] == shown
