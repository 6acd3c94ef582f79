"""What encoders with rotary positions have of their own: windows, keys of older files, and their classifiers."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_engines import BEST, PRECISIONS, Find, capture_model, find_tolerances
from tiny_models import (
    CONFIGS,
    MODERNBERT_SIZES,
    TinyModel,
    build,
    make_model,
    make_sequences,
    pack,
    run_module,
    run_padded,
)

from models.config import read_config
from models.info import read_info
from runtime.backends.plain.table import plain_backend
from runtime.build import copy_graph
from runtime.ops import gated_act, linear_act
from runtime.passes.pipeline import PrecisionChoice, list_passes, run_passes
from runtime.passes.rewriting import LINEAR
from tests.tolerances import ENCODER_TOLERANCES, check_close


@pytest.mark.parametrize(("local_attention", "reach"), [(7, 3), (8, 4), (9, 4), (64, 32)])
def test_windows(local_attention: int, reach: int, tmp_path: Path) -> None:
    """A token sees the neighbours `reach` away and none farther: lengths around it, its double, and blocks."""
    torch.manual_seed(0)
    sizes = MODERNBERT_SIZES | {"max_position_embeddings": 140, "initializer_range": 0.5}
    config = transformers.ModernBertConfig(**sizes, local_attention=local_attention)
    theirs = transformers.AutoModel.from_config(config, attn_implementation="sdpa").eval()
    theirs.save_pretrained(tmp_path)
    model = TinyModel(tmp_path, theirs, read_info(tmp_path))
    windows = read_windows(tmp_path)
    assert windows == (-1, reach, reach)
    around = {length + more for length in (reach, 2 * reach, 64, 128) for more in (-1, 0, 1, 2)}
    ids, types = make_sequences(model, sorted(around))
    hidden_states, mask = run_padded(theirs, ids)
    expected = (hidden_states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    check_close(run_module(model, pack(ids, types))["embeddings"], expected, what="module")
    check_close(build(model).run(pack(ids, types)).arrays["embeddings"], expected, what="planned")


def read_windows(directory: Path) -> tuple[int, ...]:
    config = read_config(directory)
    assert config.rotary is not None
    return config.rotary.windows


ROPES: dict[str, dict[str, Any]] = {
    "none": {},
    "legacy": {"global_rope_theta": 300.0, "local_rope_theta": 50.0, "global_attn_every_n_layers": 2},
    "both": {"rope_parameters": {"full_attention": {"rope_theta": 9.0}}, "global_rope_theta": 7.0},
    "no theta": {"rope_parameters": {"sliding_attention": {"rope_type": "default"}}, "local_rope_theta": 6.0},
    "scaled": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "local_rope_theta": 8.0},
}


@pytest.mark.parametrize("name", ROPES)
def test_positions_of_modernbert_are_read_as_transformers_does(name: str, tmp_path: Path) -> None:
    keys = {"model_type": "modernbert", "architectures": ["ModernBertModel"]} | MODERNBERT_SIZES | ROPES[name]
    (tmp_path / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    ours = read_config(tmp_path).rotary
    assert ours is not None
    for kind, rotary, window in zip(theirs.layer_types, ours.rotaries, ours.windows, strict=True):
        settings = theirs.rope_parameters[kind]
        found = (rotary.theta, rotary.scaling, rotary.factor)
        assert found == (settings["rope_theta"], settings["rope_type"], settings.get("factor", 1.0))
        assert window == (theirs.sliding_window if kind == "sliding_attention" else -1)


@pytest.fixture(scope="module")
def find_classifier(tmp_path_factory: pytest.TempPathFactory) -> Find:
    auto = transformers.AutoModelForSequenceClassification
    return cache(lambda name: capture_model(lambda: make_model(name, tmp_path_factory.mktemp(name), auto)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["modernbert-biased", "eurobert", "gte"])
def test_classifiers_in_every_precision(find_classifier: Find, name: str, precision: str) -> None:
    """By the mean of rows, the mean of logits, and a pooler."""
    captured = find_classifier(name)
    engine = captured.build(BEST, precision)
    ids, types = make_sequences(captured.model, [1, 2, 15, 16, 17, 33, 48, 49, 65, 3, 73])
    together = engine.run(pack(ids, types)).arrays["logits"].copy()
    logits, _ = run_padded(captured.model.theirs, ids, types)
    check_close(together, logits, tolerance=find_tolerances(captured, ENCODER_TOLERANCES)[precision])
    if BEST != "torch":
        alone = [
            engine.run(pack([each], [kinds])).arrays["logits"].copy() for each, kinds in zip(ids, types, strict=True)
        ]
        np.testing.assert_array_equal(np.concatenate(alone), together)
    assert not engine.info.unplanned_ops


@pytest.mark.parametrize("name", ["modernbert-biased", "eurobert", "gte"])
def test_projections_and_gates_are_fused(find_classifier: Find, name: str) -> None:
    """A layer has four products: of queries, keys and values at once; the gate and what it lets through at once."""
    graph_module = copy_graph(find_classifier(name).graph_module)
    choice = PrecisionChoice("fp32", torch.float32, "")
    run_passes(graph_module, list_passes(choice, plain_backend(torch.device("cpu"))), lambda *_: None)
    counts = Counter(node.target for node in graph_module.graph.nodes)
    num_layers = CONFIGS[name]().num_hidden_layers
    assert counts[LINEAR] + counts[linear_act.OP] == 4 * num_layers + 2
    assert counts[gated_act.OP] == num_layers and not counts[torch.ops.aten.mul.Tensor]
