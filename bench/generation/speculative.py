"""`python -m bench.generation.speculative`: tokens per second with and without tokens guessed ahead, in turn.

One request at a time, fp32, until the model ends its answer or it has 128 tokens. Guesses are what followed the same
words earlier (`ngram`), so answers that repeat their prompt should gain and others lose nothing.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from bench.generation.ours import Ours, ask, build_ours, make_parser
from bench.generation.prompts import ORDINARY, REPETITIVE, encode_chat, find_end
from bench.generation.session import Task
from bench.generation.workload import find_model, load_tokenizer
from bench.report import write_results
from bench.timing import Comparison, format_ratio

MODEL = "smollm2-135m-instruct"
ANSWER_TOKENS = 128
PROMPTS = {"repetitive": REPETITIVE, "ordinary": ORDINARY}


@dataclass
class Runs:
    """Of one kind of prompt and one number of drafts. Mutable: grows by a run per round."""

    seconds: list[float] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    num_drafted: int = 0
    num_accepted: int = 0

    @property
    def acceptance(self) -> float:
        return self.num_accepted / max(self.num_drafted, 1)


async def run_once(ours: Ours, tasks: Sequence[Task], end: int, num_drafts: int, runs: Runs) -> None:
    settlement = ours.batcher.settlement
    settlement.num_drafts = num_drafts
    num_drafted, num_accepted = settlement.num_drafted, settlement.num_accepted
    started_s = time.perf_counter()
    replies = [await ask(ours, task, stop_token_ids=(end,)) for task in tasks]
    runs.seconds.append(time.perf_counter() - started_s)
    runs.answers = [reply.token_ids for reply in replies]
    runs.num_drafted += settlement.num_drafted - num_drafted
    runs.num_accepted += settlement.num_accepted - num_accepted


async def measure(ours: Ours, rounds: int, num_drafts: int) -> dict[str, dict[str, Runs]]:
    """By kind of prompt, with drafts and without. Each is warmed up once."""
    tokenizer = load_tokenizer(find_model(MODEL))
    end = find_end(tokenizer)
    settings = {"none": 0, str(num_drafts): num_drafts}
    await ours.loop.start()
    found: dict[str, dict[str, Runs]] = {}
    for kind, texts in PROMPTS.items():
        tasks = [Task(encode_chat(tokenizer, text), ANSWER_TOKENS) for text in texts]
        for count in settings.values():
            await run_once(ours, tasks[:1], end, count, Runs())
        found[kind] = {name: Runs() for name in settings}
        for _ in tqdm(range(rounds), desc=kind, leave=False):
            for name, count in settings.items():
                await run_once(ours, tasks, end, count, found[kind][name])
    await ours.loop.close()
    return found


def build_table(found: dict[str, dict[str, Runs]]) -> list[list[str]]:
    table = [["prompts", "guessed at a time", "tokens/s", "times as fast (10-90 %)", "accepted", "same answers"]]
    for kind, variants in found.items():
        comparison = Comparison({name: runs.seconds for name, runs in variants.items()})
        for name, runs in variants.items():
            num_tokens = sum(len(answer) for answer in runs.answers)
            row = [kind, name, f"{num_tokens / comparison.median_s(name):.1f}"]
            row.append(format_ratio(comparison.ratio("none", name)))
            row.append(f"{runs.acceptance:.0%} of {runs.num_drafted}" if runs.num_drafted else "-")
            num_same = sum(ours == plain for ours, plain in zip(runs.answers, variants["none"].answers, strict=True))
            table.append([*row, f"{num_same} of {len(runs.answers)}"])
    return table


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--drafts", type=int, default=4, help="tokens guessed at a time (default: %(default)s)")
    arguments = parser.parse_args()
    ours = build_ours(
        find_model(MODEL),
        threads=arguments.threads,
        max_batch_requests=4,
        max_total_tokens=512,
        num_drafts=arguments.drafts,
    )
    found = asyncio.run(measure(ours, arguments.rounds, arguments.drafts))
    results = {
        kind: {
            name: {"seconds": runs.seconds, "num_drafted": runs.num_drafted, "num_accepted": runs.num_accepted}
            for name, runs in variants.items()
        }
        for kind, variants in found.items()
    }
    write_results("generation-speculative", build_table(found), {"model": MODEL, "runs": results})


if __name__ == "__main__":
    main()
