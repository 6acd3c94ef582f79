"""OpenAI's audio routes without a model: what their forms may say, and transcripts in every format."""

from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from conftest import MakeServer
from openai.types.audio import TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent, TranscriptionVerbose
from test_openai_client import run_live
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from server.audio.fallback import Attempt
from server.audio.languages import NAMES, find_language
from server.audio.segments import Segment, Transcript
from server.errors import InvalidField
from server.http.api.openai_audio_reply import write_delta, write_done, write_srt, write_transcript, write_vtt
from server.http.api.openai_audio_request import AudioRequest, read_request
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import ErrorReply, TranscriptionReply, VerboseTranscriptionReply
from server.http.app import App
from server.http.call import Call, Reply
from server.http.events import EventStream
from server.http.multipart import FORM, FormValue, UploadedFile, describe_form, parse_form, read_form_body
from server.http.route import Route
from server.http.state import ServerState

FILE = UploadedFile("a.wav", b"sound")
ATTEMPT = Attempt((), " Some text, which repeats: text text text text text.", 0.2, -0.25, 0.125)


def build_segment(begin: int, end: int, text: str) -> Segment:
    return Segment(0, begin, end, (50364, 7, 50464), text, ATTEMPT)


TRANSCRIPT = Transcript(
    "de",
    3725.521,
    (build_segment(0, 250, " Guten Tag."), build_segment(250, 372_499, "  a < b\n\n--> c & d")),
)


def read(**fields: FormValue) -> AudioRequest:
    return read_request({"file": FILE, **fields})


def test_a_file_is_all_that_is_needed() -> None:
    asked = read_request({"file": FILE})
    assert asked.file is FILE and asked.model is None and asked.response_format == "json"
    assert asked.temperature == 0.0 and not asked.stream and not asked.timestamp_granularities


def test_text_is_read_as_what_it_stands_for() -> None:
    asked = read(temperature="0.4", stream="true", language="", prompt="", model="whisper")
    assert (asked.temperature, asked.stream, asked.language, asked.prompt) == (0.4, True, None, None)
    for given in ("segment", ["segment"]):
        asked = read(response_format="verbose_json", timestamp_granularities=given)
        assert asked.timestamp_granularities == ["segment"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"file": "text"}, "file", "file: must be a file: one part of the form, with a filename"),
        ({"file": [FILE]}, "file", "must be a file"),
        ({"model": FILE}, "model", "model: should be a valid string"),
        ({"response_format": "xml"}, "response_format", "should be 'json', 'text', 'srt', 'verbose_json' or 'vtt'"),
        ({"temperature": "1.5"}, "temperature", "less than or equal to 1"),
        ({"temperature": "nan"}, "temperature", "finite"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"stream": "perhaps"}, "stream", "valid boolean"),
        ({"stream": "true", "response_format": "srt"}, "stream", "stream is for json and text, and response_format is"),
        (
            {"timestamp_granularities": ["segment"]},
            "timestamp_granularities",
            "are for verbose_json, and response_form",
        ),
        (
            {"timestamp_granularities": ["word"], "response_format": "verbose_json"},
            "timestamp_granularities",
            "times of single words are not supported; send segment",
        ),
        (
            {"timestamp_granularities": ["line"], "response_format": "verbose_json"},
            "timestamp_granularities",
            r"timestamp_granularities\[0\]: should be 'word' or 'segment'",
        ),
        ({"include": ["logprobs"]}, "include", "include is not supported; leave it out"),
        ({"prompt": "a" * 5000}, "prompt", "prompt is too long: the limit is 4096 characters"),
    ],
)
def test_what_a_form_cannot_say(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidField, match=message) as raised:
        read(**fields)
    assert raised.value.param == param


def test_a_form_without_a_file() -> None:
    with pytest.raises(InvalidField, match="file is missing"):
        read_request({"model": "whisper"})


def test_languages_are_those_of_whisper() -> None:
    assert dict(NAMES) == LANGUAGES
    assert [find_language(each, "language") for each in ("de", "German ", "YUE", "jv")] == ["de", "de", "yue", "jw"]
    with pytest.raises(InvalidField, match=r"language 'germann' is no language Whisper knows; .* de for german"):
        find_language("germann", "language")
    with pytest.raises(InvalidField, match="such as en, de or zh; or leave it out") as raised:
        find_language("??", "language")
    assert raised.value.param == "language"


SRT = """\
1
00:00:00,000 --> 00:00:02,500
Guten Tag.

2
00:00:02,500 --> 01:02:04,990
a < b -> c & d

"""
VTT = """\
WEBVTT

00:00:00.000 --> 00:00:02.500
Guten Tag.

00:00:02.500 --> 01:02:04.990
a &lt; b --&gt; c &amp; d

"""


def test_subtitles() -> None:
    assert write_srt(TRANSCRIPT) == SRT and write_vtt(TRANSCRIPT) == VTT
    silence = Transcript("de", 3.0, ())
    assert write_srt(silence) == "" and write_vtt(silence) == "WEBVTT\n\n"


def test_events_are_those_of_the_client() -> None:
    assert TranscriptionTextDeltaEvent.model_validate_json(write_delta(" Guten")).delta == " Guten"
    done = TranscriptionTextDoneEvent.model_validate_json(write_done(TRANSCRIPT))
    assert done.type == "transcript.text.done" and done.text == TRANSCRIPT.text


async def answer(call: Call, state: ServerState) -> Reply | None:
    """A route that has heard it all before."""
    asked = read_request(await parse_form(call))
    if not asked.stream:
        return write_transcript(TRANSCRIPT, asked, task="transcribe")
    async with EventStream(call, 1.0) as events:
        await events.write(write_delta(" Guten"), write_delta(" Tag."))
        await events.write(write_done(TRANSCRIPT))
        await events.end()
    return None


ROUTE = Route(
    *("POST", "/v1/audio/transcriptions", answer, render_error, "", ""),
    media_types=(FORM,),
    read_body=read_form_body,
    schema=describe_form(AudioRequest),
    reply=TranscriptionReply | VerboseTranscriptionReply,
    error_reply=ErrorReply,
)


@pytest.mark.anyio
async def test_the_client_reads_every_format(make_server: MakeServer) -> None:
    server = make_server()
    with run_live(replace(server, app=App(server.state, (ROUTE,)))) as live:
        create = live.client(max_retries=0).audio.transcriptions.create
        asked: dict[str, Any] = {"file": ("a.wav", b"sound"), "model": "whisper"}
        plain = create(**asked)
        assert plain.text == TRANSCRIPT.text and plain.usage is not None and plain.usage.type == "duration"
        formats = {name: create(**asked, response_format=name) for name in ("text", "srt", "vtt")}
        assert formats == {"text": f"{TRANSCRIPT.text}\n", "srt": SRT, "vtt": VTT}
        check_verbose(create, asked)
        events = [*create(**asked, stream=True)]
        assert [getattr(event, "delta", None) or event.text for event in events] == [" Guten", " Tag.", plain.text]
        with pytest.raises(openai.BadRequestError, match="are for verbose_json") as raised:
            create(**asked, timestamp_granularities=["segment"])
        assert raised.value.param == "timestamp_granularities"


def check_verbose(create: Any, asked: dict[str, Any]) -> None:
    whole = create(**asked, response_format="verbose_json", timestamp_granularities=["segment"], temperature=0.5)
    assert isinstance(whole, TranscriptionVerbose)
    assert (whole.language, whole.duration, whole.text) == ("german", 3725.52, TRANSCRIPT.text)
    assert whole.segments is not None
    last = whole.segments[1]
    assert (last.id, last.seek, last.start, last.end, last.tokens) == (1, 0, 2.5, 3724.99, [50364, 7, 50464])
    assert (last.temperature, last.avg_logprob, last.no_speech_prob) == (0.2, -0.25, 0.125)
    assert last.text == TRANSCRIPT.segments[1].text and last.compression_ratio == ATTEMPT.compression_ratio


@pytest.mark.anyio
async def test_the_document_shows_a_form(make_server: MakeServer) -> None:
    app = App(make_server().state, (ROUTE,))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://padless") as client:
        document = (await client.get("/openapi.json")).json()
    (content,) = document["paths"][ROUTE.path]["post"]["requestBody"]["content"].items()
    assert content[0] == "multipart/form-data" and content[1]["schema"]["required"] == ["file"]
    file = content[1]["schema"]["properties"]["file"]
    assert (file["type"], file["format"]) == ("string", "binary")
    language = content[1]["schema"]["properties"]["language"]
    assert language["type"] == "string" and "default" not in language and "anyOf" not in language
