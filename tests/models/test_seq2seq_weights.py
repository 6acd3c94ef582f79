"""Encoder-decoders' checkpoints: under which names tables and heads are, what old files have, what is missing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from seq2seq_steps import Pair, load_pair
from tiny_models import TinyModel
from tiny_seq2seq import make_seq2seq
from torch import Tensor

from models.info import ModelDirectoryError

Edit = Callable[[dict[str, Tensor]], object]
SHARED, HEAD = "model.shared.weight", "lm_head.weight"
TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


def edit(model: TinyModel, change: Edit) -> None:
    file = model.directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, {"format": "pt"})


def check_same(ours: Pair, others: Pair) -> None:
    for mine, theirs in ((ours.encoder, others.encoder), (ours.decoder, others.decoder)):
        expected = dict(theirs.named_parameters())
        assert dict(mine.named_parameters()).keys() == expected.keys()
        for name, parameter in mine.named_parameters():
            assert parameter.dtype == torch.float32 and parameter.is_contiguous()
            torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0)


def put_table(tensors: dict[str, Tensor], table: Tensor, names: tuple[str, ...]) -> None:
    """Under these names and no others."""
    for name in (SHARED, *TABLES, HEAD):
        tensors.pop(name, None)
    tensors |= {name: table.clone() for name in names}


def test_tied_table_under_any_of_its_names(tmp_path: Path) -> None:
    model = make_seq2seq("bart", tmp_path)
    expected = load_pair(model)
    assert expected.decoder.lm_head is None
    whole = load_file(tmp_path / "model.safetensors")
    assert not {*TABLES, HEAD} & whole.keys()
    for names in (TABLES, TABLES[1:], (HEAD,), (SHARED, *TABLES, HEAD)):
        edit(model, lambda tensors, names=names: put_table(tensors, whole[SHARED], names))
        check_same(load_pair(model), expected)


def test_head_of_other_values_is_its_own(tmp_path: Path) -> None:
    """As transformers has it, whatever tie_word_embeddings says; T5's says the same of both kinds."""
    model = make_seq2seq("bart", tmp_path)
    edit(model, lambda tensors: tensors.update({HEAD: tensors[SHARED] + 1}))
    pair = load_pair(model)
    assert pair.decoder.lm_head is not None
    torch.testing.assert_close(pair.decoder.lm_head.weight, pair.decoder.embeddings.word.weight + 1, rtol=0, atol=0)
    head = load_pair(make_seq2seq("t5-gated", tmp_path / "t5")).decoder.lm_head
    assert head is not None and "lm_head.weight" in load_file(tmp_path / "t5" / "model.safetensors")


def test_tables_that_are_not_tied_may_differ(tmp_path: Path) -> None:
    model = make_seq2seq("m2m_100-untied", tmp_path)
    tensors, pair = load_file(tmp_path / "model.safetensors"), load_pair(model)
    assert pair.decoder.lm_head is not None
    found = [pair.encoder.embeddings.word, pair.decoder.embeddings.word, pair.decoder.lm_head]
    for name, table in zip((*TABLES, HEAD), found, strict=True):
        torch.testing.assert_close(table.weight, tensors[name], rtol=0, atol=0)
    edit(model, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(ModelDirectoryError, match=r"missing: decoder\.lm_head\.weight$"):
        load_pair(model)


def test_without_numbers_for_logits(tmp_path: Path) -> None:
    """transformers takes zeros for them."""
    model = make_seq2seq("marian", tmp_path)
    assert load_pair(model).decoder.logit_bias is not None
    edit(model, lambda tensors: tensors.pop("final_logits_bias"))
    assert load_pair(model).decoder.logit_bias is None


@pytest.mark.parametrize("name", ["bart", "marian", "m2m_100"])
def test_what_old_files_have(name: str, tmp_path: Path) -> None:
    """No prefix, fairseq's version, sinusoids; in pieces, as pickles."""
    model = make_seq2seq(name, tmp_path)
    expected = load_pair(model)
    tensors = {key.removeprefix("model."): value for key, value in load_file(tmp_path / "model.safetensors").items()}
    tensors["encoder.version"] = torch.tensor([3.0])
    if name != "bart":
        leaf = "weight" if name == "marian" else "weights"
        tensors |= {f"{stack}.embed_positions.{leaf}": torch.ones(82, 32) for stack in ("encoder", "decoder")}
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {key: f"pytorch_model-{index % 2}.bin" for index, key in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({key: tensors[key] for key in names if weight_map[key] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check_same(load_pair(model), expected)


def test_half_precisions_become_fp32(tmp_path: Path) -> None:
    model = make_seq2seq("whisper", tmp_path)
    edit(model, lambda tensors: tensors.update({key: value.half() for key, value in tensors.items()}))
    half = load_pair(model)
    edit(model, lambda tensors: tensors.update({key: value.float() for key, value in tensors.items()}))
    check_same(half, load_pair(model))


FAULTS: dict[str, tuple[str, Edit, str]] = {
    "source keys": (
        "bart",
        lambda t: t.pop("model.decoder.layers.1.encoder_attn.k_proj.weight"),
        r"missing: encoder\.keys\.1\.k\.weight$",
    ),
    "cross-attention": (
        "t5",
        lambda t: t.pop("decoder.block.2.layer.1.EncDecAttention.q.weight"),
        r"missing: decoder\.stack\.layers\.2\.cross_attention\.block\.q\.weight$",
    ),
    "bias by distance": (
        "umt5",
        lambda t: t.pop("decoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),
        r"missing: decoder\.stack\.biases\.1\.rows\.weight$",
    ),
    "table": (
        "bart",
        lambda t: t.pop(SHARED),
        r"missing: decoder\.embeddings\.word\.weight, encoder\.embeddings\.word\.weight$",
    ),
    "adapter": (
        "bart",
        lambda t: t.update({"model.encoder.adapter.weight": torch.ones(2)}),
        r"left over: model\.encoder\.adapter\.weight$",
    ),
    "positions": (
        "mbart",
        lambda t: t.update({"model.encoder.embed_positions.weight": torch.ones(90, 32)}),
        r"misshapen: encoder\.embeddings\.position\.weight \[88, 32\] instead of \[80, 32\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str, tmp_path: Path) -> None:
    name, change, message = FAULTS[fault]
    model = make_seq2seq(name, tmp_path)
    edit(model, change)
    with pytest.raises(ModelDirectoryError, match=message):
        load_pair(model)
