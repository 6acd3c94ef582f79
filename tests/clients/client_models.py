"""Tiny random models for each task, with a tokenizer that reads any text letter by letter."""

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers, processors

from tests.whisper_files import MAX_TARGET_TOKENS, NUM_MEL_BINS, WINDOW_S, describe_generation
from tests.whisper_files import build_tokenizer as build_whisper_tokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]")
CHARACTERS = string.ascii_letters + string.digits + string.punctuation
VOCAB = [*SPECIALS, *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
SIZES = {
    "vocab_size": len(VOCAB),
    "hidden_size": 384,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
STACKS: dict[str, Any] = {
    "vocab_size": len(VOCAB),
    "d_model": 32,
    **{f"{stack}_{name}": 1 for stack in ("encoder", "decoder") for name in ("layers", "attention_heads")},
    **{f"{stack}_ffn_dim": 48 for stack in ("encoder", "decoder")},
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "eos_token_id": 3,
    "forced_eos_token_id": None,
}
LABELS = ["contradiction", "neutral", "entailment"]
TAGS = ["O", "B-PER", "B-LOC"]


def make_encoder(directory: Path, auto: Any, labels: list[str] | None = None) -> None:
    """`auto`: one of transformers' classes of that kind, which settles the head."""
    settings: dict[str, Any] = dict(SIZES)
    if labels is not None:
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    save(directory, auto, transformers.BertConfig(**settings))
    build_tokenizer().save(str(directory / "tokenizer.json"))


def make_generator(directory: Path) -> None:
    shape = {name: SIZES[name] for name in SIZES if name != "hidden_size"}
    config = transformers.LlamaConfig(**shape, hidden_size=64, bos_token_id=2, eos_token_id=3, pad_token_id=0)
    save(directory, transformers.AutoModelForCausalLM, config)
    build_tokenizer(has_template=False).save(str(directory / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "[SEP]"}))


def make_writer_of_texts(directory: Path, config: transformers.PreTrainedConfig) -> None:
    """An encoder-decoder."""
    save(directory, transformers.AutoModelForSeq2SeqLM, config)
    build_tokenizer().save(str(directory / "tokenizer.json"))


def make_hearer(directory: Path) -> None:
    """A Whisper of windows of two seconds."""
    raw = build_whisper_tokenizer()
    settings = describe_generation(raw)
    special = {name: settings[name] for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"num_mel_bins": NUM_MEL_BINS, "max_source_positions": 50 * WINDOW_S}
    sizes |= {"decoder_layers": 2, "decoder_attention_heads": 2}  # times of words look at two heads of each
    shape = STACKS | {"vocab_size": raw.get_vocab_size(), "max_target_positions": MAX_TARGET_TOKENS} | special | sizes
    save(directory, transformers.AutoModelForSpeechSeq2Seq, transformers.WhisperConfig(**shape))
    (directory / "generation_config.json").write_text(json.dumps(settings))
    raw.save(str(directory / "tokenizer.json"))
    transformers.WhisperFeatureExtractor(NUM_MEL_BINS, chunk_length=WINDOW_S).save_pretrained(directory)


def save(directory: Path, auto: Any, config: transformers.PreTrainedConfig) -> None:
    torch.manual_seed(0)
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than transformers' initial weights, with which all texts are much the same.
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    model.save_pretrained(directory)


def build_tokenizer(*, has_template: bool = True) -> tokenizers.Tokenizer:
    ids = {token: index for index, token in enumerate(VOCAB)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if has_template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
        )
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def make_colbert(directory: Path) -> None:
    """As Stanford's code saves one: an encoder below `bert.`, and a projection to the 128 numbers that are usual."""
    make_encoder(directory, transformers.AutoModel)
    tensors = {f"bert.{name}": value for name, value in load_file(directory / "model.safetensors").items()}
    tensors["linear.weight"] = torch.randn(128, SIZES["hidden_size"])
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))
    metadata = {"query_maxlen": 32, "doc_maxlen": 180, "dim": 128, "mask_punctuation": True, "similarity": "cosine"}
    metadata |= {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "attend_to_mask_tokens": False}
    (directory / "artifact.metadata").write_text(json.dumps(metadata))


def make_models(folder: Path) -> Mapping[str, Path]:
    """Directories by the names that the pages of docs/protocols give their models."""
    names = ("all-MiniLM-L6-v2", "ranker", "classifier", "ner", "splade", "bert", "squad", "writer")
    names += ("translator", "summarizer", "whisper-1")
    folders = {name: folder / name for name in names}
    make_encoder(folders["all-MiniLM-L6-v2"], transformers.AutoModel)
    make_encoder(folders["ranker"], transformers.AutoModelForSequenceClassification, ["LABEL_0"])
    make_encoder(folders["classifier"], transformers.AutoModelForSequenceClassification, LABELS)
    make_encoder(folders["ner"], transformers.AutoModelForTokenClassification, TAGS)
    make_encoder(folders["splade"], transformers.AutoModelForMaskedLM)
    make_encoder(folders["bert"], transformers.AutoModelForMaskedLM)
    make_encoder(folders["squad"], transformers.AutoModelForQuestionAnswering)
    make_generator(folders["writer"])
    make_writer_of_texts(folders["translator"], transformers.MarianConfig(**STACKS, max_position_embeddings=64))
    make_writer_of_texts(folders["summarizer"], transformers.PegasusConfig(**STACKS, max_position_embeddings=64))
    make_hearer(folders["whisper-1"])
    return folders
