"""The figures by name, with what each shows in words. Imports no torch: commands list and complete these names."""

from typing import NamedTuple


class Kind(NamedTuple):
    shows: str  # opens the alternative text
    at_the_end: bool = True  # drawn when a run ends; else only where it is asked for by name, since it takes longer


FIGURES = {
    "losses": Kind("Line charts of the loss, the reconstruction and the KL over the epochs, train and dev"),
    "reconstructions": Kind("Two rows of images, originals over their reconstructions"),
    "errors": Kind("Three rows of images: originals, reconstructions, and their signed difference in red and blue"),
    "error_map": Kind("Heat map of where on the image the reconstructions err, a mean over dev images"),
    "samples": Kind("Ten rows of ten images generated from draws of the prior"),
    "samples_drawn": Kind("The same ten rows of ten images, each pixel drawn from p(x|z) instead of its mean"),
    "interpolations": Kind("Rows of images that go from one dev image to another through the latent space"),
    "traversals": Kind("Rows of images, in each of which one latent moves through the prior's quantiles"),
    "manifold": Kind("A map of the two latents: the decoded image at each point of the plane"),
    "kl_per_latent": Kind("Bar chart of each latent's KL in nats, the active ones coloured"),
    "latents": Kind("Scatter plot of the posterior means of dev images, coloured by class"),
    "aggregate_posterior": Kind("Histograms and QQ plots of the aggregate posterior beside the prior"),
    "rate_distortion": Kind("Training's way in the plane of rate and distortion, a point an epoch"),
    "sigma_history": Kind("Line chart of the decoder's mean standard deviation over the epochs"),
    "sigma_image": Kind("Heat map of the decoder's standard deviation of each pixel"),
    "residuals": Kind("Histogram of standardised residuals beside the standard normal density"),
    "neighbours": Kind("Two rows of images, generated samples over the training images nearest to them"),
    "class_histogram": Kind("Bar chart of the classes that a classifier sees in generated samples"),
    "true_posterior": Kind("The true posterior of single images, by quadrature, beside the encoder's", False),
    "model": Kind("The layers of encoder and decoder as boxes, with their shapes and numbers of parameters", False),
    "tsne": Kind("Scatter plot of the posterior means brought to the plane by t-SNE, coloured by class", False),
}
