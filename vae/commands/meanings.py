"""What each metric is, in a sentence for readers of a page."""

import re

MEANINGS = {
    "loss": "What is optimised, a mean over images.",
    "reconstruction": "The first term of the loss: how far the reconstruction is from the image, summed over pixels.",
    "kl": "KL(q(z|x) || p(z)): how many nats the latents carry about an image.",
    "beta": "The weight of the KL in the loss.",
    "neg_elbo": "Reconstruction + KL with beta 1: an upper bound on -log p(x).",
    "unweighted_loss": "Reconstruction + KL with beta 1; no bound on anything, since the likelihood is not normalised.",
    "elbo": "A lower bound on log p(x); higher is better.",
    "nll": "The importance-weighted bound on -log p(x); lower is better.",
    "nll_samples": "How many draws of z the NLL takes for each image.",
    "nll_ess": "Effective sample size of the NLL's draws, median over images; below 10 the NLL is clearly too high.",
    "nll_ess_below_2": "Share of images with an effective sample size below 2: one draw carries the estimate.",
    "nll_half_gap": "How much higher the NLL is with half the draws, in nats: a hint of what more draws would gain.",
    "rate": "The KL, as the coordinate of the rate-distortion plane.",
    "distortion": "-E[log p(x|z)], the other coordinate.",
    "bits_per_dimension": "The NLL in bits, per pixel and channel.",
    "active_units": "Latents whose posterior mean varies by more than 0.01 over images (Burda et al. 2015).",
    "knn_accuracy": "How often the nearest training images, by posterior mean, have the image's class.",
    "linear_probe_accuracy": "How often a linear classifier of posterior means finds the class.",
    "train/grad_norm": "The norm of the gradient, a mean over the best epoch's steps.",
    "train_eval/loss": "The loss on the first 10,000 training images with dropout off, to compare with dev.",
    "samples/frechet": "Frechet distance of prior samples to test images, on a small classifier's features; not FID.",
    "samples/precision": "The share of samples that lie among test images.",
    "samples/recall": "The share of test images that lie among samples.",
    "samples/class_entropy": "Entropy in nats of the classes that a classifier sees in samples; ln 10 = 2.30 at most.",
    "epochs": "Epochs trained.",
    "best_epoch": "The epoch whose weights these metrics are of; the first is 1.",
    "steps": "Steps of the optimizer.",
    "seconds": "Time of training and validation.",
    "images_per_second": "Training images over that time.",
    "parameters": "Numbers that were learned.",
    "stopped_early": "1 where training ended before max_epochs.",
}


def meaning(name: str) -> str:
    """The sentence of a metric; nothing for one that has none."""
    bare = re.sub(r"_convnet.*", "", name)
    return MEANINGS.get(bare) or MEANINGS.get(bare.rpartition("/")[2], "")
