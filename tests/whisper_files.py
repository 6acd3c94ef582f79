"""What a directory of Whisper has beside its weights, small: a tokenizer with languages and times; and sounds to hear.

Windows are two seconds long.
"""

import wave
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

RATE = 16_000
WINDOW_S = 2
NUM_MEL_BINS = 10
MAX_TARGET_TOKENS = 96
MAX_NEW_TOKENS = 30
ALIGNMENT_HEADS = [[1, 1], [0, 0], [1, 0]]
"""(layer, head), of a decoder of two layers or more."""
LANGUAGES = ("en", "de", "fr")
SPECIALS = (
    *("<|endoftext|>", "<|startoftranscript|>"),
    *(f"<|{code}|>" for code in LANGUAGES),
    *("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)
TIMES = tuple(f"<|{index / 50:.2f}|>" for index in range(WINDOW_S * 50 + 1))

Sound = npt.NDArray[np.int16]


def build_tokenizer() -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [" hello world and all that is in it, whatever it may be"]
    raw.train_from_iterator(words, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    raw.add_special_tokens(list(SPECIALS))
    raw.add_tokens([AddedToken(time, normalized=False) for time in TIMES])
    return raw


def describe_generation(raw: Tokenizer, *, is_multilingual: bool = True) -> dict[str, Any]:
    """generation_config.json."""
    ids = {token: raw.token_to_id(token) for token in SPECIALS}
    settings: dict[str, Any] = {
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "is_multilingual": is_multilingual,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "begin_suppress_tokens": [ids["<|endoftext|>"]],
        "suppress_tokens": [ids[token] for token in ("<|startoflm|>", "<|startofprev|>", "<|nospeech|>")],
        "max_initial_timestamp_index": 20,
        "max_new_tokens": MAX_NEW_TOKENS,
        "alignment_heads": ALIGNMENT_HEADS,
        **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), ids["<|endoftext|>"]),
    }
    if is_multilingual:
        settings["lang_to_id"] = {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES}
        settings["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")}
    return settings


def make_sound(seconds: float, seed: int = 0) -> Sound:
    """Tones that come and go."""
    random = np.random.default_rng(seed)
    times = np.arange(int(seconds * RATE)) / RATE
    sound = np.zeros(len(times))
    for _ in range(6):
        tone = np.sin(2 * np.pi * random.uniform(100, 4000) * times)
        sound += tone * (np.sin(2 * np.pi * random.uniform(0.2, 3) * times) > 0)
    return np.asarray(sound * 4000, np.int16)


def write_wav(sound: Sound) -> bytes:
    target = BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(sound.tobytes())
    return target.getvalue()
