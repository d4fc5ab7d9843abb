"""Pixels: grey levels 0 to 255, floats in [0, 1], and draws of black and white."""

import torch
from torch import Tensor


def as_floats(images: Tensor) -> Tensor:
    """uint8 grey levels 0..255 as float32 in [0, 1], on the same device; floats stay as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def at_threshold(images: Tensor) -> Tensor:
    """uint8 images as 0 or 255: white from one half on."""
    return (images >= 128).to(torch.uint8) * 255  # 127.5 is one half


def draw_binary(images: Tensor, seed: int) -> Tensor:
    """One Bernoulli draw per pixel of uint8 images, as 0 or 255: u uniform on 0..254 has P(u < v) = v / 255."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.randint(255, images.shape, dtype=torch.uint8, generator=generator)
    return (uniform < images).to(torch.uint8) * 255
