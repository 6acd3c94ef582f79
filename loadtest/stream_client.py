"""A connection of the load client whose answers are streams of tokens: it notes when each piece came."""

import asyncio

from loadtest.client import Answer, Connection, Done
from loadtest.token_stream import TokenReader


class StreamConnection(Connection):
    """Mutable as a `Connection` is, and by what has been read of the stream."""

    def __init__(self, idle: list[Connection], alive: set[Connection]) -> None:
        super().__init__(idle, alive)
        self._clock = asyncio.get_running_loop().time
        self._reader = TokenReader()

    def send(self, request: bytes, done: Done) -> None:
        self._reader = TokenReader()
        super().send(request, done)

    def on_body(self, data: bytes) -> None:
        self._reader.feed(data, self._clock())

    def _build_answer(self) -> Answer:
        answer = super()._build_answer()
        if not answer.is_success:
            return answer
        tokens, error = self._reader.finish()
        return answer._replace(tokens=tokens, error=error)
