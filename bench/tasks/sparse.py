"""`python -m bench.tasks.sparse`: SPLADE over MiniLM's shape and its 30,522 tokens, time and peak memory.

256 texts of log-normal length (median 40, 8 to 256), sorted by length, at each engine's best batch size, in turn: from
token ids to sparse vectors. The peak is that of a fresh process for one run, above what it holds with its weights.
"""

from bench.tasks.catalogue import PADLESS_SPARSE, SPARSE_ENCODER
from bench.tasks.comparing import Plan, run_plan
from bench.tasks.traffic import sample_singles

PLAN = Plan(
    "tasks-sparse",
    ("splade",),
    {"padless": PADLESS_SPARSE, "sparse-encoder": SPARSE_ENCODER},
    sample_singles,
    num_seqs=256,
    threads=(2,),
    has_peaks=True,
)

if __name__ == "__main__":
    run_plan(__doc__ or "", PLAN)
