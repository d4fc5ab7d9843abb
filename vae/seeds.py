"""One way to turn (seed, purpose, counters) into a generator seed, so that no two streams ever coincide by accident."""

import zlib
from typing import Any

import numpy as np


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed that is a function of its arguments alone, on every platform and in every process."""
    # NumPy pads with zeros, hence the length
    entropy: Any = [seed, zlib.crc32(purpose.encode()), len(counters), *counters]
    if max(entropy) < 2**32:  # NumPy takes words as they are five times as fast as numbers of any size
        entropy = np.array(entropy, np.uint32)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
