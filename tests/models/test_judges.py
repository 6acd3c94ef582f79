"""Models that judge pairs, from the request to the scores, against sentence-transformers' CrossEncoder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_dirs import VOCAB, build_tokenizer, write_json
from sentence_transformers import CrossEncoder
from test_served_prompts import Client, serve
from tiny_decoders import randomize

from models.info import ModelDirectoryError, read_info
from tests.tolerances import check_close

TEMPLATE = (
    "A{% for m in messages %}{% if m['role'] == 'system' %}c: {{ m['content'] }} {% endif %}"
    "{% if m['role'] == 'query' %}B: {{ m['content'] }} {% endif %}"
    "{% if m['role'] == 'document' %}A: {{ m['content'] }}{% endif %}{% endfor %}<|end|>"
    "{% if add_generation_prompt %} BA{% endif %}"
)
QUERY = "ab cd"
DOCUMENTS = ["ef gh", "a", "ab cd ef", "ef gh", "yes"]
LONG = "abcdefgh " * 9


def make_judge(
    directory: Path,
    *,
    template: str | None,
    opens_answer: bool = False,
    prompt: str = "",
    kind: Any = transformers.Qwen3ForCausalLM,
    num_positions: int = 64,
) -> CrossEncoder:
    """As the class saves it, with answers that are tokens of their own."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.add_special_tokens(["<|end|>"])
    config = transformers.Qwen3Config(
        vocab_size=len(VOCAB) + 3,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        max_position_embeddings=num_positions,
        pad_token_id=0,
        eos_token_id=len(VOCAB) + 2,
        bos_token_id=None,
        num_labels=1,
    )
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = kind(config).eval()
    randomize(model)
    base = directory.parent / "base"
    model.save_pretrained(base)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.chat_template = template
    fast.model_max_length = num_positions
    fast.save_pretrained(base)
    judge = CrossEncoder(str(base), device="cpu")
    if opens_answer:
        judge[0].processing_kwargs = {"chat_template": {"add_generation_prompt": True}}
    if prompt:
        judge.prompts, judge.default_prompt_name = {"web": prompt}, "web"
    judge.save_pretrained(str(directory))
    return judge


async def score(client: Client, query: str, documents: list[str], **fields: Any) -> Any:
    """In the order of the documents."""
    response = await client.post("/rerank", json={"query": query, "texts": documents} | fields)
    assert response.status_code == 200, response.text
    return np.array([each["score"] for each in sorted(response.json(), key=lambda each: each["index"])], np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"template": TEMPLATE},
        {"template": TEMPLATE, "opens_answer": True, "prompt": "gh ab"},
        {"template": None, "prompt": "gh ab"},
        {"template": TEMPLATE, "prompt": "gh ab", "kind": transformers.Qwen3ForSequenceClassification},
    ],
)
def test_scores_are_those_of_the_cross_encoder(options: dict[str, Any], tmp_path: Path) -> None:
    """Without a chat template pairs are read as they are."""
    judge = make_judge(tmp_path / "model", **options)
    expected = judge.predict([(QUERY, each) for each in DOCUMENTS], activation_fn=torch.nn.Identity())

    async def ask(client: Client) -> None:
        found = await score(client, QUERY, DOCUMENTS, raw_scores=True)
        check_close(found, expected, what="logits")
        assert found[0] == found[3]
        check_close(await score(client, QUERY, DOCUMENTS), torch.tensor(expected).sigmoid(), what="scores")
        check_close(await score(client, QUERY, DOCUMENTS[2:3], raw_scores=True), expected[2:3])

    serve(tmp_path / "model", tmp_path / "run", ask)


def test_the_document_is_cut_and_not_the_question_behind_it(tmp_path: Path) -> None:
    judge = make_judge(tmp_path / "model", template=TEMPLATE)
    end, yes, no = judge.tokenizer.convert_tokens_to_ids(["<|end|>", "yes", "no"])
    body = judge.tokenizer.encode(f"AB: {QUERY} A: {LONG}", add_special_tokens=False)
    assert len(body) > 63
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        logits = theirs(torch.tensor([[*body[:63], end]])).logits[0, -1]

    async def ask(client: Client) -> None:
        found = await score(client, QUERY, [LONG, LONG + "h"], raw_scores=True)
        check_close(found, (logits[yes] - logits[no]).expand(2))
        response = await client.post("/rerank", json={"query": QUERY, "texts": [LONG], "truncate": False})
        assert response.status_code == 422 and "the limit is 63" in response.json()["error"]

    serve(tmp_path / "model", tmp_path / "run", ask)


def test_a_plain_language_model_is_asked_as_qwen3_reranker(tmp_path: Path) -> None:
    """With `task: classify`; without a template of its own for queries and documents."""
    make_judge(tmp_path / "model", template=None, num_positions=300)
    (tmp_path / "model" / "modules.json").unlink()

    async def ask(client: Client) -> None:
        found = await score(client, "a", ["b", "c"], raw_scores=True, truncate=True)
        assert found.shape == (2,) and np.isfinite(found).all()
        response = await client.post("/predict", json={"inputs": "a", "model": "model"})
        assert response.status_code == 422 and "POST /rerank" in response.json()["error"]

    serve(tmp_path / "model", tmp_path / "run", ask, task="classify")


def test_only_rerankers_may_read_messages(tmp_path: Path) -> None:
    """What modality_config has of them is not passed over."""
    make_judge(tmp_path / "model", template=TEMPLATE, kind=transformers.Qwen3ForSequenceClassification)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    write_json(tmp_path / "model" / "config.json", config | {"id2label": {"0": "a", "1": "b"}})
    with pytest.raises(
        ModelDirectoryError, match=r"modality_config has message, so that pairs .* for one label, not 2"
    ):
        read_info(tmp_path / "model")
    write_json(tmp_path / "model" / "config.json", config | {"architectures": ["Qwen3Model"]})
    with pytest.raises(ModelDirectoryError, match=r"modality_config has message, so that texts .* for rerankers only"):
        read_info(tmp_path / "model")
