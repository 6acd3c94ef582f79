"""transformers' tokenizer classes over SentencePiece: which ids the pieces get, and what is put around a text.

As the slow classes of its version 4 have it, which had SentencePiece itself cut texts. Knows no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from models import language_codes
from models.defaults import Keys
from models.sentencepiece_file import Piece, PieceKind
from models.tokenizer_json import Template

SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
SEAL = "\0"
"""Before what has an id and is never read from text; taken away again in texts of tokens."""

SPECIAL = (PieceKind.CONTROL, PieceKind.UNKNOWN)
"""Pieces that are special tokens."""

Roles = dict[str, str]
"""Tokens by what they are for: `bos`, `eos`, `unk`, `sep`, `pad`, `cls`, `mask`."""
Layout = Callable[[Sequence[Piece], Roles, Keys], list[Piece]]
"""The vocabulary in the order of its ids, from a file's pieces, and from the keys of tokenizer_config.json."""

BRACKETS: Roles = {"bos": "[CLS]", "eos": "[SEP]", "sep": "[SEP]", "cls": "[CLS]", "mask": "[MASK]"}
ANGLES: Roles = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
FAIRSEQ: Roles = ANGLES | {"sep": "</s>", "cls": "<s>", "mask": "<mask>"}


def seal(text: str) -> Piece:
    return Piece(SEAL + text, 0.0, PieceKind.CONTROL)


def control(*texts: str) -> list[Piece]:
    return [Piece(text, 0.0, PieceKind.CONTROL) for text in texts]


def lay_out_as_is(pieces: Sequence[Piece], roles: Roles, keys: Keys) -> list[Piece]:
    return list(pieces)


def lay_out_fairseq(pieces: Sequence[Piece], roles: Roles, keys: Keys) -> list[Piece]:
    """fairseq's own four in place of SentencePiece's three."""
    unknown = Piece(roles["unk"], 0.0, PieceKind.UNKNOWN)
    return [*control(roles["bos"], roles["pad"], roles["eos"]), unknown, *pieces[3:]]


def lay_out_xlm_roberta(pieces: Sequence[Piece], roles: Roles, keys: Keys) -> list[Piece]:
    return [*lay_out_fairseq(pieces, roles, keys), *control(roles["mask"])]


def lay_out_languages(codes: Sequence[str]) -> Layout:
    def lay_out(pieces: Sequence[Piece], roles: Roles, keys: Keys) -> list[Piece]:
        return [*lay_out_fairseq(pieces, roles, keys), *control(*codes, roles["mask"])]

    return lay_out


def lay_out_camembert(pieces: Sequence[Piece], roles: Roles, keys: Keys) -> list[Piece]:
    """fairseq's four before SentencePiece's three, of which one unknown piece is enough."""
    unknown = Piece(roles["unk"], 0.0, PieceKind.UNKNOWN)
    before = [*control("<s>NOTUSED", roles["pad"], "</s>NOTUSED"), unknown, *control("<unk>NOTUSED")]
    return [*before, *pieces[1:], *control(roles["mask"])]


def lay_out_albert(pieces: Sequence[Piece], roles: Roles, keys: Keys) -> list[Piece]:
    """Pieces like `9,` are read as two."""
    return [seal(piece.text) if piece.text[-1:] == "," and piece.text[-2:-1].isdigit() else piece for piece in pieces]


def lay_out_t5(pieces: Sequence[Piece], roles: Roles, keys: Keys) -> list[Piece]:
    """Sentinels behind the pieces, the first one last."""
    return [*pieces, *control(*reversed(list_sentinels(keys)))]


def lay_out_vocabulary(
    pieces: Sequence[Piece], vocabulary: Sequence[str], languages: Sequence[str], roles: Roles, size: int
) -> list[Piece]:
    """`vocabulary` with its ids, `languages` behind it, and no other below `size`. Pieces that the vocabulary lacks are
    read all the same, with ids from there on, which models do not have."""
    known = {piece.text: piece for piece in pieces if piece.kind not in SPECIAL}

    def find(text: str) -> Piece:
        if text == roles.get("unk"):
            return Piece(text, 0.0, PieceKind.UNKNOWN)
        is_special = text in roles.values() or is_language_code(text)
        return Piece(text, 0.0, PieceKind.CONTROL) if is_special else known.pop(text, seal(text))

    found = [*map(find, vocabulary), *control(*languages)]
    found += [seal(f"unused{index}") for index in range(size - len(found))]
    return [*found, *known.values()]


def is_language_code(text: str) -> bool:
    """Marian's, before a text: which language it is to become."""
    return text.startswith(">>") and text.endswith("<<")


def lay_out_pegasus(pieces: Sequence[Piece], roles: Roles, keys: Keys) -> list[Piece]:
    """All but two pieces are moved by `offset`."""
    return [*control(roles["pad"], roles["eos"], *list_fillers(keys)), *pieces[2:]]


def list_sentinels(keys: Keys) -> list[str]:
    return [f"<extra_id_{index}>" for index in range(keys.get("extra_ids", 100))]


def list_fillers(keys: Keys) -> list[str]:
    """What Pegasus was trained with beside its pieces: masks for sentences and for words, and tokens without use."""
    offset = keys.get("offset", 103)
    return ["<mask_1>", "<mask_2>", *(f"<unk_{index}>" for index in range(2, offset))] if offset else []


def list_m2m100_languages(keys: Keys) -> list[str]:
    codes = language_codes.WMT21 if keys.get("language_codes") == "wmt21" else language_codes.M2M100
    return [f"__{code}__" for code in codes.split()]


SOURCE_LANGUAGE = "src_lang"
"""In templates: the token of the language that is read."""
LanguagePlace = Literal["none", "prefix", "suffix", "target_prefix"]
"""Where texts name languages, of translators: see `models.translation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceClass:
    """`files`: one of them holds the pieces."""

    roles: Roles
    template: Template
    layout: Layout = lay_out_as_is
    files: tuple[str, ...] = SENTENCEPIECE_FILES
    source_language: str = ""
    """`src_lang` where it is not said."""
    names_target: bool = False
    """Who asks puts a token before the text that says which language it is to become."""
    language_token: str = "{}"
    """How a language's token is made of its code."""
    list_languages: Callable[[Keys], list[str]] | None = None
    """vocab.json says which ids there are, and behind them come these tokens. None: there is no such file."""
    adds_ends: bool = False
    """`add_bos_token` and `add_eos_token` say what is around a text."""
    cleans_quotes: bool = False
    """ALBERT's way of reading: quotation marks of LaTeX, accents and capitals by its keys."""
    special_pieces: tuple[str, ...] = ()
    """Of the pieces defined by users: those that are special tokens."""

    @property
    def language_place(self) -> LanguagePlace:
        parts = self.template.single.split()
        if self.names_target:
            return "target_prefix"
        return "prefix" if parts[0] == SOURCE_LANGUAGE else "suffix" if parts[-1] == SOURCE_LANGUAGE else "none"


BERT_LIKE = Template("cls $A sep", "cls $A sep $B:1 sep:1")
ROBERTA_LIKE = Template("cls $A sep", "cls $A sep sep $B sep")
ENDED = Template("$A eos", "$A $B eos")
LANGUAGE_FIRST = Template(f"{SOURCE_LANGUAGE} $A eos", f"{SOURCE_LANGUAGE} $A $B eos")
LANGUAGE_LAST = Template(f"$A eos {SOURCE_LANGUAGE}", f"$A $B eos {SOURCE_LANGUAGE}")
DECODER = Template("$A", "$A $B:1")

SENTENCEPIECE_CLASSES: dict[str, SentencePieceClass] = {
    "AlbertTokenizer": SentencePieceClass(
        roles=BRACKETS | {"unk": "<unk>", "pad": "<pad>"}, layout=lay_out_albert, cleans_quotes=True, template=BERT_LIKE
    ),
    "CamembertTokenizer": SentencePieceClass(roles=FAIRSEQ, layout=lay_out_camembert, template=ROBERTA_LIKE),
    "DebertaV2Tokenizer": SentencePieceClass(roles=BRACKETS | {"unk": "[UNK]", "pad": "[PAD]"}, template=BERT_LIKE),
    "GemmaTokenizer": SentencePieceClass(
        roles={"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"},
        adds_ends=True,
        special_pieces=("<start_of_turn>", "<end_of_turn>"),
        template=DECODER,
    ),
    "LlamaTokenizer": SentencePieceClass(
        roles={"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, adds_ends=True, template=DECODER
    ),
    "M2M100Tokenizer": SentencePieceClass(
        roles=ANGLES,
        source_language="en",
        language_token="__{}__",
        list_languages=list_m2m100_languages,
        template=LANGUAGE_FIRST,
    ),
    "MBart50Tokenizer": SentencePieceClass(
        roles=FAIRSEQ,
        layout=lay_out_languages(language_codes.MBART50.split()),
        source_language="en_XX",
        template=LANGUAGE_FIRST,
    ),
    "MBartTokenizer": SentencePieceClass(
        roles=FAIRSEQ,
        layout=lay_out_languages(language_codes.MBART.split()),
        source_language="en_XX",
        template=LANGUAGE_LAST,
    ),
    "MarianTokenizer": SentencePieceClass(
        roles={"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
        files=("source.spm",),
        list_languages=lambda keys: [],
        template=ENDED,
        names_target=True,
    ),
    "NllbTokenizer": SentencePieceClass(
        roles=FAIRSEQ,
        layout=lay_out_languages(language_codes.NLLB.split()),
        source_language="eng_Latn",
        template=LANGUAGE_FIRST,
    ),
    "PegasusTokenizer": SentencePieceClass(
        roles={"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"},
        layout=lay_out_pegasus,
        template=ENDED,
    ),
    "T5Tokenizer": SentencePieceClass(
        roles={"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
        layout=lay_out_t5,
        template=Template("$A eos", "$A eos $B eos"),
    ),
    "XLMRobertaTokenizer": SentencePieceClass(roles=FAIRSEQ, layout=lay_out_xlm_roberta, template=ROBERTA_LIKE),
}
