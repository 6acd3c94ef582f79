"""The tokenizer.json that a directory would have which has vocab.txt, or vocab.json and merges.txt. Knows no torch.

Everything else of these tokenizers stands in the code of transformers' classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.defaults import Keys
from models.keys import ModelDirectoryError, read_object
from models.tokenizer_json import (
    Settings,
    Template,
    Token,
    check_unset,
    list_further,
    place_tokens,
    read_roles,
    read_settings,
    write_template,
    write_tokens,
)

WORDS_FILES = ("vocab.txt",)
BYTES_FILES = ("vocab.json", "merges.txt")
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What Qwen2 takes for words: tiktoken's, with digits one by one."""
Tokens = Mapping[str, Token]
EMPTY = Token("")


@dataclass(frozen=True, slots=True)
class VocabularyClass:
    """`roles`: see `sentencepiece_classes.Roles`. `write`: all but the added tokens and what is put around a text."""

    files: tuple[str, ...]
    roles: Tokens
    write: Callable[[Path, Settings, Tokens], Keys]
    template: Template | None = None
    """None: nothing is put around texts."""
    trims_blanks: bool = False
    """Places of tokens leave out the blank before a word."""


def make_from_vocabulary(directory: Path, kind: VocabularyClass) -> Keys:
    """Raises ModelDirectoryError."""
    settings = read_settings(directory)
    check_unset(settings, "add_bos_token", "add_eos_token")
    roles = read_roles(settings, kind.roles)
    content = kind.write(directory, settings, roles)
    vocabulary = content["model"]["vocab"]
    placed = place_tokens(settings, vocabulary, [*roles.values(), *list_further(settings.path, settings.keys)])
    ids = vocabulary | {token.content: token_id for token_id, token in placed.items()}
    names = {role: token.content for role, token in roles.items()}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": write_tokens(placed),
        "post_processor": write_ending(kind, settings, names, ids),
        **content,
    }


def write_ending(kind: VocabularyClass, settings: Settings, names: Mapping[str, str], ids: Mapping[str, int]) -> Keys:
    has_prefix = bool(settings.keys.get("add_prefix_space"))
    if kind.template is None:
        return {"type": "ByteLevel", "add_prefix_space": has_prefix, "trim_offsets": False, "use_regex": True}
    template = write_template(settings, kind.template, names, ids)
    if not kind.trims_blanks:
        return template
    ends = {role: [names[role], ids[names[role]]] for role in ("sep", "cls")}
    return {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": has_prefix, **ends}


def write_word_pieces(directory: Path, settings: Settings, roles: Tokens) -> Keys:
    """BERT's: words are cut from the left, into the longest pieces there are."""
    keys = settings.keys
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": keys.get("tokenize_chinese_chars", True),
            "strip_accents": keys.get("strip_accents"),
            "lowercase": keys.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": roles.get("unk", EMPTY).content,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: index for index, word in enumerate(read_lines(directory / WORDS_FILES[0]))},
        },
    }


def write_bytes(directory: Path, settings: Settings, roles: Tokens) -> Keys:
    """GPT-2's byte-level BPE."""
    has_prefix = bool(settings.keys.get("add_prefix_space"))
    return {
        "normalizer": None,
        "pre_tokenizer": write_byte_level(has_prefix, finds_words=True),
        "decoder": write_byte_level(True, finds_words=True),
        "model": write_merges(directory),
    }


def write_qwen_bytes(directory: Path, settings: Settings, roles: Tokens) -> Keys:
    """The same of words that Qwen2 finds."""
    words = {"type": "Split", "pattern": {"Regex": QWEN_WORDS}, "behavior": "Isolated", "invert": False}
    has_prefix = bool(settings.keys.get("add_prefix_space"))
    steps = [words, write_byte_level(has_prefix, finds_words=False)]
    return write_bytes(directory, settings, roles) | {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
    }


def write_byte_level(has_prefix: bool, *, finds_words: bool) -> Keys:
    return {"type": "ByteLevel", "add_prefix_space": has_prefix, "trim_offsets": True, "use_regex": finds_words}


def write_merges(directory: Path) -> Keys:
    vocabulary_name, merges_name = BYTES_FILES
    path = directory / merges_name
    merges = [line.split(" ") for line in read_lines(path) if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
        raise ModelDirectoryError(f"{path}: each line must have two pieces of a token. Copy the file again")
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": read_object(directory / vocabulary_name),
        "merges": merges,
    }


def read_lines(path: Path) -> list[str]:
    """Raises ModelDirectoryError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelDirectoryError(f"{path}: cannot be read: {error}") from None
    return text.removesuffix("\n").split("\n")


def list_tokens(**contents: str) -> dict[str, Token]:
    return {role: Token(content) for role, content in contents.items()}


BRACKETS = list_tokens(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
ANGLES = list_tokens(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>")
ANGLES["mask"] = Token("<mask>", eats_left=True)
ENDOFTEXT = "<|endoftext|>"

ROBERTA_LIKE = Template("cls $A sep", "cls $A sep sep $B sep")

VOCABULARY_CLASSES: dict[str, VocabularyClass] = {
    "BertTokenizer": VocabularyClass(
        WORDS_FILES, BRACKETS, write_word_pieces, Template("cls $A sep", "cls $A sep $B:1 sep:1")
    ),
    "GPT2Tokenizer": VocabularyClass(
        BYTES_FILES, list_tokens(bos=ENDOFTEXT, eos=ENDOFTEXT, unk=ENDOFTEXT), write_bytes
    ),
    "MPNetTokenizer": VocabularyClass(
        WORDS_FILES,
        ANGLES | list_tokens(unk="[UNK]"),
        write_word_pieces,
        ROBERTA_LIKE,
        trims_blanks=True,
    ),
    "Qwen2Tokenizer": VocabularyClass(
        BYTES_FILES, list_tokens(eos=ENDOFTEXT, unk=ENDOFTEXT, pad=ENDOFTEXT), write_qwen_bytes
    ),
    "RobertaTokenizer": VocabularyClass(BYTES_FILES, ANGLES, write_bytes, ROBERTA_LIKE, trims_blanks=True),
}
