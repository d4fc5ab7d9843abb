"""Draws a figure of a model by its name in `catalogue.FIGURES`; the drawing itself is in figures/."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae.data.batches import as_floats
from vae.data.module import ImageDataModule
from vae.errors import InputError
from vae.evaluation import estimates, exact, figures, metrics
from vae.evaluation.architecture import architecture_figure
from vae.evaluation.baselines import baselines
from vae.evaluation.catalogue import FIGURES
from vae.evaluation.estimates import Generated, Posteriors, posteriors
from vae.evaluation.panels import (
    decoded,
    device_of,
    example_images,
    latent_names,
    manifold_figure,
    prior_draws,
    prior_figure,
    reconstruction_figure,
    traversal_figure,
)
from vae.model import VAE
from vae.words import error_of

Curve = Callable[[str], list[tuple[int, float]]]  # name of a metric -> (epoch, value)

POINTS = 5000  # images in a scatter plot


@dataclass
class Subject:
    """What figures are drawn of: a model in eval mode, its data, its history; `what` opens each caption."""

    vae: VAE
    data: ImageDataModule
    curve: Curve
    what: str
    seed: int
    which: str = "best"  # checkpoint
    generated: Generated | None = None

    @cached_property
    def examples(self) -> Tensor:
        """x (n, C, H, W) on the CPU: a dev image of each class."""
        return example_images(self.data)[0]

    @cached_property
    def example_labels(self) -> Tensor:
        return example_images(self.data)[1]

    @cached_property
    def reconstructed(self) -> Tensor:
        return self.vae.reconstruct(self.examples.to(device_of(self.vae)), y=self.example_labels).cpu()

    @cached_property
    def dev(self) -> Posteriors:
        return posteriors(self.vae, self.data.dev)

    @property
    def order(self) -> Tensor:
        """The latents (D,), the one of the largest KL first; where there is no KL per latent, by their variance."""
        use = self.dev.mu.var(0) if self.dev.kl_per_latent is None else self.dev.kl_per_latent
        return use.argsort(descending=True)


OF_ONE_SPACE = (  # figures of latents without labels
    "error_map", "interpolations", "traversals", "manifold", "aggregate_posterior", "true_posterior",
)  # fmt: skip


def lacks(name: str, s: Subject) -> str:
    """Why a model has no such figure, or nothing."""
    likelihood, latents = s.vae.likelihood, s.vae.latent_dim
    reasons = {
        "samples_drawn": "" if _visible_noise(s) else "x drawn from p(x|z) looks like its mean",
        "traversals": "two latents have a manifold instead" if latents == 2 else "",
        "manifold": "" if latents == 2 else f"it takes two latents, and this model has {latents}",
        "kl_per_latent": "this prior or posterior ties the latents together" if s.dev.kl_per_latent is None else "",
        "latents": "" if s.data.classes else "the images have no labels",
        "tsne": "" if s.data.classes else "the images have no labels",
        "rate_distortion": "" if likelihood.normalised else "the likelihood is not normalised: there are no nats",
        "sigma_history": "" if s.curve("dev/sigma") else "the decoder has no standard deviation",
        "sigma_image": "" if likelihood.has_sigma and likelihood.params_per_pixel > 1 else "no sigma of each pixel",
        "residuals": "" if likelihood.has_sigma and likelihood.normalised else "no density with a sigma",
        "neighbours": "" if s.generated else "no samples: evaluation.features=false",
        "class_histogram": "" if s.generated else "no samples: evaluation.features=false",
        "true_posterior": _no_quadrature(s),
    }
    if s.vae.classes and name in OF_ONE_SPACE:
        return "the model is conditional: a point of the latent space is another image for each class; take samples"
    return reasons.get(name, "")


def _no_quadrature(s: Subject) -> str:
    if s.vae.latent_dim not in exact.POINTS:
        return f"quadrature takes one or two latents, and this model has {s.vae.latent_dim}"
    return "" if s.vae.likelihood.normalised else "the likelihood is not normalised: there is no posterior"


@torch.no_grad()
def _visible_noise(s: Subject) -> bool:
    if s.vae.likelihood.support == "binary" or not s.vae.likelihood.has_sigma:
        return s.vae.likelihood.normalised
    z = prior_draws(s.vae, s.seed, 10).to(device_of(s.vae))
    return s.vae.decode(z.unsqueeze(0), y=0).stddev.mean().item() > 1 / 255


def names_of(s: Subject) -> list[str]:
    """The figures that this model has and that are drawn when a run ends."""
    return [name for name, kind in FIGURES.items() if kind.at_the_end and not lacks(name, s)]


@torch.no_grad()
def draw_figure(name: str, s: Subject) -> Figure:
    """The figure of that name, with its alternative text; raises InputError where the model has none."""
    if reason := lacks(name, s):
        raise InputError(f"figure={name}: {reason}; this model has {', '.join(names_of(s))}")
    figure = DRAWN[name](s)
    figures.describe(figure, FIGURES[name].shows)
    return figure


def _losses(s: Subject) -> Figure:
    head = type(s.vae.likelihood)
    error = error_of(f"{head.__module__}.{head.__qualname__}")
    curves = {
        f"{split}/{name}": s.curve(f"{split}/{name}")
        for split in ("train", "dev", "train_eval")
        for name in ("loss", "reconstruction", "kl")
    }
    units = ("nats", "nats") if head.normalised else (f"{error} + nats", error)
    text = f"{s.what}; summed over pixels and latents, a mean over images"
    return figures.losses(curves, text, baselines(s.vae, s.data), units)


def _errors(s: Subject) -> Figure:
    text = f"{s.what}; dev; z: posterior mean; x: mean of p(x|z); the error is a mean over channels"
    return figures.errors(s.examples, s.reconstructed, text)


def _error_map(s: Subject) -> Figure:
    x = as_floats(s.data.dev.images[:1000])
    x_hat = s.vae.reconstruct(x.to(device_of(s.vae))).cpu()
    text = f"{s.what}; dev; mean over {len(x)} images of the squared error of the reconstruction; z: posterior mean"
    return figures.error_map((x - x_hat).square().mean(0), text)


def _interpolations(s: Subject) -> Figure:
    """Straight lines between the posterior means of neighbouring classes."""
    pairs = [(k, (k + 1) % len(s.examples)) for k in range(0, len(s.examples), 2)]
    means = s.vae.encode(s.examples.to(device_of(s.vae))).mean.cpu()  # (n, D)
    steps = torch.linspace(0, 1, 11).unsqueeze(1)
    rows = []
    for a, b in pairs:
        between = decoded(s.vae, means[a].lerp(means[b], steps), s.seed)
        rows += [s.examples[a : a + 1], between, s.examples[b : b + 1]]
    text = f"{s.what}; dev; means of p(x|z) on straight lines between the posterior means of two images"
    labels = ["image", *(f"{100 * step:.0f} %" for step in steps.flatten().tolist()), "image"]
    return figures.grid(torch.cat(rows), 13, text, column_labels=labels)


def _kl_per_latent(s: Subject) -> Figure:
    text = f"{s.what}; dev; a unit is active where its posterior mean varies by more than 0.01"
    return figures.kl_per_latent(s.dev.kl.mean(0), text, metrics.active_units(s.dev.mu))


def _latents(s: Subject) -> Figure:
    mu = s.dev.mu[:POINTS]
    return figures.latents(mu, s.data.dev.labels[:POINTS], f"{s.what}; dev; posterior means of {len(mu)} images")


def _tsne(s: Subject) -> Figure:
    from sklearn.manifold import TSNE

    mu = s.dev.mu[:2000].numpy()
    plane = TSNE(perplexity=min(30, (len(mu) - 1) / 3), random_state=0).fit_transform(mu)
    text = f"{s.what}; dev; posterior means of {len(mu)} images; t-SNE keeps neighbours, no distances"
    return figures.latents(plane, s.data.dev.labels[: len(mu)], text, axes_names=["t-SNE 1", "t-SNE 2"])


def _aggregate_posterior(s: Subject) -> Figure:
    latents = s.order[:4].tolist()
    torch.default_generator.manual_seed(0)
    x = as_floats(s.data.dev.images[:POINTS]).to(device_of(s.vae))
    drawn = s.vae.encode(x).sample(torch.Size((1,)))[0].cpu()  # (N, D)
    prior = prior_draws(s.vae, s.seed, 50_000).cpu()
    text = (
        f"{s.what}; dev; one draw of q(z|x) for each of {len(drawn)} images, 50,000 of the prior; "
        "the latents of the largest KL first"
    )
    return figures.aggregate_posterior(drawn[:, latents], prior[:, latents], latent_names(latents), text)


def _rate_distortion(s: Subject) -> Figure:
    rate, distortion = s.curve("dev/kl"), s.curve("dev/reconstruction")
    epochs, text = [e for e, _ in rate], f"{s.what}; dev; one point an epoch"
    return figures.rate_distortion([v for _, v in rate], [v for _, v in distortion], epochs, text)


def _decoded_examples(s: Subject) -> torch.distributions.Distribution:
    q = s.vae.encode(s.examples.to(device_of(s.vae)), s.example_labels)
    return s.vae.decode(q.mean.unsqueeze(0), s.example_labels)


def _sigma_history(s: Subject) -> Figure:
    text = f"{s.what}; dev; the ten images of the reconstructions, z: posterior mean"
    return figures.sigma_history(s.curve("dev/sigma"), text)


def _sigma_image(s: Subject) -> Figure:
    text = f"{s.what}; dev; the decoder's standard deviation, mean over the images of the reconstructions"
    return figures.sigma_image(_decoded_examples(s).stddev.mean((0, 1)).cpu(), text)


def _residuals(s: Subject) -> Figure:
    p = _decoded_examples(s)
    residual = ((s.examples.to(p.mean) - p.mean[0]) / p.stddev[0]).cpu()
    return figures.residuals(residual, f"{s.what}; dev; (x - mean) / sigma, z: posterior mean")


def _neighbours(s: Subject) -> Figure:
    assert s.generated is not None
    shown, train = s.generated.images[:10], s.data.train_fixed.images
    rows, distances = metrics.nearest(shown, train)
    mode = estimates.sample_mode(s.data)
    text = f"{s.what}; samples from the prior, x: {mode}; Euclidean distance in pixels"
    return figures.neighbours(shown, as_floats(train[rows]), distances, text)


def _class_histogram(s: Subject) -> Figure:
    assert s.generated is not None
    count, mode = len(s.generated.images), estimates.sample_mode(s.data)
    text = f"{s.what}; {count} samples from the prior, x: {mode}, as {s.generated.classifier} sees them"
    return figures.class_histogram(s.generated.counts, text)


def _true_posterior(s: Subject) -> Figure:
    """Six images in pictures, twenty in the numbers of the caption."""
    x = as_floats(s.data.dev.images[:20]).to(device_of(s.vae))
    found, gaps = exact.inference_gaps(s.vae, x)
    panels = []
    for true, q, best in found[:6]:
        densities = {"truth": true.log_density, "q": true.on_grid(q), "best": true.on_grid(best)}
        panels.append({"z": true.axes[0].numpy()} | {name: log[0].exp().numpy() for name, log in densities.items()})
    each = [
        f"log p(x) = {p:.2f} nats\nlost: {a:.2f} by the family, {m:.2f} by the encoder"
        for p, a, m in zip(gaps.log_px.tolist(), gaps.approximation.tolist(), gaps.amortisation.tolist(), strict=True)
    ]
    names = latent_names(list(range(s.vae.latent_dim)))
    return figures.true_posteriors(panels, each[:6], f"{s.what}; dev; {gap_words(gaps)}", names)


def gap_words(gaps: exact.Gaps) -> str:
    """The gaps in nats per image, each with its standard error."""
    parts = {"log p(x)": gaps.log_px, "ELBO": gaps.elbo}
    parts |= {"approximation gap": gaps.approximation, "amortisation gap": gaps.amortisation}
    said = ["{} {:.2f} +- {:.2f}".format(name, *metrics.mean_and_error(v)) for name, v in parts.items()]
    return f"means over {len(gaps.elbo)} images, nats: {', '.join(said)}; log p(x) by quadrature"


DRAWN: dict[str, Callable[[Subject], Figure]] = {
    "losses": _losses,
    "reconstructions": lambda s: reconstruction_figure(
        s.vae, s.examples, s.example_labels, f"{s.what}; dev; {s.which} checkpoint"
    ),
    "errors": _errors,
    "error_map": _error_map,
    "samples": lambda s: prior_figure(s.vae, s.seed, s.what, class_names=s.data.class_names),
    "samples_drawn": lambda s: prior_figure(s.vae, s.seed, s.what, "sample", s.data.class_names),
    "interpolations": _interpolations,
    "traversals": lambda s: traversal_figure(s.vae, s.order, s.what),
    "manifold": lambda s: manifold_figure(s.vae, s.what),
    "kl_per_latent": _kl_per_latent,
    "latents": _latents,
    "aggregate_posterior": _aggregate_posterior,
    "rate_distortion": _rate_distortion,
    "sigma_history": _sigma_history,
    "sigma_image": _sigma_image,
    "residuals": _residuals,
    "neighbours": _neighbours,
    "class_histogram": _class_histogram,
    "true_posterior": _true_posterior,
    "model": lambda s: architecture_figure(s.vae, s.what),
    "tsne": _tsne,
}
