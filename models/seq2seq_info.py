"""What an encoder-decoder's directory says of decoding: where answers begin and end, and how they are searched for.

It is in generation_config.json, or in config.json where a directory is older than that file. Knows no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.defaults import Keys
from models.generation_keys import read_count, read_factor, read_token, read_tokens
from models.keys import ModelDirectoryError, read_optional, require_number
from models.speech_info import SpeechInfo, read_speech

EARLY_STOPPING: tuple[bool | str, ...] = (False, True, "never")


@dataclass(frozen=True, slots=True)
class Seq2SeqInfo:
    """Names are those of transformers' GenerationConfig where it has them; what a request says wins over all."""

    max_target_tokens: int
    """As many as the decoder has positions for, the first one included."""
    decoder_start_token_id: int
    pad_token_id: int
    forced_bos_token_id: int | None = None
    """Of the second token, behind `decoder_start_token_id`."""
    forced_eos_token_ids: tuple[int, ...] = ()
    """One of these ends an answer that is as long as it may be."""
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    """Of the first token that is not forced."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that are not to be written."""
    max_length: int | None = None
    """Tokens of an answer, the first one included; None where nothing is said."""
    min_length: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    """0: any sequence of tokens may come again; as below, of those of the source."""
    encoder_no_repeat_ngram_size: int = 0
    speech: SpeechInfo | None = None
    """Of those that hear."""
    has_coverage: bool = False
    """Configured, and in no file: the weights of the last layer's cross-attention can be asked for, so that a beam
    search can tell how much of a source it has covered."""


def read_seq2seq_info(folder: Path, keys: Keys) -> Seq2SeqInfo:
    """`keys`: of config.json, completed. Raises ModelDirectoryError."""
    path, config_path = folder / "generation_config.json", folder / "config.json"
    if not path.exists():
        path = config_path
    given = read_optional(path)
    places = ((path, given), (config_path, keys))
    return Seq2SeqInfo(
        max_target_tokens=count_target_positions(config_path, keys),
        decoder_start_token_id=read_first(places, "decoder_start_token_id", "bos_token_id"),
        pad_token_id=read_first(places, "pad_token_id"),
        forced_bos_token_id=read_token(path, given, "forced_bos_token_id"),
        forced_eos_token_ids=read_tokens(path, given, "forced_eos_token_id"),
        suppress_tokens=read_tokens(path, given, "suppress_tokens"),
        begin_suppress_tokens=read_tokens(path, given, "begin_suppress_tokens"),
        bad_words_ids=read_bad_words(path, given),
        max_length=read_max_length(path, given),
        min_length=read_count(path, given, "min_length", 0),
        num_beams=read_count(path, given, "num_beams", 1, least=1),
        length_penalty=read_factor(path, given, "length_penalty"),
        early_stopping=read_early_stopping(path, given),
        repetition_penalty=read_factor(path, given, "repetition_penalty"),
        no_repeat_ngram_size=read_count(path, given, "no_repeat_ngram_size", 0),
        encoder_no_repeat_ngram_size=read_count(path, given, "encoder_no_repeat_ngram_size", 0),
        speech=read_speech(path, given, config_path, keys) if keys["model_type"] == "whisper" else None,
    )


def count_target_positions(path: Path, keys: Keys) -> int:
    name = "max_target_positions" if keys["model_type"] == "whisper" else "max_position_embeddings"
    return require_number(path, keys, name)


def count_target_words(path: Path, keys: Keys) -> int:
    """Marian may have another vocabulary for what it writes than for what it reads."""
    is_shared = keys["model_type"] != "marian" or keys["share_encoder_decoder_embeddings"]
    name = "vocab_size" if is_shared or "decoder_vocab_size" not in keys else "decoder_vocab_size"
    return require_number(path, keys, name)


def read_first(places: Sequence[tuple[Path, Keys]], *names: str) -> int:
    """The token of the first name, in the first file that has one; then that of the next name. Raises
    ModelDirectoryError."""
    for name in names:
        for path, content in places:
            if (token := read_token(path, content, name)) is not None:
                return token
    raise ModelDirectoryError(f"{places[0][0]}: the key {names[0]!r} is missing; it must be a token id")


def read_bad_words(path: Path, given: Keys) -> tuple[tuple[int, ...], ...]:
    words = given.get("bad_words_ids") or []
    if not isinstance(words, list) or not all(isinstance(word, list) and word for word in words):
        raise ModelDirectoryError(f"{path}: bad_words_ids is {words!r}; it must be a list of lists of token ids")
    return tuple(read_tokens(path, {"bad_words_ids": word}, "bad_words_ids") for word in words)


def read_max_length(path: Path, given: Keys) -> int | None:
    """max_new_tokens wins, and does not count the first one."""
    if given.get("max_new_tokens") is not None:
        return 1 + read_count(path, given, "max_new_tokens", 0, least=1)
    return None if given.get("max_length") is None else read_count(path, given, "max_length", 0, least=1)


def read_early_stopping(path: Path, given: Keys) -> bool | Literal["never"]:
    value = given.get("early_stopping") or False
    if value not in EARLY_STOPPING or (isinstance(value, int) and not isinstance(value, bool)):
        raise ModelDirectoryError(f'{path}: early_stopping is {value!r}; it must be true, false or "never"')
    return value
