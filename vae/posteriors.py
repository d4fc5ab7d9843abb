"""Posteriors q(z|x): the encoder's output -> a distribution over z, batch shape (B, D), or (B,) with event (D,).

A posterior states how many numbers (`features`) it takes from the encoder. Its distribution needs `rsample((K,))` ->
z (K, B, D), `log_prob(z)` in nats as in `vae/priors.py`, and `mean` (B, D).
"""

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae.distributions import Flowed, FullNormal, Normal, paired_noise
from vae.errors import InputError
from vae.flows import Autoregressive, Chain
from vae.types import Choices, Count

MOST_LATENTS = 256  # of Full: with 1,000 the encoder would put out half a million numbers


class Posterior(nn.Module):
    """Base of all posteriors; the VAE provides `latent_dim` D."""

    gaussian = True
    independent = False  # whether the density is a product over latents

    def __init__(self, latent_dim: int, features: int) -> None:
        super().__init__()
        self.latent_dim, self.features = latent_dim, features

    def forward(self, params: Tensor) -> Distribution:
        raise TypeError(f"{type(self).__name__} is the base of the posteriors: choose one of them")


class Diagonal(Posterior):
    """N(mu, diag(sigma^2)); the encoder outputs mu and log sigma^2 (Kingma and Welling 2014)."""

    independent = True

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim, 2 * latent_dim)

    def forward(self, params: Tensor) -> Normal:
        mu, log_var = params.chunk(2, dim=-1)  # (B, D), (B, D)
        return Normal(mu, (0.5 * log_var).exp())


class Full(Posterior):
    """N(mu, L L') with L = diag(sigma) (I + M / sqrt(D)), M strictly lower triangular.

    The encoder outputs mu, log sigma^2 and M. Dividing by sqrt(D) lets it start near a diagonal Gaussian; D (D - 1) / 2
    random numbers would cost tens of nats at first.
    """

    @classmethod
    def requires(cls, chosen: Choices) -> None:
        if chosen["latent_dim"] > MOST_LATENTS:
            raise InputError(
                f"latent_dim={chosen['latent_dim']}: posterior=full takes at most {MOST_LATENTS} latents, as its "
                "covariance grows with their square; choose posterior=diagonal or iaf"
            )

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim, 2 * latent_dim + latent_dim * (latent_dim - 1) // 2)

    def forward(self, params: Tensor) -> FullNormal:
        d = self.latent_dim
        mu, log_var, below = params.split([d, d, self.features - 2 * d], dim=-1)
        rows, columns = torch.tril_indices(d, d, -1, device=params.device)
        sigma, images = (0.5 * log_var).exp(), torch.arange(len(params), device=params.device)
        below = sigma[:, rows] * below / math.sqrt(d)
        return FullNormal(mu, torch.diag_embed(sigma).index_put((images[:, None], rows, columns), below))


class IAF(Posterior):
    """A diagonal Gaussian pushed through `layers` inverse autoregressive flows (Kingma et al. 2016, eq. 10 to 14).

    The encoder outputs mu, log sigma^2 and a context of `hidden` numbers, an input of every flow's net of `hidden`
    units. The density of its own draws is free; that of other z takes D passes.
    """

    gaussian = False
    noise: Tensor

    def __init__(
        self,
        latent_dim: int,
        layers: Annotated[Count, "autoregressive flows after the Gaussian"] = 2,
        hidden: Annotated[Count, "width of the flows' networks, and of the context that the encoder gives them"] = 100,
    ) -> None:
        if latent_dim < 2:
            raise ValueError(f"latent_dim={latent_dim}: an autoregressive flow needs at least 2")
        super().__init__(latent_dim, 2 * latent_dim + hidden)
        self.flow = Chain(Autoregressive(latent_dim, hidden) for _ in range(layers))
        self.register_buffer("noise", paired_noise(latent_dim), persistent=False)

    @classmethod
    def requires(cls, chosen: Choices) -> None:
        if chosen["latent_dim"] < 2:
            raise InputError("latent_dim=1: posterior=iaf needs at least two latents; choose latent_dim=2 or more")

    def forward(self, params: Tensor) -> Flowed:
        d = self.latent_dim
        mu, log_var, context = params.split([d, d, self.features - 2 * d], dim=-1)
        base = Normal(mu, (0.5 * log_var).exp())
        return Flowed(base, lambda u: self.flow(u, context), lambda z: self.flow.inverse(z, context), self.noise)
