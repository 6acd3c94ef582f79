"""An encoder-decoder's directory to its two modules, of which the decoder's has the encoder's beside it."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from models.info import ModelInfo
from models.keys import ModelDirectoryError
from models.registry import find_seq2seq
from models.seq2seq import TargetDecoder
from models.seq2seq_config import Seq2SeqConfig, read_seq2seq_config
from models.weights import check_weights, have_equal_values, open_checkpoint, rename_tensors
from runtime.lazy_module import LazyModule, LazyWeight

SHARED = "shared.weight"
SOURCE_WORDS, TARGET_WORDS = "encoder.embeddings.word.weight", "decoder.embeddings.word.weight"
HEAD, LOGIT_BIAS = "decoder.lm_head.weight", "decoder.logit_bias"


def load_seq2seq(directory: Path, info: ModelInfo) -> LazyModule:
    """Raises ModelDirectoryError where the weights do not fit.

    Which head there is the weights say: config.json of T5 and its kin says the same of both kinds.
    """
    folder = directory / info.transformer
    config = read_seq2seq_config(folder)
    config = replace(config, alignment_heads=find_alignment_heads(info, config, folder))
    family = find_seq2seq(info.architecture, config.model_type)
    renamed = rename_tensors(open_checkpoint(folder), family.prefix, family.renames, family.ignored)
    tensors = share_words(family.adjust(renamed, config), config)
    if LOGIT_BIAS in tensors:
        tensors[LOGIT_BIAS] = tensors[LOGIT_BIAS].then(torch.flatten)
    with torch.device("meta"):
        has_head, has_logit_bias = HEAD in tensors or not config.is_tied, LOGIT_BIAS in tensors
        decoder = TargetDecoder(config, has_head=has_head, has_logit_bias=has_logit_bias)
        both = nn.ModuleDict({"encoder": family.encoder(config), "decoder": decoder}).eval()
    weights = check_weights(both, tensors, folder)
    encoder = LazyModule(both["encoder"], take_part(weights, "encoder."))
    return LazyModule(both["decoder"], take_part(weights, "decoder."), encoder)


def find_alignment_heads(info: ModelInfo, config: Seq2SeqConfig, folder: Path) -> tuple[tuple[int, int], ...]:
    """By which sound is aligned, as a directory has them; for coverage, all of the last layer. Raises
    ModelDirectoryError."""
    rules, layers, count = info.seq2seq, config.decoder.num_layers, config.decoder.num_heads
    assert rules is not None, f"{info.architecture} has no rules of decoding. This is a bug."
    if rules.has_coverage:
        return tuple((layers - 1, head) for head in range(count))
    heads = () if rules.speech is None else rules.speech.alignment_heads
    for layer, head in heads:
        if layer >= layers or head >= count:
            raise ModelDirectoryError(
                f"{folder}/generation_config.json: alignment_heads has [{layer}, {head}], and the decoder {layers} "
                f"layers of {count} heads; take the file from the original model"
            )
    return heads


def share_words(tensors: dict[str, LazyWeight], config: Seq2SeqConfig) -> dict[str, LazyWeight]:
    """A checkpoint has the tables of both stacks, or one that they share; and the head, or is tied to the decoder's.

    Under any of these names may be what is the same. A head of other values is one of its own whatever `is_tied`, as
    transformers takes it.
    """
    found = dict(tensors)
    shared, head = found.pop(SHARED, None), found.get(HEAD)
    tied = (found.get(TARGET_WORDS), found.get(SOURCE_WORDS), head) if config.is_tied else ()
    table = next((each for each in (shared, *tied) if each is not None), None)
    for name in (TARGET_WORDS,) if config.num_mel_bins else (SOURCE_WORDS, TARGET_WORDS):
        if table is not None:
            found.setdefault(name, table)
    if config.is_tied and head is not None and is_same(head, found[TARGET_WORDS]):
        del found[HEAD]
    return found


def is_same(head: LazyWeight, table: LazyWeight) -> bool:
    return head is table or have_equal_values(head.read(), table.read())


def take_part(weights: dict[str, LazyWeight], prefix: str) -> dict[str, LazyWeight]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
