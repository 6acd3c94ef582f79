"""`python -m bench.tasks.rerank`: 100 passages to one query on a cross-encoder of MiniLM's shape.

Query and passages are token ids, passages of log-normal length (median 40); tokenising is not in the time. Each engine
gets the pairs sorted by length at its best batch size, in turn. The types of all tokens are 0: no time depends on them.
"""

from bench.tasks.catalogue import CROSS_ENCODER, ONNXRUNTIME_INT8, OPENVINO_INT8, PADLESS
from bench.tasks.comparing import Plan, run_plan
from bench.tasks.traffic import sample_pairs

PLAN = Plan(
    "tasks-rerank",
    ("rerank",),
    {
        "padless": PADLESS,
        "onnxruntime": ONNXRUNTIME_INT8,
        "openvino": OPENVINO_INT8,
        "cross-encoder": CROSS_ENCODER,
    },
    sample_pairs,
    num_seqs=100,
)

if __name__ == "__main__":
    run_plan(__doc__ or "", PLAN)
