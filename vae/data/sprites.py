"""Images whose factors are known: a white shape on black, drawn from its kind, scale, rotation and place.

Made here, after the idea of dSprites (Matthey et al. 2017), so that nothing is downloaded.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Len
from torch import Tensor

from vae.data.arrays import Size
from vae.data.batches import Factors
from vae.data.module import ImageDataModule, RawSet
from vae.errors import InputError
from vae.noise import derive
from vae.types import Count

SHAPES = ("square", "ellipse", "heart")
FACTORS = ("shape", "scale", "rotation", "x", "y")
RADIUS = 0.2  # of the largest shape, in image sides


class Sprites(ImageDataModule):
    """`count` points of the grid, drawn without repetition by `split_seed`. Labels are the shapes."""

    def __init__(
        self,
        size: Size = 64,
        grid: Annotated[
            Annotated[Sequence[Count], Len(5, 5)], "values of the sprites' shape (at most 3), scale, rotation, x, y"
        ] = (3, 6, 40, 32, 32),
        count: Annotated[Count | None, "sprites drawn from the grid by split_seed; null: all of it"] = 10_000,
        **module: Any,
    ) -> None:
        super().__init__(**module)
        self.size, self.grid, self.count = size or 64, list(grid), count

    def load(self) -> RawSet:
        grid, count, points = self.grid, self.count, math.prod(self.grid)
        if grid[0] > len(SHAPES):
            raise InputError(f"data.grid={grid}: there are {len(SHAPES)} shapes; its first number is at most that")
        if count is not None and count > points:
            raise InputError(
                f"data.count={count}: the grid {grid} has {points} points; lower it, or null for all of them"
            )
        generator = torch.Generator().manual_seed(derive(self.split_seed, "sprites"))
        order = torch.randperm(points, generator=generator)
        values = torch.stack(torch.unravel_index(order[:count], grid), 1)  # (N, 5)
        high, wide = (self.size, self.size) if isinstance(self.size, int) else self.size
        parts = [draw(rows, grid, high, wide) for rows in values.split(1000)]
        factors = Factors(values, list(FACTORS), [name != "shape" for name in FACTORS])
        images = torch.cat(parts).unsqueeze(1)
        return RawSet((images, values[:, 0]), class_names=list(SHAPES[: grid[0]]), factors=factors)


def draw(values: Tensor, grid: list[int], high: int, wide: int) -> Tensor:
    """Factor values (n, 5), each counted from 0 -> uint8 (n, H, W), with smooth edges."""
    share = values / torch.tensor(grid).sub(1).clamp(min=1)  # 0..1
    side = min(high, wide)
    radius = RADIUS * side * (0.5 + 0.5 * share[:, 1])  # pixels
    angle = 2 * math.pi * values[:, 2] / grid[2]
    # the centre keeps the largest shape inside
    x, y = (RADIUS * side + share[:, 3 + k] * (n - 2 * RADIUS * side) for k, n in enumerate((wide, high)))
    dx = torch.arange(wide) + 0.5 - x[:, None, None]  # (n, 1, W)
    dy = torch.arange(high)[:, None] + 0.5 - y[:, None, None]  # (n, H, 1)
    cos, sin, r = (a[:, None, None] for a in (angle.cos(), angle.sin(), radius))
    u, v = (cos * dx + sin * dy) / r, (cos * dy - sin * dx) / r  # (n, H, W), in radii
    distance = torch.empty_like(u)
    for kind, outside in enumerate((_square, _ellipse, _heart)):
        rows = values[:, 0] == kind
        distance[rows] = outside(u[rows], v[rows])
    return (0.5 - distance * r).clamp(0, 1).mul(255).round().to(torch.uint8)


def _square(u: Tensor, v: Tensor, half: float = 0.7) -> Tensor:
    """How far (u, v) lies outside, negative inside; so with the other shapes."""
    return torch.maximum(u.abs(), v.abs()) - half


def _ellipse(u: Tensor, v: Tensor, short: float = 0.5) -> Tensor:
    return ((u.square() + (v / short).square()).sqrt() - 1) * short


def _heart(u: Tensor, v: Tensor, half: float = 0.5) -> Tensor:
    """A square on its corner and a circle on each of its upper sides."""
    a, b = (u + v) / math.sqrt(2), (u - v) / math.sqrt(2)
    circles = torch.minimum(torch.hypot(a + half, b), torch.hypot(a, b - half)) - half
    return torch.minimum(torch.maximum(a.abs(), b.abs()) - half, circles)
