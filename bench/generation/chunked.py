"""`python -m bench.generation.chunked`: what a long prompt does to those who are reading their answers.

Eight requests generate; then a prompt of 2,000 tokens arrives. How long is the longest pause between two tokens of any
of the eight until the newcomer has its first token, and how long does that one wait? With the prompt in chunks of 128
or 64 tokens a step and all at once, in turn.
"""

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tqdm import tqdm

from bench.generation.ours import Ours, Reply, ask, build_ours, make_parser
from bench.generation.session import Task
from bench.generation.workload import find_model, load_tokenizer, sample_prompt
from bench.report import write_results
from bench.timing import Comparison, format_ratio

MODEL = "smollm2-135m-instruct"
CHUNKS = {"all at once": 0, "128 tokens": 128, "64 tokens": 64}
NUM_READERS = 8
READER_PROMPT_TOKENS, READER_TOKENS = 16, 56
"""Answers go on until the prompt has been computed in the smallest chunks."""
HEAD_START_TOKENS = 8
"""Of every reader before the long prompt arrives."""
PROMPT_TOKENS, MAX_BATCH_TOKENS = 2000, 2048
MAX_TOTAL_TOKENS = 2048


@dataclass
class Pauses:
    """Of one round, in seconds."""

    usual_s: float
    """Median pause between two tokens of a reader before the newcomer arrives."""
    worst_s: float
    """Longest one from then until the newcomer has its first token."""
    first_s: float
    """The newcomer's wait."""


async def run_round(ours: Ours, prompts: Sequence[list[int]]) -> Pauses:
    """The long prompt last."""
    *short, long = prompts
    replies = [Reply() for _ in short]
    tasks = [
        asyncio.create_task(ask(ours, Task(prompt, READER_TOKENS), reply))
        for prompt, reply in zip(short, replies, strict=True)
    ]
    while any(len(reply.token_ids) < HEAD_START_TOKENS for reply in replies):
        await asyncio.sleep(1e-3)
    newcomer = await ask(ours, Task(long, 1))
    await asyncio.gather(*tasks)
    return find_pauses(replies, newcomer)


def find_pauses(readers: Sequence[Reply], newcomer: Reply) -> Pauses:
    """A pause counts for the newcomer if it ends after it came and begins before its first token. Between tokens that
    come together there is none."""
    before, during = [], []
    for reader in readers:
        for earlier_s, later_s in pairwise(sorted({*reader.times_s})):
            if later_s <= newcomer.started_s:
                before.append(later_s - earlier_s)
            elif earlier_s < newcomer.times_s[0]:
                during.append(later_s - earlier_s)
    return Pauses(statistics.median(before), max(during), newcomer.first_s)


async def measure(ours: Ours, rounds: int) -> dict[str, list[Pauses]]:
    """The first round warms up and does not count."""
    rng, tokenizer = np.random.default_rng(0), load_tokenizer(find_model(MODEL))
    lengths = [READER_PROMPT_TOKENS] * NUM_READERS + [PROMPT_TOKENS]
    pauses: dict[str, list[Pauses]] = {name: [] for name in CHUNKS}
    await ours.loop.start()
    for _ in tqdm(range(1 + rounds), desc="rounds", leave=False):
        prompts = [sample_prompt(tokenizer, length, rng) for length in lengths]
        for name, num_tokens in CHUNKS.items():
            ours.batcher.running.prefill_chunk_tokens = num_tokens
            pauses[name].append(await run_round(ours, prompts))
    await ours.loop.close()
    return {name: each[1:] for name, each in pauses.items()}


def main() -> None:
    arguments = make_parser(__doc__, rounds=5).parse_args()
    ours = build_ours(
        find_model(MODEL),
        threads=arguments.threads,
        max_batch_requests=NUM_READERS + 1,
        max_total_tokens=MAX_TOTAL_TOKENS,
        max_batch_tokens=MAX_BATCH_TOKENS,
    )
    pauses = asyncio.run(measure(ours, arguments.rounds))
    worst = Comparison({name: [each.worst_s for each in rounds] for name, rounds in pauses.items()})
    first = Comparison({name: [each.first_s for each in rounds] for name, rounds in pauses.items()})
    table = [["prompt computed", "usual pause ms", "worst pause ms", "of all at once (10-90 %)"]]
    table[0] += ["newcomer's first token ms", "of all at once (10-90 %)"]
    for name, rounds in pauses.items():
        row = [name, f"{statistics.median(each.usual_s for each in rounds) * 1e3:.0f}"]
        for comparison in (worst, first):
            row += [f"{comparison.median_s(name) * 1e3:.0f}", format_ratio(comparison.ratio(name, "all at once"))]
        table.append(row)
    results = {"model": MODEL, "threads": arguments.threads, "worst_s": worst.seconds, "first_s": first.seconds}
    write_results("generation-chunked", table, results)


if __name__ == "__main__":
    main()
