"""What trivial models leave of the squared error: the mean image, and PCA."""

import torch

from vae.data.module import ImageDataModule
from vae.likelihoods import SquaredErrorHead
from vae.model import VAE
from vae.pixels import as_floats


def baselines(vae: VAE, data: ImageDataModule) -> dict[str, float]:
    """What trivial models leave of dev's squared error: the mean training image, and PCA with as many components."""
    if not isinstance(vae.likelihood, SquaredErrorHead):
        return {}
    mean, axes = data.principal
    wanted = [n for n in sorted({2, 4, 8, 16, 32, vae.latent_dim}) if n < len(mean) and n <= axes.shape[1]]
    whole, kept = torch.zeros((), dtype=torch.float64), torch.zeros(wanted[-1], dtype=torch.float64)
    for part in data.dev.images.split(1000):
        centred = as_floats(part).flatten(1).double() - mean
        whole += centred.square().sum() / len(data.dev)
        kept += (centred @ axes[:, : wanted[-1]]).square().sum(0) / len(data.dev)
    by_first = kept.cumsum(0).tolist()
    return {"mean image": whole.item()} | {f"PCA {n}": whole.item() - by_first[n - 1] for n in wanted}
