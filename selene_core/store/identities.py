"""Users, their devices and their sessions (contract §2).

The rules are in the database. Each method sends one statement and turns rows into types.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Text, and_, bindparam, select, true

from selene_core.contract.enums import IdentityStatus, SessionState
from selene_core.contract.rows import Device, UserIdentity, UserSession
from selene_core.contract.rules import IDENTITY_RULES
from selene_core.store.repository import TENANT, Repository, call, in_scope, scoped
from selene_core.store.scope import scope_tenant
from selene_core.store.tables import devices, identities, sessions

if TYPE_CHECKING:
    from sqlalchemy import RowMapping, Select, Table

OWNED_PAGE: Final = 256


class IdentityRepository(Repository):
    """Register and read users, devices and sessions, for the tenant of the connection's tenant_scope.

    All times are the database's. Every method raises ContractViolation for invalid arguments, and
    TenantScopeViolation outside the scope and after its transaction has ended.
    """

    def register_identity(
        self,
        user_id: str,
        *,
        speaker_id: str | None = None,
        primary_language: str | None = None,
        status: IdentityStatus | str | None = None,
    ) -> UserIdentity:
        """Make a user known, or update what is given: None leaves a value as it is, "" removes it.

        A new user is ACTIVE by default.
        """
        rows = self._run(
            _REGISTER_IDENTITY,
            user_id=_checked("user_id", user_id),
            speaker_id=_changed("speaker_id", speaker_id),
            primary_language=_changed("primary_language", primary_language),
            status=_optional("status", status),
        )
        return _identity(rows[0])

    def register_device(
        self,
        user_id: str,
        device_id: str,
        *,
        device_type: str | None = None,
        audio_profile_ref: str | None = None,
    ) -> Device:
        """Make a user's device known, or update it, and record that it was seen now.

        None leaves a value as it is, "" removes the audio profile. A new device needs its type. Raises
        IdentityNotFound; and DeviceIdUnavailable if another user has this device.
        """
        rows = self._run(
            _REGISTER_DEVICE,
            user_id=_checked("user_id", user_id),
            device_id=_checked("device_id", device_id),
            device_type=_optional("device_type", device_type),
            audio_profile_ref=_changed("audio_profile_ref", audio_profile_ref),
        )
        return Device(**rows[0])

    def open_session(self, session_id: str, *, user_id: str, device_id: str) -> UserSession:
        """Open a session of a user on one of the user's devices.

        A session that the same user has opened on the same device is returned as it is now. Raises
        IdempotencyConflict if the session_id is used for another user or device; IdentityNotFound; and
        DeviceNotFound for a device that the user does not have.
        """
        rows = self._run(
            _OPEN_SESSION,
            session_id=_checked("session_id", session_id),
            user_id=_checked("user_id", user_id),
            device_id=_checked("device_id", device_id),
        )
        return _session(rows[0])

    def touch_session(self, session_id: str) -> UserSession:
        """Record activity; an OPEN session becomes ACTIVE.

        Raises SessionNotFound, and SessionStateInvalid if it is neither OPEN nor ACTIVE.
        """
        return _session(self._run(_TOUCH_SESSION, session_id=_checked("session_id", session_id))[0])

    def soft_close_session(self, session_id: str) -> UserSession:
        """Make an OPEN or ACTIVE session SOFT_CLOSED; it can be resumed. Raises as resume_session does."""
        return self._move(session_id, SessionState.SOFT_CLOSED)

    def suspend_session(self, session_id: str) -> UserSession:
        """Make an OPEN, ACTIVE or SOFT_CLOSED session SUSPENDED. Raises as resume_session does."""
        return self._move(session_id, SessionState.SUSPENDED)

    def resume_session(self, session_id: str) -> UserSession:
        """Make a session ACTIVE, unless it is CLOSED. An ACTIVE one stays as it is.

        Raises SessionNotFound, and SessionStateInvalid if contract §2 does not allow the move.
        """
        return self._move(session_id, SessionState.ACTIVE)

    def close_session(self, session_id: str) -> UserSession:
        """Close a session for good. A CLOSED one stays as it is. Raises SessionNotFound."""
        return self._move(session_id, SessionState.CLOSED)

    def get_identity(self, user_id: str) -> UserIdentity | None:
        """Return a user; None if there is none."""
        rows = self._read(_GET_IDENTITY, user_id=_checked("user_id", user_id))
        return _identity(_of(identities, rows[0])) if rows else None

    def get_device(self, device_id: str) -> Device | None:
        """Return a device; None if there is none."""
        rows = self._read(_GET_DEVICE, device_id=_checked("device_id", device_id))
        return Device(**_of(devices, rows[0])) if rows else None

    def get_session(self, session_id: str) -> UserSession | None:
        """Return a session; None if there is none."""
        rows = self._read(_GET_SESSION, session_id=_checked("session_id", session_id))
        return _session(_of(sessions, rows[0])) if rows else None

    def devices(self, user_id: str) -> Iterator[Device]:
        """Iterate over a user's devices in the order of their ids, a page in memory at a time."""
        scope_tenant(self._conn)  # raise now, and not when the iteration begins
        rows = self._owned(_DEVICES, "device_id", _checked("user_id", user_id))
        return (Device(**_of(devices, row)) for row in rows)

    def sessions(self, user_id: str) -> Iterator[UserSession]:
        """Iterate over a user's sessions in the order of their ids, a page in memory at a time."""
        scope_tenant(self._conn)
        rows = self._owned(_SESSIONS, "session_id", _checked("user_id", user_id))
        return (_session(_of(sessions, row)) for row in rows)

    def _move(self, session_id: str, state: SessionState) -> UserSession:
        rows = self._run(
            _MOVE_SESSION, session_id=_checked("session_id", session_id), session_state=state.value
        )
        return _session(rows[0])

    def _owned(self, statement: Select[Any], key: str, user_id: str) -> Iterator[RowMapping]:
        after = ""
        while page := self._read(statement, user_id=user_id, after=after):
            yield from page
            if len(page) < OWNED_PAGE:
                return
            after = page[-1][key]


def _checked(name: str, value: object) -> str:
    checked: str = IDENTITY_RULES[name].check(name, value)
    return checked


def _optional(name: str, value: object) -> str | None:
    return IDENTITY_RULES[name].check_optional(name, value)


def _changed(name: str, value: object) -> str | None:
    return "" if value == "" else _optional(name, value)


def _of(table: Table, row: RowMapping) -> dict[str, Any]:
    """Leave out the column that in_scope() adds to a row."""
    return {name: row[name] for name in table.columns.keys()}  # noqa: SIM118 - iterating it yields columns


def _identity(row: RowMapping | dict[str, Any]) -> UserIdentity:
    return UserIdentity(**{**row, "status": IdentityStatus(row["status"])})


def _session(row: RowMapping | dict[str, Any]) -> UserSession:
    return UserSession(**{**row, "session_state": SessionState(row["session_state"])})


# --- statements, built once; all values are parameters


def _call(function: str, table: Table, *parameters: str) -> Select[Any]:
    arguments = scoped(*(bindparam(name, type_=Text) for name in parameters))
    return call(function, arguments, **{column.name: column.type for column in table.columns})


def _by_id(table: Table, key: str) -> Select[Any]:
    return in_scope(table, and_(table.c.tenant_id == TENANT, table.c[key] == bindparam(key, type_=Text)))


def _page(table: Table, key: str) -> Select[Any]:
    page = (
        select(table)
        .where(
            table.c.tenant_id == TENANT,
            table.c.user_id == bindparam("user_id", type_=Text),
            table.c[key] > bindparam("after", type_=Text),
        )
        .order_by(table.c[key])
        .limit(OWNED_PAGE)
        .lateral("owned")
    )
    return in_scope(page, true()).order_by(page.c[key])


_REGISTER_IDENTITY: Final = _call(
    "register_identity", identities, "user_id", "speaker_id", "primary_language", "status"
)
_REGISTER_DEVICE: Final = _call(
    "register_device", devices, "user_id", "device_id", "device_type", "audio_profile_ref"
)
_OPEN_SESSION: Final = _call("open_session", sessions, "session_id", "user_id", "device_id")
_TOUCH_SESSION: Final = _call("touch_session", sessions, "session_id")
_MOVE_SESSION: Final = _call("move_session", sessions, "session_id", "session_state")
_GET_IDENTITY: Final = _by_id(identities, "user_id")
_GET_DEVICE: Final = _by_id(devices, "device_id")
_GET_SESSION: Final = _by_id(sessions, "session_id")
_DEVICES: Final = _page(devices, "device_id")
_SESSIONS: Final = _page(sessions, "session_id")
