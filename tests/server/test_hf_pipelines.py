"""The Hugging Face route against transformers' pipelines, over the same tiny random models and real tokenizers."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import FakeEngine, MakeServer, Server, build_tokenizer
from tiny_tokenizers import KINDS, MAX_TOKENS, save_tokenizer

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.wire.job import Job, Ragged, join_rows

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:Tokenizer does not support real words"),
]

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
NLI = ["contradiction", "neutral", "Entailment"]
STRATEGIES = ["none", "simple", "first", "average", "max"]
TEXTS = [
    "Clara Schumann lived in Leipzig.",
    "  Ihr   Vater,  Friedrich\tWieck\n wohnte in  Düsseldorf  ",
    "🎹 Clara 👩‍🎓 piano, 東京 und Zürich — don't! <s> </s>",
    "x",
    "\u0130stanbul \ufb01ne cafe\u0301 Leipzig's",
]
LONG = " ".join(TEXTS * 4)
LABELS = ["travel", "music and art", "news"]


class ModelEngine(FakeEngine):
    """Computes with transformers' model, each input by itself."""

    theirs: Any = None

    def compute_values(self, job: Job, spec: ArraySpec) -> Ragged:
        rows = []
        types = job.inputs.get("token_type_ids")
        for index in range(job.num_inputs):
            inputs = {"input_ids": torch.from_numpy(job.input_ids.row(index).astype(np.int64))[None]}
            if types is not None:
                inputs["token_type_ids"] = torch.from_numpy(types.row(index).astype(np.int64))[None]
            with torch.no_grad():
                rows.append(self.theirs(**inputs).logits[0].numpy())
        return join_rows(rows) if spec.dims[0] == "num_tokens" else Ragged(np.stack(rows))


@dataclass(frozen=True)
class Case:
    """One tokenizer and model, here and in a pipeline."""

    pipeline: Any
    server: Server

    async def post(self, inputs: Any, **parameters: Any) -> Any:
        response = await self.server.client.post("/models/tiny", json={"inputs": inputs, "parameters": parameters})
        assert response.status_code == 200, response.text
        return response.json()


MakeCase = Callable[..., Case]


@pytest.fixture
def make_case(tmp_path: Any, pool: ThreadPoolExecutor, make_server: MakeServer) -> MakeCase:
    """`make_case(kind, task, labels)`, the task as pipelines call it."""

    def make(kind: str, task: str, labels: list[str], **limits: Any) -> Case:
        theirs_tokenizer = save_tokenizer(kind, tmp_path)
        id2label = dict(enumerate(labels))
        torch.manual_seed(len(kind))
        config = transformers.BertConfig(
            vocab_size=len(theirs_tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            id2label=id2label,
            label2id={label: index for index, label in id2label.items()},
            initializer_range=0.5,
        )
        is_of_tokens = task == "token-classification"
        name = "BertForTokenClassification" if is_of_tokens else "BertForSequenceClassification"
        theirs = getattr(transformers, name)(config).eval()
        size = len(theirs_tokenizer)
        info = ModelInfo(
            name, "token_classify" if is_of_tokens else "classify", size, 2, MAX_TOKENS, len(labels), id2label=id2label
        )
        ours = build_tokenizer(tmp_path, pool, max_input_tokens=MAX_TOKENS, vocab_size=size)
        server = make_server(tokenizer=ours, others={"tiny": info}, **limits)
        engine = ModelEngine(info)
        engine.theirs = theirs
        server.state.models["tiny"] = replace(server.state.models["tiny"], engine=engine)
        return Case(transformers.pipeline(task, model=theirs, tokenizer=theirs_tokenizer), server)

    return make


def check_same(found: Any, expected: Any) -> None:
    """Numbers to fp32's precision, everything else exactly."""
    if isinstance(expected, list):
        assert len(found) == len(expected), (found, expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
        return
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key == "score":
            np.testing.assert_allclose(found[key], float(value), rtol=1e-5)
        else:
            assert found[key] == value, (key, found, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
async def test_entities(make_case: MakeCase, kind: str, strategy: str) -> None:
    case = make_case(kind, "token-classification", TAGS)
    expected = [case.pipeline(text, aggregation_strategy=strategy) for text in TEXTS]
    found = await case.post(TEXTS, aggregation_strategy=strategy)
    check_same(found, expected)
    assert sum(map(len, found)) > 10
    check_same(await case.post(TEXTS[0], aggregation_strategy=strategy), expected[0])


@pytest.mark.parametrize("kind", KINDS)
async def test_labels_to_ignore(make_case: MakeCase, kind: str) -> None:
    case = make_case(kind, "token-classification", TAGS)
    for ignored in ([], ["PER", "MISC"], ["B-PER"]):
        for strategy in STRATEGIES:
            options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
            check_same(await case.post(TEXTS[0], **options), case.pipeline(TEXTS[0], **options))


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("stride", [7, *(pytest.param(other, marks=pytest.mark.slow) for other in (0, 20))])
@pytest.mark.parametrize("kind", KINDS)
async def test_long_texts_in_windows(make_case: MakeCase, kind: str, stride: int, strategy: str) -> None:
    case = make_case(kind, "token-classification", TAGS)
    options = {"aggregation_strategy": strategy, "stride": stride}
    expected = [case.pipeline(text, **options) for text in (LONG, TEXTS[3])]
    found = await case.post([LONG, TEXTS[3]], **options)
    check_same(found, expected)
    assert all(each[0] <= each[1] <= len(LONG) for each in [(item["start"], item["end"]) for item in found[0]])
    assert len(found[0]) > 10


@pytest.mark.parametrize("side", ["right", "left"])
async def test_without_a_stride_the_configuration_truncates(make_case: MakeCase, side: str) -> None:
    case = make_case("wordpiece", "token-classification", TAGS, truncation=side)
    case.pipeline.tokenizer.truncation_side = side
    check_same(await case.post(LONG, aggregation_strategy="simple"), case.pipeline(LONG, aggregation_strategy="simple"))


@pytest.mark.parametrize(("function", "top_k"), [(None, None), ("sigmoid", 1), ("softmax", 2), ("none", 10)])
async def test_labels_of_texts(make_case: MakeCase, function: str | None, top_k: int | None) -> None:
    case = make_case("wordpiece", "text-classification", NLI)
    given = {"function_to_apply": function} if function else {}
    inputs = [*TEXTS[:2], {"text": TEXTS[0], "text_pair": TEXTS[1]}]
    expected = [case.pipeline(item, top_k=top_k, **given) for item in inputs]
    check_same(await case.post(TEXTS[:2], top_k=top_k, **given), expected[:2])
    check_same(await case.post(inputs[2], top_k=top_k, **given), expected[2:])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("names", [NLI, NLI[::-1]])
async def test_zero_shot(make_case: MakeCase, names: list[str], multi_label: bool) -> None:
    """Premises that are too long are cut, hypotheses never; with a comma's list of labels, and one label alone."""
    case = make_case("wordpiece", "zero-shot-classification", names, truncation="right")
    texts = [*TEXTS[:2], LONG]
    for labels in (LABELS, ", ".join(LABELS), LABELS[:1]):
        options = {"candidate_labels": labels, "multi_label": multi_label, "hypothesis_template": "It is on {}!"}
        expected = [
            [{"label": label, "score": score} for label, score in zip(each["labels"], each["scores"], strict=True)]
            for each in case.pipeline(texts, **options)
        ]
        check_same(await case.post(texts, **options), expected)
        check_same(await case.post(texts[0], **options), expected[0])


async def test_zero_shot_is_one_job(make_case: MakeCase) -> None:
    case = make_case("wordpiece", "zero-shot-classification", NLI)
    await case.post(TEXTS[:2], candidate_labels=LABELS)
    jobs = case.server.state.models["tiny"].engine.jobs  # type: ignore[attr-defined]
    assert [job.num_inputs for job in jobs] == [6]


async def test_many_texts_at_once_are_read_on_threads(make_case: MakeCase) -> None:
    case = make_case("bytes", "token-classification", TAGS)
    texts = TEXTS * 20
    found = await case.post(texts, aggregation_strategy="first")
    check_same(found, [case.pipeline(text, aggregation_strategy="first") for text in TEXTS] * 20)
