"""Hugging Face's inference payloads for encoder-decoders: translations, summaries, and what else they write."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
import transformers
from fake_generator import BOS, EOS, LANGUAGES, GenerationServer, describe_translator

from models.translation import TranslationInfo
from server.http.deadline import TIMEOUT_HEADER
from server.tasks.text2text import Purpose, find_purpose
from server.text.clean_up import clean_up
from server.text.languages import Languages
from server.wire.generation import GenerationParams
from server.wire.processors import ForcedBegin, MinTokens, NoRepeatNgrams

pytestmark = pytest.mark.anyio

CODES = LANGUAGES.codes
WORDS = {"summarization": "hello: ", "translation_en_to_de": "world: "}


async def infer(server: GenerationServer, inputs: Any = "hello", **parameters: Any) -> httpx.Response:
    body = {"inputs": inputs, "parameters": parameters} if parameters else {"inputs": inputs}
    return await server.client.post("/models/translator", json=body)


def say(server: GenerationServer, *texts: str) -> None:
    server.translator_engine.answers = [[*server.encode(text), EOS] for text in texts]


def params_of(server: GenerationServer) -> GenerationParams:
    return server.translator_engine.params


def become(server: GenerationServer, architecture: str, *tasks: str, has_words: bool = False) -> None:
    """The model is one of that family, whose config.json has settings for these tasks."""
    model = server.state.models["translator"]
    prefixes = {name: WORDS[name] for name in tasks} if has_words else {}
    languages = Languages(TranslationInfo("words" if has_words else "none", "", "", prefixes, tasks))
    object.__setattr__(model, "info", replace(model.info, architecture=architecture))
    object.__setattr__(model, "languages", languages)


def read_source(server: GenerationServer) -> list[int]:
    found: list[int] = server.translator_engine.jobs[-1].job.inputs["source_ids"].row(0).tolist()
    return found


async def test_a_translation(generator: GenerationServer) -> None:
    say(generator, "the world")
    response = await infer(generator, src_lang="en_XX", tgt_lang="de_CH")
    assert response.json() == [{"translation_text": "the world"}]
    assert read_source(generator) == [CODES["en_XX"], *generator.encode("hello"), EOS]
    assert params_of(generator).processors == (ForcedBegin(CODES["de_CH"]), NoRepeatNgrams(3))
    generator.check_idle()


async def test_what_is_absent_is_as_the_directory_says(generator: GenerationServer) -> None:
    await infer(generator, "Hello world. Stop!")
    params = params_of(generator)
    assert (params.max_tokens, params.beam_width, params.num_sequences, params.temperature) == (19, 2, 1, 0.0)
    assert generator.translator_engine.jobs[0].job.num_inputs == 1, "pipelines do not cut texts into sentences"


async def test_every_parameter_gets_to_the_engine(generator: GenerationServer) -> None:
    given: dict[str, Any] = {
        "max_new_tokens": 9,
        "max_length": 30,
        "min_new_tokens": 2,
        "min_length": 7,
        "num_beams": 4,
    }
    given |= {"num_return_sequences": 3, "length_penalty": 0.5, "early_stopping": True, "repetition_penalty": 2.0}
    await infer(generator, **given, no_repeat_ngram_size=0)
    params = params_of(generator)
    assert (params.max_tokens, params.beam_width, params.num_sequences) == (9, 4, 3)
    assert (params.length_penalty, params.early_stopping, params.repetition_penalty) == (0.5, True, 2.0)
    assert params.processors == (ForcedBegin(CODES["de_DE"]), MinTokens(2))


async def test_lengths_count_the_first_token(generator: GenerationServer) -> None:
    await infer(generator, max_length=10, min_length=4)
    assert params_of(generator).max_tokens == 9 and MinTokens(3) in params_of(generator).processors


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"do_sample": True}, (1.0, 50, 1.0, None)),
        ({"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 7}, (0.5, 3, 0.9, 7)),
        ({"temperature": 0.5, "top_k": 3, "top_p": 0.9}, (0.0, 0, 1.0, None)),
    ],
)
async def test_drawing(generator: GenerationServer, given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    await infer(generator, **given)
    params = params_of(generator)
    assert (params.temperature, params.top_k, params.top_p, params.seed) == expected
    assert (params.beam_width == 0) == bool(given.get("do_sample"))


async def test_generate_parameters_are_parameters(generator: GenerationServer) -> None:
    await infer(generator, generate_parameters={"max_new_tokens": 5, "num_beams": 3})
    assert (params_of(generator).max_tokens, params_of(generator).beam_width) == (5, 3)


async def test_lists_are_answered_with_lists(generator: GenerationServer) -> None:
    say(generator, "one", "two")
    one, two = {"translation_text": "one"}, {"translation_text": "two"}
    assert (await infer(generator, ["a", "b"])).json() == [one, one]
    assert (await infer(generator, "a", num_return_sequences=2)).json() == [one, two]
    assert (await infer(generator, ["a", "b"], num_return_sequences=2)).json() == [[one, two]] * 2


async def test_blanks_before_signs(generator: GenerationServer) -> None:
    say(generator, "hello , world .")
    assert (await infer(generator)).json() == [{"translation_text": "hello , world ."}]
    assert (await infer(generator, clean_up_tokenization_spaces=True)).json() == [{"translation_text": "hello, world."}]


@pytest.mark.parametrize("text", ["it 's a . b ? c !", "do n't we ' re ' x", "I 'm , they 've ... and 're"])
def test_blanks_as_transformers_takes_them_out(text: str) -> None:
    clean = transformers.PreTrainedTokenizerFast.clean_up_tokenization
    assert clean_up(text) == clean(None, text)


async def test_long_texts_are_cut_where_that_is_wanted(generator: GenerationServer) -> None:
    long = "Once upon a time. " * 60
    assert (await infer(generator, long)).status_code == 400
    assert (await infer(generator, long, truncation="do_not_truncate")).status_code == 400
    assert (await infer(generator, long, truncation="longest_first")).status_code == 200
    assert len(read_source(generator)) == 128


async def test_it_has_the_time_that_generations_have(generator: GenerationServer) -> None:
    body = {"inputs": "hello"}
    for headers, least in (({}, 500), ({TIMEOUT_HEADER.decode(): "9000"}, 0)):
        await generator.client.post("/models/translator", json=body, headers=headers)
        assert least < generator.translator_engine.jobs[-1].job.timeout_s < least + 100


@pytest.mark.parametrize(
    ("architecture", "tasks", "has_words", "inputs", "key"),
    [
        ("PegasusForConditionalGeneration", (), False, "hello", "summary_text"),
        ("BartForConditionalGeneration", ("summarization",), False, "hello", "summary_text"),
        ("BartForConditionalGeneration", (), False, "hello", "generated_text"),
        ("T5ForConditionalGeneration", ("summarization",), True, "hello: hello", "summary_text"),
        ("T5ForConditionalGeneration", tuple(WORDS), True, "hello", "generated_text"),
        ("T5ForConditionalGeneration", ("translation_en_to_de",), True, "world: hello", "translation_text"),
        ("MarianMTModel", (), False, "hello", "translation_text"),
    ],
)
async def test_what_a_model_is_for(
    generator: GenerationServer, architecture: str, tasks: tuple[str, ...], has_words: bool, inputs: str, key: str
) -> None:
    become(generator, architecture, *tasks, has_words=has_words)
    say(generator, "the end")
    assert (await infer(generator)).json() == [{key: "the end"}]
    assert read_source(generator) == [BOS, *generator.encode(inputs)]


async def test_who_names_a_language_wants_a_translation(generator: GenerationServer) -> None:
    become(generator, "T5ForConditionalGeneration", *WORDS, has_words=True)
    assert "translation_text" in (await infer(generator, tgt_lang="de", src_lang="en")).json()[0]
    assert read_source(generator) == [BOS, *generator.encode("world: hello")]


@pytest.mark.parametrize(
    ("inputs", "given", "message"),
    [
        ("", {}, "inputs must not be empty"),
        (["a", " "], {}, "inputs[1] must not be empty"),
        ("a", {"tgt_lang": "fr"}, "tgt_lang 'fr' is not known"),
        ("a", {"max_new_tokens": 64}, "max_new_tokens is 64; this model writes at most 63"),
        ("a", {"max_length": 65}, "max_length less 1 is 64; this model writes at most 63"),
        ("a", {"min_length": 21}, "min_length less 1 is 20, and at most 19"),
        ("a", {"num_beams": 2, "num_return_sequences": 3}, "raise num_beams to at least num_return_sequences"),
        ("a", {"num_beams": 2, "do_sample": True}, "do_sample draws tokens, and num_beams over 1 searches"),
        ("a", {"truncation": "only_second"}, "truncation"),
        ("a", {"generate_parameters": {"num_beams": 0}}, "num_beams"),
        ({"text": "a", "text_pair": "b"}, {}, "inputs must be a text or a list of texts"),
    ],
)
async def test_what_is_wrong_is_told(
    generator: GenerationServer, inputs: Any, given: dict[str, Any], message: str
) -> None:
    response = await infer(generator, inputs, **given)
    assert response.status_code == 400 and message in response.json()["error"], response.text
    generator.check_idle()


async def test_the_servers_own_address(generator: GenerationServer) -> None:
    say(generator, "one")
    response = await generator.client.post("/", json={"inputs": "a", "model": "translator"})
    assert response.json() == [{"translation_text": "one"}]


@pytest.mark.parametrize(
    ("architecture", "tasks", "expected"),
    [
        ("MBartForConditionalGeneration", ("summarization",), "translation"),
        ("T5ForConditionalGeneration", ("translation_en_to_de", "translation_en_to_fr"), "translation"),
        ("T5ForConditionalGeneration", ("translation_en_to_de", "summarization"), "text2text-generation"),
        ("T5ForConditionalGeneration", ("something",), "text2text-generation"),
    ],
)
def test_purposes(architecture: str, tasks: tuple[str, ...], expected: Purpose) -> None:
    info = replace(describe_translator(9), architecture=architecture)
    assert find_purpose(info, TranslationInfo("none", task_names=tasks)) == expected
