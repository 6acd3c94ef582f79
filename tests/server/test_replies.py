"""Long answers are made in turns, and are what short ones would be."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSIFIER, MakeServer, Server, build_tokenizer
from test_hf_words_route import ASKED, FILLER, READER

from server.http import replies
from server.http.api import hf_labels, hf_words
from server.http.replies import make_parts

pytestmark = pytest.mark.anyio

TAGGER = replace(CLASSIFIER, task="token_classify")


async def test_others_have_the_thread_between_two_parts(server: Server, model_directory: Path) -> None:
    def make() -> Iterator[int]:
        for index in range(20):
            time.sleep(0.01)
            yield index

    with ThreadPoolExecutor(1) as pool:
        tokenizer = build_tokenizer(model_directory, pool)
        model = replace(server.state.models["embedder"], tokenizer=tokenizer)
        making = asyncio.create_task(make_parts(make(), 2, 1, model))
        await asyncio.sleep(0)
        await tokenizer.run(lambda: None)
        assert not making.done()
        assert await making == list(range(20))


@pytest.mark.parametrize(
    ("name", "inputs", "num_turns"),
    [
        ("tagger", ["word1 word2", "word3"], 8),
        ("tagger", "word1 word2 word3", 6),
        ("filler", ["word1 ? ?", "?"], 15),
        ("filler", "word1 ?", 5),
        ("reader", [ASKED, ASKED | {"context": "word5 word6"}], 4),
        ("reader", ASKED, 2),
    ],
)
async def test_beside_the_event_loop_answers_are_the_same(
    make_server: MakeServer, name: str, inputs: Any, num_turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where turns are as short as can be: one text is made in many."""
    server = make_server(others={"tagger": TAGGER, "filler": FILLER, "reader": READER})
    inline = await server.client.post(f"/models/{name}", json={"inputs": inputs})
    for module in (hf_labels, hf_words):
        monkeypatch.setattr(module, "INLINE_ITEMS", 0)
    monkeypatch.setattr(replies, "INLINE_ITEMS", 1)
    monkeypatch.setattr(replies, "TURN_S", 0)
    turns: list[bool] = []
    make_some = replies.make_some

    def count_and_make(*given: Any, **options: Any) -> bool:
        turns.append(make_some(*given, **options))
        return turns[-1]

    monkeypatch.setattr(replies, "make_some", count_and_make)
    beside = await server.client.post(f"/models/{name}", json={"inputs": inputs})
    assert inline.status_code == 200 and inline.json() == beside.json()
    assert len(turns) >= num_turns and turns == [*[False] * (len(turns) - 1), True]
