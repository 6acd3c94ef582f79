"""The JSON files of a model directory: read whole, single keys checked. Knows no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.defaults import (
    DEFAULTS,
    FLASH,
    OWN_CODE,
    SUPPORTED,
    SUPPORTED_BY_TYPE,
    Keys,
    complete_keys,
    find_model_type,
)

BARE_ENCODERS = {
    "albert": "AlbertModel",
    "bert": "BertModel",
    "camembert": "CamembertModel",
    "convbert": "ConvBertModel",
    "deberta": "DebertaModel",
    "deberta-v2": "DebertaV2Model",
    "distilbert": "DistilBertModel",
    "electra": "ElectraModel",
    "ernie": "ErnieModel",
    "eurobert": "EuroBertModel",
    "gte": "GteModel",
    "jina_embeddings_v3": "JinaEmbeddingsV3Model",
    "jina_bert": "JinaBertModel",
    "jina_bert_qk_norm": "JinaBertModel",
    "modernbert": "ModernBertModel",
    "mpnet": "MPNetModel",
    "new": "NewModel",
    "nomic_bert": "NomicBertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "xlm-roberta-flash": "JinaEmbeddingsV3Model",
    "xlm-roberta-xl": "XLMRobertaXLModel",
}


class ModelDirectoryError(ValueError):
    """The directory cannot be served; the text names the file and the remedy."""


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises ModelDirectoryError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelDirectoryError(f"{path}: {error.strerror}; a model directory needs this file") from None
    except ValueError as error:
        raise ModelDirectoryError(f"{path}: not valid JSON: {error}") from None


def read_object(path: Path) -> Keys:
    """Parse a JSON file that holds an object."""
    keys = read_json(path)
    if not isinstance(keys, dict):
        raise ModelDirectoryError(f"{path}: must hold a JSON object, not {type(keys).__name__}")
    return keys


def read_optional(path: Path) -> Keys:
    """As `read_object`; empty where there is no such file."""
    return read_object(path) if path.exists() else {}


def read_keys(directory: Path) -> Keys:
    """config.json completed with the defaults of its model type. Raises ModelDirectoryError for types not served."""
    path = directory / "config.json"
    keys = read_object(path)
    if find_model_type(keys) not in DEFAULTS:
        model_type = keys.get("model_type")
        raise ModelDirectoryError(f"{path}: model_type {model_type!r} is not served; served are {', '.join(DEFAULTS)}")
    return complete_keys(keys)


OLD_ARCHITECTURES = {"T5WithLMHeadModel": "T5ForConditionalGeneration"}


def read_architecture(keys: Keys) -> str:
    """The first name; without one that of the model type's bare encoder, as AutoModel of transformers takes it.

    Jina's code has XLM-R's names for what transformers gives others.
    """
    name = str((keys.get("architectures") or [BARE_ENCODERS.get(str(keys.get("model_type")), "")])[0])
    if keys.get("model_type") == FLASH:
        return name.replace("XLMRobertaLoRA", "XLMRobertaModel").replace("XLMRoberta", "JinaEmbeddingsV3")
    return OLD_ARCHITECTURES.get(name, name)


def check_supported(path: Path, keys: Keys) -> None:
    """Raises ModelDirectoryError for settings that would change the answers and that we do not compute."""
    for name, values in (SUPPORTED | SUPPORTED_BY_TYPE.get(keys["model_type"], {})).items():
        if name in keys and keys[name] not in values:
            supported = f"only {values[0]!r} is" if values else "use a checkpoint without it"
            raise ModelDirectoryError(f"{path}: {name} {keys[name]!r} is not supported; {supported}")
    own_code = [name for name in keys.get("auto_map", {}) if name.startswith(("AutoConfig", "AutoModel"))]
    if own_code and keys["model_type"] not in OWN_CODE:
        raise ModelDirectoryError(
            f"{path}: auto_map says that the model brings its own code ({', '.join(own_code)}), which is never run here"
        )


def require_number(path: Path, keys: Keys, name: str, *, least: int = 1) -> int:
    """A whole number of at least `least`. Raises ModelDirectoryError naming the key."""
    if name not in keys:
        raise ModelDirectoryError(f"{path}: the key {name!r} is missing")
    value = keys[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ModelDirectoryError(f"{path}: {name} is {value!r}; it must be a whole number of at least {least}")
    return value


def require_torch_class(path: Path, keys: Keys, name: str, known: Mapping[str, str]) -> str:
    """Our name of the class whose path a key holds, such as torch.nn.modules.activation.Tanh.

    Raises ModelDirectoryError where it is none of torch.nn's `known` ones.
    """
    package, _, kind = str(keys[name]).rpartition(".")
    if package.split(".")[:2] != ["torch", "nn"] or kind not in known:
        raise ModelDirectoryError(
            f"{path}: {name} {keys[name]!r} is not supported; supported are torch.nn's {', '.join(known)}"
        )
    return known[kind]
