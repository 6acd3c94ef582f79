"""Worker: Padless's engine loop, in the environment that `bench.generation` runs in."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.generation.ours import ask_all, build_ours
from bench.generation.session import MAX_CONCURRENT, MAX_TOTAL_TOKENS, Generate, Task, serve


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Generate:
    runner = asyncio.Runner()
    ours = build_ours(
        model,
        threads=threads,
        max_batch_requests=MAX_CONCURRENT,
        max_total_tokens=MAX_TOTAL_TOKENS,
        precision=options["precision"],
    )
    runner.run(ours.loop.start())

    def generate(tasks: Sequence[Task], max_concurrent: int) -> list[list[int]]:
        return [reply.token_ids for reply in runner.run(ask_all(ours, tasks, max_concurrent))]

    return generate


if __name__ == "__main__":
    serve(load)
