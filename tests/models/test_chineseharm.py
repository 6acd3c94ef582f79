"""A real BERT-base classifier against transformers: real weights, and text in which most characters are a token."""

import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from chineseharm import NotAvailable, find_chineseharm
from tiny_models import Ids, TinyModel, build, pack, run_padded

from models.info import read_info
from tests.tolerances import check_close

pytestmark = [pytest.mark.network, pytest.mark.slow]

PARK = "今天天气真好，我们去公园玩吧。"
GAMBLING = "加微信领取彩金，百家乐首存送88"
TEXTS = (PARK, GAMBLING, "好", "请问图书馆周末几点开门？", "这本书写得很好，值得一读再读。" * 6, "Hello, world 123")


@pytest.fixture(scope="module")
def chineseharm() -> TinyModel:
    try:
        directory = find_chineseharm()
    except NotAvailable as error:
        pytest.skip(str(error))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True).eval()
    return TinyModel(directory, theirs, read_info(directory))


@pytest.fixture(scope="module")
def texts(chineseharm: TinyModel) -> list[Ids]:
    tokenizer = tokenizers.Tokenizer.from_file(str(chineseharm.directory / "tokenizer.json"))
    tokenizer.no_padding()
    return [np.array(encoding.ids) for encoding in tokenizer.encode_batch(TEXTS)]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_logits(chineseharm: TinyModel, texts: list[Ids], precision: str, dtype: torch.dtype) -> None:
    expected, _ = run_padded(chineseharm.theirs, texts)
    engine = build(chineseharm, precision=precision)
    values = engine.run(pack(texts)).arrays["logits"]
    check_close(values, expected, dtype)
    temperature = json.loads((chineseharm.directory / "config.json").read_text(encoding="utf-8"))["binary_temperature"]
    clean = torch.softmax(torch.from_numpy(values) / temperature, -1)[:, 0]
    assert chineseharm.info.id2label == {0: "不违规", 1: "违规"}
    assert clean[TEXTS.index(PARK)] > 0.9
    assert clean[TEXTS.index(GAMBLING)] < 0.1
