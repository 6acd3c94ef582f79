"""Jina embeddings v3 against transformers with each task's weights merged, W + B A / 4, whatever tasks share a step."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from own_checkpoints import Tensors, draw_texts, save_model
from safetensors.torch import load_file, save_file
from tiny_engines import BEST, Captured, capture_model
from tiny_models import Ids, pack, randomize
from torch import Tensor

from models.adapters_config import TASKS
from models.config import read_config
from models.info import read_info
from models.keys import ModelDirectoryError
from models.load import load_model
from runtime.batch import Batch
from tests.tolerances import ENCODER_TOLERANCES, check_close

SEQLENS = [1, 2, 15, 16, 17, 33, 1, 48, 64, 3, 100]
RANK, ALPHA, VOCAB = 4, 1, 101
CODE = "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"
KEYS: dict[str, Any] = {
    "architectures": ["XLMRobertaLoRA"],
    "auto_map": {"AutoModel": CODE},
    "model_type": "xlm-roberta",
    "vocab_size": VOCAB,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 56,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
    "position_embedding_type": "rotary",
    "rotary_emb_base": 500.0,
    "emb_pooler": None,
    "lora_adaptations": list(TASKS[:3]),
    "lora_alpha": ALPHA,
    "lora_rank": RANK,
    "task_instructions": {TASKS[0]: "Find: ", TASKS[1]: "", TASKS[2]: ""},
    "truncate_dim": None,
}
"""As the published file has them."""
IDS, _ = draw_texts(SEQLENS, VOCAB)
CHOICES = [index % 4 for index in range(len(SEQLENS))]
"""The adapter of each text: neighbours have others, and some none."""


def make_base(directory: Path) -> Tensors:
    """transformers writes the names of the published code."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    positions = {"max_position_embeddings": 130, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    config = transformers.JinaEmbeddingsV3Config(
        **{name: KEYS[name] for name in names}, **positions, pad_token_id=0, type_vocab_size=2
    )
    torch.manual_seed(0)
    theirs = transformers.JinaEmbeddingsV3Model(config)
    for module in theirs.modules():
        randomize(module)
    theirs.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


@dataclass(frozen=True)
class Adapted:
    """A checkpoint of transformers' in `directory`, and matrices [num_adapters, ...] for each of its layers."""

    directory: Path
    base: Tensors
    first: Tensors
    second: Tensors

    def merge(self, adapter: int) -> Tensors:
        """The weights of one task, 1 being the first; those of none."""
        merged = dict(self.base)
        for name, value in self.base.items() if adapter else ():
            if name in self.first:
                a, b = self.first[name][adapter - 1].double(), self.second[name][adapter - 1].double()
                product = a @ b if "embeddings" in name else b @ a
                merged[name] = (value + product * ALPHA / RANK).float()
        return merged

    def parametrize(self) -> Tensors:
        """As the published checkpoint has them."""
        tensors: Tensors = {}
        for name, value in self.base.items():
            owner = f"roberta.{name.removesuffix('weight')}parametrizations.weight."
            if name in self.first:
                tensors |= {f"{owner}original": value, f"{owner}0.lora_A": self.first[name]}
                tensors[f"{owner}0.lora_B"] = self.second[name]
            else:
                tensors[f"roberta.{name}"] = value
        return tensors


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    directory = tmp_path_factory.mktemp("base")
    base, random = make_base(directory), torch.Generator().manual_seed(1)
    layers = {name: value.shape for name, value in base.items() if value.ndim == 2}
    first, second = {}, {}
    for name, (rows, columns) in layers.items():
        is_table = "embeddings" in name
        shapes = ((3, rows, RANK), (3, RANK, columns)) if is_table else ((3, RANK, columns), (3, rows, RANK))
        # As large as the weights themselves: a wrong adapter shows.
        first[name] = torch.randn(shapes[0], generator=random) * (1 if is_table else columns**-0.5)
        second[name] = torch.randn(shapes[1], generator=random) * 2
    return Adapted(directory, base, first, second)


@pytest.fixture(scope="module")
def captured(adapted: Adapted, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    folder = tmp_path_factory.mktemp("jina")
    return capture_model(lambda: save_model(folder, KEYS | {"type_vocab_size": 2}, adapted.parametrize()))


@pytest.fixture(scope="module")
def expected(adapted: Adapted, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """The mean of transformers' rows of each text alone, by its task's merged weights."""
    rows: dict[int, Tensor] = {}
    for adapter in range(4):
        folder = tmp_path_factory.mktemp("merged")
        (folder / "config.json").write_text((adapted.directory / "config.json").read_text())
        save_file(adapted.merge(adapter), folder / "model.safetensors", {"format": "pt"})
        theirs = transformers.JinaEmbeddingsV3Model.from_pretrained(folder).eval()
        with torch.no_grad():
            for index in [index for index, choice in enumerate(CHOICES) if choice == adapter]:
                found = theirs(torch.from_numpy(IDS[index])[None], token_type_ids=make_types(IDS[index])[None])
                rows[index] = found.last_hidden_state[0].mean(0)
    return torch.stack([rows[index] for index in range(len(IDS))])


def make_types(text: Ids) -> Tensor:
    return torch.arange(len(text)) % 2


def make_batch(indices: list[int]) -> Batch:
    texts = [IDS[index] for index in indices]
    batch = pack(texts, [make_types(text).numpy() for text in texts])
    batch.arrays["adapter_ids"] = np.repeat([CHOICES[index] for index in indices], [len(text) for text in texts])
    return batch


def run_module(directory: Path) -> Tensor:
    """Op by op."""
    batch = make_batch(list(range(len(IDS))))
    inputs = {name: torch.from_numpy(array) for name, array in batch.arrays.items()}
    module = load_model(directory, read_info(directory)).fill()
    with torch.no_grad():
        found = module(**inputs, cu_seqlens=torch.from_numpy(batch.cu_seqlens), max_seqlen=batch.max_seqlen)
    embeddings: Tensor = found["embeddings"]
    return embeddings


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_tasks_share_a_step(captured: Captured, expected: Tensor, precision: str) -> None:
    """Nothing is computed outside of the plan, and a text's numbers are the same in any batch, bit for bit."""
    engine = captured.build(BEST, precision)
    assert engine.info.precision == precision and not engine.info.unplanned_ops
    together = engine.run(make_batch(list(range(len(IDS))))).arrays["embeddings"].copy()
    check_close(together, expected, tolerance=ENCODER_TOLERANCES[precision])
    if BEST != "torch":
        alone = [engine.run(make_batch([index])).arrays["embeddings"].copy() for index in range(len(IDS))]
        np.testing.assert_array_equal(np.concatenate(alone), together)


def test_instructions_are_the_prompts_of_tasks(tmp_path: Path) -> None:
    """Unless sentence-transformers' file has others. Its first module is a class of the repository."""
    keys = {name: value for name, value in KEYS.items() if name != "model_type"}  # as in older files
    (tmp_path / "config.json").write_text(json.dumps(keys))
    info = read_info(tmp_path)
    assert info.adapters == TASKS[:3] and info.prompts == dict(zip(TASKS, ("Find: ", "", ""), strict=False))
    assert (info.architecture, info.max_input_tokens, info.default_prompt_name) == ("JinaEmbeddingsV3Model", 130, None)
    kinds = ("custom_st.Transformer", "sentence_transformers.models.Pooling", "sentence_transformers.models.Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    rows = [{"type": kind, "path": path} for kind, path in zip(kinds, paths, strict=True)]
    (tmp_path / "modules.json").write_text(json.dumps(rows))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    prompts = {"prompts": {TASKS[0]: "Seek: "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert read_info(tmp_path).prompts == info.prompts | prompts["prompts"] and read_info(tmp_path).normalize
    (tmp_path / "config.json").write_text(json.dumps(KEYS | {"position_embedding_type": "absolute"}))
    with pytest.raises(ModelDirectoryError, match=r"the module 'custom_st\.Transformer' is not supported"):
        read_info(tmp_path)


@pytest.mark.parametrize("dialect", ["published", "transformers"])
def test_adapters_in_folders(adapted: Adapted, dialect: str, tmp_path: Path) -> None:
    """PEFT's files beside a checkpoint of transformers'. They leave out what they do not change, here token types."""
    (tmp_path / "config.json").write_text((adapted.directory / "config.json").read_text())
    save_file(adapted.base, tmp_path / "model.safetensors")
    for index, task in enumerate(TASKS[:3]):
        folder = tmp_path / re.sub(r"\W", "_", task)
        folder.mkdir()
        tensors = {
            renamed: value
            for name in adapted.first
            if "token_type" not in name
            for renamed, value in rename_peft(name, adapted.first[name][index], adapted.second[name][index], dialect)
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        keys = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "rank_pattern": {}, "modules_to_save": None}
        (folder / "adapter_config.json").write_text(json.dumps(keys))
    info = read_info(tmp_path)
    assert info.adapters == TASKS[:3] and info.prompts[TASKS[0]].startswith("Represent the query")
    tables = {name: value * 0 if "token_type" in name else value for name, value in adapted.first.items()}
    whole = Adapted(adapted.directory, adapted.base, tables, adapted.second)
    other = tmp_path / "whole"
    other.mkdir()
    save_model(other, KEYS | {"type_vocab_size": 2}, whole.parametrize())
    check_close(run_module(tmp_path), run_module(other))


def rename_peft(name: str, first: Tensor, second: Tensor, dialect: str) -> list[tuple[str, Tensor]]:
    owner = f"base_model.model.{name.removesuffix('.weight')}"
    if "embeddings" in name:
        return [
            (f"{owner}.lora_embedding_A", first.T.contiguous()),
            (f"{owner}.lora_embedding_B", second.T.contiguous()),
        ]
    if dialect == "published":
        return [(f"{owner}.lora_A.weight", first), (f"{owner}.lora_B.weight", second)]
    owner = owner.replace("encoder.", "").replace("mixer.out_proj", "self_attn.o_proj")
    if "Wqkv" not in owner:
        return [(f"{owner}.lora_A.weight", first), (f"{owner}.lora_B.weight", second)]
    parts = zip("qkv", second.chunk(3), strict=True)
    return [
        (owner.replace("mixer.Wqkv", f"self_attn.{part}_proj") + f".lora_{kind}.weight", value.clone())
        for part, rows in parts
        for kind, value in (("A", first), ("B", rows))
    ]


def test_no_adapters_are_transformers_model(adapted: Adapted, expected: Tensor) -> None:
    info = read_info(adapted.directory)
    assert info.adapters == () and info.prompts == {}
    bare = [index for index, choice in enumerate(CHOICES) if not choice]
    check_close(run_module(adapted.directory)[bare], expected[bare])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_adaptations": "all"}, "lora_adaptations must be a list of names"),
        ({"lora_adaptations": ["a", "a"]}, "lora_adaptations has a name twice"),
        ({"lora_alpha": None}, "lora_alpha is None; it must be a number"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"truncate_dim": 8}, "truncate_dim 8 is not supported"),
        ({"emb_pooler": "cls"}, "emb_pooler 'cls' is not supported"),
    ],
)
def test_keys_that_are_not_served_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(KEYS | changes))
    with pytest.raises(ModelDirectoryError, match=message):
        read_config(tmp_path)


def spoil_config(keys: dict[str, Any], tensors: Tensors) -> None:
    keys["use_dora"] = True


def spoil_rank(keys: dict[str, Any], tensors: Tensors) -> None:
    keys["r"] = 8


def spoil_name(keys: dict[str, Any], tensors: Tensors) -> None:
    tensors["base_model.model.pooler.magnitude"] = torch.ones(1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_config, "separation/adapter_config.json: use_dora True is not supported; only False is"),
        (spoil_rank, "adapters of the ranks 4, 8 are not supported beside each other"),
        (spoil_name, "pooler.magnitude is no low-rank matrix"),
    ],
)
def test_folders_that_are_not_served_are_named(
    spoil: Callable[[dict[str, Any], Tensors], None], message: str, adapted: Adapted, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((adapted.directory / "config.json").read_text())
    save_file(adapted.base, tmp_path / "model.safetensors")
    for name in ("classification", "separation"):
        keys: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
        tensors = {"base_model.model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(RANK, KEYS["hidden_size"])}
        if name == "separation":
            spoil(keys, tensors)
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(keys))
    with pytest.raises(ModelDirectoryError, match=message):
        load_model(tmp_path, read_info(tmp_path))
