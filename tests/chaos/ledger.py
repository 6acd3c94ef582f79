"""Who asked what, and what became of it: nothing that was accepted may be lost."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.chaos.exchange import Answer, exchange, write_request
from tests.chaos.servers import WORDS, ChaosServer

PATIENCE_S = 30.0
"""How long an answer may take before it counts as lost."""
DRAIN_S = 20.0
PROMPT = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}


def expect_row(words: str) -> list[float]:
    """What the null engine says to a text: its length, its first and last token, their sum."""
    ids = [WORDS.index(word) for word in words.split()]
    return [len(ids), ids[0], ids[-1], sum(ids)]


@dataclass
class Ledger:
    """Of one scenario. A request is answered as it should be, refused with a status of `refusals`, or lost.

    `has_retries`: a broken connection is tried again, once, as clients do. Mutable: the counts.
    """

    server: ChaosServer
    scenario: str
    refusals: frozenset[int] = frozenset()
    has_retries: bool = False
    ends: bool = False
    """The server is ending: who is not let in any more is `unheard`. That it was so, the server's log has to show."""
    sent: int = 0
    answered: int = 0
    refused: int = 0
    unheard: int = 0
    retried: int = 0
    interrupted: int = 0
    """Streams that had begun: they cannot be computed again."""
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = [f"{name} {count}" for name in ("retried", "interrupted", "unheard") if (count := getattr(self, name))]
        counts = [f"sent {self.sent}", f"answered {self.answered}", f"refused {self.refused}", f"lost {len(self.lost)}"]
        return f"{self.scenario}: {', '.join(counts + more)}"

    async def post(self, path: str, body: object, *headers: str) -> Answer | None:
        """None: no answer came."""
        self.sent += 1
        for is_last in (not self.has_retries, True):
            try:
                async with asyncio.timeout(PATIENCE_S):
                    return await exchange(self.server.port, write_request(path, body, *headers))
            except (OSError, EOFError, TimeoutError) as error:
                if self.ends and was_unheard(error):
                    self.unheard += 1
                    return None
                if is_last:
                    self.lost.append(repr(error))
                    return None
                self.retried += 1
                await asyncio.sleep(0.2)
        raise AssertionError("The last try returns. This is a bug.")

    async def embed(self, words: str) -> None:
        answer = await self.post("/v1/embeddings", {"input": words})
        if answer is None:
            return
        if answer.status == 200 and json.loads(answer.body)["data"][0]["embedding"] == expect_row(words):
            self.answered += 1
        elif answer.status in self.refusals:
            self.refused += 1
        else:
            self.lost.append(f"{answer.status} {answer.body!r}")

    async def expect(self, status: int, words: str, path: str, body: object, *headers: str) -> None:
        """A request that must be refused so, in those words."""
        answer = await self.post(path, body, *headers)
        assert answer is not None
        assert answer.status == status and words in answer.body.decode(), answer
        self.refused += 1

    async def generate(self, story: str) -> None:
        """As a stream, to know whether anything had been told."""
        answer = await self.post("/v1/completions", PROMPT | {"stream": True})
        if answer is None:
            return
        told = [json.loads(event) for event in answer.events if event.startswith('{"id"')]
        text = "".join(choice["text"] for chunk in told for choice in chunk["choices"])
        if answer.events[-1:] == ["[DONE]"] and text == story:
            self.answered += 1
        elif told:
            self.interrupted += 1
        else:
            self.lost.append(f"{answer.status} {answer.body!r}")

    async def generate_whole(self, story: str) -> None:
        """Not as a stream: until it is all there, nothing has been told."""
        answer = await self.post("/v1/completions", PROMPT)
        if answer is None:
            return
        if answer.status == 200 and json.loads(answer.body)["choices"][0]["text"] == story:
            self.answered += 1
        else:
            self.lost.append(f"{answer.status} {answer.body!r}")

    async def embed_many(self) -> None:
        """A call that takes many steps."""
        texts = [f"word{index % 50} word{index % 7}" for index in range(48)]
        answer = await self.post("/v1/embeddings", {"input": texts})
        if answer is None:
            return
        rows = [item["embedding"] for item in json.loads(answer.body).get("data", [])]
        if rows == [expect_row(text) for text in texts]:
            self.answered += 1
        else:
            self.lost.append(f"{answer.status} {answer.body!r}")

    async def repeat(self, seconds: float, send: Callable[[], Awaitable[None]]) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            await send()

    async def embed_steadily(self, seconds: float, *, num_clients: int = 16) -> None:
        """Each client sends its next text when it has the last one's answer."""
        until_s = time.monotonic() + seconds

        async def send(index: int) -> None:
            number = index
            while time.monotonic() < until_s:
                await self.embed(f"word{number % 50} word{index}")
                number += 7

        await asyncio.gather(*(send(index) for index in range(num_clients)))

    async def generate_steadily(self, seconds: float, story: str, *, num_clients: int = 4) -> None:
        until_s = time.monotonic() + seconds

        async def send() -> None:
            while time.monotonic() < until_s:
                await self.generate(story)

        await asyncio.gather(*(send() for _ in range(num_clients)))

    def close(self) -> None:
        """Print what happened; nothing is lost, all is counted, and the server is as it was before."""
        print(self)
        assert self.lost == [], self
        assert self.sent == self.answered + self.refused + self.interrupted, self
        check_conserved(self.server)


def was_unheard(error: Exception) -> bool:
    """Refused, or closed before the server had read a byte: then it has not said one either. By its reset or by its
    end, as the request was on its way or not yet."""
    if isinstance(error, asyncio.IncompleteReadError):
        return not error.partial
    return isinstance(error, ConnectionRefusedError | ConnectionResetError)


def check_conserved(server: ChaosServer) -> None:
    """Every place, queue and block is free again, in a moment. That free and used blocks are all there are an idle
    engine's own books say (`Batcher.check_books`), which crash its loop if they are wrong."""
    zeros = (
        *("padless_admitted_inputs", "padless_admitted_tokens", "padless_queue_tokens"),
        *("padless_running_requests", "padless_waiting_requests", "padless_kv_blocks_used"),
    )
    until_s = time.monotonic() + DRAIN_S
    while held := {name: total for name in zeros if (total := server.sum_metric(name))}:
        assert time.monotonic() < until_s, held
        time.sleep(0.1)
    assert server.sum_metric("padless_kv_blocks") > 0 or not server.has_generator
    assert "This is a bug" not in server.log
    assert "crashed" not in server.log or not server.has_generator
