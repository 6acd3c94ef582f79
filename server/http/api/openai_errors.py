"""Errors as OpenAI's clients parse them; other servers of text and embeddings have taken the shape over."""

from server.errors import Kind, ServiceError
from server.http.api.statuses import find_status
from server.http.route import Shape

INVALID = "invalid_request_error"
SHAPES: dict[Kind, tuple[str, str]] = {
    Kind.INVALID_BODY: (INVALID, "invalid_body"),
    Kind.INVALID_VALUE: (INVALID, "invalid_value"),
    Kind.EMPTY_INPUT: (INVALID, "empty_input"),
    Kind.TOO_LONG: (INVALID, "context_length_exceeded"),
    Kind.WRONG_TASK: (INVALID, "wrong_task"),
    Kind.TOKENIZER: (INVALID, "tokenizer_error"),
    Kind.UNSERVABLE: (INVALID, "unservable"),
    Kind.UNAUTHENTICATED: (INVALID, "invalid_api_key"),
    Kind.FORBIDDEN: ("permission_error", "forbidden"),
    Kind.UNKNOWN_MODEL: (INVALID, "model_not_found"),
    Kind.UNKNOWN_ROUTE: (INVALID, "unknown_url"),
    Kind.METHOD_NOT_ALLOWED: (INVALID, "method_not_allowed"),
    Kind.BODY_TOO_LARGE: (INVALID, "body_too_large"),
    Kind.UNSUPPORTED_ENCODING: (INVALID, "unsupported_encoding"),
    Kind.OVERLOADED: ("rate_limit_error", "queue_full"),
    Kind.UNAVAILABLE: ("service_unavailable_error", "engine_unavailable"),
    Kind.DEADLINE: ("timeout_error", "deadline_exceeded"),
    Kind.ENGINE_FAILURE: ("server_error", "engine_failure"),
    Kind.INVALID_ANSWER: ("server_error", "invalid_answer"),
    Kind.INTERNAL: ("server_error", "internal_error"),
}
"""Type and code; the code may be refined by the error itself."""


def render_error(error: ServiceError) -> Shape:
    kind, code = SHAPES[error.kind]
    code = getattr(error, "code", code)
    return Shape(
        find_status(error.kind), {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}
    )
