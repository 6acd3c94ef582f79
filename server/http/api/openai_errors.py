"""Errors as OpenAI's clients parse them; other servers of text and embeddings have taken the shape over."""

from server.errors import Kind, ServiceError
from server.http.route import Shape

INVALID = "invalid_request_error"
SHAPES: dict[Kind, tuple[int, str, str]] = {
    Kind.INVALID_BODY: (400, INVALID, "invalid_body"),
    Kind.INVALID_VALUE: (400, INVALID, "invalid_value"),
    Kind.EMPTY_INPUT: (400, INVALID, "empty_input"),
    Kind.TOO_LONG: (400, INVALID, "context_length_exceeded"),
    Kind.WRONG_TASK: (400, INVALID, "wrong_task"),
    Kind.TOKENIZER: (400, INVALID, "tokenizer_error"),
    Kind.UNSERVABLE: (400, INVALID, "unservable"),
    Kind.UNAUTHENTICATED: (401, INVALID, "invalid_api_key"),
    Kind.FORBIDDEN: (403, "permission_error", "forbidden"),
    Kind.UNKNOWN_MODEL: (404, INVALID, "model_not_found"),
    Kind.UNKNOWN_ROUTE: (404, INVALID, "unknown_url"),
    Kind.METHOD_NOT_ALLOWED: (405, INVALID, "method_not_allowed"),
    Kind.BODY_TOO_LARGE: (413, INVALID, "body_too_large"),
    Kind.UNSUPPORTED_ENCODING: (415, INVALID, "unsupported_encoding"),
    Kind.OVERLOADED: (429, "rate_limit_error", "queue_full"),
    Kind.UNAVAILABLE: (503, "service_unavailable_error", "engine_unavailable"),
    Kind.DEADLINE: (504, "timeout_error", "deadline_exceeded"),
    Kind.ENGINE_FAILURE: (500, "server_error", "engine_failure"),
    Kind.INVALID_ANSWER: (500, "server_error", "invalid_answer"),
    Kind.INTERNAL: (500, "server_error", "internal_error"),
}
"""Status, type and code; the code may be refined by the error itself."""


def render_error(error: ServiceError) -> Shape:
    status, kind, code = SHAPES[error.kind]
    code = getattr(error, "code", code)
    return Shape(status, {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}})
