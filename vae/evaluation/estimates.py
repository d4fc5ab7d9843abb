"""Evaluation of a trained model: bounds on log p(x) with their errors, use of the latents, quality of samples.

Every draw is a function of the seed and the position of the image in the split: batch size and device change a metric
by rounding only. Metrics in nats are per image, and are called NLL only if the likelihood is normalised.
"""

import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vae.data.batches import Images
from vae.data.module import ImageDataModule
from vae.distributions import MONTE_CARLO, PER_LATENT, divergence, kl_form
from vae.evaluation import metrics
from vae.evaluation.draws import chunks, decode, prior_latents
from vae.evaluation.factors import factor_scores
from vae.evaluation.feature_net import embed, feature_net, fingerprint
from vae.model import VAE
from vae.noise import NoiseStreams, derive, fixed_noise
from vae.objectives import Objective, log_mean_exp, log_weights, terms_of

log = logging.getLogger(__name__)

# Images times samples decoded at once; the samples of one image stay together even if they are more.
# Smaller chunks make the NLL a sixth slower, since Python's overhead is per chunk.
ROWS = 4000

FEW = 10  # median effective sample size below which estimates of log p(x) are not to be trusted
KL_DRAWS = 16  # of z for an image's KL where there is no closed form
MOST_POINTS = 5000  # images per split for the scores of factors

Metrics = dict[str, float]


@torch.inference_mode()
def objective_metrics(
    vae: VAE,
    objective: Objective,
    images: Tensor | Images,
    split: str,
    seed: int,
    step: int,
    batch: int = 1000,
    validation_batch: int = 1000,
) -> Metrics:
    """Terms of the objective on a split, in nats per image with standard errors: validation again, in float32.

    An objective with a term of the whole batch is evaluated in batches of `validation_batch`, as in validation.
    """
    noise, count = NoiseStreams(derive(seed, f"evaluation {split}")), len(images)
    single, log_px = torch.empty(2, count, dtype=torch.float64)  # no lists, as in `bounds`
    rates = torch.empty(0)
    for chunk, (x, y) in enumerate(chunks(vae, images, batch)):
        with fixed_noise(noise):
            terms = terms_of(objective, vae, x, step, y)
        if terms.per_image is None and batch != validation_batch:
            return objective_metrics(vae, objective, images, split, seed, step, validation_batch, validation_batch)
        if not chunk:
            rates = torch.empty(count, terms.kl.shape[1], dtype=torch.float64)
        place = slice(chunk * batch, chunk * batch + len(x))
        single[place] = (terms.loss if terms.per_image is None else terms.per_image).cpu()
        log_px[place], rates[place] = terms.log_px.cpu(), terms.kl.cpu()
    reconstruction = -log_px
    loss = terms.epoch_loss(reconstruction.mean(), rates.mean(0), single.mean())
    scores = {"loss": loss.item(), "beta": terms.beta}
    if terms.per_image is not None and not terms.free_bits:  # free bits floor the mean KL, not each image's
        scores["loss_error"] = metrics.mean_and_error(single)[1]
    parts = {"reconstruction": reconstruction, "kl": rates.sum(1)}
    parts["neg_elbo" if vae.likelihood.normalised else "unweighted_loss"] = reconstruction + rates.sum(1)
    if vae.likelihood.normalised:
        parts["elbo"] = -parts["reconstruction"] - parts["kl"]
    for name, values in parts.items():
        scores[name], scores[f"{name}_error"] = metrics.mean_and_error(values)
    return {f"{split}/{name}": value for name, value in scores.items()}


@dataclass
class Posteriors:
    """Posterior means (N, D) and KL (N, D) of a split, on the CPU.

    The KL is (N, 1), of all latents together, if the prior or the posterior ties them.
    """

    mu: Tensor
    kl: Tensor
    kl_form: str

    @property
    def kl_per_latent(self) -> Tensor | None:
        """(D,): mean over images in nats; None if the latents are tied together."""
        return self.kl.double().mean(0) if self.kl_form == PER_LATENT else None


@torch.inference_mode()
def posteriors(vae: VAE, images: Tensor | Images) -> Posteriors:
    noise = NoiseStreams(derive(0, "posteriors"))
    form = ""

    def rows() -> Iterator[Tensor]:
        nonlocal form
        for x, y in chunks(vae, images, 1000):
            q, p = vae.encode(x, y), vae.prior
            form = form or kl_form(q, p)
            with fixed_noise(noise):
                z = q.rsample(torch.Size((KL_DRAWS,))) if form == MONTE_CARLO else q.mean.unsqueeze(0)
            yield torch.cat([q.mean, divergence(q, p, z)], 1)

    both = metrics.gather_chunks(rows(), len(images))
    return Posteriors(both[:, : vae.latent_dim], both[:, vae.latent_dim :], form)


class Bounds(NamedTuple):
    """Estimates of log p(x) in nats from the same K draws for each image; all fields are (N,), float64, on the CPU."""

    elbo: Tensor  # mean of the log weights log p(x, z) - log q(z|x); without error where q is the posterior
    log_px: Tensor  # their log-mean-exp, the importance-weighted bound (Burda et al. 2015, eq. 8)
    ess: Tensor  # effective sample size of the weights, 1 to K: 1 / sum w^2 of normalised w (Kong 1992)
    half_gap: Tensor  # how much lower the bound is with half the draws, a mean over both halves; NaN of a single draw
    spread: Tensor  # standard deviation of the log weights over draws


@torch.inference_mode()
def bounds(vae: VAE, images: Tensor | Images, samples: int, seed: int, rows: int = ROWS, bar: bool = False) -> Bounds:
    """The bounds on log p(x); an image meets the same draws whatever `rows` is, images times samples decoded at once.

    Logs a warning where the effective sample size is small. Raises InputError for images that the model refuses.
    """
    noise, count = NoiseStreams(derive(seed, "importance")), len(images)
    size, half = max(1, rows // samples), samples // 2
    hidden = not (bar and sys.stderr.isatty())
    # not lists: what is kept of each chunk would lie between the large tensors of the next, and memory would grow
    columns = Bounds(*torch.full((5, count), math.nan, dtype=torch.float64))
    parts = tqdm(chunks(vae, images, size), "importance samples", -(-count // size), False, disable=hidden)
    for chunk, (x, y) in enumerate(parts):
        place = slice(chunk * size, chunk * size + len(x))
        with fixed_noise(noise):
            log_w = log_weights(vae, x, samples, y).cpu().double()  # (K, n); MPS has no float64
        columns.elbo[place], columns.log_px[place] = log_w.mean(0), log_mean_exp(log_w)
        columns.ess[place] = 1 / log_w.softmax(0).square().sum(0)
        if half:
            halves = torch.stack([log_mean_exp(log_w[:half]), log_mean_exp(log_w[-half:])])
            columns.half_gap[place] = columns.log_px[place] - halves.mean(0)
            columns.spread[place] = log_w.std(0)
    if vae.likelihood.normalised:
        warn_of_few(columns, samples)
    return columns


def warn_of_few(estimates: Bounds, samples: int) -> None:
    ess = estimates.ess.median().item()
    if ess < FEW:
        gap = f": it is {estimates.half_gap.mean():.2f} nats lower with half the draws" if samples > 1 else ""
        log.warning(
            "importance weights: an effective sample size of %.1f of %d draws (median over images), so log p(x) is "
            "underestimated%s; take more samples", ess, samples, gap,
        )  # fmt: skip


def image_scores(
    vae: VAE, images: Tensor | Images, samples: int, seed: int, bar: bool = False
) -> tuple[Tensor, Tensor]:
    """How likely the model finds each image (N,), and the standard error over draws (N,).

    The importance-weighted log p(x) in nats, its error by the delta method, which is too small where a few draws carry
    all the weight; where the likelihood is not normalised, minus the reconstruction's loss and KL, a mean over draws.
    """
    estimates = bounds(vae, images, samples, seed, bar=bar)
    if vae.likelihood.normalised:
        return estimates.log_px, ((samples / estimates.ess - 1) / (samples - 1)).clamp(min=0).sqrt()
    return estimates.elbo, estimates.spread / math.sqrt(samples)


def likelihood_metrics(vae: VAE, images: Tensor | Images, samples: int, seed: int, split: str) -> Metrics:
    """ELBO, rate, distortion and the importance-weighted NLL, each with its standard error over images.

    Beside them what tells whether the NLL's samples are enough: see `Bounds`.
    """
    if not vae.likelihood.normalised or not samples:
        return {}
    estimates = bounds(vae, images, samples, seed, bar=True)
    rate = posteriors(vae, images).kl.double().sum(1)
    elbo, nll = estimates.elbo, -estimates.log_px
    scores: Metrics = {"nll_samples": samples}
    for name, values in {"elbo": elbo, "rate": rate, "distortion": -elbo - rate, "nll": nll}.items():
        scores[name], scores[f"{name}_error"] = metrics.mean_and_error(values)
    scores["nll_ess"] = estimates.ess.quantile(0.5).item()
    scores["nll_ess_below_2"] = (estimates.ess < 2).double().mean().item()
    if samples > 1:
        scores["nll_half_gap"] = estimates.half_gap.mean().item()
    if vae.likelihood.discrete:
        pixels = math.prod(vae.image_shape)
        scores["bits_per_dimension"] = metrics.bits_per_dimension(scores["nll"], pixels)
        scores["bits_per_dimension_error"] = metrics.bits_per_dimension(scores["nll_error"], pixels)
    return {f"{split}/{name}": value for name, value in scores.items()}


def latent_metrics(vae: VAE, train: Images, held_out: Images, split: str, probes: bool) -> Metrics:
    """Active units (Burda et al. 2015), KL per latent; with `probes` accuracies of classifiers of posterior means."""
    means = posteriors(vae, held_out)
    scores: Metrics = {"active_units": int(metrics.active_units(means.mu).sum())}
    if means.kl_per_latent is None:
        log.info("no KL per latent, since the prior or the posterior ties the latents together; KL: %s", means.kl_form)
    else:
        for latent, nats in enumerate(means.kl_per_latent.tolist()):
            scores[f"kl_per_latent/{latent:02d}"] = nats
    if probes:
        data = posteriors(vae, train).mu, train.labels, means.mu, held_out.labels
        scores["knn_accuracy"] = metrics.knn_accuracy(*data)
        scores["linear_probe_accuracy"] = metrics.linear_probe_accuracy(*data)
    return {f"{split}/{name}": value for name, value in scores.items()}


def factor_metrics(vae: VAE, train: Images, held_out: Images, split: str) -> Metrics:
    """Disentanglement of the posterior means, for images whose generating factors are known."""
    if train.factors is None or held_out.factors is None:
        return {}
    fitted = posteriors(vae, train.take(slice(MOST_POINTS))).mu, train.factors.values[:MOST_POINTS]
    asked = posteriors(vae, held_out.take(slice(MOST_POINTS))).mu, held_out.factors.values[:MOST_POINTS]
    scores = factor_scores(*fitted, *asked, held_out.factors.ordered)
    return {f"{split}/{name}": value for name, value in scores.items()}


def sample_mode(data: ImageDataModule) -> str:
    """Samples of x for binary data, means for grey images, as in the literature."""
    return "mean" if data.binarize == "none" else "sample"


@dataclass
class Generated:
    """Samples with the classes that a classifier assigns to them, for the figures."""

    images: Tensor
    counts: np.ndarray
    classifier: str


def sample_metrics(
    vae: VAE, data: ImageDataModule, cache_dir: Path, generated: int, seed: int
) -> tuple[Metrics, Generated]:
    """Frechet distance, precision and recall of prior samples against the test set, on a small classifier's features.

    The classifier is trained on the training split and named in the metric: two classifiers' scores do not compare.
    """
    train, real = data.train_fixed, data.test.images
    net, name = feature_net(
        cache_dir, train.images, train.labels, data.classes, fingerprint(train.images, train.labels)
    )
    z = prior_latents(vae, generated, seed)
    images = decode(vae, z, sample_mode(data), seed, train.labels if vae.classes else None)
    real_features, _ = embed(net, real)
    fake_features, predictions = embed(net, images)
    count = min(len(real_features), len(fake_features))
    precision, recall = metrics.precision_recall(real_features[:count], fake_features[:count])
    frechet = metrics.frechet_distance(real_features, fake_features)
    counts = metrics.class_histogram(predictions, data.classes)
    shares = counts / counts.sum()
    entropy = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
    scores = {f"frechet_{name}": frechet, f"precision_{name}": precision, f"recall_{name}": recall}
    scores |= {f"class_entropy_{name}": entropy}
    return {f"samples/{key}": value for key, value in scores.items()}, Generated(images, counts, name)
