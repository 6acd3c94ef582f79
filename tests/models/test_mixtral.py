"""Decoders with experts: checkpoints with a weight for each expert and with one for all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_decoders import make_decoder
from tiny_models import TinyModel
from torch import Tensor

from models.decoder_layers import Decoder
from models.info import ModelDirectoryError
from models.load import load_model

LAYER = "model.layers.1."


def load(model: TinyModel) -> Decoder:
    module = load_model(model.directory, model.info).fill()
    assert isinstance(module, Decoder)
    return module


def rewrite(model: TinyModel, tensors: dict[str, Tensor]) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, model.directory / "model.safetensors")


def list_forms(tensors: dict[str, Tensor], names: tuple[str, str, str]) -> dict[str, dict[str, Tensor]]:
    """Experts' weights under `names` (gate, down, up), as published, and all of a layer as one."""
    published: dict[str, Tensor] = {}
    fused: dict[str, Tensor] = {}
    for name, value in tensors.items():
        owner, _, rest = name.partition(".experts.")
        if not rest:
            published[name] = fused[name] = value
            continue
        expert, _, part = rest.partition(".")
        published[name] = value
        fused.setdefault(f"{owner.replace('block_sparse_moe', 'mlp')}.experts", torch.empty(0))
        assert part.removesuffix(".weight") in names and expert.isdigit()
    for owner in [name for name in fused if name.endswith(".experts")]:
        del fused[owner]
        source = owner if f"{owner}.0.{names[0]}.weight" in tensors else owner.replace(".mlp.", ".block_sparse_moe.")
        count = sum(name.startswith(f"{source}.") and name.endswith(f".{names[0]}.weight") for name in tensors)
        each = [[tensors[f"{source}.{expert}.{part}.weight"] for part in names] for expert in range(count)]
        fused[f"{owner}.gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, _, up in each])
        fused[f"{owner}.down_proj"] = torch.stack([down for _, down, _ in each])
    return {"published": published, "fused": fused}


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("mixtral", ("w1", "w2", "w3")),
        pytest.param("qwen2_moe", ("gate_proj", "down_proj", "up_proj"), marks=pytest.mark.slow),
    ],
)
def test_one_weight_for_all_experts(name: str, names: tuple[str, str, str], tmp_path: Path) -> None:
    model = make_decoder(name, tmp_path)
    expected = dict(load(model).named_parameters())
    forms = list_forms(load_file(tmp_path / "model.safetensors"), names)
    assert len(forms["fused"]) < len(forms["published"])
    rewrite(model, forms["fused"])
    found = dict(load(model).named_parameters())
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


def test_missing_and_misshapen_experts_are_named(tmp_path: Path) -> None:
    model = make_decoder("mixtral", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(key for key in tensors if ".1." in key and key.endswith(".experts.3.w2.weight"))
    rewrite(model, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(
        ModelDirectoryError, match=r"missing: layers\.1\.feed_forward\.down; left over: .*experts\.0\.down"
    ):
        load(model)
    rewrite(model, tensors | {name: torch.ones(3, 3)})
    with pytest.raises(ModelDirectoryError, match=r"missing: layers\.1\.feed_forward\.down"):
        load(model)
