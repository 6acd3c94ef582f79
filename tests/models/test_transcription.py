"""Sound of any length, from the file to its text, on a real engine: what transformers hears, window by window."""

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_served_prompts import Client, open_client
from tiny_whisper import make_whisper
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words
from transformers.utils import ModelOutput

from server.config import ConfigError, LimitsConfig, ModelConfig, ServerConfig, SourceConfig
from server.processes.resolution import resolve
from tests.whisper_files import LANGUAGES, RATE, Sound, build_tokenizer, make_sound, write_wav

SEED = 2
RAW = build_tokenizer()
START_ID = RAW.token_to_id("<|startoftranscript|>")


@dataclass
class Served:
    """`theirs`: transformers' model. Mutable: the event loop."""

    theirs: Any
    extractor: transformers.WhisperFeatureExtractor
    client: Client
    runner: asyncio.Runner

    def run(self, ask: Callable[[Client], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            return await ask(self.client)

        return self.runner.run(run())

    def extract(self, sound: Sound, **options: Any) -> torch.Tensor:
        features = self.extractor(sound / np.float32(32768), sampling_rate=RATE, return_tensors="pt", **options)
        found: torch.Tensor = features.input_features
        return found

    @torch.inference_mode()
    def hear(self, sound: Sound, **options: Any) -> list[tuple[float, float, list[int]]]:
        """Beginning, end and tokens of each segment."""
        features = self.extract(sound, truncation=False, padding="longest")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.theirs.generate(
                features,
                return_timestamps=True,
                return_segments=True,
                condition_on_prev_tokens=True,
                temperature=0.0,
                **options,
            )
        return [(float(each["start"]), float(each["end"]), each["tokens"].tolist()) for each in found["segments"][0]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("whisper")
    theirs = make_whisper(folder / "model", seed=SEED)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder / "model")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        opened = open_client(folder / "model", folder / "run", truncation="error")
        yield Served(theirs, extractor, runner.run(stack.enter_async_context(opened)), runner)
        runner.run(stack.aclose())


async def transcribe(client: Client, sound: Sound, *, route: str = "transcriptions", **fields: str) -> dict[str, Any]:
    form = {"response_format": "verbose_json"} | fields
    response = await client.post(f"/v1/audio/{route}", files={"file": ("a.wav", write_wav(sound))}, data=form)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize(("seconds", "language", "seed"), [(7.0, "en", 3), (2.0, "de", 3), (4.5, "fr", 5)])
def test_segments_are_those_of_transformers(served: Served, seconds: float, language: str, seed: int) -> None:
    """Each window told of those before. Of sounds of which no window is doubtful, so that nothing is drawn."""
    sound = make_sound(seconds, seed)
    found = served.run(lambda client: transcribe(client, sound, language=language))
    segments = found["segments"]
    assert segments and all(segment["temperature"] == 0 for segment in segments), "A window was doubtful."
    expected = served.hear(sound, language=language, task="transcribe")
    assert len(segments) == len(expected)
    for segment, (start, end, tokens) in zip(segments, expected, strict=True):
        # Theirs keep the time that the next window begins with as well.
        kept = tokens[:-1] if len(tokens) > 1 and len(segment["tokens"]) < len(tokens) else tokens
        assert (segment["start"], segment["end"], segment["tokens"]) == (
            pytest.approx(start),
            pytest.approx(end),
            kept,
        )
    assert found["duration"] == seconds and found["text"] == "".join(each["text"] for each in segments).strip()


class TheirTokenizer:
    """What transformers' words are made with."""

    eos_token_id = RAW.token_to_id("<|endoftext|>")
    language = "english"

    def decode(self, ids: list[int], decode_with_timestamps: bool) -> str:
        return RAW.decode(ids)


def list_words(tokens: list[int], ends: list[float]) -> list[tuple[str, float, float]]:
    """`ends`: of each token. It begins where the one before it ends."""
    times = list(zip([0.0, *ends], ends, strict=False))
    spoken = [place for place, token_id in enumerate(tokens) if token_id < TheirTokenizer.eos_token_id]
    words, _, groups = _combine_tokens_into_words(TheirTokenizer(), [tokens[place] for place in spoken], "english")
    return [
        (word.strip(), times[spoken[group[0]]][0], times[spoken[group[-1]]][1])
        for word, group in zip(words, groups, strict=True)
    ]


def test_words_are_said_when_transformers_has_it(served: Served) -> None:
    """Of a window that ends by itself: of others transformers has no weights of the last token."""
    sound = make_sound(1.3, 27)
    found = served.run(lambda client: transcribe(client, sound, language="de", timestamp_granularities="word"))
    options = {"return_attention_mask": True, "return_tensors": "pt"}
    features = served.extractor(sound / np.float32(32768), sampling_rate=RATE, **options)
    told = {"return_timestamps": True, "return_token_timestamps": True, "return_segments": True, "temperature": 0.0}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        heard = served.theirs.generate(**features, **told, language="de", task="transcribe")
    segment, *_ = heard["segments"][0]
    assert int(segment["result"]["sequences"][-1]) == TheirTokenizer.eos_token_id
    assert found["segments"][0]["temperature"] == 0, "The window was doubtful."
    check_words(found, segment["tokens"].tolist(), segment["token_timestamps"].tolist())


@pytest.mark.parametrize(("seconds", "seed"), [(0.7, 2), (2.0, 11)])
@torch.inference_mode()
def test_words_of_windows_that_are_cut(served: Served, seconds: float, seed: int) -> None:
    """As transformers goes on from the weights of all tokens, the last one too."""
    sound = make_sound(seconds, seed)
    found = served.run(lambda client: transcribe(client, sound, language="en", timestamp_granularities="word"))
    (segment,) = found["segments"]
    ids, tokens = served.theirs.generation_config.lang_to_id, segment["tokens"]
    prompt = [START_ID, ids["<|en|>"], served.theirs.generation_config.task_to_id["transcribe"]]
    given = torch.tensor([[*prompt, *tokens]])
    looked = served.theirs(served.extract(sound), decoder_input_ids=given, output_attentions=True)
    steps = ModelOutput(sequences=given, cross_attentions=[looked.cross_attentions])
    heads, num_frames = served.theirs.generation_config.alignment_heads, torch.tensor([round(seconds * 100)])
    ends = served.theirs._extract_token_timestamps(steps, heads, num_frames=num_frames, num_input_ids=len(prompt))
    check_words(found, tokens, ends[0, len(prompt) : -1].tolist())


def check_words(found: dict[str, Any], tokens: list[int], ends: list[float]) -> None:
    """Of the first segment."""
    assert found["segments"][0]["tokens"] == tokens
    expected = list_words(tokens, ends)
    words = found["words"][: len(expected)]
    assert [each["word"] for each in words] == [word for word, _, _ in expected]
    times = [(each["start"], each["end"]) for each in words]
    np.testing.assert_allclose(times, [(start, end) for _, start, end in expected], atol=1e-6)
    assert len(set(ends)) > 2, "Nothing is told apart."


def test_translations_are_asked_for_by_their_token(served: Served) -> None:
    sound = make_sound(2.0, 5)
    found = served.run(lambda client: transcribe(client, sound, route="translations", language="de"))
    expected = served.hear(sound, language="de", task="translate")
    assert found["task"] == "translate"
    assert found["segments"][0]["tokens"] == expected[0][2][: len(found["segments"][0]["tokens"])]
    assert expected != served.hear(sound, language="de", task="transcribe")


@pytest.mark.parametrize("seed", range(4))
def test_languages_are_found_as_transformers_does(served: Served, seed: int) -> None:
    sound = make_sound(1.3, seed)
    found = served.run(lambda client: transcribe(client, sound))
    with torch.inference_mode():
        (token_id,) = served.theirs.detect_language(served.extract(sound)).tolist()
    ids = served.theirs.generation_config.lang_to_id
    names = {"en": "english", "de": "german", "fr": "french"}
    assert {ids[f"<|{code}|>"]: names[code] for code in LANGUAGES}[token_id] == found["language"]


@torch.inference_mode()
def test_silence_is_as_probable_as_transformers_has_it(served: Served) -> None:
    sound = make_sound(2.0, SEED)
    found = served.run(lambda client: transcribe(client, sound, language="en"))
    config = served.theirs.generation_config
    start = torch.tensor([[config.decoder_start_token_id]])
    logits = served.theirs(served.extract(sound), decoder_input_ids=start).logits[0, 0]
    expected = float(logits.log_softmax(-1)[config.no_timestamps_token_id - 1])
    assert np.log(found["segments"][0]["no_speech_prob"]) == pytest.approx(expected, abs=1e-3)


def test_a_sound_alone_is_the_same_among_others(served: Served) -> None:
    sounds = [make_sound(seconds, seed) for seed, seconds in enumerate((1.0, 5.0, 3.3, 2.0))]

    async def ask(client: Client) -> None:
        alone = [await transcribe(client, sound) for sound in sounds]
        assert list(await asyncio.gather(*(transcribe(client, sound) for sound in sounds))) == alone

    served.run(ask)


async def count_found(client: Client, least: float = 0.0) -> float:
    """Of prompts and windows that were found in the cache, once they are that many: metrics come twice a second."""
    for _ in range(200):
        lines = (await client.get("/metrics")).text.splitlines()
        values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"}
        found = values["padless_prefix_cache_hit_tokens_total"]
        if found >= least:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{found} tokens were found, not {least}.")


def test_a_window_is_encoded_once(served: Served) -> None:
    """Its language is asked for first, and the same sound comes again."""
    sound = make_sound(1.7, 77)

    async def ask(client: Client) -> None:
        before = await count_found(client)
        await transcribe(client, sound)
        await count_found(client, before + 100)
        await transcribe(client, sound)
        await count_found(client, before + 300)

    served.run(ask)


def test_who_writes_english_only_is_told_no_language(tmp_path: Path) -> None:
    """Warmed up and timed before, with answers that are shorter than windows."""
    make_whisper(tmp_path / "model", is_multilingual=False, seed=SEED)

    async def run() -> None:
        async with open_client(tmp_path / "model", tmp_path / "run", truncation="error", warmup=True) as client:
            found = await transcribe(client, make_sound(2.0))
            assert found["language"] == "english" and found["segments"]
            file = {"file": ("a.wav", write_wav(make_sound(1.0)))}
            refused = await client.post("/v1/audio/translations", files=file)
            assert refused.status_code == 400 and "does not translate" in refused.text
            refused = await client.post("/v1/audio/transcriptions", files=file, data={"language": "de"})
            assert refused.status_code == 400 and "English only" in refused.text

    asyncio.run(run())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_batch_tokens": 64}, "max_batch_tokens .64. is below the 100 rows of a window"),
        ({"max_input_tokens": 50}, "max_input_tokens is for texts, and this model hears windows"),
        ({"max_audio_s": 100_000.0}, r"100000 s of sound .* are 400 MB once they are heard, over server.max_bodies_mb"),
        ({"truncation": "right"}, "truncation is for texts, and this model hears"),
    ],
)
def test_limits_that_sound_has_not(tmp_path: Path, limits: dict[str, Any], message: str) -> None:
    make_whisper(tmp_path / "model")
    model = ModelConfig(
        name="w",
        source=SourceConfig(path=str(tmp_path / "model")),
        limits=LimitsConfig(**{"max_batch_tokens": 256} | limits),
    )
    with pytest.raises(ConfigError, match=message):
        resolve(ServerConfig(models=(model,)), tmp_path)
