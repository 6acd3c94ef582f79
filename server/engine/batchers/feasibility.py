"""Why a generation can never run with what an engine has, or cannot go on: what its client is told. Pure."""

from runtime.kv_cache.blocks import BLOCK_SIZE, count_blocks
from server.engine.batchers.scheduler import SchedulerLimits
from server.wire.job import GRAMMAR_FIELDS, EngineFailure, GenerationParams, Unservable


def check_servable(
    num_prompt_tokens: int, params: GenerationParams, limits: SchedulerLimits, num_blocks: int, max_total_tokens: int
) -> None:
    """Raises Unservable, naming what to change: it would wait for ever."""
    num_rows = max(params.num_sequences, params.beam_width)
    num_logits = num_rows + (params.num_prompt_logprobs >= 0)
    if num_rows > limits.max_batch_requests or num_logits > limits.max_batch_logits:
        raise Unservable(
            f"{num_rows} answers at a time are over what one step has room for; lower n, best_of or beam_width, or "
            f"raise limits.max_batch_requests ({limits.max_batch_requests})",
            "beam_width" if params.beam_width > params.num_sequences else "n",
        )
    last = min(num_prompt_tokens + params.max_tokens, max_total_tokens)
    own = count_blocks(num_prompt_tokens + 1) - num_prompt_tokens // BLOCK_SIZE
    needed = max(count_blocks(last), count_blocks(num_prompt_tokens + 1) + (num_rows - 1) * own)
    if needed > num_blocks:
        raise Unservable(
            f"the prompt and its answers need {needed} blocks of the KV cache, which has {num_blocks}; shorten the "
            "prompt, lower max_tokens or n, or raise engine.kv_cache.budget_mb",
            "max_tokens",
        )


def explain_no_token(params: GenerationParams) -> Exception:
    """Why no token could be chosen. Where the client forbids some, nobody can tell that from a model gone wrong."""
    field = GRAMMAR_FIELDS.get(params.grammar[0])
    field = field or ("bad_words" if params.bad_words else "logit_bias" if params.logit_bias else None)
    if field is None:
        return EngineFailure("the model computed NaN")
    return Unservable(f"{field}: what is asked for leaves no token to choose, with bad_words and logit_bias", field)
