"""Pictures of a model: arrays or CPU tensors go in, a `matplotlib.figure.Figure` comes out.

Whatever is empty, not finite or of the wrong shape raises a ValueError that names the argument.
"""

from vae.evaluation.figures.charts import (
    aggregate_posterior,
    class_histogram,
    error_map,
    kl_per_latent,
    latents,
    losses,
    rate_distortion,
    residuals,
    sigma_history,
    sigma_image,
    true_posteriors,
)
from vae.evaluation.figures.page import BLUE, PALETTE, alternative_text, caption_of, describe, write_figure
from vae.evaluation.figures.pictures import errors, grid, neighbours, reconstructions, samples

__all__ = [
    "BLUE", "PALETTE", "aggregate_posterior", "alternative_text", "caption_of", "class_histogram", "describe",
    "error_map", "errors", "grid", "kl_per_latent", "latents", "losses", "neighbours", "rate_distortion",
    "reconstructions", "residuals", "samples", "sigma_history", "sigma_image", "true_posteriors", "write_figure",
]  # fmt: skip
