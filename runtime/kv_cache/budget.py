"""How many blocks the KV cache gets: what a budget leaves after weights, the planned peak of activations and what is
kept beside them."""

from runtime.config import UnusableConfig
from runtime.kv_cache.blocks import count_blocks


def plan_blocks(
    budget_mb: float | None,
    *,
    block_bytes: int,
    weight_bytes: int,
    activation_bytes: int,
    max_sequences: int,
    max_input_tokens: int,
    max_source_tokens: int = 0,
    graph_bytes: int = 0,
    counter_bytes: int = 0,
) -> int:
    """Blocks, the scratch block included. Without a budget as many as all sequences could use; with one at most.

    Raises UnusableConfig where not even one sequence of `max_input_tokens` has room, with its source.
    """
    most_blocks = count_blocks(max_input_tokens) + count_blocks(max_source_tokens)
    useful, least = max_sequences * most_blocks + 1, most_blocks + 1
    if budget_mb is None:
        return useful
    taken_bytes = weight_bytes + activation_bytes + graph_bytes + counter_bytes
    left = int(budget_mb * 2**20) - taken_bytes
    fitting = left // block_bytes
    if fitting < least:
        lowered = "limits.max_input_tokens, limits.max_batch_tokens or limits.max_batch_requests"
        others = "kv_cache.dtype to int8" + (" or engine.kind to planned" if graph_bytes else "")
        raise UnusableConfig(
            f"engine: of a budget of {budget_mb:.1f} MB {max(left, 0) / 2**20:.1f} MB are left for the KV cache beside "
            f"{taken_bytes / 2**20:.1f} MB of weights, activations and what is kept beside them, but one sequence of "
            f"{max_input_tokens} tokens needs {least * block_bytes / 2**20:.1f} MB. Raise kv_cache.budget_mb, lower "
            f"{lowered}, or set {others}"
        )
    return min(useful, fitting)
