"""Errors as Cohere's clients parse them: a status, and one message."""

from typing_extensions import TypedDict

from server.errors import Kind, ServiceError
from server.http.route import Shape

STATUSES: dict[Kind, int] = {
    Kind.UNAUTHENTICATED: 401,
    Kind.FORBIDDEN: 403,
    Kind.UNKNOWN_MODEL: 404,
    Kind.UNKNOWN_ROUTE: 404,
    Kind.METHOD_NOT_ALLOWED: 405,
    Kind.BODY_TOO_LARGE: 413,
    Kind.UNSUPPORTED_ENCODING: 415,
    Kind.OVERLOADED: 429,
    Kind.UNAVAILABLE: 503,
    Kind.DEADLINE: 504,
    Kind.ENGINE_FAILURE: 500,
    Kind.INVALID_ANSWER: 500,
    Kind.INTERNAL: 500,
}
"""Of other kinds 400."""


class CohereErrorReply(TypedDict):
    message: str


def render_error(error: ServiceError) -> Shape:
    return Shape(STATUSES.get(error.kind, 400), {"message": error.message})
