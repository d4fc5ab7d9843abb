"""The variational auto-encoder: a prior, an encoder, a decoder, a likelihood. Tensors in, distributions out.

D latents, K samples (always the leading axis), B images of shape (C, H, W), P parameters per pixel.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae.errors import InputError
from vae.likelihoods import Likelihood
from vae.networks import Shape
from vae.noise import fixed_noise
from vae.posteriors import Diagonal, Posterior
from vae.priors import Prior, Standard

Labels = Tensor | int | None  # (B,), or one class for all images


def at_least_float32(params: Tensor) -> Tensor:
    """Parameters in at least float32: under bf16-mixed, sums over pixels would be off by nats."""
    return params.float() if params.dtype in (torch.float16, torch.bfloat16) else params


class VAE(nn.Module):
    """p(z), p(x|z) from the decoder, q(z|x) from the encoder (Kingma and Welling 2014, where both of z are Gaussians).

    `encoder(image_shape=, out_features=)` and `decoder(in_features=, image_shape=)` build the halves: the image shape
    comes from the data, the parameters per pixel from the likelihood, the number of features from the posterior.
    `prior(latent_dim=, image_shape=)` and `posterior(latent_dim=)` build the distributions of z.

    With `classes` both halves are conditional on a label y (Kingma et al. 2014, M2): the encoder sees it as one more
    channel, a learned plane for each class, and the decoder beside z. Labels y are (B,), or one class for all images.
    Without `classes` every method ignores them.
    """

    prior_loc: Tensor  # zeros (D,) of the model's type, on its device

    def __init__(
        self,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        likelihood: Likelihood,
        latent_dim: int,
        image_shape: Shape,
        prior: Callable[..., Prior] = Standard,
        posterior: Callable[..., Posterior] = Diagonal,
        classes: int = 0,
    ) -> None:
        super().__init__()
        channels, *size = image_shape
        self.classes = classes
        self.latent_dim, self.image_shape = latent_dim, tuple(image_shape)
        self.likelihood = likelihood
        head = posterior(latent_dim=latent_dim)
        self.encoder = encoder(image_shape=(channels + (classes > 0), *size), out_features=head.features)
        in_features = latent_dim + classes
        self.decoder = decoder(in_features=in_features, image_shape=(likelihood.params_per_pixel * channels, *size))
        if classes:
            self.planes = nn.Embedding(classes, size[0] * size[1])
        self.posterior_head = head
        self.prior_head = prior(latent_dim=latent_dim, image_shape=self.image_shape)
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)

    @property
    def prior(self) -> Distribution:
        """p(z): batch shape (D,) where the latents are independent, else event (D,)."""
        return self.prior_head(self._encode)  # pseudo-inputs are no images: they are grey where those are binary

    def encode(self, x: Tensor, y: Labels = None) -> Distribution:
        """q(z|x) for x (B, C, H, W): batch shape (B, D) where the latents are independent, else (B,) and event (D,).

        Raises InputError for images that `check_images` refuses, and where a conditional model gets no labels y.
        """
        if not torch.compiler.is_compiling():  # an exported graph has no errors to raise
            self.check_images(x)
        return self._encode(x, y)

    def check_images(self, x: Tensor) -> None:
        """Raises InputError for images x of another shape or type, or with values outside the likelihood's support.

        In training on an accelerator the values are not checked, since each step would have to wait for the device.
        """
        if tuple(x.shape[1:]) != self.image_shape:
            shape = ", ".join(map(str, self.image_shape))
            raise InputError(f"images of shape {tuple(x.shape)}: this model takes (N, {shape})")
        if x.device.type == "cpu" or not self.training:
            self.likelihood.check(x)

    def _encode(self, x: Tensor, y: Labels = None) -> Distribution:
        x = x.to(self.prior_loc.dtype)  # images are float32, the weights under 64-true are not
        if self.classes:
            planes = self.planes(self._per_image(y, len(x))).view(-1, 1, *x.shape[2:])
            x = torch.cat([x, planes], 1)
        return self.posterior_head(at_least_float32(self.encoder(x)))

    def decode(self, z: Tensor, y: Labels = None) -> Distribution:
        """p(x|z) for z (K, B, D): batch shape (K, B), event (C, H, W). Raises InputError as `encode` does."""
        return self.likelihood(self.decoder_output(z, y))

    def decoder_output(self, z: Tensor, y: Labels = None) -> Tensor:
        """The parameters (K, B, P, C, H, W) that the likelihood turns into p(x|z), for z (K, B, D)."""
        flat = z.flatten(0, -2)  # (K B, D)
        if self.classes:
            repeated = self._per_image(y, z.shape[-2]).repeat(len(flat) // z.shape[-2])  # (K B,)
            flat = torch.cat([flat, nn.functional.one_hot(repeated, self.classes).to(flat)], 1)
        params = at_least_float32(self.decoder(flat))  # (K B, P C, H, W)
        return params.view(*z.shape[:-1], self.likelihood.params_per_pixel, *self.image_shape)

    def _per_image(self, y: Labels, count: int) -> Tensor:
        if y is None:
            raise InputError(
                "model.conditional=true: the model needs a class for each image; give one with --label, or labels y in "
                "Python, as in vae.encode(x, y)"
            )
        labels = y if isinstance(y, Tensor) else torch.tensor(y)
        if labels.numel() not in (1, count):
            raise InputError(f"{labels.numel()} labels for {count} images: give one for each, or one for all")
        if labels.device.type == "cpu" and count:
            low, high = (value.item() for value in labels.aminmax())
            if not 0 <= low <= high < self.classes or labels.is_floating_point():
                raise InputError(f"labels from {low} to {high}: this model has the classes 0 to {self.classes - 1}")
        return labels.to(self.prior_loc.device).expand(count)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def noise_per_draw(self) -> int:
        """Standard normal numbers needed for one draw from the prior: D, or D + 1 for a mixture."""
        return self.prior_head.noise_per_draw

    @torch.no_grad()
    def draw_prior(self, noise: Tensor) -> Tensor:
        """z (N, D) ~ p(z) as a function of standard normal noise (N, `noise_per_draw`)."""
        if noise.shape[1] != self.noise_per_draw:
            raise ValueError(f"noise {tuple(noise.shape)}: a draw of this prior takes {self.noise_per_draw} numbers")
        with fixed_noise(lambda shape: noise.view(shape)):
            return self.prior.sample(torch.Size((len(noise),)))

    def reconstruct(self, x: Tensor, z: str = "mean", x_hat: str = "mean", y: Labels = None) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W); `z` and `x_hat` are each `mean` or `sample`."""
        if z not in ("mean", "sample"):
            raise ValueError(f"z={z!r} is neither 'mean' nor 'sample'")
        q = self.encode(x, y)
        latent = q.mean.unsqueeze(0) if z == "mean" else q.sample(torch.Size((1,)))  # (1, B, D)
        return self._image(self.decode(latent, y), x_hat).squeeze(0)

    def sample(self, z: Tensor | int, x: str = "mean", y: Labels = None) -> Tensor:
        """Images (N, C, H, W) from z (N, D), or from N new draws of the prior; `x` is `mean` or `sample`."""
        latent = self.prior.sample(torch.Size((z,))) if isinstance(z, int) else z
        return self._image(self.decode(latent.unsqueeze(0), y), x).squeeze(0)

    @staticmethod
    def _image(p: Distribution, mode: str) -> Tensor:
        if mode not in ("mean", "sample"):
            raise ValueError(f"{mode!r} is neither 'mean' nor 'sample'")
        return p.mean if mode == "mean" else p.sample()
