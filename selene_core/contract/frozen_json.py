"""Immutable payloads, limited to JSON that PostgreSQL and Python can both hold (contract §2)."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NoReturn

from selene_core.contract.errors import ContractViolation

MAX_PAYLOAD_BYTES: Final = 16_384
MAX_PAYLOAD_DEPTH: Final = 32
MIN_INT64: Final = -(2**63)
MAX_INT64: Final = 2**63 - 1
MAX_ECHO: Final = 40

_SIZE_RULE = (
    f"must be at most {MAX_PAYLOAD_BYTES} bytes as jsonb text,"
    f" and nested at most {MAX_PAYLOAD_DEPTH} levels deep"
)
_NUMBER_RULE = "must be a finite number, within 64 bits where it is an integer"
_TEXT_RULE = "must not contain NUL or lone surrogates"
# The characters of os_core.key_shown (control, zero width, writing direction), and surrogates.
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_KIND_RULE = "must be JSON: null, a boolean, a number, text, a list or an object with text keys"


def _read_only(self: object, *_: Any, **__: Any) -> NoReturn:
    raise TypeError(f"{type(self).__name__} cannot be changed")


class FrozenDict(dict[str, Any]):
    """An immutable JSON object; equal to the same plain dict."""

    __setitem__ = __delitem__ = __ior__ = _read_only
    clear = pop = popitem = setdefault = update = _read_only

    def __hash__(self) -> int:  # type: ignore[override]  # dict says None: it is mutable, this is not
        return hash(frozenset(self.items()))

    def __copy__(self) -> "FrozenDict":
        return self

    def __deepcopy__(self, memo: object) -> "FrozenDict":
        return self

    def __reduce__(self) -> tuple[type["FrozenDict"], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)


class FrozenList(list[Any]):
    """An immutable JSON array; equal to the same plain list."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _read_only
    append = clear = extend = insert = pop = remove = reverse = sort = _read_only

    def __hash__(self) -> int:  # type: ignore[override]  # as above
        return hash(tuple(self))

    def __copy__(self) -> "FrozenList":
        return self

    def __deepcopy__(self, memo: object) -> "FrozenList":
        return self

    def __reduce__(self) -> tuple[type["FrozenList"], tuple[list[Any]]]:
        return FrozenList, (list(self),)


@dataclass(frozen=True, slots=True)
class Personal:
    """A value that belongs to a person: an event holds a reference to it, and erase_subject() deletes it.

    It may stand wherever an event takes a value, at any depth: in fields, candidates and the payloads of
    STEP_* events. The event that it is part of checks it. Its repr hides the value (contract §18).
    """

    subject_id: str
    value: Any = field(repr=False)


def freeze_object(value: object, *, field: str) -> FrozenDict:
    """Copy a JSON object into an immutable one; raises ContractViolation (contract §2)."""
    if not isinstance(value, dict):
        raise ContractViolation(field=field, rule="must be an object")
    try:
        frozen: FrozenDict = _Walk(field).copy(value, depth=1)
    except _BadNumber:
        # As the database does: first the size, then the numbers, in jsonb's order of keys.
        walk = _PatientWalk(field)
        walk.copy(value, depth=1)
        raise walk.first_bad_number from None
    return frozen


def thaw(value: Any) -> Any:
    """Copy a frozen value into plain dicts and lists."""
    match value:
        case dict():
            return {key: thaw(item) for key, item in value.items()}
        case list():
            return [thaw(item) for item in value]
        case _:
            return value


def label(key: object) -> str:
    """Shorten a caller's key for an error message, as os_core.key_shown does."""
    shown = _UNSHOWN.sub("?", str(key))
    return shown if len(shown) <= MAX_ECHO else shown[: MAX_ECHO - 1] + "…"


def jsonb_order(key: str) -> tuple[int, bytes]:
    """Return the sort key of jsonb for an object's key: the length in UTF-8, then the bytes."""
    encoded = key.encode("utf-8", "surrogatepass")
    return len(encoded), encoded


class _BadNumber(ContractViolation):
    """A number that not every client can read back."""


class _Walk:
    """Copy and measure in one walk, so that depth, width, cycles and shared branches all meet a limit."""

    def __init__(self, field: str) -> None:
        self.field = field
        self.path: list[object] = []
        self.left = MAX_PAYLOAD_BYTES

    def copy(self, value: object, depth: int) -> Any:
        """Return the value in immutable types; depth - 1 containers are around it."""
        match value:
            case None | True | False:
                self.spend(5 if value is False else 4)
                return value
            case str():
                return self.text(value)
            case int():
                return self.integer(value)
            case float():
                return self.floating(value)
            case dict() | list() if depth > MAX_PAYLOAD_DEPTH:
                raise ContractViolation(field=self.field, rule=_SIZE_RULE)
            case dict():
                self.spend(max(2, 4 * len(value)))  # {}, and ": " and ", "
                return FrozenDict(
                    (self.key(key), self.child(key, item, depth)) for key, item in self.items(value)
                )
            case list():
                self.spend(max(2, 2 * len(value)))  # [], and ", "
                return FrozenList(self.child(index, item, depth) for index, item in enumerate(value))
            case Personal():
                return self.copy({"$personal": {"subject": value.subject_id, "value": value.value}}, depth)
            case _:
                return self.refuse(_KIND_RULE)

    def items(self, value: dict[Any, Any]) -> Iterable[tuple[Any, Any]]:
        return value.items()

    def child(self, key: object, item: object, depth: int) -> Any:
        self.path.append(key)
        copied = self.copy(item, depth + 1)
        self.path.pop()
        return copied

    def key(self, key: object) -> str:
        return self.text(key) if isinstance(key, str) else self.refuse(_KIND_RULE)

    def text(self, value: str) -> str:
        if len(value) >= self.left:  # too long with its quotes, even without escapes
            self.spend(len(value) + 2)
        try:
            self.spend(len(json.dumps(value, ensure_ascii=False).encode()))
        except UnicodeEncodeError:
            self.refuse(_TEXT_RULE)
        return str.__str__(value) if "\0" not in value else self.refuse(_TEXT_RULE)

    def integer(self, value: int) -> int:
        plain = int.__int__(value)
        if not MIN_INT64 <= plain <= MAX_INT64:
            self.bad_number()
        # str() refuses integers of more than 4300 digits.
        huge = plain.bit_length() > 4 * MAX_PAYLOAD_BYTES
        self.spend(MAX_PAYLOAD_BYTES + 1 if huge else Decimal(plain).adjusted() + 1 + (plain < 0))
        return plain

    def floating(self, value: float) -> float:
        if not math.isfinite(value):
            self.refuse(_NUMBER_RULE)  # not JSON, so it could not be sent to the database
        if value.is_integer() and not MIN_INT64 <= value <= MAX_INT64:
            self.bad_number()
        plain = float.__float__(value)
        # jsonb keeps the digits of the JSON text, without exponent and without the sign of zero.
        self.spend(len(f"{Decimal(repr(plain or 0.0)):f}"))
        return plain

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ContractViolation(field=self.field, rule=_SIZE_RULE)

    def bad_number(self) -> None:
        raise _BadNumber(field=self.place(), rule=_NUMBER_RULE)

    def refuse(self, rule: str) -> NoReturn:
        raise ContractViolation(field=self.place(), rule=rule)

    def place(self) -> str:
        steps = (f"[{key}]" if isinstance(key, int) else f".{label(key)}" for key in self.path)
        return self.field + "".join(steps)


class _PatientWalk(_Walk):
    """Walk on after a bad number, in jsonb's order, and remember the first one."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.first_bad_number = ContractViolation(field=field, rule=_NUMBER_RULE)
        self._met_one = False

    def items(self, value: dict[Any, Any]) -> Iterable[tuple[Any, Any]]:
        if not all(isinstance(key, str) for key in value):
            self.refuse(_KIND_RULE)
        return sorted(value.items(), key=lambda item: jsonb_order(item[0]))

    def bad_number(self) -> None:
        if not self._met_one:
            self._met_one = True
            self.first_bad_number = ContractViolation(field=self.place(), rule=_NUMBER_RULE)
