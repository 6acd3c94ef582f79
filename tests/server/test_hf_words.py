"""Fill-mask against transformers' pipeline, and question answering against what its version 4 publishes, over the same
tiny random models and real tokenizers."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from conftest import FakeEngine, MakeServer, Server
from conftest import build_tokenizer as load_ours
from test_hf_pipelines import check_same
from tiny_tokenizers import KINDS, MAX_TOKENS, build_tokenizer

from models.info import ModelInfo
from runtime.batch import ArraySpec
from server.wire.job import Job, Ragged, join_rows

pytestmark = pytest.mark.anyio

MASKED = ["Clara lived in <mask>.", "  Friedrich  <mask> wohnte in Düsseldorf", "<mask> 🎹 東京", "a<mask>b"]
SEVERAL = "Clara <mask> lived in <mask> and in <mask>"
TARGETS = ["lived", " Leipzig", "Clara", "nowhere else", "lived"]
CONTEXT = "Clara Schumann lived in Leipzig and in Frankfurt, where she taught the piano — don't ask! Zürich, 東京."
QUESTIONS = [("Where did Clara live?", CONTEXT), ("Wo?", "Robert wohnte in Zwickau und in Düsseldorf.")]
LONG = " ".join([CONTEXT, QUESTIONS[1][1]] * 4)


class ModelEngine(FakeEngine):
    """Computes with transformers' model, each input by itself."""

    theirs: Any = None

    def compute_values(self, job: Job, spec: ArraySpec) -> Ragged:
        types = job.inputs.get("token_type_ids")
        rows = [
            compute_rows(self.theirs, job.input_ids.row(index), None if types is None else types.row(index))
            for index in range(job.num_inputs)
        ]
        if spec.dims[0] == "num_logits":
            rows = [each[job.inputs["logit_rows"].row(index)] for index, each in enumerate(rows)]
        return join_rows(rows)


@torch.no_grad()
def compute_rows(theirs: Any, ids: Any, types: Any) -> np.ndarray:
    """Logits [num_tokens, vocab_size], or [num_tokens, 2] of borders."""
    inputs = {"input_ids": torch.tensor(np.array(ids, np.int64))[None]}
    if types is not None:
        inputs["token_type_ids"] = torch.tensor(np.array(types, np.int64))[None]
    output = theirs(**inputs)
    borders = [output.start_logits, output.end_logits] if "start_logits" in output else []
    return np.asarray((torch.stack(borders, dim=-1) if borders else output.logits)[0].numpy())


class Case:
    """One tokenizer and model, here and in transformers."""

    def __init__(self, theirs: Any, tokenizer: Any, server: Server) -> None:
        self.theirs, self.tokenizer, self.server = theirs, tokenizer, server

    async def post(self, inputs: Any, **parameters: Any) -> Any:
        response = await self.server.client.post("/models/tiny", json={"inputs": inputs, "parameters": parameters})
        assert response.status_code == 200, response.text
        return response.json()


MakeCase = Callable[..., Case]


@pytest.fixture
def make_case(tmp_path: Any, pool: ThreadPoolExecutor, make_server: MakeServer) -> MakeCase:
    """`make_case(kind, task)`."""

    def make(kind: str, task: str, **limits: Any) -> Case:
        mask = tokenizers.AddedToken("<mask>", lstrip=kind == "bytes", special=True)
        raw = build_tokenizer(kind)
        raw.add_special_tokens([mask])
        raw.save(str(tmp_path / "tokenizer.json"))
        theirs_tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(tmp_path / "tokenizer.json"),
            model_max_length=MAX_TOKENS,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
            pad_token="<pad>",
            unk_token="<unk>",
            cls_token="<s>",
            sep_token="</s>",
            mask_token=mask,
        )
        size = len(theirs_tokenizer)
        torch.manual_seed(len(kind))
        config = transformers.BertConfig(
            vocab_size=size,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            initializer_range=0.5,
        )
        is_masked = task == "fill_mask"
        name = "BertForMaskedLM" if is_masked else "BertForQuestionAnswering"
        mask_token_id = theirs_tokenizer.mask_token_id if is_masked else None
        info = ModelInfo(name, task, size, 2, MAX_TOKENS, size if is_masked else 2, mask_token_id=mask_token_id)
        ours = load_ours(tmp_path, pool, max_input_tokens=MAX_TOKENS, vocab_size=size)
        server = make_server(tokenizer=ours, others={"tiny": info}, **limits)
        engine = ModelEngine(info)
        engine.theirs = getattr(transformers, name)(config).eval()
        server.state.models["tiny"] = replace(server.state.models["tiny"], engine=engine)
        return Case(engine.theirs, theirs_tokenizer, server)

    return make


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"targets": TARGETS}, {"targets": TARGETS[1], "top_k": 2}])
@pytest.mark.parametrize("kind", KINDS)
async def test_masked_words(make_case: MakeCase, kind: str, options: dict[str, Any]) -> None:
    """One place or several in a text, alone and in a list."""
    case = make_case(kind, "fill_mask")
    pipeline = transformers.pipeline("fill-mask", model=case.theirs, tokenizer=case.tokenizer)
    texts = [*MASKED, SEVERAL]
    expected = [pipeline(text, **options) for text in texts]
    check_same(await case.post(texts, **options), expected)
    for text, each in zip(texts, expected, strict=True):
        check_same(await case.post(text, **options), each)
    assert len(expected[-1]) == 3 and expected[-1][0][0]["sequence"].count("<mask>") == 2


async def test_all_words_may_be_wanted(make_case: MakeCase) -> None:
    case = make_case("wordpiece", "fill_mask")
    found = await case.post(MASKED[0], top_k=1000)
    assert len(found) == len(case.tokenizer)
    assert sum(item["score"] for item in found) == pytest.approx(1.0)


async def test_only_masked_places_cross_the_wire(make_case: MakeCase) -> None:
    case = make_case("wordpiece", "fill_mask")
    await case.post([MASKED[0], SEVERAL])
    (job,) = case.server.state.models["tiny"].engine.jobs  # type: ignore[attr-defined]
    rows = job.inputs["logit_rows"]
    assert [len(rows.row(index)) for index in range(2)] == [1, 3]
    masked = [job.input_ids.row(index)[rows.row(index)] for index in range(2)]
    assert set(np.concatenate(masked)) == {case.tokenizer.mask_token_id}


def answer(
    case: Case,
    question: str,
    context: str,
    *,
    top_k: int = 1,
    max_answer_len: int = 15,
    max_seq_len: int = MAX_TOKENS,
    doc_stride: int = MAX_TOKENS // 2,
    handle_impossible_answer: bool = False,
    align_to_words: bool = True,
) -> list[dict[str, Any]]:
    """As QuestionAnsweringPipeline of transformers 4.57 is published: windows, softmax, products, words, sums."""
    encoded = case.tokenizer(
        *(question, context),
        truncation="only_second",
        max_length=max_seq_len,
        stride=doc_stride,
        return_overflowing_tokens=True,
    )
    answers: list[dict[str, Any]] = []
    least_null = 1e6
    for encoding in encoded.encodings:
        logits = compute_rows(case.theirs, encoding.ids, encoding.type_ids).astype(np.float64)
        allowed = np.array([owner == 1 for owner in encoding.sequence_ids])
        allowed[0] = True
        exps = np.exp(np.where(allowed[:, None], logits, -10000.0) - logits[allowed].max(0))
        starts, ends = (exps / exps.sum(0)).T
        least_null = min(least_null, starts[0] * ends[0])
        starts[0] = ends[0] = 0
        products = np.tril(np.triu(np.outer(starts, ends)), max_answer_len - 1)
        best = np.argsort(-products.ravel(), kind="stable")[: 2 * top_k + 10 if align_to_words else top_k]
        for first, last in np.stack(np.unravel_index(best, products.shape), 1).tolist():
            if not products[first, last]:
                continue
            start, end = encoding.offsets[first][0], encoding.offsets[last][1]
            if align_to_words:
                start = encoding.word_to_chars(encoding.token_to_word(first), 1)[0]
                end = encoding.word_to_chars(encoding.token_to_word(last), 1)[1]
            text = context[start:end]
            same = [each for each in answers if each["answer"].lower() == text.lower()]
            if same:
                same[0]["score"] += products[first, last]
            else:
                answers.append({"score": products[first, last], "start": start, "end": end, "answer": text})
    if handle_impossible_answer:
        answers.append({"score": least_null, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda each: -each["score"])[:top_k]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 4},
    {"top_k": 3, "align_to_words": False},
    {"max_answer_len": 2, "top_k": 2},
    {"handle_impossible_answer": True, "top_k": 8},
    {"max_seq_len": 40, "doc_stride": 5, "top_k": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
async def test_answers(make_case: MakeCase, kind: str, options: dict[str, Any]) -> None:
    """Short and long contexts, alone and in a list."""
    case = make_case(kind, "question_answering")
    pairs = [*QUESTIONS, ("Who?", LONG)]
    wanted = [answer(case, *pair, **options) for pair in pairs]
    expected = [each[0] for each in wanted] if options.get("top_k", 1) == 1 else wanted
    bodies = [{"question": question, "context": context} for question, context in pairs]
    check_same(await case.post(bodies, **options), expected)
    check_same(await case.post(bodies[2], **options), expected[2])
    for (_, context), answers in zip(pairs, wanted, strict=True):
        assert all(context[each["start"] : each["end"]] == each["answer"] for each in answers)


async def test_long_questions_are_cut(make_case: MakeCase) -> None:
    case = make_case("wordpiece", "question_answering")
    short = {"question": "Where did Clara", "context": CONTEXT}
    num_tokens = len(case.tokenizer(short["question"], add_special_tokens=False).input_ids)
    cut = await case.post(short | {"question": "Where did Clara live in the end?"}, max_question_len=num_tokens)
    assert cut == await case.post(short)


async def test_many_at_once_are_answered_on_threads(make_case: MakeCase) -> None:
    case = make_case("bytes", "question_answering")
    bodies = [{"question": question, "context": context} for question, context in QUESTIONS] * 20
    check_same(await case.post(bodies), [answer(case, *pair)[0] for pair in QUESTIONS] * 20)
    case = make_case("bytes", "fill_mask")
    found = await case.post(MASKED * 20, top_k=20)
    assert found == [await case.post(text, top_k=20) for text in MASKED] * 20
