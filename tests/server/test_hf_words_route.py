"""Fill-mask and question answering as Hugging Face's clients ask for them: errors, limits, the unmodified client."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from conftest import EMBEDDER, MAX_TOKENS, SPARSE, UNK, MakeServer, Server, wait_until
from huggingface_hub.errors import HfHubHTTPError
from test_hf_route import connect
from test_openai_client import Live, run_live

from server.tasks.registry import HEADS
from server.text.tokenizer import Tokenizer
from server.wire.job import EngineStatus

pytestmark = pytest.mark.anyio

FILLER = replace(SPARSE, task="fill_mask", mask_token_id=UNK, mask_token="[UNK]")
"""Whatever the tokenizer does not know is a masked place."""
READER = replace(EMBEDDER, architecture="BertForQuestionAnswering", task="question_answering", output_dim=2)
LONG = " ".join(["word1"] * (MAX_TOKENS + 1))
ASKED = {"question": "word1", "context": "word2 word3 word4"}


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server(others={"filler": FILLER, "reader": READER}, max_client_batch_size=8)


def fill(text: Any, **parameters: Any) -> tuple[str, dict[str, Any], str]:
    told = parameters.pop("told")
    return "filler", {"inputs": text, "parameters": parameters}, told


def ask(inputs: Any, **parameters: Any) -> tuple[str, dict[str, Any], str]:
    told = parameters.pop("told")
    return "reader", {"inputs": inputs, "parameters": parameters}, told


BAD = {
    "no masked place": fill("word1", told="inputs has no [UNK]: put one where a word is to be filled in"),
    "none in one text": fill(["word1 ?", "word1"], told="inputs[1] has no [UNK]"),
    "a pair": fill({"text": "a", "text_pair": "b"}, told="inputs must be a text or a list of texts"),
    "a question to fill": fill(ASKED, told="inputs must be a text or a list of texts"),
    "an empty text": fill("", told="inputs must not be empty"),
    "a long text": fill(LONG, told="the limit is 16"),
    "top_k 0": fill("?", top_k=0, told="top_k"),
    "top_k as a text": fill("?", top_k="5", told="top_k"),
    "too many words": fill("?", top_k=1025, told="top_k"),
    "no targets": fill("?", targets=[], told="targets must be a word, or a list"),
    "targets are numbers": fill("?", targets=[1], told="targets[0]"),
    "an empty target": fill("?", targets=["word1", ""], told="targets[1] must not be empty"),
    "a target of nothing": fill("?", targets=["word1", " "], told="targets[1] must have a token"),
    "too many targets": fill("?", targets=["word1"] * 1025, told="targets is too long"),
    "a text to a reader": ask("word1", told="inputs must be {question, context} or a list of those for this model"),
    "texts to a reader": ask(["word1"], told="inputs must be {question, context} or a list of those"),
    "pairs to a reader": ask([{"text": "a", "text_pair": "b"}], told="inputs must be {question, context}"),
    "a question alone": ask({"question": "word1"}, told="inputs must be a text"),
    "an empty question": ask({"question": "", "context": "a"}, told="a question and a context, and neither may be"),
    "an empty context": ask([ASKED, {"question": "a", "context": ""}], told="inputs[1] must have a question and a"),
    "a blank context": ask({"question": "word1", "context": " "}, told="a context without a token to answer with"),
    "no questions": ask([], told="inputs must not be empty"),
    "too many questions": ask([ASKED] * 9, told="the limit is 8"),
    "too many windows": ask(ASKED | {"context": LONG * 9}, doc_stride=10, told="windows; the limit is 8"),
    "no room beside the question": ask(
        {"question": LONG, "context": LONG},
        told="doc_stride is 8 tokens, and a window has room for 0 of the text beside",
    ),
    "a stride without room": ask(
        ASKED | {"context": LONG}, doc_stride=12, told="lower doc_stride or raise max_seq_len"
    ),
    "a stride below 0": ask(ASKED, doc_stride=-1, told="doc_stride"),
    "no tokens to answer with": ask(ASKED, max_answer_len=0, told="max_answer_len"),
    "longer answers than there are": ask(ASKED, max_answer_len=257, told="max_answer_len"),
    "no tokens to ask with": ask(ASKED, max_question_len=0, told="max_question_len"),
    "impossible as a text": ask(ASKED, handle_impossible_answer="yes", told="handle_impossible_answer"),
    "a question for a classifier": ("classifier", {"inputs": ASKED}, "inputs must be a text, {text, text_pair} or"),
    "a question for an embedder": ("embedder", {"inputs": ASKED}, "inputs must be a text or a list of texts"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_requests(server: Server, case: str) -> None:
    model, body, told = BAD[case]
    response = await server.client.post(f"/models/{model}", json=body)
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    assert told in response.json()["error"]
    assert (await server.client.post("/models/reader", json={"inputs": ASKED})).status_code == 200


@pytest.mark.parametrize(
    ("model", "body"),
    [("reader", {"inputs": ASKED}), ("filler", {"inputs": "?", "parameters": {"targets": ["unable", "word1"]}})],
)
async def test_nothing_is_tokenised_without_a_place(
    server: Server, model: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it is tokenised all the same")

    for name in ("shorten", "encode"):
        monkeypatch.setattr(Tokenizer, name, refuse)
    admission = server.state.models[model].admission
    with admission.admit(admission.max_inputs, 0, deadline_s=9e9, tokens_per_s=0.0):
        assert (await server.client.post(f"/models/{model}", json=body)).status_code == 429
    server.engines[model].reported = (EngineStatus(is_ready=False, reason="it is starting"),)
    assert (await server.client.post(f"/models/{model}", json=body)).status_code == 503


async def test_windows_take_a_place_each(server: Server) -> None:
    server.engines["reader"].gate = asyncio.Event()
    body = {"inputs": {"question": "word1", "context": "word2 " * 40}, "parameters": {"doc_stride": 2}}
    asking = asyncio.create_task(server.client.post("/models/reader", json=body))
    await wait_until(lambda: server.engines["reader"].num_running == 1)
    (job,) = server.engines["reader"].jobs
    admission = server.state.models["reader"].admission
    assert job.num_inputs > 1 and admission.num_inputs == job.num_inputs
    server.engines["reader"].gate.set()
    assert (await asking).status_code == 200 and admission.num_inputs == 0


async def test_masks_in_one_text_are_limited(make_server: MakeServer) -> None:
    """To what a step has room for."""
    server = make_server(others={"filler": FILLER}, max_batch_requests=2)
    for text, status in (("? ?", 200), ("? ? ?", 400)):
        response = await server.client.post("/models/filler", json={"inputs": text})
        assert response.status_code == status, response.text
    assert "has 3 [UNK]; the limit is 2" in response.json()["error"]


async def test_words_to_be_written_are_limited(make_server: MakeServer) -> None:
    server = make_server(others={"filler": FILLER})
    text = "? " * (MAX_TOKENS - 2)
    body = {"inputs": [text] * 60, "parameters": {"top_k": 1024}}
    response = await server.client.post("/models/filler", json=body)
    assert response.status_code == 400 and "lower top_k, or send several" in response.json()["error"]


async def test_truncation_that_cuts_the_masked_place_off(make_server: MakeServer) -> None:
    server = make_server(others={"filler": FILLER}, truncation="right")
    assert (await server.client.post("/models/filler", json={"inputs": f"? {LONG}"})).status_code == 200
    response = await server.client.post("/models/filler", json={"inputs": f"{LONG} ?"})
    assert response.status_code == 400 and "inputs has no [UNK]" in response.json()["error"]


async def test_other_routes_name_this_one(server: Server) -> None:
    for model in ("filler", "reader"):
        response = await server.client.post("/v1/embeddings", json={"model": model, "input": "word1"})
        assert response.status_code == 400 and "POST /models/{name}" in response.json()["error"]["message"]


async def test_the_example_has_the_models_own_mask(server: Server) -> None:
    example = HEADS["fill_mask"].make_example(FILLER, "filler", True, False)
    response = await server.client.post(example.route, json=example.body)
    assert response.status_code == 200, response.text


async def test_numbers_that_are_none(server: Server) -> None:
    """The engine's NaN is an error, not an answer."""

    def compute(input_ids: np.ndarray, width: int) -> np.ndarray:
        return np.full(FILLER.output_dim, np.nan, np.float32)

    server.engines["filler"].compute_row = compute
    response = await server.client.post("/models/filler", json={"inputs": "word1 ?"})
    assert response.status_code == 500 and "NaN" in response.json()["error"]


@pytest.fixture
def live(server: Server) -> Iterator[Live]:
    with run_live(server) as running:
        yield running


def test_client_fill_mask(live: Live) -> None:
    client = connect(live, "filler")
    found = client.fill_mask("word1 ? word2", top_k=3)
    assert len(found) == 3 and found[0].score >= found[1].score >= found[2].score
    assert found[0].sequence == f"word1 {found[0].token_str} word2"
    assert {item.token_str for item in client.fill_mask("word1 ?", targets=["word5", "unable"])} == {"word5", "un"}


def test_client_question_answering(live: Live) -> None:
    client = connect(live, "reader")
    context = "word2  word3, unable word4"
    best = client.question_answering("word1", context)
    assert isinstance(best, huggingface_hub.QuestionAnsweringOutputElement)
    assert context[best.start : best.end] == best.answer != ""
    several = client.question_answering("word1", context, top_k=3, align_to_words=True, max_answer_len=2)
    assert isinstance(several, list) and len(several) == 3
    assert all("able" not in item.answer or "unable" in item.answer for item in several)
    windows = client.question_answering("word1", context * 4, doc_stride=3, handle_impossible_answer=True, top_k=99)
    assert isinstance(windows, list) and "" in {item.answer for item in windows}


def test_client_shows_our_errors(live: Live) -> None:
    with pytest.raises(HfHubHTTPError, match="put one where a word is to be filled in"):
        connect(live, "filler").fill_mask("word1")
