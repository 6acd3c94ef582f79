"""The chain behind the Transformer: as sentence-transformers computes it, from files in its format."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_engines import BEST, Captured, capture_model
from tiny_models import TinyModel, build, make_model, make_sequences, pack, run_module, run_padded
from torch import Tensor
from torch.nn import functional

from models.info import ModelDirectoryError, read_info
from models.load import load_model
from models.pooling import WEIGHTED
from tests.tolerances import check_close

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.ReLU": torch.relu,
    "torch.nn.modules.activation.SiLU": functional.silu,
    "torch.nn.modules.activation.GELU": functional.gelu,
    "torch.nn.modules.linear.Identity": lambda x: x,
}
SEQLENS = [5, 1, 17, 17, 80]


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_modules(directory: Path, *kinds: str) -> None:
    folders = ["" if kind == "Transformer" else f"{index}_{kind}" for index, kind in enumerate(kinds)]
    types = [f"sentence_transformers.models.{kind}" for kind in kinds]
    rows = [{"path": folder, "type": kind} for folder, kind in zip(folders, types, strict=True)]
    write_json(directory / "modules.json", rows)


def write_dense(folder: Path, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    settings = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": bias is not None}
    write_json(folder / "config.json", settings | {"activation_function": activation})
    tensors = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    save_file(tensors, folder / "model.safetensors")


def pool_mean(model: TinyModel) -> tuple[Tensor, list[list[int]]]:
    """transformers' rows, averaged."""
    ids, types = make_sequences(model, SEQLENS)
    hidden_states, mask = run_padded(model.theirs, ids, types)
    return (hidden_states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), [ids, types]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_modules(activation: str, tmp_path: Path) -> None:
    """Two of them, the first with a bias; then to length 1."""
    model = make_model("bert", tmp_path)
    first, bias, second = torch.randn(24, 32), torch.randn(24), torch.randn(7, 24)
    write_modules(tmp_path, "Transformer", "Pooling", "Dense", "Dense", "Normalize")
    write_json(tmp_path / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    write_dense(tmp_path / "2_Dense", first, bias, activation)
    write_dense(tmp_path / "3_Dense", second, None, "torch.nn.modules.linear.Identity")
    model = TinyModel(tmp_path, model.theirs, read_info(tmp_path))
    pooled, inputs = pool_mean(model)
    expected = functional.normalize(ACTIVATIONS[activation](pooled @ first.T + bias) @ second.T, dim=-1)
    check_close(run_module(model, pack(*inputs))["embeddings"], expected, what="module")
    if activation.endswith("Tanh"):
        check_close(build(model).run(pack(*inputs)).arrays["embeddings"], expected, what="planned")


def test_heads_stay_fp32(tmp_path: Path) -> None:
    """In a BF16 engine too: a vector's length is 1 to fp32's precision."""
    model = make_model("bert", tmp_path)
    write_modules(tmp_path, "Transformer", "Pooling", "Normalize")
    write_json(tmp_path / "1_Pooling/config.json", {"pooling_mode": "mean"})
    model = TinyModel(tmp_path, model.theirs, read_info(tmp_path))
    rows = build(model, precision="bf16").run(pack(*make_sequences(model, SEQLENS))).arrays["embeddings"]
    check_close((rows**2).sum(1), torch.ones(len(SEQLENS)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.Mish"},
            r"activation\.Mish' is not supported; supported are",
        ),
        ({"use_residual": True}, "use_residual is not supported"),
        ({"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings' is not supported"),
        ({"in_features": 16}, r"config\.json: in_features is 16, but the module gets rows of 32 numbers"),
        ({"in_features": None}, "in_features is None"),
        ({"bias": False}, r"left over: head\.chain\.0\.linear\.bias"),
        ({"out_features": 9}, r"misshapen: head\.chain\.0\.linear\.bias \[8\] instead of \[9\]"),
    ],
)
def test_dense_that_is_refused(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    make_model("bert", tmp_path)
    write_modules(tmp_path, "Transformer", "Pooling", "Dense")
    write_json(tmp_path / "1_Pooling/config.json", {"pooling_mode": "mean"})
    write_dense(tmp_path / "2_Dense", torch.randn(8, 32), torch.randn(8), "torch.nn.modules.linear.Identity")
    path = tmp_path / "2_Dense/config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | settings)
    with pytest.raises(ModelDirectoryError, match=message):
        load_model(tmp_path, read_info(tmp_path))


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """The modes that `padless::pool` does not have, side by side with one that it has."""
    model = make_model("bert", tmp_path_factory.mktemp("weighted"))
    info = replace(model.info, pooling=(*WEIGHTED, "max"), output_dim=96)
    return capture_model(lambda: TinyModel(model.directory, model.theirs, info))


POOL: dict[str, Callable[[Tensor], Tensor]] = {
    "weighted_mean": lambda rows: torch.arange(1, len(rows) + 1.0) @ rows / torch.arange(1, len(rows) + 1.0).sum(),
    "mean_sqrt_len": lambda rows: rows.sum(0) / len(rows) ** 0.5,
    "max": lambda rows: rows.amax(0),
}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weighted_poolings(weighted: Captured, precision: str, dtype: torch.dtype) -> None:
    ids, types = make_sequences(weighted.model, SEQLENS)
    hidden_states, _ = run_padded(weighted.model.theirs, ids, types)
    spans = [rows[:seqlen] for rows, seqlen in zip(hidden_states, SEQLENS, strict=True)]
    expected = torch.stack([torch.cat([POOL[mode](span) for mode in weighted.model.info.pooling]) for span in spans])
    found = weighted.build(BEST, precision).run(pack(ids, types)).arrays["embeddings"]
    check_close(found, expected, dtype)


def test_unknown_pooling(tmp_path: Path) -> None:
    make_model("bert", tmp_path)
    with pytest.raises(ModelDirectoryError, match="pooling median is not supported; supported are mean, max"):
        load_model(tmp_path, read_info(tmp_path, pooling="median"))
