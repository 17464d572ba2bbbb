"""docs/errors.md is what the error classes say."""

import runpy
from pathlib import Path

from selene_core import SeleneError
from selene_core.contract.errors import BY_SQLSTATE

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_error_page__is_current() -> None:
    program = runpy.run_path(str(DOCS / "_ext" / "error_page.py"))
    written = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert written == program["page"](), "run python docs/_ext/error_page.py"


def test_error_page__has_every_error_once() -> None:
    written = (DOCS / "errors.md").read_text(encoding="utf-8")
    errors: list[type[SeleneError]] = [*BY_SQLSTATE.values()]
    assert [written.count(f"\n## {error.__name__}\n") for error in errors] == [1] * len(errors)
