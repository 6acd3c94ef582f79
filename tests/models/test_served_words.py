"""What models say of words and tokens, from the request to the numbers, on a real engine: all heads of one trunk."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tokenizers
import torch
import transformers
from sentence_dirs import build_tokenizer, make_base
from test_served_prompts import Client, open_client

from server.config import HeadConfig, SourceConfig
from tests.tolerances import check_close

MASKED = ["abc [MASK] def", "[MASK]", "a [MASK] b [MASK] c [MASK]", "gh ij [MASK] kl mn op", "abc [MASK] def"]
CONTEXT = "abc def ghi jkl mno pqr"
HEADS: dict[str, tuple[Any, str]] = {
    "tags": (transformers.AutoModelForTokenClassification, "auto"),
    "answers": (transformers.AutoModelForQuestionAnswering, "auto"),
    "words": (transformers.AutoModelForMaskedLM, "fill_mask"),
    "splade": (transformers.AutoModelForMaskedLM, "sparse"),
}


@dataclass
class Served:
    """`theirs`: transformers' models by the heads' names, the trunk's empty. Mutable: the event loop."""

    theirs: dict[str, Any]
    client: Client
    runner: asyncio.Runner

    def run(self, ask: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
        self.runner.run(ask(self.client))


def make_models(folder: Path) -> dict[str, Any]:
    """Directories of the trunk and of heads on it."""
    make_base(folder / "trunk")
    trunk = transformers.AutoModel.from_pretrained(folder / "trunk").eval()
    theirs = {"": trunk}
    for name, (auto, _) in HEADS.items():
        make_base(folder / name, head=auto)
        theirs[name] = auto.from_pretrained(folder / name).eval()
        theirs[name].bert.load_state_dict(trunk.state_dict(), strict=False)
        theirs[name].save_pretrained(folder / name)
    return theirs


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("heads")
    theirs = make_models(folder)
    heads = [
        HeadConfig(name=name, source=SourceConfig(path=str(folder / name)), task=task)
        for name, (_, task) in HEADS.items()
    ]
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        opened = open_client(folder / "trunk", folder / "run", heads=heads)
        yield Served(theirs, runner.run(stack.enter_async_context(opened)), runner)
        runner.run(stack.aclose())


async def post(client: Client, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def infer(client: Client, head: str, inputs: Any, **parameters: Any) -> Any:
    return await post(client, f"/models/model/{head}", inputs=inputs, parameters=parameters)


def check(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check(one, other)
        return
    assert found | {"score": 0} == expected | {"score": 0}
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_masked_words_are_those_of_transformers(served: Served) -> None:
    """Texts at once and one by one, of jobs with parameters of their own; there are more places than texts."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(), pad_token="[PAD]", mask_token="[MASK]", sep_token="[SEP]", cls_token="[CLS]"
    )
    pipeline = transformers.pipeline("fill-mask", model=served.theirs["words"], tokenizer=tokenizer)

    async def ask(client: Client) -> None:
        choices: list[dict[str, Any]] = [{}, {"top_k": 2}, {"targets": ["a", "b", "c"]}]
        answers = await asyncio.gather(*(infer(client, "words", MASKED, **options) for options in choices))
        for options, answer in zip(choices, answers, strict=True):
            check(answer, [pipeline(text, **options) for text in MASKED])
            assert [await infer(client, "words", text, **options) for text in MASKED] == answer

    served.run(ask)


@torch.no_grad()
def compute(theirs: Any, encoding: tokenizers.Encoding) -> Any:
    return theirs(torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids]))


def test_answers_begin_and_end_where_transformers_logits_say(served: Served) -> None:
    encoding = build_tokenizer().encode("ab", CONTEXT)
    output = compute(served.theirs["answers"], encoding)
    counts = torch.tensor([owner == 1 for owner in encoding.sequence_ids])
    counts[0] = True
    starts, ends = (
        logits[0].masked_fill(~counts, -torch.inf).softmax(0).numpy()
        for logits in (output.start_logits, output.end_logits)
    )
    scores = np.triu(np.outer(starts, ends))
    scores[0] = 0
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    start, end = encoding.offsets[first][0], encoding.offsets[last][1]

    async def ask(client: Client) -> None:
        asked = {"question": "ab", "context": CONTEXT}
        found = await infer(client, "answers", [asked] * 3, align_to_words=False, max_answer_len=50)
        expected = {"score": float(scores.max()), "start": start, "end": end, "answer": CONTEXT[start:end]}
        check(found, [expected] * 3)
        whole = await infer(client, "answers", asked)
        assert whole["answer"].split() == CONTEXT[whole["start"] : whole["end"]].split()
        assert set(whole["answer"].split()) <= set(CONTEXT.split())

    served.run(ask)


def list_rows(name: str, theirs: Any, encoding: tokenizers.Encoding) -> np.ndarray:
    """What the output has of one input, `[width]` or `[n, width]`."""
    output = compute(theirs, encoding)
    if name == "answers.token_logits":
        rows = torch.stack([output.start_logits, output.end_logits], dim=-1)[0]
    elif name == "tokens.token_embeddings":
        rows = output.last_hidden_state[0]
    elif name == "words.masked_logits":
        rows = output.logits[0][[token == "[MASK]" for token in encoding.tokens]]
    else:
        rows = output.logits[0]
    return np.asarray((rows.max(dim=0).values if name == "splade.max_logits" else rows).numpy())


def list_expected(served: Served, name: str, encodings: list[tokenizers.Encoding]) -> np.ndarray:
    """The whole tensor, with zeros where others have more rows."""
    head = name.split(".")[0]
    rows = [list_rows(name, served.theirs["" if head == "tokens" else head], each) for each in encodings]
    filled = np.zeros((len(rows), *np.max([each.shape for each in rows], axis=0)), np.float32)
    for place, each in enumerate(rows):
        filled[(place, *map(slice, each.shape))] = each
    return filled


OUTPUTS = (
    *("tags.token_logits", "answers.token_logits", "words.masked_logits"),
    *("splade.max_logits", "tokens.token_embeddings"),
)


def test_the_open_inference_protocol_has_them_all_of_one_pass(served: Served) -> None:
    names = OUTPUTS[:-1]  # of those that nobody has configured MODEL has none
    expected = {name: list_expected(served, name, build_tokenizer().encode_batch(MASKED)) for name in names}

    async def ask(client: Client) -> None:
        text = {"name": "text", "datatype": "BYTES", "shape": [len(MASKED)], "data": MASKED}
        answer = await post(client, "/v2/models/model/infer", inputs=[text], outputs=[{"name": name} for name in names])
        assert [output["name"] for output in answer["outputs"]] == list(names)
        for output in answer["outputs"]:
            found = np.array(output["data"], np.float32).reshape(output["shape"])
            check_close(found, expected[output["name"]], what=output["name"])

    served.run(ask)


@pytest.mark.parametrize("name", OUTPUTS)
def test_each_by_its_head_of_padded_ids(served: Served, name: str) -> None:
    """With types, as questions and their contexts have; in bytes."""
    encodings = build_tokenizer().encode_batch([("ab", "cd [MASK] e"), ("abc [MASK]", "ef"), ("a", "[MASK] [MASK]")])
    expected = list_expected(served, name, encodings)
    longest = max(map(len, encodings))
    for each in encodings:
        each.pad(longest)
    tensors = {
        "input_ids": np.array([each.ids for each in encodings]),
        "attention_mask": np.array([each.attention_mask for each in encodings]),
        "token_type_ids": np.array([each.type_ids for each in encodings]),
    }
    served.run(partial(check_bytes, name=name, tensors=tensors, expected=expected))


async def check_bytes(client: Client, name: str, tensors: dict[str, np.ndarray], expected: np.ndarray) -> None:
    inputs = [
        {
            "name": key,
            "datatype": "INT64",
            "shape": values.shape,
            "parameters": {"binary_data_size": values.nbytes},
        }
        for key, values in tensors.items()
    ]
    head = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    response = await client.post(
        f"/v2/models/model/{name.split('.')[0]}/infer",
        content=head + b"".join(values.tobytes() for values in tensors.values()),
        headers={"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"},
    )
    assert response.status_code == 200, response.text
    length = int(response.headers["inference-header-content-length"])
    (output,) = orjson.loads(response.content[:length])["outputs"]
    assert output["name"] == name
    found = np.frombuffer(response.content[length:], "<f4").reshape(output["shape"])
    check_close(found, expected, what=name)
