"""Pictures of a model: arrays or CPU tensors go in, a `matplotlib.figure.Figure` comes out.

Whatever is empty or not finite raises a ValueError that names the argument.
"""

from vae.evaluation.figures.charts import (
    aggregate_posterior,
    class_histogram,
    heat_map,
    kl_per_latent,
    latents,
    losses,
    rate_distortion,
    residuals,
    sigma_history,
    true_posteriors,
)
from vae.evaluation.figures.page import alternative_text, describe, write_figure
from vae.evaluation.figures.pictures import errors, grid, manifold, neighbours, reconstructions, samples, traversals

__all__ = [
    "aggregate_posterior", "alternative_text", "class_histogram", "describe", "errors", "grid", "heat_map",
    "kl_per_latent", "latents", "losses", "manifold", "neighbours", "rate_distortion", "reconstructions", "residuals",
    "samples", "sigma_history", "traversals", "true_posteriors", "write_figure",
]  # fmt: skip
