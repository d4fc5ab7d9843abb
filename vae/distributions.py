"""Distributions that torch lacks. Of z: normals with fixed noise, mixtures, flows; of x: squared error, a calibrated
normal, a continuous Bernoulli at any logit, a discretised logistic.

Shapes: parameters are (K, B, *event); `log_prob` sums over the event and returns nats, (K, B).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, constraints, kl_divergence, register_kl
from torch.distributions import Normal as TorchNormal

from vae.noise import Shape, noise_source

LEVELS = 255  # grey levels of an image are 0/255, 1/255, ..., 255/255


# --- of z -------------------------------------------------------------------------------------------------------------


def standard_normal(shape: torch.Size, like: Tensor) -> Tensor:
    """Draws from N(0, 1), or those of `fixed_noise`, with the type and device of `like`."""
    source = noise_source()
    noise = torch.randn(shape, dtype=like.dtype, device=like.device) if source is None else source(shape)
    return noise.to(like)


def has_float64(device: torch.device) -> bool:
    return device.type != "mps"


def widest(x: Tensor) -> Tensor:
    """x in float64, or as it is on a device that has no such type."""
    return x.double() if has_float64(x.device) else x


class Latents(Distribution):
    """A distribution over z (D,) whose `sample` is `rsample` without gradients; arguments are not checked."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch declares it so)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(torch.Size(sample_shape))


class Normal(TorchNormal):
    """torch's Normal with draws that `fixed_noise` can fix; arguments are not checked, which would sync the device."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(loc, scale, validate_args=False)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """z = mu + sigma e, e ~ N(0, I): the reparametrisation trick (Kingma and Welling 2014, section 2.4)."""
        return self.push(standard_normal(self._extended_shape(torch.Size(sample_shape)), self.loc))

    def push(self, noise: Tensor) -> Tensor:
        return torch.addcmul(self.loc, self.scale, noise)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def __getitem__(self, index: Tensor) -> "Normal":
        return Normal(self.loc[index], self.scale[index])


class FullNormal(MultivariateNormal):
    """N(mu, L L') for mu (B, D) and L (B, D, D), lower triangular with a positive diagonal; event (D,)."""

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__(loc, scale_tril=scale_tril, validate_args=False)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return self.push(standard_normal(self._extended_shape(torch.Size(sample_shape)), self.loc))

    def push(self, noise: Tensor) -> Tensor:
        return self.loc + (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    def __getitem__(self, index: Tensor) -> "FullNormal":
        return FullNormal(self.loc[index], self.scale_tril[index])


@register_kl(FullNormal, Normal)
def _kl_of_full_and_diagonal(q: FullNormal, p: Normal) -> Tensor:
    """(B,): half of tr(S^-1 L L') + (mu - m)' S^-1 (mu - m) - D + log det S - log det L L', for p = N(m, S)."""
    spread = q.scale_tril.square().sum(-1) + (q.loc - p.loc).square()  # (B, D)
    log_ratio = p.scale.log() - q.scale_tril.diagonal(dim1=-2, dim2=-1).log()  # (B, D)
    return (0.5 * spread / p.scale.square() - 0.5 + log_ratio).sum(-1)


class Mixture(Latents):
    """sum_k w_k N_k(z) with w = softmax(`logits`) (N,), of N Gaussians, Normal (N, D) or FullNormal (N,)."""

    def __init__(self, logits: Tensor, components: Normal | FullNormal) -> None:
        super().__init__(torch.Size(), components.mean.shape[-1:], validate_args=False)
        self.log_weights, self.components = logits.log_softmax(-1), components

    @property
    def mean(self) -> Tensor:
        return self.log_weights.exp() @ self.components.mean

    @property
    def variance(self) -> Tensor:
        c = self.components
        return self.log_weights.exp() @ (c.variance + (c.mean - self.mean).square())

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Differentiable in the components, not the weights; the last of D + 1 numbers selects the component."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = standard_normal(torch.Size((*shape[:-1], shape[-1] + 1)), self.components.mean)
        levels = widest(self.log_weights.detach()).exp().cumsum(-1)
        uniform = torch.special.ndtr(widest(noise[..., -1]))
        chosen = torch.searchsorted(levels, uniform.contiguous()).clamp(max=len(levels) - 1)
        return self.components[chosen].push(noise[..., :-1])

    def log_prob(self, value: Tensor) -> Tensor:
        """(..., D) -> (...)."""
        return (self.log_weights + self._of_each(value)).logsumexp(-1)

    def _of_each(self, z: Tensor) -> Tensor:
        """log N_k(z), (..., D) -> (..., N): squares by matrix products, whose large terms cancel."""
        c = self.components
        if isinstance(c, FullNormal):
            return c.log_prob(z.unsqueeze(-2))
        loc, precision, wide = widest(c.loc), widest(c.scale) ** -2, widest(z)
        squares = wide**2 @ precision.T - 2 * wide @ (loc * precision).T + (loc**2 * precision).sum(-1)
        constant = 0.5 * precision.log().sum(-1) - 0.5 * loc.shape[-1] * math.log(2 * math.pi)
        return (constant - 0.5 * squares).to(z)


Map = Callable[[Tensor], tuple[Tensor, Tensor]]
PAIRS = 32  # of noise and its negative, for the mean of a flow


def paired_noise(dim: int) -> Tensor:
    """(2 PAIRS, D): fixed draws from N(0, I), each with its negative."""
    noise = torch.randn(PAIRS, dim, generator=torch.Generator().manual_seed(0))
    return torch.cat([noise, -noise])


class Flowed(Latents):
    """A Normal (..., D) pushed through an invertible map; event (D,).

    `forward` and `inverse` return the image and their log-determinant. The density of the last draw is kept, since the
    inverse of an autoregressive flow takes D passes. Mean and variance are taken over `noise`.
    """

    def __init__(self, base: Normal, forward: Map, inverse: Map, noise: Tensor) -> None:
        super().__init__(base.batch_shape[:-1], base.batch_shape[-1:], validate_args=False)
        self.base, self.forward, self.inverse, self.noise = base, forward, inverse, noise
        self.drawn: tuple[Tensor, Tensor] | None = None

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        u = self.base.rsample(torch.Size(sample_shape))
        z, log_det = self.forward(u)
        self.drawn = z, self.base.log_prob(u).sum(-1) - log_det
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """(..., D) -> (...): log N(u) + log |du / dz| at the u of z."""
        if self.drawn is not None and value is self.drawn[0]:
            return self.drawn[1]
        u, log_det = self.inverse(value)
        return self.base.log_prob(u).sum(-1) + log_det

    @property
    def mean(self) -> Tensor:
        """Over the same 32 pairs of draws e and -e for every x, since there is no closed form."""
        return self._of_noise().mean(0)

    @property
    def variance(self) -> Tensor:
        """Over the draws of the mean."""
        return self._of_noise().var(0)

    def _of_noise(self) -> Tensor:
        noise = self.noise.view(-1, *[1] * len(self.batch_shape), *self.event_shape)
        return self.forward(self.base.push(noise.to(self.base.loc)))[0]


def detach(q: Distribution) -> Distribution:
    """The same density without gradients for its parameters; raises TypeError for other kinds than Gaussians."""
    if isinstance(q, Normal):
        return Normal(q.loc.detach(), q.scale.detach())
    if isinstance(q, FullNormal):
        return FullNormal(q.loc.detach(), q.scale_tril.detach())
    raise TypeError(f"{type(q).__name__}: no density without its gradients; take gradient='plain'")


def log_density(p: Distribution, z: Tensor) -> Tensor:
    """log p(z) in nats, (..., D) -> (...), whether or not the latents are independent under p."""
    score = p.log_prob(z)
    return score if p.event_shape else score.sum(-1)


def log_ratio(p: Distribution, q: Distribution, z: Tensor) -> Tensor:
    """log p(z) - log q(z) in nats, (..., D) -> (...)."""
    if p.event_shape or q.event_shape:
        return log_density(p, z) - log_density(q, z)
    return (p.log_prob(z) - q.log_prob(z)).sum(-1)


def divergence(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """KL(q || p) in nats: (B, D) if the latents are independent in both, else (B, 1), of all latents together.

    In closed form if there is one, else Monte Carlo: the mean of log q(z) - log p(z) over the K draws z (K, B, D) ~ q.
    `kl_form` says which.
    """
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        return -log_ratio(p, q, z).mean(0).unsqueeze(-1)
    return kl.unsqueeze(-1) if q.event_shape or p.event_shape else kl


PER_LATENT, TOGETHER = "closed form, per latent", "closed form, of all latents together"
MONTE_CARLO = "Monte Carlo over draws of z"


def kl_form(q: Distribution, p: Distribution) -> str:
    """How `divergence` computes KL(q || p), in words."""
    try:
        kl_divergence(q, p)
    except NotImplementedError:
        return MONTE_CARLO
    return TOGETHER if q.event_shape or p.event_shape else PER_LATENT


# --- of x -------------------------------------------------------------------------------------------------------------


class ImageDistribution(Distribution):
    """Parameters of shape batch + event, where the last `event_dim` axes are the event."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch declares it so)

    def __init__(self, loc: Tensor, event_dim: int) -> None:
        split = loc.dim() - event_dim
        super().__init__(loc.shape[:split], loc.shape[split:], validate_args=False)
        self.loc = loc

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.stddev.square()

    def _sum(self, terms: Tensor) -> Tensor:
        """Sum over the event as one axis, so that flat and (C, H, W) images give the same bits."""
        return terms.flatten(-len(self._event_shape)).sum(-1)


class SquaredError(ImageDistribution):
    """The report's L2 in the slot of a likelihood: log_prob(x) = -||x - x_hat||^2, eq. (7) of the report.

    `x_hat` is a sample mu' + sigma' e where `scale` is given, else the mean mu'. With the mean it is a Gaussian of
    variance 1/2 up to a constant; with a sample it is no likelihood: its expectation -(||x - mu'||^2 + sum sigma'^2)
    has its maximum at sigma' = 0, so it must never be reported as an NLL in nats.
    """

    normalised = False

    def __init__(self, loc: Tensor, scale: Tensor | None = None, event_dim: int = 3) -> None:
        super().__init__(loc, event_dim)
        self.scale = scale

    @property
    def stddev(self) -> Tensor:
        """sigma' of the sampled reconstruction; 0 if the reconstruction is the mean."""
        return torch.zeros_like(self.loc) if self.scale is None else self.scale

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        if self.scale is None:
            return self.loc.expand(self._extended_shape(torch.Size(sample_shape)))
        return Normal(self.loc, self.scale).rsample(sample_shape)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return -self._sum((value - self.rsample()) ** 2)


class Gaussian(ImageDistribution):
    """N(x; loc, scale^2), independent pixels, in nats; `scale` is () for all pixels, or like `loc`.

    With one scale the squared errors are the only pass over the pixels, on which an importance-weighted evaluation
    spends most of its time beside the decoder.
    """

    normalised = True

    def __init__(self, loc: Tensor, scale: Tensor, event_dim: int = 3) -> None:
        super().__init__(loc, event_dim)
        self.scale = scale

    @property
    def stddev(self) -> Tensor:
        return self.scale.expand_as(self.loc)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return Normal(self.loc, self.stddev).sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        error = value - self.loc
        pixels = self._event_shape.numel()
        if self.scale.dim():
            fit, log_scale = self._sum((error / self.scale).square()), self._sum(self.scale.log())
        else:
            fit, log_scale = self._sum(error.square()) / self.scale**2, pixels * self.scale.log()
        return -0.5 * fit - log_scale - 0.5 * pixels * math.log(2 * math.pi)


class CalibratedNormal(Gaussian):
    """The sigma-VAE's training likelihood (Rybkin et al. 2021, eq. 8): sigma^2 is the batch's mean squared error.

    `log_prob` takes the sigma of maximum likelihood from the data, and gradients flow through it, so it is for
    training only; the head keeps `mse` (detached) for evaluation.
    """

    mse: Tensor | None = None

    def log_prob(self, value: Tensor) -> Tensor:
        mse = (value - self.loc).square().mean()
        self.mse = mse.detach()
        return Gaussian(self.loc, mse.sqrt(), len(self._event_shape)).log_prob(value)


class Bernoulli(ImageDistribution):
    """Independent pixels of 0 and 1, log p(x) = x . l - sum softplus(l) at the logits l (nats)."""

    normalised = True

    def __init__(self, logits: Tensor, event_dim: int = 3) -> None:
        super().__init__(logits, event_dim)
        self.logits = logits

    def log_prob(self, value: Tensor) -> Tensor:
        return self._sum(value.to(self.logits) * self.logits) - self._sum(F.softplus(self.logits))

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    @property
    def stddev(self) -> Tensor:
        return (self.mean * (1 - self.mean)).sqrt()

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))


class ContinuousBernoulli(ImageDistribution):
    """A density on [0, 1] at any logits l: log p(x) = x . l - sum softplus(l) + sum log C(l), in nats.

    C = l / tanh(l / 2) (Loaiza-Ganem and Cunningham 2019, eq. 2 and appendix A). torch's own clamps the probability: in
    float32 its density loses mass beyond |l| = 16, where black pixels go, and its samples stay above 0.06 there.
    """

    normalised = True

    def __init__(self, logits: Tensor, event_dim: int = 3) -> None:
        super().__init__(logits, event_dim)
        self.logits = logits

    def log_prob(self, value: Tensor) -> Tensor:
        small, safe = self._apart_from_0(0.05)
        log_c = torch.where(small, math.log(2) + self.logits**2 / 12, (safe / torch.tanh(safe / 2)).log())
        return self._sum(value * self.logits - F.softplus(self.logits) + log_c)

    @property
    def mean(self) -> Tensor:
        """1 / (1 - exp(-l)) - 1 / l."""
        small, safe = self._apart_from_0(0.05)
        return torch.where(small, 0.5 + self.logits / 12, -1 / torch.expm1(-safe) - 1 / safe)

    @property
    def variance(self) -> Tensor:
        """1 / l^2 - 1 / (4 sinh(l / 2)^2), whose two terms cancel near 0."""
        small, safe = self._apart_from_0(1.0)
        square = torch.where(small, self.logits, 0.0).square()
        series = 1 / 12 - square / 240 + square**2 / 6048 - square**3 / 172_800 + square**4 / 5_322_240
        return torch.where(small, series, safe**-2 - 0.25 * torch.sinh(safe / 2) ** -2)

    @property
    def stddev(self) -> Tensor:
        return self.variance.sqrt()

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """The inverse CDF at uniform u: log(1 + u (exp(l) - 1)) / l for l < 0, and mirrored for l > 0."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
            small, safe = self._apart_from_0(1e-6)
            rate = -safe.abs()
            dark = torch.log1p(uniform * torch.expm1(rate)) / rate  # of the mirrored pixel, more black than white
            return torch.where(small, uniform, torch.where(safe > 0, 1 - dark, dark)).clamp(0, 1)

    def _apart_from_0(self, width: float) -> tuple[Tensor, Tensor]:
        """Where |l| < width, and l with 1 in its place there."""
        small = self.logits.abs() < width
        return small, torch.where(small, 1.0, self.logits)


class DiscretizedLogistic(ImageDistribution):
    """A logistic density cut into 256 grey levels; 0 and 255 include the tails (Salimans et al. 2017, eq. 2).

    `log_prob` is in nats and sums to one over the 256 levels; no epsilon is needed, since
    log(S(u) - S(l)) = log S(u) + log S(-l) + log(1 - exp(l - u)) for the logistic function S.
    """

    normalised = True

    def __init__(self, loc: Tensor, scale: Tensor, event_dim: int = 3) -> None:
        super().__init__(loc, event_dim)
        self.scale = scale

    def log_prob(self, value: Tensor) -> Tensor:
        value, half = value.to(self.loc), 0.5 / LEVELS
        above = F.logsigmoid((value + half - self.loc) / self.scale)
        below = F.logsigmoid((self.loc - value + half) / self.scale)
        width = torch.log(-torch.expm1(-2 * half / self.scale))
        lowest, highest = value < half, value > 1 - half
        zero = torch.zeros((), dtype=self.loc.dtype, device=self.loc.device)
        terms = torch.where(highest, zero, above) + torch.where(lowest, zero, below)
        return self._sum(terms + torch.where(lowest | highest, zero, width))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        tiny = torch.finfo(self.loc.dtype).tiny
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(min=tiny)
        x = (self.loc + self.scale * torch.logit(uniform)).detach()
        return ((x * LEVELS).round() / LEVELS).clamp(0, 1)

    @property
    def mean(self) -> Tensor:
        """E[x] = sum_k P(x > k / 255) / 255, exact."""
        return self._sum_over_levels(torch.ones(LEVELS))

    @property
    def stddev(self) -> Tensor:
        """From E[x^2] = sum_k (2k + 1) P(x > k / 255) / 255^2."""
        second = self._sum_over_levels((2 * torch.arange(LEVELS) + 1) / LEVELS)
        return (second - self.mean**2).clamp(min=0).sqrt()

    def _sum_over_levels(self, weights: Tensor) -> Tensor:
        total = torch.zeros_like(self.loc)
        for level, weight in enumerate(weights.tolist()):
            total += weight / LEVELS * torch.sigmoid((self.loc - (level + 0.5) / LEVELS) / self.scale)
        return total
