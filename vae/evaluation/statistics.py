"""What a handful of seeds can tell: means with their intervals, and p values corrected for the number of tests."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# scipy.stats has these as t.cdf and t.ppf and takes ten times as long to import
from scipy.special import stdtr, stdtrit


class Mean(NamedTuple):
    """A mean over seeds with its 95 % t interval, which one seed does not have (nan)."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def half(self) -> float:
        """Half of the interval, which `±` stands for."""
        return (self.high - self.low) / 2


def interval(values: Sequence[float], level: float = 0.95) -> Mean:
    """The mean of independent values and its t interval, which supposes normal noise. No value: nan."""
    count = len(values)
    if count < 2:
        return Mean(float(values[0]) if count else math.nan, math.nan, math.nan, count)
    mean = float(np.mean(values))
    half = float(stdtrit(count - 1, 0.5 + level / 2) * np.std(values, ddof=1)) / math.sqrt(count)
    return Mean(mean, mean - half, mean + half, count)


def p_value(gaps: Sequence[float]) -> float:
    """Of the two-sided t test that the expected gap is 0; nan where the gaps have no spread to test it against.

    Equal gaps are no proof: two counts of active units differ by 2 twice, by chance or not.
    """
    count = len(gaps)
    spread = float(np.std(gaps, ddof=1)) if count > 1 else 0.0
    if spread <= 1e-12 * max(map(abs, gaps), default=0.0):  # but for rounding
        return math.nan
    return 2 * float(stdtr(count - 1, -abs(np.mean(gaps)) / spread * math.sqrt(count)))


def holm(p: Sequence[float]) -> list[float]:
    """p values for the chance of one false finding among all of them (Holm 1979); nan stays, and counts for none."""
    adjusted, largest = [math.nan] * len(p), 0.0
    known = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    for rank, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[i] = largest
    return adjusted
