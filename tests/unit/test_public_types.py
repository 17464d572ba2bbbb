"""What a host's tools make of the public names: type hints, pydantic and FastAPI, and a star import."""

import importlib
import inspect
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints
from uuid import UUID

import pytest
from pydantic import TypeAdapter, create_model

import selene_core
import selene_core.local
import selene_core.migrations
from selene_core import AsyncIdentityRepository, Device, IdentityRepository, WorkOrderEvent

PUBLIC: dict[str, Any] = {name: getattr(selene_core, name) for name in selene_core.__all__}
CLASSES = {name: each for name, each in PUBLIC.items() if isinstance(each, type)}
RESULTS = {
    name: cls
    for name, cls in CLASSES.items()
    if (is_dataclass(cls) or issubclass(cls, tuple)) and not issubclass(cls, Exception)
}
MOMENT = datetime(2026, 7, 1, 10, 0, 0, 500, tzinfo=UTC)
SAMPLES: dict[Any, Any] = {
    str: "text",
    int: 7,
    bool: True,
    datetime: MOMENT,
    UUID: UUID("12345678-1234-1234-1234-123456789abc"),
    Any: {"a": [1, None]},
}


def members(owner: type) -> list[Any]:
    """Return the functions, methods and properties that a class has from us, its constructor too."""
    found = [
        (name, member)
        for cls in owner.__mro__
        if cls.__module__.startswith("selene_core")
        for name, member in vars(cls).items()
    ]
    functions = [
        (name, getattr(member, "fget", getattr(member, "__func__", member))) for name, member in found
    ]
    return [
        each
        for name, each in functions
        if inspect.isfunction(each) and (name == "__init__" or not name.startswith("_"))
    ]


@pytest.mark.parametrize("name", PUBLIC)
def test_hints__resolve(name: str) -> None:
    """As pydantic, FastAPI and dependency injection read them: at run time, from the module alone."""
    public = PUBLIC[name]
    if isinstance(public, type):
        assert get_type_hints(public) is not None
        for member in members(public):
            get_type_hints(member)
    elif callable(public):
        assert "return" in get_type_hints(public)


@pytest.mark.parametrize(
    "module", [selene_core.local, selene_core.migrations], ids=lambda each: each.__name__
)
def test_hints__resolve_in_the_modules_that_a_host_imports_besides(module: Any) -> None:
    for name, each in vars(module).items():
        ours = getattr(each, "__module__", None) == module.__name__
        if ours and not name.startswith("_") and callable(each):
            get_type_hints(each)
            for member in members(each) if isinstance(each, type) else []:
                get_type_hints(member)


def test_hints__of_an_asynchronous_face_that_streams() -> None:
    assert get_type_hints(IdentityRepository.devices)["return"] == Iterator[Device]
    assert get_type_hints(AsyncIdentityRepository.devices)["return"] == AsyncIterator[Device]


def sample(hint: Any) -> Any:
    """Make a value of a type."""
    if get_origin(hint) is UnionType or NoneType in get_args(hint):
        return sample(next(each for each in get_args(hint) if each is not NoneType))
    if get_origin(hint) is dict:
        return {"key": sample(get_args(hint)[1])}
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return next(iter(hint))
    return row(hint) if hint in RESULTS.values() else SAMPLES[hint]


def row(cls: Any) -> Any:
    """Make a result of which every field has a value."""
    hints = get_type_hints(cls)
    names = [each.name for each in fields(cls)] if is_dataclass(cls) else cls._fields
    return cls(**{name: sample(hints[name]) for name in names})


@pytest.mark.parametrize("name", RESULTS)
def test_result__may_be_what_a_host_answers_with(name: str) -> None:
    """As FastAPI's response model: a schema, JSON of an instance, and the same instance from that JSON."""
    cls = RESULTS[name]
    made, adapter = row(cls), TypeAdapter(cls)
    assert adapter.json_schema(mode="serialization")["type"] in ("object", "array")
    assert adapter.validate_python(made) == made
    assert adapter.validate_json(adapter.dump_json(made)) == made
    page: Any = create_model("Page", rows=(list[cls], ...), first=(cls | None, None))  # type: ignore[valid-type, arg-type]
    answer = page(rows=[made], first=made)
    assert page.model_validate_json(answer.model_dump_json()) == answer


def test_result__those_with_no_value_where_none_need_be() -> None:
    made = row(WorkOrderEvent)
    empty = {
        each.name: None
        for each in fields(made)
        if NoneType in get_args(get_type_hints(WorkOrderEvent)[each.name])
    }
    without = WorkOrderEvent(**{each.name: getattr(made, each.name) for each in fields(made)} | empty)
    adapter = TypeAdapter(WorkOrderEvent)
    assert empty
    assert adapter.validate_json(adapter.dump_json(without)) == without


HOSTS_IMPORTS = [
    *("builtins", "typing", "collections", "collections.abc", "dataclasses", "datetime", "enum", "uuid"),
    *(
        "asyncio",
        "contextlib",
        "logging",
        "pathlib",
        "json",
        "pydantic",
        "psycopg",
        "psycopg.errors",
        "click",
    ),
    *("sqlalchemy", "sqlalchemy.orm", "sqlalchemy.ext.asyncio", "sqlalchemy.exc", "sqlalchemy.types"),
    *("sqlalchemy.dialects.postgresql", "sqlalchemy.engine", "sqlalchemy.sql", "alembic", "alembic.op"),
]


@pytest.mark.parametrize("module", HOSTS_IMPORTS)
def test_star_import__replaces_nothing_that_a_host_works_with(module: str) -> None:
    other = importlib.import_module(module)
    names = getattr(other, "__all__", None) or [name for name in vars(other) if not name.startswith("_")]
    assert set(selene_core.__all__) & set(names) == set()
