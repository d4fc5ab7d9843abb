"""log p(x) by annealed importance sampling, independent of q(z|x), and bracketed by bidirectional Monte Carlo.

Wu, Burda, Salakhutdinov and Grosse 2017. A chain of Hamiltonian transitions leads from the prior p(z) to the posterior
p(z|x) through p(z) p(x|z)^t, t from 0 to 1. Forward chains bound log p(x) from below in expectation. Backward chains,
which start at the z that generated an image, an exact draw from its posterior, bound it from above. As in the authors'
code step sizes adapt to the acceptance rate, so the bounds are exact up to one chain's influence on that rate.
"""

import sys

import torch
from torch import Tensor
from tqdm import tqdm

from vae.distributions import log_density
from vae.evaluation.estimates import Metrics, bounds
from vae.evaluation.metrics import mean_and_error
from vae.model import VAE
from vae.noise import derive
from vae.objectives import log_mean_exp
from vae.pixels import as_floats

CHAINS = 16  # for each image
BATCH = 100  # images at once
LEAPFROGS = 10  # steps of a trajectory
ACCEPTED = 0.65  # acceptance rate that the step sizes aim at
ADAPTATION = 1.02


class Annealer:
    """CHAINS chains per image, over `steps` temperatures; the chains of an image share a step size."""

    def __init__(self, vae: VAE, steps: int) -> None:
        self.vae, self.steps = vae, steps
        with torch.no_grad():
            self.prior = vae.prior  # once: a VampPrior encodes its pseudo-inputs

    def temperatures(self) -> Tensor:
        """(steps + 1,) from 0 to 1, densest at both ends: a scaled sigmoid from -4 to 4."""
        t = torch.linspace(-4, 4, self.steps + 1, dtype=torch.float64).sigmoid()
        return (t - t[0]) / (t[-1] - t[0])

    def forward_bound(self, x: Tensor) -> Tensor:
        """A stochastic lower bound on log p(x), (B,) nats, for x (B, C, H, W)."""
        z = self.prior.sample(torch.Size((CHAINS, len(x))))
        return log_mean_exp(self._anneal(x, z, self.temperatures()))

    def backward_bound(self, x: Tensor, z: Tensor) -> Tensor:
        """A stochastic upper bound (B,) for images that were drawn from p(x|z) with z (B, D)."""
        start = z.expand(CHAINS, *z.shape)
        return -log_mean_exp(self._anneal(x, start, self.temperatures().flip(0)))

    def _anneal(self, x: Tensor, z: Tensor, temperatures: Tensor) -> Tensor:
        """The chains' log weights (K, B), on the CPU: the work from the first temperature to the last."""
        log_w = torch.zeros(z.shape[:2], dtype=torch.float64)
        size = z.new_full((1, len(x), 1), 0.1)
        for before, now in zip(temperatures[:-1].tolist(), temperatures[1:].tolist(), strict=True):
            with torch.no_grad():
                log_w += (now - before) * self.vae.decode(z).log_prob(x).cpu().double()
            z, accepted = self._hamiltonian(x, z, now, size)
            factor = torch.where(accepted.mean(0) > ACCEPTED, ADAPTATION, 1 / ADAPTATION)  # (B,)
            size = (size * factor.to(size)[None, :, None]).clamp(1e-4, 1.0)
        return log_w

    def _hamiltonian(self, x: Tensor, z: Tensor, t: float, size: Tensor) -> tuple[Tensor, Tensor]:
        """One trajectory and its Metropolis test: z (K, B, D), and whether each chain moved (K, B)."""
        momentum = torch.randn_like(z)
        energy, slope = self._energy(x, z, t)
        start, p, end = energy + 0.5 * momentum.square().sum(-1), momentum, z
        for _ in range(LEAPFROGS):
            p = p - 0.5 * size * slope
            end = end + size * p
            energy, slope = self._energy(x, end, t)
            p = p - 0.5 * size * slope
        change = start - energy - 0.5 * p.square().sum(-1)
        accepted = (torch.rand_like(change).log() < change).to(z)  # a NaN is no acceptance
        return torch.where(accepted.bool().unsqueeze(-1), end, z), accepted

    def _energy(self, x: Tensor, z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """-log p(z) - t log p(x|z), (K, B), and its gradient (K, B, D)."""
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            energy = -log_density(self.prior, at) - t * self.vae.decode(at).log_prob(x)
            (slope,) = torch.autograd.grad(energy.sum(), at)
        return energy.detach(), slope


def annealed_metrics(vae: VAE, images: Tensor, steps: int, count: int, seed: int, samples: int) -> Metrics:
    """Annealed NLL of the first `count` images (N, C, H, W), and a bracket of log p(x), in nats per image.

    `annealing/nll_importance` is the importance-weighted NLL of the same images. `annealing/lower` and `upper` bound
    log p(x) of as many images drawn from the model, and `annealing/gap` is their mean difference. The draws depend on
    the seed, the device and the number of threads.
    """
    if not vae.likelihood.normalised or not steps:
        return {}
    device = vae.prior_loc.device
    annealer, parts = Annealer(vae, steps), {"nll": [], "lower": [], "upper": []}  # type: ignore[var-annotated]
    hidden = not sys.stderr.isatty()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, "annealing"))
        for part in tqdm(images[:count].split(BATCH), "annealing", None, False, disable=hidden):
            x = as_floats(part.to(device)).to(vae.prior_loc)
            parts["nll"].append(-annealer.forward_bound(x))
            with torch.no_grad():
                z = annealer.prior.sample(torch.Size((len(x),)))
                own = vae.sample(z, x="sample")
            parts["lower"].append(annealer.forward_bound(own))
            parts["upper"].append(annealer.backward_bound(own, z))
    values = {name: torch.cat(each) for name, each in parts.items()}
    values["gap"] = values["upper"] - values["lower"]
    if samples:
        values["nll_importance"] = -bounds(vae, images[:count], samples, seed).log_px
    scores: Metrics = {"annealing/steps": steps, "annealing/images": len(values["nll"])}
    for name, each in values.items():
        scores[f"annealing/{name}"], scores[f"annealing/{name}_error"] = mean_and_error(each)
    return scores
