"""Directories with nothing but SentencePiece's files: cut as SentencePiece cuts them, with the ids of transformers."""

import asyncio
import json
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import sentencepiece_models
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer

from models import language_codes
from models.keys import ModelDirectoryError
from models.sentencepiece_classes import SEAL, SENTENCEPIECE_CLASSES
from models.sentencepiece_file import Piece, PieceKind, read_sentencepiece
from models.special_tokens import find_mask_token, list_added_tokens
from models.tokenizer_files import has_tokenizer, read_tokenizer, read_tokenizer_text
from server.text.located import find_word_rules
from server.text.tokenizer_file import load_tokenizer

PARTS = [
    *("Clara", "Schu", "mann", "lived in", "U.N.", "9,", "a", "x", "İ", "ß", "Ab", "AB"),
    *(" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u3000", "\u200b", "▁", "▁▁"),
    *("ü", "u\u0308", "é", "ﬁ", "１", "①", "½", "…", "—", "’", "Ｃｌａｒａ", "日本", "😀"),
    *(".", "-", "(", "``", "''", "<", "<b>", "<start_of_turn>"),
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)
"""Without marks after characters that are replaced by others: the library's normaliser drops those, in files of
transformers too."""


@dataclass(frozen=True)
class Case:
    """`shift`: of a piece's id; `unknown`: the id of what has none. `before`, `after`: the ids around a text."""

    shift: int
    unknown: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


CASES = {
    "AlbertTokenizer": Case(0, 1, (2,), (3,)),
    "CamembertTokenizer": Case(4, 3, (5,), (6,)),
    "DebertaV2Tokenizer": Case(0, 3, (1,), (2,)),
    "GemmaTokenizer": Case(0, 3, (2,)),
    "LlamaTokenizer": Case(0, 0, (1,)),
    "MBart50Tokenizer": Case(1, 3, (), (2,)),
    "MBartTokenizer": Case(1, 3, (), (2,)),
    "NllbTokenizer": Case(1, 3, (), (2,)),
    "PegasusTokenizer": Case(103, 105, (), (1,)),
    "T5Tokenizer": Case(0, 2, (), (1,)),
    "XLMRobertaTokenizer": Case(1, 3, (0,), (2,)),
}
LANGUAGES = {
    "MBart50Tokenizer": ("en_XX", language_codes.MBART50),
    "MBartTokenizer": ("en_XX", language_codes.MBART),
    "NllbTokenizer": ("eng_Latn", language_codes.NLLB),
}


def save(name: str, directory: Path, **keys: Any) -> sentencepiece.SentencePieceProcessor:
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **keys}))
    return sentencepiece_models.save(name, directory)


def load(directory: Path) -> RawTokenizer:
    return RawTokenizer.from_str(read_tokenizer_text(directory))


class Made:
    """What is compared. No dataclass: of one that fails Hypothesis prints all fields, and tokenizers at length."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.pieces = save(name, directory)
        self.tokenizer = load(directory)


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp(request.param))


def expect(name: str, pieces: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    case = CASES[name]
    if name == "AlbertTokenizer":
        text = " ".join(text.split()).replace("``", '"').replace("''", '"')
        text = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char)).lower()
    ids = [case.unknown if each == pieces.unk_id() else each + case.shift for each in pieces.encode(text)]
    before, after = list(case.before), list(case.after)
    if name in LANGUAGES:
        code, codes = LANGUAGES[name]
        side = after if name == "MBartTokenizer" else before
        side.append(pieces.get_piece_size() + 1 + codes.split().index(code))
    return [*before, *ids, *after]


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_texts_are_read_as_sentencepiece_reads_them(made: Made, text: str) -> None:
    assert made.tokenizer.encode(text).ids == expect(made.name, made.pieces, text)


def load_theirs(name: str, directory: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        return getattr(transformers, name).from_pretrained(directory)


@pytest.mark.parametrize("name", [name for name in CASES if name != "NllbTokenizer"])
def test_pairs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """NLLB's languages are unknown to transformers 5 where no file lists them."""
    begins = {"add_bos_token": True} if SENTENCEPIECE_CLASSES[name].adds_ends else {}
    save(name, tmp_path, **begins)
    theirs, ours = load_theirs(name, tmp_path), load(tmp_path)
    expected = theirs("Clara lived", "in Leipzig", return_token_type_ids=True)
    found = ours.encode("Clara lived", "in Leipzig")
    assert (found.ids, found.type_ids) == (expected["input_ids"], expected["token_type_ids"])


def save_seq2seq(name: str, directory: Path) -> None:
    """With a vocabulary in another order that lacks pieces, and has some that are not the source's."""
    pieces = save(name, directory)
    texts = [pieces.id_to_piece(index) for index in range(3, pieces.get_piece_size())]
    vocabulary = ["</s>", "<unk>", *texts[:6:-1], "▁nichts", "Clara", ">>deu<<", "<pad>"]
    if name == "M2M100Tokenizer":
        vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *texts[:6:-1], "▁nichts", "Clara"]
    (directory / "vocab.json").write_text(json.dumps({text: index for index, text in enumerate(vocabulary)}))
    (directory / "config.json").write_text(json.dumps({"vocab_size": count_rows(name, vocabulary)}))
    if name == "MarianTokenizer":
        sentencepiece_models.save("", directory)
        (directory / "sentencepiece.bpe.model").rename(directory / "target.spm")


def count_rows(name: str, vocabulary: list[str]) -> int:
    """M2M-100 has rows for its languages, and eight more."""
    return len(vocabulary) + (len(language_codes.M2M100.split()) + 8 if name == "M2M100Tokenizer" else 0)


@pytest.mark.parametrize("name", ["M2M100Tokenizer", "MarianTokenizer"])
def test_vocabularies_beside_the_pieces(name: str, tmp_path: Path) -> None:
    """Against the two classes that have SentencePiece itself cut texts in transformers 5 too."""
    save_seq2seq(name, tmp_path)
    theirs = load_theirs(name, tmp_path)
    vocab_size = json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    with ThreadPoolExecutor(1) as pool:
        options = {"max_input_tokens": 500, "vocab_size": vocab_size, "type_vocab_size": 1, "pool": pool}
        ours = load_tokenizer(tmp_path, **options)

        @settings(max_examples=60, deadline=None)
        @given(text=TEXTS)
        def check(text: str) -> None:
            text = f"Frankfurt {text}"
            (found,) = asyncio.run(ours.encode([text], truncation="error", field="input"))
            assert found.input_ids.tolist() == theirs(text)["input_ids"]

        check()
        ids = theirs.convert_tokens_to_ids(["Clara", "▁nichts"])
        assert asyncio.run(ours.decode([ids], skip_special_tokens=True, field="ids")) == ["Clara nichts"]


def test_marian_reads_the_language_before_the_text(tmp_path: Path) -> None:
    save_seq2seq("MarianTokenizer", tmp_path)
    text = ">>deu<< Frankfurt and Leipzig"
    limit = json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    found = [token_id if token_id < limit else 1 for token_id in load(tmp_path).encode(text).ids]
    assert found == load_theirs("MarianTokenizer", tmp_path)(text)["input_ids"]


@pytest.mark.parametrize(
    ("name", "token", "place"),
    [("XLMRobertaTokenizer", "<mask>", 1), ("T5Tokenizer", "<extra_id_0>", 99), ("DebertaV2Tokenizer", "[MASK]", 0)],
)
def test_special_tokens_in_texts(name: str, token: str, place: int, tmp_path: Path) -> None:
    """`place`: behind the pieces."""
    pieces = save(name, tmp_path)
    token_id = pieces.get_piece_size() + place
    parts = [expect(name, pieces, part)[len(CASES[name].before) : -1] for part in ("Clara", "lived")]
    found = load(tmp_path).encode(f"Clara {token} lived").ids
    assert found == [*CASES[name].before, *parts[0], token_id, *parts[1], *CASES[name].after]
    assert list_added_tokens(tmp_path)[token] == token_id


def test_after_special_tokens_begins_a_word_only_for_legacy(tmp_path: Path) -> None:
    save("LlamaTokenizer", tmp_path)
    assert load(tmp_path).encode("y</s>y").tokens == ["<s>", "▁", "y", "</s>", "▁", "y"]
    save("LlamaTokenizer", tmp_path, legacy=False)
    assert load(tmp_path).encode("y</s>y").tokens == ["<s>", "▁", "y", "</s>", "y"]


def test_settings_beside_the_pieces(tmp_path: Path) -> None:
    mask = {"content": "<gap>", "lstrip": True, "rstrip": False, "normalized": False, "special": True}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"mask_token": mask, "cls_token": "<unset>"}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<late>": 90}))
    save("DebertaV2Tokenizer", tmp_path, cls_token="[SEP]", mask_token="<gap>", do_lower_case=True)
    found = load(tmp_path).encode("CLARA<late>")
    assert found.ids == [2, *load(tmp_path).encode("clara", add_special_tokens=False).ids, 90, 2]
    assert find_mask_token(tmp_path) == ("<gap>", 91)


def test_added_tokens_take_the_place_of_pieces(tmp_path: Path) -> None:
    """As those of chat models, which give a meaning to what was spare."""
    turn = {"content": "<|turn|>", "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    save("GemmaTokenizer", tmp_path, added_tokens_decoder={"9": turn}, add_eos_token=True)
    tokenizer = load(tmp_path)
    assert tokenizer.encode("<|turn|>").ids == [2, 9, 1]
    assert tokenizer.encode("<b>").tokens == ["<bos>", "<0x3C>", "b", "<0x3E>", "<eos>"]


def test_unknown_words_are_known_to_be(tmp_path: Path) -> None:
    save("DebertaV2Tokenizer", tmp_path)
    assert find_word_rules(load(tmp_path)).unknown_id == 3


def test_numbers_before_commas_are_read_by_themselves(tmp_path: Path) -> None:
    pieces = [Piece("▁9,"), Piece("9"), Piece(","), Piece("x,")]
    laid_out = SENTENCEPIECE_CLASSES["AlbertTokenizer"].layout(pieces, {}, {})
    assert [piece.text for piece in laid_out] == [f"{SEAL}▁9,", "9", ",", "x,"]


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    save("GemmaTokenizer", tmp_path)
    found = read_sentencepiece(tmp_path / "tokenizer.model")
    assert found.algorithm == "bpe" and found.has_byte_fallback and not found.charsmap
    assert not found.has_dummy_prefix and not found.removes_extra_blanks
    assert found.pieces[:2] == [Piece("<pad>", 0.0, PieceKind.CONTROL), Piece("<eos>", 0.0, PieceKind.CONTROL)]
    assert found.pieces[5] == Piece("\n", 0.0, PieceKind.USER_DEFINED)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"model_type": "word"},
            r"spm\.model: .*\(model_type\) is not supported\. Save the tokenizer with transformers",
        ),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is not supported"),
    ],
)
def test_files_that_are_not_followed(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    save("DebertaV2Tokenizer", tmp_path)
    sentencepiece_models.save("DebertaV2Tokenizer", tmp_path, **options)
    with pytest.raises(ModelDirectoryError, match=problem):
        read_tokenizer(tmp_path)


def test_broken_files_are_named(tmp_path: Path) -> None:
    save("DebertaV2Tokenizer", tmp_path)
    path = tmp_path / "spm.model"
    whole = path.read_bytes()
    for broken in (whole[:500], b"", b"\xff" * 9, b"{}"):
        path.write_bytes(broken)
        with pytest.raises(ModelDirectoryError, match=r"spm\.model: not a SentencePiece model: "):
            read_tokenizer(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelDirectoryError, match=r"neither tokenizer_class nor model_type says .* spm\.model, .*vocab"
    ):
        read_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    assert not has_tokenizer(tmp_path)
    with pytest.raises(
        ModelDirectoryError, match=r"no tokenizer\.json, nor, of a DebertaV2Tokenizer, .* or spm\.model"
    ):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "OwnTokenizer"}))
    with pytest.raises(ModelDirectoryError, match=r"tokenizer_class 'OwnTokenizer' is none .*: AlbertTokenizer, "):
        read_tokenizer(tmp_path)
