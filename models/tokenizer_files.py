"""Which files make a directory's tokenizer: tokenizer.json, or older ones that it is made of. Knows no torch."""

import json
from pathlib import Path

from models.defaults import Keys
from models.keys import ModelDirectoryError, read_object, read_optional
from models.sentencepiece_classes import SENTENCEPIECE_CLASSES
from models.tokenizer_sentencepiece import make_from_sentencepiece
from models.tokenizer_vocabulary import VOCABULARY_CLASSES, make_from_vocabulary

FILE_NAME = "tokenizer.json"
ANY_CLASS = ("PreTrainedTokenizer", "TokenizersBackend")
"""Names that say nothing of the class."""
SAME_CLASSES = {
    "BartTokenizer": "RobertaTokenizer",
    "ConvBertTokenizer": "BertTokenizer",
    "DistilBertTokenizer": "BertTokenizer",
    "ElectraTokenizer": "BertTokenizer",
    "ErnieTokenizer": "BertTokenizer",
    "MT5Tokenizer": "T5Tokenizer",
}
"""Classes of transformers that differ in their names."""
MODEL_CLASSES = {
    "AlbertTokenizer": ("albert",),
    "BertTokenizer": ("bert", "convbert", "distilbert", "electra", "ernie", "nomic_bert"),
    "CamembertTokenizer": ("camembert",),
    "DebertaV2Tokenizer": ("deberta-v2",),
    "GPT2Tokenizer": ("gpt2",),
    "GemmaTokenizer": ("gemma", "gemma2", "gemma3_text"),
    "LlamaTokenizer": ("llama", "mistral", "mixtral", "phi3"),
    "M2M100Tokenizer": ("m2m_100",),
    "MBartTokenizer": ("mbart",),
    "MPNetTokenizer": ("mpnet",),
    "MarianTokenizer": ("marian",),
    "PegasusTokenizer": ("pegasus", "pegasus_x"),
    "Qwen2Tokenizer": ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    "RobertaTokenizer": ("bart", "roberta"),
    "T5Tokenizer": ("mt5", "t5", "umt5"),
    "XLMRobertaTokenizer": ("gte", "jina_embeddings_v3", "xlm-roberta", "xlm-roberta-xl"),
}
"""The class of directories that name none, by `model_type`."""
REMEDY = (
    'With transformers and sentencepiece: AutoTokenizer.from_pretrained("DIRECTORY").save_pretrained("DIRECTORY") '
    "writes tokenizer.json"
)


def has_tokenizer(directory: Path) -> bool:
    return (directory / FILE_NAME).is_file() or bool(find_older_files(directory, find_class(directory)))


def read_tokenizer_text(directory: Path) -> str:
    """What tokenizer.json says, or would say if there was one. Raises ModelDirectoryError."""
    path = directory / FILE_NAME
    if not path.is_file():
        return json.dumps(make_tokenizer(directory))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelDirectoryError(f"{path}: cannot be read: {error}") from None


def read_tokenizer(directory: Path) -> Keys:
    """The same, parsed. Raises ModelDirectoryError."""
    path = directory / FILE_NAME
    return read_object(path) if path.is_file() else make_tokenizer(directory)


def make_tokenizer(directory: Path) -> Keys:
    """Of the older files. Raises ModelDirectoryError, naming those that were looked for."""
    name = find_class(directory)
    found = find_older_files(directory, name)
    if found and name in SENTENCEPIECE_CLASSES:
        return make_from_sentencepiece(found[0], SENTENCEPIECE_CLASSES[name])
    if found:
        return make_from_vocabulary(directory, VOCABULARY_CLASSES[name])
    if name in SENTENCEPIECE_CLASSES:
        missing = f"nor, of a {name}, {' or '.join(SENTENCEPIECE_CLASSES[name].files)}"
    elif name in VOCABULARY_CLASSES:
        missing = f"nor, of a {name}, {' with '.join(VOCABULARY_CLASSES[name].files)}"
    elif not name:
        files = {file for kind in (SENTENCEPIECE_CLASSES | VOCABULARY_CLASSES).values() for file in kind.files}
        missing = f"and neither tokenizer_class nor model_type says which of {', '.join(sorted(files))} it is made of"
    else:
        known = ", ".join(sorted(SENTENCEPIECE_CLASSES.keys() | VOCABULARY_CLASSES.keys()))
        missing = f"and tokenizer_class {name!r} is none that it can be made for: {known}"
    raise ModelDirectoryError(f"{directory}: there is no {FILE_NAME}, {missing}. {REMEDY}")


def find_older_files(directory: Path, name: str) -> list[Path]:
    """Those that a class needs; empty where one is missing, or the class is not known."""
    if name in SENTENCEPIECE_CLASSES:
        return [path for file in SENTENCEPIECE_CLASSES[name].files if (path := directory / file).is_file()][:1]
    paths = [directory / file for file in VOCABULARY_CLASSES[name].files] if name in VOCABULARY_CLASSES else []
    return paths if all(path.is_file() for path in paths) else []


def find_class(directory: Path) -> str:
    """transformers' name of it, as its AutoTokenizer finds it; empty where nothing tells."""
    config = read_optional(directory / "config.json")
    for keys in (read_optional(directory / "tokenizer_config.json"), config):
        name = str(keys.get("tokenizer_class") or "").removesuffix("Fast")
        if name and name not in ANY_CLASS:
            return SAME_CLASSES.get(name, name)
    model_type = config.get("model_type")
    return next((name for name, types in MODEL_CLASSES.items() if model_type in types), "")
