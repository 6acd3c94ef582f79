"""Samples to what Whisper reads: log-mel spectrograms, as its feature extractor in transformers makes them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.info import ModelDirectoryError

Samples = npt.NDArray[np.float32]
"""`[num_samples]`, mostly between -1 and 1."""
Features = npt.NDArray[np.float32]
"""`[num_frames, num_mel_bins]`."""
Array = npt.NDArray[np.float64]

SAMPLE_RATE = 16_000
FRAMES_PER_S = 100
HOP = SAMPLE_RATE // FRAMES_PER_S
FFT_SIZE = 400
BLOCK_FRAMES = 256
"""Transformed at a time: what is held beside the result is under 3 MB."""
FLOOR, RANGE_DECADES = 1e-10, 8.0
"""Of power: the least there is, and how far below the loudest anything is told apart."""
FIXED = {"sampling_rate": SAMPLE_RATE, "hop_length": HOP, "n_fft": FFT_SIZE, "padding_value": 0.0, "dither": 0.0}
"""What all Whispers have alike."""


class LogMel:
    """The spectrograms of one model. `window_s`: of the sound its encoder reads at a time."""

    def __init__(self, num_mel_bins: int = 80, window_s: int = 30) -> None:
        self.num_mel_bins = num_mel_bins
        self.window_frames = window_s * FRAMES_PER_S
        self._bands = [cut_band(weights) for weights in build_filters(num_mel_bins).T]
        self._taper = np.hanning(FFT_SIZE + 1)[:-1]

    def compute(self, samples: Samples) -> Features:
        """Of all there is, if less than a window then with silence behind it. Whatever is longer is one spectrogram:
        how loud its loudest part is decides about all of it. 30 s take 20 ms of a core.
        """
        num_missing = self.window_frames * HOP - len(samples)
        if num_missing > 0:
            samples = np.pad(samples, (0, num_missing))
        features = np.empty((len(samples) // HOP, self.num_mel_bins), np.float32)
        for begin in range(0, len(features), BLOCK_FRAMES):
            block = features[begin : begin + BLOCK_FRAMES]
            np.log10(np.maximum(self._measure_power(samples, begin, len(block)), FLOOR), out=block)
        np.maximum(features, features.max() - RANGE_DECADES, out=features)
        features += 4.0
        features /= 4.0
        return features

    def cut_window(self, features: Features, begin: int) -> Features:
        """The window that begins with this frame. What is behind the end is 0, as Whisper's long-form algorithm has it
        (`transcribe.py` of openai-whisper)."""
        part = features[begin : begin + self.window_frames]
        return np.pad(part, ((0, self.window_frames - len(part)), (0, 0)))

    def _measure_power(self, samples: Samples, begin: int, num_frames: int) -> Features:
        """Of so many frames from this one, in each band. Each frame's middle is at a multiple of HOP; in 32 bits the
        transform would be off by more than 1e-5 where one tone is all there is."""
        first = begin * HOP - FFT_SIZE // 2
        places = np.arange(first, first + (num_frames - 1) * HOP + FFT_SIZE)
        frames = np.lib.stride_tricks.sliding_window_view(samples[mirror(places, len(samples))], FFT_SIZE)[::HOP]
        spectrum = np.fft.rfft(frames * self._taper, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        # One product with all filters would wake OpenBLAS's threads, on cores that engines compute on: on two busy
        # ones that took 20 times as long.
        measured = np.empty((num_frames, self.num_mel_bins), np.float32)
        for index, (place, weights) in enumerate(self._bands):
            np.matmul(power[:, place], weights, out=measured[:, index])
        return measured


def cut_band(weights: Array) -> tuple[slice, Features]:
    """A filter where it is not 0."""
    found = np.flatnonzero(weights)
    place = slice(found[0], found[-1] + 1) if len(found) else slice(0)
    return place, weights[place].astype(np.float32)


def mirror(places: npt.NDArray[np.int64], num_samples: int) -> npt.NDArray[np.int64]:
    """Where what lies beyond either end is taken from: as far from it on the other side."""
    places = np.abs(places)
    return np.where(places < num_samples, places, 2 * (num_samples - 1) - places)


def build_filters(num_mel_bins: int) -> Array:
    """`[FFT_SIZE / 2 + 1, num_mel_bins]`: triangles of equal area that stand at equal distances on Slaney's mel scale,
    which is linear up to 1000 Hz and logarithmic above (Auditory Toolbox, 1998)."""
    top = hertz_to_mel(SAMPLE_RATE / 2)
    corners = mel_to_hertz(np.linspace(0.0, top, num_mel_bins + 2))
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)
    distances = corners - frequencies[:, None]
    widths = np.diff(corners)
    rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
    triangles: Array = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (corners[2:] - corners[:-2]))


KNEE_HERTZ, HERTZ_PER_MEL, KNEE_MEL = 1000.0, 200 / 3, 15.0
MELS_PER_E = 27 / math.log(6.4)
"""Above the knee 27 mels are a factor of 6.4."""


def hertz_to_mel(hertz: float) -> float:
    """Of a frequency above the knee."""
    return KNEE_MEL + MELS_PER_E * math.log(hertz / KNEE_HERTZ)


def mel_to_hertz(mels: Array) -> Array:
    return np.where(mels < KNEE_MEL, HERTZ_PER_MEL * mels, KNEE_HERTZ * np.exp((mels - KNEE_MEL) / MELS_PER_E))


def load_log_mel(directory: Path) -> LogMel:
    """As a model directory's preprocessor_config.json has it. Raises ModelDirectoryError."""
    path = directory / "preprocessor_config.json"
    try:
        given = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelDirectoryError(f"{path}: {error}; WhisperFeatureExtractor.save_pretrained(...) writes it") from error
    if not isinstance(given, dict):
        raise ModelDirectoryError(f"{path} must be an object")
    for key, value in FIXED.items():
        if given.get(key, value) != value:
            raise ModelDirectoryError(f"{path}: {key} is {given[key]}; Padless hears with {value} only")
    return LogMel(read_size(path, given, "feature_size", 80), read_size(path, given, "chunk_length", 30))


def read_size(path: Path, given: dict[str, Any], key: str, default: int) -> int:
    """Raises ModelDirectoryError."""
    size = given.get(key, default)
    if not isinstance(size, int) or size < 1:
        raise ModelDirectoryError(f"{path}: {key} must be a whole number above 0, not {size!r}")
    return size
