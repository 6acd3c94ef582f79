"""Decoders that read: embedders, classifiers and judges whose trunk is a language model, as Qwen3-Embedding.

A text goes through the model once, like an encoder's; nothing is generated, and no keys or values are kept.
"""

from torch import Tensor, nn

from models.decoder_layers import Decoder, Reading
from models.layers import Sequences
from runtime.ops import pool


class CausalEncoder(nn.Module):
    """Token ids to rows, over packed sequences: [num_tokens] -> [num_tokens, hidden_size].

    `is_causal`: a token sees those before it and itself; else all of its text.
    """

    def __init__(self, decoder: Decoder, is_causal: bool):
        super().__init__()
        self.decoder = decoder
        self.is_causal = is_causal

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, sequences: Sequences) -> Tensor:
        decoder = self.decoder
        reading = Reading(position_ids, sequences, decoder.find_tables(), self.is_causal)
        hidden_states = decoder.embed(input_ids, position_ids)
        for layer in decoder.layers:
            hidden_states = layer(hidden_states, reading)
        rows: Tensor = decoder.norm(hidden_states)
        return rows


class LastTokenHead(nn.Module):
    """Logits from the last token of each sequence."""

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__()
        self.output = nn.Linear(hidden_size, num_labels, bias=False)

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor) -> dict[str, Tensor]:
        """`logits`: fp32 [num_seqs, num_labels]."""
        return {"logits": self.output(pool.OP(hidden_states, cu_seqlens, "last"))}
