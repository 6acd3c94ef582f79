"""Tokens drawn by Triton: the ones that the CPU draws with the same numbers; and compiled."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.backends.cuda.sampling import draw_tokens
from runtime.batch import Sampling
from runtime.sampling import sample
from runtime.sampling_filters import draw_tokens as draw_on_cpu
from tests.cuda.compiling import compile_launch, recorded
from tests.cuda.cuda_cases import every_capability
from tests.kernels.kernel_cases import random_tensor
from tests.kernels.test_sampling import make_sampling

FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "cold": {"temperature": 0.3},
    "nearly zero": {"temperature": 1e-40},
    "top k": {"top_k": 5},
    "one": {"top_k": 1},
    "top k of more than there are": {"top_k": 1000},
    "top p": {"top_p": 0.7},
    "top p of nothing": {"top_p": 0.0},
    "min p": {"min_p": 0.1},
    "only the largest": {"min_p": 1.0},
    "all": {"top_k": 20, "top_p": 0.8, "min_p": 0.02, "temperature": 1.3},
    "top p first": {"top_k": 60, "top_p": 0.3},
}
IN_SHORT = ("all",)
NUM_ROWS = 4


def check_draws(logits: Tensor, sampling: Sampling, device: torch.device) -> None:
    rows = np.arange(len(logits))
    expected = draw_on_cpu(logits.clone(), sampling, rows)
    assert draw_tokens(logits.to(device), sampling, rows).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "name", [name if name in IN_SHORT else pytest.param(name, marks=pytest.mark.slow) for name in FILTERS]
)
def test_the_tokens_that_a_cpu_draws(name: str, device: torch.device) -> None:
    logits = random_tensor(NUM_ROWS, 70) * 2
    logits[:, 7] = -torch.inf
    uniforms = np.array([0.03, 0.4, 0.71, 0.98])
    check_draws(logits, make_sampling(NUM_ROWS, **{"temperature": 1.0} | FILTERS[name], uniforms=uniforms), device)


@pytest.mark.slow
@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.55}, {"min_p": 0.9}], ids=str)
def test_equal_tokens_go_by_their_ids(filters: dict[str, Any], device: torch.device) -> None:
    """The middle of each token's part of what is kept; ten tokens are equal, the others are improbable."""
    logits = torch.full((10, 40), -30.0)
    logits[:, 3::4] = 1
    check_draws(logits, make_sampling(10, temperature=1.0, uniforms=(np.arange(10) + 0.5) / 10, **filters), device)


@pytest.mark.slow
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_what_is_kept(uniform: float, device: torch.device) -> None:
    logits = random_tensor(1, 40).expand(4, -1).contiguous()
    filters = {"top_k": np.array([0, 4, 0, 0]), "top_p": np.array([1, 1, 0.6, 1]), "min_p": np.array([0, 0, 0, 0.2])}
    check_draws(logits, make_sampling(4, temperature=1.0, uniforms=np.full(4, uniform), **filters), device)


def test_sampling_takes_what_it_is_given(device: torch.device) -> None:
    """Random rows by the kernel, the others as ever; ids are all that comes back."""
    logits = random_tensor(3, 60).to(device)
    sampling = make_sampling(3, temperature=np.array([1, 0, 1]), top_k=np.array([1, 0, 4]))
    tokens = sample(logits.clone(), sampling, draw_tokens)
    assert tokens.token_ids.tolist() == sample(logits.cpu(), sampling).token_ids.tolist()


@pytest.mark.slow
@every_capability
def test_compiles(capability: int) -> None:
    sampling = make_sampling(2, temperature=1.0, uniforms=np.array([0.1, 0.9]), top_k=5, top_p=0.5, min_p=0.1)
    with recorded() as launches:
        draw_tokens(torch.zeros(2, 50000), sampling, np.arange(2))
    (launch,) = launches
    compile_launch(launch, capability).check()
