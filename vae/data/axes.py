"""Principal axes of images, a part of them in memory as floats at a time."""

import torch
from torch import Tensor

from vae.pixels import as_floats

EXACT_PIXELS = 4096  # all axes of larger images would take gigabytes, and minutes


def principal_axes(images: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 (N, C, H, W) with P pixels -> mean (P,) and axes (P, P) as columns, greatest variance first; float64."""
    pixels, count = images[0].numel(), len(images)
    total, products = torch.zeros(pixels, dtype=torch.float64), torch.zeros(pixels, pixels, dtype=torch.float64)
    for part in images.split(5000):  # all at once, as floats, would be the most memory that a run takes
        x = as_floats(part).flatten(1)
        total += x.sum(0)
        products += x.T @ x
    mean = total / count
    return mean, torch.linalg.eigh(products / count - torch.outer(mean, mean)).eigenvectors.flip(1)


def leading_axes(images: Tensor, count: int = 64, more: int = 10, rounds: int = 6) -> tuple[Tensor, Tensor]:
    """The same mean, and the first `count` axes (P, count), by subspace iteration (Halko et al. 2011, algorithm 4.4).

    `more` axes are carried along and dropped: the last few converge slowly.
    """
    parts = images.split(500)
    mean = torch.stack([as_floats(part).flatten(1).double().sum(0) for part in parts]).sum(0) / len(images)
    centre = mean.float()
    start = torch.randn(len(mean), count + more, generator=torch.Generator().manual_seed(0))
    image = start
    for _ in range(rounds):
        axes, image = torch.linalg.qr(image).Q, torch.zeros_like(start)  # (P, count + more)
        for part in parts:
            x = as_floats(part).flatten(1) - centre
            image += x.T @ (x @ axes)
    turn = torch.linalg.eigh((axes.T @ image).double()).eigenvectors.flip(1)[
        :, :count
    ]  # to the axes of what is spanned
    return mean, axes.double() @ turn
