"""Tiny random models of every family, made with transformers, and what transformers answers with padding and a mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor

from models.further_heads import FurtherHead
from models.info import ModelInfo, read_info
from models.load import load_model
from runtime.batch import Batch
from runtime.build import build_engine
from runtime.capture import list_inputs
from runtime.config import EngineConfig
from runtime.engine import Engine
from runtime.engines.transfer import lay_out, to_tensors
from runtime.limits import BatchLimits

Ids = npt.NDArray[np.int64]

SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
}
DISTILBERT_SIZES = {
    "vocab_size": 101,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 80,
}

DEBERTA_SIZES = SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
ROTARY_SIZES = SIZES | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODERNBERT_SIZES = ROTARY_SIZES | {"num_hidden_layers": 3}

CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "roberta": lambda: transformers.RobertaConfig(**SIZES, type_vocab_size=1, layer_norm_eps=1e-5),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SIZES, pad_token_id=5),
    "xlm-roberta-xl": lambda: transformers.XLMRobertaXLConfig(**SIZES, type_vocab_size=2, pad_token_id=2),
    "camembert": lambda: transformers.CamembertConfig(**SIZES, hidden_act="gelu_new", layer_norm_eps=1e-2),
    "distilbert": lambda: transformers.DistilBertConfig(**DISTILBERT_SIZES),
    "distilbert-relu": lambda: transformers.DistilBertConfig(
        **DISTILBERT_SIZES, activation="relu", sinusoidal_pos_embds=True
    ),
    "electra": lambda: transformers.ElectraConfig(**SIZES, embedding_size=16),
    "electra-wide": lambda: transformers.ElectraConfig(**SIZES, embedding_size=32),
    "albert": lambda: transformers.AlbertConfig(**SIZES, embedding_size=16),
    "albert-groups": lambda: transformers.AlbertConfig(
        **SIZES | {"num_hidden_layers": 5}, embedding_size=32, num_hidden_groups=2, inner_group_num=2
    ),
    "ernie": lambda: transformers.ErnieConfig(**SIZES, hidden_act="silu"),
    "ernie-tasks": lambda: transformers.ErnieConfig(**SIZES, use_task_id=True),
    # Longer than the others, so that distances reach the last bucket.
    "mpnet": lambda: transformers.MPNetConfig(**SIZES | {"max_position_embeddings": 200}),
    "deberta": lambda: transformers.DebertaConfig(**DEBERTA_SIZES, max_relative_positions=30, type_vocab_size=2),
    # Texts are longer than the distances that are told apart.
    "deberta-v2": lambda: transformers.DebertaV2Config(
        **DEBERTA_SIZES,
        position_buckets=16,
        max_relative_positions=64,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
    ),
    "deberta-v2-conv": lambda: transformers.DebertaV2Config(
        **DEBERTA_SIZES,
        max_relative_positions=20,
        type_vocab_size=2,
        embedding_size=16,
        conv_kernel_size=3,
        conv_act="gelu",
        pooler_hidden_act="tanh",
    ),
    "eurobert": lambda: transformers.EuroBertConfig(**ROTARY_SIZES, num_key_value_heads=2),
    "eurobert-biased": lambda: transformers.EuroBertConfig(
        **ROTARY_SIZES,
        head_dim=12,
        hidden_act="gelu",
        rope_parameters={"rope_theta": 250.0, "rope_type": "linear", "factor": 2.0},
        attention_bias=True,
        mlp_bias=True,
        classifier_pooling="mean",
        tie_word_embeddings=True,
    ),
    "eurobert-bos": lambda: transformers.EuroBertConfig(**ROTARY_SIZES, classifier_pooling="bos"),
    "gte": lambda: transformers.GteConfig(**ROTARY_SIZES, type_vocab_size=2),
    "gte-typeless": lambda: transformers.GteConfig(
        **ROTARY_SIZES,
        type_vocab_size=0,
        hidden_act="silu",
        rope_parameters={"rope_theta": 250.0, "rope_type": "linear", "factor": 2.0},
    ),
    "jina_embeddings_v3": lambda: transformers.JinaEmbeddingsV3Config(**ROTARY_SIZES, type_vocab_size=2),
    # Layers of each kind, and windows of which texts are much longer.
    "modernbert": lambda: transformers.ModernBertConfig(**MODERNBERT_SIZES, local_attention=8),
    "modernbert-biased": lambda: transformers.ModernBertConfig(
        **MODERNBERT_SIZES,
        local_attention=9,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": {"rope_theta": 500.0, "rope_type": "linear", "factor": 3.0}},
        classifier_pooling="mean",
        classifier_activation="silu",
        hidden_activation="gelu_new",
        **dict.fromkeys(["norm_bias", "attention_bias", "mlp_bias", "classifier_bias"], True),
        decoder_bias=False,
    ),
    "nomic_bert": lambda: transformers.NomicBertConfig(**ROTARY_SIZES),
    "nomic_bert-linear": lambda: transformers.NomicBertConfig(
        **ROTARY_SIZES, head_dim=12, rope_parameters={"rope_theta": 250.0, "rope_type": "linear", "factor": 2.0}
    ),
}

SOLO_CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "convbert": lambda: transformers.ConvBertConfig(**SIZES, embedding_size=16, conv_kernel_size=5, pad_token_id=0),
    "convbert-groups": lambda: transformers.ConvBertConfig(
        **SIZES, embedding_size=32, head_ratio=8, num_groups=2, hidden_act="relu", pad_token_id=0
    ),
}
"""Those that transformers gives other numbers beside padding than alone."""

FAMILIES = [
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "albert",
    "ernie-tasks",
    "mpnet",
    "modernbert",
    "eurobert",
    "nomic_bert",
    "gte",
]
"""One configuration for each file in models/; the others differ in numbers only."""


EAGER = ("mpnet", "deberta", "deberta-v2", "deberta-v2-conv", *SOLO_CONFIGS)
"""What transformers has no other attention for."""


@dataclass(frozen=True)
class TinyModel:
    """A saved model, and the same one in transformers."""

    directory: Path
    theirs: transformers.PreTrainedModel
    info: ModelInfo
    heads: tuple[FurtherHead, ...] = ()

    @property
    def has_token_types(self) -> bool:
        return self.info.type_vocab_size > 1


def make_model(name: str, directory: Path, auto: Any = transformers.AutoModel, num_labels: int = 3) -> TinyModel:
    """`auto`: one of transformers' classes of that kind, which settles the head."""
    config = (CONFIGS | SOLO_CONFIGS)[name]()
    config.num_labels = num_labels
    torch.set_num_threads(1)  # Other threads only wait for one another on matrices this small.
    torch.manual_seed(len(name))
    theirs = auto.from_config(config, attn_implementation="eager" if name in EAGER else "sdpa").eval()
    for module in theirs.modules():
        randomize(module)
    theirs.save_pretrained(directory)
    return TinyModel(directory, theirs, read_info(directory))


@torch.no_grad()
def randomize(module: torch.nn.Module) -> None:
    """Larger than transformers' initial weights: those hardly attend, and would hide mistakes in it."""
    if isinstance(module, torch.nn.Linear):
        module.weight.normal_(0, 1.5 * module.in_features**-0.5)
    elif isinstance(module, torch.nn.Embedding):
        module.weight.normal_()
    elif isinstance(module, torch.nn.LayerNorm) or type(module).__name__.endswith("RMSNorm"):
        module.weight.normal_(1, 0.3)
    if getattr(module, "bias", None) is not None:
        module.bias.normal_(0, 0.3)


def make_sequences(model: TinyModel, seqlens: Sequence[int], seed: int = 0) -> tuple[list[Ids], list[Ids]]:
    """Random ids without the padding id, and token types: zeros, then ones, where the model has them."""
    random = np.random.default_rng(seed)
    pad_token_id = model.theirs.config.pad_token_id
    ids = [random.integers(6, model.info.vocab_size, seqlen) for seqlen in seqlens]
    assert all(pad_token_id not in sequence for sequence in ids)
    types = [(np.arange(n) >= random.integers(0, n + 1)).astype(np.int64) * model.has_token_types for n in seqlens]
    return ids, types


def pack(ids: Sequence[Ids], types: Sequence[Ids] | None = None) -> Batch:
    seqlens = [len(sequence) for sequence in ids]
    batch = lay_out(seqlens, np.concatenate(ids))
    if types:
        batch.arrays["token_type_ids"] = np.concatenate(types)
    return batch


@torch.no_grad()
def run_padded(
    theirs: transformers.PreTrainedModel, ids: Sequence[Ids], types: Sequence[Ids] | None = None
) -> tuple[Tensor, Tensor]:
    """transformers' last hidden states [num_seqs, max_seqlen, hidden_size] or logits, and the mask."""

    def pad(rows: Sequence[Ids], value: int) -> Tensor:
        tensors = [torch.from_numpy(row) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    mask = pad([np.ones(len(sequence), np.int64) for sequence in ids], 0)
    inputs = {"input_ids": pad(ids, theirs.config.pad_token_id or 0), "attention_mask": mask}
    if types is not None and getattr(theirs.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = pad(types, 0)
    output = theirs(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state, mask


def build(model: TinyModel, **options: str) -> Engine:
    """An engine of one thread, for up to 64 sequences."""
    limits = BatchLimits(max_batch_tokens=8192, max_batch_requests=64, max_input_tokens=model.info.max_input_tokens)
    config = EngineConfig.model_validate({"precision": "fp32", "threads": 1} | options)
    module = load_model(model.directory, model.info, model.heads)
    return build_engine(module, config, limits, lambda *_: None)


@torch.inference_mode()
def run_module(model: TinyModel, batch: Batch) -> dict[str, Tensor]:
    """What our own module gives, op by op, by name: no graph is captured, which is most of what an engine takes."""
    module = load_model(model.directory, model.info, model.heads).fill().eval()
    inputs = to_tensors(batch, torch.device("cpu"))
    outputs: dict[str, Tensor] = module(**{name: inputs.get(name) for name in list_inputs(module)})
    return outputs
