"""The messages of text-embeddings-inference's services `tei.v1`: numbers and names are the protocol's."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.http.protobuf import (
    BOOL,
    ENUM,
    FLOAT,
    STRING,
    UINT32,
    UINT64,
    Message,
    Numbers,
    optional,
    repeated,
    scalar,
)

DIRECTIONS = {0: "right", 1: "left"}
"""Of truncation."""
MODEL_TYPES = {"embedding": 0, "classifier": 1, "reranker": 2}


@dataclass(slots=True, eq=False)
class InfoResponse(Message):
    version: str = scalar(1, STRING)
    model_id: str = scalar(4, STRING)
    model_sha: str | None = optional(5, STRING)
    model_dtype: str = scalar(6, STRING)
    model_type: int = scalar(7, ENUM)
    max_concurrent_requests: int = scalar(8, UINT32)
    max_input_length: int = scalar(9, UINT32)
    max_batch_tokens: int = scalar(10, UINT32)
    max_batch_requests: int | None = optional(11, UINT32)
    max_client_batch_size: int = scalar(12, UINT32)
    tokenization_workers: int = scalar(13, UINT32)


@dataclass(slots=True, eq=False)
class Metadata(Message):
    """What a call has cost."""

    compute_chars: int = scalar(1, UINT32)
    compute_tokens: int = scalar(2, UINT32)
    total_time_ns: int = scalar(3, UINT64)
    tokenization_time_ns: int = scalar(4, UINT64)
    queue_time_ns: int = scalar(5, UINT64)
    inference_time_ns: int = scalar(6, UINT64)


@dataclass(slots=True, eq=False)
class EmbedRequest(Message):
    inputs: str = scalar(1, STRING)
    truncate: bool = scalar(2, BOOL)
    normalize: bool | None = optional(3, BOOL)
    truncation_direction: int = scalar(4, ENUM)
    prompt_name: str | None = optional(5, STRING)
    dimensions: int | None = optional(6, UINT32)


@dataclass(slots=True, eq=False)
class EmbedResponse(Message):
    embeddings: Numbers = repeated(1, FLOAT)
    metadata: Metadata | None = optional(2, Metadata)


@dataclass(slots=True, eq=False)
class EmbedSparseRequest(Message):
    inputs: str = scalar(1, STRING)
    truncate: bool = scalar(2, BOOL)
    truncation_direction: int = scalar(3, ENUM)
    prompt_name: str | None = optional(4, STRING)


@dataclass(slots=True, eq=False)
class SparseValue(Message):
    index: int = scalar(1, UINT32)
    value: float = scalar(2, FLOAT)


@dataclass(slots=True, eq=False)
class EmbedSparseResponse(Message):
    sparse_embeddings: list[SparseValue] = repeated(1, SparseValue)
    metadata: Metadata | None = optional(2, Metadata)


@dataclass(slots=True, eq=False)
class EmbedAllRequest(Message):
    inputs: str = scalar(1, STRING)
    truncate: bool = scalar(2, BOOL)
    truncation_direction: int = scalar(3, ENUM)
    prompt_name: str | None = optional(4, STRING)


@dataclass(slots=True, eq=False)
class TokenEmbedding(Message):
    embeddings: Numbers = repeated(1, FLOAT)


@dataclass(slots=True, eq=False)
class EmbedAllResponse(Message):
    token_embeddings: list[TokenEmbedding] = repeated(1, TokenEmbedding)
    metadata: Metadata | None = optional(2, Metadata)


@dataclass(slots=True, eq=False)
class PredictRequest(Message):
    inputs: str = scalar(1, STRING)
    truncate: bool = scalar(2, BOOL)
    raw_scores: bool = scalar(3, BOOL)
    truncation_direction: int = scalar(4, ENUM)


@dataclass(slots=True, eq=False)
class PredictPairRequest(Message):
    inputs: list[str] = repeated(1, STRING)
    truncate: bool = scalar(2, BOOL)
    raw_scores: bool = scalar(3, BOOL)
    truncation_direction: int = scalar(4, ENUM)


@dataclass(slots=True, eq=False)
class Prediction(Message):
    score: float = scalar(1, FLOAT)
    label: str = scalar(2, STRING)


@dataclass(slots=True, eq=False)
class PredictResponse(Message):
    predictions: Sequence[Prediction] = repeated(1, Prediction)
    metadata: Metadata | None = optional(2, Metadata)


@dataclass(slots=True, eq=False)
class RerankRequest(Message):
    query: str = scalar(1, STRING)
    texts: list[str] = repeated(2, STRING)
    truncate: bool = scalar(3, BOOL)
    raw_scores: bool = scalar(4, BOOL)
    return_text: bool = scalar(5, BOOL)
    truncation_direction: int = scalar(6, ENUM)


@dataclass(slots=True, eq=False)
class RerankStreamRequest(Message):
    query: str = scalar(1, STRING)
    text: str = scalar(2, STRING)
    truncate: bool = scalar(3, BOOL)
    raw_scores: bool = scalar(4, BOOL)
    return_text: bool = scalar(5, BOOL)
    truncation_direction: int = scalar(6, ENUM)


@dataclass(slots=True, eq=False)
class RerankStream(Message):
    """The messages of a stream as one: see `rpc.join_messages`."""

    items: list[RerankStreamRequest] = repeated(1, RerankStreamRequest)


@dataclass(slots=True, eq=False)
class Rank(Message):
    index: int = scalar(1, UINT32)
    text: str | None = optional(2, STRING)
    score: float = scalar(3, FLOAT)


@dataclass(slots=True, eq=False)
class RerankResponse(Message):
    ranks: list[Rank] = repeated(1, Rank)
    metadata: Metadata | None = optional(2, Metadata)


@dataclass(slots=True, eq=False)
class EncodeRequest(Message):
    inputs: str = scalar(1, STRING)
    add_special_tokens: bool = scalar(2, BOOL)
    prompt_name: str | None = optional(3, STRING)


@dataclass(slots=True, eq=False)
class SimpleToken(Message):
    id: int = scalar(1, UINT32)
    text: str = scalar(2, STRING)
    special: bool = scalar(3, BOOL)
    start: int | None = optional(4, UINT32)
    stop: int | None = optional(5, UINT32)


@dataclass(slots=True, eq=False)
class EncodeResponse(Message):
    tokens: list[SimpleToken] = repeated(1, SimpleToken)


@dataclass(slots=True, eq=False)
class DecodeRequest(Message):
    ids: Numbers = repeated(1, UINT32)
    skip_special_tokens: bool = scalar(2, BOOL)


@dataclass(slots=True, eq=False)
class DecodeResponse(Message):
    text: str = scalar(1, STRING)
