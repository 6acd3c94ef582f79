"""Generation: tokens per second beside peers (`python -m bench.generation`), and what the KV cache does."""
