"""The memory of compiling a large model: what it is compiled to, one layer in fp32, and what torch takes anyway."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from server.processes.compiling import VARIABLES

MB = 2**20
ALLOWANCE = 400 * MB
"""Python, torch and its exporter, and what is under way of a layer."""
VOCAB_SIZE = 32_000
HIDDEN_SIZE, INTERMEDIATE_SIZE, KV_SIZE = 2048, 5632, 512

COMPILE = """
import sys
from pathlib import Path
from models.info import read_info
from models.load import load_model
from runtime.build import compile_model
from runtime.config import EngineConfig
from runtime.limits import BatchLimits

directory = Path(sys.argv[1])
info = read_info(directory)
config = EngineConfig(precision=sys.argv[2], threads=2)
compiled = compile_model(load_model(directory, info), config, BatchLimits(256, 8, 256), lambda *_: None)
print(compiled.only.info.weight_bytes, next(line for line in open("/proc/self/status") if "VmHWM" in line).split()[1])
"""


def list_shapes(layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    prefix = f"model.layers.{layer}."
    for name, num_rows in (("q", HIDDEN_SIZE), ("k", KV_SIZE), ("v", KV_SIZE), ("o", HIDDEN_SIZE)):
        yield f"{prefix}self_attn.{name}_proj.weight", (num_rows, HIDDEN_SIZE)
    for name in ("gate", "up"):
        yield f"{prefix}mlp.{name}_proj.weight", (INTERMEDIATE_SIZE, HIDDEN_SIZE)
    yield f"{prefix}mlp.down_proj.weight", (HIDDEN_SIZE, INTERMEDIATE_SIZE)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{prefix}{name}.weight", (HIDDEN_SIZE,)


def write_model(directory: Path, num_layers: int) -> int:
    """A Llama of random weights in bf16, one file per layer. Returns the number of weights of all layers and tables."""
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    (directory / "config.json").write_text(json.dumps(config))
    shards = [dict(list_shapes(layer)) for layer in range(num_layers)]
    shards.append({"model.embed_tokens.weight": (VOCAB_SIZE, HIDDEN_SIZE), "model.norm.weight": (HIDDEN_SIZE,)})
    generator = torch.Generator().manual_seed(0)
    matrices = {  # of each shape one: what a weight holds does not matter, and to draw all of them takes long
        shape: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        for shape in {shape for shapes in shards for shape in shapes.values()}
    }
    weight_map = {}
    for index, shapes in enumerate(shards):
        name = f"model-{index}.safetensors"
        save_file({key: matrices[shape].clone() for key, shape in shapes.items()}, directory / name)
        weight_map |= dict.fromkeys(shapes, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(torch.Size(shape).numel() for shapes in shards for shape in shapes.values())


@pytest.mark.parametrize(
    ("precision", "num_layers"),
    [
        pytest.param("bf16", 2, id="150M weights in bf16"),  # nothing is rounded to int8, which takes half a minute
        pytest.param("int8", 21, id="1B weights in int8", marks=pytest.mark.slow),
    ],
)
def test_compiling_takes_the_size_of_the_result_and_a_layer(tmp_path: Path, precision: str, num_layers: int) -> None:
    num_weights = write_model(tmp_path, num_layers)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(tmp_path), precision],
        cwd=Path(__file__).parents[2],
        env=os.environ | VARIABLES,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    weight_bytes, peak_kb = map(int, done.stdout.split())
    table_bytes = 4 * VOCAB_SIZE * HIDDEN_SIZE  # in fp32, which is more than any layer
    assert weight_bytes < {"bf16": 2.05, "int8": 1.05}[precision] * num_weights + table_bytes
    assert 1024 * peak_kb < weight_bytes + table_bytes + ALLOWANCE, f"{1024 * peak_kb / MB:.0f} MB at most"
