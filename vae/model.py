"""The variational auto-encoder: a prior, an encoder, a decoder, a likelihood. Tensors in, distributions out.

D latents, K samples (they always lead), B images of shape (C, H, W), P parameters a pixel.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae.distributions import Normal
from vae.likelihoods import Likelihood
from vae.networks import Shape
from vae.noise import fixed_noise


def at_least_float32(params: Tensor) -> Tensor:
    """Parameters of a distribution in float32 at least: under bf16-mixed, sums over pixels would be off by nats."""
    return params.float() if params.dtype in (torch.float16, torch.bfloat16) else params


class VAE(nn.Module):
    """p(z) = N(0, I), p(x|z) from the decoder, q(z|x) = N(mu, sigma^2) from the encoder (Kingma and Welling 2014).

    `encoder(image_shape=, out_features=)` and `decoder(in_features=, image_shape=)` build the halves: the image's shape
    comes from the data and the parameters a pixel from the likelihood, so neither is written twice.
    """

    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(
        self,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        likelihood: Likelihood,
        latent_dim: int,
        image_shape: Shape,
    ) -> None:
        super().__init__()
        channels, *size = image_shape
        self.latent_dim, self.image_shape = latent_dim, tuple(image_shape)
        self.likelihood = likelihood
        self.encoder = encoder(image_shape=image_shape, out_features=2 * latent_dim)
        self.decoder = decoder(in_features=latent_dim, image_shape=(likelihood.params_per_pixel * channels, *size))
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("prior_scale", torch.ones(latent_dim), persistent=False)

    @property
    def prior(self) -> Normal:
        """p(z), batch shape (D,)."""
        return Normal(self.prior_loc, self.prior_scale)

    def encode(self, x: Tensor) -> Normal:
        """q(z|x) for x (B, C, H, W): batch shape (B, D). The network gives mu and log sigma^2."""
        x = x.to(self.prior_loc.dtype)  # images are float32, the weights under 64-true are not
        mu, log_var = at_least_float32(self.encoder(x)).chunk(2, dim=-1)  # (B, D), (B, D)
        return Normal(mu, (0.5 * log_var).exp())

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for z (K, B, D): batch shape (K, B), event (C, H, W)."""
        params = at_least_float32(self.decoder(z.flatten(0, -2)))  # (K B, P C, H, W)
        pixel = (self.likelihood.params_per_pixel, *self.image_shape)
        return self.likelihood(params.view(*z.shape[:-1], *pixel))

    def draw_prior(self, noise: Tensor) -> Tensor:
        """z (N, D) ~ p(z), made of standard normal noise (N, D): the same draws whenever the noise is the same."""
        with fixed_noise(lambda shape: noise.view(shape)):
            return self.prior.sample(torch.Size((len(noise),)))

    def reconstruct(self, x: Tensor, z: str = "mean", x_hat: str = "mean") -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W); `z` and `x_hat` are each `mean` or `sample`."""
        if z not in ("mean", "sample"):
            raise ValueError(f"z={z!r} is neither 'mean' nor 'sample'")
        q = self.encode(x)
        latent = q.mean.unsqueeze(0) if z == "mean" else q.sample(torch.Size((1,)))  # (1, B, D)
        return self._image(self.decode(latent), x_hat).squeeze(0)

    def sample(self, z: Tensor | int, x: str = "mean") -> Tensor:
        """Images (N, C, H, W) of prior draws z (N, D), or of N new ones; `x` is `mean` or `sample`."""
        latent = self.prior.sample(torch.Size((z,))) if isinstance(z, int) else z
        return self._image(self.decode(latent.unsqueeze(0)), x).squeeze(0)

    @staticmethod
    def _image(p: Distribution, mode: str) -> Tensor:
        if mode not in ("mean", "sample"):
            raise ValueError(f"{mode!r} is neither 'mean' nor 'sample'")
        return p.mean if mode == "mean" else p.sample()
