"""Log-mel features against those of transformers, whose numpy code is exact and whose torch code is in 32 bits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sounds import Sound, change_rate, speak
from transformers.audio_utils import spectrogram, window_function
from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

from models.info import ModelDirectoryError
from server.audio.features import FFT_SIZE, HOP, SAMPLE_RATE, Features, LogMel, build_filters, load_log_mel

WINDOW_S = 2
TIME = np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
RANDOM = np.random.default_rng(0)


def say() -> Sound:
    sound, rate = speak("Clara Schumann taught the piano for fourteen years.")
    return change_rate(sound, rate, SAMPLE_RATE)


SOUNDS: dict[str, Callable[[], Any]] = {
    "silence": lambda: np.zeros(100),
    "one sample": lambda: np.ones(1),
    "a tone": lambda: 0.5 * np.sin(2 * np.pi * 440 * TIME[: SAMPLE_RATE * WINDOW_S]),
    "chirp": lambda: 0.5 * np.sin(2 * np.pi * (50 + 750 * TIME) * TIME),
    "noise": lambda: 0.1 * RANDOM.standard_normal(SAMPLE_RATE + 77),
    "noise, a sample too long": lambda: 1e-4 * RANDOM.standard_normal(WINDOW_S * SAMPLE_RATE + 1),
    "speech": say,
}


def extract(extractor: WhisperFeatureExtractor, sound: Sound) -> Features:
    """As the extractor does where there is no torch."""
    num_missing = max(WINDOW_S * SAMPLE_RATE - len(sound), 0)
    log_mel = spectrogram(
        np.pad(sound, (0, num_missing)),
        window_function(FFT_SIZE, "hann"),
        frame_length=FFT_SIZE,
        hop_length=HOP,
        power=2.0,
        mel_filters=extractor.mel_filters,
        log_mel="log10",
    )[:, :-1]
    features: Features = (np.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0
    return features.T


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize("name", SOUNDS)
def test_features_are_those_of_transformers(name: str, num_mel_bins: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=WINDOW_S)
    sound = SOUNDS[name]().astype(np.float32)
    features = LogMel(num_mel_bins, WINDOW_S).compute(sound)
    assert features.dtype == np.float32 and features.flags.c_contiguous
    np.testing.assert_allclose(features, extract(extractor, sound), rtol=0, atol=1e-6)
    padding = "longest" if len(sound) > WINDOW_S * SAMPLE_RATE else "max_length"
    whole = extractor(sound, sampling_rate=SAMPLE_RATE, truncation=False, padding=padding, return_tensors="np")
    # 1e-5 but for single tones, where a transform in 32 bits is off by more.
    np.testing.assert_allclose(features, whole["input_features"][0].T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_filters_are_those_of_transformers(num_mel_bins: int) -> None:
    wanted = WhisperFeatureExtractor(feature_size=num_mel_bins).mel_filters
    np.testing.assert_allclose(build_filters(num_mel_bins), wanted, rtol=0, atol=1e-12)


def test_a_window_of_whisper_is_3000_frames() -> None:
    log_mel = LogMel()
    features = log_mel.compute(np.zeros(7, np.float32))
    assert features.shape == (3000, 80) == log_mel.cut_window(features, 0).shape


def test_windows_are_cut_anywhere_and_end_in_zeros() -> None:
    log_mel = LogMel(window_s=1)
    features = log_mel.compute((0.1 * RANDOM.standard_normal(int(2.5 * SAMPLE_RATE))).astype(np.float32))
    assert len(features) == 250
    np.testing.assert_array_equal(log_mel.cut_window(features, 37), features[37:137])
    last = log_mel.cut_window(features, 200)
    np.testing.assert_array_equal(last[:50], features[200:])
    assert last.shape == (100, 80) and not last[50:].any()


def test_a_directory_says_how_many_bins_there_are(tmp_path: Path) -> None:
    WhisperFeatureExtractor(feature_size=128, chunk_length=1).save_pretrained(tmp_path)
    assert load_log_mel(tmp_path).compute(np.zeros(9, np.float32)).shape == (100, 128)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampling_rate": 8000}, "sampling_rate is 8000; Padless hears with 16000 only"),
        ({"dither": 0.1}, "dither is 0.1"),
        ({"feature_size": "80"}, "feature_size must be a whole number above 0, not '80'"),
        ({"chunk_length": 0}, "chunk_length must be"),
        ([], "must be an object"),
        (None, "WhisperFeatureExtractor"),
    ],
)
def test_what_a_directory_cannot_say(tmp_path: Path, given: Any, message: str) -> None:
    if given is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    with pytest.raises(ModelDirectoryError, match=message):
        load_log_mel(tmp_path)
