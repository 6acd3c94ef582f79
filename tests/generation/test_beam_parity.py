"""Beam search against transformers' on one tiny random model: the same answers, with the same scores.

Answers that a stop token ends compete with answers that max_tokens cuts, so that the length penalty decides.
"""

from functools import cache

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from server.engine.batchers.beam_search import BeamSearch

WIDTH, MAX_TOKENS, VOCAB_SIZE = 4, 7, 40
STOPS = (1, 2, 3, 4, 5, 6)
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


@torch.no_grad()
def search(prompt: list[int], penalty: float, early_stopping: bool) -> Answers:
    """Our rules on the model's own logprobs."""
    beams = BeamSearch(WIDTH, penalty, early_stopping, frozenset(STOPS), MAX_TOKENS)
    while not beams.is_over:
        ids = torch.tensor([[*prompt, *token_ids] for token_ids, _ in beams.answers])
        top = build_model()(ids).logits[:, -1].log_softmax(-1).topk(beams.num_candidates)
        beams.advance(top.indices.numpy(), top.values.numpy())
    return [(each.token_ids, float(each.score)) for each in beams.finished]


@cache
def search_by_transformers(penalty: float, early_stopping: bool) -> list[Answers]:
    """Of each prompt."""
    found = build_model().generate(
        torch.tensor(PROMPTS),
        attention_mask=torch.ones(len(PROMPTS), len(PROMPTS[0]), dtype=torch.long),
        num_beams=WIDTH,
        num_return_sequences=WIDTH,
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        early_stopping=early_stopping,
        length_penalty=penalty,
        eos_token_id=list(STOPS),
        pad_token_id=STOPS[0],
        return_dict_in_generate=True,
        output_scores=True,
    )
    answers = [strip_padding(row[len(PROMPTS[0]) :].tolist()) for row in found.sequences]
    pairs = list(zip(answers, found.sequences_scores.tolist(), strict=True))
    return [pairs[first : first + WIDTH] for first in range(0, len(pairs), WIDTH)]


def strip_padding(answer: list[int]) -> tuple[int, ...]:
    place = next((index for index, token in enumerate(answer) if token in STOPS), len(answer) - 1)
    return tuple(answer[: place + 1])


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("penalty", [-2.0, -0.5, 0.0, 0.5, 1.0, 3.0])
def test_answers_and_scores_are_transformers(penalty: float, early_stopping: bool) -> None:
    for prompt, expected in zip(PROMPTS, search_by_transformers(penalty, early_stopping), strict=True):
        found = search(prompt, penalty, early_stopping)
        assert [token_ids for token_ids, _ in found] == [token_ids for token_ids, _ in expected]
        np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], rtol=1e-5)


def test_cut_answers_compete_with_stopped_ones() -> None:
    """Without such searches nothing above would tell which of the two the penalty counts for."""
    answers = [search_by_transformers(penalty, False) for penalty in (-2.0, 1.0)]
    for searches in answers:
        are_cut = [[token_ids[-1] not in STOPS for token_ids, _ in pairs] for pairs in searches]
        assert sum(any(each) and not all(each) for each in are_cut) >= 3
