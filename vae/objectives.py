"""Objectives. Per image, in nats: log_px = E_q[log p(x|z)] and kl = KL(q(z|x) || p(z)), per latent where possible."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Le
from torch import Tensor
from torch.distributions import Distribution

from vae.distributions import detach, divergence, log_density, log_ratio, widest
from vae.errors import InputError
from vae.model import VAE
from vae.schedules import constant
from vae.types import Choices, Count, NotNegative

Schedule = Callable[[int], float]

# keys that several objectives share
Samples = Annotated[Count, "draws of z per image"]
Beta = Annotated[NotNegative | Schedule, "weight of the KL (tc: of its total correlation): a number or a schedule"]


@dataclass
class Terms:
    """One batch: `loss` () is differentiated; `log_px` (B,) and `kl` (B, D) are never weighted (nats per image).

    `kl` is (B, 1) if the prior or the posterior ties the latents together: see `distributions.divergence`.
    `per_image` (B,) is the loss of each image, for the standard error in evaluations. An objective with a term of the
    whole batch leaves it out: its loss on a split is the mean over batches, without an error. Such a class sets
    `whole_batch = True` and is evaluated in batches of the training size. `p` is p(x|z), for likelihoods that also
    learn by other means than gradients.
    """

    loss: Tensor
    log_px: Tensor
    kl: Tensor
    beta: float
    free_bits: float = 0.0
    per_image: Tensor | None = None
    p: Distribution | None = None

    def epoch_loss(self, reconstruction: Tensor, kl: Tensor, loss: Tensor) -> Tensor:
        """Loss () of all images, from their mean reconstruction (), KL (D,) and the mean loss () of the batches.

        Free bits are a floor under the mean KL over images; applied per batch, they would depend on the batch size.
        """
        return reconstruction + self.beta * kl.clamp(min=self.free_bits).sum() if self.free_bits else loss

    @property
    def elbo(self) -> Tensor:
        """(B,), with beta 1 and no free bits; a bound on log p(x) only where the likelihood is normalised."""
        return self.log_px - self.kl.sum(-1)


Objective = Callable[..., Terms]  # of (vae, x, step), and of labels y where the model is conditional


def terms_of(objective: Objective, vae: VAE, x: Tensor, step: int, y: Tensor | None = None) -> Terms:
    """Terms of a batch; only for a conditional model does the objective get the labels y (B,), as fourth argument."""
    return objective(vae, x, step, y) if vae.classes else objective(vae, x, step)


def log_weights(vae: VAE, x: Tensor, samples: int, y: Tensor | None = None) -> Tensor:
    """log p(x, z) - log q(z|x) for z ~ q(z|x): x (B, C, H, W) -> (K, B), in nats.

    Their mean over K is the ELBO, their log-mean-exp the importance-weighted bound (Burda et al. 2015, eq. 8), and
    both converge to log p(x) = log E_{p(z)}[p(x|z)], the corrected eq. (1) of the report.
    """
    q = vae.encode(x, y)
    z = q.rsample(torch.Size((samples,)))  # (K, B, D)
    log_px = vae.decode(z, y).log_prob(x)  # (K, B)
    return log_px + log_ratio(vae.prior, q, z)


def log_mean_exp(log_weights: Tensor, dim: int = 0) -> Tensor:
    """log of the mean weight: (K, N) -> (N,), nats; the bound L_K of Burda et al. 2015, eq. 8."""
    return log_weights.logsumexp(dim) - math.log(log_weights.shape[dim])


def as_schedule(beta: float | Schedule) -> Schedule:
    if isinstance(beta, partial):  # Hydra's partial resolves its target on every call, which costs 0.3 ms per step
        return partial(beta.func, *beta.args, **beta.keywords)
    return beta if callable(beta) else lambda step: constant(step, beta)


class ELBO:
    """beta KL(q(z|x) || p(z)) - E_q[log p(x|z)], each latent charged at least `free_bits` nats (Kingma et al. 2016).

    With beta 1 and no free bits this is the negative ELBO, eq. (5) of the report, from `samples` draws of z per image.
    """

    def __init__(
        self,
        samples: Samples = 1,
        beta: Beta = 1.0,
        free_bits: Annotated[NotNegative, "nats that each latent is charged at least"] = 0.0,
    ) -> None:
        self.samples, self.beta, self.free_bits = samples, as_schedule(beta), free_bits

    @classmethod
    def requires(cls, chosen: Choices) -> None:
        by_latent = all(chosen.parts[group].independent for group in ("prior", "posterior"))
        if chosen["objective.free_bits"] and not by_latent:
            raise InputError(
                f"objective.free_bits={chosen['objective.free_bits']}: is a floor under the KL of each latent, which "
                "needs prior=standard and posterior=diagonal; choose objective.free_bits=0"
            )

    def __call__(self, vae: VAE, x: Tensor, step: int, y: Tensor | None = None) -> Terms:
        q = vae.encode(x, y)
        z = q.rsample(torch.Size((self.samples,)))  # (K, B, D)
        p = vae.decode(z, y)
        log_px = p.log_prob(x).mean(0)  # (B,)
        kl = divergence(q, vae.prior, z)  # (B, D) or (B, 1)
        rate = kl.mean(0)
        if self.free_bits:  # else no floor: a Monte Carlo estimate of a small KL may be negative and must stay unbiased
            rate = rate.clamp(min=self.free_bits)
        beta = self.beta(step)
        loss = beta * rate.sum() - log_px.mean()
        # for evaluations only: it would cost 7 % of a training step
        per_image = None if loss.requires_grad else beta * kl.sum(-1) - log_px
        return Terms(loss, log_px, kl, beta, self.free_bits, per_image, p)


class IWAE:
    """Negative importance-weighted bound from `samples` draws (Burda et al. 2015, eq. 8), averaged over images.

    `gradient="dreg"` uses the doubly reparametrised estimator for the encoder (Tucker et al. 2018, eq. 8): the same
    expectation, but its signal-to-noise ratio does not vanish as `samples` grows. The value of the loss is the same.
    """

    def __init__(
        self,
        samples: Samples = 50,
        gradient: Annotated[Literal["plain", "dreg"], "estimator of the encoder's gradient"] = "plain",
    ) -> None:
        if gradient not in ("plain", "dreg"):
            raise ValueError(f"gradient={gradient!r}: must be 'plain' or 'dreg'")
        self.samples, self.gradient = samples, gradient

    @classmethod
    def requires(cls, chosen: Choices) -> None:
        likelihood = chosen.parts["likelihood"]
        if not likelihood.normalised:
            raise InputError(
                f"objective=iwae: importance weights need a likelihood in nats, and {likelihood.__name__} is not "
                "normalised; choose likelihood=gaussian (or another normalised one), or objective=elbo"
            )
        if chosen["objective.gradient"] == "dreg" and not chosen.parts["posterior"].gaussian:
            raise InputError(
                "objective.gradient=dreg: needs the density of a Gaussian posterior; choose posterior=diagonal or "
                "full, or objective.gradient=plain"
            )

    def __call__(self, vae: VAE, x: Tensor, step: int, y: Tensor | None = None) -> Terms:
        q = vae.encode(x, y)
        z = q.rsample(torch.Size((self.samples,)))  # (K, B, D)
        p = vae.decode(z, y)
        log_px = p.log_prob(x)  # (K, B)
        p_z = vae.prior
        log_w = log_px + log_ratio(p_z, q if self.gradient == "plain" else detach(q), z)  # (K, B)
        bound = log_mean_exp(log_w)  # (B,)
        loss = -bound.mean() if self.gradient == "plain" else self._dreg(log_w, z) - bound.mean().detach()
        return Terms(loss, log_px.mean(0), divergence(q, p_z, z), beta=1.0, per_image=-bound.detach(), p=p)

    @staticmethod
    def _dreg(log_w: Tensor, z: Tensor) -> Tensor:
        w = log_w.detach().softmax(0)  # (K, B), the normalised weights
        if z.requires_grad:
            z.register_hook(lambda gradient: w.unsqueeze(-1) * gradient)  # the second factor w, for the encoder only
        surrogate = -(w * log_w).sum(0).mean()
        return surrogate - surrogate.detach()  # 0, with the gradient


class TotalCorrelation:
    """beta-TCVAE (Chen et al. 2018, eq. 4): the KL in three parts, with weight beta on the total correlation.

    I(z; x) + beta KL(q(z) || prod_d q(z_d)) + sum_d KL(q(z_d) || p(z_d)) - E_q[log p(x|z)], with one draw of z. q(z) is
    the mean of the batch's posteriors; Chen et al. divide by the size of the data set, which adds a constant. With
    beta 1 the parts add up to the KL of the ELBO. A prior that ties its latents replaces prod_d p(z_d).
    """

    whole_batch = True

    def __init__(self, beta: Beta = 6.0) -> None:
        self.beta = as_schedule(beta)

    @classmethod
    def requires(cls, chosen: Choices) -> None:
        posterior = chosen.parts["posterior"]
        if not posterior.independent:
            raise InputError(
                f"posterior={posterior.__name__.lower()}: objective=tc needs the density of each latent by itself; "
                "choose posterior=diagonal"
            )

    def __call__(self, vae: VAE, x: Tensor, step: int, y: Tensor | None = None) -> Terms:
        q, p_z = vae.encode(x, y), vae.prior
        z = q.rsample(torch.Size((1,)))  # (1, B, D)
        p = vae.decode(z, y)
        log_px, kl = p.log_prob(x).mean(0), divergence(q, p_z, z)  # (B,), (B, D) or (B, 1)
        each = q.log_prob(z.transpose(0, 1))  # (B, B, D): log q(z_d|x) of image i's z under image j's posterior
        log_qz = log_mean_exp(each.sum(-1), 1)  # (B,)
        log_product = log_mean_exp(each, 1).sum(-1)  # (B,)
        information = each.diagonal().sum(0) - log_qz
        correlation, by_dimension = log_qz - log_product, log_product - log_density(p_z, z)[0]
        beta = self.beta(step)
        rate = (information + beta * correlation + by_dimension).mean()
        return Terms(rate - log_px.mean(), log_px, kl, beta, p=p)


class MMD:
    """InfoVAE (Zhao et al. 2019, eq. 6): (1 - alpha) KL(q(z|x) || p(z)) + mmd MMD(q(z), p(z)) - E_q[log p(x|z)].

    `mmd` is the paper's alpha + lambda - 1. The unbiased squared maximum mean discrepancy compares one draw of z per
    image with as many draws from the prior, under the kernel exp(-|z - z'|^2 / (2 D)). The authors' code has another
    kernel, exp(-|z - z'|^2 / D^2), so their weights do not carry over.
    """

    whole_batch = True

    def __init__(
        self,
        alpha: Annotated[float, Le(1), "InfoVAE's alpha: the KL has weight 1 - alpha"] = 0.0,
        mmd: Annotated[NotNegative, "weight of the discrepancy between q(z) and the prior"] = 1000.0,
    ) -> None:
        self.alpha, self.mmd = alpha, mmd

    def __call__(self, vae: VAE, x: Tensor, step: int, y: Tensor | None = None) -> Terms:
        q, p_z = vae.encode(x, y), vae.prior
        z = q.rsample(torch.Size((1,)))  # (1, B, D)
        p = vae.decode(z, y)
        log_px, kl = p.log_prob(x).mean(0), divergence(q, p_z, z)
        other = p_z.rsample(torch.Size((1, len(x))))[0]  # (B, D)
        loss = (1 - self.alpha) * kl.sum(-1).mean() + self.mmd * squared_mmd(z[0], other) - log_px.mean()
        return Terms(loss, log_px, kl, 1 - self.alpha, p=p)


def squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    """(): unbiased squared maximum mean discrepancy of a (N, D) and b (N, D), which may be negative; 0 for N = 1.

    Gretton et al. 2012, eq. 3.
    """
    n, dim = a.shape
    if n == 1:
        return a.sum() * 0
    both = widest(torch.cat([a, b]))  # large terms cancel
    lengths = both.square().sum(-1)
    near = torch.exp((both @ both.T - (lengths[:, None] + lengths) / 2) / dim)  # (2N, 2N)
    within = (near[:n, :n].sum() + near[n:, n:].sum() - near.trace()) / (n * (n - 1))
    return (within - 2 * near[:n, n:].mean()).to(a)
