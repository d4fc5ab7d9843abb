"""What torch.distributions lacks: squared error, a calibrated normal, a discretised logistic, fixed noise in Normal.

Shapes: parameters are (K, B, *event); `log_prob` sums over the event and returns nats, (K, B).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli
from torch.distributions import Distribution, constraints
from torch.distributions import Normal as TorchNormal

from vae.noise import Shape, noise_source

LEVELS = 255  # grey levels of an image are 0/255, 1/255, ..., 255/255


class Normal(TorchNormal):
    """torch's Normal; its draws can be fixed by `fixed_noise`, and its arguments are not checked (no device sync)."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(loc, scale, validate_args=False)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """z = mu + sigma e, e ~ N(0, I): the reparametrisation trick (Kingma and Welling 2014, section 2.4)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        streams = noise_source()
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device) if streams is None else streams(shape)
        return torch.addcmul(self.loc, self.scale, noise.to(self.loc))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)


class ImageDistribution(Distribution):
    """Parameters of shape batch + event, the last `event_dim` axes being the event."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch declares it so)

    def __init__(self, loc: Tensor, event_dim: int) -> None:
        split = loc.dim() - event_dim
        super().__init__(loc.shape[:split], loc.shape[split:], validate_args=False)
        self.loc = loc

    def _sum(self, terms: Tensor) -> Tensor:
        """Over the event as one axis: flat and (C, H, W) images then add up in the same order, to the bit."""
        return terms.flatten(-len(self._event_shape)).sum(-1)


class SquaredError(ImageDistribution):
    """The report's L2 in the slot of a likelihood: log_prob(x) = -||x - x_hat||^2, eq. (7) of the report.

    `x_hat` is a sample mu' + sigma' e where `scale` is given, else the mean mu'. With the mean it is a Gaussian of
    variance 1/2 but for a constant; with a sample it is no likelihood at all: its expectation
    -(||x - mu'||^2 + sum sigma'^2) has its maximum at sigma' = 0. So nothing may print it as nats of an NLL.
    """

    normalised = False

    def __init__(self, loc: Tensor, scale: Tensor | None = None, event_dim: int = 3) -> None:
        super().__init__(loc, event_dim)
        self.scale = scale

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        """sigma', the spread of the sampled reconstruction: 0 where the mean is the reconstruction."""
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
    """N(x; loc, scale^2), independent pixels, in nats; `scale` is () for all pixels or one for each, like `loc`.

    One scale for all leaves the squared errors as the only pass over the pixels, which is what an importance-weighted
    evaluation spends its time on beside the decoder.
    """

    normalised = True

    def __init__(self, loc: Tensor, scale: Tensor, event_dim: int = 3) -> None:
        super().__init__(loc, event_dim)
        self.scale = scale

    @property
    def mean(self) -> Tensor:
        return self.loc

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

    `log_prob` looks at the data to find the sigma of maximum likelihood, and gradients flow through it; so it
    serves training only, and `mse` (detached) is what the head keeps for evaluation.
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


class ContinuousBernoulli(TorchContinuousBernoulli):
    """torch's, with the normaliser C = l / tanh(l / 2) at any logit l (Loaiza-Ganem and Cunningham 2019, eq. 2).

    torch clamps the probability, so that in float32 its density loses mass beyond |l| = 16, where black pixels go.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        small = self.logits.abs() < 0.05
        safe = torch.where(small, 1.0, self.logits)
        log_c = torch.where(small, math.log(2) + self.logits**2 / 12, (safe / torch.tanh(safe / 2)).log())
        return value * self.logits - F.softplus(self.logits) + log_c

    @property
    def mean(self) -> Tensor:
        small = self.logits.abs() < 0.05
        safe = torch.where(small, 1.0, self.logits)
        return torch.where(small, 0.5 + self.logits / 12, -1 / torch.expm1(-safe) - 1 / safe)


class DiscretizedLogistic(ImageDistribution):
    """A logistic density cut into the 256 grey levels, the tails falling to 0 and 255 (Salimans et al. 2017, eq. 2).

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
