"""text-embeddings-inference over gRPC: the services `tei.v1`. What is asked and computed is what its REST routes do.

Requests name no model: where several could answer, the metadata `model` does.
"""

from functools import partial
from time import monotonic

from server.errors import InvalidField, WrongTask
from server.http.api import tei_messages as proto
from server.http.api.tei import PredictRequest, TokenizeRequest, describe_tokens, predict_scores
from server.http.api.tei_embed import DecodeRequest, EmbedRequest, compute_vectors, decode_ids
from server.http.api.tei_embed_all import EmbedAllRequest, compute_token_rows
from server.http.api.tei_info import describe_served
from server.http.api.tei_rerank import RerankRequest, rank_texts
from server.http.api.tei_sparse import SparseRequest, compute_weights
from server.http.api.vectors import Vectors
from server.http.body import check_object
from server.http.call import Call, Reply
from server.http.docs import find_server_version
from server.http.replies import write_reply
from server.http.rpc import list_questions, list_rpcs, parse_message, reply_message
from server.http.state import ServerState
from server.tasks import classify
from server.text.tokenizer import Piece

INLINE_PIECES = 1000
"""So many are written on the event loop's thread, in some 5 ms."""


async def tell_info(call: Call, state: ServerState) -> Reply:
    """Of the first model, where none is named. Raises WrongTask for what the message has no type for."""
    model = state.find_model(find_name(call) or next(iter(state.models), ""))
    info = describe_served(model, state.config.server)
    (model_type,) = info["model_type"]
    if model_type not in proto.MODEL_TYPES:
        raise WrongTask(
            f"model {model.full_name!r} has the task {model_type}, and tei.v1.Info knows only "
            f"{', '.join(proto.MODEL_TYPES)}; ask GET /info",
            param="model",
        )
    return reply_message(
        proto.InfoResponse(
            version=find_server_version(),
            model_id=info["model_id"],
            model_sha=info["model_sha"],
            model_dtype=info["model_dtype"],
            model_type=proto.MODEL_TYPES[model_type],
            max_concurrent_requests=info["max_concurrent_requests"],
            max_input_length=info["max_input_length"],
            max_batch_tokens=info["max_batch_tokens"],
            max_batch_requests=info["max_batch_requests"],
            max_client_batch_size=info["max_client_batch_size"],
            tokenization_workers=info["tokenization_workers"],
        )
    )


async def embed_message(call: Call, state: ServerState) -> Reply:
    message = parse_message(call, state, proto.EmbedRequest)
    asked = check_object(
        EmbedRequest,
        {
            "inputs": message.inputs,
            "normalize": message.normalize is not False,
            "dimensions": message.dimensions,
            "prompt_name": message.prompt_name,
            **read_truncation(call, message),
        },
    )
    rows, _ = await compute_vectors(call, state, asked)
    return reply_message(proto.EmbedResponse(rows[0], describe_call(call, message.inputs)))


async def embed_sparse_message(call: Call, state: ServerState) -> Reply:
    message = parse_message(call, state, proto.EmbedSparseRequest)
    values = {"inputs": message.inputs, "prompt_name": message.prompt_name, **read_truncation(call, message)}
    arrays, model = await compute_weights(call, state, check_object(SparseRequest, values))
    indices, weights = arrays["indices"].row(0), arrays["weights"].row(0)
    write = partial(write_weights, indices, weights, describe_call(call, message.inputs))
    return await write_reply(write, len(weights), INLINE_PIECES, model)


def write_weights(indices: Vectors, weights: Vectors, metadata: proto.Metadata) -> Reply:
    pairs = zip(indices.tolist(), weights.tolist(), strict=True)
    return reply_message(proto.EmbedSparseResponse([proto.SparseValue(*pair) for pair in pairs], metadata))


async def embed_all_message(call: Call, state: ServerState) -> Reply:
    message = parse_message(call, state, proto.EmbedAllRequest)
    values = {"inputs": message.inputs, "prompt_name": message.prompt_name, **read_truncation(call, message)}
    rows, model = await compute_token_rows(call, state, check_object(EmbedAllRequest, values))
    write = partial(write_token_rows, rows.row(0), describe_call(call, message.inputs))
    return await write_reply(write, len(rows.row(0)), INLINE_PIECES, model)


def write_token_rows(rows: Vectors, metadata: proto.Metadata) -> Reply:
    return reply_message(proto.EmbedAllResponse(list(map(proto.TokenEmbedding, rows)), metadata))


async def predict_message(call: Call, state: ServerState) -> Reply:
    message = parse_message(call, state, proto.PredictRequest)
    return await predict_inputs(call, state, message, [message.inputs])


async def predict_pair_message(call: Call, state: ServerState) -> Reply:
    message = parse_message(call, state, proto.PredictPairRequest)
    if len(message.inputs) != 2:
        raise InvalidField(f"inputs must be two texts, not {len(message.inputs)}", param="inputs")
    return await predict_inputs(call, state, message, message.inputs)


async def predict_inputs(
    call: Call, state: ServerState, message: proto.PredictRequest | proto.PredictPairRequest, texts: list[str]
) -> Reply:
    values = {"inputs": texts, "raw_scores": message.raw_scores, **read_truncation(call, message)}
    scores, model, _ = await predict_scores(call, state, check_object(PredictRequest, values))
    (ranked,) = classify.rank_labels(scores, model.info)
    labels = [proto.Prediction(float(each["score"]), str(each["label"])) for each in ranked]
    return reply_message(proto.PredictResponse(labels, describe_call(call, *texts)))


async def rerank_message(call: Call, state: ServerState) -> Reply:
    message = parse_message(call, state, proto.RerankRequest)
    return await rank_messages(call, state, message, [message.query], message.texts)


async def rerank_stream(call: Call, state: ServerState) -> Reply:
    """Each text has its query, which may be the same; of the rest the first message counts."""
    items = parse_message(call, state, proto.RerankStream).items
    queries, texts = [item.query for item in items], [item.text for item in items]
    first = items[0] if items else proto.RerankStreamRequest()
    return await rank_messages(call, state, first, queries[:1] if len(set(queries)) == 1 else queries, texts)


async def rank_messages(
    call: Call,
    state: ServerState,
    message: proto.RerankRequest | proto.RerankStreamRequest,
    queries: list[str],
    texts: list[str],
) -> Reply:
    values = {
        "query": message.query,
        "texts": texts,
        "raw_scores": message.raw_scores,
        "return_text": message.return_text,
        **read_truncation(call, message),
    }
    ranks = await rank_texts(call, state, check_object(RerankRequest, values), queries)
    written = [proto.Rank(rank["index"], rank.get("text"), rank["score"]) for rank in ranks]
    return reply_message(proto.RerankResponse(written, describe_call(call, *queries, *texts)))


async def tokenize_message(call: Call, state: ServerState) -> Reply:
    message = parse_message(call, state, proto.EncodeRequest)
    values = {
        "inputs": message.inputs,
        "add_special_tokens": message.add_special_tokens,
        "prompt_name": message.prompt_name,
        "model": find_name(call),
    }
    texts, model = await describe_tokens(call, state, check_object(TokenizeRequest, values))
    return await write_reply(partial(write_tokens, texts[0]), len(texts[0]), INLINE_PIECES, model)


def write_tokens(pieces: list[Piece]) -> Reply:
    return reply_message(proto.EncodeResponse([proto.SimpleToken(*piece) for piece in pieces]))


async def decode_message(call: Call, state: ServerState) -> Reply:
    message = parse_message(call, state, proto.DecodeRequest)
    values = {
        "ids": message.ids.tolist(),
        "skip_special_tokens": message.skip_special_tokens,
        "model": find_name(call),
    }
    (text,) = await decode_ids(call, state, check_object(DecodeRequest, values))
    return reply_message(proto.DecodeResponse(text))


Truncating = (
    proto.EmbedRequest
    | proto.EmbedSparseRequest
    | proto.EmbedAllRequest
    | proto.PredictRequest
    | proto.PredictPairRequest
    | proto.RerankRequest
    | proto.RerankStreamRequest
)


def read_truncation(call: Call, message: Truncating) -> dict[str, str | bool | None]:
    """What requests share, and the model. Raises InvalidField."""
    direction = proto.DIRECTIONS.get(message.truncation_direction)
    if direction is None:
        raise InvalidField(
            f"truncation_direction must be 0 (right) or 1 (left), not {message.truncation_direction}",
            param="truncation_direction",
        )
    return {"truncate": message.truncate, "truncation_direction": direction, "model": find_name(call)}


def find_name(call: Call) -> str | None:
    """The model that the metadata name."""
    return call.header(b"model")


def describe_call(call: Call, *texts: str) -> proto.Metadata:
    times = call.times
    spent = (monotonic() - call.start_s, times.tokenize_s or 0.0, times.queue_s or 0.0, times.engine_s or 0.0)
    return proto.Metadata(sum(map(len, texts)), times.num_tokens, *(round(each * 1e9) for each in spent))


EMBEDDING = {"Embed": embed_message, "EmbedSparse": embed_sparse_message, "EmbedAll": embed_all_message}
EMBED, PREDICT, TOKENIZE = "tei.v1.Embed", "tei.v1.Predict", "tei.v1.Tokenize"
RPCS = (
    *list_questions("tei.v1.Info", {"Info": tell_info}),
    *list_rpcs(EMBED, EMBEDDING),
    *list_rpcs(EMBED, {f"{name}Stream": answer for name, answer in EMBEDDING.items()}, "each"),
    *list_rpcs(PREDICT, {"Predict": predict_message, "PredictPair": predict_pair_message}),
    *list_rpcs(PREDICT, {"PredictStream": predict_message, "PredictPairStream": predict_pair_message}, "each"),
    *list_rpcs("tei.v1.Rerank", {"Rerank": rerank_message}),
    *list_rpcs("tei.v1.Rerank", {"RerankStream": rerank_stream}, "all"),
    *list_rpcs(TOKENIZE, {"Tokenize": tokenize_message, "Decode": decode_message}),
    *list_rpcs(TOKENIZE, {"TokenizeStream": tokenize_message, "DecodeStream": decode_message}, "each"),
)
