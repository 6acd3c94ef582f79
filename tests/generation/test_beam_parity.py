"""Beam search against transformers' on one tiny random model in fp32: the same answers, with the same scores.

Through the batcher and the sampler, so that what logits processors and penalties do to beams is compared as well.
Answers that a stop token ends compete with answers that max_tokens cuts, so that the length penalty decides.
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from runtime.batch import ArraySpec, Batch, Paging, SampledTokens
from runtime.engine import EngineInfo
from runtime.engines.null_decoder import NullDecoder
from runtime.sampling import sample
from server.wire.generation import EarlyStopping, GenerationParams
from server.wire.processors import (
    BadWords,
    ForcedBegin,
    ForcedEnd,
    MinTokens,
    NoRepeatNgrams,
    Processor,
    SuppressedAtBegin,
    SuppressedTokens,
)
from tests.generation.continuous import Continuous, Heard

WIDTH, MAX_TOKENS, VOCAB_SIZE = 4, 7, 40
STOPS, FREQUENT = (1, 2, 3, 4, 5, 6), (1, 2, 37)
"""Stop tokens: with those that are frequent, searches end before max_tokens does."""
PROMPTS = [[number, 5, 2 * number + 1] for number in range(12)]

Answers = list[tuple[tuple[int, ...], float]]
"""Tokens and score of each, the best first."""


@cache
def build_model() -> GPT2LMHeadModel:
    sizes = {"vocab_size": VOCAB_SIZE, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=STOPS[0])).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
        model.transformer.ln_f.bias.zero_()  # else every token has its frequency, whatever came before
    return model


class TinyDecoder(NullDecoder):
    """The model behind the null decoder's cache of tokens."""

    def choose(self, batch: Batch, paging: Paging) -> SampledTokens:
        pasts = [self.read_past(batch, paging, int(place)) for place in paging.logit_rows]
        logits = torch.zeros(len(pasts), VOCAB_SIZE)
        for length in {len(past) for past in pasts}:
            rows = [row for row, past in enumerate(pasts) if len(past) == length]
            with torch.inference_mode():
                logits[rows] = build_model()(torch.from_numpy(np.stack([pasts[row] for row in rows]))).logits[:, -1]
        return sample(logits, paging.sampling)


def search(prompts: list[list[int]], stops: tuple[int, ...] = STOPS, **wishes: Any) -> list[Answers]:
    logits = ArraySpec("logits", "float32", ("num_logits", VOCAB_SIZE))
    engine = TinyDecoder(EngineInfo("null", "none", "", "cpu", 1, (logits,), num_blocks=200))
    run = Continuous(engine=engine, num_blocks=200, max_batch_requests=64, max_batch_tokens=256)
    params = GenerationParams(MAX_TOKENS, num_sequences=WIDTH, beam_width=WIDTH, stop_token_ids=stops, **wishes)
    heard = [run.start(prompt, params) for prompt in prompts]
    run.run()
    return [read_answers(each) for each in heard]


def read_answers(heard: Heard) -> Answers:
    assert heard.error is None
    return [(news.token_ids, news.score) for news in heard.news if news.score is not None]


def search_by_transformers(prompts: list[list[int]], stops: tuple[int, ...] = STOPS, **wishes: Any) -> list[Answers]:
    found = build_model().generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.long),
        num_beams=WIDTH,
        num_return_sequences=WIDTH,
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        eos_token_id=list(stops),
        pad_token_id=stops[0],
        return_dict_in_generate=True,
        output_scores=True,
        **wishes,
    )
    answers = [strip_padding(row[len(prompts[0]) :].tolist(), stops) for row in found.sequences]
    pairs = list(zip(answers, found.sequences_scores.tolist(), strict=True))
    return [pairs[first : first + WIDTH] for first in range(0, len(pairs), WIDTH)]


@cache
def search_plainly() -> list[Answers]:
    return search_by_transformers(PROMPTS)


def strip_padding(answer: list[int], stops: tuple[int, ...]) -> tuple[int, ...]:
    place = next((index for index, token in enumerate(answer) if token in stops), len(answer) - 1)
    return tuple(answer[: place + 1])


def check_same(found: list[Answers], expected: list[Answers]) -> None:
    assert [[token_ids for token_ids, _ in answers] for answers in found] == [
        [token_ids for token_ids, _ in answers] for answers in expected
    ]
    scores = [np.array([[score for _, score in answers] for answers in each]) for each in (found, expected)]
    np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize(("stops", "penalty"), [(STOPS, -2.0), (STOPS, 0.5), (FREQUENT, 1.0), (FREQUENT, 3.0)])
def test_answers_and_scores_are_transformers(
    stops: tuple[int, ...], penalty: float, early_stopping: EarlyStopping
) -> None:
    wishes = {"length_penalty": penalty, "early_stopping": early_stopping}
    check_same(search(PROMPTS, stops, **wishes), search_by_transformers(PROMPTS, stops, **wishes))


@pytest.mark.parametrize(
    ("processors", "wishes"),
    [
        ((NoRepeatNgrams(2),), {"no_repeat_ngram_size": 2}),
        ((BadWords(((7,), (30, 37, 30))),), {"bad_words_ids": [[7], [30, 37, 30]]}),
        ((MinTokens(4),), {"min_new_tokens": 4}),
        ((ForcedEnd((2,)),), {"forced_eos_token_id": 2}),
        ((SuppressedTokens((11, 37)),), {"suppress_tokens": [11, 37]}),
        ((SuppressedAtBegin((1, 30)),), {"begin_suppress_tokens": [1, 30]}),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_processors_act_on_logprobs_as_transformers(processors: tuple[Processor, ...], wishes: dict[str, Any]) -> None:
    expected = search_by_transformers(PROMPTS, **wishes)
    assert expected != search_plainly(), "It makes no difference."
    check_same(search(PROMPTS, processors=processors), expected)


def test_all_together_behind_a_forced_beginning() -> None:
    """As a translation model's `generation_config.json` has them."""
    prompts = [prompt[:1] for prompt in PROMPTS]
    processors = (NoRepeatNgrams(2), BadWords(((7,),)), MinTokens(3), ForcedBegin(9), ForcedEnd((2,)))
    found = search(prompts, processors=processors, early_stopping="never", repetition_penalty=1.3)
    expected = search_by_transformers(
        prompts,
        no_repeat_ngram_size=2,
        bad_words_ids=[[7]],
        min_new_tokens=3,
        forced_bos_token_id=9,
        forced_eos_token_id=2,
        early_stopping="never",
        repetition_penalty=1.3,
    )
    check_same(found, expected)


def test_searches_end_at_different_times() -> None:
    """Without such searches nothing above would tell one early_stopping from another."""
    first, *others = (
        search(PROMPTS, FREQUENT, length_penalty=3.0, early_stopping=each) for each in (False, True, "never")
    )
    assert first not in others and others[0] != others[1]


def test_cut_answers_compete_with_stopped_ones() -> None:
    """Without such searches nothing above would tell which of the two the penalty counts for."""
    for penalty in (-2.0, 0.5):
        searches = search_by_transformers(PROMPTS, length_penalty=penalty)
        are_cut = [[token_ids[-1] not in STOPS for token_ids, _ in pairs] for pairs in searches]
        assert sum(any(each) and not all(each) for each in are_cut) >= 3
