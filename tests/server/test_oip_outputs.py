"""Outputs of the Open Inference Protocol that have rows for tokens or masked places, and what they may cost."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import CLASSIFIER, CLS, EMBED_DIM, EMBEDDER, SEP, SPARSE, UNK, VOCAB, MakeServer, Server, compute_row
from grpc_client import INFER, open_grpc
from test_oip import infer, tensor

from server.http.api.oip_messages import ModelInferRequest, ModelInferResponse, Tensor, TensorContents

pytestmark = pytest.mark.anyio

WORD1, WORD2 = VOCAB.index("word1"), VOCAB.index("word2")
OTHERS = {
    "tagger": replace(CLASSIFIER, task="token_classify"),
    "filler": replace(SPARSE, task="fill_mask", mask_token_id=UNK, mask_token="[UNK]"),
    "splade": SPARSE,
}
TOKENS = replace(EMBEDDER, task="token_embed", head="tokens", normalize=False)
MOOD = replace(CLASSIFIER, head="mood")
TAGS = replace(CLASSIFIER, task="token_classify", head="tags")


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server(others=OTHERS, heads={"embedder": [TOKENS, MOOD, TAGS]})


def expect(ids: list[int], width: int) -> np.ndarray:
    """Of each token."""
    return np.stack([compute_row(np.array(ids[: end + 1]), width) for end in range(len(ids))])


def read(output: dict[str, Any]) -> np.ndarray:
    return np.array(output["data"], np.float32).reshape(output["shape"])


async def refuse(server: Server, model: str, *inputs: dict[str, Any], **options: Any) -> str:
    response = await server.client.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs), **options})
    assert response.status_code == 400, response.text
    return str(response.json()["error"])


async def test_tokens_of_texts(server: Server) -> None:
    (output,) = (await infer(server, tensor("text", "BYTES", ["word1", "word1 word2"]), model="tagger"))["outputs"]
    rows = read(output)
    assert output["name"] == "token_logits" and rows.shape == (2, 4, 3)
    np.testing.assert_allclose(rows[0, :3], expect([CLS, WORD1, SEP], 3), rtol=1e-6)
    assert not rows[0, 3].any() and rows[1].any(axis=1).all()


async def test_tokens_of_ids_stay_where_they_are(server: Server) -> None:
    ids = tensor("input_ids", "INT64", [[0, CLS, 0, WORD1], [CLS, WORD1, SEP, 0]])
    mask = tensor("attention_mask", "INT64", [[0, 1, 0, 1], [1, 1, 1, 0]])
    (output,) = (await infer(server, ids, mask, model="tagger"))["outputs"]
    rows = read(output)
    np.testing.assert_allclose(rows[0, [1, 3]], expect([CLS, WORD1], 3), rtol=1e-6)
    np.testing.assert_allclose(rows[1, :3], expect([CLS, WORD1, SEP], 3), rtol=1e-6)
    assert not rows[0, [0, 2]].any() and not rows[1, 3].any()


@pytest.mark.parametrize(("side", "kept"), [("right", slice(16)), ("left", slice(2, 18))])
async def test_what_is_cut_has_no_rows(make_server: MakeServer, side: str, kept: slice) -> None:
    server = make_server(others=OTHERS, truncation=side)
    ids = [WORD1, WORD2] * 9
    mask = tensor("attention_mask", "INT64", [[*([1] * 18), 0]])
    given = tensor("input_ids", "INT64", [[*ids, 0]]), mask
    (output,) = (await infer(server, *given, model="tagger"))["outputs"]
    rows = read(output)[0]
    np.testing.assert_allclose(rows[kept], expect(ids[kept], 3), rtol=1e-6)
    assert (rows.any(axis=1)).sum() == 16


async def test_masked_places(server: Server) -> None:
    (output,) = (await infer(server, tensor("text", "BYTES", ["?", "? word1 ?"]), model="filler"))["outputs"]
    rows = read(output)
    assert output["name"] == "masked_logits" and rows.shape == (2, 2, len(VOCAB))
    np.testing.assert_allclose(rows[1], expect([CLS, UNK, WORD1, UNK], len(VOCAB))[[1, 3]], rtol=1e-6)
    assert rows[0, 0].any() and not rows[0, 1].any()
    assert "inputs has no [UNK]" in await refuse(server, "filler", tensor("text", "BYTES", ["word1"]))


async def test_sparse_logits(server: Server) -> None:
    (output,) = (await infer(server, tensor("text", "BYTES", ["word1"]), model="splade"))["outputs"]
    assert (output["name"], output["shape"]) == ("max_logits", [1, len(VOCAB)])


async def test_rows_of_tokens_come_where_they_are_named(server: Server) -> None:
    text = tensor("text", "BYTES", ["word1"])
    names = [output["name"] for output in (await infer(server, text))["outputs"]]
    assert names == ["embeddings", "mood.logits"]
    both = [{"name": "tags.token_logits"}, {"name": "embeddings"}]
    tags, _ = (await infer(server, text, outputs=both))["outputs"]
    np.testing.assert_allclose(read(tags)[0], expect([CLS, WORD1, SEP], 3), rtol=1e-6)
    (tokens,) = (await infer(server, text, model="embedder/tokens"))["outputs"]
    assert (tokens["name"], tokens["shape"]) == ("tokens.token_embeddings", [1, 3, EMBED_DIM])


async def test_what_models_say_of_them(server: Server) -> None:
    facts = (await server.client.get("/v2/models/tagger")).json()
    assert facts["outputs"] == [{"name": "token_logits", "datatype": "FP32", "shape": [-1, -1, 3]}]
    config = (await server.client.get("/v2/models/tagger/config")).json()
    assert config["output"] == [{"name": "token_logits", "data_type": "TYPE_FP32", "dims": [-1, 3]}]


async def test_the_index_lists_heads(server: Server) -> None:
    names = [each["name"] for each in (await server.client.post("/v2/repository/index")).json()]
    assert names == ["embedder", "embedder/mood", "embedder/tags", "classifier", *OTHERS]


async def test_large_answers_are_refused(make_server: MakeServer) -> None:
    wide = replace(CLASSIFIER, task="token_classify", output_dim=1 << 21, id2label={})
    server = make_server(others={"wide": wide})
    assert "the limit is 16,777,216" in await refuse(server, "wide", tensor("text", "BYTES", ["word1", "word1 " * 6]))
    assert not server.engines["wide"].jobs


async def test_classification_of_outputs_is_refused(server: Server) -> None:
    wish = {"name": "logits", "parameters": {"classification": 2}}
    told = await refuse(server, "classifier", tensor("text", "BYTES", ["word1"]), outputs=[wish])
    assert "classification of 'logits' is not supported" in told


async def test_over_grpc(server: Server) -> None:
    text = Tensor("text", "BYTES", np.array([1]), contents=TensorContents(bytes_contents=[b"word1"]))
    async with open_grpc(server) as client:
        answer = await client.ask(INFER, ModelInferRequest("tagger", inputs=[text]), ModelInferResponse)
    (output,) = answer.outputs
    assert output.shape.tolist() == [1, 3, 3] and output.contents is not None
    assert len(output.contents.fp32_contents) == 9
