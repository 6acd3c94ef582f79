"""How a model that judges pairs is asked: its chat template, its prompt, what is cut, and what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RANKER, VOCAB, MakeServer, Server, build_tokenizer

from models.info import ModelDirectoryError, ModelInfo
from server.config import ConfigError, ServerConfig
from server.processes.resolution import resolve
from server.text.chat_template import ChatTemplate, compile_template
from server.text.judgement import Judge, build_judge
from server.text.tokenizer import Tokenizer

NAMING = (
    "{% for m in messages %}{% if m.role in ('system', 'query') %}{{ m.content }} {% endif %}{% endfor %}word9 "
    "{{ (messages | last).content }} [SEP]"
)
HANDING_ON = "{% for m in messages %}{{ m['ro' 'le'] }} {{ m.content }} {% endfor %}[SEP]"
STRUCTURED = "{% for m in messages %}{% for part in m.content %}{{ part.text }} {% endfor %}{% endfor %}[SEP]"
BACKWARDS = "{% for m in messages | reverse %}{{ m.content }} word8 {% endfor %}[SEP]"
JUDGE = replace(RANKER, answer_token_ids=(7, 8), question_format="flat")
PROMPTED = replace(JUDGE, prompts={"web": "word5 word6"}, default_prompt_name="web")


def ids(text: str) -> list[int]:
    return [VOCAB.index(word) if word in VOCAB else VOCAB.index("[UNK]") for word in text.split()]


@pytest.fixture
def make_tokenizer(model_directory: Path, pool: ThreadPoolExecutor) -> Any:
    def make(source: str, **options: Any) -> Tokenizer:
        compiled = compile_template(source)
        template = ChatTemplate(compiled.template, compiled.source)
        return build_tokenizer(model_directory, pool, chat_template=template, **options)

    return make


@pytest.fixture
def serve(make_server: MakeServer, make_tokenizer: Any) -> Any:
    def make(source: str, info: ModelInfo = JUDGE) -> Server:
        tokenizer = make_tokenizer(source)
        server = make_server(others={"judge": info}, tokenizer=tokenizer)
        model = server.state.models["judge"]
        server.state.models["judge"] = replace(model, judge=build_judge(info, tokenizer))
        return server

    return make


async def ask(server: Server, **body: Any) -> list[list[int]]:
    response = await server.client.post("/rerank", json={"query": "word1", "texts": ["word2"], **body})
    assert response.status_code == 200, response.text
    calls: list[list[int]] = server.engines["judge"].calls[-1]
    return calls


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("source", "info", "expected"),
    [
        (NAMING, JUDGE, "word1 word9 word2 [SEP]"),
        (NAMING, PROMPTED, "word5 word6 word1 word9 word2 [SEP]"),
        (HANDING_ON, JUDGE, "query word1 document word2 [SEP]"),
        (HANDING_ON, PROMPTED, "system word5 word6 query word1 document word2 [SEP]"),
        (STRUCTURED, replace(PROMPTED, question_format="structured"), "word5 word6 word1 word2 [SEP]"),
        (BACKWARDS, JUDGE, "word2 word8 word1 word8 [SEP]"),
    ],
)
async def test_the_question_is_the_chat_template(serve: Any, source: str, info: ModelInfo, expected: str) -> None:
    assert await ask(serve(source, info)) == [ids(expected)]


@pytest.mark.anyio
async def test_what_ends_the_question_is_never_cut(serve: Any) -> None:
    long = " ".join(["word2"] * 40)
    (found,) = await ask(serve(NAMING), texts=[long], truncate=True)
    assert found == [*ids("word1 word9 " + "word2 " * 13), VOCAB.index("[SEP]")]


@pytest.mark.anyio
async def test_questions_of_fewer_tokens(serve: Any) -> None:
    """As vLLM's clients ask for; more than the ending's."""
    server = serve(NAMING)
    body: dict[str, Any] = {"model": "judge", "text_1": "word1", "text_2": "word2 word3"}
    response = await server.client.post("/score", json={**body, "truncate_prompt_tokens": 4})
    assert response.status_code == 200, response.text
    assert server.engines["judge"].calls == [[ids("word1 word9 word2 [SEP]")]]
    response = await server.client.post("/score", json={**body, "truncate_prompt_tokens": 1})
    assert response.status_code == 400 and response.json()["error"]["param"] == "truncate_prompt_tokens"
    assert "takes 1 of them already; raise it" in response.text


@pytest.mark.anyio
async def test_questions_are_not_cut_on_the_left(serve: Any) -> None:
    server = serve(NAMING)
    body = {"query": "word1", "texts": ["word2"], "truncate": True, "truncation_direction": "Left"}
    response = await server.client.post("/rerank", json=body)
    assert response.status_code == 422 and "truncation_direction left would cut the question" in response.text
    assert server.engines["judge"].calls == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "query and document",
        ),
        ("{{ messages[0].content }}", "the role document, or changes it"),
        ("{{ messages[0].content }}{{ messages[1].content | upper }}", "the role document, or changes it"),
        ("{{ messages[0].content }}{{ messages[1].content }}{{ messages[1].content }}", "repeats the document"),
        ("{{ raise_exception('no query here') }}", "no query here"),
    ],
)
def test_templates_that_lose_a_side(make_tokenizer: Any, source: str, said: str) -> None:
    """Of directories that name a score; of others Qwen3-Reranker's words stand in."""
    tokenizer = make_tokenizer(source, max_input_tokens=200)
    with pytest.raises(ModelDirectoryError, match=said):
        build_judge(JUDGE, tokenizer)
    judge = build_judge(replace(PROMPTED, question_format="qwen3"), tokenizer)
    assert isinstance(judge, Judge)
    before, between = judge.frame("word1")
    assert before.endswith("<Instruct>: word5 word6\n<Query>: word1\n<Document>: ") and between == ""
    assert judge.ending.endswith("</think>\n\n")


def test_no_input_may_be_as_short_as_the_question(make_tokenizer: Any) -> None:
    """A text of no tokens would be read for ever."""
    with pytest.raises(ModelDirectoryError, match="has 2 tokens without them, and an input may have 2"):
        build_judge(JUDGE, make_tokenizer(NAMING, max_input_tokens=2))
    assert build_judge(JUDGE, make_tokenizer(NAMING, max_input_tokens=3)) is not None


def test_most_rankers_are_not_asked(tokenizer: Tokenizer) -> None:
    assert build_judge(RANKER, tokenizer) is None


def test_a_server_that_would_cut_the_question_is_refused(tmp_path: Path) -> None:
    keys = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "num_labels": 1,
        "vocab_size": 101,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(keys))
    own = {"modality_config": {"message": {"format": "structured"}}}
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(own))
    models: list[dict[str, Any]] = [
        {"name": "judge", "source": {"path": str(tmp_path)}, "limits": {"truncation": "left"}}
    ]
    with pytest.raises(ConfigError, match=r"limits\.truncation left would cut off the question"):
        resolve(ServerConfig.model_validate({"models": models}), tmp_path)
    models[0]["limits"] = {"truncation": "right"}
    info = resolve(ServerConfig.model_validate({"models": models}), tmp_path).models[0].info
    assert info.question_format == "structured"
