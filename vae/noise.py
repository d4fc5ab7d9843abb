"""How every seed of a run is derived, and noise that a pass can fix."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae.device import flush_denormals

flush_denormals()  # here, since every process that computes imports this module before it starts a thread


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed that depends on the arguments only, on every platform and in every process."""
    # NumPy pads with zeros, hence the length
    entropy: Any = [seed, zlib.crc32(purpose.encode()), len(counters), *counters]
    if max(entropy) < 2**32:  # NumPy takes words as they are five times as fast as numbers of any size
        entropy = np.array(entropy, np.uint32)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


SEEDS_AHEAD = 32  # batches


class StepSeeds:
    """The seed of each training batch, a function of (seed, rank, step, batch of the epoch)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.known: dict[tuple[int, int, int], int] = {}

    def __call__(self, rank: int, step: int, batch_idx: int, batches_a_step: int) -> int:
        """Derives the seeds of many batches at once, since NumPy takes three times as long in the midst of a step."""
        if (rank, step, batch_idx) not in self.known:
            first = batch_idx // batches_a_step
            ahead = range(batch_idx, batch_idx + SEEDS_AHEAD)
            places = [(rank, step + batch // batches_a_step - first, batch) for batch in ahead]
            self.known = {place: derive(self.seed, "step", *place) for place in places}
        return self.known[rank, step, batch_idx]


def seed_generators(seed: int, device: torch.device) -> None:
    """Torch's own generators; torch.manual_seed would format a stack trace for every accelerator that is not there."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


Shape = torch.Size | list[int] | tuple[int, ...]


class NoiseStreams:
    """One NumPy stream per shape of draw: image i of a pass gets the same numbers for any batch size."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.streams: dict[tuple[int, ...], np.random.Generator] = {}

    def __call__(self, shape: torch.Size) -> Tensor:
        samples, images, *event = shape
        key = (samples, *event)
        stream = self.streams.setdefault(key, np.random.default_rng([self.seed, *key]))
        noise = stream.standard_normal((images, samples, *event), dtype=np.float32)
        return torch.from_numpy(noise).transpose(0, 1)  # (K, B, *event)


class RepeatedNoise:
    """NoiseStreams of a repeated pass, whose draws are cached on `device`, up to `limit` bytes.

    Every validation uses the same noise for the same images; drawing it takes as long as the decoder.
    """

    def __init__(self, seed: int, device: torch.device, limit: int = 2**27) -> None:
        self.seed, self.device, self.limit = seed, device, limit
        self.kept: list[Tensor] = []  # the first draws of a pass
        self.start()

    def start(self) -> None:
        """Starts a pass."""
        self.place = 0
        self.streams: NoiseStreams | None = None

    def __call__(self, shape: torch.Size) -> Tensor:
        if self.place < len(self.kept) and self.kept[self.place].shape != shape:
            del self.kept[self.place :]  # batches of another size than in the pass before
        noise = self.kept[self.place] if self.place < len(self.kept) else self._drawn(shape)
        self.place += 1
        return noise

    def _drawn(self, shape: torch.Size) -> Tensor:
        if self.streams is None:
            self.streams = NoiseStreams(self.seed)
            for before in self.kept:
                self.streams(before.shape)
        noise = self.streams(shape).to(self.device)
        if self.place == len(self.kept) and sum(n.nbytes for n in (*self.kept, noise)) <= self.limit:
            self.kept.append(noise)
        return noise


class SharedNoise:
    """The noise that one process would draw for a whole batch, of which rank r of n takes images r, r + n, ..."""

    def __init__(self, seed: int, rank: int, ranks: int, device: torch.device) -> None:
        self.rank, self.ranks = rank, ranks
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, shape: torch.Size) -> Tensor:
        samples, images, *event = shape
        whole = (samples, images * self.ranks, *event)
        noise = torch.randn(whole, generator=self.generator, device=self.generator.device)
        return noise[:, self.rank :: self.ranks]


Noise = Callable[[torch.Size], Tensor]  # shape (K, B, *event) -> standard normal numbers of that shape

_noise: ContextVar[Noise | None] = ContextVar("noise streams", default=None)


def noise_source() -> Noise | None:
    """The source set by `fixed_noise`, or None if torch's own generators draw."""
    return _noise.get()


@contextmanager
def fixed_noise(source: int | Noise) -> Iterator[None]:
    """Within it, draws of `Normal` depend only on the seed and the position of the image in the pass.

    An evaluation then gives the same numbers for every batch size and on every device. Draws must have shape
    (K, B, *event) and come in the order of the images. A pass in several pieces reuses its `NoiseStreams`.
    """
    token = _noise.set(NoiseStreams(source) if isinstance(source, int) else source)
    try:
        yield
    finally:
        _noise.reset(token)


def shared_noise(
    seed: int, step: int, batch_idx: int, rank: int, ranks: int, device: torch.device
) -> AbstractContextManager[None]:
    """Within it, several processes draw z and x for a batch as one process would; each has its own dropout."""
    if ranks == 1:
        return nullcontext()
    return fixed_noise(SharedNoise(derive(seed, "step", 0, step, batch_idx), rank, ranks, device))
