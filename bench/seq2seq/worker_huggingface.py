"""Worker: Hugging Face transformers, `generate` on padded batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedModel

from bench.generation.session import Task, split
from bench.seq2seq.session import MAX_TARGET_TOKENS, Search, Translate, serve


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Translate:
    torch.set_num_threads(threads)
    module = AutoModelForSeq2SeqLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    start, end = module.generation_config.decoder_start_token_id, module.generation_config.eos_token_id
    module.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=module.generation_config.pad_token_id, decoder_start_token_id=start
    )
    return lambda tasks, batch_size, search: translate(module, tasks, batch_size, search, end)


def translate(
    module: PreTrainedModel, tasks: Sequence[Task], batch_size: int, search: Search, end: int
) -> list[list[int]]:
    """Sorted by the lengths of answers, where those are known, and of sources."""
    answers: list[list[int]] = [[] for _ in tasks]
    order = sorted(range(len(tasks)), key=lambda place: (tasks[place].num_tokens, len(tasks[place].input_ids)))
    for places in split(order, batch_size):
        rows = translate_batch(module, [tasks[place] for place in places], search, end)
        for place, row in zip(places, rows, strict=True):
            answers[place] = row[: tasks[place].num_tokens] if tasks[place].num_tokens else cut(row, end)
    return answers


def translate_batch(module: PreTrainedModel, tasks: Sequence[Task], search: Search, end: int) -> list[list[int]]:
    longest = max(len(task.input_ids) for task in tasks)
    padding = module.generation_config.pad_token_id
    input_ids = torch.tensor([task.input_ids + [padding] * (longest - len(task.input_ids)) for task in tasks])
    mask = torch.tensor([[1] * len(task.input_ids) + [0] * (longest - len(task.input_ids)) for task in tasks])
    wanted = max(task.num_tokens for task in tasks)
    settings = {"max_new_tokens": wanted} if wanted else {"max_new_tokens": MAX_TARGET_TOKENS, "eos_token_id": end}
    with torch.inference_mode():
        output = module.generate(input_ids, attention_mask=mask, num_beams=search.beam_width, **settings)
    return [row[1:] for row in output.tolist()]


def cut(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row


if __name__ == "__main__":
    serve(load)
