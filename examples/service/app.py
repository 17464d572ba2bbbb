"""The application: answer the requests of the users of many tenants."""

# --- the application
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from examples.service import trips
from examples.service.logs import log_as_json
from selene_core import (
    AppendResult,
    ApprovalOutcome,
    ContractViolation,
    Created,
    PromptDecision,
    SeleneError,
    WorkOrder,
    WorkOrderEvent,
    WorkOrderNotFound,
    WorkOrderRepository,
    WorkOrderStatus,
    check_schema,
    create_selene_engine,
    http_status,
    run_in_tenant,
)

T = TypeVar("T")


class Refusal(BaseModel):
    """The answer to what is refused. Other facts of the error stand beside these."""

    model_config = ConfigDict(extra="allow")
    code: str
    message: str
    retryable: bool
    field: str | None = None
    rule: str | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold the engine as long as the application runs."""
    log_as_json()
    engine = app.state.engine = create_selene_engine(os.environ["SELENE_DATABASE_URL"])
    try:
        await run_in_threadpool(check_schema, engine)  # do not start on a schema that does not fit
        yield
    finally:
        engine.dispose()


app = FastAPI(
    title="Trips",
    lifespan=lifespan,
    responses={"4XX": {"model": Refusal, "description": "Refused"}},
)


# --- who is asking
@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking, and how to work for them."""

    engine: Engine
    tenant_id: str
    user_id: str

    def run(self, work: Callable[[WorkOrderRepository], T], *, retry_unknown: bool = True) -> T:
        """Return what the work returns: one transaction, again if it met a passing failure."""
        return run_in_tenant(
            self.engine,
            self.tenant_id,
            lambda conn: work(WorkOrderRepository(conn)),
            retry_unknown=retry_unknown,
        )


def verified(
    request: Request, x_tenant: Annotated[str, Header()], x_user: Annotated[str, Header()]
) -> Caller:
    """Take tenant and user from headers that a gateway has verified."""
    return Caller(request.app.state.engine, x_tenant, x_user)


Verified = Annotated[Caller, Depends(verified)]


# --- an order
class Message(BaseModel):
    """What each message of a conversation says of itself."""

    message_id: str
    turn_id: int


class NewTrip(Message):
    """The message in which the user asks for a trip."""

    correlation_id: uuid.UUID
    fields: dict[str, Any] = {}


@app.post("/orders", status_code=201)
def create(new: NewTrip, caller: Verified) -> Created:
    """Create the order for a trip. Sent again, it is the same order."""
    return caller.run(
        lambda orders: orders.create(
            correlation_id=new.correlation_id,
            turn_id=new.turn_id,
            reason_code=1,  # why, in a code of your own
            fields=new.fields,
            requester_user_id=caller.user_id,
            idempotency_key=f"create-{new.message_id}",
        )
    )


@app.get("/orders/{order_id}")
def read(order_id: str, caller: Verified) -> WorkOrder:
    """Return an order as it is now."""
    order = caller.run(lambda orders: orders.get(order_id))
    if order is None:
        raise WorkOrderNotFound(work_order_id=order_id)
    return order


# --- questions
@app.post("/orders/{order_id}/ask")
def ask(order_id: str, message: Message, caller: Verified) -> PromptDecision:
    """Decide what to ask the user for, and record that it is asked."""
    return caller.run(
        lambda orders: trips.next_question(orders, order_id, message.turn_id, message.message_id)
    )


class Answer(Message):
    """The message in which the user answers."""

    value: Any


@app.put("/orders/{order_id}/fields/{field_key}")
def answer(order_id: str, field_key: str, said: Answer, caller: Verified) -> PromptDecision:
    """Record an answer, and decide what to ask for next."""
    return caller.run(
        lambda orders: trips.answer(orders, order_id, field_key, said.value, said.turn_id, said.message_id)
    )


# --- an approval
class ApprovalRequest(BaseModel):
    """Who must approve."""

    turn_id: int
    target_user_id: str


@app.put("/orders/{order_id}/approvals/{request_id}")
def request_approval(
    order_id: str, request_id: str, wanted: ApprovalRequest, caller: Verified
) -> AppendResult:
    """Let the order wait for somebody's approval."""
    return caller.run(
        lambda orders: orders.request_approval(
            order_id,
            request_id,
            wanted.target_user_id,
            turn_id=wanted.turn_id,
            work_order_status=WorkOrderStatus.CONFIRM,  # what the decision then follows
            idempotency_key=f"request-{request_id}",
        )
    )


@app.post("/orders/{order_id}/notify-wait")
def notify_wait(order_id: str, caller: Verified) -> bool:
    """Tell whether this caller must tell the user that the order waits."""
    # It takes no key: a repetition after an unknown outcome would answer False, and nobody would tell.
    return caller.run(lambda orders: orders.notify_wait(order_id), retry_unknown=False)


class Decision(BaseModel):
    """The answer to a request for approval."""

    turn_id: int
    outcome: ApprovalOutcome


@app.put("/orders/{order_id}/approvals/{request_id}/decision")
def decide(order_id: str, request_id: str, said: Decision, caller: Verified) -> AppendResult:
    """Record a decision: the work begins, or the order is refused."""
    return caller.run(lambda orders: trips.decide(orders, order_id, request_id, said.outcome, said.turn_id))


# --- look and cancel
@app.get("/orders")
def list_orders(
    caller: Verified,
    status: Annotated[list[WorkOrderStatus] | None, Query()] = None,
    after: str | None = None,
    limit: int = 20,
) -> list[WorkOrder]:
    """Return a page of orders, newest first; `after` is the id of the last one of the page before."""

    def page(orders: WorkOrderRepository) -> list[WorkOrder]:
        last = None if after is None else orders.get(after)
        if after is not None and last is None:
            raise WorkOrderNotFound(work_order_id=after)
        return orders.list_orders(status, limit=limit, after=last)

    return caller.run(page)


@app.get("/orders/{order_id}/events")
def events(order_id: str, caller: Verified, after: int = 0) -> list[WorkOrderEvent]:
    """Return the events of an order, all that came after a work_order_seq."""
    return caller.run(lambda orders: [*orders.events(order_id, after)])


@app.post("/orders/{order_id}/cancel")
def cancel(order_id: str, caller: Verified) -> AppendResult:
    """Cancel an order. Once it is canceled, this changes nothing."""
    return caller.run(lambda orders: orders.cancel(order_id, reason_code=2, idempotency_key="cancel"))


# --- errors
@app.exception_handler(SeleneError)
def refused(_request: Request, error: SeleneError) -> JSONResponse:
    """Answer with the facts of a refusal: the attributes of the error."""
    facts = {name: fact for name, fact in asdict(error).items() if fact is not None}
    answer = {"code": error.code, "retryable": error.retryable, **facts}
    return JSONResponse(jsonable_encoder(answer), http_status(error))


@app.exception_handler(RequestValidationError)
def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer a request that FastAPI refuses in the words of ours: which field, which rule."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if isinstance(part, str)]
    return refused(request, ContractViolation(field=".".join(place[1:] or place), rule=first["msg"]))


@app.exception_handler(SQLAlchemyError)
def failed(_request: Request, error: SQLAlchemyError) -> JSONResponse:
    """Answer 503 if the database cannot be reached or is too busy. All else is a fault of the service."""
    if http_status(error) != 503:
        raise error
    logging.getLogger(__name__).warning("the database failed: %s", type(error).__name__)
    again = {"code": "DATABASE_UNAVAILABLE", "message": "try again later", "retryable": True}
    return JSONResponse(again, 503)
