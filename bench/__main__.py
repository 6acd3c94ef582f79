"""`python -m bench`: every benchmark that needs nothing but this repository, each in a process of its own."""

import subprocess
import sys

BENCHMARKS = ("ops", "engine", "packing", "padded_batching", "allocator", "http")
GENERATION = ("prefix", "chunked", "kv_memory", "speculative")


def main() -> None:
    for name in (*BENCHMARKS, *(f"generation.{name}" for name in GENERATION)):
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"bench.{name}"], check=True)


if __name__ == "__main__":
    main()
