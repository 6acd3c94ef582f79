"""`python -m bench.generation.experts`: a model whose feed-forward blocks are experts, beside the dense one that
computes as much for a token.

Qwen3's shape with random weights, 8 layers of 512: 16 experts of 768 of which a token has two, and one block of 1,536.
Tokens are drawn, so that answers differ as those of trained weights do; in our own engine, in turn.
"""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from bench.generation.ours import Ours, ask_all, build_ours, make_parser
from bench.generation.session import Task
from bench.generation.workload import Lengths
from bench.peers.environments import find_cache
from bench.report import write_results
from bench.timing import Comparison, format_ratio
from bench.whole_folders import filling

VOCAB_SIZE = 16_000
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}
NUM_EXPERTS, TOP_K, WIDTH = 16, 2, 768
PROMPTS, ANSWERS = Lengths(50, 8, 200), Lengths(40, 8, 128)
WAVES = 2
PRECISIONS = ("fp32", "int8")


def build_dense() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, intermediate_size=TOP_K * WIDTH))


def build_experts() -> PreTrainedModel:
    config = Qwen3MoeConfig(
        **SHAPE, num_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K, moe_intermediate_size=WIDTH, norm_topk_prob=True
    )
    return Qwen3MoeForCausalLM(config)


BUILDERS = {"dense": build_dense, "experts": build_experts}


def find_model(name: str) -> Path:
    """Always the same weights."""
    folder = find_cache() / "models" / f"qwen3-{name}-seed-0"
    if not folder.exists():
        torch.manual_seed(0)
        with filling(folder) as unfinished:
            BUILDERS[name]().save_pretrained(unfinished)
    return folder


def sample_tasks(count: int) -> list[Task]:
    rng = np.random.default_rng(0)
    lengths = zip(PROMPTS.sample(count, rng), ANSWERS.sample(count, rng), strict=True)
    return [Task(rng.integers(0, VOCAB_SIZE, prompt).tolist(), int(answer)) for prompt, answer in lengths]


async def measure(both: Mapping[str, Ours], tasks: list[Task], max_concurrent: int, rounds: int) -> Comparison:
    """In turn; each is warmed up once."""
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for ours in both.values():
        await ask_all(ours, tasks[:max_concurrent], max_concurrent, temperature=1.0)
    for _ in tqdm(range(rounds), desc=f"{max_concurrent} at a time", leave=False):
        for name, ours in both.items():
            started_s = time.perf_counter()
            await ask_all(ours, tasks, max_concurrent, temperature=1.0)
            seconds[name].append(time.perf_counter() - started_s)
    return Comparison(seconds)


async def compare(precision: str, threads: int, concurrency: list[int], rounds: int) -> dict[int, Comparison]:
    room = {"max_batch_requests": max(concurrency), "max_total_tokens": PROMPTS.most + ANSWERS.most}
    both = {name: build_ours(find_model(name), threads=threads, precision=precision, **room) for name in BUILDERS}
    for ours in both.values():
        await ours.loop.start()
    found = {count: await measure(both, sample_tasks(max(4, WAVES * count)), count, rounds) for count in concurrency}
    for ours in both.values():
        await ours.loop.close()
    return found


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    arguments = parser.parse_args()
    table = [["precision", "requests", "dense tokens/s", "experts tokens/s", "time of experts by dense (10-90 %)"]]
    results = {}
    for precision in arguments.precisions:
        found = asyncio.run(compare(precision, arguments.threads, arguments.concurrency, arguments.rounds))
        for count, comparison in found.items():
            num_tokens = sum(task.num_tokens for task in sample_tasks(max(4, WAVES * count)))
            rates = [f"{num_tokens / comparison.median_s(name):.0f}" for name in BUILDERS]
            row = [precision, f"{count} concurrent", *rates, format_ratio(comparison.ratio("experts", "dense"))]
            table.append(row)
            results[f"{precision}, {count} concurrent"] = comparison.seconds
        write_results("generation-experts", table, {"threads": arguments.threads, "seconds": results})


if __name__ == "__main__":
    main()
