"""A person's own parts, as they would stand outside this project."""

import math
from pathlib import Path

import torch
from lightning import Callback
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from vae.data import ImageDataModule
from vae.distributions import Gaussian
from vae.likelihoods import Likelihood
from vae.objectives import Terms

Path("executed").touch()  # what a test looks for: importing this file is executing it


class Head(Likelihood):
    has_sigma = True

    def __init__(self, width: float, mean: str = "sigmoid") -> None:
        super().__init__(mean)
        self.width = width

    def forward(self, params: Tensor) -> Distribution:
        return Gaussian(self.mean(params.squeeze(-4)), params.new_tensor(self.width))


def kernel(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(a, b).square() / 2).mean()


class MMD:
    """Reconstruction, KL and the squared distance of the kernel means of q(z) and p(z) (Gretton et al. 2012)."""

    samples = 1

    def __init__(self, weight: float = 10.0) -> None:
        self.weight = weight

    def __call__(self, vae: nn.Module, x: Tensor, step: int) -> Terms:
        q = vae.encode(x)
        z = q.rsample(torch.Size((1,)))
        p = vae.decode(z)
        log_px, kl = p.log_prob(x).mean(0), kl_divergence(q, vae.prior)
        own, other = z[0], vae.prior.sample(torch.Size((1, len(x))))[0]
        near = [
            torch.exp(-torch.cdist(a, b).square() / 2).mean() for a, b in ((own, own), (other, other), (own, other))
        ]
        mmd = near[0] + near[1] - 2 * near[2]
        return Terms(kl.sum(-1).mean() - log_px.mean() + self.weight * mmd, log_px, kl, beta=1.0, p=p)


class Encoder(nn.Module):
    def __init__(self, image_shape: tuple[int, int, int], out_features: int, width: int = 6) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), width), nn.Tanh())
        self.out = nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x))


class Bars(ImageDataModule):
    """Images of 5 x 7 pixels with a bright bar."""

    def load(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        images = torch.zeros(120, 1, 5, 7, dtype=torch.uint8)
        labels = torch.arange(120) % 7
        images[torch.arange(120), 0, :, labels] = 200
        return (images[:90], labels[:90]), (images[90:], labels[90:])


class Counter(Callback):
    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_epoch_end(self, *_: object) -> None:
        self.file.open("a").write("epoch\n")


__all__ = ["MMD", "Bars", "Counter", "Encoder", "Head", "Images"]
