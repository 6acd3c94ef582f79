"""Model directories as sentence-transformers' users publish them: a tiny random BERT with a tokenizer, and files of it.

Each directory is written from one base by a list of `(file, content)`, so that a test shows only what is special to it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tiny_models import Ids, pack, randomize
from tokenizers import models, normalizers, pre_tokenizers, processors

from models.info import ModelInfo
from runtime.batch import Batch

HIDDEN_SIZE = 32
POSITIONS = 42
LETTERS = "abcdefghijklmnopqrstuvwxyzAB"
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB = [*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS), ":", "[unused0]", "[unused1]"]

Text = str | tuple[str, str]
Module = tuple[str, Mapping[str, Any] | None]
"""(kind, settings), the settings None where the module has no folder."""


def make_base(directory: Path, *, num_labels: int = 0, head: Any = None) -> None:
    """config.json, weights and tokenizer; a classifier where it has labels. `head`: transformers' class of another."""
    config = transformers.BertConfig(
        vocab_size=len(VOCAB),
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        num_labels=num_labels or 2,
    )
    torch.set_num_threads(1)
    torch.manual_seed(num_labels)
    auto = transformers.AutoModelForSequenceClassification if num_labels else transformers.AutoModel
    model = (head or auto).from_config(config)
    for module in model.modules():
        randomize(module)
    model.save_pretrained(directory)
    build_tokenizer().save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": False})


def build_tokenizer() -> tokenizers.Tokenizer:
    """A word is its letters; upper case A and B are letters of their own."""
    ids = {token: index for index, token in enumerate(VOCAB)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_directory(
    base: Path, directory: Path, modules: Sequence[Module], files: Mapping[str, object], *, transformer: str = ""
) -> Path:
    """The base, modules.json with a Transformer in the folder `transformer` first, and the modules with weights.

    `files` are JSON objects by name: those with a name in the base are updated.
    """
    shutil.copytree(base, directory / transformer, dirs_exist_ok=True)
    rows = [{"path": transformer, "type": "sentence_transformers.models.Transformer"}]
    for index, (kind, settings) in enumerate(modules, 1):
        folder = f"{index}_{kind}"
        rows.append({"path": folder, "type": f"sentence_transformers.models.{kind}"})
        if settings is not None:
            write_module(directory / folder, kind, settings, seed=index)
    write_json(directory / "modules.json", [row | {"idx": i, "name": str(i)} for i, row in enumerate(rows)])
    for name, content in files.items():
        path = directory / name
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        write_json(path, old | content if isinstance(content, dict) else content)
    return directory


def write_module(folder: Path, kind: str, settings: Mapping[str, Any], seed: int) -> None:
    write_json(folder / "config.json", settings)
    random = torch.Generator().manual_seed(seed)
    if kind == "Dense":
        shape = (settings["out_features"], settings["in_features"])
        tensors = {"linear.weight": torch.randn(shape, generator=random) * 0.3}
        if settings.get("bias", True):
            tensors["linear.bias"] = torch.randn(shape[0], generator=random)
    elif kind == "LayerNorm":
        tensors = {f"norm.{name}": torch.randn(settings["dimension"], generator=random) for name in ("weight", "bias")}
    else:
        return
    save_file(tensors, folder / "model.safetensors")


def make_texts(count: int = 40, seed: int = 0) -> list[str]:
    """Of 1 to 60 letters in words, so that some are longer than any limit."""
    random = np.random.default_rng(seed)
    letters = random.choice(list(LETTERS + "  "), (count, 60))
    lengths = random.integers(1, 61, count)
    return ["".join(row[:length]).strip() or "a" for row, length in zip(letters, lengths, strict=True)]


def tokenize(directory: Path, info: ModelInfo, texts: Sequence[Text], prompt: str = "") -> Batch:
    """Packed, with the directory's tokenizer and what ModelInfo says of limit, case and types."""
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / info.transformer / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(info.max_input_tokens)
    ids: list[Ids] = []
    types: list[Ids] = []
    for text in texts:
        sides = [text] if isinstance(text, str) else list(text)
        sides[0] = prompt + sides[0]
        encoding = tokenizer.encode(*(side.lower() if info.do_lower_case else side for side in sides))
        ids.append(np.array(encoding.ids))
        types.append(np.array(encoding.type_ids) * (info.type_vocab_size > 1))
    return pack(ids, types)
