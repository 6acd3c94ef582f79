"""All the numbers that a program's tensors are described by, evaluated together for one batch."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.memory.lifetimes import Formula

Numbers = npt.NDArray[np.int64]


class Sizes:
    """Formulas by number. Mutable: formulas are added until the first `evaluate`."""

    def __init__(self) -> None:
        self.index: dict[Formula, int] = {}
        self.monomials: list[tuple[int, ...]] = []
        self.coefficients = np.zeros((0, 0), np.int64)

    def add(self, formula: Formula) -> int:
        """Its place in what `evaluate` returns."""
        return self.index.setdefault(formula, len(self.index))

    def evaluate(self, symbols: Sequence[int]) -> Numbers:
        """[num_formulas] for these values of SYMBOLS."""
        if len(self.coefficients) != len(self.index):
            self.arrange(len(symbols))
        values = [1] * len(self.monomials)
        for place, powers in enumerate(self.monomials):
            for symbol, power in zip(symbols, powers, strict=True):
                if power:
                    values[place] *= symbol**power
        return self.coefficients @ np.array(values, np.int64)

    def arrange(self, num_symbols: int) -> None:
        """Each formula as a row of coefficients of the monomials that occur."""
        terms = [
            (row, tuple(powers) + (0,) * (num_symbols - len(powers)), coefficient)
            for formula, row in self.index.items()
            for coefficient, *powers in formula.terms
        ]
        self.monomials = sorted({powers for _, powers, _ in terms})
        self.coefficients = np.zeros((len(self.index), len(self.monomials)), np.int64)
        for row, powers, coefficient in terms:
            self.coefficients[row, self.monomials.index(powers)] += coefficient
