"""Whatever a client asks of a language model: a 400 that names the field, and the next request is served."""

from typing import Any

import pytest
from conftest import MakeGenerator
from fake_generator import CONTEXT, GenerationServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_bad_input import JSON, check_openai_error

from server.errors import Unservable
from server.tasks import generate

pytestmark = pytest.mark.anyio

BEAM = {"use_beam_search": True}

BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature below 0": ({"temperature": -0.1}, "temperature"),
    "temperature that is no temperature": ({"temperature": 1e39}, "temperature"),
    "repetition_penalty of nothing": ({"repetition_penalty": 1e-300}, "repetition_penalty"),
    "length_penalty beyond all bounds": (BEAM | {"length_penalty": 2000}, "length_penalty"),
    "too many stop tokens": ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
    "too many bad words": ({"bad_words": ["a"] * 257}, "bad_words"),
    "too many biases": ({"logit_bias": {str(number): 1 for number in range(1025)}}, "logit_bias"),
    "min_tokens with a grammar": ({"min_tokens": 2, "regex": "yes|no"}, "min_tokens"),
    "ignore_eos with a grammar": ({"ignore_eos": True, "regex": "yes|no"}, "ignore_eos"),
    "temperature of text": ({"temperature": "1"}, "temperature"),
    "temperature of a boolean": ({"temperature": True}, "temperature"),
    "top_p under 0": ({"top_p": -0.1}, "top_p"),
    "top_p over 1": ({"top_p": 1.5}, "top_p"),
    "top_k below -1": ({"top_k": -2}, "top_k"),
    "top_k of a fraction": ({"top_k": 1.5}, "top_k"),
    "min_p over 1": ({"min_p": 1.1}, "min_p"),
    "presence penalty": ({"presence_penalty": 2.1}, "presence_penalty"),
    "frequency penalty": ({"frequency_penalty": -2.1}, "frequency_penalty"),
    "repetition penalty": ({"repetition_penalty": 0}, "repetition_penalty"),
    "max_tokens below 0": ({"max_tokens": -1}, "max_tokens"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens"),
    "min_tokens over max_tokens": ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
    "n of 0": ({"n": 0}, "n"),
    "n too large": ({"n": 129}, "n"),
    "best_of below n": ({"n": 3, "best_of": 2}, "best_of"),
    "best_of in a stream": ({"n": 1, "best_of": 2, "stream": True}, "best_of"),
    "seed too large": ({"seed": 2**63}, "seed"),
    "seed of a fraction": ({"seed": 0.5}, "seed"),
    "17 stops": ({"stop": ["x"] * 17}, "stop"),
    "an empty stop": ({"stop": ["x", ""]}, "stop"),
    "stop of a number": ({"stop": 5}, "stop"),
    "stop of numbers": ({"stop": ["x", 5]}, "stop"),
    "stop token outside the vocabulary": ({"stop_token_ids": [5, 10**6]}, "stop_token_ids"),
    "stop token below 0": ({"stop_token_ids": [-1]}, "stop_token_ids"),
    "stop token of text": ({"stop_token_ids": ["5"]}, "stop_token_ids"),
    "bias outside the vocabulary": ({"logit_bias": {"1000000": 1}}, "logit_bias"),
    "bias of a negative token": ({"logit_bias": {"-5": 1}}, "logit_bias"),
    "bias of a word": ({"logit_bias": {"hello": 1}}, "logit_bias"),
    "bias too large": ({"logit_bias": {"5": 101}}, "logit_bias"),
    "bias of text": ({"logit_bias": {"5": "1"}}, "logit_bias"),
    "bias of a list": ({"logit_bias": [5]}, "logit_bias"),
    "an empty bad word": ({"bad_words": [""]}, "bad_words"),
    "bad words of a text": ({"bad_words": "girl"}, "bad_words"),
    "stream options without stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "stream options of a boolean": ({"stream": True, "stream_options": True}, "stream_options"),
    "include_usage of text": (
        {"stream": True, "stream_options": {"include_usage": "yes"}},
        "stream_options.include_usage",
    ),
    "stream of text": ({"stream": "yes"}, "stream"),
    "a beam width alone": ({"beam_width": 3}, "beam_width"),
    "a length penalty alone": ({"length_penalty": 0.5}, "length_penalty"),
    "early stopping alone": ({"early_stopping": True}, "early_stopping"),
    "beams in a stream": (BEAM | {"stream": True}, "stream"),
    "early stopping of a word": (BEAM | {"early_stopping": "always"}, "early_stopping"),
    "beams by chance": (BEAM | {"temperature": 0.7}, "temperature"),
    "beams of the nucleus": (BEAM | {"top_p": 0.9}, "top_p"),
    "beams of the smallest nucleus": (BEAM | {"top_p": 0}, "top_p"),
    "more answers than beams": (BEAM | {"beam_width": 2, "n": 3}, "beam_width"),
    "unknown response format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "response format of text": ({"response_format": "json_object"}, "response_format"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    "a schema of text": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
        "response_format.json_schema",
    ),
    "regex of a list": ({"regex": ["a"]}, "regex"),
    "two grammars": ({"regex": "a", "response_format": {"type": "json_object"}}, "regex"),
    "a priority of text": ({"priority": "high"}, "priority"),
    "wrong kind of model field": ({"model": 5}, "model"),
}

BAD_COMPLETIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "empty prompt": ({"prompt": ""}, "prompt", "empty_input"),
    "no prompts": ({"prompt": []}, "prompt", "empty_input"),
    "an empty prompt among others": ({"prompt": ["x", ""]}, "prompt", "empty_input"),
    "no token ids": ({"prompt": [[5], []]}, "prompt", "empty_input"),
    "a token outside the vocabulary": ({"prompt": [10**6]}, "prompt", "invalid_value"),
    "prompt of a number": ({"prompt": 5}, "prompt", "invalid_value"),
    "no prompt": ({"prompt": None}, "prompt", "invalid_value"),
    "prompt too long": ({"prompt": [5] * (CONTEXT + 1)}, "prompt", "context_length_exceeded"),
    "a text too long": ({"prompt": "a b " * CONTEXT}, "prompt", "context_length_exceeded"),
    "a megabyte": ({"prompt": "a b " * 250_000}, "prompt", "context_length_exceeded"),
    "no room for one": ({"prompt": [5] * CONTEXT, "max_tokens": None}, "prompt", "context_length_exceeded"),
    "no room": ({"prompt": [5] * (CONTEXT - 5), "max_tokens": 6}, "prompt", "context_length_exceeded"),
    "no room for the least": ({"min_tokens": 17, "max_tokens": None}, "min_tokens", "invalid_value"),
    "suffix": ({"suffix": "the end"}, "suffix", "invalid_value"),
    "logprobs of a boolean": ({"logprobs": True}, "logprobs", "invalid_value"),
    "too many logprobs": ({"logprobs": 21}, "logprobs", "invalid_value"),
    "too many prompts": ({"prompt": ["x"] * 5}, "prompt", "invalid_value"),
    "too many answers": ({"prompt": ["x"] * 3, "n": 2}, "prompt", "invalid_value"),
    "stop without texts": ({"model": "ids", "prompt": [5], "stop": "x"}, "stop", "invalid_value"),
    "bad words without texts": ({"model": "ids", "prompt": [5], "bad_words": ["x"]}, "bad_words", "invalid_value"),
    "text without texts": ({"model": "ids"}, "prompt", "invalid_value"),
}

USER = {"role": "user", "content": "hello"}

BAD_CHATS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no messages": ({"messages": []}, "messages", "empty_input"),
    "messages of a text": ({"messages": "hello"}, "messages", "invalid_value"),
    "a message of text": ({"messages": ["hello"]}, "messages", "invalid_value"),
    "missing": ({"messages": None}, "messages", "invalid_value"),
    "unknown role": ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role", "invalid_value"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_value"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
    "content of a number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_value"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0]",
        "invalid_value",
    ),
    "a part of text": ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "invalid_value"),
    "a part without text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "invalid_value",
    ),
    "a call of a tool": (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]},
        "messages[0].tool_calls",
        "invalid_value",
    ),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "invalid_value"),
    "a choice of tools": ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    "functions": ({"functions": [{"name": "f"}]}, "functions", "invalid_value"),
    "top_logprobs without logprobs": ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    "too many top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    "logprobs of a number": ({"logprobs": 2}, "logprobs", "invalid_value"),
    "two maxima": ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "invalid_value"),
    "min_tokens over the new maximum": ({"min_tokens": 6, "max_completion_tokens": 5}, "min_tokens", "invalid_value"),
    "no room": ({"max_completion_tokens": CONTEXT}, "messages", "context_length_exceeded"),
    "too long": ({"messages": [{"role": "user", "content": "a b " * CONTEXT}]}, "messages", "context_length_exceeded"),
    "without a template": ({"model": "ids"}, "messages", "invalid_value"),
}


def describe_call(path: str, fields: dict[str, Any]) -> dict[str, Any]:
    whole = {"model": "writer"} | ({"prompt": "Once"} if path.endswith("v1/completions") else {"messages": [USER]})
    return whole | fields


async def check_refused(generator: GenerationServer, path: str, fields: dict[str, Any], param: str, code: str) -> None:
    response = await generator.client.post(path, json=describe_call(path, fields))
    message = check_openai_error(response, 400, param=param, code=code)
    assert param in message or "template" in message
    assert generator.engine.jobs == [] and generator.ids_engine.jobs == []
    generator.check_idle()
    assert (await generator.complete()).is_success


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("case", BAD_FIELDS)
async def test_fields_of_both(generator: GenerationServer, case: str, path: str) -> None:
    fields, param = BAD_FIELDS[case]
    code = "empty_input" if case == "an empty bad word" else "invalid_value"
    await check_refused(generator, path, fields, param, code)


@pytest.mark.parametrize("case", BAD_COMPLETIONS)
async def test_completions(make_generator: MakeGenerator, case: str) -> None:
    generator = make_generator(max_client_batch_size=4)
    await check_refused(generator, "/v1/completions", *BAD_COMPLETIONS[case])


@pytest.mark.parametrize("case", BAD_CHATS)
async def test_chats(generator: GenerationServer, case: str) -> None:
    await check_refused(generator, "/v1/chat/completions", *BAD_CHATS[case])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"model": "writer", "prompt": "wo', b'{"model": "writer", "prompt": NaN}']
)
async def test_broken_bodies(generator: GenerationServer, path: str, body: bytes) -> None:
    response = await generator.client.post(path, content=body)
    assert response.status_code == 400 and sorted(response.json()["error"]) == ["code", "message", "param", "type"]


async def test_the_message_says_what_there_is_room_for(generator: GenerationServer) -> None:
    message = (await generator.complete([5] * 100, max_tokens=50)).json()["error"]["message"]
    assert "100 tokens" in message and "50" in message and f"maximum context length of {CONTEXT}" in message
    assert f"Lower max_tokens to at most {CONTEXT - 100}" in message
    message = (await generator.complete([5] * 200)).json()["error"]["message"]
    assert "200 tokens" in message and str(CONTEXT) in message and "truncat" not in message


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_cannot_do(generator: GenerationServer, stream: bool) -> None:
    generator.engine.refusal = Unservable("regex is not understood: unclosed group")
    for prompt in ("Once", ["Once", "upon"]):
        response = await generator.complete(prompt, regex="(", stream=stream)
        assert "unclosed group" in check_openai_error(response, 400, param=None, code="unservable")
    generator.check_idle()


@pytest.mark.parametrize(
    ("param", "fields", "name"),
    [
        ("grammar", {"regex": "("}, "regex"),
        ("grammar", {"response_format": {"type": "json_object"}}, "response_format"),
        ("num_sequences", {"n": 2}, "n"),
        ("num_sequences", {"best_of": 2}, "best_of"),
        ("beam_width", {"use_beam_search": True, "n": 2}, "n"),
        ("beam_width", {"use_beam_search": True, "n": 2, "beam_width": 4}, "beam_width"),
        ("max_tokens", {"max_completion_tokens": 5}, "max_completion_tokens"),
        ("max_tokens", {"max_tokens": 5}, "max_tokens"),
        ("logit_bias", {"logit_bias": {"5": 1}}, "logit_bias"),
    ],
)
async def test_the_engine_refuses_by_the_clients_names(
    generator: GenerationServer, param: str, fields: dict[str, Any], name: str
) -> None:
    generator.engine.refusal = Unservable("it is too much", param)
    response = await generator.chat(**fields)
    assert check_openai_error(response, 400, param=name, code="unservable") == f"{name}: it is too much"


async def test_other_tasks(generator: GenerationServer) -> None:
    response = await generator.client.post("/v1/embeddings", json={"model": "writer", "input": "x"})
    message = check_openai_error(response, 400, param="model", code="wrong_task")
    assert "/v1/chat/completions" in message
    response = await generator.complete(model="nobody")
    check_openai_error(response, 404, param="model", code="model_not_found")
    response = await generator.client.get("/v1/chat/completions")
    assert response.status_code == 405


async def test_generation_by_an_embedding_model(server: Any) -> None:
    response = await server.client.post("/v1/completions", json={"model": "embedder", "prompt": "word1"})
    check_openai_error(response, 400, param="model", code="wrong_task")


FIELDS = [
    "temperature",
    "n",
    "stop",
    "logit_bias",
    "logprobs",
    "stream_options",
    "response_format",
    "max_tokens",
    "seed",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(
        st.sampled_from([*FIELDS, "prompt", "messages", "stream", "echo", "tools"]), JSON, max_size=3
    ),
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions"]),
)
async def test_any_json_is_answered(generator: GenerationServer, fields: dict[str, Any], path: str) -> None:
    response = await generator.client.post(path, json=describe_call(path, fields))
    assert response.status_code in (200, 400), response.text
    assert response.status_code == 200 or response.json()["error"]["message"]
    generator.check_idle()


async def test_more_logprobs_than_memory_holds(generator: GenerationServer) -> None:
    """Those of a prompt count for each of its answers, which repeat them."""
    many = {"prompt": [[5]] * 16, "n": 128, "logprobs": 20}
    for fields in ({"max_tokens": 120}, {"prompt": [[5] * 120] * 16, "echo": True, "max_tokens": 0}):
        response = await generator.client.post("/v1/completions", json={"model": "writer"} | many | fields)
        message = check_openai_error(response, 400, param="logprobs", code="invalid_value")
        assert "limit is 3000000" in message and "Lower n, best_of, max_tokens or logprobs" in message
    assert generator.engine.jobs == []
    generator.check_idle()


async def test_as_many_logprobs_as_there_may_be(generator: GenerationServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "MAX_LOGPROBS_IN_ALL", 4 * 10 * 21)
    fields = {"n": 4, "max_tokens": 10, "logprobs": True, "top_logprobs": 20}
    assert (await generator.chat(**fields)).is_success
    response = await generator.chat(**fields | {"max_tokens": 11})
    assert "or top_logprobs" in check_openai_error(response, 400, param="top_logprobs", code="invalid_value")
    assert (await generator.chat(n=4)).is_success, "others are asked for none"
