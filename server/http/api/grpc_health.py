"""gRPC's own health check, `grpc.health.v1.Health`, as Kubernetes' probes, load balancers and gRPC's clients ask it.
Nobody needs a key for it. Readiness is `/ready`'s: of every model, whatever service is named."""

from dataclasses import dataclass

from server.http.api.health import find_problems
from server.http.call import Call, Reply
from server.http.protobuf import ENUM, Message, scalar
from server.http.rpc import list_questions, reply_message
from server.http.state import ServerState

SERVICE = "grpc.health.v1.Health"
SERVING, NOT_SERVING = 1, 2


@dataclass(slots=True, eq=False)
class HealthCheckResponse(Message):
    status: int = scalar(1, ENUM)


async def check_health(call: Call, state: ServerState) -> Reply:
    return reply_message(HealthCheckResponse(find_status(state)))


def find_status(state: ServerState) -> int:
    return NOT_SERVING if find_problems(state) else SERVING


RPCS = (
    *list_questions(SERVICE, {"Check": check_health}, is_open=True),
    *list_questions(SERVICE, {"Watch": check_health}, is_open=True, watch=find_status),
)
