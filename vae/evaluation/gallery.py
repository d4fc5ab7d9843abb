"""The figures of a model. Each is one function: its name, in its docstring what it shows, and which models lack it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae.data.module import ImageDataModule
from vae.errors import InputError
from vae.evaluation import estimates, exact, figures, metrics
from vae.evaluation.architecture import architecture_figure
from vae.evaluation.baselines import baselines
from vae.evaluation.draws import decode, example_images, plane, prior_latents, traversal
from vae.evaluation.estimates import Generated, Posteriors, posteriors
from vae.evaluation.figures.page import signed
from vae.model import VAE
from vae.pixels import as_floats
from vae.words import HALF_INTERVAL, error_of, plus_minus

POINTS = 5000  # images in a scatter plot
EXAMPLES, TRAVERSED = 10, 8  # images in a row, latents in traversals


@dataclass
class Subject:
    """What figures are drawn of: a model in eval mode, its data, its history; `what` opens each caption."""

    vae: VAE
    data: ImageDataModule
    curve: Callable[[str], list[tuple[int, float]]]  # name of a metric -> (epoch, value)
    what: str
    seed: int
    which: str = "best checkpoint"
    generated: Generated | None = None
    use: Tensor | None = None  # (D,), how much each latent carries; without it, measured on dev

    @cached_property
    def examples(self) -> Tensor:
        """x (n, C, H, W) on the CPU: a dev image of each class."""
        return example_images(self.data)[0]

    @cached_property
    def example_labels(self) -> Tensor:
        return example_images(self.data)[1]

    @cached_property
    def reconstructed(self) -> Tensor:
        return self.vae.reconstruct(self.examples.to(self.vae.prior_loc), y=self.example_labels).cpu()

    @cached_property
    def dev(self) -> Posteriors:
        return posteriors(self.vae, self.data.dev)

    @property
    def order(self) -> Tensor:
        """The latents (D,), the one of the largest KL first; where there is no KL per latent, by their variance."""
        use = self.use
        if use is None:
            use = self.dev.mu.var(0) if self.dev.kl_per_latent is None else self.dev.kl_per_latent
        return use.argsort(descending=True, stable=True)


class Reason(NamedTuple):
    """Why models lack a figure: which ones, and in words, where {} is the number of latents."""

    applies: Callable[[Subject], bool]
    words: str


class Kind(NamedTuple):
    draw: Callable[[Subject], Figure]
    shows: str  # opens the alternative text
    reasons: tuple[Reason, ...]
    at_the_end: bool  # drawn when a run ends; else only where it is asked for by name, since it takes longer


FIGURES: dict[str, Kind] = {}


def figure(*reasons: Reason, at_the_end: bool = True) -> Callable[[Callable[[Subject], Figure]], None]:
    """Registers a function as the figure of its name; its docstring says what it shows."""

    def register(draw: Callable[[Subject], Figure]) -> None:
        shows = str(draw.__doc__).partition(".")[0]
        FIGURES[draw.__name__] = Kind(draw, shows, reasons, at_the_end)

    return register


def lacks(name: str, s: Subject) -> str:
    """Why a model has no such figure, or nothing."""
    reasons = (reason.words for reason in FIGURES[name].reasons if reason.applies(s))
    return next(reasons, "").format(s.vae.latent_dim)


def names_of(s: Subject) -> list[str]:
    """The figures that this model has and that are drawn when a run ends."""
    return [name for name, kind in FIGURES.items() if kind.at_the_end and not lacks(name, s)]


@torch.no_grad()
def draw_figure(name: str, s: Subject) -> Figure:
    """The figure of that name, with its alternative text; raises InputError where the model has none."""
    if reason := lacks(name, s):
        raise InputError(f"figure={name}: {reason}; this model has {', '.join(names_of(s))}")
    drawn = FIGURES[name].draw(s)
    figures.describe(drawn, FIGURES[name].shows)
    return drawn


# --- why a model lacks a figure ---------------------------------------------------------------------------------------


@torch.no_grad()
def noise_is_invisible(s: Subject) -> bool:
    likelihood = s.vae.likelihood
    if likelihood.support == "binary" or not likelihood.has_sigma:
        return not likelihood.normalised
    z = prior_latents(s.vae, 10, s.seed).to(s.vae.prior_loc)
    return s.vae.decode(z.unsqueeze(0), 0).stddev.mean().item() <= 1 / 255


CONDITIONAL = Reason(
    lambda s: s.vae.classes > 0,
    "the model is conditional: a point of the latent space is another image for each class; take samples",
)
INVISIBLE = Reason(noise_is_invisible, "x drawn from p(x|z) looks like its mean")
NO_CLASSIFIER = Reason(lambda s: s.generated is None, "no samples: evaluation.features=false")
NO_LABELS = Reason(lambda s: not s.data.classes, "the images have no labels")
NO_NATS = Reason(lambda s: not s.vae.likelihood.normalised, "the likelihood is not normalised: there are no nats")
NO_PLANE = Reason(lambda s: s.vae.latent_dim != 2, "it takes two latents, and this model has {}")
NO_QUADRATURE = Reason(
    lambda s: s.vae.latent_dim not in exact.POINTS, "quadrature takes one or two latents, and this model has {}"
)
NO_SIGMA = Reason(lambda s: not s.vae.likelihood.has_sigma, "the decoder has no standard deviation")
ONE_SIGMA = Reason(lambda s: s.vae.likelihood.params_per_pixel == 1, "one sigma serves all pixels")
PLANE = Reason(lambda s: s.vae.latent_dim == 2, "two latents have a manifold instead")
TIED = Reason(lambda s: s.dev.kl_per_latent is None, "this prior or posterior ties the latents together")


# --- the figures ------------------------------------------------------------------------------------------------------


@figure()
def losses(s: Subject) -> Figure:
    """Line charts of the loss, the reconstruction and the KL over the epochs, train and dev."""
    head = type(s.vae.likelihood)
    error = error_of(f"{head.__module__}.{head.__qualname__}")
    names = [f"{split}/{name}" for split in ("train", "dev", "train_eval") for name in ("loss", "reconstruction", "kl")]
    units = ("nats", "nats") if head.normalised else (f"{error} + nats", error)
    text = f"{s.what}; summed over pixels and latents, a mean over images"
    return figures.losses({name: s.curve(name) for name in names}, text, baselines(s.vae, s.data), units)


@figure()
def reconstructions(s: Subject) -> Figure:
    """Two rows of images, originals over their reconstructions."""
    text = f"{s.what}; dev; {s.which}; z: posterior mean; x: mean of p(x|z)"
    return figures.reconstructions(s.examples, s.reconstructed, text)


@figure()
def errors(s: Subject) -> Figure:
    """Three rows of images: originals, reconstructions, and their signed difference in red and blue."""
    text = f"{s.what}; dev; z: posterior mean; x: mean of p(x|z); the error is a mean over channels"
    return figures.errors(s.examples, s.reconstructed, text)


@figure(CONDITIONAL)
def error_map(s: Subject) -> Figure:
    """Heat map of where on the image the reconstructions err, a mean over dev images."""
    x = as_floats(s.data.dev.images[:1000])
    error = (x - s.vae.reconstruct(x.to(s.vae.prior_loc)).cpu()).square().mean(0)
    text = f"{s.what}; dev; mean over {len(x)} images of the squared error of the reconstruction; z: posterior mean"
    return figures.heat_map(error, "squared error", text, f"squared error: {error.sum():.4g} per image")


@figure()
def samples(s: Subject) -> Figure:
    """Ten rows of ten images generated from draws of the prior."""
    return of_prior(s, "mean", "mean of p(x|z)")


def of_prior(s: Subject, x: str, words: str) -> Figure:
    """Ten rows of ten; of a conditional model a row for each of the first ten classes."""
    if not s.vae.classes:
        images = decode(s.vae, prior_latents(s.vae, EXAMPLES**2, s.seed), x, s.seed)
        return figures.grid(images, EXAMPLES, f"{s.what}; 100 draws of z from the prior; x: {words}")
    names = s.data.class_names[:EXAMPLES]
    z = prior_latents(s.vae, EXAMPLES, s.seed).repeat(len(names), 1)
    images = decode(s.vae, z, x, s.seed, torch.arange(len(names)).repeat_interleave(EXAMPLES))
    text = f"{s.what}; a row for each class, in each column the same draw of z from the prior; x: {words}"
    return figures.grid(images, EXAMPLES, text, names)


@figure(INVISIBLE)
def samples_drawn(s: Subject) -> Figure:
    """The same ten rows of ten images, each pixel drawn from p(x|z) instead of its mean."""
    return of_prior(s, "sample", "drawn from p(x|z), pixel by pixel")


@figure(CONDITIONAL)
def interpolations(s: Subject) -> Figure:
    """Rows of images that go from one dev image to another through the latent space."""
    means = s.vae.encode(s.examples.to(s.vae.prior_loc)).mean.cpu()  # (n, D)
    steps = torch.linspace(0, 1, 11).unsqueeze(1)
    rows = []
    for a in range(0, len(s.examples), 2):
        b = (a + 1) % len(s.examples)
        between = decode(s.vae, means[a].lerp(means[b], steps))
        rows += [s.examples[a : a + 1], between, s.examples[b : b + 1]]
    text = f"{s.what}; dev; means of p(x|z) on straight lines between the posterior means of two images"
    labels = ["image", *(f"{100 * step:.0f} %" for step in steps.flatten().tolist()), "image"]
    return figures.grid(torch.cat(rows), 13, text, column_labels=labels)


@figure(CONDITIONAL, PLANE)
def traversals(s: Subject) -> Figure:
    """Rows of images, in each of which one latent moves through the prior's quantiles."""
    rows = s.order[:TRAVERSED].tolist()
    z, quantiles = traversal(s.vae, rows, steps=11)
    text = f"{s.what}; means of p(x|z); each row moves one latent, the others stay at the prior's medians"
    return figures.traversals(decode(s.vae, z.flatten(0, 1)), quantiles, rows, text)


@figure(CONDITIONAL, NO_PLANE)
def manifold(s: Subject) -> Figure:
    """A map of the two latents: the decoded image at each point of the plane."""
    z, quantiles = plane(s.vae, 0, 1, steps=15)
    text = f"{s.what}; means of p(x|z) on the plane of z, at the prior's quantiles from 2 % to 98 %"
    return figures.manifold(decode(s.vae, z.flatten(0, 1)), quantiles, (0, 1), text)


@figure(TIED)
def kl_per_latent(s: Subject) -> Figure:
    """Bar chart of each latent's KL in nats, the active ones coloured."""
    text = f"{s.what}; dev; a unit is active where its posterior mean varies by more than 0.01"
    return figures.kl_per_latent(s.dev.kl.mean(0), text, metrics.active_units(s.dev.mu))


@figure(NO_LABELS)
def latents(s: Subject) -> Figure:
    """Scatter plot of the posterior means of dev images, coloured by class."""
    mu, text = s.dev.mu[:POINTS], f"{s.what}; dev; posterior means"
    return figures.latents(mu, s.data.dev.labels[:POINTS], text, s.data.class_names)


@figure(CONDITIONAL)
def aggregate_posterior(s: Subject) -> Figure:
    """Histograms and QQ plots of the aggregate posterior beside the prior."""
    shown = s.order[:4].tolist()
    torch.default_generator.manual_seed(0)
    x = as_floats(s.data.dev.images[:POINTS]).to(s.vae.prior_loc)
    q = s.vae.encode(x).sample(torch.Size((1,)))[0].cpu()  # (N, D)
    prior = prior_latents(s.vae, 50_000, s.seed)
    text = (
        f"{s.what}; dev; one draw of q(z|x) for each of {len(q):,} images, 50,000 of the prior; "
        "the latents of the largest KL first"
    )
    return figures.aggregate_posterior(q[:, shown], prior[:, shown], [f"z{k}" for k in shown], text)


@figure(NO_NATS)
def rate_distortion(s: Subject) -> Figure:
    """Training trajectory in the rate-distortion plane, one point per epoch."""
    rate, distortion = s.curve("dev/kl"), s.curve("dev/reconstruction")
    epochs, text = [e for e, _ in rate], f"{s.what}; dev"
    return figures.rate_distortion([v for _, v in rate], [v for _, v in distortion], epochs, text)


def decoded_examples(s: Subject) -> torch.distributions.Distribution:
    """p(x|z) at the posterior means of the examples: batch (1, n)."""
    q = s.vae.encode(s.examples.to(s.vae.prior_loc), s.example_labels)
    return s.vae.decode(q.mean.unsqueeze(0), s.example_labels)


@figure(NO_SIGMA)
def sigma_history(s: Subject) -> Figure:
    """Line chart of the decoder's mean standard deviation over the epochs."""
    text = f"{s.what}; dev; the images of the reconstructions, z: posterior mean"
    return figures.sigma_history(s.curve("dev/sigma"), text)


@figure(NO_SIGMA, ONE_SIGMA)
def sigma_image(s: Subject) -> Figure:
    """Heat map of the decoder's standard deviation of each pixel."""
    text = f"{s.what}; dev; the decoder's standard deviation, mean over the images of the reconstructions"
    return figures.heat_map(decoded_examples(s).stddev.mean((0, 1)).cpu(), "sigma", text)


@figure(NO_SIGMA, NO_NATS)
def residuals(s: Subject) -> Figure:
    """Histogram of standardised residuals beside the standard normal density."""
    p = decoded_examples(s)
    residual = ((s.examples.to(p.mean) - p.mean[0]) / p.stddev[0]).cpu()
    return figures.residuals(residual, f"{s.what}; dev; (x \u2212 mean) / sigma, z: posterior mean")


@figure(NO_CLASSIFIER)
def neighbours(s: Subject) -> Figure:
    """Two rows of images, generated samples over the training images nearest to them."""
    assert s.generated is not None
    shown, train = s.generated.images[:10], s.data.train_fixed.images
    rows, distances = metrics.nearest(shown, train)
    text = f"{s.what}; samples from the prior, x: {estimates.sample_mode(s.data)}; Euclidean distance in pixels"
    return figures.neighbours(shown, as_floats(train[rows]), distances, text)


@figure(NO_CLASSIFIER)
def class_histogram(s: Subject) -> Figure:
    """Bar chart of the classes that a classifier sees in generated samples."""
    assert s.generated is not None
    mode = estimates.sample_mode(s.data)
    text = f"{s.what}; samples from the prior, x: {mode}, as {s.generated.classifier} sees them"
    return figures.class_histogram(s.generated.counts, text, s.data.class_names)


@figure(CONDITIONAL, NO_QUADRATURE, NO_NATS, at_the_end=False)
def true_posterior(s: Subject) -> Figure:
    """The true posterior of single images, by quadrature, beside the encoder's."""
    x = as_floats(s.data.dev.images[:20]).to(s.vae.prior_loc)  # six in pictures, twenty in the caption's numbers
    inferences, gaps = exact.inference_gaps(s.vae, x)
    panels = []
    for image, (true, q, best) in zip(x.cpu().numpy(), inferences[:6], strict=False):
        densities = {"truth": true.log_density, "q": true.on_grid(q), "best": true.on_grid(best)}
        on_grid = {name: log[0].exp().numpy() for name, log in densities.items()}
        panels.append({"x": image, "z": true.axes[0].numpy()} | on_grid)
    each = [
        f"log p(x) = {signed(p, 2)} nats\nlost: {a:.2f} by the family, {m:.2f} by the encoder"
        for p, a, m in zip(gaps.log_px.tolist(), gaps.approximation.tolist(), gaps.amortisation.tolist(), strict=True)
    ]
    names = [f"z{k}" for k in range(s.vae.latent_dim)]
    return figures.true_posteriors(panels, each[:6], f"{s.what}; dev; {gap_words(gaps)}", names)


def gap_words(gaps: exact.Gaps) -> str:
    """The gaps in nats per image, each with half of its 95 % interval."""
    parts = {"log p(x)": gaps.log_px, "ELBO": gaps.elbo}
    parts |= {"approximation gap": gaps.approximation, "amortisation gap": gaps.amortisation}
    means = {name: metrics.mean_and_error(values) for name, values in parts.items()}
    words = [f"{name} {plus_minus(mean, HALF_INTERVAL * error)}" for name, (mean, error) in means.items()]
    return f"means over {len(gaps.elbo)} images, nats: {', '.join(words)}; log p(x) by quadrature"


@figure(at_the_end=False)
def model(s: Subject) -> Figure:
    """The layers of encoder and decoder as boxes, with their shapes and numbers of parameters."""
    return architecture_figure(s.vae, s.what)


@figure(NO_LABELS, at_the_end=False)
def tsne(s: Subject) -> Figure:
    """Scatter plot of the posterior means brought to the plane by t-SNE, coloured by class."""
    from sklearn.manifold import TSNE  # a second that only this figure pays

    mu = s.dev.mu[:2000].numpy()
    plane = TSNE(perplexity=min(30, (len(mu) - 1) / 3), random_state=0).fit_transform(mu)
    text = f"{s.what}; dev; posterior means; t-SNE keeps neighbours, not distances"
    return figures.latents(plane, s.data.dev.labels[: len(mu)], text, s.data.class_names, ["t-SNE 1", "t-SNE 2"])
