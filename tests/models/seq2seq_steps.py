"""Sources and targets in one paged cache, without an engine: sources at once, targets in steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from paging import Steps, draw_tables, make_step
from tiny_models import Ids, TinyModel
from torch import Tensor

from models.load import load_model
from models.seq2seq import SourceEncoder, TargetDecoder
from runtime.batch import Batch
from runtime.capture import list_inputs
from runtime.engines.transfer import lay_out, to_tensors
from runtime.kv_cache.layout import BLOCK_SIZE

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Pair:
    """The two modules of an encoder-decoder."""

    encoder: SourceEncoder
    decoder: TargetDecoder

    @torch.no_grad()
    def compute_logits(
        self, sources: Sequence[Any], targets: Sequence[Ids], steps: Steps, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """After every token of every target, in their order: [num_tokens, vocab_size]. A source: token ids, or features
        [rows, numbers]; of one that is there twice, as the same object, the keys and values are there once."""
        distinct = list({id(source): source for source in sources}.values())
        owner = [next(index for index, each in enumerate(distinct) if each is source) for source in sources]
        tables = draw_tables([len(each) for each in (*distinct, *targets)])
        kv_cache = self.decoder.kv_layout(dtype).allocate(1 + max(map(max, tables)), CPU)
        self.encode(distinct, tables[: len(distinct)], kv_cache)
        source_tables = [tables[index] for index in owner]
        done, found = [0] * len(targets), [list[Tensor]() for _ in targets]
        for counts in steps:
            active = [index for index, count in enumerate(counts) if count]
            batch = make_step(targets, tables[len(distinct) :], done, counts)
            inputs = to_tensors(batch, CPU) | {"kv_cache": kv_cache}
            inputs |= lay_sources([source_tables[index] for index in active], [len(sources[index]) for index in active])
            logits = self.decoder(**{name: inputs[name] for name in list_inputs(self.decoder)})["logits"]
            for index, rows in zip(active, logits.split([counts[index] for index in active]), strict=True):
                found[index].append(rows)
                done[index] += counts[index]
        return torch.cat([rows for parts in found for rows in parts])

    def encode(self, sources: Sequence[Any], tables: Sequence[Sequence[int]], kv_cache: Tensor) -> None:
        inputs = to_tensors(place_sources(sources, tables), CPU) | {"kv_cache": kv_cache}
        stored = self.encoder(**{name: inputs[name] for name in list_inputs(self.encoder)})["stored"]
        assert stored.shape == (0,)


def place_sources(sources: Sequence[Any], tables: Sequence[Sequence[int]]) -> Batch:
    """As an encoder takes them: of each the blocks that its keys and values go to."""
    lengths, rows = [len(source) for source in sources], np.concatenate(sources)
    has_features = rows.ndim > 1
    batch = lay_out(lengths, np.zeros(len(rows), np.int64) if has_features else rows)
    slots = [
        np.asarray(table)[np.arange(length) // BLOCK_SIZE] * BLOCK_SIZE + np.arange(length) % BLOCK_SIZE
        for table, length in zip(tables, lengths, strict=True)
    ]
    placed = {"slot_mapping": np.concatenate(slots)} | ({"features": rows} if has_features else {})
    return replace(batch, arrays=batch.arrays | placed)


def load_pair(model: TinyModel) -> Pair:
    lazy = load_model(model.directory, model.info)
    assert lazy.encoder is not None
    encoder, decoder = lazy.encoder.fill(), lazy.fill()
    assert isinstance(encoder, SourceEncoder) and isinstance(decoder, TargetDecoder)
    return Pair(encoder, decoder)


def lay_sources(tables: Sequence[Sequence[int]], lengths: Sequence[int]) -> dict[str, Tensor]:
    """As `runtime.batch.Sources` describes them; nothing is asked about."""
    source_table = torch.zeros(len(tables), max(map(len, tables)), dtype=torch.int32)
    for row, table in zip(source_table, tables, strict=True):
        row[: len(table)] = torch.tensor(table)
    seqlens, weight_rows = torch.tensor(lengths, dtype=torch.int32), torch.zeros(0, dtype=torch.int64)
    return {"source_table": source_table, "source_seqlens": seqlens, "weight_rows": weight_rows}
