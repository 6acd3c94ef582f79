"""`/v1/completions`: what comes back for what is right."""

from typing import Any

import pytest
from conftest import MakeGenerator
from fake_generator import BOS, CONTEXT, EOS, GenerationServer, find_logprob, read_events

from server.text.detokenizer import Detokenizer
from server.wire.processors import BadWords, LogitBias, MinTokens

pytestmark = pytest.mark.anyio


async def test_a_text(generator: GenerationServer) -> None:
    generator.say(" a time")
    generator.engine.num_cached_tokens = 2
    body = (await generator.complete("Once upon")).json()
    prompt_ids = [BOS, *generator.encode("Once upon")]
    num_tokens = len(generator.engine.answers[0])
    assert body["id"].startswith("cmpl-") and isinstance(body["created"], int)
    assert (body["object"], body["model"]) == ("text_completion", "writer")
    assert body["choices"] == [{"index": 0, "text": " a time", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == {
        "prompt_tokens": len(prompt_ids),
        "completion_tokens": num_tokens,
        "total_tokens": len(prompt_ids) + num_tokens,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert generator.engine.jobs[0].prompt == prompt_ids
    generator.check_idle()


async def test_defaults(generator: GenerationServer) -> None:
    body = {"model": "writer", "prompt": "Once"}
    assert (await generator.client.post("/v1/completions", json=body)).status_code == 200
    params = generator.engine.params
    assert (params.max_tokens, params.num_sequences, params.beam_width, params.early_stopping) == (16, 1, 0, False)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
    assert (params.num_logprobs, params.num_prompt_logprobs, params.grammar) == (-1, -1, ("", ""))
    assert params.stop_token_ids == (EOS,) and params.processors == ()
    await generator.client.post("/v1/completions", json=body)
    assert generator.engine.params.seed is params.seed is None, "a new one for each prompt"


async def test_every_field_gets_to_the_engine(make_generator: MakeGenerator) -> None:
    generator = make_generator(http={"allow_priority": True})
    fields: dict[str, Any] = {
        "max_tokens": 9,
        "min_tokens": 3,
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 10**9,
        "min_p": 0.1,
        "seed": -7,
        "presence_penalty": 1,
        "frequency_penalty": -2,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -100, "6": 2.5},
        "stop_token_ids": [9, EOS, 9],
        "logprobs": 3,
        "priority": -1,
        "user": "me",
        "no_such_field": True,
    }
    assert (await generator.complete(**fields)).status_code == 200
    params = generator.engine.params
    assert (params.max_tokens, params.num_sequences, params.seed) == (9, 2, -7)
    assert (params.temperature, params.top_p, params.min_p) == (0.5, 0.9, 0.1)
    assert params.top_k == generator.raw.get_vocab_size()
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1.0, -2.0, 1.1)
    assert params.processors == (LogitBias((5, 6), (-100.0, 2.5)), MinTokens(3))
    assert params.stop_token_ids == (9, EOS)
    assert (params.num_logprobs, params.num_prompt_logprobs) == (3, -1)
    assert generator.engine.jobs[-1].job.priority == -1


async def test_null_is_as_good_as_absent(generator: GenerationServer) -> None:
    names = ["n", "best_of", "temperature", "stop", "logprobs", "echo", "stream", "stream_options", "suffix", "seed"]
    assert (await generator.complete(**dict.fromkeys([*names, "logit_bias", "response_format", "regex"]))).is_success


@pytest.mark.parametrize("prompt", [[5, 6, 7], "ids", [[5, 6, 7]]])
async def test_token_ids_are_taken_as_they_are(generator: GenerationServer, prompt: Any) -> None:
    prompt = prompt if prompt != "ids" else [[5, 6, 7]]
    assert (await generator.complete(prompt)).json()["usage"]["prompt_tokens"] == 3
    assert generator.engine.jobs[0].prompt == [5, 6, 7]


async def test_several_prompts_and_several_answers(generator: GenerationServer) -> None:
    generator.say(" one", " two")
    body = (await generator.complete(["Once", "hello"], n=2)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == [" one", " two", " one", " two"]
    prompts = [[BOS, *generator.encode(text)] for text in ("Once", "hello")]
    (job,) = generator.engine.jobs
    assert job.prompts == prompts
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert job.params.seed is None, "prompts do not share their random numbers"
    generator.check_idle()


async def test_a_given_seed_is_every_prompts(generator: GenerationServer) -> None:
    await generator.complete(["Once", "hello"], seed=5)
    assert generator.engine.params.seed == 5


async def test_the_best_of_several(generator: GenerationServer) -> None:
    """By the logprob per token: the fake's are the better the smaller a token's id modulo 7."""
    generator.engine.answers = [[12, 13, EOS], [14, 15, EOS], [19, 20, EOS]]
    body = (await generator.complete(n=2, best_of=3, return_token_ids=True)).json()
    means = {tuple(ids): sum(map(find_logprob, ids)) / 3 for ids in generator.engine.answers}
    expected = sorted(means, key=lambda ids: -means[ids])[:2]
    assert [tuple(choice["token_ids"]) for choice in body["choices"]] == expected
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert all(choice["logprobs"] is None for choice in body["choices"]), "nobody asked for them"
    assert body["usage"]["completion_tokens"] == 9, "all that were generated"


async def test_length_is_a_reason_to_end(generator: GenerationServer) -> None:
    generator.say("Once upon a time there was a little girl")
    choice = (await generator.complete(max_tokens=3)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["text"] == generator.raw.decode(generator.engine.answers[0][:3])


@pytest.mark.parametrize("is_included", [False, True])
async def test_stop_strings(generator: GenerationServer, is_included: bool) -> None:
    generator.say("hello to the END of the story")
    fields = {"stop": ["nowhere", "e END o"], "include_stop_str_in_output": is_included}
    body = (await generator.complete(**fields)).json()
    text = "hello to the END o" if is_included else "hello to th"
    assert body["choices"][0] == {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
    assert generator.engine.num_cancelled == 1
    assert body["usage"]["completion_tokens"] < len(generator.engine.answers[0]), "what came later does not count"
    generator.check_idle()


async def test_stop_tokens_are_no_text(generator: GenerationServer) -> None:
    fox = generator.raw.token_to_id("fox") or generator.encode("x")[0]
    generator.engine.answers = [[*generator.encode("hello"), fox, 9]]
    body = (await generator.complete(stop_token_ids=[fox])).json()
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("hello", "stop")
    body = (await generator.complete(stop_token_ids=[fox], include_stop_str_in_output=True)).json()
    assert body["choices"][0]["text"] == "hello" + generator.raw.decode([fox])


async def test_special_tokens_are_no_text_unless_asked_for(generator: GenerationServer) -> None:
    generator.engine.answers = [[*generator.encode("hello"), 3, EOS, 9]]
    body = (await generator.complete(ignore_eos=True, skip_special_tokens=False, max_tokens=50)).json()
    assert body["choices"][0]["text"] == "hello<|im_start|></s>" + generator.raw.decode([9])
    assert generator.engine.params.stop_token_ids == ()


async def test_bad_words_with_and_without_blank(generator: GenerationServer) -> None:
    await generator.complete(bad_words=["girl", " hello"])
    (processor,) = generator.engine.params.processors
    assert isinstance(processor, BadWords)
    texts = {generator.raw.decode(list(word)) for word in processor.words}
    assert texts == {"girl", " girl", "hello", " hello"}


async def test_beam_search(generator: GenerationServer) -> None:
    generator.say("one", "two")
    fields = {"use_beam_search": True, "beam_width": 4, "n": 2, "length_penalty": 0.5, "early_stopping": True}
    body = (await generator.complete(**fields, temperature=0)).json()
    assert [choice["text"] for choice in body["choices"]] == ["one", "two"]
    params = generator.engine.params
    assert (params.beam_width, params.num_sequences, params.length_penalty, params.early_stopping) == (4, 2, 0.5, True)
    await generator.complete(use_beam_search=True, best_of=3, early_stopping="never")
    params = generator.engine.params
    assert (params.beam_width, params.num_sequences, params.early_stopping) == (3, 1, "never")


@pytest.mark.parametrize(
    ("given", "grammar"),
    [
        ({"type": "text"}, ("", "")),
        ({"type": "json_object"}, ("json_schema", '{"type": "object"}')),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}},
         ("json_schema", '{"type": "integer"}')),
    ],
)  # fmt: skip
async def test_response_format(generator: GenerationServer, given: Any, grammar: Any) -> None:
    assert (await generator.complete(response_format=given)).is_success
    assert generator.engine.params.grammar == grammar


async def test_logprobs(generator: GenerationServer) -> None:
    generator.say("hello é", end=None)
    ids = generator.engine.answers[0]
    logprobs = (await generator.complete(logprobs=2, max_tokens=len(ids))).json()["choices"][0]["logprobs"]
    texts = generator.tokenizer.texts
    assert logprobs["tokens"] == [texts.name(token_id) for token_id in ids]
    assert logprobs["token_logprobs"] == [find_logprob(token_id) for token_id in ids]
    assert logprobs["top_logprobs"][0] == {
        texts.name(10): -0.55, texts.name(11): -0.6000000000000001, texts.name(ids[0]): find_logprob(ids[0])
    }  # fmt: skip
    assert logprobs["text_offset"][0] == 0 and logprobs["text_offset"][-1] in (5, 6)
    only = (await generator.complete(logprobs=0)).json()["choices"][0]["logprobs"]
    assert only["top_logprobs"][0] == {texts.name(ids[0]): find_logprob(ids[0])}


async def test_echo(generator: GenerationServer) -> None:
    generator.say(" a time")
    assert (await generator.complete("Once upon", echo=True)).json()["choices"][0]["text"] == "Once upon a time"
    ids = generator.encode("Once upon")
    assert (await generator.complete(ids, echo=True)).json()["choices"][0]["text"] == "Once upon a time"


async def test_what_lm_evaluation_harness_asks_for(generator: GenerationServer) -> None:
    """The prompt's logprobs in the places of its tokens, none for the first; with max_tokens 0 nothing else."""
    prompt = generator.encode("Once upon a time")
    fields = {"echo": True, "logprobs": 1, "temperature": 0, "seed": 1234}
    choice = (await generator.complete([prompt, prompt[:3]], max_tokens=0, **fields)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Once upon a time", "length")
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == [None, *map(find_logprob, prompt[1:])]
    assert logprobs["top_logprobs"][0] is None and len(logprobs["top_logprobs"]) == len(prompt)
    assert "".join(logprobs["tokens"]) == "Once upon a time"
    text = choice["text"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert text[offset:].startswith(token)

    generator.say(" there", end=None)
    choice = (await generator.complete([prompt], max_tokens=1, **fields)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"]) == len(prompt) + 1
    assert logprobs["text_offset"][-1] == len("Once upon a time")
    # What it computes of them:
    assert sum(logprobs["token_logprobs"][2:-1]) == pytest.approx(sum(map(find_logprob, prompt[2:])))
    assert all(
        max(top.values()) >= own
        for own, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True)
    )


async def test_a_prompt_is_read_once_for_all_of_its_answers(
    generator: GenerationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    primed: list[list[int]] = []
    prime = Detokenizer.prime

    def note(detokenizer: Detokenizer, prompt: list[int]) -> None:
        primed.append(prompt)
        prime(detokenizer, prompt)

    monkeypatch.setattr(Detokenizer, "prime", note)
    assert len((await generator.complete([[5, 6], [7]], n=8)).json()["choices"]) == 16
    assert primed == [[5, 6], [7]]


async def test_prompt_and_answer_fill_the_context(generator: GenerationServer) -> None:
    assert (await generator.complete([5] * (CONTEXT - 4), max_tokens=4)).is_success
    assert (await generator.complete([5] * (CONTEXT - 4), max_tokens=None)).is_success
    assert generator.engine.params.max_tokens == 4, "the default takes what is left"
    assert (await generator.complete([5] * CONTEXT, max_tokens=0, echo=True)).is_success


async def test_a_model_without_a_tokenizer(generator: GenerationServer) -> None:
    body = (await generator.complete([5, 6], model="ids", logprobs=1)).json()
    choice = body["choices"][0]
    assert (choice["text"], choice["token_ids"], choice["finish_reason"]) == ("", [7, 8, EOS], "stop")
    assert choice["logprobs"]["tokens"] == ["token_id:7", "token_id:8", f"token_id:{EOS}"]
    events = read_events(await generator.complete([5, 6], model="ids", stream=True))
    assert [event["choices"][0]["token_ids"] for event in events] == [[7], [8], [EOS]]


async def test_the_metrics(make_generator: MakeGenerator) -> None:
    generator = make_generator()
    generator.say("Once upon a time", "hello")
    usage = (await generator.complete(n=2)).json()["usage"]
    labels = {"route": "/v1/completions", "model": "writer"}
    assert generator.count(outcome="ok", **labels) == 1
    assert generator.count("prompt_tokens_total", **labels) == usage["prompt_tokens"]
    assert generator.count("generated_tokens_total", **labels) == usage["completion_tokens"]
    assert generator.count("time_to_first_token_seconds_count", **labels) == 2
    assert generator.count("inter_token_seconds_count", **labels) == usage["completion_tokens"] - 2
