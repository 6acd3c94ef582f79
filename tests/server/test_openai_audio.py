"""What OpenAI's audio forms may say, and transcripts in every format, as the client reads them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import MakeServer
from fake_hearer import SOUND, build_audio_server, spell
from openai.types.audio import TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent, TranscriptionVerbose
from test_openai_client import run_live
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from server.audio.fallback import Attempt
from server.audio.languages import NAMES, find_language
from server.audio.segments import Segment, Transcript
from server.errors import InvalidField
from server.http.api.openai_audio_reply import write_delta, write_done, write_srt, write_transcript, write_vtt
from server.http.api.openai_audio_request import AudioRequest, read_request
from server.http.multipart import FormValue, UploadedFile

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


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's word on its translations
async def test_the_client_reads_every_format(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    server = build_audio_server(pool, tmp_path)
    server.engine.windows = [spell(0.0, " hello", 0.5, 0.5, " world", 1.5)]
    with run_live(server) as live:
        audio = live.client(max_retries=0).audio
        asked: dict[str, Any] = {"file": ("a.wav", SOUND), "model": "whisper"}
        for create, language in ((audio.transcriptions.create, "german"), (audio.translations.create, "english")):
            assert create(**asked).text == "hello world"
            formats = {name: create(**asked, response_format=name) for name in ("text", "srt", "vtt")}
            assert formats["text"] == "hello world\n"
            assert formats["srt"].startswith("1\n00:00:00,000 --> 00:00:00,500\nhello\n\n2\n")
            assert formats["vtt"].startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.500\nhello\n\n")
            whole = create(**asked, response_format="verbose_json", temperature=0.5)
            assert (whole.language, whole.duration, len(whole.segments)) == (language, 1.5, 2)
            assert whole.segments[1].start == 0.5 and whole.segments[1].temperature == 0.5
            assert getattr(whole, "words", None) is None
        timed = audio.transcriptions.create(
            **asked, response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
        assert [(each.word, each.start, each.end) for each in timed.words] == find_words()
        events = [*audio.transcriptions.create(**asked, stream=True)]
        assert [getattr(event, "delta", None) or event.text for event in events] == ["hello world", "hello world"]
        with pytest.raises(openai.BadRequestError, match="are for verbose_json") as raised:
            audio.transcriptions.create(**asked, timestamp_granularities=["segment"])
        assert raised.value.param == "timestamp_granularities"
    server.check_idle()


def find_words() -> list[tuple[str, float, float]]:
    """As the engine that hears has them: each token ends a tenth of a second behind the one before."""
    first, both = len(spell(0.0, " hello", end=False)), len(spell(0.0, " hello", 0.5, 0.5, " world", end=False))
    return [("hello", 0.0, (first - 1) / 10), ("world", (first + 1) / 10, (both - 1) / 10)]


def test_a_segment_as_the_client_reads_it() -> None:
    """As the route writes it."""
    asked = read(response_format="verbose_json", timestamp_granularities=["segment"])
    whole = TranscriptionVerbose.model_validate_json(write_transcript(TRANSCRIPT, asked, task="transcribe").body)
    assert (whole.language, whole.duration, whole.text) == ("german", 3725.52, TRANSCRIPT.text)
    assert whole.segments is not None
    last = whole.segments[1]
    assert (last.id, last.seek, last.start, last.end, last.tokens) == (1, 0, 2.5, 3724.99, [50364, 7, 50464])
    assert (last.temperature, last.avg_logprob, last.no_speech_prob) == (0.2, -0.25, 0.125)
    assert last.text == TRANSCRIPT.segments[1].text and last.compression_ratio == ATTEMPT.compression_ratio


@pytest.mark.anyio
async def test_the_document_shows_a_form(make_server: MakeServer) -> None:
    app = make_server().app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://padless") as client:
        document = (await client.get("/openapi.json")).json()
    (content,) = document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"].items()
    assert content[0] == "multipart/form-data" and content[1]["schema"]["required"] == ["file"]
    file = content[1]["schema"]["properties"]["file"]
    assert (file["type"], file["format"]) == ("string", "binary")
    language = content[1]["schema"]["properties"]["language"]
    assert language["type"] == "string" and "default" not in language and "anyOf" not in language
