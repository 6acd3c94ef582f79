"""BGE-M3's three kinds of vectors of one pass: XLM-R, and two linear layers over its rows."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
import torch
import transformers
from sentence_dirs import LETTERS, write_json
from test_served_prompts import Client, serve
from tiny_engines import Find, allow, capture_model, list_cases
from tiny_models import CONFIGS, Ids, TinyModel, make_sequences, pack, randomize, run_padded
from tokenizers import models, pre_tokenizers, processors

from models.further_heads import list_own_heads
from models.info import ModelDirectoryError, read_info
from models.load import load_model
from tests.tolerances import ENCODER_TOLERANCES, check_close

HIDDEN_SIZE = 32
SEQLENS = [1, 2, 17, 33, 5]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
TEXTS = ["abc", "a b a c a", "zy<unk>x", "a", "AB" * 60]

Rows = npt.NDArray[np.float32]


def make_m3(directory: Path) -> TinyModel:
    config = CONFIGS["xlm-roberta"]()
    config.pad_token_id = 1
    torch.manual_seed(0)
    theirs = transformers.AutoModel.from_config(config, attn_implementation="sdpa").eval()
    widths = {"colbert_linear.pt": HIDDEN_SIZE, "sparse_linear.pt": 1}
    layers = {name: torch.nn.Linear(HIDDEN_SIZE, width) for name, width in widths.items()}
    for module in (*theirs.modules(), *layers.values()):
        randomize(module)
    theirs.save_pretrained(directory)
    for name, layer in layers.items():
        torch.save(layer.state_dict(), directory / name)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    write_json(
        directory / "modules.json",
        [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds],
    )
    write_json(directory / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    build_tokenizer().save(str(directory / "tokenizer.json"))
    info = read_info(directory)
    return TinyModel(directory, theirs, info, list_own_heads(directory, info))


def build_tokenizer() -> tokenizers.Tokenizer:
    words = [*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


@torch.no_grad()
def apply(directory: Path, name: str, rows: torch.Tensor) -> torch.Tensor:
    tensors = torch.load(directory / name, weights_only=True)
    return torch.nn.functional.linear(rows, tensors["weight"], tensors["bias"])


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    return cache(lambda name: capture_model(lambda: make_m3(tmp_path_factory.mktemp(name))))


@pytest.mark.parametrize(("name", "kernels", "precision"), list_cases(["m3"], ["m3"]))
def test_every_precision(find: Find, name: str, kernels: str, precision: str) -> None:
    captured = find(name)
    engine = captured.build(kernels, precision)
    ids, types = make_sequences(captured.model, SEQLENS)
    found = {name: array.copy() for name, array in engine.run(pack(ids, types)).arrays.items()}
    assert list(found) == [
        *("embeddings", "tokens.token_embeddings"),
        *("multi_vector.token_embeddings", "sparse.token_weights"),
    ]
    padded, mask = run_padded(captured.model.theirs, ids, types)
    rows, tolerance = padded[mask == 1], allow(ENCODER_TOLERANCES[precision], kernels, precision)
    scaled = torch.nn.functional.normalize
    check_close(found["embeddings"], scaled(padded[:, 0], dim=-1), tolerance=tolerance)
    vectors = scaled(apply(captured.model.directory, "colbert_linear.pt", rows), dim=-1)
    check_close(found["multi_vector.token_embeddings"], vectors, tolerance=tolerance)
    weights = apply(captured.model.directory, "sparse_linear.pt", rows).relu()
    assert 0.2 < (weights > 0).float().mean() < 0.8, "some must be 0"
    check_close(found["sparse.token_weights"], weights, tolerance=tolerance)
    assert not engine.info.unplanned_ops


def test_what_is_served(tmp_path: Path) -> None:
    model = make_m3(tmp_path / "model")
    ids = [np.array(build_tokenizer().encode(text).ids[:78]) for text in TEXTS]
    ids[-1][-1] = 2
    padded, _ = run_padded(model.theirs, ids)
    vectors = [compare_by(model, padded[index, : len(each)]) for index, each in enumerate(ids)]
    weights = [weigh(model, each, padded[index, : len(each)]) for index, each in enumerate(ids)]
    scores = [(vectors[1] @ each.T).max(1).mean() for each in vectors]

    async def ask(client: Client) -> None:
        answer = await post(client, "/v1/multi-vector", input=TEXTS, input_type="query")
        for each, expected in zip(answer["data"], vectors, strict=True):
            np.testing.assert_allclose(each["embeddings"], expected, rtol=0, atol=2e-5)
        for found, known in zip(await post(client, "/embed_sparse", inputs=TEXTS), weights, strict=True):
            assert [each["index"] for each in found] == sorted(known)
            np.testing.assert_allclose(
                [each["value"] for each in found], [known[each["index"]] for each in found], atol=2e-5
            )
        answer = await post(client, "/score", model="model/multi_vector", text_1=TEXTS[1], text_2=TEXTS)
        np.testing.assert_allclose([each["score"] for each in answer["data"]], scores, rtol=0, atol=2e-5)
        (embedded,) = (await post(client, "/v1/embeddings", input=TEXTS[0]))["data"]
        first = torch.nn.functional.normalize(padded[0, 0], dim=-1)
        np.testing.assert_allclose(embedded["embedding"], first, rtol=0, atol=2e-5)

    serve(model.directory, tmp_path / "run", ask)


async def post(client: Client, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def compare_by(model: TinyModel, rows: torch.Tensor) -> Rows:
    """Of all tokens but the first."""
    vectors = torch.nn.functional.normalize(apply(model.directory, "colbert_linear.pt", rows[1:]), dim=-1)
    return np.asarray(vectors.numpy())


def weigh(model: TinyModel, ids: Ids, rows: torch.Tensor) -> dict[int, float]:
    """The largest of each token, but for special ones and those of weight 0."""
    found: dict[int, float] = {}
    weights = apply(model.directory, "sparse_linear.pt", rows)[:, 0]
    for token_id, weight in zip(ids.tolist(), weights.tolist(), strict=True):
        if token_id >= len(SPECIALS) and weight > 0:
            found[token_id] = max(weight, found.get(token_id, 0.0))
    return found


def test_a_layer_of_another_width_is_refused(tmp_path: Path) -> None:
    model = make_m3(tmp_path)
    torch.save(torch.nn.Linear(7, 32).state_dict(), tmp_path / "colbert_linear.pt")
    with pytest.raises(
        ModelDirectoryError, match=r"colbert_linear.pt: .* is 7, but the module gets rows of 32 numbers"
    ):
        load_model(tmp_path, model.info, model.heads)
    torch.save({"bias": torch.zeros(32)}, tmp_path / "colbert_linear.pt")
    with pytest.raises(ModelDirectoryError, match=r"colbert_linear.pt: the tensor 'weight' is missing"):
        load_model(tmp_path, model.info, model.heads)
