"""Likelihood heads: the decoder's output (K, B, P, C, H, W) -> p(x|z), a distribution over images (C, H, W).

A head states how many parameters P a pixel takes, whether its `log_prob` is normalised (so that nats can be compared)
and which images it is defined on.
"""

import math
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from vae.distributions import (
    LEVELS,
    Bernoulli,
    CalibratedNormal,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    SquaredError,
)
from vae.errors import InputError
from vae.networks import one_of
from vae.types import Choices, Positive


def _within(x: Tensor, low: float, high: float) -> bool:
    """Whether all values lie in [low, high], which NaN does not; 15 us for a batch, where `all` of a mask takes 300."""
    least, most = x.aminmax()
    return least.item() >= low and most.item() <= high


def _on_levels(x: Tensor) -> bool:
    levels = x * LEVELS
    return _within(x, 0, 1) and _within(levels.sub_(levels.round()), -1e-3, 1e-3)


# For each support: whether it contains images x, and what it allows.
SUPPORTS: dict[str, tuple[Callable[[Tensor], bool], str]] = {
    "real": (lambda x: _within(x, -sys.float_info.max, sys.float_info.max), "finite values"),
    "unit": (lambda x: _within(x, 0, 1), "values in [0, 1]; rescale the images"),
    "levels": (_on_levels, "the 256 grey levels k/255 only; use 8-bit images, or likelihood=gaussian"),
    "binary": (
        lambda x: _within(torch.addcmul(x, x, x, value=-1), 0, 0),  # x - x^2 is 0 for 0 and 1 alone
        "0 and 1 only; binarise the images with data.binarize=dynamic (or static, threshold), or choose "
        "likelihood=continuous_bernoulli",
    ),
}

FORMULAS = {"sigmoid": "torch.sigmoid(params[:, 0])", "linear": "params[:, 0]"}
Link = Annotated[Literal["sigmoid", "linear"], "link from the decoder's output to the mean"]
LINKS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "linear": lambda mean: mean}


def _logit(mean: Tensor) -> Tensor:
    return torch.logit(mean.clamp(1e-2, 1 - 1e-2))


class Likelihood(nn.Module):
    """Base of all heads; `mean` is the link from the decoder's output to the mean, `sigmoid` or `linear`."""

    params_per_pixel = 1
    normalised = True  # over images: a density, or a mass function where `discrete`
    discrete = False
    support = "unit"  # the images that it is defined on, a key of SUPPORTS
    has_sigma = False  # whether `stddev` is learned or chosen, and worth a figure

    def __init__(self, mean: Link = "sigmoid") -> None:
        super().__init__()
        one_of("mean", mean, LINKS)
        self.link = mean

    @classmethod
    def requires(cls, chosen: Choices) -> None:
        """Raises InputError for data that it is not defined on, as far as the configuration says."""
        if cls.support == "binary" and chosen["data.binarize"] == "none":
            raise InputError(
                "likelihood=bernoulli: data.binarize=none leaves grey levels, and it is defined on 0 and 1 only; "
                "choose data.binarize=dynamic (or static, threshold), or likelihood=continuous_bernoulli"
            )

    def mean(self, params: Tensor) -> Tensor:
        return LINKS[self.link](params)

    def inverse_mean(self, mean: Tensor) -> Tensor:
        """The decoder's output for this mean image: the start of its last bias, as in the code of Burda et al. 2015."""
        return _logit(mean) if self.link == "sigmoid" else mean

    def check(self, x: Tensor) -> None:
        """Raises InputError, with what to do, if images x (N, C, H, W) are no floats or lie outside the support."""
        if not x.is_floating_point():
            raise InputError(f"images of {x.dtype}: a model takes floats in [0, 1], which bytes are as x / 255")
        contains, allowed = SUPPORTS[self.support]
        if x.numel() and not contains(x):
            low, high = (value.item() for value in x.aminmax())
            values = "NaN" if math.isnan(low) else f"values from {low:g} to {high:g}"
            raise InputError(f"images with {values}: likelihood={self.name} takes {allowed}")

    @property
    def name(self) -> str:
        """The option of `likelihood=`, or the name of an own class."""
        return NAMES.get(type(self), type(self).__name__)

    @property
    def formula(self) -> str | None:
        """The mean of p(x|z) from `params`, the decoder's output as (B, P, C, H, W); of an own class None."""
        return FORMULAS[self.link] if type(self) in NAMES else None

    def describe(self) -> dict[str, Any]:
        """All that is needed to compute p(x|z) from the decoder's output without this package, in JSON's types."""
        return {
            "name": self.name,
            "link": self.link,
            "params_per_pixel": self.params_per_pixel,
            "normalised": self.normalised,
            "mean": self.formula,
        }

    def forward(self, params: Tensor) -> Distribution:
        raise TypeError(f"{type(self).__name__} is the base of the heads: choose one of them")

    def after_step(self, p: Distribution) -> None:
        """For heads that also learn from a batch by other means than gradients."""


class SquaredErrorHead(Likelihood):
    """The report's loss: `reconstruct=sample` draws x_hat ~ N(mu', sigma'^2), `mean` takes mu' (figure 8)."""

    normalised = False

    def __init__(
        self,
        reconstruct: Annotated[
            Literal["sample", "mean"], "squared error of a sampled image, as in the report, or of the mean"
        ] = "sample",
        mean: Link = "linear",
    ) -> None:
        super().__init__(mean)
        one_of("reconstruct", reconstruct, dict.fromkeys(("sample", "mean")))
        self.reconstruct = reconstruct
        self.params_per_pixel = 2 if reconstruct == "sample" else 1
        self.has_sigma = reconstruct == "sample"

    def forward(self, params: Tensor) -> SquaredError:
        if self.reconstruct == "mean":
            return SquaredError(self.mean(params.squeeze(-4)))
        mean, log_var = params.unbind(-4)
        return SquaredError(self.mean(mean), (0.5 * log_var).exp())


class GaussianHead(Likelihood):
    """N(x; mu', sigma^2), a density in nats. `sigma` is one of

    - a number, the same for every pixel;
    - `shared`: one number, learned;
    - `pixel`: one per pixel from the decoder, at least `min_sigma` (without a floor it would go to 0 on constant
      pixels, and the density to infinity);
    - `optimal`: the root mean square error of the batch in training, of recent batches in evaluation (Rybkin et al.
      2021).
    """

    has_sigma = True
    mse: Tensor
    batches: Tensor

    def __init__(
        self,
        sigma: Annotated[Positive | Literal["shared", "pixel", "optimal"], "standard deviation of a pixel"] = 0.1,
        min_sigma: Annotated[Positive, "lower bound of sigma=pixel"] = 0.01,
        mean: Link = "sigmoid",
    ) -> None:
        super().__init__(mean)
        if isinstance(sigma, str):
            one_of("sigma", sigma, dict.fromkeys(("shared", "pixel", "optimal")))
        self.support = "real" if mean == "linear" else "unit"
        self.sigma, self.min_sigma = sigma, min_sigma
        self.params_per_pixel = 2 if sigma == "pixel" else 1
        if sigma == "shared":
            self.log_sigma = nn.Parameter(torch.zeros(()))
        if sigma == "optimal":
            self.register_buffer("mse", torch.ones(()))
            self.register_buffer("batches", torch.zeros(()))

    def forward(self, params: Tensor) -> Distribution:
        mean = self.mean(params.select(-4, 0))
        if self.sigma == "optimal" and self.training:
            return CalibratedNormal(mean, self.mse.sqrt())
        return Gaussian(mean, self.scale(params))

    def scale(self, params: Tensor) -> Tensor:
        """sigma, () or (K, B, C, H, W), in units of the grey scale [0, 1]."""
        if self.sigma == "pixel":
            return self.min_sigma + F.softplus(params.select(-4, 1))
        if self.sigma == "shared":
            return self.log_sigma.exp()
        if self.sigma == "optimal":
            return self.mse.sqrt()
        return params.new_tensor(float(self.sigma))

    def describe(self) -> dict[str, Any]:
        """With `sigma`, None where the decoder gives one for each pixel: `min_sigma` + softplus(params[:, 1])."""
        sigma = None if self.sigma == "pixel" else float(self.scale(torch.empty(0)))
        return super().describe() | {"sigma": sigma, "min_sigma": self.min_sigma}

    def after_step(self, p: Distribution) -> None:
        """A running mean over about the last hundred batches; a plain mean until there are as many."""
        if isinstance(p, CalibratedNormal) and p.mse is not None:
            self.batches += 1
            self.mse += (p.mse - self.mse) / self.batches.clamp(max=100)


class BernoulliHead(Likelihood):
    """p(x) for binary images (nats, discrete)."""

    discrete = True
    support = "binary"

    def __init__(self) -> None:
        super().__init__()

    def forward(self, params: Tensor) -> Distribution:
        return Bernoulli(params.squeeze(-4))


class CrossEntropyHead(Likelihood):
    """Cross-entropy of grey pixels x, as in PyTorch's example: log_prob(x) = sum of x log mu + (1 - x) log(1 - mu).

    It is not a density of grey levels (`ContinuousBernoulliHead` is), so it has no log p(x) in nats and no NLL.
    """

    normalised = False

    def __init__(self) -> None:
        super().__init__()

    def forward(self, params: Tensor) -> Distribution:
        return Bernoulli(params.squeeze(-4))


class ContinuousBernoulliHead(Likelihood):
    """A density on [0, 1] (Loaiza-Ganem and Cunningham 2019); cross-entropy on grey pixels is often mistaken for it."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, params: Tensor) -> Distribution:
        return ContinuousBernoulli(params.squeeze(-4))

    formula = "with l = params[:, 0]: 1 / (1 - exp(-l)) - 1 / l, and 1/2 + l / 12 where |l| < 0.05"

    def inverse_mean(self, mean: Tensor) -> Tensor:
        """The logit with this mean, by bisection: there is no closed form."""
        low, high = torch.full_like(mean, -200.0), torch.full_like(mean, 200.0)
        for _ in range(40):
            middle = (low + high) / 2
            below = ContinuousBernoulli(middle).mean < mean.clamp(1e-2, 1 - 1e-2)
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


class DiscretizedLogisticHead(Likelihood):
    """Mass on the 256 grey levels; a location and a scale per pixel, the scale at least `min_scale`."""

    params_per_pixel = 2
    discrete = True
    support = "levels"
    has_sigma = True

    def __init__(
        self, min_scale: Annotated[Positive, "lower bound of a pixel's scale"] = 1e-3, mean: Link = "sigmoid"
    ) -> None:
        super().__init__(mean)
        self.min_scale = min_scale

    @property
    def formula(self) -> str:
        scale = "min_scale + F.softplus(params[:, 1] - log(9.5))"
        steps = "the sum over k = 0..254 of sigmoid((m - (k + 0.5) / 255) / s) / 255"
        return f"with m = {FORMULAS[self.link]}, s = {scale}: {steps}"

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"min_scale": self.min_scale}

    def forward(self, params: Tensor) -> DiscretizedLogistic:
        loc, raw = params.unbind(-4)
        # shifted so that an untrained decoder starts near a scale of 0.1, wide enough for gradients
        return DiscretizedLogistic(self.mean(loc), self.min_scale + F.softplus(raw - math.log(9.5)))


NAMES: dict[type[Likelihood], str] = {
    SquaredErrorHead: "squared_error",
    GaussianHead: "gaussian",
    BernoulliHead: "bernoulli",
    CrossEntropyHead: "cross_entropy",
    ContinuousBernoulliHead: "continuous_bernoulli",
    DiscretizedLogisticHead: "discretized_logistic",
}
