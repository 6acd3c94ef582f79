"""EmbeddingGemma: Gemma 3 that looks both ways, within windows in most layers, and two Dense layers behind the mean."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_dirs import write_directory
from tiny_decoders import GROUPED, LAYER_TYPES, make_ids, randomize
from tiny_engines import BEST, Captured, capture_model
from tiny_models import TinyModel, pack
from torch import Tensor
from torch.nn import functional

from models.further_heads import list_own_heads
from models.info import ModelDirectoryError, read_info
from tests.tolerances import ENCODER_TOLERANCES, check_close

SEQLENS = [1, 2, 4, 5, 6, 9, 10, 40, 79]
"""Around the windows."""
WIDTHS = {"even": 8, "odd": 9}
MODULES = [
    ("Pooling", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}),
    ("Dense", {"in_features": 32, "out_features": 48, "bias": False, "activation_function": "torch.nn.Identity"}),
    ("Dense", {"in_features": 48, "out_features": 32, "bias": False, "activation_function": "torch.nn.Identity"}),
    ("Normalize", None),
]

Find = Callable[[str], Captured]


def make_model(directory: Path, width: int) -> TinyModel:
    config = transformers.Gemma3TextConfig(
        **GROUPED,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=width,
        layer_types=LAYER_TYPES,
        use_bidirectional_attention=True,
    )
    torch.set_num_threads(1)
    torch.manual_seed(width)
    theirs = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    randomize(theirs)
    theirs.save_pretrained(directory / "base")
    write_directory(directory / "base", directory / "whole", MODULES, {})
    info = read_info(directory / "whole")
    return TinyModel(directory / "whole", theirs, info, list_own_heads(directory / "whole", info))


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    return cache(lambda name: capture_model(lambda: make_model(tmp_path_factory.mktemp(name), WIDTHS[name])))


@torch.no_grad()
def embed(model: TinyModel, rows: Tensor) -> Tensor:
    """sentence-transformers' tail over the rows of one text."""
    vector = rows.mean(0, keepdim=True)
    for index in (2, 3):
        weights = load_file(model.directory / f"{index}_Dense" / "model.safetensors")
        vector = functional.linear(vector, weights["linear.weight"])
    return functional.normalize(vector, dim=-1)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("odd", "fp32"),
        ("odd", "int8"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("even", "fp32"), ("odd", "bf16"))),
    ],
)
def test_matches_transformers(find: Find, name: str, precision: str) -> None:
    """Rows of every token and vectors; alone as in a batch."""
    captured, ids = find(name), make_ids(SEQLENS)
    engine = captured.build(BEST, precision)
    found = {each: array.copy() for each, array in engine.run(pack(ids)).arrays.items()}
    with torch.no_grad():
        rows = [captured.model.theirs(torch.from_numpy(each)[None]).last_hidden_state[0] for each in ids]
    tolerance = ENCODER_TOLERANCES[precision]
    check_close(found["tokens.token_embeddings"], torch.cat(rows), tolerance=tolerance)
    expected = torch.cat([embed(captured.model, each) for each in rows])
    check_close(found["embeddings"], expected, tolerance=tolerance)
    alone = [engine.run(pack([each])).arrays["embeddings"].copy() for each in ids]
    np.testing.assert_array_equal(np.concatenate(alone), found["embeddings"])
    assert not engine.info.unplanned_ops


def test_it_does_not_generate(tmp_path: Path) -> None:
    """A head of words makes no generator of what sees the words that are not there yet."""
    transformers.Gemma3TextConfig(
        **GROUPED, head_dim=16, use_bidirectional_attention=True, architectures=["Gemma3ForCausalLM"]
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelDirectoryError, match=r"use_bidirectional_attention is True: .* Set task: embed"):
        read_info(tmp_path)
    assert read_info(tmp_path, task="embed", pooling="mean").task == "embed"
