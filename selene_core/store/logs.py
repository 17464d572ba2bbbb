"""What the package logs, under the name selene_core: ids, counts and classes; never a value or a token.

Each record has its facts as attributes too, for a formatter that writes JSON. `selene_event` says which.
"""

from __future__ import annotations

import logging
from typing import Final

_LOG: Final = logging.getLogger("selene_core")
# A host that has not set up logging sees nothing: Python would write warnings to its standard error.
_LOG.addHandler(logging.NullHandler())


def log_retry(
    tenant_id: str, error: str, sqlstate: str | None, attempt: int, attempts: int, pause: float
) -> None:
    """Log that a transaction failed, and that it is run again after a pause, in seconds."""
    facts = {
        "selene_event": "retry",
        "tenant_id": tenant_id,
        "error": error,
        "sqlstate": sqlstate,
        "attempt": attempt,
        "attempts": attempts,
        "pause_ms": round(pause * 1000),
    }
    _LOG.warning(
        "attempt %d of %d of a transaction of tenant %s failed: %s (SQLSTATE %s); next in %d ms",
        *(facts[name] for name in ("attempt", "attempts", "tenant_id", "error", "sqlstate", "pause_ms")),
        extra=facts,
    )


def log_lost_lease(
    tenant_id: str, work_order_id: str | None, why: str, *, consumer: str | None = None
) -> None:
    """Log that a lease is expired, given back or taken over, or never was: on an order or on a consumer."""
    subject = {"work_order_id": work_order_id} if consumer is None else {"consumer": consumer}
    facts = {"selene_event": "lease_lost", "tenant_id": tenant_id, **subject}
    kind, name = ("work order", work_order_id) if consumer is None else ("feed consumer", consumer)
    _LOG.warning("the lease on %s %s of tenant %s is lost: %s", kind, name, tenant_id, why, extra=facts)


def log_hidden_error(tenant_id: str) -> None:
    """Log that a block hid an error that had ended its transaction, which can only be rolled back."""
    facts = {"selene_event": "hidden_error", "tenant_id": tenant_id}
    message = "a hidden error has ended the transaction of tenant %s, and nothing of it is written"
    _LOG.warning(message, tenant_id, extra=facts)


def log_stranded_lease(tenant_id: str, work_order_id: str, error: str) -> None:
    """Log that a lease could not be given back, because of an error of this class: it ends by itself."""
    facts = {"selene_event": "lease_stranded", "tenant_id": tenant_id, "work_order_id": work_order_id}
    message = "the lease on work order %s of tenant %s could not be given back, and ends by itself: %s"
    _LOG.warning(message, work_order_id, tenant_id, error, extra={**facts, "error": error})


def log_revision(revision: str, direction: str) -> None:
    """Log what was committed of a revision: its upgrade, its downgrade, or a stamp of it."""
    facts = {"selene_event": "revision", "revision": revision, "direction": direction}
    _LOG.info("revision %s: %s committed", revision, direction, extra=facts)
