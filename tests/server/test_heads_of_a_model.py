"""Models with several heads: each request gets the one that has its task, or the one it names."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import CLASSIFIER, EMBED_DIM, EMBEDDER, LABELS, RANKER, MakeServer, Server, compute_row

pytestmark = pytest.mark.anyio

TOKENS = replace(EMBEDDER, task="token_embed", head="tokens", normalize=False)
MOOD = replace(CLASSIFIER, head="mood")
TOPIC = replace(CLASSIFIER, head="topic", output_dim=2, id2label={0: "sport", 1: "art"})
PAIR = [2, 5]


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server(heads={"embedder": [TOKENS, MOOD, TOPIC]})


async def test_tokens_have_a_vector_each(server: Server) -> None:
    answer = await server.client.post("/embed_all", json={"inputs": [[2, 5, 3], [7]]})
    assert answer.status_code == 200
    rows = answer.json()
    assert [len(each) for each in rows] == [3, 1]
    expected = [compute_row(np.array([2, 5, 3][: end + 1]), EMBED_DIM) for end in range(3)]
    np.testing.assert_allclose(rows[0], expected, rtol=1e-6)
    assert server.embed.jobs[-1].outputs == {"token_embeddings": "tokens.token_embeddings"}


async def test_a_single_text_is_a_list_of_one(server: Server) -> None:
    (rows,) = (await server.client.post("/embed_all", json={"inputs": "word1"})).json()
    assert len(rows) == 3  # [CLS] word1 [SEP]


async def test_embeddings_do_not_carry_the_tokens_rows(server: Server) -> None:
    await server.embed_text("word1")
    assert server.embed.jobs[-1].outputs == {"embeddings": "embeddings"}


async def test_the_first_head_with_the_task_answers(server: Server) -> None:
    answer = await server.client.post("/predict", json={"inputs": "word1", "model": "embedder"})
    assert {each["label"] for each in answer.json()} == set(LABELS.values())


@pytest.mark.parametrize("name", ["mood", "topic"])
async def test_a_head_by_its_name(server: Server, name: str) -> None:
    answer = await server.client.post("/predict", json={"inputs": "word1", "model": f"embedder/{name}"})
    labels = {"mood": set(LABELS.values()), "topic": {"sport", "art"}}
    assert {each["label"] for each in answer.json()} == labels[name]
    assert server.embed.jobs[-1].outputs == {"logits": f"{name}.logits"}


async def test_a_name_that_no_head_has(server: Server) -> None:
    answer = await server.client.post("/v1/embeddings", json={"input": "word1", "model": "embedder/nothing"})
    assert answer.status_code == 404
    names = "embedder, embedder/mood, embedder/topic, classifier"
    assert f"the models here are {names}" in answer.json()["error"]["message"]


async def test_a_head_has_its_own_tasks_only(server: Server) -> None:
    answer = await server.client.post("/v1/embeddings", json={"input": "word1", "model": "embedder/mood"})
    assert answer.status_code == 400
    assert "model 'embedder/mood' cannot be used here: its task is classify" in answer.json()["error"]["message"]


async def test_models_are_listed_with_their_named_heads(server: Server) -> None:
    listed = (await server.client.get("/v1/models")).json()["data"]
    assert [each["id"] for each in listed] == ["embedder", "embedder/mood", "embedder/topic", "classifier"]
    assert [each["task"] for each in listed] == ["embed", "classify", "classify", "classify"]
    assert (await server.client.get("/v1/models/embedder/topic")).json()["id"] == "embedder/topic"


async def test_embeddings_name_the_head(make_server: MakeServer) -> None:
    server = make_server(heads={"classifier": [replace(EMBEDDER, head="vectors")]})
    body = {"input": "word1", "model": "classifier/vectors"}
    assert (await server.client.post("/v1/embeddings", json=body)).json()["model"] == "classifier/vectors"


async def test_info_lists_the_heads_that_have_names(server: Server) -> None:
    model = (await server.client.get("/info")).json()["models"][0]
    assert [(each["name"], each["task"], each["output_dim"]) for each in model["heads"]] == [
        ("embedder/mood", "classify", len(LABELS)),
        ("embedder/topic", "classify", 2),
    ]
    assert model["heads"][1]["id2label"] == {"0": "sport", "1": "art"}


def test_what_does_not_change_is_computed_once(server: Server) -> None:
    model = server.state.models["embedder"]
    for head in model.heads:
        assert head.outputs is head.outputs
    assert [head.outputs for head in model.heads[:2]] == [
        {"embeddings": "embeddings"},
        {"token_embeddings": "tokens.token_embeddings"},
    ]


async def test_a_head_goes_by_its_name_in_the_open_inference_protocol(server: Server) -> None:
    path = "/v2/models/embedder/mood"
    for question in ("", "/config", "/ready"):
        assert (await server.client.get(path + question)).json()["name"] == "embedder/mood"
    ids = {"name": "input_ids", "shape": [1, 2], "datatype": "INT64", "data": PAIR}
    answer = (await server.client.post(f"{path}/infer", json={"inputs": [ids]})).json()
    assert answer["model_name"] == "embedder/mood"
    assert [each["name"] for each in answer["outputs"]] == ["mood.logits"]


async def test_several_heads_in_one_pass(server: Server) -> None:
    """The Open Inference Protocol names outputs: one job reads those of several heads."""
    described = (await server.client.get("/v2/models/embedder")).json()
    widths = {each["name"]: each["shape"][1] for each in described["outputs"]}
    assert widths == {"embeddings": EMBED_DIM, "mood.logits": len(LABELS), "topic.logits": 2}
    ids = {"name": "input_ids", "shape": [1, 2], "datatype": "INT64", "data": PAIR}
    wanted = [{"name": "topic.logits"}, {"name": "embeddings"}]
    answer = await server.client.post("/v2/models/embedder/infer", json={"inputs": [ids], "outputs": wanted})
    found = {each["name"]: each["data"] for each in answer.json()["outputs"]}
    assert list(found) == ["topic.logits", "embeddings"]
    np.testing.assert_allclose(found["topic.logits"], compute_row(np.array(PAIR), 2), rtol=1e-6)
    np.testing.assert_allclose(found["embeddings"], compute_row(np.array(PAIR), EMBED_DIM), rtol=1e-6)
    (job,) = server.embed.jobs
    assert job.outputs == {name: name for name in found}


async def test_labels_are_for_the_head_that_classifies(make_server: MakeServer) -> None:
    """Not for the embedder that is the model's first; and an embedder by itself says so."""
    entailer = replace(MOOD, id2label={0: "entailment", 1: "neutral", 2: "contradiction"})
    server = make_server(heads={"embedder": [entailer]})
    body = {"inputs": "word1", "parameters": {"candidate_labels": ["word2", "word3"]}}
    answer = await server.client.post("/models/embedder", json=body)
    assert [set(each) for each in answer.json()] == [{"label", "score"}] * 2
    answer = await make_server().client.post("/models/embedder", json=body)
    assert answer.status_code == 400 and "its task is embed" in answer.json()["error"]


async def test_the_head_that_reads_pairs_ranks(make_server: MakeServer) -> None:
    """And not the embedder that it is beside."""
    server = make_server(heads={"embedder": [replace(RANKER, head="ranker")]})
    body = {"query": "word1", "documents": ["word2"]}
    answer = await server.client.post("/v1/rerank", json=body)
    assert answer.json()["model"] == "embedder/ranker"
    assert server.embed.jobs[-1].outputs == {"logits": "ranker.logits"}
    assert (await server.client.post("/v1/rerank", json={**body, "model": "embedder"})).json()["model"] == "embedder"
    server = make_server(heads={"embedder": [replace(RANKER, head="ranker")]}, others={"other": RANKER})
    answer = await server.client.post("/v1/rerank", json=body)
    assert "name one of them in 'model': embedder/ranker, other" in answer.json()["message"]
