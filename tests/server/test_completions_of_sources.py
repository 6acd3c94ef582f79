"""`/v1/completions` of encoder-decoders: the prompt is read, and what is written for it comes back."""

from typing import Any

import httpx
import pytest
from fake_generator import BOS, EOS, LANGUAGES, GenerationServer, find_logprob, read_events

from models.translation import TranslationInfo
from server.text.languages import Languages
from server.wire.generation import GenerationParams
from server.wire.processors import BadWords, ForcedBegin, LogitBias, MinTokens, NoRepeatNgrams

pytestmark = pytest.mark.anyio

CODES = LANGUAGES.codes


async def complete(server: GenerationServer, prompt: Any = "hello", **fields: Any) -> httpx.Response:
    body = {"model": "translator", "prompt": prompt} | fields
    return await server.client.post("/v1/completions", json=body)


def params_of(server: GenerationServer) -> GenerationParams:
    return server.translator_engine.params


def read_sources(server: GenerationServer) -> list[list[int]]:
    sources = server.translator_engine.jobs[-1].job.inputs["source_ids"]
    return [sources.row(index).tolist() for index in range(len(sources))]


def between(server: GenerationServer, text: str) -> list[int]:
    return [CODES["en_XX"], *server.encode(text), EOS]


async def test_a_text(generator: GenerationServer) -> None:
    generator.translator_engine.answers = [[CODES["de_DE"], *generator.encode(" the world"), EOS]]
    body = (await complete(generator, temperature=0, max_tokens=20)).json()
    assert body["choices"] == [{"index": 0, "text": " the world", "logprobs": None, "finish_reason": "stop"}]
    assert body["id"].startswith("cmpl-") and body["object"] == "text_completion"
    (job,) = generator.translator_engine.jobs
    assert read_sources(generator) == [between(generator, "hello")] and job.prompt == [EOS]
    usage, num_written = body["usage"], len(generator.translator_engine.answers[0])
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(between(generator, "hello")), num_written)
    assert generator.count("prompt_tokens_total", model="translator") == usage["prompt_tokens"]
    generator.check_idle()


async def test_tokens_are_chosen_as_by_openai_and_rules_are_the_directorys(generator: GenerationServer) -> None:
    await complete(generator)
    params = params_of(generator)
    assert (params.max_tokens, params.temperature, params.beam_width, params.num_sequences) == (19, 1.0, 0, 1)
    assert params.processors == (ForcedBegin(CODES["de_DE"]), NoRepeatNgrams(3))
    assert params.stop_token_ids == (EOS,)


async def test_every_field_gets_to_the_engine(generator: GenerationServer) -> None:
    fields: dict[str, Any] = {"max_tokens": 9, "min_tokens": 2, "n": 2, "best_of": 3, "temperature": 0.5, "top_p": 0.9}
    fields |= {"top_k": 7, "min_p": 0.1, "seed": 3, "presence_penalty": 1, "repetition_penalty": 1.5, "logprobs": 2}
    fields |= {"logit_bias": {"5": 2}, "bad_words": ["world"], "target_language": "de_CH", "stop_token_ids": [9]}
    assert (await complete(generator, **fields)).status_code == 200
    params = params_of(generator)
    assert (params.max_tokens, params.num_sequences, params.seed, params.num_logprobs) == (9, 3, 3, 2)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.1)
    assert (params.presence_penalty, params.repetition_penalty, params.stop_token_ids) == (1.0, 1.5, (9, EOS))
    first, *middle, last = params.processors
    assert first == LogitBias((5,), (2.0,)) and isinstance(last, BadWords)
    assert middle == [ForcedBegin(CODES["de_CH"]), NoRepeatNgrams(3), MinTokens(2)]


async def test_a_beam_search(generator: GenerationServer) -> None:
    await complete(generator, use_beam_search=True, beam_width=4, n=2, length_penalty=0.5)
    params = params_of(generator)
    assert (params.beam_width, params.num_sequences, params.length_penalty, params.temperature) == (4, 2, 0.5, 1.0)


async def test_several_prompts_and_answers(generator: GenerationServer) -> None:
    generator.translator_engine.answers = [[*generator.encode(text), EOS] for text in ("one", "two")]
    body = (await complete(generator, ["Once", "hello"], n=2)).json()
    assert [(each["index"], each["text"]) for each in body["choices"]] == list(enumerate(["one", "two"] * 2))
    assert read_sources(generator) == [between(generator, "Once"), between(generator, "hello")]


async def test_token_ids_are_read_as_they_are(generator: GenerationServer) -> None:
    assert (await complete(generator, [5, 6, 7])).json()["usage"]["prompt_tokens"] == 3
    assert read_sources(generator) == [[5, 6, 7]]
    assert ForcedBegin(CODES["de_DE"]) in params_of(generator).processors


async def test_a_stop_string_ends_it(generator: GenerationServer) -> None:
    generator.translator_engine.answers = [generator.encode("the world. Stop here, please!")]
    (choice,) = (await complete(generator, stop=" Stop", max_tokens=40)).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("the world.", "stop")


async def test_logprobs(generator: GenerationServer) -> None:
    ids = generator.encode(" the world")
    generator.translator_engine.answers = [[*ids, EOS]]
    (choice,) = (await complete(generator, logprobs=1)).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx([find_logprob(token_id) for token_id in (*ids, EOS)])
    assert choice["logprobs"]["text_offset"][0] == 0


async def test_a_stream_says_the_same(generator: GenerationServer) -> None:
    generator.translator_engine.answers = [[CODES["de_DE"], *generator.encode(" the world"), EOS]]
    events = read_events(await complete(generator, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == " the world"
    assert len(events) > 2 and events[-1]["usage"]["prompt_tokens"] == len(between(generator, "hello"))


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"echo": True}, "echo", "go on from the prompt"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"max_tokens": 64}, "max_tokens", "writes at most 63 tokens"),
        ({"min_tokens": 20}, "min_tokens", "lower it or raise max_tokens"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"target_language": "fr"}, "target_language", "'fr' is not known"),
        ({"use_beam_search": True, "stream": True}, "stream", "known at the end"),
        ({"prompt": "Once " * 200}, "prompt", "tokens"),
        ({"model": "writer", "target_language": "de"}, "target_language", "is for translators"),
        ({"logit_bias": {"9999": 1}}, "logit_bias", "ids of this model"),
    ],
)
async def test_what_cannot_be_is_refused(
    generator: GenerationServer, fields: dict[str, Any], param: str, message: str
) -> None:
    response = await complete(generator, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert message in error["message"]
    generator.check_idle()


async def test_the_only_model_that_can_needs_no_name(generator: GenerationServer) -> None:
    del generator.state.models["ids"]
    assert (await complete(generator, model=None)).json()["model"] == "writer", "who goes on from prompts goes before"
    del generator.state.models["writer"]
    assert (await complete(generator, model=None)).json()["model"] == "translator"


class TestWords:
    """Of T5, whose languages are told in words."""

    WORDS = Languages(TranslationInfo("words", task_prefixes={"translation_en_to_de": "hello: "}))

    @pytest.fixture
    def t5(self, generator: GenerationServer) -> GenerationServer:
        object.__setattr__(generator.state.models["translator"], "languages", self.WORDS)
        return generator

    @pytest.mark.parametrize(("fields", "read"), [({}, "world"), ({"target_language": "de"}, "hello: world")])
    async def test_they_stand_before_the_text(self, t5: GenerationServer, fields: dict[str, str], read: str) -> None:
        await complete(t5, "world", **fields)
        assert read_sources(t5) == [[BOS, *t5.encode(read)]]

    async def test_not_before_token_ids(self, t5: GenerationServer) -> None:
        response = await complete(t5, [5, 6], target_language="de")
        assert response.json()["error"]["param"] == "target_language"
