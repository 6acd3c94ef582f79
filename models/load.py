"""A model directory to the module that engines are built from, its weights still unread."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from models.adapter_files import open_adapters
from models.config import EncoderConfig, read_config
from models.decoder_config import read_decoder_config
from models.family import Family, Renames
from models.further_heads import FurtherHead
from models.head_modules import build_embedding_head, build_token_head, open_module_weights
from models.heads import (
    ClassificationHead,
    DeepTokenClassificationHead,
    LateClassificationHead,
    MaskHead,
    SparseHead,
    TextModel,
    TokenClassificationHead,
    TokenEmbeddingHead,
    WordHead,
)
from models.info import CLASSIFIER_SUFFIX, QUESTION_ANSWERER_SUFFIX, TOKEN_CLASSIFIER_SUFFIX, ModelInfo
from models.keys import ModelDirectoryError, read_keys
from models.late_interaction import ARCHITECTURE
from models.load_causal import load_causal
from models.load_seq2seq import load_seq2seq
from models.registry import find_decoder, find_family, is_decoder
from models.weights import (
    check_weights,
    cut_joined,
    have_equal_values,
    open_checkpoint,
    rename_tensors,
    resolve_tied_head,
)
from runtime.lazy_module import LazyModule, LazyWeight

TRUNK, OWN = "encoder.", "head."
"""What a checkpoint's names begin with once they are ours; others are left over, and told of once."""
WORD_TABLE = "encoder.embeddings.word.weight"
WORD_HEADS: dict[str, type[WordHead]] = {"sparse": SparseHead, "fill_mask": MaskHead}
TOKEN_HEADS: dict[str, Renames] = {
    TOKEN_CLASSIFIER_SUFFIX: ((r"classifier\.(weight|bias)", r"output.\1"),),
    QUESTION_ANSWERER_SUFFIX: ((r"qa_outputs\.(weight|bias)", r"output.\1"),),
}
"""All families name the heads over single tokens alike."""


def load_model(directory: Path, info: ModelInfo, heads: Sequence[FurtherHead] = ()) -> LazyModule:
    """The module for `info.task`, with what reads its weights from the directory: fp32, on the CPU. `heads`: further
    ones on an encoder. An encoder-decoder's is its decoder's, with the encoder's beside it.

    Raises ModelDirectoryError where they do not fit.
    """
    if info.task == "generate":
        return load_decoder(directory, info)
    if info.seq2seq is not None:
        return load_seq2seq(directory, info)
    return (load_causal if is_decoder(info.architecture) else load_encoder)(directory, info, heads)


def load_decoder(directory: Path, info: ModelInfo) -> LazyModule:
    """A language model, whose head is its own or its table of embeddings."""
    folder = directory / info.transformer
    config = replace(read_decoder_config(folder), max_input_tokens=info.max_input_tokens)
    family = find_decoder(info.architecture, config.model_type)
    with torch.device("meta"):
        model = family.decoder(config)
    tensors = rename_tensors(open_checkpoint(folder), family.prefix, family.renames, family.ignored)
    if config.is_tied:
        resolve_tied_head(tensors, "lm_head.weight", "embedding.weight", folder)
    return LazyModule(model.eval(), check_weights(model, family.adjust(tensors, config), folder))


def load_encoder(directory: Path, info: ModelInfo, heads: Sequence[FurtherHead]) -> LazyModule:
    """The encoder with its head for `info.task`, and the further ones."""
    folder = directory / info.transformer
    family = find_family(info.architecture, read_keys(folder)["model_type"])
    config = read_config(folder)
    with torch.device("meta"):
        head = build_head(directory, family, config, info)
        further = {each.info.head: build_head(each.directory, family, config, each.info) for each in heads}
        late = info.late_interaction
        is_masked = late is not None and late.has_unseen_tokens
        model = TextModel(family.encoder(config), head, further, has_unseen_tokens=is_masked)
    tensors = open_with_head(directory, family, info)
    if config.adapters is not None:
        tensors |= rename_trunk(open_adapters(folder, config.adapters), family)
    for each in heads:
        tensors |= open_further_head(each, family, directory, tensors)
    tensors = drop_spare(tensors, family, dict(model.named_parameters()).keys())
    return LazyModule(model.eval(), check_weights(model, family.adjust(tensors, config), directory))


def rename_trunk(tensors: dict[str, LazyWeight], family: Family) -> dict[str, LazyWeight]:
    """To names below `encoder.`."""
    renames = [(pattern, TRUNK + target) for pattern, target in family.renames]
    return rename_tensors(tensors, family.prefix, renames, family.ignored)


def drop_spare(tensors: dict[str, LazyWeight], family: Family, used: Collection[str]) -> dict[str, LazyWeight]:
    spare = re.compile(f"{TRUNK}({'|'.join(family.spare)})")
    return {name: value for name, value in tensors.items() if name in used or not spare.fullmatch(name)}


def open_further_head(
    head: FurtherHead, family: Family, directory: Path, trunk: Mapping[str, LazyWeight]
) -> dict[str, LazyWeight]:
    """Its weights, below `heads.`. Raises ModelDirectoryError where it was trained on another trunk."""
    tensors = open_with_head(head.directory, family, head.info)
    if head.directory != directory:
        for name in sorted(tensors.keys() & trunk.keys()):
            if name.startswith(TRUNK) and not have_equal_values(tensors[name].read(), trunk[name].read()):
                raise ModelDirectoryError(
                    f"{head.directory}: {name} is not what it is in {directory}: this head was trained on another "
                    "encoder, and cannot share that one. Serve it as a model of its own"
                )
    return {
        f"heads.{head.info.head}.{name.removeprefix(OWN)}": value
        for name, value in tensors.items()
        if name.startswith(OWN) or (head.directory != directory and not name.startswith(TRUNK))
    }


def open_with_head(directory: Path, family: Family, info: ModelInfo) -> dict[str, LazyWeight]:
    """A directory's tensors, below `encoder.` and `head.`."""
    tensors = open_encoder(directory / info.transformer, family, info)
    for name, value in open_module_weights(directory, info.modules).items():
        tensors[f"head.chain.{name}"] = value
    return tensors


def build_head(directory: Path, family: Family, config: EncoderConfig, info: ModelInfo) -> nn.Module:
    if info.task == "token_embed":
        return TokenEmbeddingHead()
    if info.task in ("multi_vector", "token_weights"):
        return build_token_head(directory, config.hidden_size, info)
    if info.task in WORD_HEADS:
        activation = config.head.activation or family.word_head_activation or config.activation
        return WORD_HEADS[info.task](config, activation, is_tied=info.has_tied_words)
    activation = config.head.pooler_activation or config.head.activation or family.head_activation
    if info.task in ("token_classify", "question_answering"):
        if config.head.has_norm:
            return DeepTokenClassificationHead(config, info.output_dim, activation)
        return TokenClassificationHead(config.hidden_size, info.output_dim)
    if info.task == "classify":
        is_late = config.head.pooling == "late"
        return (LateClassificationHead if is_late else ClassificationHead)(config, info.output_dim, activation)
    return build_embedding_head(directory, config.hidden_size, info)


def open_encoder(folder: Path, family: Family, info: ModelInfo) -> dict[str, LazyWeight]:
    """The checkpoint under our names. Embedding with a classifier's checkpoint leaves its head unused.

    A language model's output head is ignored, but where it is tied it may be the name under which the table is stored.
    """
    renames = [(pattern, TRUNK + target) for pattern, target in family.renames]
    ignored = list(family.ignored)
    head_renames = choose_head_renames(family, info)
    if info.task in ("embed", "token_embed", "multi_vector", "token_weights"):
        ignored += [pattern for pattern, _ in head_renames]
        ignored += [r"linear\.weight"] if info.architecture == ARCHITECTURE else []
    else:
        renames += [(pattern, f"head.{target}") for pattern, target in head_renames]
    checkpoint = open_checkpoint(folder)
    tensors = cut_joined(rename_tensors(checkpoint, family.prefix, renames, ignored))
    if family.tied_head in checkpoint and read_keys(folder).get("tie_word_embeddings", True):
        tensors.setdefault(WORD_TABLE, checkpoint[family.tied_head])
    return tensors


def choose_head_renames(family: Family, info: ModelInfo) -> Renames:
    """Of the head that the checkpoint has and that is wanted; none where it has only an encoder."""
    architecture = info.architecture
    if info.task in WORD_HEADS:
        table = () if info.has_tied_words else ((re.escape(family.tied_head), "table"),)
        return family.word_head_renames + table
    for suffix, renames in TOKEN_HEADS.items():
        if architecture.endswith(suffix):
            return family.token_head_renames + renames
    return family.head_renames if architecture.endswith(CLASSIFIER_SUFFIX) else ()
