"""The blocks encoders are made of, over packed tensors: `hidden_states` is [num_tokens, hidden_size] everywhere."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import EncoderConfig
from runtime.ops import varlen_attention

ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


NOT_BY_DISTANCE = ("absolute", "alibi")
"""Values of `EncoderConfig.positions` with which attention has no table of its own."""


class Sequences(NamedTuple):
    """Where the sequences of a batch lie, see `Batch`. `num_keys`: int32 [num_seqs], how many tokens of each, from its
    first on, are attended to; None: all. `adapter_ids` are of their tokens."""

    cu_seqlens: Tensor
    max_seqlen: int
    num_keys: Tensor | None = None
    adapter_ids: Tensor | None = None


class SelfAttention(nn.Module):
    """Each sequence attends to itself; `bias` is by distance, see `padless::varlen_attention`."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.shape = (-1, config.num_heads, config.head_dim)
        self.softmax_scale = config.head_dim**-0.5
        self.distance = None if config.positions in NOT_BY_DISTANCE else DistanceTable(config)
        self.q = nn.Linear(config.hidden_size, config.hidden_size)
        self.k = nn.Linear(config.hidden_size, config.hidden_size)
        self.v = nn.Linear(config.hidden_size, config.hidden_size)
        self.o = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, sequences: Sequences, bias: Tensor | None) -> Tensor:
        q, k, v = (linear(hidden_states).view(self.shape) for linear in (self.q, self.k, self.v))
        borders, longest = sequences.cu_seqlens, sequences.max_seqlen
        attended = varlen_attention.OP(
            *(q, k, v, borders, borders, longest, longest, self.softmax_scale),
            bias=bias,
            num_keys=sequences.num_keys,
            **({} if self.distance is None else self.distance()),
        )
        return self.o(attended.flatten(1))


class DistanceTable(nn.Module):
    """A row for each distance, the same for all heads: queries are multiplied with it (Shaw et al., 2018), and in
    `relative_key_query` keys too (Huang et al., 2020)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        num_rows = 2 * config.max_position_embeddings - 1
        self.rows = nn.Embedding(num_rows, config.head_dim)
        self.has_keys = config.positions == "relative_key_query"
        # Rows go by the query's position less the key's, and buckets by the key's less the query's.
        # On the CPU whatever the default device is: models are built on `meta`, and no checkpoint fills this.
        buckets = torch.arange(num_rows - 1, -1, -1, dtype=torch.int32, device="cpu")
        self.register_buffer("buckets", buckets, persistent=False)

    def forward(self) -> dict[str, Tensor]:
        """What `padless::varlen_attention` takes of distances."""
        table = self.rows.weight.unsqueeze(1)
        by_key = {"position_q": table} if self.has_keys else {}
        return {"position_k": table, "buckets": self.get_buffer("buckets")} | by_key


class FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.activation]
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down(self.activation(self.up(hidden_states)))


class EncoderLayer(nn.Module):
    """Post-LN: each of the two blocks is added to its input, then normalised."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, hidden_states: Tensor, sequences: Sequences, bias: Tensor | None = None) -> Tensor:
        attended = self.attention(hidden_states, sequences, bias)
        hidden_states = self.attention_norm(attended + hidden_states)
        return self.feed_forward_norm(self.feed_forward(hidden_states) + hidden_states)


class Encoder(nn.Module):
    """A stack of layers, each with its own weights."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))

    def forward(self, hidden_states: Tensor, sequences: Sequences, bias: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, sequences, bias)
        return hidden_states


class Embeddings(nn.Module):
    """Sum of word, position, token-type and task-type rows, normalised: [num_tokens, embedding_size].

    Without token types where `type_vocab_size` is 0, without task types where `task_type_vocab_size` is, and without
    positions where attention has them. `norm`: in place of the usual one.
    """

    def __init__(self, config: EncoderConfig, norm: nn.Module | None = None):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.embedding_size)
        is_absolute, num_positions = config.positions == "absolute", config.max_position_embeddings
        self.position = nn.Embedding(num_positions, config.embedding_size) if is_absolute else None
        has_types, has_tasks = config.type_vocab_size > 0, config.task_type_vocab_size > 0
        self.token_type = nn.Embedding(config.type_vocab_size, config.embedding_size) if has_types else None
        self.task_type = nn.Embedding(config.task_type_vocab_size, config.embedding_size) if has_tasks else None
        self.norm = norm or nn.LayerNorm(config.embedding_size, config.norm_eps)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        rows = self.word(input_ids)
        if self.token_type is not None:
            rows = rows + self.token_type(token_type_ids)
        if self.task_type is not None:
            rows = rows + self.task_type.weight[0]
        if self.position is not None:
            rows = rows + self.position(position_ids)
        return self.norm(rows)


def offset_positions(input_ids: Tensor, position_ids: Tensor, pad_token_id: int) -> Tensor:
    """RoBERTa's positions, [num_tokens]: count the tokens of a sequence that are not padding, from pad_token_id + 1.

    A padding id inside a request shifts those after it, and itself gets pad_token_id, as in fairseq and HF.
    """
    is_token = input_ids.ne(pad_token_id).long()
    counted = is_token.cumsum(0)
    first = torch.arange(input_ids.shape[0], device=input_ids.device) - position_ids
    before = (counted - is_token).index_select(0, first)
    return (counted - before) * is_token + pad_token_id
