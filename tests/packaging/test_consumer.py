"""The public surface, as a service's type checker sees it."""

import ast
import importlib
from pathlib import Path

import pytest

from tests.packaging.installed import Installed

PROGRAM = Path(__file__).parents[1] / "consumer" / "program.py"


def used_names(source: str) -> dict[str, set[str]]:
    """Return the names that a program takes from each module and reads afterwards."""
    tree = ast.parse(source)
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return {
        node.module: {alias.name for alias in node.names if (alias.asname or alias.name) in read}
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
    }


def test_used_names__an_import_alone_is_no_use() -> None:
    source = "from a import b, c, d as e\nprint(b, d)\ndef f(x: e) -> None: ..."
    assert used_names(source) == {"a": {"b", "d"}}


def test_consumer__uses_every_public_name() -> None:
    used = used_names(PROGRAM.read_text(encoding="utf-8"))["selene_core"]
    assert set(importlib.import_module("selene_core").__all__) == used


@pytest.mark.parametrize("mistake", [None, "append_events(1, 'acme', [])", "WorkOrder().no_such_column"])
def test_consumer__passes_mypy_strict(installed: Installed, tmp_path: Path, mistake: str | None) -> None:
    """With the installed wheel and its py.typed; and it would notice a wrong call."""
    program = tmp_path / "service.py"
    program.write_text(f"{PROGRAM.read_text(encoding='utf-8')}\n{mistake or ''}\n", encoding="utf-8")
    checked = installed.type_check(program)
    assert (checked.returncode == 0) == (mistake is None), checked.stdout
    assert "import-untyped" not in checked.stdout
    if mistake is not None:
        assert checked.stdout.count("error:") >= 1
