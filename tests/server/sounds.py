"""Sounds to hear: tones, noise and speech, and what writes them as files in any format, rate and number of channels."""

import ctypes
from collections.abc import Mapping
from functools import cache
from io import BytesIO

import av
import espeakng_loader
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler

Sound = npt.NDArray[np.float32]
LAYOUTS: Mapping[int, str] = {1: "mono", 2: "stereo", 6: "5.1"}
RETRIEVAL = 1
"""espeak-ng's mode that plays nothing and hands samples over (`speak_lib.h`)."""
CHARS_AUTO = 0
SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@cache
def speak(text: str) -> tuple[Sound, int]:
    """By espeak-ng, and its samples a second."""
    chunks: list[npt.NDArray[np.int16]] = []

    @SynthCallback
    def keep(samples: "ctypes._Pointer[ctypes.c_short]", num_samples: int, events: int) -> int:
        if num_samples:
            chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    espeak = ctypes.CDLL(espeakng_loader.get_library_path())
    rate: int = espeak.espeak_Initialize(RETRIEVAL, 0, espeakng_loader.get_data_path().encode(), 0)
    espeak.espeak_SetSynthCallback(keep)
    assert espeak.espeak_SetVoiceByName(b"en") == 0
    raw = text.encode() + b"\0"
    assert espeak.espeak_Synth(raw, len(raw), 0, 0, 0, CHARS_AUTO, None, None) == 0
    espeak.espeak_Synchronize()
    espeak.espeak_Terminate()
    return (np.concatenate(chunks) / 32768).astype(np.float32), rate


def change_rate(sound: Sound, rate: int, new_rate: int) -> Sound:
    """By its spectrum, in one piece."""
    num_samples = len(sound) * new_rate // rate
    changed: Sound = (np.fft.irfft(np.fft.rfft(sound), num_samples) * (num_samples / len(sound))).astype(np.float32)
    return changed


def write_sound(sound: Sound, rate: int, container: str = "wav", codec: str = "pcm_s16le", channels: int = 1) -> bytes:
    """The same in all channels."""
    target, layout = BytesIO(), LAYOUTS[channels]
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.tile(sound, (channels, 1)), format="fltp", layout=layout)
        frame.sample_rate = rate
        context = stream.codec_context
        cutter = AudioResampler(context.format, layout, rate, frame_size=context.frame_size or 1024)
        for part in (*cutter.resample(frame), *cutter.resample(None)):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return target.getvalue()
