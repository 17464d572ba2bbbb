"""The error tree: its registry, its facts, and what the database's words become."""

import copy
import importlib
import inspect
import json
import pickle
import pkgutil
import re
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

import selene_core
from selene_core.contract import errors
from selene_core.contract.errors import (
    BY_SQLSTATE,
    ContractViolation,
    LeaseHeld,
    SeleneCoreError,
    SeleneError,
    from_sqlstate,
)

EVERY_ERROR = pytest.mark.parametrize("error", BY_SQLSTATE.values(), ids=lambda error: str(error.__name__))

FACTS: dict[str, tuple[Any, Any]] = {  # attribute: (in DETAIL, in Python), where they are not 7 or "x"
    "lease_expires_at": ("2026-07-01T10:00:00.5+00:00", datetime(2026, 7, 1, 10, 0, 0, 500_000, tzinfo=UTC)),
    "next_retry_at": ("2026-07-01T10:00:00.5Z", datetime(2026, 7, 1, 10, 0, 0, 500_000, tzinfo=UTC)),
    "correlation_id": ("12345678-1234-1234-1234-123456789abc", UUID("12345678-1234-1234-1234-123456789abc")),
}
NUMBERS = {
    *("event_index", "work_order_event_id", "expected_seq", "last_seq", "limit"),
    *("step_attempt_id", "attempt_index", "turn_id", "conversation_turn_id"),
}


def facts(error: type[SeleneError]) -> dict[str, tuple[Any, Any]]:
    names = [fact.name for fact in fields(error) if fact.name != "message"]
    return {name: FACTS.get(name, (7, 7) if name in NUMBERS else ("x", "x")) for name in names}


def full(error: type[SeleneError]) -> SeleneError:
    return error("What happened.", **{name: known for name, (_, known) in facts(error).items()})


def test_registry__is_the_tree_in_the_docstring() -> None:
    drawn = re.findall(r"── (\w+) +(\w+) +(\w+)(?: +(retryable))?$", errors.__doc__ or "", re.MULTILINE)
    assert drawn == [
        (error.__name__, sqlstate, error.code, "retryable" if error.retryable else "")
        for sqlstate, error in BY_SQLSTATE.items()
    ]


def test_registry__holds_every_class_once() -> None:
    classes = [
        member
        for _, member in inspect.getmembers(errors, inspect.isclass)
        if issubclass(member, SeleneError) and member is not SeleneError
    ]
    assert sorted(BY_SQLSTATE.values(), key=lambda error: error.__name__) == classes
    assert len({error.code for error in classes}) == len(classes)
    assert {error.__name__ for error in classes if error.retryable} == {"ConcurrencyConflict", "LeaseHeld"}


def test_tree__holds_every_error_of_the_package() -> None:
    modules = [
        importlib.import_module(each.name)
        for each in pkgutil.walk_packages(selene_core.__path__, "selene_core.")
        if not each.name.startswith(("selene_core.__main__", "selene_core.cli", "selene_core._alembic"))
    ]
    ours = {
        error
        for module in modules
        for _, error in inspect.getmembers(module, inspect.isclass)
        if issubclass(error, Exception) and error.__module__.startswith("selene_core")
    }
    assert {"LeaseHeld", "SchemaDrifted", "MigrationRefused", "LocalServerUnavailable"} <= {
        error.__name__ for error in ours
    }
    assert [error for error in ours if not issubclass(error, SeleneCoreError)] == []


def test_public_errors__carry_the_public_name() -> None:
    assert {error.__module__ for error in BY_SQLSTATE.values()} == {"selene_core"}
    assert repr(pickle.dumps(LeaseHeld())).count("selene_core.contract") == 0


@EVERY_ERROR
def test_error__default_message_is_the_first_line_of_its_docstring(error: type[SeleneError]) -> None:
    raised = error()
    assert str(raised) == raised.message == (error.__doc__ or "").splitlines()[0]
    assert str(raised).endswith(".")


@EVERY_ERROR
def test_error__facts_are_none_unless_told(error: type[SeleneError]) -> None:
    assert {getattr(error(), name) for name in facts(error)} <= {None}


@EVERY_ERROR
def test_error__facts_are_keyword_only(error: type[SeleneError]) -> None:
    with pytest.raises(TypeError):
        error("What happened.", "x")  # type: ignore[call-arg]  # that is the point


@EVERY_ERROR
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_error__survives_pickle_and_copy(error: type[SeleneError], duplicate: Any) -> None:
    original = full(error)
    twin = duplicate(original)
    assert type(twin) is error
    assert (str(twin), vars(twin)) == ("What happened.", vars(original))


def test_error__keeps_its_notes_through_pickle() -> None:
    original = ContractViolation(field="turn_id", rule="must be an integer")
    original.add_note("line 7")
    assert pickle.loads(pickle.dumps(original)).__notes__ == ["line 7"]


def test_contract_violation__says_field_and_rule() -> None:
    assert str(ContractViolation(field="turn_id", rule="must be an integer")) == "turn_id: must be an integer"
    assert (
        str(ContractViolation("Other words.", field="turn_id", rule="must be an integer")) == "Other words."
    )


@EVERY_ERROR
def test_from_sqlstate__builds_the_class_with_all_its_facts(error: type[SeleneError]) -> None:
    detail = json.dumps({name: sent for name, (sent, _) in facts(error).items()})
    built = from_sqlstate(error.sqlstate, "What happened.", detail)
    assert type(built) is error
    assert vars(built) == vars(full(error))


@pytest.mark.parametrize("sqlstate", ["23505", "40001", "SL000", "SL018", "", None])
def test_from_sqlstate__leaves_what_is_not_ours(sqlstate: str | None) -> None:
    assert from_sqlstate(sqlstate, "duplicate key", "{}") is None


@pytest.mark.parametrize("message", ["", None])
def test_from_sqlstate__falls_back_to_the_default_message(message: str | None) -> None:
    assert (
        str(from_sqlstate("SL011", message, None)) == "The token holds no unexpired lease on the work order."
    )


@pytest.mark.parametrize(
    "detail",
    [
        None,
        "",
        "null",
        "7",
        '"text"',
        "[1]",
        "{",
        "{}",
        "Key (tenant_id)=(a) exists.",
        "[" * 100_000,
        "9" * 5_000,
        '{"unknown": 1, "message": "other", "code": "x", "__class__": "x"}',
        '{"work_order_id": 7, "lease_owner_id": ["x"], "lease_expires_at": 1751364000}',
        '{"work_order_id": null, "lease_expires_at": "infinity"}',
        '{"lease_expires_at": "2026-07-01T10:00:00"}',
    ],
    ids=range(15),
)
def test_from_sqlstate__ignores_a_detail_that_it_cannot_read(detail: str | None) -> None:
    built = from_sqlstate("SL010", "Held.", detail)
    assert isinstance(built, LeaseHeld)
    assert vars(built) == vars(LeaseHeld("Held."))


def test_from_sqlstate__does_not_take_a_boolean_for_a_number() -> None:
    built = from_sqlstate("SL001", "Bad.", '{"event_index": true, "field": "turn_id"}')
    assert vars(built or object) == vars(ContractViolation("Bad.", field="turn_id"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner)
)
known_names = st.sampled_from(sorted({name for error in BY_SQLSTATE.values() for name in facts(error)}))


@given(
    st.sampled_from(sorted(BY_SQLSTATE)),
    st.text(),
    st.text() | st.dictionaries(known_names | st.text(), json_values).map(json.dumps),
)
def test_from_sqlstate__never_fails(sqlstate: str, message: str, detail: str) -> None:
    assert type(from_sqlstate(sqlstate, message, detail)) is BY_SQLSTATE[sqlstate]
