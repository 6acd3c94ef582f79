"""Files of every kind are heard alike, and what is no sound is refused in one line."""

import struct
import tracemalloc
from collections.abc import Callable
from io import BytesIO

import av
import numpy as np
import pytest
from sounds import Sound, change_rate, speak, write_sound

from server.audio.decode import decode_audio
from server.audio.features import SAMPLE_RATE, LogMel, Samples
from server.errors import EmptyInput, InputTooLong, InvalidField, ServiceError
from tests.tolerances import measure_difference

LOG_MEL = LogMel(window_s=3)
NUM_BANDS_BELOW_6_KHZ = 70
"""Resamplers differ in how much they leave of the last octave's end."""
LOSSLESS = [("wav", "pcm_s16le"), ("wav", "pcm_f32le"), ("wav", "pcm_mulaw"), ("flac", "flac"), ("ipod", "alac")]
LOSSY = [("mp3", "libmp3lame"), ("ogg", "libopus"), ("webm", "libopus"), ("ipod", "aac"), ("adts", "aac")]
"""`ipod` is what FFmpeg calls m4a, `adts` a bare .aac."""


def say(rate: int) -> Sound:
    sound, own_rate = speak("The quick brown fox jumps over the lazy dog.")
    return change_rate(sound, own_rate, rate)


def hear(content: bytes, max_s: float = 60.0) -> Samples:
    return decode_audio(content, max_s=max_s, field="file")


def measure_error(heard: Samples, wanted: Sound) -> tuple[float, float]:
    """Of features, in norm and at most."""
    features, expected = (LOG_MEL.compute(each)[:, :NUM_BANDS_BELOW_6_KHZ] for each in (heard, wanted))
    difference = measure_difference(features, expected)
    return difference.norm, difference.worst


def find_delay(heard: Samples, wanted: Sound) -> int:
    """In samples; what an encoder puts before the first one."""
    size = 2 * len(heard)
    return int(np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(wanted, size)))[:4096].argmax())


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 2), (22_050, 1), (44_100, 2), (48_000, 6)])
def test_rates_and_channels_sound_alike(rate: int, channels: int) -> None:
    wanted = say(SAMPLE_RATE)
    heard = hear(write_sound(say(rate), rate, channels=channels))
    assert heard.dtype == np.float32 and abs(len(heard) - len(wanted)) <= 1
    norm, worst = measure_error(heard[: len(wanted)], wanted)
    assert norm < 3e-3 and worst < 5e-2


@pytest.mark.parametrize(("container", "codec"), LOSSLESS)
def test_lossless_formats_sound_alike(container: str, codec: str) -> None:
    wanted = say(SAMPLE_RATE)
    heard = hear(write_sound(say(48_000), 48_000, container, codec))
    norm, worst = measure_error(heard, wanted)
    # mu-law has 8 bits, of which pauses get a noise of their own.
    assert (norm, worst) < ((1.5e-1, 2.0) if codec == "pcm_mulaw" else (3e-3, 5e-2))


@pytest.mark.parametrize(("container", "codec"), LOSSY)
def test_lossy_formats_sound_nearly_alike(container: str, codec: str) -> None:
    wanted = say(SAMPLE_RATE)
    heard = hear(write_sound(say(48_000), 48_000, container, codec))
    delay = find_delay(heard, wanted)
    assert delay < 0.03 * SAMPLE_RATE and abs(len(heard) - delay - len(wanted)) < 0.03 * SAMPLE_RATE
    norm, _ = measure_error(heard[delay:][: len(wanted)], wanted)
    assert norm < 0.25


def write_wav(rate: int, samples: bytes, *, channels: int = 1, kind: int = 1, bits: int = 16) -> bytes:
    """A file as its header says it is, right or wrong. Kind 1: whole numbers, 3: floats."""
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * frame, frame, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_what_is_16_khz_mono_already_is_left_as_it_is() -> None:
    sound = np.linspace(-1, 1, 5000, dtype=np.float32)
    np.testing.assert_array_equal(hear(write_wav(SAMPLE_RATE, sound.tobytes(), kind=3, bits=32)), sound)


def write_film() -> bytes:
    target = BytesIO()
    with av.open(target, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 16
        output.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        output.mux(stream.encode(None))
    return target.getvalue()


def change_often() -> bytes:
    silence = np.zeros(4000, np.float32)
    return b"".join(write_sound(silence, rate, "adts", "aac") for rate in (16_000, 24_000)) * 10


NO_SOUND: dict[str, Callable[[], bytes]] = {
    "text": lambda: b"this is no sound, whatever its name\n" * 50,
    "a playlist": lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
    "a list of files": lambda: b"ffconcat version 1.0\nfile /etc/hostname\n",
    "zeros": lambda: bytes(20_000),
    "noise": lambda: np.random.default_rng(1).bytes(20_000),
    "a picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(500),
    "half of an m4a": lambda: write_sound(np.zeros(16_000, np.float32), 16_000, "ipod", "aac")[:-900],
    "no samples": lambda: write_wav(16_000, b""),
    "no numbers": lambda: write_wav(16_000, np.full(500, np.nan, np.float32).tobytes(), kind=3, bits=32),
    "far over full scale": lambda: write_wav(16_000, np.full(500, 1e20, np.float32).tobytes(), kind=3, bits=32),
    "one sample a second": lambda: write_wav(1, bytes(4000)),
    "a codec that is not served": lambda: write_sound(np.zeros(16_000, np.float32), 48_000, "matroska", "ac3"),
    "pictures that move": write_film,
    "too many changes": change_often,
}


@pytest.mark.parametrize("case", NO_SOUND)
def test_what_is_no_sound_is_refused(case: str) -> None:
    with pytest.raises(InvalidField, match=r"^file [^\n]+$") as raised:
        hear(NO_SOUND[case]())
    assert raised.value.param == "file" and raised.value.__class__ is InvalidField


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(EmptyInput, match="file is empty; send"):
        hear(b"")


def test_a_change_of_rate_on_the_way_is_followed() -> None:
    first, second = np.zeros(24_000, np.float32), np.zeros(48_000, np.float32)
    content = write_sound(first, 24_000, "adts", "aac") + write_sound(second, 48_000, "adts", "aac", channels=2)
    assert abs(len(hear(content)) - 2 * SAMPLE_RATE) < 0.3 * SAMPLE_RATE


def test_damage_leaves_the_rest_or_is_refused() -> None:
    """Never another error, and never a crash."""
    random = np.random.default_rng(0)
    sound = say(48_000)[:24_000]
    for container, codec in (("wav", "pcm_s16le"), *LOSSY, ("flac", "flac"), ("ipod", "alac")):
        content = write_sound(sound, 48_000, container, codec)
        for _ in range(4):
            damaged = np.frombuffer(content, np.uint8).copy()
            places = random.integers(0, len(damaged), 20)
            damaged[places] = random.integers(0, 256, len(places))
            try:
                assert len(hear(damaged.tobytes())) > 0
            except ServiceError as error:
                assert error.message.startswith("file ")


def test_a_packet_that_cannot_be_read_is_left_out() -> None:
    content = bytearray(write_sound(say(48_000), 48_000, "adts", "aac"))
    whole = hear(bytes(content))
    begin = content.index(b"\xff\xf1", len(content) // 2)
    end = content.index(b"\xff\xf1", begin + 7)
    content[begin + 7 : end] = b"\xff" * (end - begin - 7)
    assert 0 < len(whole) - len(hear(bytes(content))) < 0.1 * SAMPLE_RATE


def test_old_tags_in_no_known_encoding_do_no_harm() -> None:
    tag = b"INAM" + struct.pack("<I", 4) + b"\xe9\xe8\xff\x00"
    content = write_wav(16_000, bytes(2000)) + b"LIST" + struct.pack("<I", 4 + len(tag)) + b"INFO" + tag
    assert len(hear(content)) == 1000


def test_what_is_too_long_is_refused_before_it_is_decoded() -> None:
    """20 s of silence, which is small as FLAC, take 1.3 MB."""
    content = write_sound(np.zeros(20 * 48_000, np.float32), 48_000, "flac", "flac")
    tracemalloc.start()
    with pytest.raises(InputTooLong, match=r"file is longer than 1.5 s, the limit; send it in parts"):
        hear(content, max_s=1.5)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < len(content) + 500_000
    assert len(hear(content, max_s=20.0)) == 20 * SAMPLE_RATE
