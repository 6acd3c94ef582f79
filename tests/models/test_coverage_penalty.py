"""Beam search with a coverage penalty: the published formula, searched plainly over what transformers computes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from seq2seq_engines import Answering, Found, answer, build_seq2seq, read_answers, settle
from tiny_decoders import make_ids
from tiny_models import Ids, TinyModel
from tiny_seq2seq import make_seq2seq

from runtime.engines.decoder import DecoderEngine
from server.tasks.text2text import DecodingWish
from server.wire.generation import GenerationParams

WIDTH, MAX_TOKENS, STOPS = 3, 7, (5, 40, 41, 42, 43, 44, 45)
LONGER = 24
"""More than a block."""
SOURCES = make_ids([15, 33, 1, 8, 21, 40])

Candidate = tuple[float, tuple[int, ...], npt.NDArray[np.float64]]
"""Sum of logprobs, tokens, and how much they have looked at each token of the source."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    made = make_seq2seq("bart", tmp_path_factory.mktemp("bart"))
    assert made.info.seq2seq is not None
    return replace(made, info=replace(made.info, seq2seq=replace(made.info.seq2seq, has_coverage=True)))


@pytest.fixture(scope="module")
def engine(model: TinyModel) -> DecoderEngine:
    return build_seq2seq(model)


def settle_search(model: TinyModel, beta: float, max_tokens: int = MAX_TOKENS, **wishes: Any) -> GenerationParams:
    """By nothing but scores."""
    wish = DecodingWish(max_tokens, beam_width=WIDTH, num_answers=WIDTH, coverage_penalty=beta, **wishes)
    return replace(settle(model, STOPS, wish), processors=())


class PlainSearch:
    """Of one source. Wu et al., 2016, equation 14: s(Y, X) = log P(Y | X) / |Y|^alpha + cp(X; Y)."""

    def __init__(self, model: TinyModel, source: Ids, beta: float, alpha: float) -> None:
        self.theirs, self.source, self.beta, self.alpha = model.theirs, torch.from_numpy(source)[None], beta, alpha
        assert model.info.seq2seq is not None
        self.start = model.info.seq2seq.decoder_start_token_id

    def rate(self, candidate: Candidate) -> float:
        score, token_ids, coverage = candidate
        penalty = self.beta * float(np.log(np.minimum(coverage, 1)).sum())
        return float(score / len(token_ids) ** self.alpha + penalty)

    def extend(self, beam: Candidate) -> list[Candidate]:
        score, token_ids, coverage = beam
        target = torch.tensor([[self.start, *token_ids]])
        with torch.inference_mode():
            found = self.theirs(self.source, decoder_input_ids=target, output_attentions=True, use_cache=False)
        looked = coverage + found.cross_attentions[-1][0, :, -1].double().mean(0).numpy()
        logprobs = found.logits[0, -1].double().log_softmax(-1).tolist()
        return [(score + logprob, (*token_ids, token_id), looked) for token_id, logprob in enumerate(logprobs)]

    def run(self) -> list[Found]:
        beams: list[Candidate] = [(0.0, (), np.zeros(self.source.shape[1]))]
        finished: list[Candidate] = []
        for length in range(1, MAX_TOKENS + 1):
            candidates = sorted((each for beam in beams for each in self.extend(beam)), key=lambda each: -each[0])
            ended = [each for each in candidates[:WIDTH] if each[1][-1] in STOPS or length == MAX_TOKENS]
            beams = [each for each in candidates if each[1][-1] not in STOPS][:WIDTH]
            finished = sorted([*finished, *ended], key=lambda each: -self.rate(each))[:WIDTH]
            if len(finished) == WIDTH and self.rate(beams[0]) <= self.rate(finished[-1]):
                break
        return [(each[1], self.rate(each)) for each in finished]


def check_same(found: Sequence[list[Found]], expected: Sequence[list[Found]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert [token_ids for token_ids, _ in ours] == [token_ids for token_ids, _ in theirs]
        scores = [[score for _, score in each] for each in (ours, theirs)]
        np.testing.assert_allclose(*scores, rtol=1e-4)


@pytest.mark.parametrize(("beta", "alpha"), [(0.2, 1.0), pytest.param(2.0, 0.5, marks=pytest.mark.slow)])
def test_answers_and_scores_are_those_of_the_formula(
    model: TinyModel, engine: DecoderEngine, beta: float, alpha: float
) -> None:
    params = settle_search(model, beta, length_penalty=alpha)
    found = answer(model, engine, SOURCES, params)
    check_same(found, [PlainSearch(model, source, beta, alpha).run() for source in SOURCES])
    assert found != answer(model, engine, SOURCES, settle_search(model, 0.0, length_penalty=alpha))


@pytest.mark.parametrize("early_stopping", [False, pytest.param(True, marks=pytest.mark.slow), "never"])
def test_each_alone_as_among_all(model: TinyModel, engine: DecoderEngine, early_stopping: Any) -> None:
    """Also where blocks run out, so that beams are computed anew, beside searches that ask nothing."""
    params = settle_search(model, 1.0, LONGER, early_stopping=early_stopping)
    alone = [answer(model, engine, [source], params)[0] for source in SOURCES]
    check_same(answer(model, engine, SOURCES, params), alone)
    check_same(answer(model, engine, SOURCES, params, num_blocks=17), alone)


def test_beside_those_who_ask_for_none(model: TinyModel, engine: DecoderEngine) -> None:
    """What they look at is not asked."""
    plain, covering = settle_search(model, 0.0), settle_search(model, 1.0)
    expected = [answer(model, engine, [source], params)[0] for source in SOURCES for params in (plain, covering)]
    found = answer_each(model, engine, [(source, params) for source in SOURCES for params in (plain, covering)])
    check_same(found, expected)


def answer_each(
    model: TinyModel, engine: DecoderEngine, asked: Sequence[tuple[Ids, GenerationParams]]
) -> list[list[Found]]:
    answering = Answering(model, engine)
    heard = [answering.start(source, params) for source, params in asked]
    answering.run.run()
    return [read_answers(each) for each in heard]
