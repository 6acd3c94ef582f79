"""What a directory of an encoder-decoder says of itself: task, limits, how answers begin, end and are searched for."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_seq2seq import BART_SIZES, T5_SIZES, WHISPER_SIZES

from models.info import ModelDirectoryError, ModelInfo, read_info
from models.seq2seq_info import Seq2SeqInfo
from models.speech_info import SpeechInfo

Keys = dict[str, Any]

BART = BART_SIZES | {"model_type": "bart", "architectures": ["BartForConditionalGeneration"], "eos_token_id": 2}
T5 = T5_SIZES | {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "eos_token_id": 1}
WHISPER = WHISPER_SIZES | {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}
MARIAN = BART | {"model_type": "marian", "architectures": ["MarianMTModel"]}


def read(directory: Path, keys: Keys, generation: Keys | None = None, tokenizer: Keys | None = None) -> ModelInfo:
    files = {"config": keys, "generation_config": generation, "tokenizer_config": tokenizer}
    for name, content in files.items():
        path = directory / f"{name}.json"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(json.dumps(content))
    return read_info(directory)


def read_decoding(directory: Path, keys: Keys, generation: Keys | None = None) -> Seq2SeqInfo:
    info = read(directory, keys, generation).seq2seq
    assert info is not None
    return info


def test_bart(tmp_path: Path) -> None:
    info = read(tmp_path, BART)
    assert (info.task, info.vocab_size, info.output_dim, info.type_vocab_size) == ("text2text", 101, 101, 1)
    assert (info.max_input_tokens, info.eos_token_ids) == (80, (2,))
    assert info.seq2seq == Seq2SeqInfo(max_target_tokens=80, decoder_start_token_id=2, pad_token_id=1)


def test_limits_of_sources_and_of_targets(tmp_path: Path) -> None:
    """The tokenizer's is one for sources. T5 has no positions, and Whisper hears no tokens."""
    for keys, source, target in ((BART, 50, 80), (T5, 50, 4096), (WHISPER, 40, 40)):
        info = read(tmp_path, keys, tokenizer={"model_max_length": 50 if keys is not WHISPER else 10})
        assert info.seq2seq is not None
        assert (info.max_input_tokens, info.seq2seq.max_target_tokens) == (source, target)
    assert read(tmp_path, T5).max_input_tokens == 4096


def test_vocabulary_of_what_is_written(tmp_path: Path) -> None:
    own = {"decoder_vocab_size": 90, "share_encoder_decoder_embeddings": False}
    assert (read(tmp_path, MARIAN | own).vocab_size, read(tmp_path, MARIAN | own).output_dim) == (101, 90)
    assert read(tmp_path, MARIAN | own | {"share_encoder_decoder_embeddings": True}).output_dim == 101


DECODING: Keys = {
    "decoder_start_token_id": 7,
    "pad_token_id": 8,
    "forced_bos_token_id": 9,
    "forced_eos_token_id": [2, 3],
    "suppress_tokens": [4, 5],
    "begin_suppress_tokens": [6],
    "bad_words_ids": [[58], [4, 5]],
    "max_length": 50,
    "min_length": 3,
    "num_beams": 4,
    "length_penalty": 2,
    "early_stopping": True,
    "repetition_penalty": 1.5,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 2,
}
EXPECTED = Seq2SeqInfo(
    max_target_tokens=80,
    decoder_start_token_id=7,
    pad_token_id=8,
    forced_bos_token_id=9,
    forced_eos_token_ids=(2, 3),
    suppress_tokens=(4, 5),
    begin_suppress_tokens=(6,),
    bad_words_ids=((58,), (4, 5)),
    max_length=50,
    min_length=3,
    num_beams=4,
    length_penalty=2.0,
    early_stopping=True,
    repetition_penalty=1.5,
    no_repeat_ngram_size=3,
    encoder_no_repeat_ngram_size=2,
)


def test_how_answers_are_searched(tmp_path: Path) -> None:
    """In generation_config.json, or in config.json where a directory is older than that file: never in both."""
    assert read_decoding(tmp_path, BART, DECODING) == EXPECTED
    assert read_decoding(tmp_path, BART | DECODING) == EXPECTED
    assert read_decoding(tmp_path, BART | DECODING, {"decoder_start_token_id": 7}) == Seq2SeqInfo(80, 7, 8)
    nulls = dict.fromkeys(DECODING)
    assert read_decoding(tmp_path, BART, nulls) == Seq2SeqInfo(80, 2, 1)


def test_how_long_answers_are(tmp_path: Path) -> None:
    for given, expected in (
        ({}, None),
        ({"max_length": 20}, 20),
        ({"max_length": 20, "max_new_tokens": 30}, 31),
    ):
        assert read_decoding(tmp_path, BART, given).max_length == expected


def test_what_answers_begin_with(tmp_path: Path) -> None:
    bare = {key: value for key, value in BART.items() if key != "decoder_start_token_id"}
    for keys, generation, expected in (
        (BART, {"decoder_start_token_id": 7, "bos_token_id": 0}, 7),
        (BART, {"bos_token_id": 0}, 2),
        (bare, {"bos_token_id": 0}, 0),
        (bare | {"bos_token_id": 4}, {}, 4),
    ):
        assert read_decoding(tmp_path, keys, generation).decoder_start_token_id == expected
    with pytest.raises(ModelDirectoryError, match=r"_config\.json: the key 'decoder_start_token_id' is missing"):
        read(tmp_path, bare, {})


BAD: Keys = {
    "decoder_start_token_id": "</s>",
    "pad_token_id": -1,
    "forced_bos_token_id": [1],
    "forced_eos_token_id": ["2"],
    "suppress_tokens": [-1],
    "begin_suppress_tokens": [True],
    "bad_words_ids": [5],
    "max_length": 0,
    "max_new_tokens": "many",
    "min_length": -1,
    "num_beams": 0,
    "length_penalty": "long",
    "early_stopping": "always",
    "repetition_penalty": True,
    "no_repeat_ngram_size": 1.5,
    "encoder_no_repeat_ngram_size": -2,
}


@pytest.mark.parametrize("key", BAD)
def test_what_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=rf"generation_config\.json: {key} is .*; it must be"):
        read(tmp_path, BART, {key: BAD[key]})


HEARING: Keys = {
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 50, "<|de|>": 51},
    "task_to_id": {"transcribe": 60, "translate": 61},
    "no_timestamps_token_id": 70,
    "max_initial_timestamp_index": 50,
    "prev_sot_token_id": 71,
    "alignment_heads": [[1, 0], [2, 1]],
}


def test_whisper(tmp_path: Path) -> None:
    info = read(tmp_path, WHISPER | {"median_filter_width": 5}, HEARING)
    assert (info.task, info.max_input_tokens, info.eos_token_ids) == ("transcribe", 40, (3,))
    assert info.seq2seq is not None and info.seq2seq.max_target_tokens == 40
    assert info.seq2seq.speech == SpeechInfo(
        num_mel_bins=10,
        lang_to_id={"<|en|>": 50, "<|de|>": 51},
        task_to_id={"transcribe": 60, "translate": 61},
        no_timestamps_token_id=70,
        max_initial_timestamp_index=50,
        prev_sot_token_id=71,
        alignment_heads=((1, 0), (2, 1)),
        median_filter_width=5,
    )


def test_smoothing_has_a_middle(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"config\.json: median_filter_width is 4; it must be odd"):
        read_decoding(tmp_path, WHISPER | {"median_filter_width": 4}, HEARING)


def test_whisper_of_one_language(tmp_path: Path) -> None:
    """Its file has no languages, whether it says so or not."""
    for given in ({}, {"is_multilingual": False}):
        assert read_decoding(tmp_path, WHISPER, given | {"no_timestamps_token_id": 70}).speech == SpeechInfo(
            num_mel_bins=10, no_timestamps_token_id=70
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lang_to_id", ["<|en|>"]),
        ("task_to_id", {"transcribe": "60"}),
        ("no_timestamps_token_id", "<|notimestamps|>"),
        ("alignment_heads", [[1]]),
        ("alignment_heads", [1, 0]),
    ],
)
def test_what_is_refused_of_whisper(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=rf"generation_config\.json: {key} is .*; it must"):
        read(tmp_path, WHISPER, HEARING | {key: value})


def test_the_task_can_be_another(tmp_path: Path) -> None:
    read(tmp_path, T5)
    assert read_info(tmp_path, task="embed", pooling="mean").seq2seq is None
    kinds = {"transcribe": "speech-to-text", "generate": "language model", "classify": "classification"}
    for task, kind in kinds.items():
        with pytest.raises(ModelDirectoryError, match=f"task {task} needs a {kind} head, but the architecture is T5"):
            read_info(tmp_path, task=task)
    read(tmp_path, WHISPER)
    with pytest.raises(ModelDirectoryError, match="task text2text needs a sequence-to-sequence head"):
        read_info(tmp_path, task="text2text")
