"""Every error a client can see, by its kind. What a kind looks like to a client is the business of each protocol.

* Exception
  x ServiceError              carries the message for the client and the field it is about
    + InvalidBody             not JSON, not an object, undecodable
    + InvalidField            a field or header has the wrong type or value
      - EmptyInput            nothing to compute
      - InputTooLong          over the model's limit, and truncation was not asked for
      - WrongTask             the model does something else
      - TokenizerFailure      the tokenizer cannot digest the text
      - Unservable            right in itself, but what is here can never do it
    + Unauthenticated         no key, or one that is not known
    + Forbidden               the key may not do this
    + UnknownModel
    + UnknownRoute
    + MethodNotAllowed
    + BodyTooLarge
    + UnsupportedEncoding     of the body: compressed in an unknown way, or no JSON
    + Overloaded              also says when to come back
    + EngineUnavailable       starting, dead or draining: the client may try again
    + DeadlineExceeded        the deadline passed before the answer was there
    + EngineFailure           the step that held this job failed
    + InvalidAnswer           the engine computed something that is no number

Anything else is a bug: the client gets a 500 that says no more than that.
"""

from enum import StrEnum
from typing import ClassVar


class Kind(StrEnum):
    """What went wrong, as protocols and metrics tell errors apart, and as it crosses from the engine."""

    INVALID_BODY = "invalid_body"
    INVALID_VALUE = "invalid_value"
    EMPTY_INPUT = "empty_input"
    TOO_LONG = "too_long"
    WRONG_TASK = "wrong_task"
    TOKENIZER = "tokenizer"
    UNSERVABLE = "unservable"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_ROUTE = "unknown_route"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    ENGINE_FAILURE = "engine_failure"
    INVALID_ANSWER = "invalid_answer"
    INTERNAL = "internal"


class ServiceError(Exception):
    """`param` names the field or header at fault."""

    kind: ClassVar[Kind] = Kind.INTERNAL

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidBody(ServiceError):
    kind = Kind.INVALID_BODY


class InvalidField(ServiceError):
    kind = Kind.INVALID_VALUE


class EmptyInput(InvalidField):
    kind = Kind.EMPTY_INPUT


class InputTooLong(InvalidField):
    kind = Kind.TOO_LONG


class WrongTask(InvalidField):
    kind = Kind.WRONG_TASK


class TokenizerFailure(InvalidField):
    kind = Kind.TOKENIZER


class Unservable(InvalidField):
    kind = Kind.UNSERVABLE


class Unauthenticated(ServiceError):
    kind = Kind.UNAUTHENTICATED


class Forbidden(ServiceError):
    kind = Kind.FORBIDDEN


class UnknownModel(ServiceError):
    kind = Kind.UNKNOWN_MODEL


class UnknownRoute(ServiceError):
    kind = Kind.UNKNOWN_ROUTE


class MethodNotAllowed(ServiceError):
    """`allow`: the methods there are, for the header of that name."""

    kind = Kind.METHOD_NOT_ALLOWED

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTooLarge(ServiceError):
    kind = Kind.BODY_TOO_LARGE


class UnsupportedEncoding(ServiceError):
    kind = Kind.UNSUPPORTED_ENCODING


class Overloaded(ServiceError):
    """`retry_after_s`: when a place is likely to be free. `code` tells a full queue from a deadline out of reach."""

    kind = Kind.OVERLOADED

    def __init__(self, message: str, *, retry_after_s: float, code: str = "queue_full") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.code = code


class EngineUnavailable(ServiceError):
    kind = Kind.UNAVAILABLE


class DeadlineExceeded(ServiceError):
    kind = Kind.DEADLINE


class EngineFailure(ServiceError):
    kind = Kind.ENGINE_FAILURE


class InvalidAnswer(ServiceError):
    kind = Kind.INVALID_ANSWER


ENGINE_ERRORS: dict[str, type[ServiceError]] = {
    error.kind: error
    for error in (InvalidField, Unservable, EngineUnavailable, DeadlineExceeded, EngineFailure, InvalidAnswer)
}
"""Those that an engine may tell."""


def make_error(kind: str, message: str, param: str | None) -> ServiceError:
    """What an engine has told; of a kind that is none of its own, a failure."""
    return ENGINE_ERRORS.get(kind, EngineFailure)(message, param)
