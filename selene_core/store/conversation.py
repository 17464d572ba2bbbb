"""The conversation ledger: turns in order, and tombstones that hide a turn's text (contract §2).

The rules are in the database. Each method sends one statement and turns rows into types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, Integer, Text, Uuid, bindparam

from selene_core.contract.enums import ConversationRole, ConversationSource, PrivacyScope
from selene_core.contract.frozen_json import MAX_INT64
from selene_core.contract.rows import ConversationTurn, TurnResult
from selene_core.contract.rules import EVENT_RULES, TURN_RULES, integer
from selene_core.store.instants import Instant
from selene_core.store.repository import Repository, Secret, call, scoped
from selene_core.store.scope import scope_tenant
from selene_core.store.tables import conversation_ledger

if TYPE_CHECKING:
    from sqlalchemy import RowMapping, Select

MAX_TURNS: Final = 1000
TURNS_PAGE: Final = 64  # of at most 64 KiB of text each
_POSITION: Final = integer(0, MAX_INT64)
_LIMIT: Final = integer(1, MAX_TURNS)


class ConversationRepository(Repository):
    """Append and read the turns of conversations, for the tenant of the connection's tenant_scope.

    A correlation_id names a conversation. Every method raises ContractViolation for invalid arguments, which
    never shows the value; and TenantScopeViolation outside the scope and after its transaction has ended.
    """

    def append(
        self,
        *,
        correlation_id: UUID,
        turn_id: int,
        user_id: str,
        role: ConversationRole | str,
        source: ConversationSource | str,
        text: str,
        privacy_scope: PrivacyScope | str,
        session_id: str | None = None,
        device_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> TurnResult:
        """Append a turn, with up to 65,536 bytes of text.

        The turn_id is its place in the conversation. The same content again, by turn_id or by key, returns
        the original as replayed; other content raises IdempotencyConflict. Raises IdentityNotFound, and
        DeviceNotFound and SessionNotFound for a device or session that the user does not have.
        """
        turn = {
            "correlation_id": correlation_id,
            "turn_id": turn_id,
            "user_id": user_id,
            "role": role,
            "source": source,
            "text": text,
            "privacy_scope": privacy_scope,
        }
        optional = {"session_id": session_id, "device_id": device_id, "idempotency_key": idempotency_key}
        return self._write(_APPEND, turn, optional)

    def tombstone(
        self,
        correlation_id: UUID,
        conversation_turn_id: int,
        *,
        reason_code: int,
        turn_id: int | None = None,
        idempotency_key: str | None = None,
    ) -> TurnResult:
        """Hide the text of a turn for good: append a tombstone with the reason, and return it.

        The tombstone gets the place `turn_id`, which must be after the hidden turn, or the place after the
        last turn. The same call again returns the original as replayed. Raises ConversationTurnNotFound if
        the conversation has no such turn; TombstoneConflict if the turn is a tombstone, or is hidden already
        for another reason or at another place; IdempotencyConflict if another turn has the key or the place.
        """
        turn = {
            "correlation_id": correlation_id,
            "conversation_turn_id": conversation_turn_id,
            "reason_code": reason_code,
        }
        # Not TURN_RULES: only a tombstone may take the very last place.
        place = EVENT_RULES["turn_id"].check_optional("turn_id", turn_id)
        return self._write(_TOMBSTONE, turn, {"idempotency_key": idempotency_key}, turn_id=place)

    def get(self, correlation_id: UUID, turn_id: int) -> ConversationTurn | None:
        """Return a turn; None if there is none."""
        checked = EVENT_RULES["turn_id"].check("turn_id", turn_id)
        turns = self.page(correlation_id, after=checked - 1, limit=1)
        return turns[0] if turns and turns[0].turn_id == checked else None

    def page(self, correlation_id: UUID, after: int = 0, limit: int = TURNS_PAGE) -> list[ConversationTurn]:
        """Return the next 1..1000 turns with a turn_id > `after`, in order.

        For the next page, pass the turn_id of the last turn as `after`. It does not contain a turn that was
        written meanwhile at an earlier place.
        """
        rows = self._run(
            _READ,
            correlation_id=TURN_RULES["correlation_id"].check("correlation_id", correlation_id),
            after=_POSITION.check("after", after),
            limit=_LIMIT.check("limit", limit),
        )
        return [_turn(row) for row in rows]

    def turns(self, correlation_id: UUID, after: int = 0) -> Iterator[ConversationTurn]:
        """Iterate over the turns with a turn_id > `after` in order, a page in memory at a time."""
        scope_tenant(self._conn)  # raise now, and not when the iteration begins
        checked = TURN_RULES["correlation_id"].check("correlation_id", correlation_id)
        return self._turns(checked, _POSITION.check("after", after))

    def _turns(self, correlation_id: UUID, after: int) -> Iterator[ConversationTurn]:
        while page := self.page(correlation_id, after):
            yield from page
            if len(page) < TURNS_PAGE:
                return
            after = page[-1].turn_id

    def _write(
        self, statement: Select[Any], turn: Mapping[str, Any], optional: Mapping[str, Any], **checked: Any
    ) -> TurnResult:
        values = {name: TURN_RULES[name].check(name, value) for name, value in turn.items()}
        if "text" in values:
            values["text"] = Secret(values["text"])
        for name, value in optional.items():
            values[name] = TURN_RULES[name].check_optional(name, value)
        return TurnResult(**self._run(statement, **values, **checked)[0])


def _turn(row: RowMapping) -> ConversationTurn:
    words = {
        "role": ConversationRole(row["role"]),
        "source": ConversationSource(row["source"]),
        "privacy_scope": PrivacyScope(row["privacy_scope"]),
    }
    return ConversationTurn(**{**row, **words})


# --- statements, built once; all values are parameters

_CORRELATION: Final = bindparam("correlation_id", type_=Uuid)
_RESULT: Final = {
    "conversation_turn_id": BigInteger,
    "turn_id": BigInteger,
    "text_hash": Text,
    "created_at": Instant(),
    "replayed": Boolean,
}
_APPEND: Final = call(
    "conversation.append_turn",
    scoped(
        _CORRELATION,
        bindparam("turn_id", type_=BigInteger),
        *(
            bindparam(name, type_=Text)
            for name in (
                "user_id",
                "role",
                "source",
                "text",
                "privacy_scope",
                "session_id",
                "device_id",
                "idempotency_key",
            )
        ),
    ),
    **_RESULT,
)
_TOMBSTONE: Final = call(
    "conversation.tombstone_turn",
    scoped(
        _CORRELATION,
        bindparam("conversation_turn_id", type_=BigInteger),
        bindparam("reason_code", type_=BigInteger),
        bindparam("turn_id", type_=BigInteger),
        bindparam("idempotency_key", type_=Text),
    ),
    **_RESULT,
)
_READ: Final = call(
    "conversation.read_turns",
    scoped(
        _CORRELATION,
        bindparam("after", type_=BigInteger),
        bindparam("limit", type_=Integer),
    ),
    **{column.name: column.type for column in conversation_ledger.columns},
    text=Text,
    tombstoned_by_conversation_turn_id=BigInteger,
)
