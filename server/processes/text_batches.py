"""Texts as batches, outside of any server: for calibrating a model, and for judging its precisions."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from runtime.batch import Batch
from server.engine.batchers.packing import pack_sequences, sort_by_length
from server.processes.deployment import DeployedModel
from server.text.tokenizer_file import load_tokenizer
from server.wire.job import TokenSequence


def tokenize(model: DeployedModel, texts: Sequence[str]) -> list[TokenSequence]:
    """As the server does; what is too long is cut at the right."""
    with ThreadPoolExecutor(1, "tokenizer") as pool:
        tokenizer = load_tokenizer(
            model.text_directory,
            lowercase=model.info.do_lower_case,
            max_input_tokens=model.max_input_tokens,
            vocab_size=model.info.vocab_size,
            type_vocab_size=model.info.type_vocab_size,
            pool=pool,
        )
        return asyncio.run(tokenizer.encode(texts, truncation="right", field="text"))


def make_batches(sequences: Sequence[TokenSequence], max_tokens: int, max_seqs: int | None = None) -> list[Batch]:
    """Batches of up to so many tokens and sequences, the shortest sequences first."""
    batches: list[list[TokenSequence]] = [[]]
    num_tokens = 0
    for index in sort_by_length([sequence.num_tokens for sequence in sequences]):
        sequence = sequences[index]
        if num_tokens + sequence.num_tokens > max_tokens or len(batches[-1]) == max_seqs:
            batches.append([])
            num_tokens = 0
        batches[-1].append(sequence)
        num_tokens += sequence.num_tokens
    return [pack_sequences(batch) for batch in batches]
