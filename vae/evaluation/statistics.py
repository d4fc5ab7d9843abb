"""What a handful of seeds say: means and paired differences with their intervals, and p values of several tests."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Mean(NamedTuple):
    """Of several seeds, with the 95 % t interval of the expected value; nan where one seed tells of no noise."""

    value: float
    low: float
    high: float
    seeds: int


class Difference(NamedTuple):
    """Ours minus the baseline's over the seeds that both have, and the p value of the paired t test."""

    value: float
    low: float
    high: float
    p: float
    seeds: int


def interval(values: Sequence[float], level: float = 0.95) -> Mean:
    """The mean and its t interval under normal noise."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Mean(mean, math.nan, math.nan, count)
    from scipy.special import stdtrit  # scipy.stats, which has this as t.interval, takes ten times as long to import

    half = float(stdtrit(count - 1, 0.5 + level / 2)) * statistics.stdev(values) / math.sqrt(count)
    return Mean(mean, mean - half, mean + half, count)


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """The difference seed by seed, which cancels what a seed does to both; None where no seed is shared."""
    gaps = [value - baseline[seed] for seed, value in ours.items() if seed in baseline]
    if not gaps:
        return None
    mean = interval(gaps)
    return Difference(*mean[:3], _p_value(gaps), mean.seeds)


def _p_value(gaps: Sequence[float]) -> float:
    """Of the two-sided t test that the gaps' expected value is 0."""
    if len(gaps) < 2:
        return math.nan
    mean, deviation = statistics.fmean(gaps), statistics.stdev(gaps)
    if not deviation:  # the same gap at every seed: no noise at all
        return 0.0 if mean else 1.0
    from scipy.special import stdtr

    return 2 * float(stdtr(len(gaps) - 1, -abs(mean) / deviation * math.sqrt(len(gaps))))


def holm(p: Sequence[float]) -> list[float]:
    """p values for the chance of one false finding among all of them (Holm 1979); nan stays, and counts for none."""
    adjusted, largest = [math.nan] * len(p), 0.0
    known = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    for rank, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[i] = largest
    return adjusted
