"""`padless::embed_norm`: the sum of one row from each of several tables, and the LayerNorm of it.

    tables [num_entries, hidden_size], as many indices int64 [num_tokens], weight and bias [hidden_size]
        -> like the tables' rows [num_tokens, hidden_size]

Raises IndexError for an index that is not in its table.
"""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.ops.spec import define_op


def embed_norm_shape(tables: list[Tensor], indices: list[Tensor]) -> Tensor:
    return tables[0].new_empty(indices[0].shape[0], tables[0].shape[1])


def embed_norm(tables: list[Tensor], indices: list[Tensor], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The reference: look up, add and normalise in turn, in fp32."""
    rows = [functional.embedding(index, table).float() for table, index in zip(tables, indices, strict=True)]
    summed = torch.stack(rows).sum(0)
    return functional.layer_norm(summed, summed.shape[-1:], weight.float(), bias.float(), eps).to(tables[0].dtype)


SPEC = define_op(embed_norm, embed_norm_shape)
OP = SPEC.target
