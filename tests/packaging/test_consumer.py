"""The public surface, as a service's type checker sees it."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import selene_core
from selene_core.store.repository import Repository
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


def used_methods(source: str) -> dict[str, set[str]]:
    """Return what a program's functions call on instances that they make themselves, by class."""
    used: dict[str, set[str]] = defaultdict(set)
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        made: dict[str, str] = {}
        for node in ast.walk(function):
            match node:
                case ast.Assign([ast.Name(variable)], ast.Call(ast.Name(cls))):
                    made[variable] = cls
        for node in ast.walk(function):
            match node:
                case ast.Call(ast.Attribute(ast.Name(variable), method)) if variable in made:
                    used[made[variable]].add(method)
                case ast.Call(ast.Attribute(ast.Call(ast.Name(cls)), method)):
                    used[cls].add(method)
    return used


def test_used_names__an_import_alone_is_no_use() -> None:
    source = "from a import b, c, d as e\nprint(b, d)\ndef f(x: e) -> None: ..."
    assert used_names(source) == {"a": {"b", "d"}}


def test_used_methods__are_of_their_class() -> None:
    source = """
def f():
    a = A(1)
    a.b().c(d.e())
    A(2).g()
    a.h
async def i(a):
    a.j()
    B().k()
"""
    assert used_methods(source) == {"A": {"b", "g"}, "B": {"k"}}


def test_consumer__uses_every_public_name() -> None:
    used = used_names(PROGRAM.read_text(encoding="utf-8"))["selene_core"]
    assert set(selene_core.__all__) == used


def test_consumer__calls_every_method_of_a_repository() -> None:
    """Those of their async faces are the same: tests/integration/test_aio.py."""
    used = used_methods(PROGRAM.read_text(encoding="utf-8"))
    named = [vars(selene_core)[name] for name in selene_core.__all__]
    repositories = [each for each in named if isinstance(each, type) and issubclass(each, Repository)]
    assert len(repositories) > 4
    for repository in repositories:
        public = {name for name in dir(repository) if not name.startswith("_")}
        assert public == used[repository.__name__], repository


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
