"""No float64 on a device that has none: what is computed from a model's tensors stays in float32 until `.cpu()`.

There is no such device here. A dispatch mode follows every tensor that is computed from the model's parameters and
refuses float64 among them; `Tensor.cpu` gives a copy that it no longer follows.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from conftest import settings_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from vae.data.batches import Images
from vae.evaluation import draws, estimates, exact
from vae.evaluation.annealing import annealed_metrics
from vae.evaluation.explorer import explorer
from vae.evaluation.feature_net import FeatureNet, embed
from vae.likelihoods import ContinuousBernoulliHead, DiscretizedLogisticHead, GaussianHead, Likelihood
from vae.model import VAE
from vae.networks import MLPDecoder, MLPEncoder
from vae.objectives import ELBO, IWAE, MMD, TotalCorrelation
from vae.posteriors import IAF, Diagonal, Full
from vae.priors import Flow, GaussianMixture, Standard, Vamp
from vae.run.build import build

SHAPE, D = (1, 4, 3), 2


class Device(TorchDispatchMode):
    """Follows what is computed from `tensors`."""

    def __init__(self, tensors: Iterator[Tensor]) -> None:
        super().__init__()
        self.here = WeakIdKeyDictionary(dict.fromkeys(tensors, True))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x in self.here for x in given):
            for result in tree_leaves(out):
                if isinstance(result, Tensor):
                    assert result.dtype != torch.float64, f"float64 on the device: {func}"
                    self.here[result] = True
        return out


@pytest.fixture(autouse=True)
def without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def cpu(x: Tensor) -> Tensor:
        with _disable_current_modes():
            return x.clone()

    monkeypatch.setattr(Tensor, "cpu", cpu)
    monkeypatch.setattr("vae.distributions.has_float64", lambda device: False)
    torch.manual_seed(0)


def on(vae: torch.nn.Module) -> Device:
    return Device(iter((*vae.parameters(), *vae.buffers())))


def make(prior: Any = Standard, posterior: Any = Diagonal, likelihood: Likelihood | None = None) -> VAE:
    halves = partial(MLPEncoder, hidden=(5,)), partial(MLPDecoder, hidden=(6,))
    return VAE(*halves, likelihood or GaussianHead(), D, SHAPE, prior, posterior)


IMAGES = Images(torch.randint(256, (7, *SHAPE), dtype=torch.uint8), torch.arange(7) % 3)
PARTS = {
    "standard": make,
    "mixture": partial(make, partial(GaussianMixture, components=3)),
    "vamp of full": partial(make, partial(Vamp, inputs=4), Full),
    "flow and iaf": partial(make, partial(Flow, layers=2, hidden=4), partial(IAF, layers=1, hidden=4)),
    "continuous bernoulli": partial(make, likelihood=ContinuousBernoulliHead()),
    "discretized logistic": partial(make, likelihood=DiscretizedLogisticHead()),
}
every_part = pytest.mark.parametrize("build_vae", PARTS.values(), ids=PARTS)


def test_the_mode_sees_float64_on_the_device_and_none_beside_it() -> None:
    vae = make()
    with on(vae), torch.no_grad():
        z = vae.encode(IMAGES.images / 255).mean
        z.cpu().double().sum()
        with pytest.raises(AssertionError, match="float64 on the device"):
            z.double()
        with pytest.raises(AssertionError, match="float64 on the device"):
            torch.empty(7, D, dtype=torch.float64).copy_(z)


@every_part
@pytest.mark.parametrize("objective", [ELBO(2), IWAE(2), TotalCorrelation(), MMD()], ids=lambda o: type(o).__name__)
def test_a_training_step(build_vae: Any, objective: Any) -> None:
    vae = build_vae()
    if isinstance(objective, TotalCorrelation) and not isinstance(vae.posterior_head, Diagonal):
        return  # which needs a density of each latent
    with on(vae):
        terms = objective(vae, IMAGES.images / 255, 0)
        terms.loss.backward()
        vae.likelihood.after_step(terms.p)


@every_part
def test_an_evaluation(build_vae: Any) -> None:
    vae = build_vae().eval()
    with on(vae):
        for objective in (ELBO(), MMD()):
            estimates.objective_metrics(vae, objective, IMAGES, "dev", 0, 0)
        estimates.likelihood_metrics(vae, IMAGES, 3, 0, "test")
        estimates.latent_metrics(vae, IMAGES, IMAGES, "test", probes=False)
        annealed_metrics(vae, IMAGES.images, 2, 2, 0, 2)
        images = draws.decode(vae, draws.prior_latents(vae, 3, 0), "sample")
        draws.reconstruct(vae, IMAGES)
        draws.traversal(vae, [1, 0], 3)
        draws.encode(vae, IMAGES)
        draws.posterior_latents(vae, IMAGES, 3, 0)
    assert images.shape == (3, *SHAPE)


def test_quadrature_the_page_and_the_features_of_images() -> None:
    vae, net = make().eval(), FeatureNet((1, 28, 28), 3)
    with on(vae):
        exact.inference_gaps(vae, IMAGES.images[:2] / 255)
        explorer(vae, IMAGES.images, None, 0, False)
    with on(net):
        embed(net, torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8))


def test_a_step_and_a_validation_of_a_run() -> None:
    lit, data = build(settings_of("data=digits", "threads=1"))
    x, y = data.train[torch.arange(8)]
    with on(lit.vae):
        lit.objective(lit.vae, x / 255, 0).loss.backward()
        lit.validation_step((x / 255, y), 0)
        lit.means("dev")
