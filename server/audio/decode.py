"""A sound file's bytes to what models hear: mono samples at 16 kHz. FFmpeg decodes, through PyAV.

Files come from anybody, so FFmpeg may open only formats and codecs of the lists below: its others are many, old, and
seldom looked at, and some read further files.
"""

import threading
from collections.abc import Iterator
from io import BytesIO
from itertools import chain, groupby

import av
import numpy as np
from av.audio import AudioFrame, AudioStream
from av.audio.resampler import AudioResampler
from av.container import InputContainer

from server.audio.features import SAMPLE_RATE, Samples
from server.errors import EmptyInput, InputTooLong, InvalidField

FORMATS = ("wav", "flac", "mp3", "ogg", "mov", "matroska", "aac")
"""Demuxers; `mov` also reads mp4 and m4a, `matroska` webm."""
CODECS = frozenset(
    (
        *("pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be"),
        *("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_alaw", "pcm_mulaw", "adpcm_ms", "adpcm_ima_wav"),
        *("flac", "alac", "mp3", "mp3float", "mp2", "mp2float", "aac", "opus", "libopus", "vorbis"),
    )
)
KNOWN = "wav, flac, mp3, ogg, opus, m4a, aac or webm"
OPTIONS = {"format_whitelist": ",".join(FORMATS), "codec_whitelist": ",".join(sorted(CODECS))}
MIX = {"rematrix_maxval": "1"}
"""Channels are averaged: without it two equal ones become one that is 1.41 times as loud."""
MIN_RATE, MAX_RATE = 4000, 768_000
"""In Hz. A rate of 1 would make gigabytes of one packet."""
MAX_AMPLITUDE = 1000.0
"""Full scale is 1, and some files go over it by a little."""
MAX_CHANGES = 16
"""A stream may change its rate or its channels, as radio does; each change sets up a resampler."""


def decode_audio(content: bytes, *, max_s: float, field: str, gone: threading.Event | None = None) -> Samples:
    """The first stream of sound in a file, which came in this field. What is damaged in it is left out, and what comes
    once `gone` is set: nobody listens any more.

    Holds the samples once, and stops at `max_s` seconds of them. An hour takes 5 to 25 s of a core (wav; opus), most of
    it without the GIL. Raises EmptyInput, InputTooLong, InvalidField.
    """
    if not content:
        raise EmptyInput(f"{field} is empty; send a sound file ({KNOWN})", param=field)
    try:
        with av.open(BytesIO(content), "r", metadata_errors="ignore", options=OPTIONS) as container:
            stream = find_stream(container, field)
            pcm = join_samples(resample(decode(container, stream, gone), field), max_s, field)
    except av.FFmpegError as error:
        raise InvalidField(f"{field} cannot be read as sound; send {KNOWN}, undamaged", param=field) from error
    if not pcm:
        raise InvalidField(f"{field} holds no sound; it may be cut off or damaged", param=field)
    samples = np.frombuffer(pcm, np.float32)
    loudest = max(samples.max(), -samples.min())
    if not loudest <= MAX_AMPLITUDE:  # nor is it where there is no number
        raise InvalidField(f"{field} has a sample of {loudest:g}; send floats between -1 and 1", param=field)
    return samples


def find_stream(container: InputContainer, field: str) -> AudioStream:
    """Raises InvalidField."""
    if not container.streams.audio:
        raise InvalidField(f"{field} has no sound in it; send {KNOWN}", param=field)
    stream = container.streams.audio[0]
    name = getattr(stream.codec_context, "name", "nothing known")  # where FFmpeg has no decoder there is no context
    if name not in CODECS:
        raise InvalidField(f"{field} is coded as {name}, which is not supported; send {KNOWN}", param=field)
    return stream


def decode(container: InputContainer, stream: AudioStream, gone: threading.Event | None) -> Iterator[AudioFrame]:
    """Damaged packets are passed over, as players do; the last one is often cut off."""
    for packet in container.demux(stream):
        if gone is not None and gone.is_set():
            return
        try:
            frames = packet.decode()
        except av.FFmpegError:  # each decoder has its own for a packet it cannot read
            continue
        yield from (frame for frame in frames if isinstance(frame, AudioFrame))


def resample(frames: Iterator[AudioFrame], field: str) -> Iterator[Samples]:
    """Raises InvalidField."""
    for index, ((rate, _, _), run) in enumerate(groupby(frames, key=describe)):
        if not MIN_RATE <= rate <= MAX_RATE:
            raise InvalidField(f"{field} has {rate} samples a second; send {MIN_RATE} to {MAX_RATE}", param=field)
        if index > MAX_CHANGES:
            raise InvalidField(f"{field} changes its rate or channels too often; it may be damaged", param=field)
        resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE, options=MIX)
        for frame in chain(run, (None,)):
            yield from (part.to_ndarray()[0] for part in resampler.resample(frame) if part is not None)


def describe(frame: AudioFrame) -> tuple[int, str, str]:
    """What a resampler is set up for."""
    return frame.sample_rate, frame.format.name, frame.layout.name


def join_samples(parts: Iterator[Samples], max_s: float, field: str) -> bytearray:
    """Raises InputTooLong as soon as there are too many."""
    pcm = bytearray()
    max_bytes = int(max_s * SAMPLE_RATE) * np.dtype(np.float32).itemsize
    for part in parts:
        pcm.extend(part.data.cast("B"))
        if len(pcm) > max_bytes:
            raise InputTooLong(f"{field} is longer than {max_s:g} s, the limit; send it in parts", param=field)
    return pcm
