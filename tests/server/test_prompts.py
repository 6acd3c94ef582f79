"""Which prompt stands before a text: the request's, the one of its kind, or the directory's default."""

from dataclasses import replace
from typing import Any

import pytest
from conftest import CLS, MAX_TOKENS, SEP, VOCAB, Server

from models.info import ModelInfo
from server.errors import InvalidField
from server.text.prompts import Prompt, choose_prompt, put_before

E5 = {"query": "query: ", "passage": "passage: ", "document": ""}
JINA = {"retrieval.query": "find: ", "retrieval.passage": "", "separation": "", "classification": ""}
NOMIC = {name: f"{name}: " for name in ("search_query", "search_document", "classification", "clustering")}


def make_info(prompts: dict[str, str], default: str | None = None, **more: Any) -> ModelInfo:
    return ModelInfo("BertModel", "embed", 10, 2, 16, 8, prompts=prompts, default_prompt_name=default, **more)


@pytest.mark.parametrize(
    ("prompts", "asked", "prompt"),
    [
        (E5, {}, "passage: "),
        (E5, {"text": "ask: "}, "ask: "),
        (E5, {"text": ""}, ""),
        (E5, {"name": "query"}, "query: "),
        (E5, {"name": "document"}, ""),
        (E5, {"input_type": "query"}, "query: "),
        (E5, {"input_type": "search_query"}, "query: "),
        (E5, {"input_type": "search_document"}, "passage: "),
        (E5, {"input_type": "document"}, "passage: "),
        (E5, {"input_type": "clustering"}, ""),
        (E5, {"task": "query"}, "query: "),
        (NOMIC, {"input_type": "query"}, "search_query: "),
        (NOMIC, {"input_type": "passage"}, "search_document: "),
        (NOMIC, {"input_type": "classification"}, "classification: "),
        ({"s2p": "Instruct: "}, {"input_type": "s2p"}, "Instruct: "),
        ({}, {"name": "query"}, ""),
        ({}, {"input_type": "query"}, ""),
        ({}, {}, ""),
    ],
)
def test_choice(prompts: dict[str, str], asked: dict[str, Any], prompt: str) -> None:
    assert choose_prompt(make_info(prompts, "passage" if "passage" in prompts else None), **asked) == Prompt(prompt)


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        ({}, Prompt()),
        ({"text": "own: "}, Prompt("own: ")),
        ({"task": "retrieval.query"}, Prompt("find: ", 1)),
        ({"name": "separation"}, Prompt("", 3)),
        ({"name": "query"}, Prompt()),
        ({"input_type": "query"}, Prompt("find: ", 1)),
        ({"input_type": "search_document"}, Prompt("", 2)),
        ({"input_type": "clustering"}, Prompt("", 3)),
        ({"input_type": "classification"}, Prompt("", 4)),
        ({"input_type": "retrieval.passage"}, Prompt("", 2)),
    ],
)
def test_a_prompt_of_an_adapters_name_brings_it_along(asked: dict[str, str], prompt: Prompt) -> None:
    assert choose_prompt(make_info(JINA, adapters=tuple(JINA)), **asked) == prompt


def test_tasks_that_a_model_has_not() -> None:
    with pytest.raises(InvalidField, match=r"task 'retrieval' is not .* model's; it has retrieval\.query, .*ion$"):
        choose_prompt(make_info(JINA, adapters=tuple(JINA)), task="retrieval")
    with pytest.raises(InvalidField, match="task 'separation' is not one of this model's; it has none; leave task out"):
        choose_prompt(make_info({}), task="separation")


@pytest.mark.parametrize(
    ("asked", "problem", "param"),
    [
        ({"name": "titles"}, "'titles' is not one of this model's; it has query, passage, document$", "prompt_name"),
        ({"input_type": "image"}, "'image' is not known; there are query, search_query, .*passage", "input_type"),
        ({"name": "query", "text": "x"}, "^prompt and prompt_name choose a prompt each; leave all but", "prompt_name"),
        ({"name": "query", "input_type": "query"}, "^prompt_name and input_type choose", "input_type"),
        ({"name": "query", "task": "query"}, "^prompt_name and task choose", "task"),
    ],
)
def test_wrong_choice(asked: dict[str, Any], problem: str, param: str) -> None:
    with pytest.raises(InvalidField, match=problem) as caught:
        choose_prompt(make_info(E5), **asked)
    assert caught.value.param == param


def test_it_stands_before_texts_and_the_first_of_pairs() -> None:
    given: list[Any] = ["a", ("a", "b"), ("", "b"), [1, 2], "", ("", "")]
    assert put_before("p ", given) == ["p a", ("p a", "b"), ("p ", "b"), [1, 2], "", ("", "")]
    assert put_before("", given) == given


def with_prompts(server: Server, name: str, **changes: Any) -> Server:
    model = server.state.models[name]
    prompts = {"prompts": {"query": "word7 ", "passage": "word8 word9 "}, "default_prompt_name": "query"}
    server.state.models[name] = replace(model, info=replace(model.info, **(prompts | changes)))
    return server


def ids(*words: str) -> list[int]:
    return [CLS, *map(VOCAB.index, words), SEP]


@pytest.mark.anyio
async def test_over_http(server: Server) -> None:
    with_prompts(server, "embedder")
    body = (await server.embed_text(["word1", "word2"])).json()
    assert server.embed.calls[-1] == [ids("word7", "word1"), ids("word7", "word2")]
    assert body["usage"]["prompt_tokens"] == 8
    for fields in ({"prompt_name": "passage"}, {"input_type": "document"}, {"prompt": "word8 word9 "}):
        assert (await server.embed_text("word1", **fields)).status_code == 200
        assert server.embed.calls[-1] == [ids("word8", "word9", "word1")]
    await server.embed_text("word1", prompt="", prompt_name=None)
    assert server.embed.calls[-1] == [ids("word1")]
    await server.embed_text([[7, 8], [9]])
    assert server.embed.calls[-1] == [[7, 8], [9]], "token ids are as the client wants them"


@pytest.mark.anyio
async def test_adapters_over_http(server: Server) -> None:
    """Of every protocol that embeds, and of whatever it sends: a text, or ids. Where none is asked for none is sent."""
    prompts = {"retrieval.query": "word7 ", "retrieval.passage": "word8 "}
    with_prompts(server, "embedder", prompts=prompts, default_prompt_name=None, adapters=tuple(prompts))
    named = {"model": "embedder", "prompt_name": "retrieval.passage"}
    asked: list[tuple[str, dict[str, Any], list[int]]] = [
        ("/v1/embeddings", {"model": "embedder", "input": ["word1", "word2"], "task": "retrieval.query"}, [1, 1]),
        ("/v1/embeddings", {"model": "embedder", "input": [7, 8], "task": "retrieval.passage"}, [2]),
        ("/v2/embed", {"model": "embedder", "texts": ["word1"], "input_type": "search_document"}, [2]),
        ("/embed", {"inputs": "word1", **named}, [2]),
        ("/models/embedder", {"inputs": "word1", **named}, [2]),
    ]
    for path, body, adapter_ids in asked:
        response = await server.client.post(path, json=body)
        assert response.status_code == 200, response.text
        assert server.embed.jobs[-1].inputs["adapter_ids"].values.tolist() == adapter_ids
    assert server.embed.calls[-1] == [ids("word8", "word1")]
    await server.embed_text("word1")
    assert "adapter_ids" not in server.embed.jobs[-1].inputs
    error = (await server.embed_text("word1", task="separation")).json()["error"]
    assert error["param"] == "task" and "it has retrieval.query, retrieval.passage" in error["message"]


@pytest.mark.anyio
async def test_refusals_over_http(server: Server) -> None:
    with_prompts(server, "embedder")
    text = "word1 " * (MAX_TOKENS - 2)
    cases: list[tuple[Any, dict[str, Any], str, str]] = [
        ("word1", {"prompt_name": "titles"}, "prompt_name", "it has query, passage, document"),
        ("word1", {"input_type": "x" * 99}, "input_type", "is not known"),
        ("word1", {"prompt": "x" * 4097}, "prompt", "4096"),
        ("", {}, "input", "must not be empty"),
        (text, {}, "input", f"{MAX_TOKENS + 1} tokens"),
    ]
    for given, fields, param, message in cases:
        response = await server.embed_text(given, **fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert message in error["message"]
    assert (await server.embed_text(text, prompt="")).status_code == 200


@pytest.mark.anyio
async def test_classifiers_have_a_default_too(server: Server) -> None:
    with_prompts(server, "classifier")
    response = await server.client.post("/predict", json={"inputs": [["word1"], ["word1", "word2"]]})
    assert response.status_code == 200
    assert server.classify.calls == [[ids("word7", "word1"), [*ids("word7", "word1"), *ids("word2")[1:]]]]


@pytest.mark.anyio
async def test_tokens_that_are_not_pooled_are_counted(server: Server) -> None:
    """[CLS] and the prompt."""
    with_prompts(server, "embedder", pools_prompt=False)
    await server.embed_text(["word1", "word2 word3"])
    assert server.embed.jobs[-1].inputs["num_prompt_tokens"].values.tolist() == [2, 2]
    await server.embed_text([7, 8])
    assert server.embed.jobs[-1].inputs["num_prompt_tokens"].values.tolist() == [0]
    await server.embed_text("word1", prompt="")
    assert "num_prompt_tokens" not in server.embed.jobs[-1].inputs


@pytest.mark.anyio
async def test_prompts_that_are_not_pooled_are_not_cut_off(server: Server) -> None:
    """Nor the text's own tokens taken for theirs."""
    with_prompts(server, "embedder", pools_prompt=False)
    cut = {"truncate_prompt_tokens": -1, "truncation_side": "left"}
    response = await server.embed_text("word1 " * 20, **cut)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "input")
    assert "input cannot be cut on the left" in error["message"]
    for given, fields in (("word1 " * 20, {"prompt": ""}), ([7] * 20, {})):
        assert (await server.embed_text(given, **cut, **fields)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(("given", "num_tokens"), [({}, 2), ({"add_special_tokens": False}, 1)])
async def test_special_tokens_are_of_the_prompt_if_there_are_any(
    server: Server, given: dict[str, Any], num_tokens: int
) -> None:
    """The same when it has been counted before."""
    with_prompts(server, "embedder", pools_prompt=False)
    for _ in range(2):
        await server.embed_text("word1", **given)
        assert server.embed.jobs[-1].inputs["num_prompt_tokens"].values.tolist() == [num_tokens]
    assert list(server.state.models["embedder"].prompt_lengths.values()) == [num_tokens]
    await server.embed_text("word1", prompt="word2 word3 word4 ", **given)
    assert server.embed.jobs[-1].inputs["num_prompt_tokens"].values.tolist() == [num_tokens + 2]
    assert len(server.state.models["embedder"].prompt_lengths) == 1
