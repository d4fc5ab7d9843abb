"""Invertible maps of R^D with the log of their Jacobian's determinant: (..., D) -> (..., D), (...)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Chain(nn.ModuleList):
    """Layers one after the other; the order of the latents is reversed in between, so that every latent is transformed.

    Computed in float32 even under bf16-mixed: rounding errors of many layers would change a density by nats.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__(layers)

    def forward(self, u: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        total = u.new_zeros(u.shape[:-1])
        with torch.autocast(u.device.type, enabled=False):
            for layer in self:
                u, log_det = layer(u.flip(-1), *context)
                total = total + log_det
        return u, total

    def inverse(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(z.shape[:-1])
        with torch.autocast(z.device.type, enabled=False):
            for layer in reversed(self):
                z, log_det = layer.inverse(z, *context)  # type: ignore[operator]
                z, total = z.flip(-1), total + log_det
        return z, total


class Coupling(nn.Module):
    """Scales and shifts the second half of u by functions of the first half (Dinh et al. 2017, eq. 7 and 8).

    The log of the scale stays within -2 and 2, so that no layer can blow up. It starts as the identity.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.kept, self.moved = dim // 2, dim - dim // 2
        out = nn.Linear(hidden, 2 * self.moved)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        self.net = nn.Sequential(nn.Linear(self.kept, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), out)

    def _scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(kept).chunk(2, dim=-1)
        return 2 * torch.tanh(raw / 2), shift

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = u.split([self.kept, self.moved], dim=-1)
        log_scale, shift = self._scale_and_shift(kept)
        return torch.cat([kept, moved * log_scale.exp() + shift], -1), log_scale.sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = z.split([self.kept, self.moved], dim=-1)
        log_scale, shift = self._scale_and_shift(kept)
        return torch.cat([kept, (moved - shift) * (-log_scale).exp()], -1), -log_scale.sum(-1)


class MaskedLinear(nn.Linear):
    """A linear layer whose weights are multiplied by `mask` (out, in)."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


def masks(dim: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of the three layers of a net whose output i depends on the inputs before i alone (Germain et al. 2015)."""
    place, units = torch.arange(dim), torch.arange(hidden)
    narrow = hidden < dim - 1
    degree = (units + 1) * (dim - 1) // hidden - 1 if narrow else units % (dim - 1)  # the last input a unit sees
    return (
        degree[:, None] >= place[None],
        degree[:, None] >= degree[None],
        (place[:, None] > degree[None]).repeat(2, 1),
    )


class Autoregressive(nn.Module):
    """z_i = s_i u_i + (1 - s_i) m_i; s_i, m_i depend on u_1 ... u_(i-1) and a context (Kingma et al. 2016, eq. 13, 14).

    The gate s starts near 0.9. The inverse computes one latent after the other, in D passes.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.context = nn.Linear(hidden, hidden)
        self.first, self.second, self.out = map(MaskedLinear, masks(dim, hidden))
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def _gate_and_mean(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """log s and m, (..., D) each, for u (..., B, D) and context (B, hidden)."""
        h = F.elu(self.first(u) + self.context(context))
        raw, mean = self.out(F.elu(self.second(h))).chunk(2, dim=-1)
        return F.logsigmoid(raw + 2), mean

    def forward(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        log_gate, mean = self._gate_and_mean(u, context)
        gate = log_gate.exp()
        return gate * u + (1 - gate) * mean, log_gate.sum(-1)

    def inverse(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.zeros_like(z)
        for _ in range(z.shape[-1]):  # pass i computes u_i from those before it
            log_gate, mean = self._gate_and_mean(u, context)
            gate = log_gate.exp()
            u = (z - (1 - gate) * mean) / gate
        return u, -log_gate.sum(-1)
