"""Random numbers for sampling, without a state. Pure numpy."""

import numpy as np
import numpy.typing as npt


def draw_uniforms(seeds: list[int], indices: list[int], positions: list[int]) -> npt.NDArray[np.float64]:
    """Random numbers in [0, 1): one for each (seed, answer, how many tokens it has), the same each time.

    Rounds of SplitMix64's finaliser (Steele et al., 2014) over the three numbers: no state that batch-mates, preemption
    or the order of steps could disturb.
    """
    state = np.zeros(len(seeds), np.uint64)
    with np.errstate(over="ignore"):
        for numbers in (seeds, indices, positions):
            words = np.array([number & 0xFFFFFFFFFFFFFFFF for number in numbers], np.uint64)
            state = (state ^ words) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
