"""Reads an answer of server-sent events as OpenAI's routes stream them: when its tokens came, and how it ended.

Pure: is told the time, and knows nothing of connections.
"""

from typing import Any, NamedTuple

import orjson

DONE = b"[DONE]"
FIELD = b"data:"


class Tokens(NamedTuple):
    """When the tokens of one answer came, on the clock of whoever read them."""

    num_tokens: int  # as the server says; as they were seen where it does not
    first_s: float
    last_s: float
    gaps_s: list[float]  # between tokens; those that came together share the wait for them
    worst_gap_s: float  # the longest wait, not shared: what a reader saw as a pause

    @property
    def mean_gap_s(self) -> float:
        """From the first token to the last, over the tokens after the first. 0 where there is one only."""
        return (self.last_s - self.first_s) / (self.num_tokens - 1) if self.num_tokens > 1 else 0.0


class TokenReader:
    """Mutable: the beginning of a line that is still to end, and what the events so far said."""

    def __init__(self) -> None:
        self._rest = b""
        self._arrivals: list[tuple[float, int]] = []
        self._usage: int | None = None
        self._error = ""
        self._is_done = False

    def feed(self, data: bytes, now_s: float) -> None:
        """Takes a piece of the body, however it was cut."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        num_tokens = sum(self._read(line[len(FIELD) :].strip()) for line in lines if line.startswith(FIELD))
        if num_tokens:
            self._arrivals.append((now_s, num_tokens))

    def _read(self, event: bytes) -> int:
        """How many tokens an event brings."""
        if event == DONE:
            self._is_done = True
            return 0
        try:
            chunk = orjson.loads(event)
        except orjson.JSONDecodeError:
            self._error = self._error or "event that is not JSON"
            return 0
        if error := chunk.get("error"):
            self._error = f"error event: {describe_error(error)}"
        if usage := chunk.get("usage"):
            self._usage = usage["completion_tokens"]
        return sum(count_tokens(choice) for choice in chunk.get("choices") or ())

    def finish(self) -> tuple[Tokens | None, str]:
        """The tokens of a whole answer; of any other none, and what is wrong with it."""
        error = self._error or ("" if self._is_done else "stream without an end")
        if not error and not self._arrivals:
            error = "stream without a token"
        return (None, error) if error else (self._build(), "")

    def _build(self) -> Tokens:
        gaps_s: list[float] = []
        worst_gap_s = 0.0
        first_s = last_s = self._arrivals[0][0]
        for now_s, num_tokens in self._arrivals[1:]:
            gaps_s += [(now_s - last_s) / num_tokens] * num_tokens
            worst_gap_s = max(worst_gap_s, now_s - last_s)
            last_s = now_s
        num_seen = sum(num_tokens for _, num_tokens in self._arrivals)
        return Tokens(num_seen if self._usage is None else self._usage, first_s, last_s, gaps_s, worst_gap_s)


def count_tokens(choice: dict[str, Any]) -> int:
    """The tokens of one choice of a chunk: its ids where the server tells them; else a piece of text is one token."""
    ids = choice.get("token_ids")
    if ids is not None:
        return len(ids)
    return int(bool(choice.get("text") or (choice.get("delta") or {}).get("content")))


def describe_error(error: Any) -> str:
    """The kind of an error in OpenAI's shape, so that equal ones are counted together; else what there is of it."""
    return (
        str(error.get("code") or error.get("type") or error.get("message")) if isinstance(error, dict) else str(error)
    )
