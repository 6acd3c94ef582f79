"""What turns token rows into answers: pooled embeddings, logits of classes, of tokens, of words. All of it is fp32."""

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import EncoderConfig
from models.further_heads import name_output
from models.layers import ACTIVATIONS, Sequences
from models.pooling import pool_rows
from runtime.ops import max_logits, pool


class Dense(nn.Module):
    """A sentence-transformers Dense module; `activation` is a name in `layers.ACTIVATIONS`, or none."""

    def __init__(self, in_features: int, out_features: int, has_bias: bool, activation: str):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, has_bias)
        self.activation = activation

    def forward(self, rows: Tensor) -> Tensor:
        rows = self.linear(rows)
        return rows if self.activation == "none" else ACTIVATIONS[self.activation](rows)


class Normalize(nn.Module):
    """Scale each row to length 1."""

    def forward(self, rows: Tensor) -> Tensor:
        return functional.normalize(rows, dim=-1)


class EmbeddingHead(nn.Module):
    """Pool in every mode, run the modules behind it in order, scale to length 1 if asked, keep the first numbers.

    `truncate_dim`: so many of them, not scaled again, as sentence-transformers does; None for all.
    """

    def __init__(
        self,
        pooling: Sequence[str],
        modules: Sequence[nn.Module],
        normalize: bool,
        truncate_dim: int | None = None,
    ):
        super().__init__()
        self.pooling = tuple(pooling)
        self.chain = nn.Sequential(*modules)
        self.normalize = normalize
        self.truncate_dim = truncate_dim

    def forward(self, hidden_states: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> dict[str, Tensor]:
        """`embeddings`: fp32 [num_seqs, width]."""
        return self.finish(pool_rows(hidden_states, position_ids, cu_seqlens, self.pooling))

    def finish(self, rows: Tensor) -> dict[str, Tensor]:
        rows = self.chain(rows)
        if self.normalize:
            rows = functional.normalize(rows, dim=-1)
        return {"embeddings": rows if self.truncate_dim is None else rows[:, : self.truncate_dim].contiguous()}


class PromptlessEmbeddingHead(EmbeddingHead):
    """Leaves the tokens of a prompt out of pooling: sentence-transformers' `include_prompt: false`."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, position_ids: Tensor, cu_seqlens: Tensor, num_prompt_tokens: Tensor
    ) -> dict[str, Tensor]:
        return self.finish(pool_rows(hidden_states, position_ids, cu_seqlens, self.pooling, num_prompt_tokens))


class ClassificationHead(nn.Module):
    """Logits from one row of each sequence, most often that of its first token: dense, activation, output.

    The families differ in names, pooling and activation, and in that some have a norm before the output.
    """

    def __init__(self, config: EncoderConfig, num_labels: int, activation: str):
        super().__init__()
        self.pooling = config.head.pooling
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, config.head.has_dense_bias)
        self.activation = ACTIVATIONS[activation]
        self.norm = build_head_norm(config) if config.head.has_norm else nn.Identity()
        self.output = nn.Linear(config.hidden_size, num_labels)

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor) -> dict[str, Tensor]:
        """`logits`: fp32 [num_seqs, num_labels]."""
        pooled = pool.OP(hidden_states, cu_seqlens, self.pooling)
        return {"logits": self.output(self.norm(self.activation(self.dense(pooled))))}


class LateClassificationHead(nn.Module):
    """The mean of the logits of all tokens of a sequence (EuroBERT). fp32, and the cast says so, as in the heads below.

    The last layer is linear, so that the mean of what goes into it gives the same, at one product per sequence.
    """

    def __init__(self, config: EncoderConfig, num_labels: int, activation: str):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[activation]
        self.output = nn.Linear(config.hidden_size, num_labels)

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor) -> dict[str, Tensor]:
        """`logits`: fp32 [num_seqs, num_labels]."""
        rows = self.activation(self.dense(hidden_states.float()))
        return {"logits": self.output(pool.OP(rows, cu_seqlens, "mean"))}


class TokenEmbeddingHead(nn.Module):
    """A vector of each token: its row, as it is. Casting it says to the passes that it is the head's."""

    def forward(self, hidden_states: Tensor) -> dict[str, Tensor]:
        """`token_embeddings`: fp32 [num_tokens, hidden_size]."""
        return {"token_embeddings": hidden_states.float()}


class MultiVectorHead(nn.Module):
    """A vector of each token: its row through the modules in order, scaled to length 1 if asked."""

    def __init__(self, modules: Sequence[nn.Module], normalize: bool):
        super().__init__()
        self.chain = nn.Sequential(*modules)
        self.normalize = normalize

    def forward(self, hidden_states: Tensor) -> dict[str, Tensor]:
        """`token_embeddings`: fp32 [num_tokens, width]."""
        rows = self.chain(hidden_states.float())
        return {"token_embeddings": functional.normalize(rows, dim=-1) if self.normalize else rows}


class TokenWeightHead(nn.Module):
    """BGE-M3's (Chen et al., 2024): how much each token counts, which is never less than 0."""

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        self.chain = nn.Sequential(*modules)

    def forward(self, hidden_states: Tensor) -> dict[str, Tensor]:
        """`token_weights`: fp32 [num_tokens, 1]."""
        rows = self.chain(hidden_states.float())
        return {"token_weights": functional.relu(rows)}


class TokenClassificationHead(nn.Module):
    """Logits of every token: one linear layer over its row, the same in all families.

    It stays fp32 in every precision: beside the encoder it costs nothing, and of its rounding nothing averages out. To
    cast the rows says so to the passes, see `runtime.passes.rewriting.find_head`.
    """

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__()
        self.output = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden_states: Tensor) -> dict[str, Tensor]:
        """`token_logits`: fp32 [num_tokens, num_labels]."""
        return {"token_logits": self.output(hidden_states.float())}


class DeepTokenClassificationHead(TokenClassificationHead):
    """With a layer, an activation and a norm before the last layer, as a head of words has them (ModernBERT)."""

    def __init__(self, config: EncoderConfig, num_labels: int, activation: str):
        super().__init__(config.hidden_size, num_labels)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, config.head.has_dense_bias)
        self.activation = ACTIVATIONS[activation]
        self.norm = build_head_norm(config)

    def forward(self, hidden_states: Tensor) -> dict[str, Tensor]:
        """`token_logits`: fp32 [num_tokens, num_labels]."""
        return {"token_logits": self.output(self.norm(self.activation(self.dense(hidden_states.float()))))}


def build_head_norm(config: EncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.embedding_size, config.norm_eps, bias=config.head.has_norm_bias)


class WordHead(nn.Module):
    """A masked language model's head over rows of tokens, the projection to words but for its product.

    The table is the encoder's own, or `table` where the checkpoint does not tie them. It stays fp32 in every precision.
    """

    def __init__(self, config: EncoderConfig, activation: str, is_tied: bool):
        super().__init__()
        self.has_transform = config.head.has_transform
        if self.has_transform:
            self.dense = nn.Linear(config.hidden_size, config.embedding_size, config.head.has_dense_bias)
            self.activation = ACTIVATIONS[activation]
            self.norm = build_head_norm(config)
        self.bias: Tensor
        if config.head.has_word_bias:
            self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        else:
            self.register_buffer("bias", torch.zeros(config.vocab_size, device="cpu"), persistent=False)
        self.table = None if is_tied else nn.Parameter(torch.zeros(config.vocab_size, config.embedding_size))

    def transform(self, hidden_states: Tensor) -> Tensor:
        """Rows of tokens to fp32 [num_tokens, embedding_size], which are multiplied with the table."""
        rows = hidden_states.float()
        return self.norm(self.activation(self.dense(rows))) if self.has_transform else rows

    def find_table(self, word_table: Tensor) -> Tensor:
        return word_table if self.table is None else self.table


class SparseHead(WordHead):
    """Of each sequence the largest logit of every token of the vocabulary."""

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, word_table: Tensor) -> dict[str, Tensor]:
        """`max_logits`: fp32 [num_seqs, vocab_size]."""
        table = self.find_table(word_table)
        return {"max_logits": max_logits.OP(self.transform(hidden_states), table, self.bias, cu_seqlens)}


class MaskHead(WordHead):
    """Of chosen tokens, which are masked, the logits of all words. The other tokens are never multiplied."""

    def forward(self, hidden_states: Tensor, logit_rows: Tensor, word_table: Tensor) -> dict[str, Tensor]:
        """`masked_logits`: fp32 [num_logits, vocab_size]."""
        rows = self.transform(hidden_states.index_select(0, logit_rows))
        return {"masked_logits": functional.linear(rows, self.find_table(word_table), self.bias)}


class TextModel(nn.Module):
    """An encoder and its heads: the module engines are built from. Returns what the heads do.

    Beside the token rows a head may read `cu_seqlens`, `num_prompt_tokens`, `logit_rows` and `word_table`, the table of
    tokens of the encoder: it declares them as parameters. `heads`: those beside the model's own, by name, which stands
    before what their outputs are called. `has_unseen_tokens`: those behind the first `num_keys` of a sequence are not
    attended to.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        heads: Mapping[str, nn.Module] | None = None,
        *,
        has_unseen_tokens: bool = False,
    ):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.heads = nn.ModuleDict(heads or {})
        self.has_unseen_tokens = has_unseen_tokens

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        adapter_ids: Tensor,
        num_prompt_tokens: Tensor,
        num_keys: Tensor,
        logit_rows: Tensor,
    ) -> dict[str, Tensor]:
        seen = num_keys if self.has_unseen_tokens else None
        sequences = Sequences(cu_seqlens, max_seqlen, seen, adapter_ids)
        hidden_states = self.encoder(input_ids, position_ids, token_type_ids, sequences)
        inputs = {
            "hidden_states": hidden_states,
            "position_ids": position_ids,
            "cu_seqlens": cu_seqlens,
            "num_prompt_tokens": num_prompt_tokens,
            "logit_rows": logit_rows,
        }
        outputs = self.run_head(self.head, inputs)
        for name, head in self.heads.items():
            outputs |= {name_output(name, each): value for each, value in self.run_head(head, inputs).items()}
        return outputs

    def run_head(self, head: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = inspect.signature(head.forward).parameters
        if "word_table" in names:
            inputs = {**inputs, "word_table": self.encoder.get_parameter("embeddings.word.weight")}
        return dict(head(**{name: inputs[name] for name in names}))
