"""What text-embeddings-inference's `/info` says of the model it serves: keys of our own `/info`, beside ours."""

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

from models.info import ModelInfo
from server.config import HttpConfig, SourceConfig
from server.http.state import ServedModel
from server.tasks import classify, embed, rerank

DTYPES: Mapping[str, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
POOLINGS: Mapping[str, str] = {"last": "last_token"}
"""Of other names it has the same."""


class TeiInfo(TypedDict):
    """`model_type` has one key: `embedding`, `classifier`, `reranker`, or a task that text-embeddings-inference has
    not. `model_sha`: the revision, where one is configured."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, dict[str, Any]]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int


def describe_served(model: ServedModel, http: HttpConfig) -> TeiInfo:
    limits = model.config.limits
    name, revision = name_source(model.config.source)
    return {
        "model_id": name,
        "model_sha": revision,
        "model_dtype": find_dtype(model),
        "served_model_name": model.name,
        "model_type": describe_type(model.info),
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_input_length": model.tokenizer.max_input_tokens,
        "max_batch_tokens": limits.max_batch_tokens,
        "max_batch_requests": limits.max_batch_requests,
        "max_client_batch_size": limits.max_client_batch_size,
        "auto_truncate": limits.truncation != "error",
        "tokenization_workers": http.tokenizer_threads,
    }


def name_source(source: SourceConfig) -> tuple[str, str | None]:
    """Its name, and a hub's revision."""
    if source.hub is None:
        return source.path or source.package or "", None
    name, _, revision = source.hub.partition("@")
    return name, revision or None


def find_dtype(model: ServedModel) -> str:
    """What is computed in; what is configured, as long as no engine has said."""
    infos = [status.info for status in model.engine.statuses() if status.info is not None]
    precision = infos[0].precision if infos else model.config.engine.precision
    return DTYPES.get(precision, precision)


def describe_type(info: ModelInfo) -> dict[str, dict[str, Any]]:
    if embed.TASK.can_use(info):
        return {"embedding": {"pooling": "+".join(POOLINGS.get(name, name) for name in info.pooling)}}
    is_reranker = rerank.TASK.can_use(info) and rerank.is_cross_encoder(info)
    if not is_reranker and not classify.TASK.can_use(info):
        return {info.task: {}}
    labels = {
        "id2label": {str(index): label for index, label in info.id2label.items()},
        "label2id": {label: index for index, label in info.id2label.items()},
    }
    return {"reranker" if is_reranker else "classifier": labels}
