"""Write docs/errors.md from the error classes: python docs/_ext/error_page.py.

SQLSTATE, code, HTTP status and attributes come from the classes. What to do about an error is written
here; a class without advice is refused.
"""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import selene_core

PAGE: Final = Path(__file__).resolve().parents[1] / "errors.md"


ADVICE: Final[dict[str, str]] = {
    "ContractViolation": "Correct the input: `field` names the key, `rule` says what it must be.",
    "TenantScopeViolation": (
        "A mistake of the service: call inside a tenant_scope, with one tenant in a transaction."
    ),
    "AppendOnlyViolation": "Do not change a ledger. Append another event.",
    "CancelInvalidState": "Nothing: the order has ended. `work_order_status` says how.",
    "IdempotencyConflict": "Use a new key for new content. Repeat a call with exactly what it said before.",
    "ConcurrencyConflict": "Read the order again, decide again, and append again.",
    "InvalidTransition": "Read the order. What you wanted to add does not follow from its state.",
    "PromptSuppressed": "Do not ask. `ask` says which field to ask for instead.",
    "ExternalApprovalPending": "Wait for EXTERNAL_APPROVAL_RESOLVED of `request_id`.",
    "LeaseHeld": "Try again after `lease_expires_at`, or leave the work to `lease_owner_id`.",
    "LeaseLost": (
        "Stop working on the order. Acquire a lease with a new token to go on. With `consumer`: another relay"
        " has taken the feed's batch over; leave it to that one."
    ),
    "AttemptConflict": (
        "Act on `reason`. RUNNING: another attempt is running. NOT_DUE: wait until `next_retry_at`."
        " BUDGET_SPENT: raise `max_retries` or give up. SUCCEEDED: nothing is left to do."
        " OVER: the attempt has ended. UNKNOWN: there is no such attempt."
    ),
    "BoundExceeded": "Ask for or store less: `bound` names the column, `limit` its limit.",
    "CorrelationConflict": "Give each work order a thread (`correlation_id`) of its own.",
    "WorkOrderIdUnavailable": "Take an id from `new_work_order_id()`.",
    "WorkOrderNotFound": "Check the id and the tenant. An order begins with WORK_ORDER_CREATED.",
    "ProjectionDamaged": (
        "Call an operator: somebody changed the table by hand. `selene-core rebuild` repairs it."
    ),
    "IdentityNotFound": "Register the user first.",
    "DeviceNotFound": "Register the device for this user first.",
    "SessionNotFound": "Open the session for this user first.",
    "SessionStateInvalid": "Resume the session, or open a new one. CLOSED is final.",
    "DeviceIdUnavailable": "Give the device another id: it is another user's.",
    "ConversationTurnNotFound": "Check the conversation and the turn.",
    "TombstoneConflict": "Nothing: the text is hidden already, or there is none.",
    "SchemaOutdated": "Run `selene-core upgrade`, then start the service again.",
    "SchemaTooNew": "Install the newer release of the package.",
    "SchemaDrifted": "Call an operator: `selene-core doctor` reports what differs.",
    "SchemaLocked": "Try again: a migration is running.",
}

HEAD: Final = """\
<!-- Written by docs/_ext/error_page.py. Do not edit: run python docs/_ext/error_page.py -->

# Errors

Every refusal of the database is one of these. **Decide by the SQLSTATE**, or by the class in Python: a
message may change, an SQLSTATE does not. The attributes of a class are the keys of the JSON object in
DETAIL. One that does not apply is left out there, and is None in Python.

**Retryable** means that the same call may succeed later. Any other error would come again. The HTTP
status is a suggestion for services that answer over HTTP. `http_status(error)` returns it, and one for the
[errors that are not ours](#errors-that-are-not-ours).

After an error the transaction can only be rolled back, if need be to a savepoint
(`conn.begin_nested()`). Retry in a new transaction, with the same `idempotency_key`.
[Retries](howto/retries.md) has an example, and the SQLSTATEs of PostgreSQL's own that are worth a retry.

A replay is no error: the result has `replayed` = true, and its code is OS_WORK_ORDER_IDEMPOTENCY_REPLAY.

In Python, every error that this package raises of its own is a `SeleneCoreError`:

| class | raised when |
|---|---|
| `SeleneError` | the database, or Python before it, refuses a call: the table below |
| `SchemaError` | [`check_schema`](#errors-of-check_schema) finds another schema |
| `MigrationLocked` (`selene_core.migrations`) | another migration is running |
| `MigrationRefused` (`selene_core.migrations`) | this one must not run |
| `LocalServerUnavailable` (`selene_core.local`) | no embedded server can be started |

Connections that break, and PostgreSQL's own errors, are SQLAlchemy's `DBAPIError`.
"""
OTHERS: Final = """\
## Errors that are not ours

`http_status` answers these, too. [Retries](howto/retries.md) says which are worth another try.

| error | HTTP |
|---|---|
| the connection was lost, or could not be made: 08xxx, 57P01 to 57P05, 25P03, 25P04, or no SQLSTATE | 503 |
| transactions met: 40001, 40P01 | 503 |
| a timeout: 55P03, 57014, or no free connection in the pool | 503 |
| the server is short of connections, memory or disk: 53xxx | 503 |
| any other exception | 500 |
"""
SCHEMA_HEAD: Final = """\
## Errors of `check_schema`

`check_schema` raises these when a service starts. They have no SQLSTATE, because the database refuses
nothing. Their attributes are `revision` (where the database stands), `expected` (what this version of
the package is for) and `problems` (a sentence for each difference).
"""


def page() -> str:
    """Return the page."""
    public = (getattr(selene_core, name) for name in selene_core.__all__)
    errors: list[Any] = [kind for kind in public if isinstance(kind, type) and issubclass(kind, Exception)]
    leaves = [
        kind for kind in errors if not any(other is not kind and issubclass(other, kind) for other in errors)
    ]
    refusals = sorted((kind for kind in leaves if hasattr(kind, "sqlstate")), key=lambda kind: kind.sqlstate)
    others = sorted(
        (kind for kind in leaves if not hasattr(kind, "sqlstate")), key=lambda kind: kind.__name__
    )
    summary = ["| SQLSTATE | class | means | retryable | HTTP |", "|---|---|---|---|---|"]
    summary += [
        f"| {kind.sqlstate} | [{kind.__name__}](#{kind.__name__.lower()}) | {meaning(kind)}"
        f" | {'yes' if kind.retryable else 'no'} | {kind.http_status} |"
        for kind in refusals
    ]
    parts = [
        HEAD,
        "\n".join(summary) + "\n",
        *map(described, refusals),
        SCHEMA_HEAD,
        *map(described, others),
        OTHERS,
    ]
    return "\n".join(parts)


def described(kind: Any) -> str:
    """Return the section of one class."""
    facts = [f"- SQLSTATE `{kind.sqlstate}`"] if hasattr(kind, "sqlstate") else []
    facts.append(f"- Code `{kind.code}`, HTTP status {kind.http_status}")
    if is_dataclass(kind):
        names = ", ".join(f"`{fact.name}`" for fact in fields(kind) if fact.kw_only)
        facts.append(f"- Attributes: {names or 'none'}")
    level = "##" if hasattr(kind, "sqlstate") else "###"
    listed = "\n".join(facts)
    return f"{level} {kind.__name__}\n\n{meaning(kind)}\n\n{listed}\n\n**What to do.** {advice(kind)}\n"


def meaning(kind: Any) -> str:
    """Return the first line of a class's docstring, which is its default message."""
    return (kind.__doc__ or "").partition("\n")[0]


def advice(kind: Any) -> str:
    """Return what to do about an error; raises ValueError for a class that has no advice yet."""
    if kind.__name__ not in ADVICE:
        raise ValueError(f"{kind.__name__} has no advice in {Path(__file__).name}")
    return ADVICE[kind.__name__]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
