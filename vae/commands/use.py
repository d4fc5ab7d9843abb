"""The verbs that use a model: each draws a picture or, with --out, writes its numbers.

Everything heavy is imported when a verb is called.
"""

import math
from typing import Annotated

import typer

from vae.commands.options import (
    CountOption,
    ImagesArgument,
    Mode,
    ModeOption,
    Origin,
    SeedOption,
    StepsOption,
    Use,
    require_images,
    verb,
)
from vae.errors import InputError

app = typer.Typer()
PANEL = "Use a model"
ORIGINS = {"prior": "z from the prior", "posterior": "z from a Gaussian mixture fitted to the aggregate posterior"}
SHOWN = 40  # of the most unusual images
LISTED = 10  # of them in the terminal


@verb(app, PANEL)
def sample(
    use: Use,
    count: CountOption = 64,
    x: ModeOption = Mode.mean,
    seed: SeedOption = 0,
    temperature: Annotated[float, typer.Option(help="Scale of the noise in z; below 1, nearer to the mean.")] = 1.0,
    origin: Annotated[Origin, typer.Option("--from", help="Distribution of z.")] = Origin.prior,
) -> None:
    """Draw images: z from the prior, or from a Gaussian mixture fitted to the aggregate posterior.

    Example: vae sample outputs/mine -n 64 --from posterior --out samples.png
    """
    if not 0 <= temperature < math.inf:
        raise InputError(f"--temperature={temperature}: must be a number >= 0; for example --temperature 0.7")
    run = use.start()
    from vae.evaluation import draws, figures

    if origin == Origin.prior:
        z = draws.prior_latents(run.vae, count, seed, temperature)
    else:
        z = draws.posterior_latents(run.vae, run.data.train_fixed, count, seed, temperature)
    labels = draws.classes_in_turn(run.vae, run.label)
    images = draws.decode(run.vae, z, x, seed, labels, bar=True)
    in_turn = labels is not None and run.label is None
    columns = run.vae.classes if in_turn else draws.square(count)
    text = f"{count} samples{', the classes in turn' if in_turn else ''}; {ORIGINS[origin]}"
    text += f"{'' if temperature == 1 else f' at temperature {temperature:g}'}; x: {x} of p(x|z); seed {seed}"
    values = {"z": z.numpy(), "x": images.numpy()}
    use.write(run, "my_samples.png", lambda t: figures.grid(images, columns, t), values, text, "Generated images")


@verb(app, PANEL)
def reconstruct(
    use: Use,
    images: ImagesArgument = None,
    count: CountOption = 12,
    z: Annotated[Mode, typer.Option(help="The posterior's mean or a draw from it.")] = Mode.mean,
    x: ModeOption = Mode.mean,
    seed: SeedOption = 0,
) -> None:
    """Encode and decode images: those of the test split, or your own image files.

    Example: vae reconstruct outputs/mine photo.jpg drawings/
    """
    require_images(images)
    run = use.start()
    from vae.commands.images import images_of, pairs
    from vae.evaluation import draws
    from vae.pixels import as_floats

    batch = images_of(run, images, count)
    originals, made = as_floats(batch.images), draws.reconstruct(run.vae, batch.source(run), z, x, seed)
    error = (originals - made).square().sum((1, 2, 3))
    text = f"{batch.origin}; z: {'posterior mean' if z == 'mean' else f'one draw from the posterior, seed {seed}'}"
    text += f"; x: {x} of p(x|z); squared error {error.mean():.4g} per image on average"
    values = {"name": batch.names, "squared_error": error, "x": originals, "x_hat": made}
    shows = "Images over their reconstructions"
    use.write(run, "my_reconstructions.png", lambda t: pairs(originals, made, t), values, text, shows)


@verb(app, PANEL)
def encode(use: Use, images: ImagesArgument = None) -> None:
    """Write the mean and standard deviation of q(z|x) of each image.

    Example: vae encode outputs/mine --out latents.npz
    """
    require_images(images)
    run = use.start()
    import numpy as np

    from vae.commands.images import images_of
    from vae.evaluation import draws, figures

    batch = images_of(run, images)
    posterior = draws.encode(run.vae, batch.source(run))
    labels = {} if batch.labels is None else {"label": batch.labels.numpy()}
    classes = labels.get("label", np.zeros(len(batch.images), int))
    names = run.data.class_names if labels else ["images"]
    use.write(
        run, "my_latents.png", lambda t: figures.latents(posterior["mean"], classes, t, names),
        {"name": batch.names, **labels, **posterior},
        f"{batch.origin}; posterior means of {len(batch.images)} images", "Scatter plot of posterior means",
    )  # fmt: skip


@verb(app, PANEL)
def score(
    use: Use,
    images: ImagesArgument = None,
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="Number of test images.")] = None,
    samples: Annotated[int, typer.Option(min=2, max=10**6, help="Importance samples per image.")] = 500,
    seed: SeedOption = 0,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="noise|upside-down|FOLDER", help="Also tell these apart: area under the ROC curve."),
    ] = None,
) -> None:
    """Score how unusual images are: log p(x) of each by importance sampling, the most unusual first.

    Example: vae score outputs/mine --against noise --out scores.csv
    """
    require_images(images)
    run = use.start()
    from vae.commands.images import area, contrast, images_of, print_scores
    from vae.evaluation import figures
    from vae.evaluation.estimates import image_scores
    from vae.pixels import as_floats

    batch = images_of(run, images, count)
    scores, errors = image_scores(run.vae, batch.source(run), samples, seed, bar=True)
    order = scores.argsort()
    what = "log p(x)" if run.vae.likelihood.normalised else "minus (reconstruction + KL), which are not nats"
    print(f"{what}, the most unusual of {len(scores)} images first; ± over {samples} importance samples")
    print_scores(run, batch, scores, errors, order[:LISTED].tolist())
    for name in against or ():
        others, _ = image_scores(run.vae, contrast(run, name, batch, seed), samples, seed, bar=True)
        print(f"against {name}: area under the ROC curve {area(scores, others):.4f} ({len(others)} images)")
    shown = order[:SHOWN]
    text = (
        f"{batch.origin}; the {len(shown)} most unusual of {len(scores)} images by {what}, from "
        f"{scores[shown[0]]:.1f} to {scores[shown[-1]]:.1f}, in reading order; {samples} importance samples"
    )
    labels = {} if batch.labels is None else {"label": batch.labels[order].numpy()}
    values = {"name": [batch.names[row] for row in order.tolist()], **labels, "score": scores[order]}
    values |= {"error": errors[order], "x": as_floats(batch.images[order])}
    drawn, columns = as_floats(batch.images[shown]), min(10, len(shown))
    use.write(
        run,
        "my_scores.png",
        lambda t: figures.grid(drawn, columns, t),
        values,
        text,
        "The most unusual images",
    )


@verb(app, PANEL)
def interpolate(
    use: Use,
    between: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Each a class, test:17, or an image file.", show_default="two prior draws"),
    ] = None,
    steps: StepsOption = 11,
    x: ModeOption = Mode.mean,
    seed: SeedOption = 0,
) -> None:
    """Go from one image to another through the latent space, on a straight line and on a great circle.

    Example: vae interpolate outputs/mine --between 3 8
    """
    run = use.start()
    import torch

    from vae.commands.latents import ends
    from vae.evaluation import draws, figures

    (a, b), names = ends(run, between, seed)
    z = torch.stack([way(a, b, steps) for way in draws.WAYS.values()])  # (2, steps, D)
    images = draws.decode(run.vae, z.flatten(0, 1), x, seed, run.label).unflatten(0, z.shape[:2])
    rows = dict(zip(draws.WAYS, images, strict=True))
    text = f"from {names[0]} to {names[1]} in the latent space; x: {x} of p(x|z)"
    shows = "Two rows of images that go from one to another through the latent space"
    use.write(run, "my_interpolations.png", lambda t: figures.samples(rows, t), {"z": z, "x": images}, text, shows)


@verb(app, PANEL)
def traverse(
    use: Use,
    image: Annotated[
        str | None,
        typer.Option("--from", help="A class, test:17, or an image file.", show_default="the prior's median"),
    ] = None,
    steps: StepsOption = 11,
    x: ModeOption = Mode.mean,
    seed: SeedOption = 0,
) -> None:
    """Move one latent at a time: one row of images per latent.

    Example: vae traverse outputs/mine --from 3
    """
    run = use.start()
    from vae.commands.latents import moving, start_of
    from vae.evaluation import draws, figures

    start, name = start_of(run, image)
    order, left_out = moving(run)
    z, quantiles = draws.traversal(run.vae, order, steps, start)
    images = draws.decode(run.vae, z.flatten(0, 1), x, seed, run.label)
    text = (
        f"each row moves one latent through the prior's quantiles from 2 % to 98 %, the most used first{left_out}, "
        f"from {name}; x: {x} of p(x|z)"
    )
    values = {"latent": order, "z": z, "x": images.unflatten(0, z.shape[:2])}
    use.write(
        run, "my_traversals.png", lambda t: figures.traversals(images, quantiles, order, t), values, text,
        "Rows of images, in each of which one latent moves",
    )  # fmt: skip


@verb(app, PANEL)
def manifold(
    use: Use,
    latents: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="I J", help="Which two, for models with more.", show_default=False),
    ] = None,
    steps: StepsOption = 15,
    x: ModeOption = Mode.mean,
    seed: SeedOption = 0,
) -> None:
    """Draw the plane of two latents, at the prior's quantiles.

    Example: vae manifold outputs/mine --latents 0 1
    """
    run = use.start()
    from vae.commands.latents import pair
    from vae.evaluation import draws, figures

    first, second = pair(run, latents)
    z, quantiles = draws.plane(run.vae, first, second, steps)
    images = draws.decode(run.vae, z.flatten(0, 1), x, seed, run.label)
    text = (
        f"latent {first} to the right and latent {second} upwards, through the prior's quantiles from "
        f"2 % to 98 %{'' if run.vae.latent_dim == 2 else ', the others at the median'}; x: {x} of p(x|z)"
    )
    values = {"z": z, "x": images.unflatten(0, z.shape[:2])}
    use.write(
        run, "my_manifold.png", lambda t: figures.manifold(images, quantiles, (first, second), t), values, text,
        "Images on the plane of two latents",
    )  # fmt: skip
