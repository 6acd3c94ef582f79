"""The random numbers that tokens are drawn with."""

import numpy as np

from server.engine.batchers.uniforms import draw_uniforms

COUNT = 20_000


def test_even_over_seeds_answers_and_positions() -> None:
    """Chi-square with 99 degrees of freedom stays below 150 but once in a thousand; the numbers are always the same."""
    same = [7] * COUNT
    for numbers in (
        draw_uniforms(list(range(COUNT)), same, same),
        draw_uniforms(same, list(range(COUNT)), same),
        draw_uniforms(same, same, list(range(COUNT))),
    ):
        counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
        assert ((counts - COUNT / 100) ** 2 / (COUNT / 100)).sum() < 150
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
        assert numbers.min() >= 0 and numbers.max() < 1


def test_any_seed_is_taken() -> None:
    found = draw_uniforms([-1, 0, 1 << 62, (1 << 63) + 5], [0] * 4, [0] * 4)
    assert len(np.unique(found)) == 4


def test_each_number_is_its_own() -> None:
    alone = draw_uniforms([3], [1], [4])
    assert draw_uniforms([9, 3], [0, 1], [7, 4])[1] == alone[0]
