"""`/v1/audio/transcriptions` and `/v1/audio/translations` on an engine that says what a test tells it."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_generator import find_logprob
from fake_hearer import (
    END,
    NO_SPEECH,
    PREVIOUS,
    RAW,
    SETTINGS,
    SOUND,
    START,
    AudioServer,
    build_audio_server,
    describe_model,
    find,
    spell,
)
from sounds import write_sound
from tokenizers import Tokenizer as RawTokenizer

from models.info import ModelDirectoryError
from server.audio.speech import find_speech
from server.text.detokenizer import TokenTexts
from server.wire.processors import AllowedTokens, SuppressedAtBegin, SuppressedTokens, Timestamps
from tests.whisper_files import LANGUAGES, MAX_TARGET_TOKENS, NUM_MEL_BINS, RATE, WINDOW_S, make_sound, write_wav

pytestmark = pytest.mark.anyio

LONG = write_wav(make_sound(3.0))


@pytest.fixture
async def server(pool: ThreadPoolExecutor, tmp_path: Path) -> AsyncIterator[AudioServer]:
    built = build_audio_server(pool, tmp_path)
    yield built
    built.check_idle()


async def test_a_window_is_asked_as_whisper_was_trained(server: AudioServer) -> None:
    response = await server.post(language="de")
    assert response.json() == {"text": "hello", "usage": {"type": "duration", "seconds": 2}}
    (job,) = server.engine.jobs
    assert job.prompt == [START, find("<|de|>"), find("<|transcribe|>")]
    assert job.job.inputs["features"].values.shape == (WINDOW_S * 50, 2 * NUM_MEL_BINS)
    params = job.params
    assert (params.temperature, params.max_tokens, params.stop_token_ids) == (0.0, MAX_TARGET_TOKENS // 2, (END,))
    assert params.probe == (0, NO_SPEECH) and params.num_logprobs == 0
    assert params.processors == (
        SuppressedTokens(tuple(SETTINGS["suppress_tokens"])),
        SuppressedAtBegin((END,)),
        Timestamps(find("<|0.00|>"), find("<|notimestamps|>"), END, 20),
    )


async def test_the_language_is_found_where_nobody_says_it(server: AudioServer) -> None:
    response = await server.post(response_format="verbose_json")
    assert response.json()["language"] == "german"
    first, second = server.engine.jobs
    assert first.prompt == [START] and first.params.max_tokens == 1
    assert first.params.processors == (AllowedTokens(tuple(sorted(find(f"<|{code}|>") for code in LANGUAGES))),)
    assert second.prompt == [START, find("<|de|>"), find("<|transcribe|>")]
    features = [job.job.inputs["features"].values for job in (first, second)]
    np.testing.assert_array_equal(*features)


async def test_everything_verbose_json_tells(server: AudioServer) -> None:
    server.engine.windows = [spell(0.0, " hello", 0.5, 0.5, " world", 1.5)]
    content = (await server.post(route="translations", response_format="verbose_json", language="fr")).json()
    assert (content["task"], content["duration"], content["text"]) == ("translate", 1.5, "hello world")
    assert content["language"] == "english"
    assert [(each["start"], each["end"], each["text"]) for each in content["segments"]] == [
        (0.0, 0.5, " hello"),
        (0.5, 1.5, " world"),
    ]
    segment = content["segments"][0]
    logprobs = [find_logprob(token_id) for token_id in server.engine.windows[0]]
    assert segment["avg_logprob"] == pytest.approx(sum(logprobs) / len(logprobs))
    assert segment["no_speech_prob"] == pytest.approx(math.exp(find_logprob(NO_SPEECH)))
    assert server.engine.jobs[0].prompt[-1] == find("<|translate|>")


async def test_times_of_words(server: AudioServer) -> None:
    """Each window is aligned once, by what it was asked and what it said, and its frames beyond the sound's end are
    left out; in a translation words are those of English, whatever was spoken."""
    last = spell(0.0, " 你好你好你好你好.", 1.6, end=False)
    server.engine.windows = [spell(0.0, " hello", 1.4, 1.4, " wor"), [*last, END]]
    response = await server.post(
        LONG, route="translations", language="fr", response_format="verbose_json", timestamp_granularities=["word"]
    )
    content = response.json()
    assert [each["word"] for each in content["words"]] == ["hello", "你好你好你好你好."]
    assert len(content["segments"]) == 2
    for aligned, said in zip(server.engine.aligned, server.engine.said, strict=True):
        assert aligned.params.max_tokens == 0 and aligned.params.align_from == len(said.prompt)
        np.testing.assert_array_equal(aligned.inputs["features"].values, said.job.inputs["features"].values)
    first, second = (each.input_ids.row(0).tolist() for each in server.engine.aligned)
    assert first[3:] == spell(0.0, " hello", 1.4, 1.4, " wor", end=False)
    assert second[-len(last) :] == last
    num_tokens = len(spell(0.0, " hello", end=False))
    hello, other = content["words"]
    assert (hello["start"], hello["end"]) == (0.0, pytest.approx((num_tokens - 1) / 10))
    # The second window begins where what the first one has left open does.
    assert other["start"] == 1.4 and 2.2 < other["end"] < 3.0


async def test_silence_has_no_words(server: AudioServer) -> None:
    server.engine.windows = [spell(0.0, 1.5)]
    response = await server.post(language="en", response_format="verbose_json", timestamp_granularities=["word"])
    assert response.json()["words"] == [] and not server.engine.aligned


async def test_models_that_cannot_tell_when_words_are_said(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    server = build_audio_server(pool, tmp_path, info=describe_model(SETTINGS, alignment_heads=()))
    refused = await server.refuse(response_format="verbose_json", timestamp_granularities=["word"])
    assert refused[:2] == (400, "timestamp_granularities")
    assert "generation_config.json has no alignment_heads" in refused[2] and "Send segment" in refused[2]
    assert not server.engine.jobs
    server.check_idle()


async def test_later_windows_are_told_of_those_before(server: AudioServer) -> None:
    server.engine.windows = [spell(0.0, " hello", 1.4, 1.4, " wor"), spell(0.0, " world", 1.6)]
    response = await server.post(LONG, language="en", response_format="srt")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == ("1\n00:00:00,000 --> 00:00:01,400\nhello\n\n2\n00:00:01,400 --> 00:00:03,000\nworld\n\n")
    first, second = server.engine.said
    said = spell(0.0, " hello", 1.4, end=False)
    assert second.prompt == [PREVIOUS, *said, START, find("<|en|>"), find("<|transcribe|>")]
    assert second.params.probe == (len(said) + 1, NO_SPEECH)
    assert not np.array_equal(first.job.inputs["features"].values, second.job.inputs["features"].values)


async def test_a_prompt_is_what_was_said_before(server: AudioServer) -> None:
    await server.post(language="en", prompt=" hello <|en|>")
    words = [token_id for token_id in RAW.encode(" hello <|en|>").ids if token_id < END]
    assert server.engine.jobs[0].prompt[: len(words) + 2] == [PREVIOUS, *words, START]
    await server.post(language="en", prompt="whatever " * 400)
    assert len(server.engine.jobs[1].prompt) == 1 + MAX_TARGET_TOKENS // 2 - 1 + 3


async def test_a_doubtful_window_is_decoded_once_more(server: AudioServer) -> None:
    """The same text again and again; then at a higher temperature, always by the same numbers."""
    server.engine.windows = [spell(0.0, " hello hello" * 20, 1.0), spell(0.0, " world", 1.0)]
    content = (await server.post(language="en", response_format="verbose_json")).json()
    assert content["text"] == "world" and content["segments"][0]["temperature"] == 0.2
    assert [job.params.temperature for job in server.engine.jobs] == [0.0, 0.2]
    assert {job.params.seed for job in server.engine.jobs} == {0}


async def test_a_temperature_is_tried_alone(server: AudioServer) -> None:
    server.engine.windows = [spell(0.0, " hello hello" * 20, 1.0)]
    await server.post(language="en", temperature="0.7")
    assert [job.params.temperature for job in server.engine.jobs] == [0.7]


async def test_a_stream_tells_each_window(server: AudioServer) -> None:
    server.engine.windows = [spell(0.0, " hello", 1.4, 1.4, " wor"), spell(0.0, " world", 1.6)]
    response = await server.post(LONG, language="en", stream="true")
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n")[:-1]]
    assert events == [
        {"type": "transcript.text.delta", "delta": "hello"},
        {"type": "transcript.text.delta", "delta": " world"},
        {"type": "transcript.text.done", "text": "hello world"},
    ]


async def test_a_failure_in_a_stream_is_its_last_event(server: AudioServer) -> None:
    server.engine.windows = [spell(0.0, " hello", 1.4, 1.4, " wor")]
    server.engine.fails_at = 1
    response = await server.post(LONG, language="en", stream="true")
    last = json.loads(response.text.split("\n\n")[-2].removeprefix("data: "))
    assert last["error"]["message"] == "gone"


@pytest.mark.parametrize(
    ("content", "fields", "param", "message"),
    [
        (b"", {}, "file", "file is empty; send a sound file"),
        (b"Dear reader, this is no sound.", {"name": "a.mp3"}, "file", "file cannot be read as sound"),
        (SOUND[:30], {}, "file", "file"),
        (write_wav(make_sound(6.0)), {}, "file", "file is longer than 5 s, the limit; send it in parts"),
        (SOUND, {"language": "klingon"}, "language", "'klingon' is no language Whisper knows"),
        (SOUND, {"language": "ja"}, "language", "language 'ja' is not known to this model, which writes en, de, fr"),
        (SOUND, {"model": "whisper-1"}, "model", "model 'whisper-1' does not exist; the models here are whisper"),
        (SOUND, {"temperature": "2"}, "temperature", "less than or equal to 1"),
    ],
)
async def test_what_is_wrong_is_named(
    pool: ThreadPoolExecutor, tmp_path: Path, content: bytes, fields: dict[str, str], param: str, message: str
) -> None:
    """And a request that runs goes on."""
    server = build_audio_server(pool, tmp_path, max_audio_s=5.0)
    server.engine.gate = asyncio.Semaphore(0)
    running = asyncio.create_task(server.post(language="en"))
    while not server.engine.jobs:
        await asyncio.sleep(0)
    status, found, text = await server.refuse(content, **fields)
    assert status in (400, 404) and found == param and message in text
    for _ in range(20):
        server.engine.gate.release()
    assert (await running).json()["text"] == "hello"
    server.check_idle()


async def test_a_body_may_be_as_large_as_sound_is(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    server = build_audio_server(pool, tmp_path, {"max_body_mb": 0.01, "max_audio_mb": 0.06})
    assert (await server.post(language="en")).status_code == 200
    status, _, text = await server.refuse(LONG)
    assert status == 413 and "60000 bytes" in text
    other = await server.client.post("/v1/completions", json={"prompt": "a" * 20_000})
    assert other.status_code == 413
    server.check_idle()


async def test_what_is_heard_counts_among_what_is_held(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    """A minute of silence is a few bytes, and as much as any other once it is heard."""
    server = build_audio_server(pool, tmp_path, {"max_bodies_mb": 0.3, "max_body_mb": 0.1})
    silence = write_sound(np.zeros(60 * RATE, np.float32), RATE, "flac", "flac")
    server.engine.gate = asyncio.Semaphore(0)
    running = asyncio.create_task(server.post(silence, language="en"))
    while not server.engine.jobs:
        await asyncio.sleep(0.001)
    status, _, text = await server.refuse(silence)
    assert status == 429 and "bodies of other requests" in text
    for _ in range(1000):
        server.engine.gate.release()
    assert (await running).status_code == 200
    server.check_idle()


async def test_a_file_is_not_refused_in_its_middle(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    """It holds its place until its last window; others are refused meanwhile, before their files are read."""
    server = build_audio_server(pool, tmp_path, max_concurrent_requests=1, max_client_batch_size=1)
    server.engine.windows = [spell(0.0, " hello", 1.4, 1.4, " wor"), spell(0.0, " world", 1.6)]
    server.engine.gate = asyncio.Semaphore(0)
    running = asyncio.create_task(server.post(LONG, language="en"))
    while not server.engine.jobs:
        await asyncio.sleep(0.001)
    status, _, _ = await server.refuse(b"no sound")
    assert status == 429
    for _ in range(100):
        server.engine.gate.release()
    assert (await running).json()["text"] == "hello world"
    server.check_idle()


async def test_who_goes_while_a_file_is_read_leaves_nothing(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    server = build_audio_server(pool, tmp_path)
    hearing = server.state.models["whisper"].hearing
    assert hearing is not None
    await hearing.turns.acquire()
    waiting = asyncio.create_task(server.post(language="en"))
    while server.state.models["whisper"].admission.num_inputs == 0:
        await asyncio.sleep(0.001)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    server.check_idle()
    hearing.turns.release()
    reading = asyncio.create_task(hearing.hear(write_wav(make_sound(60.0)), "file"))
    while not hearing.turns.locked():
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert (await server.post(language="en")).status_code == 200  # once the other one's thread is done
    server.check_idle()


async def test_an_engine_that_is_away_reads_no_file(server: AudioServer) -> None:
    server.engine.reported = ()
    assert (await server.refuse(b"no sound"))[0] == 503


async def test_json_is_no_form(server: AudioServer) -> None:
    response = await server.client.post("/v1/audio/transcriptions", json={"model": "whisper"})
    assert response.status_code == 415 and "multipart/form-data" in response.json()["error"]["message"]


def test_what_a_directory_leaves_out_is_the_tokenizers_to_say() -> None:
    texts = TokenTexts(RAW)
    bare = describe_model({**SETTINGS, "no_timestamps_token_id": None, "prev_sot_token_id": None})
    speech = find_speech(bare, texts)
    assert (speech.no_timestamps_id, speech.previous_id) == (find("<|notimestamps|>"), PREVIOUS)
    with pytest.raises(ModelDirectoryError, match="no_timestamps_token_id"):
        find_speech(bare, TokenTexts(RawTokenizer.from_str(json.dumps(strip("<|notimestamps|>")))))


def test_tasks_are_found_where_only_languages_are_told() -> None:
    told = describe_model({**SETTINGS, "task_to_id": {}})
    assert find_speech(told, TokenTexts(RAW)).tasks["translate"] == find("<|translate|>")
    with pytest.raises(ModelDirectoryError, match="no task_to_id"):
        find_speech(told, TokenTexts(RawTokenizer.from_str(json.dumps(strip("<|transcribe|>")))))


def strip(token: str) -> dict[str, Any]:
    """A tokenizer without it."""
    content: dict[str, Any] = json.loads(RAW.to_str())
    content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] != token]
    return content
