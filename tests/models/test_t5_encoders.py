"""T5's encoder by itself embeds, as sentence-T5 and GTR: a mean, a Dense layer without bias, vectors of length 1."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_dirs import write_directory
from tiny_decoders import make_ids
from tiny_engines import BEST, Captured, capture_model
from tiny_models import TinyModel, build, pack
from tiny_seq2seq import CONFIGS, make_seq2seq, randomize, soften
from torch.nn import functional

from models.further_heads import list_own_heads
from models.info import ModelDirectoryError, read_info
from models.load import load_model
from tests.tolerances import ENCODER_TOLERANCES, SAME_ENGINE, check_close

SEQLENS = [1, 2, 9, 16, 17, 40, 70]
"""Far over the distances that are told apart."""
CLASSES: dict[str, Any] = {
    "t5": transformers.T5EncoderModel,
    "mt5": transformers.MT5EncoderModel,
    "umt5": transformers.UMT5EncoderModel,
}
MODULES = [
    ("Pooling", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}),
    ("Dense", {"in_features": 32, "out_features": 24, "bias": False, "activation_function": "torch.nn.Identity"}),
    ("Normalize", None),
]

Find = Callable[[str], Captured]


def make_model(name: str, directory: Path) -> TinyModel:
    torch.set_num_threads(1)
    torch.manual_seed(len(name))
    theirs = CLASSES[name](CONFIGS[name]()).eval()
    randomize(theirs)
    soften(theirs)
    theirs.save_pretrained(directory / "base")
    write_directory(directory / "base", directory / "whole", MODULES, {})
    info = read_info(directory / "whole")
    return TinyModel(directory / "whole", theirs, info, list_own_heads(directory / "whole", info))


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    return cache(lambda name: capture_model(lambda: make_model(name, tmp_path_factory.mktemp(name))))


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(("t5", "fp32"), ("t5", "int8")),
        *(pytest.param("t5", "bf16", marks=pytest.mark.slow), pytest.param("mt5", "fp32", marks=pytest.mark.slow)),
        *(pytest.param("umt5", precision, marks=pytest.mark.slow) for precision in ("fp32", "int8")),
    ],
)
def test_matches_transformers(find: Find, name: str, precision: str) -> None:
    """Rows of every token and vectors; alone as in a batch."""
    captured, ids = find(name), make_ids(SEQLENS)
    engine = captured.build(BEST, precision)
    found = {each: array.copy() for each, array in engine.run(pack(ids)).arrays.items()}
    with torch.no_grad():
        rows = [captured.model.theirs(torch.from_numpy(each)[None]).last_hidden_state[0] for each in ids]
    # UMT5 is gated: see `find_tolerances`.
    tolerance = ENCODER_TOLERANCES[precision].times(2 if name == "umt5" and precision != "fp32" else 1)
    check_close(found["tokens.token_embeddings"], torch.cat(rows), tolerance=tolerance)
    dense = load_file(captured.model.directory / "2_Dense" / "model.safetensors")["linear.weight"]
    vectors = functional.normalize(functional.linear(torch.stack([each.mean(0) for each in rows]), dense), dim=-1)
    check_close(found["embeddings"], vectors, tolerance=tolerance)
    alone = [engine.run(pack([each])).arrays["embeddings"].copy() for each in ids]
    np.testing.assert_array_equal(np.concatenate(alone), found["embeddings"])
    assert not engine.info.unplanned_ops


def test_whole_model_embeds_by_its_encoder(tmp_path: Path) -> None:
    """Of which an old checkpoint has the table under each of its names."""
    model = make_seq2seq("t5-gated", tmp_path)
    model = TinyModel(model.directory, model.theirs, read_info(tmp_path, task="embed", pooling="mean"))
    assert (model.info.task, model.info.output_dim, model.info.seq2seq) == ("embed", 32, None)
    expected = build(model, kind="reference").run(pack(make_ids(SEQLENS))).arrays["embeddings"].copy()
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 4)
    save_file(tensors, tmp_path / "model.safetensors")
    found = build(model, kind="reference").run(pack(make_ids(SEQLENS))).arrays["embeddings"]
    check_close(found, expected, tolerance=SAME_ENGINE)


def test_modules_make_an_embedder_of_it(tmp_path: Path) -> None:
    make_seq2seq("t5", tmp_path / "base")
    write_directory(tmp_path / "base", tmp_path / "whole", MODULES, {})
    assert read_info(tmp_path / "whole").task == "embed"
    assert read_info(tmp_path / "base").task == "text2text"
    with pytest.raises(ModelDirectoryError, match="'BartForConditionalGeneration' is not served"):
        make_seq2seq("bart", tmp_path / "bart")
        load_model(tmp_path / "bart", read_info(tmp_path / "bart", task="embed", pooling="mean"))
