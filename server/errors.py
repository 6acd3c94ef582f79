"""Every error a client can see, and the one table that turns it into a status and a body per protocol.

* Exception
  x ApiError                  carries the message for the client and the field it is about
    + InvalidBody             not JSON, not an object, undecodable
    + InvalidField            a field or header has the wrong type or value
      - EmptyInput            nothing to compute
      - InputTooLong          over the model's limit, and truncation was not asked for
      - WrongTask             the model does something else
      - TokenizerFailure      the tokenizer cannot digest the text
    + UnknownModel
    + UnknownRoute
    + MethodNotAllowed
    + BodyTooLarge
    + UnsupportedEncoding
    + Overloaded              also says when to come back
    + InvalidAnswer           the engine computed something that is no number
  x EngineUnavailable         of `server.wire.job`: starting, dead or draining
  x DeadlineExceeded          of `server.wire.job`
  x EngineFailure             of `server.wire.job`: the step failed
  x Unservable                of `server.wire.job`: the engine cannot do what is asked, ever

Anything else is a bug: the client gets a 500 that says no more than that.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from server.wire.job import DeadlineExceeded, EngineFailure, EngineUnavailable, Unservable

Protocol = Literal["openai", "tei"]
Outcome = Literal["ok", "invalid", "rejected", "unavailable", "deadline", "cancelled", "failed"]

UNAVAILABLE_RETRY_S = 1.0
"""Engines come back in seconds or, behind a load balancer, another server answers at once."""
MAX_RETRY_S = 60.0
"""Clients treat a longer wait as "do not retry" (openai-python gives up above 120 s)."""


class ApiError(Exception):
    """`param` names the field or header at fault."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidBody(ApiError):
    pass


class InvalidField(ApiError):
    pass


class EmptyInput(InvalidField):
    pass


class InputTooLong(InvalidField):
    pass


class WrongTask(InvalidField):
    pass


class TokenizerFailure(InvalidField):
    pass


class UnknownModel(ApiError):
    pass


class UnknownRoute(ApiError):
    pass


class MethodNotAllowed(ApiError):
    """`allow`: the methods there are, for the header of that name."""

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTooLarge(ApiError):
    pass


class UnsupportedEncoding(ApiError):
    pass


class Overloaded(ApiError):
    """`retry_after_s`: when a place is likely to be free. `code` tells a full queue from a deadline out of reach."""

    def __init__(self, message: str, *, retry_after_s: float, code: str = "queue_full") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.code = code


class InvalidAnswer(ApiError):
    pass


class Row(NamedTuple):
    """One line of the table. OpenAI's `code` may be refined by the error itself."""

    outcome: Outcome
    openai_status: int
    openai_type: str
    openai_code: str | None
    tei_status: int
    tei_type: str


INTERNAL = Row("failed", 500, "server_error", "internal_error", 500, "Backend")

# TEI answers a failed backend with 424, which no client retries and no proxy counts as a server error: 500 here.
ERROR_TABLE: dict[type[BaseException], Row] = {
    InvalidBody: Row("invalid", 400, "invalid_request_error", "invalid_body", 422, "Validation"),
    InvalidField: Row("invalid", 400, "invalid_request_error", "invalid_value", 422, "Validation"),
    EmptyInput: Row("invalid", 400, "invalid_request_error", "empty_input", 400, "Empty"),
    InputTooLong: Row("invalid", 400, "invalid_request_error", "context_length_exceeded", 422, "Validation"),
    WrongTask: Row("invalid", 400, "invalid_request_error", "wrong_task", 422, "Validation"),
    TokenizerFailure: Row("invalid", 400, "invalid_request_error", "tokenizer_error", 422, "Tokenizer"),
    UnknownModel: Row("invalid", 404, "invalid_request_error", "model_not_found", 404, "Validation"),
    UnknownRoute: Row("invalid", 404, "invalid_request_error", "unknown_url", 404, "Validation"),
    MethodNotAllowed: Row("invalid", 405, "invalid_request_error", "method_not_allowed", 405, "Validation"),
    BodyTooLarge: Row("invalid", 413, "invalid_request_error", "body_too_large", 413, "Validation"),
    UnsupportedEncoding: Row("invalid", 415, "invalid_request_error", "unsupported_encoding", 415, "Validation"),
    Overloaded: Row("rejected", 429, "rate_limit_error", "queue_full", 429, "Overloaded"),
    EngineUnavailable: Row("unavailable", 503, "service_unavailable_error", "engine_unavailable", 503, "Unhealthy"),
    DeadlineExceeded: Row("deadline", 504, "timeout_error", "deadline_exceeded", 504, "Timeout"),
    EngineFailure: Row("failed", 500, "server_error", "engine_failure", 500, "Backend"),
    Unservable: Row("invalid", 400, "invalid_request_error", "unservable", 422, "Validation"),
    InvalidAnswer: Row("failed", 500, "server_error", "invalid_answer", 500, "Backend"),
}


class ErrorReply(NamedTuple):
    """What goes over the wire, and what is counted."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str]
    outcome: Outcome


def describe_error(error: BaseException, protocol: Protocol) -> ErrorReply:
    """Look an error up in the table. Text of unforeseen errors stays in the log: it may hold the client's data."""
    row = find_row(error)
    message = "internal error; the server's log has it under this request id" if row is INTERNAL else str(error)
    headers = describe_headers(error)
    if protocol == "tei":
        return ErrorReply(row.tei_status, {"error": message, "error_type": row.tei_type}, headers, row.outcome)
    body = {
        "message": message,
        "type": row.openai_type,
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", row.openai_code),
    }
    if row is INTERNAL:
        body["param"], body["code"] = None, row.openai_code
    return ErrorReply(row.openai_status, {"error": body}, headers, row.outcome)


def find_row(error: BaseException) -> Row:
    """The line of the nearest class."""
    for cls in type(error).__mro__:
        if cls in ERROR_TABLE:
            return ERROR_TABLE[cls]
    return INTERNAL


def describe_headers(error: BaseException) -> dict[str, str]:
    """When to come back, or that it is no use."""
    if isinstance(error, Overloaded):
        return describe_retry(error.retry_after_s)
    if isinstance(error, EngineUnavailable):
        return describe_retry(UNAVAILABLE_RETRY_S)
    if isinstance(error, DeadlineExceeded):
        # Clients retry a 504 by themselves; a missed deadline retried is load that nobody waits for.
        return {"x-should-retry": "false"}
    if isinstance(error, MethodNotAllowed):
        return {"allow": error.allow}
    return {}


def describe_retry(retry_after_s: float) -> dict[str, str]:
    """The standard header has whole seconds; `retry-after-ms` is what openai-python looks at first."""
    bounded_s = min(max(retry_after_s, 0.001), MAX_RETRY_S)
    return {"retry-after": str(math.ceil(bounded_s)), "retry-after-ms": str(math.ceil(bounded_s * 1000))}
