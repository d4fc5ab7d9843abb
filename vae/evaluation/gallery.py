"""The pictures that a model has."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure

from vae.data.batches import as_floats
from vae.data.module import ImageDataModule
from vae.evaluation import estimates, figures, metrics
from vae.evaluation.baselines import baselines
from vae.evaluation.draws import prior_quantiles
from vae.evaluation.estimates import Generated, Posteriors, posteriors
from vae.evaluation.panels import example_images, prior_figure, reconstruction_figure
from vae.model import VAE

Curve = Callable[[str], list[tuple[int, float]]]  # name of a metric -> (epoch, value)


def common_figures(
    vae: VAE, data: ImageDataModule, curve: Curve, what: str, seed: int, which: str
) -> dict[str, Figure]:
    """What every model has: the report's figures 4 to 8, and what its latents hold; `what` opens each caption."""
    x, _ = example_images(data)
    dev = posteriors(vae, data.dev.images)
    curves = {name: curve(f"{name}/loss") for name in ("train", "dev", "train_eval")}
    drawn = {
        "reconstructions": reconstruction_figure(vae, x, f"{what}; dev; {which} checkpoint"),
        "losses": figures.losses(
            curves, f"{what}; the objective, summed over pixels, a mean over images", baselines(vae, data)
        ),
        "samples": prior_figure(vae, seed, what),
        "latent_space": latent_space(vae, dev, what, seed),
    }
    if dev.kl_per_latent is not None:
        text = f"{what}; dev; a unit is active where its posterior mean varies by more than 0.01"
        drawn["kl_per_latent"] = figures.kl_per_latent(dev.kl_per_latent, text, metrics.active_units(dev.mu))
    if data.classes:  # else there is no label to colour a point by
        text = f"{what}; dev; posterior means of {min(5000, len(dev.mu))} images"
        drawn["latents"] = figures.latents(dev.mu[:5000], data.dev.labels[:5000], text)
    return drawn


def rate_distortion(curve: Curve, what: str) -> Figure:
    rate, distortion = curve("dev/kl"), curve("dev/reconstruction")
    epochs = [e for e, _ in rate]
    return figures.rate_distortion(
        [v for _, v in rate], [v for _, v in distortion], epochs, f"{what}; dev; one point an epoch"
    )


def latent_space(vae: VAE, dev: Posteriors, what: str, seed: int) -> Figure:
    """Two latents: the plane, at the prior's quantiles; else one row for each of the latents that are used most."""
    at = torch.linspace(0.02, 0.98, 15 if vae.latent_dim == 2 else 11)
    quantiles = prior_quantiles(vae, at, seed)  # (n, D)
    if vae.latent_dim == 2:
        z = torch.cartesian_prod(quantiles[:, 1].flip(0), quantiles[:, 0]).flip(1)  # z_1 to the right, z_2 upwards
        return figures.grid(
            vae.sample(z.to(vae.prior_loc)).cpu(),
            len(at),
            f"{what}; means of p(x|z) on the plane of z, at the prior's quantiles",
        )
    used = dev.mu.var(0) if dev.kl_per_latent is None else dev.kl_per_latent
    order = used.argsort(descending=True)[:8]
    z = vae.prior.mean.cpu().expand(len(order), len(at), vae.latent_dim).clone()
    for row, latent in enumerate(order.tolist()):
        z[row, :, latent] = quantiles[:, latent]
    names = [f"z{latent}" for latent in order.tolist()]
    text = (
        f"{what}; means of p(x|z); each row moves one latent from the prior's quantile 2 % to 98 %, others at its mean"
    )
    return figures.grid(vae.sample(z.flatten(0, 1).to(vae.prior_loc)).cpu(), len(at), text, names)


def sigma_figures(vae: VAE, x: torch.Tensor, curve: Curve, what: str) -> dict[str, Figure]:
    if not vae.likelihood.has_sigma:
        return {}
    p = vae.decode(vae.encode(x.to(vae.prior_loc)).mean.unsqueeze(0))
    sigma = p.stddev.mean((0, 1)).cpu()
    drawn = {
        "sigma_history": figures.sigma_history(
            curve("dev/sigma"), f"{what}; dev; the ten images of the reconstructions, z: posterior mean"
        ),
    }
    if vae.likelihood.params_per_pixel > 1:  # else one sigma for all pixels
        text = f"{what}; dev; the decoder's standard deviation, mean over the images of the reconstructions"
        drawn["sigma_image"] = figures.sigma_image(sigma, text)
    if vae.likelihood.normalised:
        residual = ((x.to(p.mean) - p.mean[0]) / p.stddev[0]).cpu()
        drawn["residuals"] = figures.residuals(residual, f"{what}; dev; (x - mean) / sigma, z: posterior mean")
    return drawn


def generated_figures(data: ImageDataModule, generated: Generated | None, what: str) -> dict[str, Figure]:
    if generated is None:
        return {}
    shown, train = generated.images[:10], data.train_fixed.images
    rows, distances = metrics.nearest(shown, train)
    mode = estimates.sample_mode(data)
    return {
        "neighbours": figures.neighbours(
            shown,
            as_floats(train[rows]),
            distances,
            f"{what}; samples from the prior, x: {mode}; Euclidean distance in pixels",
        ),
        "class_histogram": figures.class_histogram(
            generated.counts,
            f"{what}; {len(generated.images)} samples from the prior, x: {mode}, as {generated.classifier} sees them",
        ),
    }
