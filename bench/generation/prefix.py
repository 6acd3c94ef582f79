"""`python -m bench.generation.prefix`: time to the first token where others have asked with the same beginning.

A round is a prompt with a prefix that nobody has sent before, and then one with the same prefix and another end: the
first is cold, the second finds the prefix's blocks in the cache. One request at a time.
"""

import asyncio

import numpy as np
from tqdm import tqdm

from bench.generation.ours import Ours, Reply, ask, build_ours, make_parser
from bench.generation.session import Task
from bench.generation.workload import find_model, load_tokenizer, sample_prompt
from bench.report import write_results
from bench.timing import Comparison, format_ratio

MODEL = "smollm2-135m-instruct"
PREFIX_TOKENS, END_TOKENS, ANSWER_TOKENS = 500, 20, 4


async def measure(ours: Ours, rounds: int) -> dict[str, list[Reply]]:
    """The first round warms up and does not count."""
    rng, tokenizer = np.random.default_rng(0), load_tokenizer(find_model(MODEL))
    replies: dict[str, list[Reply]] = {"cold": [], "warm": []}
    await ours.loop.start()
    for _ in tqdm(range(1 + rounds), desc="rounds", leave=False):
        prefix = sample_prompt(tokenizer, PREFIX_TOKENS, rng)
        for name in replies:
            prompt = prefix + sample_prompt(tokenizer, END_TOKENS, rng)
            replies[name].append(await ask(ours, Task(prompt, ANSWER_TOKENS)))
    await ours.loop.close()
    return {name: each[1:] for name, each in replies.items()}


def main() -> None:
    arguments = make_parser(__doc__, rounds=10).parse_args()
    ours = build_ours(
        find_model(MODEL),
        threads=arguments.threads,
        max_batch_requests=8,
        max_total_tokens=1024,
        max_batch_tokens=1024,
        has_prefix_cache=True,
    )
    replies = asyncio.run(measure(ours, arguments.rounds))
    comparison = Comparison({name: [reply.first_s for reply in each] for name, each in replies.items()})
    table = [["prefix", "tokens found in the cache", "median ms to the first token", "times warm (10-90 %)"]]
    for name, each in replies.items():
        cached = f"{min(reply.num_cached_tokens for reply in each)} of {PREFIX_TOKENS + END_TOKENS}"
        ratio = format_ratio(comparison.ratio(name, "warm"))
        table.append([name, cached, f"{comparison.median_s(name) * 1e3:.1f}", ratio])
    results = {"model": MODEL, "threads": arguments.threads, "first_token_s": comparison.seconds}
    write_results("generation-prefix", table, results)


if __name__ == "__main__":
    main()
