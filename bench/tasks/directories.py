"""The models of the tasks: MiniLM's encoder with a head of random weights, which are as fast as trained ones."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from bench.minilm import DIRECTORY
from bench.traffic import FIRST_TOKEN, LAST_TOKEN
from bench.whole_folders import filling

HEAD_SCALE = 20.0
"""Times the usual random weights: logits then differ from text to text as those of trained heads do."""
POSITIVE_SHARE = 0.005
"""Of SPLADE's vocabulary, for a text of 48 tokens: trained models give some 150 of 30,522 tokens a weight."""


def build_ranker() -> PreTrainedModel:
    return widen(AutoModelForSequenceClassification.from_pretrained(DIRECTORY, num_labels=1))


def build_classifier() -> PreTrainedModel:
    return widen(AutoModelForSequenceClassification.from_pretrained(DIRECTORY, num_labels=3))


def build_tagger() -> PreTrainedModel:
    return widen(AutoModelForTokenClassification.from_pretrained(DIRECTORY, num_labels=9))


def widen(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        model.classifier.weight *= HEAD_SCALE
    return model


def build_splade() -> PreTrainedModel:
    """A masked language model whose bias leaves as few tokens positive as training does."""
    model = AutoModelForMaskedLM.from_pretrained(DIRECTORY).eval()
    with torch.inference_mode():
        largest = model(torch.randint(FIRST_TOKEN, LAST_TOKEN, (8, 48))).logits.amax(1)
    with torch.no_grad():
        model.cls.predictions.bias -= torch.quantile(largest, 1 - POSITIVE_SHARE)
    return model


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "rerank": build_ranker,
    "classify": build_classifier,
    "tag": build_tagger,
    "splade": build_splade,
}


def find_model(name: str, cache: Path) -> Path:
    """Its directory, made first where there is none: always the same weights."""
    folder = cache / "models" / f"minilm-{name}-seed-0"
    if not folder.exists():
        torch.manual_seed(0)
        with filling(folder) as unfinished:
            BUILDERS[name]().save_pretrained(unfinished)
            for path in (*DIRECTORY.glob("*token*.json"), DIRECTORY / "vocab.txt"):
                shutil.copy(path, unfinished)
    return folder
