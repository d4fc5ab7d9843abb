"""Priors p(z), fixed or learned.

A prior is a module; called with the encoder x (N, C, H, W) -> q(z|x), it returns a distribution over z with
`sample(shape)` and `log_prob(z)` in nats for z (..., D): of shape (..., D) if the latents are independent (event shape
()), else (...) (event shape (D,)). `distributions.log_density` handles both.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae.distributions import Flowed, FullNormal, Mixture, Normal, paired_noise
from vae.errors import InputError
from vae.flows import Chain, Coupling
from vae.networks import Shape
from vae.types import Choices, Count

Encode = Callable[[Tensor], Distribution]


class Prior(nn.Module):
    """Base of all priors; the VAE provides `latent_dim` D and `image_shape` (C, H, W)."""

    independent = False  # whether the density is a product over latents

    def __init__(self, latent_dim: int, image_shape: Shape) -> None:
        super().__init__()
        self.noise_per_draw = latent_dim  # standard normal numbers needed for one draw

    def forward(self, encode: Encode) -> Distribution:
        raise TypeError(f"{type(self).__name__} is the base of the priors: choose one of them")

    def start_at(self, images: Tensor, seed: int) -> None:
        """Starts parameters at training images (N, C, H, W), uint8; raises InputError for images that do not fit."""


class Standard(Prior):
    """N(0, I) (Kingma and Welling 2014)."""

    independent = True

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, image_shape: Shape) -> None:
        super().__init__(latent_dim, image_shape)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self, encode: Encode) -> Normal:
        return Normal(self.loc, self.scale)


class GaussianMixture(Prior):
    """A mixture of `components` Gaussians with diagonal covariances; weights, means and variances are learned."""

    def __init__(
        self,
        latent_dim: int,
        image_shape: Shape,
        components: Annotated[Count, "Gaussians in the mixture"] = 10,
    ) -> None:
        super().__init__(latent_dim, image_shape)
        self.noise_per_draw = latent_dim + 1  # one number chooses the component
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(0.5 * torch.randn(components, latent_dim))  # equal means would stay equal
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self, encode: Encode) -> Mixture:
        return Mixture(self.logits, Normal(self.loc, self.log_scale.exp()))


class Vamp(Prior):
    """VampPrior: the mean of the posteriors of `inputs` learned images (Tomczak and Welling 2018, eq. 9).

    The pseudo-inputs start as training images. They stay in [0, 1] as sigmoids of free parameters.
    """

    logits: Tensor

    def __init__(
        self,
        latent_dim: int,
        image_shape: Shape,
        inputs: Annotated[Count, "pseudo-inputs; they start as training images, so at most as many"] = 500,
    ) -> None:
        super().__init__(latent_dim, image_shape)
        self.noise_per_draw = latent_dim + 1
        self.pixels = nn.Parameter(torch.randn(inputs, *image_shape))
        self.register_buffer("logits", torch.zeros(inputs), persistent=False)  # equal weights

    @classmethod
    def requires(cls, chosen: Choices) -> None:
        if not chosen.parts["posterior"].gaussian:
            raise InputError("posterior=iaf: prior=vamp mixes Gaussian posteriors; choose posterior=diagonal or full")
        if chosen["model.encoder.norm"] == "batch":
            raise InputError(
                "model.encoder.norm=batch: prior=vamp would mix its pseudo-inputs into the statistics of the images; "
                "choose model.encoder.norm=group or layer"
            )
        if chosen["model.conditional"]:
            raise InputError(
                "model.conditional=true: the pseudo-inputs of prior=vamp have no labels; choose another prior"
            )

    def forward(self, encode: Encode) -> Mixture:
        posteriors = encode(self.pixels.sigmoid())
        if not isinstance(posteriors, Normal | FullNormal):
            raise TypeError(f"VampPrior of {type(posteriors).__name__}: a mixture of Gaussian posteriors only")
        return Mixture(self.logits, posteriors)

    @torch.no_grad()
    def start_at(self, images: Tensor, seed: int) -> None:
        inputs = len(self.pixels)
        if inputs > len(images):
            raise InputError(
                f"prior.inputs={inputs}: more pseudo-inputs than the {len(images)} training images that they start as; "
                f"take prior.inputs={len(images)} or fewer"
            )
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:inputs]
        # at 0 or 1 a sigmoid has no slope left
        self.pixels.copy_((images[rows].cpu() / 255).clamp(0.05, 0.95).logit())


class Flow(Prior):
    """N(0, I) pushed through `layers` affine couplings with nets of `hidden` units (RealNVP, Dinh et al. 2017, eq. 7).

    It starts as the standard prior.
    """

    noise: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        latent_dim: int,
        image_shape: Shape,
        layers: Annotated[Count, "couplings of the flow"] = 6,
        hidden: Annotated[Count, "width of the couplings' networks"] = 100,
    ) -> None:
        super().__init__(latent_dim, image_shape)
        if latent_dim < 2:
            raise ValueError(f"latent_dim={latent_dim}: a coupling needs at least 2")
        self.flow = Chain(Coupling(latent_dim, hidden) for _ in range(layers))
        self.register_buffer("noise", paired_noise(latent_dim), persistent=False)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    @classmethod
    def requires(cls, chosen: Choices) -> None:
        if chosen["latent_dim"] < 2:
            raise InputError("latent_dim=1: prior=flow needs at least two latents; choose latent_dim=2 or more")

    def forward(self, encode: Encode) -> Flowed:
        return Flowed(Normal(self.loc, self.scale), self.flow.forward, self.flow.inverse, self.noise)
