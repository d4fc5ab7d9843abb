"""Seeds are functions of (seed, purpose, counters), and published numbers hang on their values."""

import zlib

import numpy as np
import pytest

from vae.noise import derive


def by_numpy(seed: int, purpose: str, *counters: int) -> int:
    """From a list of Python's integers, which NumPy cuts into words itself."""
    words = [seed, zlib.crc32(purpose.encode()), len(counters), *counters]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


@pytest.mark.parametrize("counters", [(), (0,), (0, 0), (3, 2**32 - 1), (2**32,), (7, 2**40, 1)])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**62])
def test_numbers_of_every_size_are_numpys_words(seed: int, counters: tuple[int, ...]) -> None:
    assert derive(seed, "step", *counters) == by_numpy(seed, "step", *counters)
    assert 0 <= derive(seed, "step", *counters) < 2**63


def test_streams_do_not_coincide() -> None:
    seeds = [derive(seed, purpose, *counters) for seed in (0, 1) for purpose in ("order", "step")
             for counters in ((), (0,), (0, 0), (0, 1), (1, 0), (1,))]  # fmt: skip
    assert len(set(seeds)) == len(seeds)
