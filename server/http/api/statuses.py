"""The status of an error, by its kind, in every protocol that has not its own."""

from collections.abc import Mapping

from server.errors import Kind

STATUSES: Mapping[Kind, int] = {
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


def find_status(kind: Kind) -> int:
    """Of other kinds 400: the request is wrong."""
    return STATUSES.get(kind, 400)
