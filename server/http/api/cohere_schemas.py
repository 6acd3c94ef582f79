"""What Cohere's answers have in common, and errors as its clients parse them: a status, and one message."""

from typing_extensions import TypedDict

from server.errors import ServiceError
from server.http.api.statuses import find_status
from server.http.route import Shape


class ApiVersion(TypedDict):
    version: str


class CohereErrorReply(TypedDict):
    message: str


def render_error(error: ServiceError) -> Shape:
    return Shape(find_status(error.kind), {"message": error.message})
