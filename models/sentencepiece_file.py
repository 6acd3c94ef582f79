"""SentencePiece's model files (.model, .spm): the pieces, and how text is normalised before it is cut into them.

Fields and their defaults are those of sentencepiece_model.proto (https://github.com/google/sentencepiece), in the wire
format of https://protobuf.dev/programming-guides/encoding. Knows no torch.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from models.keys import ModelDirectoryError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types."""
SIZES = {FIXED64: 8, FIXED32: 4}
PIECES, TRAINER, NORMALIZER = 1, 2, 3
"""Fields of a file."""
TEXT, SCORE, KIND = 1, 2, 3
"""Of a piece."""
ALGORITHM, BLANK_IS_SUFFIX, BYTE_FALLBACK = 3, 24, 35
"""Of what the trainer was told."""
CHARSMAP, DUMMY_PREFIX, REMOVE_EXTRA_BLANKS, ESCAPE_BLANKS = 2, 3, 4, 5
"""Of the normaliser."""
ALGORITHMS = {1: "unigram", 2: "bpe"}


class NotSupported(ValueError):
    """What is read is right, but nothing here does it."""


class PieceKind(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    """Never read from text."""
    USER_DEFINED = 4
    """Read from text before everything else, and never cut."""
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    text: str
    score: float = 0.0
    kind: PieceKind = PieceKind.NORMAL


@dataclass(slots=True)
class SentencePieceFile:
    """Mutable while it is read; defaults are those of a file that says nothing."""

    pieces: list[Piece] = field(default_factory=list)
    algorithm: str = "unigram"
    """`unigram` or `bpe`."""
    has_byte_fallback: bool = False
    """Characters without a piece are read as their bytes instead of as unknown."""
    charsmap: bytes = b""
    """What characters are replaced by, as SentencePiece compiles it; empty: nothing is."""
    has_dummy_prefix: bool = True
    """A blank is put before each text."""
    removes_extra_blanks: bool = True
    """At both ends, and all but one of a run."""


Field = tuple[int, int, bytes]
"""Its key, and what it holds: a number or bytes."""


def read_sentencepiece(path: Path) -> SentencePieceFile:
    """Raises ModelDirectoryError where the file is broken, or asks for what is not supported."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ModelDirectoryError(f"{path}: {error.strerror}") from None
    found = SentencePieceFile()
    try:
        for key, _, value in read_fields(raw):
            if key == PIECES:
                found.pieces.append(read_piece(value))
            elif key == TRAINER:
                read_trainer(found, value)
            elif key == NORMALIZER:
                read_normalizer(found, value)
        check_pieces(found.pieces)
    except NotSupported as error:
        raise ModelDirectoryError(
            f"{path}: {error} is not supported. Save the tokenizer with transformers, which writes tokenizer.json"
        ) from None
    except (IndexError, ValueError, struct.error) as error:
        raise ModelDirectoryError(f"{path}: not a SentencePiece model: {error}. Copy the file again") from None
    return found


def read_piece(raw: bytes) -> Piece:
    text, score, kind = "", 0.0, PieceKind.NORMAL
    for key, number, value in read_fields(raw):
        if key == TEXT:
            text = value.decode()
        elif key == SCORE:
            (score,) = struct.unpack("<f", value)
        elif key == KIND:
            kind = PieceKind(number)
    return Piece(text, score, kind)


def read_trainer(found: SentencePieceFile, raw: bytes) -> None:
    numbers = {key: number for key, number, _ in read_fields(raw)}
    algorithm = ALGORITHMS.get(numbers.get(ALGORITHM, 1))
    if algorithm is None:
        raise NotSupported("a vocabulary of words or of characters (model_type)")
    if numbers.get(BLANK_IS_SUFFIX):
        raise NotSupported("treat_whitespace_as_suffix")
    found.algorithm = algorithm
    found.has_byte_fallback = bool(numbers.get(BYTE_FALLBACK))


def read_normalizer(found: SentencePieceFile, raw: bytes) -> None:
    numbers = {key: number for key, number, _ in read_fields(raw)}
    if not numbers.get(ESCAPE_BLANKS, True):
        raise NotSupported("escape_whitespaces: false")
    found.charsmap = {key: value for key, _, value in read_fields(raw)}.get(CHARSMAP, b"")
    found.has_dummy_prefix = bool(numbers.get(DUMMY_PREFIX, True))
    found.removes_extra_blanks = bool(numbers.get(REMOVE_EXTRA_BLANKS, True))


def check_pieces(pieces: list[Piece]) -> None:
    kinds = [piece.kind for piece in pieces]
    if kinds.count(PieceKind.UNKNOWN) != 1:
        raise ValueError("it must have one piece for what is unknown")
    if PieceKind.UNUSED in kinds:
        raise NotSupported("a vocabulary with unused pieces")


def read_fields(raw: bytes) -> Iterator[Field]:
    """Raises ValueError, IndexError where the message ends too early."""
    place, end = 0, len(raw)
    while place < end:
        key, place = read_varint(raw, place)
        wire = key & 7
        if wire == VARINT:
            number, place = read_varint(raw, place)
            yield key >> 3, number, b""
            continue
        if wire == LENGTH:
            size, place = read_varint(raw, place)
        elif wire in SIZES:
            size = SIZES[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if place + size > end:
            raise ValueError("it ends too early")
        yield key >> 3, 0, raw[place : place + size]
        place += size


def read_varint(raw: bytes, place: int) -> tuple[int, int]:
    """The number, and where it ends. Raises IndexError."""
    value = raw[place]
    if value < 128:
        return value, place + 1
    value, shift = value & 127, 7
    while raw[place] > 127:
        place += 1
        value |= (raw[place] & 127) << shift
        shift += 7
    return value, place + 1
