"""The tokenizer.json that a directory with nothing but SentencePiece's file would have. Knows no torch.

Texts are read as SentencePiece itself reads them, and so as transformers' slow tokenizers did: docs/decisions/0023.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from models.defaults import Keys
from models.keys import ModelDirectoryError, read_object, read_optional
from models.sentencepiece_classes import (
    SEAL,
    SOURCE_LANGUAGE,
    SPECIAL,
    Roles,
    SentencePieceClass,
    control,
    is_language_code,
    lay_out_vocabulary,
    seal,
)
from models.sentencepiece_file import Piece, PieceKind, SentencePieceFile, read_sentencepiece
from models.tokenizer_json import (
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

BLANK = "▁"


def make_from_sentencepiece(path: Path, kind: SentencePieceClass) -> Keys:
    """Of the file at `path` and the settings beside it. Raises ModelDirectoryError."""
    settings = read_settings(path.parent)
    check_unset(settings, "separate_vocabs", "split_by_punct", "legacy_behaviour")
    file = read_sentencepiece(path)
    roles = read_roles(settings, {role: Token(content) for role, content in kind.roles.items()})
    names = {role: token.content for role, token in roles.items()}
    pieces = lay_out(path.parent, kind, file.pieces, names, settings.keys)
    isolated = [] if takes_out_user_defined(file) else list_user_defined(pieces)
    tokens = [*list_special(pieces), *roles.values(), *list_further(settings.path, settings.keys)]
    if not isolated:
        tokens += [
            Token(text, is_normalized=text not in kind.special_pieces, is_special=text in kind.special_pieces)
            for text in list_user_defined(pieces)
        ]
    placed = place_tokens(settings, number(pieces), tokens)
    pieces = put_in(pieces, placed)
    language = kind.language_token.format(settings.keys.get("src_lang") or kind.source_language)
    template = choose_template(kind, settings.keys)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": write_tokens(placed),
        "normalizer": write_normalizer(file, kind, settings.keys),
        "pre_tokenizer": write_pre_tokenizer(
            file, pieces, isolated, is_legacy=settings.keys.get("legacy") is not False
        ),
        "post_processor": write_template(settings, template, names | {SOURCE_LANGUAGE: language}, number(pieces)),
        "decoder": write_decoder(file),
        "model": write_model(file, pieces, is_isolating=bool(isolated)),
    }


def lay_out(
    directory: Path, kind: SentencePieceClass, pieces: Sequence[Piece], names: Roles, keys: Keys
) -> list[Piece]:
    """By id. Raises ModelDirectoryError."""
    laid_out = kind.layout(pieces, names, keys)
    if kind.list_languages is None:
        return laid_out
    path = directory / "vocab.json"
    ids = read_object(path)
    vocabulary = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in vocabulary] != list(range(len(vocabulary))):
        raise ModelDirectoryError(f"{path}: ids must be 0 to {len(vocabulary) - 1}, each once. Copy the file again")
    size = read_optional(directory / "config.json").get("vocab_size", 0)
    return lay_out_vocabulary(laid_out, vocabulary, kind.list_languages(keys), names, size)


def number(pieces: Iterable[Piece]) -> dict[str, int]:
    return {piece.text: index for index, piece in enumerate(pieces)}


def list_special(pieces: Iterable[Piece]) -> list[Token]:
    shown = (piece.text for piece in pieces if piece.kind in SPECIAL and not piece.text.startswith(SEAL))
    return [Token(text, is_special=not is_language_code(text)) for text in shown]


def list_user_defined(pieces: Iterable[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.kind is PieceKind.USER_DEFINED]


def takes_out_user_defined(file: SentencePieceFile) -> bool:
    """Whether texts may be cut at them before normalising: nothing depends on where a text begins and ends."""
    return not file.has_dummy_prefix and not file.removes_extra_blanks


def put_in(pieces: Sequence[Piece], placed: Mapping[int, Token]) -> list[Piece]:
    """Added tokens among the pieces, by their ids."""
    found = [*pieces, *(seal(f"added{index}") for index in range(max(placed, default=-1) + 1 - len(pieces)))]
    for token_id, token in placed.items():
        if found[token_id].text != token.content:
            found[token_id] = control(token.content)[0]
    return found


def choose_template(kind: SentencePieceClass, keys: Keys) -> Template:
    if not kind.adds_ends:
        return kind.template
    begin = "bos{0} " if keys.get("add_bos_token", True) else ""
    end = " eos{0}" if keys.get("add_eos_token", False) else ""
    single = f"{begin}$A{end}".format("")
    return Template(single, f"{single} " + f"{begin}$B:1{end}".format(":1"))


def write_normalizer(file: SentencePieceFile, kind: SentencePieceClass, keys: Keys) -> Keys:
    steps = [*clean_quotes(keys)] if kind.cleans_quotes else []
    if keys.get("do_lower_case", kind.cleans_quotes):
        steps.append({"type": "Lowercase"})
    if file.charsmap:
        charsmap = base64.b64encode(file.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if file.removes_extra_blanks:
        steps += [replace({"Regex": r"\A +| +\z"}, ""), replace({"Regex": " {2,}"}, " ")]
    return {"type": "Sequence", "normalizers": [*steps, replace({"String": " "}, BLANK)]}


def clean_quotes(keys: Keys) -> Iterator[Keys]:
    yield replace({"Regex": r"\s+"}, " ")
    yield from (replace({"String": marks}, '"') for marks in ("``", "''"))
    if not keys.get("keep_accents", False):
        yield from ({"type": "NFKD"}, {"type": "StripAccents"})


def replace(pattern: Keys, content: str) -> Keys:
    return {"type": "Replace", "pattern": pattern, "content": content}


def write_pre_tokenizer(
    file: SentencePieceFile, pieces: Sequence[Piece], isolated: Sequence[str], *, is_legacy: bool
) -> Keys:
    """`is_legacy`: after a special token comes another dummy prefix.

    The prefix is put there as a blank, for a ▁ that a text begins with would be taken for it.
    """
    words = splits_words(file, pieces)
    steps = []
    if file.has_dummy_prefix:
        steps.append(metaspace(" ", "always" if is_legacy else "first", is_splitting=False))
    steps.append(metaspace(BLANK, "never", is_splitting=words))
    if isolated:
        pattern = "|".join(re.escape(text) for text in sorted(isolated, key=len, reverse=True))
        steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    return {"type": "Sequence", "pretokenizers": steps}


def metaspace(blank: str, prepend_scheme: str, *, is_splitting: bool) -> Keys:
    return {"type": "Metaspace", "replacement": blank, "prepend_scheme": prepend_scheme, "split": is_splitting}


def splits_words(file: SentencePieceFile, pieces: Sequence[Piece]) -> bool:
    """Whether words may be read one by one, which is faster: where no piece reaches from one into the next."""
    written = [piece.text for piece in pieces if piece.kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED)]
    has_blank = BLANK in written or file.has_byte_fallback
    return has_blank and not any(BLANK in text[1:] for text in written)


def write_decoder(file: SentencePieceFile) -> Keys:
    steps: list[Keys] = [replace({"String": SEAL}, ""), replace({"String": BLANK}, " ")]
    if file.has_byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if file.has_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def write_model(file: SentencePieceFile, pieces: Sequence[Piece], *, is_isolating: bool) -> Keys:
    unknown = next(index for index, piece in enumerate(pieces) if piece.kind is PieceKind.UNKNOWN)
    if file.algorithm == "unigram":
        vocabulary = [[piece.text, piece.score] for piece in pieces]
        return {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": vocabulary,
            "byte_fallback": file.has_byte_fallback,
        }
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces[unknown].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": file.has_byte_fallback,
        "ignore_merges": is_isolating,
        "vocab": number(pieces),
        "merges": list_merges(pieces),
    }


def list_merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, those with the highest score first."""
    normal = {piece.text: piece.score for piece in pieces if piece.kind is PieceKind.NORMAL}
    ranked = sorted(normal, key=lambda text: -normal[text])
    return [
        (text[:place], text[place:])
        for text in ranked
        for place in range(1, len(text))
        if text[:place] in normal and text[place:] in normal
    ]
