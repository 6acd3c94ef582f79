"""`/v1/translate` and `/v1/summarize`: what encoder-decoders are asked, and what comes back."""

import re
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fake_generator import EOS, LANGUAGES, GenerationServer, describe_translator, read_events

from server.errors import EngineFailure, InvalidField
from server.http.writing_stream import GrowingText, Piece
from server.tasks.text2text import DecodingWish, settle_params
from server.text.languages import Languages
from server.text.sentences import split_text
from server.wire.generation import GenerationParams
from server.wire.processors import ForcedBegin, MinTokens, NoRepeatNgrams, NoSourceNgrams

pytestmark = pytest.mark.anyio

CODES = LANGUAGES.codes


async def translate(server: GenerationServer, text: Any = "hello", **fields: Any) -> httpx.Response:
    return await server.client.post("/v1/translate", json={"text": text, **fields})


def params_of(server: GenerationServer) -> GenerationParams:
    return server.translator_engine.params


def say(server: GenerationServer, *texts: str) -> None:
    server.translator_engine.answers = [[CODES["de_DE"], *server.encode(text), EOS] for text in texts]


async def test_a_text(generator: GenerationServer) -> None:
    say(generator, " the world")
    body = (await translate(generator)).json()
    assert body["translations"] == [{"index": 0, "text": " the world", "finish_reason": "stop"}]
    (job,) = generator.translator_engine.jobs
    source = job.job.inputs["source_ids"].row(0).tolist()
    assert source == [CODES["en_XX"], *generator.encode("hello"), EOS] and job.prompt == [EOS]
    num_written = len(generator.translator_engine.answers[0])
    assert body["usage"] == {
        "source_tokens": len(source),
        "completion_tokens": num_written,
        "total_tokens": len(source) + num_written,
    }
    generator.check_idle()


async def test_what_is_left_out_is_as_the_directory_says(generator: GenerationServer) -> None:
    await translate(generator)
    params = params_of(generator)
    assert (params.max_tokens, params.beam_width, params.num_sequences, params.temperature) == (19, 2, 1, 0.0)
    assert (params.length_penalty, params.early_stopping, params.stop_token_ids) == (1.0, False, (EOS,))
    assert params.processors == (ForcedBegin(CODES["de_DE"]), NoRepeatNgrams(3))


async def test_every_field_gets_to_the_engine(generator: GenerationServer) -> None:
    fields = {"beam_width": 4, "n": 3, "max_tokens": 9, "min_tokens": 2, "length_penalty": 0.5, "repetition_penalty": 2}
    fields |= {
        "coverage_penalty": 0.25,
        "beam_groups": 2,
        "diversity_penalty": 0.5,
        "early_stopping": "never",
        "no_repeat_ngram_size": 0,
        "target_language": "de_CH",
    }
    assert (await translate(generator, **fields)).status_code == 200
    params = params_of(generator)
    assert (params.beam_width, params.num_sequences, params.max_tokens) == (4, 3, 9)
    assert (params.length_penalty, params.repetition_penalty, params.early_stopping) == (0.5, 2.0, "never")
    assert (params.coverage_penalty, params.beam_groups, params.diversity_penalty) == (0.25, 2, 0.5)
    assert params.processors == (ForcedBegin(CODES["de_CH"]), MinTokens(2))


async def test_drawing_has_no_beams(generator: GenerationServer) -> None:
    await translate(generator, temperature=0.7, top_k=5, top_p=0.5, seed=3)
    params = params_of(generator)
    assert (params.temperature, params.top_k, params.top_p, params.seed, params.beam_width) == (0.7, 5, 0.5, 3, 0)


async def test_sentences_become_a_text_again(generator: GenerationServer) -> None:
    say(generator, "the end.")
    body = (await translate(generator, ["Hello world. Stop!\n\nOnce.", "upon"])).json()
    assert [each["text"] for each in body["translations"]] == ["the end. the end.\n\nthe end.", "the end."]
    assert generator.translator_engine.jobs[0].job.num_inputs == 4


async def test_whole_texts_where_sentences_are_not_wanted(generator: GenerationServer) -> None:
    await translate(generator, "Hello world. Stop!", split_sentences=False)
    assert generator.translator_engine.jobs[0].job.num_inputs == 1


async def test_several_answers(generator: GenerationServer) -> None:
    say(generator, "one", "two")
    (found,) = (await translate(generator, "Hello world. Stop!", n=2)).json()["translations"]
    assert (found["text"], [each["text"] for each in found["alternatives"]]) == ("one", ["two"])


async def test_a_stream_tells_what_a_whole_answer_says(generator: GenerationServer) -> None:
    """A sentence at a time, each with the white space around it; then usage."""
    texts = ["Hello world. Stop!\n\nOnce. ", "upon"]
    say(generator, "the end.")
    whole = (await translate(generator, texts)).json()
    *events, last = read_events(await translate(generator, texts, stream=True))
    assert len(events) == 4 and all((each["object"], each["model"]) == ("chunk", "translator") for each in events)
    for index, translation in enumerate(whole["translations"]):
        own = [each for each in events if each["index"] == index]
        assert "".join(each["text"] for each in own) == translation["text"]
        assert [each["finish_reason"] for each in own] == [None] * (len(own) - 1) + ["stop"]
    assert last == {"object": "chunk", "model": "translator", "usage": whole["usage"]}
    generator.check_idle()


async def test_a_stream_of_a_summary(generator: GenerationServer) -> None:
    """It is whole. What fails before anything is told has a status of its own."""
    say(generator, "the world")
    body = {"text": "Once upon", "stream": True}
    generator.translator_engine.error, generator.translator_engine.error_after = EngineFailure("gone"), 2
    response = await generator.client.post("/v1/summarize", json=body)
    assert response.status_code == 500 and "gone" in response.json()["error"]["message"]
    generator.translator_engine.error = None
    first, last = read_events(await generator.client.post("/v1/summarize", json=body))
    assert (first["index"], first["finish_reason"], list(last)) == (0, "stop", ["object", "model", "usage"])
    generator.check_idle()


async def test_streams_say_what_was_cut(generator: GenerationServer) -> None:
    say(generator, "the world")
    *events, _ = read_events(await translate(generator, "Hello world. Stop!", max_tokens=2, stream=True))
    assert [each["finish_reason"] for each in events] == [None, "length"]


def test_sentences_wait_for_those_before_them() -> None:
    growing = GrowingText(7, split_text(" One. Two. Three. "))
    assert growing.add(2, "c", False) == []
    assert growing.add(0, "a", True) == [Piece(7, " a", is_last=False, is_cut=True)]
    assert growing.add(1, "b", False) == [
        Piece(7, " b", is_last=False, is_cut=True),
        Piece(7, " c ", is_last=True, is_cut=True),
    ]


async def test_answers_that_are_cut_say_so(generator: GenerationServer) -> None:
    say(generator, "the world")
    (found,) = (await translate(generator, max_tokens=2)).json()["translations"]
    assert found["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"text": " "}, "text", "text is empty"),
        ({"text": ["a", ""]}, "text", "text\\[1\\] is empty; leave it out"),
        ({"text": []}, "text", "must not be empty"),
        ({"target_language": "fr"}, "target_language", "'fr' is not known; this model knows de_CH, de_DE, en_XX"),
        (
            {"target_language": "de"},
            "target_language",
            "'de' could be several languages; this model knows de_CH, de_DE",
        ),
        ({"source_language": ""}, None, ""),
        ({"max_tokens": 64}, "max_tokens", "writes at most 63 tokens. Lower it"),
        ({"min_tokens": 20}, "min_tokens", "at most 19 tokens are written"),
        ({"beam_width": 2, "n": 3}, "beam_width", "raise beam_width to at least n"),
        ({"beam_width": 2, "temperature": 1}, "beam_width", "leave one of them out"),
        ({"coverage_penalty": 0.2, "beam_width": 1}, "coverage_penalty", "is for beam searches; set beam_width to 2"),
        ({"coverage_penalty": 0.2, "temperature": 1}, "coverage_penalty", "and no temperature, or leave coverage_pen"),
        ({"beam_width": 4, "beam_groups": 3, "diversity_penalty": 1}, "beam_groups", "a multiple of beam_groups"),
        ({"temperature": 1, "beam_groups": 2, "diversity_penalty": 1}, "beam_groups", "of 1 beams there cannot be"),
        ({"beam_width": 4, "beam_groups": 2}, "diversity_penalty", "groups without a penalty are all the same"),
        ({"beam_width": 4, "diversity_penalty": 1}, "diversity_penalty", "set beam_groups to 2 or more"),
        ({"coverage_penalty": -1}, "coverage_penalty", "greater than or equal to 0"),
        ({"stream": True, "n": 2}, "stream", "n asks for more; leave one of them out"),
        ({"split_sentences": True, "n": 2}, "split_sentences", "leave one of them out"),
        ({"text": "Once " * 200, "split_sentences": False}, "text", "tokens"),
        ({"model": "writer"}, "model", "its task is generate"),
    ],
)
async def test_what_is_wrong_is_told(
    generator: GenerationServer, fields: dict[str, Any], param: str | None, message: str
) -> None:
    response = await translate(generator, **({"text": "hello"} | fields))
    if param is None:
        assert response.status_code == 200
        return
    error = response.json()["error"]
    assert response.status_code in (400, 404) and error["param"] == param, error
    assert re.search(message, error["message"]), error
    generator.check_idle()


def test_a_directorys_least_gives_way_to_a_clients_most() -> None:
    """As where a summarizer for long texts is asked for a short one."""
    info = describe_translator(100)
    assert info.seq2seq is not None
    info = replace(info, seq2seq=replace(info.seq2seq, min_length=12))
    assert MinTokens(11) in settle_params(info, DecodingWish()).processors
    assert MinTokens(5) in settle_params(info, DecodingWish(max_tokens=5)).processors


def test_coverage_has_to_be_configured() -> None:
    info = describe_translator(100)
    assert info.seq2seq is not None
    info = replace(info, seq2seq=replace(info.seq2seq, has_coverage=False))
    with pytest.raises(InvalidField, match="start the server with coverage_penalty: true for this model") as raised:
        settle_params(info, DecodingWish(beam_width=2, coverage_penalty=0.2))
    assert raised.value.param == "coverage_penalty"


def test_a_directory_may_forbid_what_the_source_has() -> None:
    info = describe_translator(100)
    assert info.seq2seq is not None
    info = replace(info, seq2seq=replace(info.seq2seq, encoder_no_repeat_ngram_size=4))
    assert NoSourceNgrams(4) in settle_params(info, DecodingWish()).processors


async def test_a_summary(generator: GenerationServer) -> None:
    generator.translator_engine.answers = [[*generator.encode("the world"), EOS]]
    response = await generator.client.post("/v1/summarize", json={"text": "Once upon a time. " * 60, "truncate": True})
    assert response.json()["summaries"] == [{"index": 0, "text": "the world", "finish_reason": "stop"}]
    (job,) = generator.translator_engine.jobs
    assert job.job.num_tokens - 1 == 128 and not any(isinstance(each, ForcedBegin) for each in job.params.processors)


class TestLanguages:
    def test_codes_by_their_beginning(self) -> None:
        languages = Languages(LANGUAGES.info, {"eng_Latn": 7, "deu_Latn": 8}, EOS)
        instruction = languages.instruct("ENG", "deu-latn")
        assert instruction.around is not None and instruction.around[0].tolist() == [7]
        assert instruction.forced_begin == 8
