"""In-process timings and comparisons with peers. `python -m bench` runs them all and writes `bench/results/`."""
