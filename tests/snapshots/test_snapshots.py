"""The graph of a tiny BERT and a tiny Llama after each pass, and the execution plan, as text in this folder.

A refactoring leaves the files as they are; an optimisation changes exactly the lines it is about, for all to see.
"""

import difflib
import os
import re
from pathlib import Path

import pytest
import torch
from torch.fx import GraphModule

from runtime.backends.backend import Backend
from runtime.backends.cpu.backend import PASSES
from runtime.backends.cpu.ops import LINEAR_ACT_PACKED, LINEAR_INT8_PACKED
from runtime.backends.plain.table import TORCH_KERNELS, plain_backend
from runtime.build import copy_graph
from runtime.listing import format_graph, format_program
from runtime.lower import lower
from runtime.memory.lifetimes import BatchShape
from runtime.ops import embed_norm, gather
from runtime.passes.pipeline import PrecisionChoice, list_passes, run_passes
from tests.kernels.tiny_graphs import CPU, capture_made, tiny_bert, tiny_llama

HERE = Path(__file__).parent
UPDATE_VARIABLE = "PADLESS_UPDATE_SNAPSHOTS"
LARGEST = BatchShape(512, 64, 128, 64)
MODELS = {"bert": tiny_bert, "llama": tiny_llama}
PACKED = (LINEAR_ACT_PACKED.target, LINEAR_INT8_PACKED.target, embed_norm.OP, gather.OP)
AVX2 = Backend("avx2", CPU, TORCH_KERNELS | dict.fromkeys(PACKED, print), PASSES, overflow_free=True)
"""Whatever this machine has: a plan needs to know only which ops have kernels."""

# Chosen here and not by `choose_precision`, so that the text does not depend on this machine's CPU.
CASES = {
    "bert-fp32": (PrecisionChoice("fp32", torch.float32, ""), plain_backend(CPU)),
    "bert-bf16": (PrecisionChoice("bf16", torch.bfloat16, ""), plain_backend(CPU)),
    "bert-bf16-avx2": (PrecisionChoice("bf16", torch.bfloat16, ""), AVX2),
    "bert-fp32-avx2": (PrecisionChoice("fp32", torch.float32, ""), AVX2),
    "bert-int8-avx2": (PrecisionChoice("int8", torch.bfloat16, ""), AVX2),
    "llama-fp32-avx2": (PrecisionChoice("fp32", torch.float32, ""), AVX2),
    "llama-int8-avx2": (PrecisionChoice("int8", torch.float32, ""), AVX2),
}


@pytest.mark.parametrize("name", CASES)
def test_graph_and_plan_are_as_kept(name: str) -> None:
    path, found = HERE / f"{name}.txt", describe(name.partition("-")[0], *CASES[name])
    if os.environ.get(UPDATE_VARIABLE):
        path.write_text(found, encoding="utf-8")
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    if found == kept:
        return
    lines = difflib.unified_diff(kept.splitlines(), found.splitlines(), f"kept: {path.name}", "found", lineterm="", n=2)
    remedy = f"If this is what you meant: {UPDATE_VARIABLE}=1 make test, and commit the difference."
    pytest.fail("\n".join([*lines, "", remedy]), pytrace=False)


def describe(model: str, choice: PrecisionChoice, backend: Backend) -> str:
    parts: list[str] = []

    def on_pass(name: str, graph_module: GraphModule) -> None:
        parts.append(f"== {name}\n{rename_nodes(format_graph(graph_module))}\n")

    graph_module = copy_graph(capture_made(MODELS[model]))
    run_passes(graph_module, list_passes(choice, backend), on_pass)
    parts.append(f"== plan\n{rename_nodes(format_program(lower(graph_module, backend.kernels), LARGEST))}\n")
    return "\n".join(parts)


def rename_nodes(text: str) -> str:
    """Number the nodes of each op from 0 in the order of the text: the exporter's own numbers vary with torch."""
    names = re.findall(r"^(?: *\d+ \w+ +)?(\w+)(?=: |  |$)", text, re.MULTILINE)
    new: dict[str, str] = {}
    counts: dict[str, int] = {}
    for name in dict.fromkeys(names):
        stem = re.sub(r"(_\d+)+$", "", name)
        new[name] = f"{stem}_{counts.get(stem, 0)}"
        counts[stem] = counts.get(stem, 0) + 1
    # Not the kinds of a plan's steps, which follow a number: a node may be called `view` too.
    return re.sub(r"(?<![\w.])(?<!\d )\w+(?![\w.])", lambda match: new.get(match[0], match[0]), text)
