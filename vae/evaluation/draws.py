"""Latents from the prior, the aggregate posterior, traversals and interpolations; and their images."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vae.data.batches import Images
from vae.data.module import ImageDataModule
from vae.errors import InputError
from vae.evaluation import metrics
from vae.model import VAE, Labels
from vae.noise import derive, fixed_noise
from vae.pixels import as_floats

MIXTURE = 10  # components of the aggregate posterior's mixture
FITTED = 10_000  # images that it is fitted to


def chunks(vae: VAE, images: Tensor | Images, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """x (n, C, H, W) in [0, 1] on the model's device, with labels y (n,) where the images have them."""
    pixels, labels = (images.images, images.labels) if isinstance(images, Images) else (images, None)
    for start in range(0, len(pixels), size):
        place = slice(start, start + size)
        x = as_floats(pixels[place].to(vae.prior_loc.device))
        x = x.to(vae.prior_loc) if x.is_floating_point() else x  # the model refuses integers
        yield x, None if labels is None else labels[place]


@torch.inference_mode()
def prior_latents(vae: VAE, count: int, seed: int, temperature: float = 1.0) -> Tensor:
    """z (N, D) on the CPU, a function of the seed; a larger `count` only appends. A `temperature` below 1 shrinks them
    towards the prior's mean.

    Raises InputError for a temperature if the prior has no mean in closed form.
    """
    generator = np.random.default_rng(derive(seed, "generated"))
    noise = generator.standard_normal((count, vae.noise_per_draw), dtype=np.float32)
    z = vae.draw_prior(torch.from_numpy(noise)).cpu()
    if temperature == 1:
        return z
    try:
        mean = vae.prior.mean.cpu()
    except NotImplementedError as error:
        raise InputError(
            f"--temperature={temperature:g}: the prior of this model has no mean in closed form; leave it at 1"
        ) from error
    return mean + temperature * (z - mean)


def example_images(data: ImageDataModule, count: int = 10) -> tuple[Tensor, Tensor]:
    """The first dev image of each class, then others: x (n, C, H, W) in [0, 1] and labels (n,), at most `count`."""
    labels = data.dev.labels
    rows = [int((labels == c).nonzero()[0]) for c in range(data.classes) if (labels == c).any()]
    rows = (rows + [i for i in range(len(labels)) if i not in rows])[:count]
    return as_floats(data.dev.images[rows]), labels[rows]


@torch.no_grad()
def mean_sigma(vae: VAE, data: ImageDataModule) -> float | None:
    """The decoder's standard deviation at the posterior means of the example images, averaged over pixels."""
    if not vae.likelihood.has_sigma:
        return None
    x, labels = example_images(data)
    training = vae.training
    vae.eval()
    p = vae.decode(vae.encode(x.to(vae.prior_loc.device), labels).mean.unsqueeze(0), labels)
    vae.train(training)
    return p.stddev.mean().item()


def quantile_levels(steps: int) -> Tensor:
    """(steps,): the prior's quantiles, 2 % to 98 %, through which pictures move a latent."""
    return torch.linspace(0.02, 0.98, steps)


@torch.inference_mode()
def prior_quantiles(vae: VAE, levels: Tensor) -> Tensor:
    """(n, D) on the CPU: each latent's quantiles under the prior, exact where it knows them, else of 10,000 draws."""
    try:
        return vae.prior.icdf(levels.unsqueeze(1).to(vae.prior_loc)).cpu()
    except (AttributeError, NotImplementedError):
        return prior_latents(vae, 10_000, 0).quantile(levels.to(vae.prior_loc.dtype), dim=0)


def traversal(vae: VAE, latents: list[int], steps: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """z (rows, steps, D) and quantiles (steps, D): row i moves `latents[i]` through the quantiles of the prior.

    The others stay at `start` (D,), by default the prior's medians.
    """
    quantiles = prior_quantiles(vae, quantile_levels(steps))
    start = prior_quantiles(vae, torch.tensor([0.5]))[0] if start is None else start
    z = start.repeat(len(latents), steps, 1)
    for row, latent in enumerate(latents):
        z[row, :, latent] = quantiles[:, latent]
    return z, quantiles


def plane(vae: VAE, right: int, up: int, steps: int) -> tuple[Tensor, Tensor]:
    """z (steps, steps, D) and quantiles (steps, D): latent `right` grows along a row, latent `up` from the last to the
    first; the others stay at the prior's medians.
    """
    quantiles = prior_quantiles(vae, quantile_levels(steps))
    z = prior_quantiles(vae, torch.tensor([0.5]))[0].repeat(steps, steps, 1)
    z[:, :, right] = quantiles[:, right]
    z[:, :, up] = quantiles[:, up].flip(0).unsqueeze(1)
    return z, quantiles


@torch.inference_mode()
def posterior_latents(vae: VAE, images: Tensor | Images, count: int, seed: int, temperature: float = 1.0) -> Tensor:
    """z (N, D) from a Gaussian mixture fitted to the aggregate posterior: one draw from q(z|x) per image.

    A `temperature` below 1 shrinks each towards the mean of its component.
    """
    from sklearn.mixture import GaussianMixture

    few = images.take(slice(FITTED)) if isinstance(images, Images) else images[:FITTED]
    with fixed_noise(derive(seed, "aggregate posterior")):
        drawn = (vae.encode(x, y).sample(torch.Size((1,)))[0] for x, y in chunks(vae, few, 1000))
        points = metrics.gather_chunks(drawn, len(few)).double().numpy()
    state = derive(seed, "mixture") % 2**32
    mixture = GaussianMixture(min(MIXTURE, len(points)), random_state=state).fit(points)
    z, component = mixture.sample(count)  # in the order of the components
    order = np.random.default_rng(state).permutation(count)
    means = mixture.means_[component]
    return torch.from_numpy((means + temperature * (z - means))[order]).float()


@torch.inference_mode()
def decode(vae: VAE, z: Tensor, x: str = "mean", seed: int = 0, labels: Labels = None, bar: bool = False) -> Tensor:
    """Images (N, C, H, W) in [0, 1] on the CPU from latents (N, D); `x` is `mean` or `sample` of p(x|z).

    A conditional model takes one class for all images, or `labels`, repeated as often as needed.
    """
    purpose = derive(seed, "generated x")
    parts = tqdm(
        torch.arange(len(z)).split(1000), "images", leave=False, disable=None if bar and len(z) > 1000 else True
    )

    def images() -> Iterator[Tensor]:
        for rows in parts:
            y = labels[rows % len(labels)] if isinstance(labels, Tensor) else labels
            yield vae.sample(z[rows].to(vae.prior_loc), x, y).clamp(0, 1)

    with fixed_noise(purpose), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(purpose)
        return metrics.gather_chunks(images(), len(z))


def classes_in_turn(vae: VAE, label: int | None = None) -> Tensor | None:
    """Labels for `decode`: all classes of a conditional model, or only `label`."""
    if label is not None:
        return torch.tensor([label])
    return torch.arange(vae.classes) if vae.classes else None


@torch.inference_mode()
def reconstruct(vae: VAE, images: Tensor | Images, z: str = "mean", x: str = "mean", seed: int = 0) -> Tensor:
    """Images (N, C, H, W) in [0, 1] on the CPU; `z` and `x` are each `mean` or `sample`."""
    purpose = derive(seed, "reconstruct")
    with fixed_noise(purpose), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(purpose)
        drawn = (vae.reconstruct(part, z, x, y).clamp(0, 1) for part, y in chunks(vae, images, 1000))
        return metrics.gather_chunks(drawn, len(images))


def linear(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """(D,), (D,) -> (steps, D), both ends included."""
    t = torch.linspace(0, 1, steps).unsqueeze(1)
    return (1 - t) * a + t * b


def spherical(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Great circle in direction, linear in length (Shoemake 1985): (D,), (D,) -> (steps, D).

    Draws from a Gaussian prior with many dimensions lie near a sphere; a straight line would pass through its middle.
    """
    lengths = torch.linspace(0, 1, steps).unsqueeze(1)
    angle = torch.acos((a @ b / (a.norm() * b.norm()).clamp(min=1e-12)).clamp(-1, 1))
    if angle.sin().abs() < 1e-4:  # the same direction, or the opposite one, which leaves the circle open
        return linear(a, b, steps)
    weights = torch.sin((1 - lengths) * angle) / angle.sin(), torch.sin(lengths * angle) / angle.sin()
    return weights[0] * a + weights[1] * b


WAYS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {"linear": linear, "spherical": spherical}


@torch.inference_mode()
def encode(vae: VAE, images: Tensor | Images) -> dict[str, np.ndarray]:
    """`mean` (N, D) of q(z|x) and, where q has one, `stddev` (N, D)."""
    means, spreads = [], []
    for x, y in chunks(vae, images, 1000):
        q = vae.encode(x, y)
        means.append(q.mean.cpu())
        try:
            spreads.append(q.stddev.cpu())
        except NotImplementedError:
            continue
    statistics = {"mean": torch.cat(means).numpy()}
    return statistics | ({"stddev": torch.cat(spreads).numpy()} if spreads else {})


def encodable(vae: VAE) -> str:
    """Which images of its own a model can encode: the `mean` of p(x|z), or a `sample` where x is discrete."""
    return "sample" if vae.likelihood.discrete else "mean"


def use_of_latents(vae: VAE, seed: int = 0, label: int | None = None) -> Tensor:
    """(D,): variance of the posterior mean of each latent over samples from the model; needs no data."""
    labels = classes_in_turn(vae, label)
    images = decode(vae, prior_latents(vae, 1000, seed), encodable(vae), labels=labels)
    source = images if labels is None else Images(images, labels.repeat(len(images))[: len(images)])
    return torch.from_numpy(encode(vae, source)["mean"]).var(0)


def square(count: int) -> int:
    """Columns of a roughly square grid of `count` images."""
    return math.ceil(math.sqrt(count))
