"""A language model's directory to the module that reads with it: embeddings, labels, judgements."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.causal_encoder import CausalEncoder, LastTokenHead
from models.decoder_config import DecoderConfig, read_decoder_config
from models.family import DecoderFamily, Renames
from models.further_heads import FurtherHead
from models.head_modules import build_embedding_head, open_module_weights
from models.heads import TextModel, TokenEmbeddingHead
from models.info import ModelInfo
from models.keys import ModelDirectoryError
from models.registry import find_decoder
from models.weights import check_weights, open_checkpoint, rename_tensors
from runtime.lazy_module import LazyModule, LazyWeight

SCORE: Renames = ((r"score\.weight", "score.weight"),)
TASKS = ("embed", "token_embed", "classify")
"""What a decoder can read for."""
LM_HEAD, TABLE = "lm_head.weight", "embedding.weight"


def load_causal(directory: Path, info: ModelInfo, heads: Sequence[FurtherHead] = ()) -> LazyModule:
    """Raises ModelDirectoryError where the weights do not fit, or heads are of other directories."""
    folder = directory / info.transformer
    config = replace(read_decoder_config(folder), max_input_tokens=info.max_input_tokens)
    family = find_decoder(info.architecture, config.model_type)
    check_tasks(folder, [info, *(head.info for head in heads)])
    check_served(folder, config, directory, heads)
    if config.logit_softcap and info.answer_token_ids:
        raise ModelDirectoryError(f"{folder}: final_logit_softcapping is served to generate only, and not to judge")
    with torch.device("meta"):
        head = build_causal_head(directory, config, info)
        further = {each.info.head: build_causal_head(directory, config, each.info) for each in heads}
        # The head that a language model has for its next tokens is not built: nothing reads it.
        decoder = family.decoder(replace(config, is_tied=True))
        model = TextModel(CausalEncoder(decoder, config.is_causal), head, further)
    tensors = open_trunk(folder, family, config)
    named = {f"head.{name}": value for name, value in open_causal_head(directory, config, info, tensors).items()}
    named |= {f"encoder.decoder.{name}": value for name, value in tensors.items()}
    return LazyModule(model.eval(), check_weights(model, named, directory))


def check_tasks(folder: Path, infos: Sequence[ModelInfo]) -> None:
    """Raises ModelDirectoryError."""
    for info in infos:
        if info.task not in TASKS:
            raise ModelDirectoryError(f"{folder}: the task {info.task} needs an encoder, and this is a language model")


def check_served(folder: Path, config: DecoderConfig, directory: Path, heads: Sequence[FurtherHead]) -> None:
    """Raises ModelDirectoryError."""
    if config.attention_softcap:
        raise ModelDirectoryError(f"{folder}: attn_logit_softcapping is served to generate only")
    check_positions(folder, config)
    if others := [head.info.head for head in heads if head.directory != directory]:
        raise ModelDirectoryError(f"{folder}: heads of other directories ({', '.join(others)}) need an encoder")


def check_positions(folder: Path, config: DecoderConfig) -> None:
    """Raises ModelDirectoryError where short texts would be turned by other numbers than long ones."""
    for rotary in config.rotaries:
        if rotary and rotary.scaling == "longrope" and config.longest_text > rotary.original_max_positions:
            raise ModelDirectoryError(
                f"{folder}: rotary positions of the type 'longrope' depend on the length of each text, and are served "
                f"to generate only. For texts of up to {rotary.original_max_positions} tokens set "
                "limits.max_input_tokens to that"
            )


def build_causal_head(directory: Path, config: DecoderConfig, info: ModelInfo) -> nn.Module:
    if info.task == "token_embed":
        return TokenEmbeddingHead()
    if info.task == "classify":
        return LastTokenHead(config.hidden_size, info.output_dim)
    return build_embedding_head(directory, config.hidden_size, info)


def open_trunk(folder: Path, family: DecoderFamily, config: DecoderConfig) -> dict[str, LazyWeight]:
    """All tensors of the checkpoint, by the decoder's own names."""
    renamed = rename_tensors(open_checkpoint(folder), family.prefix, family.renames + SCORE, family.ignored)
    return family.adjust(renamed, config)


def open_causal_head(
    directory: Path, config: DecoderConfig, info: ModelInfo, tensors: dict[str, LazyWeight]
) -> dict[str, LazyWeight]:
    """The head's own, by its names; what the heads of a language model are is taken out of `tensors`."""
    words, score = tensors.pop(LM_HEAD, None), tensors.pop("score.weight", None)
    if info.task == "embed":
        return {f"chain.{name}": value for name, value in open_module_weights(directory, info.modules).items()}
    if not info.answer_token_ids:
        return {} if score is None else {"output.weight": score}
    table = words if words is not None and not config.is_tied else tensors.get(TABLE, words)
    if table is None:
        return {}
    answers, scale = info.answer_token_ids, config.logit_scale
    return {"output.weight": table.then(lambda rows: subtract(rows, answers) * scale)}


def subtract(table: Tensor, answers: Sequence[int]) -> Tensor:
    """The row of the first answer, less that of the second: [1, hidden_size], whose product is their log-odds."""
    if table.is_meta:
        return table[:1]
    rows = table[list(answers)].float()
    return rows[:1] - rows[1:] if len(answers) > 1 else rows
