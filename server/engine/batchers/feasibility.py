"""Why a generation can never run with what an engine has, or cannot go on: what its client is told. Pure.

Errors name the field of `GenerationParams`, or a processor's; each protocol knows what its clients call that.
"""

from runtime.kv_cache.blocks import BLOCK_SIZE, count_blocks
from server.engine.batchers.batcher import StepLimits
from server.errors import EngineFailure, ServiceError, Unservable
from server.wire.generation import GenerationParams
from server.wire.processors import BadWords, LogitBias, NoRepeatNgrams, Processor

FIELDS: dict[type[Processor], str] = {
    BadWords: "bad_words",
    LogitBias: "logit_bias",
    NoRepeatNgrams: "no_repeat_ngram_size",
}
"""What clients call processors that may forbid every token."""


def check_feasible(
    num_prompt_tokens: int,
    params: GenerationParams,
    limits: StepLimits,
    num_blocks: int,
    max_total_tokens: int,
    num_source_tokens: int = 0,
) -> None:
    """Raises Unservable, naming what to change: it would wait for ever."""
    num_rows = params.num_rows
    num_logits = num_rows + params.asks_about_prompt
    most = min(limits.max_batch_requests, limits.max_batch_logits - params.asks_about_prompt)
    if num_rows > limits.max_batch_requests or num_logits > limits.max_batch_logits:
        raise Unservable(
            f"{num_rows} answers at a time are over what this server computes together, which is {most}; ask for fewer",
            "beam_width" if params.beam_width > params.num_sequences else "num_sequences",
        )
    last = min(num_prompt_tokens + params.max_tokens, max_total_tokens)
    own = count_blocks(num_prompt_tokens + 1) - num_prompt_tokens // BLOCK_SIZE
    needed = max(count_blocks(last), count_blocks(num_prompt_tokens + 1) + (num_rows - 1) * own)
    needed += count_blocks(num_source_tokens)
    if needed > num_blocks:
        raise Unservable(
            f"the prompt and its answers need room for {needed * BLOCK_SIZE} tokens, and this server has room for "
            f"{num_blocks * BLOCK_SIZE}; shorten the prompt, or ask for shorter or fewer answers",
            "max_tokens",
        )


def explain_no_token(params: GenerationParams) -> ServiceError:
    """Why no token could be chosen. Where the client forbids some, nobody can tell that from a model gone wrong."""
    forbidding = [FIELDS[type(each)] for each in params.processors if type(each) in FIELDS]
    param = "grammar" if params.grammar[0] else next(iter(forbidding), None)
    if param is None:
        return EngineFailure("the model computed NaN")
    return Unservable("what is asked for leaves no token to choose", param)
