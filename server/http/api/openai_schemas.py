"""What OpenAI's routes answer, as types: the OpenAPI document describes the bodies by them."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

FinishReason = Literal["stop", "length"]


class ErrorDetails(TypedDict):
    """`param` names the field or header at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(TypedDict):
    error: ErrorDetails


class Embedding(TypedDict):
    """`embedding` is base64 of little-endian numbers where that was asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


def count_usage(num_tokens: int) -> EmbeddingUsage:
    """Of an answer that generates nothing."""
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


class EmbeddingsReply(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class PromptDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TokenLists(TypedDict):
    """Parallel lists, one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: TokenLists | None
    finish_reason: FinishReason | None
    token_ids: NotRequired[list[int]]


class CompletionReply(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    token_ids: NotRequired[list[int]]


class ChatReply(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class DurationUsage(TypedDict):
    """`seconds` of sound."""

    type: Literal["duration"]
    seconds: int


class TranscriptionReply(TypedDict):
    text: str
    usage: DurationUsage


class TranscribedSegment(TypedDict):
    """`seek`: in hundredths of a second, where the window begins that it was found in, of which the last four tell."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscribedWord(TypedDict):
    word: str
    start: float
    end: float


class VerboseTranscriptionReply(TranscriptionReply):
    """`words`: where `timestamp_granularities` has `word`."""

    task: str
    language: str
    duration: float
    segments: list[TranscribedSegment]
    words: NotRequired[list[TranscribedWord]]


class ModelCard(TypedDict):
    """OpenAI's fields, then those benchmark tools look for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int
    task: str


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelCard]


EVENT_STREAM: dict[str, Any] = {
    "text/event-stream": {
        # No type: before OpenAPI 3.2 nothing says whether it would be that of the stream or of an event.
        "schema": {
            "description": "With `stream`: chunks, each a line `data: ` and JSON; the last one is `data: [DONE]`.",
        }
    }
}
