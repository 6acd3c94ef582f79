"""Logprobs in OpenAI's two shapes: parallel lists for completions, objects for chat."""

from collections.abc import Sequence
from typing import Any

from server.text.detokenizer import TokenTexts
from server.text.text_stream import TokenNews
from server.wire.generation import TokenLogprob

LEAST_LOGPROB = -9999.0
"""JSON has no infinity; what OpenAI documents for the very unlikely."""


def bound(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def format_lists(tokens: Sequence[TokenNews], texts: TokenTexts, *, first_offset: int = 0) -> dict[str, Any]:
    """Of completions. `first_offset`: where in the choice's text the answer begins. A prompt's first token has null."""
    return {
        "tokens": [texts.name(token.token_id) for token in tokens],
        "token_logprobs": [None if token.logprob is None else bound(token.logprob.logprob) for token in tokens],
        "top_logprobs": [
            None if token.logprob is None else map_names(token.token_id, token.logprob, texts) for token in tokens
        ],
        "text_offset": [first_offset + token.offset for token in tokens],
    }


def map_names(token_id: int, found: TokenLogprob, texts: TokenTexts) -> dict[str, float]:
    """The most probable tokens, and the token itself at last if it is none of them.

    Different tokens may have one name; the more probable keeps it, so that the largest number is the true one: by that
    lm-evaluation-harness tells whether a token is the greedy choice.
    """
    names: dict[str, float] = {}
    for other, logprob in (*found.top, (token_id, found.logprob)):
        names.setdefault(texts.name(other), bound(logprob))
    return names


def format_objects(tokens: Sequence[TokenNews], texts: TokenTexts) -> dict[str, Any]:
    """Of chats."""
    content = []
    for token in tokens:
        if token.logprob is not None:
            top = [describe(other, logprob, texts) for other, logprob in token.logprob.top]
            content.append(describe(token.token_id, token.logprob.logprob, texts) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def describe(token_id: int, logprob: float, texts: TokenTexts) -> dict[str, Any]:
    """Bytes, because a token may be a part of a character."""
    return {"token": texts.name(token_id), "logprob": bound(logprob), "bytes": list(texts.find_bytes(token_id))}
