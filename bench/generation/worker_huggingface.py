"""Worker: Hugging Face transformers, `generate` on padded batches or its continuous batching over a paged cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from bench.generation.session import MAX_CONCURRENT, MAX_TOTAL_TOKENS, Generate, Task, serve, split

PAGE_TOKENS = 64
NUM_PAGES = (MAX_CONCURRENT + 8) * MAX_TOTAL_TOKENS // PAGE_TOKENS
"""A little more than is needed: some stay free always."""
MAX_BATCH_TOKENS = 512
TIMEOUT_S = 600.0


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Generate:
    torch.set_num_threads(threads)
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    module.generation_config.eos_token_id = None  # answers have the length that is asked for
    if options["mode"] == "continuous":
        return build_continuous(module)
    return lambda tasks, batch_size: generate_padded(module, tasks, batch_size)


def generate_padded(module: PreTrainedModel, tasks: Sequence[Task], batch_size: int) -> list[list[int]]:
    """Sorted by the lengths of their answers: a batch goes on until the longest of its answers is there."""
    answers: list[list[int]] = [[] for _ in tasks]
    order = sorted(range(len(tasks)), key=lambda place: (tasks[place].num_tokens, len(tasks[place].input_ids)))
    for places in split(order, batch_size):
        chosen = [tasks[place] for place in places]
        input_ids, mask = pad_left([task.input_ids for task in chosen])
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=max(task.num_tokens for task in chosen), pad_token_id=0
        )
        with torch.inference_mode():
            output = module.generate(input_ids, attention_mask=mask, generation_config=settings)
        for place, row in zip(places, output[:, input_ids.shape[1] :].tolist(), strict=True):
            answers[place] = row[: tasks[place].num_tokens]
    return answers


def pad_left(prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return input_ids, mask


def build_continuous(module: PreTrainedModel) -> Generate:
    """One manager for all runs. It gets requests as others do: the next when one has been answered."""
    manager = module.init_continuous_batching(
        GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=NUM_PAGES,
            max_batch_tokens=MAX_BATCH_TOKENS,
            allow_block_sharing=False,  # prompts come again every round
        ),
    )
    manager.start()

    def generate(tasks: Sequence[Task], max_concurrent: int) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in tasks]
        coming = list(enumerate(tasks))[::-1]
        places: dict[str, int] = {}
        while coming or places:
            while coming and len(places) < max_concurrent:
                place, task = coming.pop()
                places[manager.add_request(task.input_ids, max_new_tokens=task.num_tokens)] = place
            result = manager.get_result(timeout=TIMEOUT_S)
            if result is None or result.error:
                raise RuntimeError(f"continuous batching ended early: {result.error if result else 'no result'}")
            if result.is_finished():
                answers[places.pop(result.request_id)] = result.generated_tokens
        return answers

    return generate


if __name__ == "__main__":
    serve(load)
