"""Decoders' checkpoints: heads that are tied or not, buffers of old files, what is missing and left over."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paging import compute_logits, whole
from safetensors.torch import load_file, save_file
from tiny_decoders import make_decoder, make_ids, run_alone
from tiny_models import TinyModel
from torch import Tensor

from models.decoder_layers import Decoder
from models.info import ModelDirectoryError
from models.load import load_model
from tests.tolerances import check_close

Edit = Callable[[dict[str, Tensor]], object]


def edit(model: TinyModel, change: Edit) -> None:
    file = model.directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def load(model: TinyModel) -> Decoder:
    module = load_model(model.directory, model.info).fill()
    assert isinstance(module, Decoder)
    return module


def check_same(ours: Decoder, others: Decoder) -> None:
    expected = dict(others.named_parameters())
    assert dict(ours.named_parameters()).keys() == expected.keys()
    for name, parameter in ours.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.is_contiguous()
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0)


EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def test_tied_head_in_the_file(tmp_path: Path) -> None:
    model = make_decoder("llama", tmp_path)
    expected = load(model)
    assert expected.lm_head is None
    assert HEAD not in load_file(tmp_path / "model.safetensors")
    edit(model, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    check_same(load(model), expected)


@pytest.mark.parametrize(("name", "table"), [("llama", EMBEDDING), ("gpt2", "transformer.wte.weight")])
def test_tied_table_under_the_name_of_the_head(name: str, table: str, tmp_path: Path) -> None:
    """As safetensors' own `save_model` leaves it: of two names for one tensor it keeps the first in the alphabet."""
    model = make_decoder(name, tmp_path)
    expected = load(model)
    edit(model, lambda tensors: tensors.update({HEAD: tensors.pop(table)}))
    check_same(load(model), expected)


@pytest.mark.parametrize(("table", "head"), [(torch.float16, torch.float32), (torch.float32, torch.bfloat16)])
def test_tied_head_of_another_type(table: torch.dtype, head: torch.dtype, tmp_path: Path) -> None:
    """Of the same values: only those count."""
    model = make_decoder("llama", tmp_path)
    narrow = torch.float16 if table == torch.float16 else head

    def change(tensors: dict[str, Tensor]) -> None:
        values = tensors[EMBEDDING].to(narrow)
        tensors |= {EMBEDDING: values.to(table), HEAD: values.to(head)}

    edit(model, lambda tensors: tensors.update({EMBEDDING: tensors[EMBEDDING].to(narrow).to(table)}))
    expected = load(model)
    edit(model, change)
    check_same(load(model), expected)


@pytest.mark.parametrize("other", [lambda t: t[EMBEDDING] + 1, lambda t: t[EMBEDDING].half(), lambda t: torch.ones(3)])
def test_tied_head_of_another_value(other: Callable[[dict[str, Tensor]], Tensor], tmp_path: Path) -> None:
    model = make_decoder("llama", tmp_path)
    edit(model, lambda tensors: tensors.update({HEAD: other(tensors)}))
    with pytest.raises(ModelDirectoryError, match=r"an output head of their own, .* Set it to false"):
        load(model)


FAULTS: dict[str, tuple[str, Edit, str]] = {
    "untied head": ("mistral", lambda t: t.pop(HEAD), r"missing: lm_head\.weight$"),
    "tied table": ("gpt2", lambda t: t.pop("transformer.wte.weight"), r"missing: embedding\.weight$"),
    "untied table": ("mistral", lambda t: t.pop(EMBEDDING), r"missing: embedding\.weight$"),
    "projection": (
        "llama",
        lambda t: t.pop("model.layers.1.self_attn.q_proj.weight"),
        r"missing: layers\.1\.attention\.q\.weight$",
    ),
    "norm of heads": (
        "qwen3",
        lambda t: t.pop("model.layers.0.self_attn.k_norm.weight"),
        r"missing: layers\.0\.attention\.k_norm\.weight$",
    ),
    "bias": (
        "llama",
        lambda t: t.update({"model.layers.0.mlp.up_proj.bias": torch.ones(48)}),
        r"left over: layers\.0\.feed_forward\.up\.bias$",
    ),
    "adapter": (
        "gpt2",
        lambda t: t.update({"transformer.h.0.adapter.weight": torch.ones(2)}),
        r"left over: transformer\.h\.0\.adapter\.weight$",
    ),
    "fused projection": (
        "gpt2",
        lambda t: t.pop("transformer.h.2.attn.c_attn.weight"),
        r"missing: layers\.2\.attention\.k\.weight, layers\.2\.attention\.q\.weight, layers\.2\.attention\.v\.weight$",
    ),
    "narrow projection": (
        "gpt2",
        lambda t: t.update({"transformer.h.0.attn.c_attn.weight": torch.ones(32, 93)}),
        r"misshapen: layers\.0\.attention\.k\.weight \[31, 32\] instead of \[32, 32\]",
    ),
    "scalar": (
        "gpt2",
        lambda t: t.update({"transformer.h.0.attn.c_attn.weight": torch.tensor(1.0)}),
        r"missing: .*; left over: layers\.0\.attention\.qkv\.weight$",
    ),
    "fused heads": (
        "falcon",
        lambda t: t.update({"transformer.h.0.self_attention.query_key_value.weight": torch.ones(40, 32)}),
        r"missing: .*; left over: layers\.0\.attention\.qkv\.weight$",
    ),
    "quantised": (
        "gpt2",
        lambda t: t.update({"transformer.h.0.mlp.c_fc.weight": torch.ones(32, 128, dtype=torch.int8)}),
        r"mistyped: layers\.0\.feed_forward\.up\.weight torch\.int8$",
    ),
    "quantised norm": (
        "gemma",
        lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
        r"mistyped: norm\.weight torch\.int8$",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str, tmp_path: Path) -> None:
    name, change, message = FAULTS[fault]
    model = make_decoder(name, tmp_path)
    edit(model, change)
    with pytest.raises(ModelDirectoryError, match=message):
        load(model)


def test_old_gpt2(tmp_path: Path) -> None:
    """As published: no prefix, masks in the file."""
    model = make_decoder("gpt2", tmp_path)
    expected = load(model)

    def age(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(3):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 80, 80).tril()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    edit(model, age)
    check_same(load(model), expected)


def test_old_llama(tmp_path: Path) -> None:
    model = make_decoder("llama", tmp_path)
    expected = load(model)
    edit(
        model, lambda t: t.update({f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(3)})
    )
    check_same(load(model), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_become_fp32(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Also where values are changed on the way: Gemma's 1 + weight would lose bits."""
    model = make_decoder(name, tmp_path)
    edit(model, lambda tensors: tensors.update({key: value.to(dtype) for key, value in tensors.items()}))
    for parameter in model.theirs.parameters():
        parameter.data = parameter.data.to(dtype).float()
    ids = make_ids([9, 4])
    check_close(compute_logits(load(model), ids, whole([9, 4])), run_alone(model.theirs, ids))


def test_layers_share_one_table(tmp_path: Path) -> None:
    """It is no weight of the checkpoint, and there from the start."""
    module = load(make_decoder("llama-yarn", tmp_path))
    buffers = dict(module.named_buffers())
    assert list(buffers) == ["rotary_0"]
    assert buffers["rotary_0"].shape == (80, 8)
    assert "rotary_0" not in module.state_dict()
    assert not list(load(make_decoder("gpt2", tmp_path / "gpt2")).buffers())
