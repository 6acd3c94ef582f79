"""`python -m bench.tasks.labels`: classification (3 labels) and token classification (9) of texts of mixed lengths.

MiniLM's shape, log-normal lengths (median 40, 8 to 256), each engine sorted by length at its best batch size, in turn:
from token ids to logits. The pipeline's own tokenising and what it makes of logits are not in the time.
"""

from bench.tasks.catalogue import ONNXRUNTIME_INT8, PADLESS, PIPELINE
from bench.tasks.comparing import Plan, run_plan
from bench.tasks.traffic import sample_singles

PLAN = Plan(
    "tasks-labels",
    ("classify", "tag"),
    {"padless": PADLESS, "onnxruntime": ONNXRUNTIME_INT8, "pipeline": PIPELINE},
    sample_singles,
    num_seqs=64,
)

if __name__ == "__main__":
    run_plan(__doc__ or "", PLAN)
