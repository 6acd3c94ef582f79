"""Encoder-decoders through batcher, engine and compiled kernels: the answers that transformers' `generate` finds, with
its scores, and a request's own whatever else is computed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seq2seq_engines import Answering, Found, answer, answer_by_transformers, build_seq2seq, settle
from tiny_decoders import make_ids
from tiny_models import Ids, TinyModel
from tiny_seq2seq import make_seq2seq

from models.info import read_info
from runtime.engines.decoder import DecoderEngine
from runtime.kv_cache.blocks import count_blocks
from server.tasks.text2text import DecodingWish
from server.wire.generation import GenerationParams
from server.wire.processors import NoSourceNgrams

FAMILIES = ("t5", "t5-gated", "bart", "mbart", "marian", "m2m_100", "pegasus")
ONE = "m2m_100"
"""What does not depend on a family is compared for this one."""
LENGTHS = (15, 16, 33, 1, 40, 7)
NUM_TOKENS, WIDTH = 12, 4
MANY_TOKENS = 24
"""More than a block holds, so that answers want further ones."""
VARIED = {"no_repeat_ngram_size": 2}
"""Models that were never trained would say one token over and over."""
CROWDED: tuple[dict[str, int], ...] = ({}, {"max_batch_tokens": 41, "max_batch_logits": 17}, {"num_blocks": 14})
"""What is beside a request: others, as many as there is room for; few; and so many that some are put back."""

THEIR_NAMES = {
    "beam_width": "num_beams",
    "forced_begin": "forced_bos_token_id",
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "num_answers": "num_return_sequences",
}
"""transformers', of what a `DecodingWish` calls otherwise."""
SEARCHES: tuple[dict[str, Any], ...] = (
    {"beam_width": 3, "num_answers": 3, "min_tokens": 2},
    {"beam_width": 4, "num_answers": 2, "length_penalty": -1.0, "no_repeat_ngram_size": 3},
    {"beam_width": 4, "num_answers": 4, "length_penalty": 2.0, "early_stopping": True},
    {"beam_width": 4, "num_answers": 4, "length_penalty": 0.0, "early_stopping": "never", "repetition_penalty": 1.5},
    {"beam_width": 5, "num_answers": 5, "forced_begin": 9, "min_tokens": 6, "no_repeat_ngram_size": 1},
    {"beam_width": 1, "forced_begin": 9, "min_tokens": 3, "no_repeat_ngram_size": 3, "repetition_penalty": 1.1},
    {"beam_width": 2, "num_answers": 1, "no_repeat_ngram_size": 2, "max_tokens": 40},
)


@dataclass(frozen=True)
class Served:
    """`stops`: one token that answers have, and one of the directory."""

    model: TinyModel
    engine: DecoderEngine
    sources: list[Ids]
    stops: tuple[int, ...]

    def settle(self, **wishes: Any) -> GenerationParams:
        return settle(self.model, self.stops, DecodingWish(**({"max_tokens": NUM_TOKENS} | wishes)))

    def answer(self, params: GenerationParams, sources: list[Ids] | None = None, **options: Any) -> list[list[Found]]:
        return answer(self.model, self.engine, self.sources if sources is None else sources, params, **options)

    def answer_by_transformers(self, **wishes: Any) -> list[list[Found]]:
        named = {THEIR_NAMES.get(name, name): value for name, value in ({"max_tokens": NUM_TOKENS} | wishes).items()}
        return answer_by_transformers(self.model, self.sources, self.stops, **named)


def forbid_padding(model: TinyModel) -> TinyModel:
    """As directories of Marian have it. M2M-100 of transformers counts no position for such a token."""
    model.theirs.generation_config.bad_words_ids = [[model.theirs.config.pad_token_id]]
    model.theirs.save_pretrained(model.directory)
    return replace(model, info=read_info(model.directory))


def serve(name: str, directory: Path) -> Served:
    model = forbid_padding(make_seq2seq(name, directory))
    engine, sources, stop = build_seq2seq(model), make_ids(LENGTHS), model.info.eos_token_ids
    params = settle(model, stop, DecodingWish(max_tokens=NUM_TOKENS, beam_width=1, no_repeat_ngram_size=2))
    greedy = [found[0][0] for found in answer(model, engine, sources, params)]
    return Served(model, engine, sources, (*stop, greedy[0][5]))


@pytest.fixture(scope="module")
def find_served(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Served]:
    return cache(lambda name: serve(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, find_served: Callable[[str], Served]) -> Served:
    return find_served(request.param)


@pytest.fixture(scope="module")
def one(find_served: Callable[[str], Served]) -> Served:
    return find_served(ONE)


def check_same(found: list[list[Found]], expected: list[list[Found]]) -> None:
    assert [[ids for ids, _ in answers] for answers in found] == [[ids for ids, _ in answers] for answers in expected]
    scores = [np.array([[score for _, score in answers] for answers in each], float) for each in (found, expected)]
    np.testing.assert_allclose(*scores, rtol=2e-5, atol=1e-5)


def test_greedy_answers_are_transformers(served: Served) -> None:
    wishes = {"beam_width": 1} | VARIED
    found = served.answer(served.settle(**wishes))
    check_same(found, served.answer_by_transformers(**wishes))
    assert len({len(ids) for ((ids, _),) in found}) > 1, "No answer ends before the others."


def test_beams_and_their_scores_are_transformers(served: Served) -> None:
    wishes = {"beam_width": WIDTH, "num_answers": WIDTH} | VARIED
    check_same(served.answer(served.settle(**wishes)), served.answer_by_transformers(**wishes))


@pytest.mark.parametrize("width", [1, WIDTH])
def test_alone_is_as_in_any_batch(served: Served, width: int) -> None:
    """Bit for bit, scores too."""
    params = served.settle(beam_width=width, num_answers=width, min_tokens=MANY_TOKENS - 4, max_tokens=MANY_TOKENS)
    alone = [served.answer(params, [source])[0] for source in served.sources]
    for options in CROWDED:
        assert served.answer(params, **options) == alone


@pytest.mark.parametrize("wishes", SEARCHES, ids=lambda wishes: "-".join(wishes))
def test_every_kind_of_search_is_transformers(one: Served, wishes: dict[str, Any]) -> None:
    expected = one.answer_by_transformers(**wishes)
    check_same(one.answer(one.settle(**wishes)), expected)


@pytest.mark.parametrize("size", [1, 2])
def test_what_a_source_has_is_not_written_again(one: Served, size: int) -> None:
    """As a directory may say."""
    params = one.settle(beam_width=3, num_answers=3)
    params = replace(params, processors=(*params.processors, NoSourceNgrams(size)))
    expected = one.answer_by_transformers(beam_width=3, num_answers=3, encoder_no_repeat_ngram_size=size)
    check_same(one.answer(params), expected)


@pytest.mark.parametrize("width", [1, WIDTH])
def test_an_answer_that_ends_frees_its_blocks_at_once(one: Served, width: int) -> None:
    answering = Answering(one.model, one.engine)
    params = one.settle(beam_width=width, **VARIED)
    heard = [answering.start(source, params) for source in one.sources]
    counts = []
    while answering.run.step():
        under_way = [source for source, each in zip(one.sources, heard, strict=True) if not each.has_ended]
        least = sum(count_blocks(len(source)) + 1 for source in under_way)
        most = sum(count_blocks(len(source)) + width for source in under_way)
        counts.append(answering.run.allocator.num_used_blocks)
        assert least <= counts[-1] <= most
    assert len(set(counts)) > 2, "All end at once."
