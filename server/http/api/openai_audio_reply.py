"""Transcripts as OpenAI's audio routes answer them: JSON, plain text, subtitles, or events."""

import html
import math

import orjson

from server.audio.features import FRAMES_PER_S
from server.audio.languages import NAMES
from server.audio.segments import Segment, Transcript
from server.audio.speech import ENGLISH
from server.http.api.openai_audio_request import AudioRequest
from server.http.api.openai_schemas import (
    DurationUsage,
    TranscribedSegment,
    TranscribedWord,
    TranscriptionReply,
    VerboseTranscriptionReply,
)
from server.http.call import Reply, reply_json

PLAIN = "text/plain; charset=utf-8"
VTT = "text/vtt; charset=utf-8"


def write_transcript(transcript: Transcript, asked: AudioRequest, *, task: str) -> Reply:
    """In the format that was asked for. `task`: what verbose_json says was done."""
    match asked.response_format:
        case "json":
            return reply_json(describe(transcript))
        case "verbose_json":
            reply = describe_fully(transcript, task)
            if asked.has_words:
                reply["words"] = list_words(transcript)
            return reply_json(reply)
        case "text":
            return Reply(f"{transcript.text}\n".encode(), content_type=PLAIN)
        case "srt":
            return Reply(write_srt(transcript).encode(), content_type=PLAIN)
        case "vtt":
            return Reply(write_vtt(transcript).encode(), content_type=VTT)


def write_delta(text: str) -> bytes:
    """An event: text that comes next."""
    return orjson.dumps({"type": "transcript.text.delta", "delta": text})


def write_done(transcript: Transcript) -> bytes:
    """The last event. OpenAI's says tokens where others say seconds, so that this one says nothing of usage."""
    return orjson.dumps({"type": "transcript.text.done", "text": transcript.text})


def describe(transcript: Transcript) -> TranscriptionReply:
    return {"text": transcript.text, "usage": count_usage(transcript)}


def describe_fully(transcript: Transcript, task: str) -> VerboseTranscriptionReply:
    return {
        "task": task,
        "language": NAMES[ENGLISH] if task == "translate" else NAMES.get(transcript.language, transcript.language),
        "duration": round(transcript.duration_s, 2),
        "text": transcript.text,
        "usage": count_usage(transcript),
        "segments": [describe_segment(index, segment) for index, segment in enumerate(transcript.segments)],
    }


def describe_segment(index: int, segment: Segment) -> TranscribedSegment:
    attempt = segment.attempt
    return {
        "id": index,
        "seek": segment.seek,
        "start": segment.begin_s,
        "end": segment.end_s,
        "text": segment.text,
        "tokens": list(segment.token_ids),
        "temperature": attempt.temperature,
        "avg_logprob": attempt.avg_logprob,
        "compression_ratio": attempt.compression_ratio,
        "no_speech_prob": attempt.no_speech_prob,
    }


def list_words(transcript: Transcript) -> list[TranscribedWord]:
    words = [word for segment in transcript.segments for word in segment.words]
    return [{"word": word.text, "start": word.begin_s, "end": word.end_s} for word in words]


def count_usage(transcript: Transcript) -> DurationUsage:
    """Begun seconds."""
    return {"type": "duration", "seconds": math.ceil(transcript.duration_s)}


def write_srt(transcript: Transcript) -> str:
    """SubRip's subtitles, which never had a standard: "-->" between two times is what parsers look for."""
    return "".join(
        f"{number}\n{write_times(segment, ',')}\n{write_line(segment.text).replace('-->', '->')}\n\n"
        for number, segment in enumerate(transcript.segments, 1)
    )


def write_vtt(transcript: Transcript) -> str:
    """WebVTT (W3C), where text has the escapes of HTML."""
    cues = (
        f"{write_times(segment, '.')}\n{html.escape(write_line(segment.text), quote=False)}\n\n"
        for segment in transcript.segments
    )
    return "WEBVTT\n\n" + "".join(cues)


def write_line(text: str) -> str:
    """An empty line would end the subtitle."""
    return " ".join(text.split())


def write_times(segment: Segment, mark: str) -> str:
    return f"{write_time(segment.begin, mark)} --> {write_time(segment.end, mark)}"


def write_time(frames: int, mark: str) -> str:
    """Hours, minutes, seconds, and behind the mark thousandths."""
    seconds, rest = divmod(frames, FRAMES_PER_S)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{rest * 1000 // FRAMES_PER_S:03}"
