"""A training step: what it draws, what it sums up, what it refuses; an evaluation: the same figures in any pieces."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, settings_of
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vae.errors import InputError, RunFailed
from vae.evaluation import estimates
from vae.likelihoods import GaussianHead, Likelihood, SquaredErrorHead
from vae.model import VAE
from vae.networks import MLPDecoder, MLPEncoder
from vae.noise import seed_generators
from vae.objectives import ELBO, IWAE, Terms
from vae.pixels import as_floats
from vae.run.build import build
from vae.run.load import load_run
from vae.training.lit import LitVAE
from vae.training.meters import Meter

# Lightning's opinions on the number of workers and of steps between log lines
pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")

SHAPE, LATENTS = (1, 4, 5), 3
SIZES = (7, 7, 2)  # of the batches: 16 images, and a last one that is smaller


def levels(count: int = sum(SIZES)) -> Tensor:
    return torch.randint(256, (count, *SHAPE), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def images(count: int = sum(SIZES)) -> Tensor:
    return as_floats(levels(count))


def lit_vae(likelihood: Likelihood | None = None, objective: Any = None, seed: int = 0, **optimizer: Any) -> LitVAE:
    """A VAE whose weights are always the same, with SGD."""
    torch.manual_seed(5)
    head = likelihood or GaussianHead(0.5)
    vae = VAE(
        encoder=lambda **shapes: MLPEncoder(hidden=[6], dropout=0.4, **shapes),
        decoder=lambda **shapes: MLPDecoder(hidden=[5], **shapes),
        likelihood=head,
        latent_dim=LATENTS,
        image_shape=SHAPE,
    )
    options = {"lr": 1e-3} | optimizer
    return LitVAE(vae, objective or ELBO(), lambda parameters: torch.optim.SGD(parameters, **options), seed=seed)


def loader(x: Tensor, size: int = SIZES[0]) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=size)


class Seen(Callback):
    """The loss, the batch and the weights of every step, the last from before it."""

    def __init__(self) -> None:
        self.per_image_loss: list[Tensor] = []
        self.batches: list[Any] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        torch.rand(len(self.batches))  # somebody else draws from the global generator, ever more

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any) -> None:
        self.per_image_loss.append(outputs["loss"])


def build_trainer(seen: Seen | None = None, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0}
    return Trainer(
        **defaults | options,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[seen] if seen else [],
    )


def fit(lit: LitVAE, x: Tensor, seen: Seen | None = None, eval_size: int = 6, **options: Any) -> Trainer:
    trainer = build_trainer(seen, **options)
    trainer.fit(lit, loader(x), [loader(x[:10], eval_size), loader(x, eval_size)])
    return trainer


def validated(lit: LitVAE, x: Tensor, size: int) -> dict[str, float]:
    trainer = build_trainer()
    trainer.validate(lit, [loader(x[:10], size), loader(x, size)], verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def terms(count: int, beta: float = 1.0) -> Terms:
    g = torch.Generator().manual_seed(count)
    log_px, kl = torch.randn(count, generator=g), torch.rand(count, LATENTS, generator=g)
    return Terms(loss=beta * kl.sum(-1).mean() - log_px.mean(), log_px=log_px, kl=kl, beta=beta)


# --- sums -------------------------------------------------------------------------------------------------------------


def test_meter_weighs_images_not_batches() -> None:
    batches = [terms(count) for count in SIZES]
    meter = Meter()
    for batch in batches:
        meter.add(batch)
    log_px, kl = torch.cat([b.log_px for b in batches]).double(), torch.cat([b.kl for b in batches]).double()
    expected: dict[str, Any] = {
        "dev/loss": (kl.sum(-1) - log_px).mean(),
        "dev/reconstruction": -log_px.mean(),
        "dev/kl": kl.sum(-1).mean(),
        "dev/elbo": (log_px - kl.sum(-1)).mean(),
        "dev/neg_elbo": (kl.sum(-1) - log_px).mean(),
        "dev/beta": 1.0,
    }
    assert meter.means("dev", normalised=True) == pytest.approx({k: float(v) for k, v in expected.items()})
    torch.testing.assert_close(meter.kl_per_latent(), kl.mean(0))
    assert meter.means("dev", normalised=True)["dev/loss"] != pytest.approx(
        sum(b.loss.item() for b in batches) / len(batches), rel=1e-3
    )


def test_elbo_is_absent_without_normalisation_and_never_weighted() -> None:
    meter = Meter()
    meter.add(terms(7, beta=7.0))
    assert "dev/elbo" not in meter.means("dev", normalised=False)
    means = meter.means("dev", normalised=True)
    assert means["dev/elbo"] == -means["dev/reconstruction"] - means["dev/kl"]
    assert means["dev/loss"] == pytest.approx(means["dev/reconstruction"] + 7 * means["dev/kl"])
    assert means["dev/beta"] == 7


@pytest.mark.parametrize("objective", [ELBO(beta=7.0), ELBO(free_bits=5.0), IWAE(samples=4)])
def test_logged_elbo_is_that_of_the_unweighted_objective(objective: Any) -> None:
    """What is optimised changes, and the ELBO of given weights does not."""
    x = images()
    logged = validated(lit_vae(objective=objective), x, 6)
    lit = lit_vae()
    plain = estimates.objective_metrics(lit.eval().vae, ELBO(), levels()[:10], "dev", seed=0, step=0)
    assert logged["dev/kl"] == pytest.approx(plain["dev/kl"])
    assert logged["dev/loss"] != pytest.approx(plain["dev/loss"], rel=1e-3)
    assert logged["dev/elbo"] == -logged["dev/reconstruction"] - logged["dev/kl"]
    if isinstance(objective, ELBO):
        assert logged["dev/elbo"] == pytest.approx(plain["dev/elbo"])


def test_squared_error_logs_no_elbo() -> None:
    logged = fit(lit_vae(SquaredErrorHead()), images()).callback_metrics
    assert not [name for name in logged if "elbo" in name]
    assert {"dev/loss", "dev/reconstruction", "dev/kl", "dev/beta", "train_eval/loss", "train/loss"} <= set(logged)


def test_train_loss_is_the_mean_over_images() -> None:
    seen = Seen()
    logged = fit(lit_vae(), images(), seen).callback_metrics
    assert [len(x) for x, _ in seen.batches] == list(SIZES)
    expected = sum(loss.item() * size for loss, size in zip(seen.per_image_loss, SIZES, strict=True)) / sum(SIZES)
    assert logged["train/loss"].item() == pytest.approx(expected)
    assert logged["train/loss"].dtype == torch.float64


def test_epochs_are_summed_up_apart() -> None:
    seen = Seen()
    logged = fit(lit_vae(), images(), seen, max_epochs=2).callback_metrics
    expected = sum(loss.item() * size for loss, size in zip(seen.per_image_loss[3:], SIZES, strict=True)) / sum(SIZES)
    assert logged["train/loss"].item() == pytest.approx(expected)


@pytest.mark.parametrize(("epochs", "first"), [(1, 0), (2, 3)])
def test_gradient_norm_is_that_of_the_epoch(epochs: int, first: int) -> None:
    """Of its first step, computed by hand from its batch and weights; never that of an epoch before."""
    seen = Seen()
    logged = fit(lit_vae(), images(), seen, max_epochs=epochs).callback_metrics
    lit = lit_vae()
    lit.load_state_dict(seen.weights[first])
    seed_generators(lit.step_seeds(0, first, 0, 1), lit.device)
    lit.objective(lit.train().vae, seen.batches[first][0], first).loss.backward()
    squares = [p.grad.square().sum() for p in lit.parameters() if p.grad is not None]
    assert logged["train/grad_norm"].item() == pytest.approx(torch.stack(squares).sum().sqrt().item())


@pytest.mark.parametrize("fused", [True, False])
def test_the_gradient_norm_is_without_a_scalers_scale(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused optimizer takes the scale off in its step, after this hook; for others Lightning has, before it."""
    lit = lit_vae()
    monkeypatch.setattr(LitVAE, "scaler", torch.amp.GradScaler("cpu", init_scale=8.0))
    optimizer = torch.optim.Adam(lit.parameters(), fused=fused)
    lit.takes_grad_norm = True
    for factor in (1.0, math.inf):  # an overflow, whose step a scaler leaves out
        for p in lit.parameters():
            p.grad = torch.full_like(p, factor * (8.0 if fused else 1.0))
        lit.on_before_optimizer_step(optimizer)
    (norm,) = lit.grad_norms
    assert norm.item() == pytest.approx(math.sqrt(sum(p.numel() for p in lit.parameters())), rel=1e-5)


# --- noise ------------------------------------------------------------------------------------------------------------


def at_step(lit: LitVAE, step: int) -> LitVAE:
    """As if so many steps had been taken."""
    trainer = build_trainer()
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
    trainer.strategy._lightning_module = lit
    lit.trainer = trainer
    object.__setattr__(lit, "held", trainer)  # LightningModule keeps no more than a weak reference
    assert lit.global_step == step
    return lit


def test_a_step_is_a_function_of_seed_and_step() -> None:
    """Step 5 alone, with its weights put back, has the loss it had among the others; dropout and noise included."""
    seen = Seen()
    fit(lit_vae(), images(), seen, max_epochs=2)
    for seed, step, batch_idx, same in [(0, 5, 2, True), (1, 5, 2, False), (0, 4, 2, False)]:
        lit = lit_vae(seed=seed)
        lit.load_state_dict(seen.weights[5])
        torch.manual_seed(step + seed)
        loss = at_step(lit, step).train().training_step(seen.batches[5], batch_idx)
        assert (loss.item() == seen.per_image_loss[5].item()) is same


def test_two_runs_draw_alike_whatever_the_global_generator_says() -> None:
    runs_ = []
    for state in (0, 99):
        lit, seen = lit_vae(), Seen()
        torch.manual_seed(state)
        fit(lit, images(), seen, max_epochs=2)
        runs_.append((torch.stack(seen.per_image_loss), lit.state_dict()))
    (first, weights), (second, others) = runs_
    assert torch.equal(first, second)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert len(set(first.tolist())) == len(first)


def test_accumulated_batches_draw_their_own_noise() -> None:
    """One step, two batches of the same images: the losses differ by their noise alone."""
    x = images(7)
    seen = Seen()
    fit(lit_vae(), torch.cat([x, x]), seen, accumulate_grad_batches=2)
    assert all(torch.equal(seen.weights[0][name], value) for name, value in seen.weights[1].items())
    assert seen.per_image_loss[0] != seen.per_image_loss[1]


# --- evaluation -------------------------------------------------------------------------------------------------------

OBJECTIVES = {
    "elbo": ELBO(),
    "several samples": ELBO(samples=3),
    "beta": ELBO(beta=7.0),
    "free bits": ELBO(free_bits=0.1),
    "iwae": IWAE(samples=4),
}


@pytest.mark.parametrize("likelihood", [GaussianHead(0.5), GaussianHead("optimal"), SquaredErrorHead()], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_figures_do_not_change_with_the_size_of_a_batch(likelihood: Likelihood, objective: str) -> None:
    x, found = images(), []
    for size in (1, 6, 16):
        found.append(validated(lit_vae(likelihood, OBJECTIVES[objective]), x, size))
    assert {"dev/loss", "dev/reconstruction", "dev/kl", "train_eval/loss"} <= set(found[0])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_evaluation_at_the_end_repeats_validation(objective: str) -> None:
    """The figures of metrics.json are those of the epoch that the checkpoint is from."""
    lit = lit_vae(SquaredErrorHead(), OBJECTIVES[objective])
    trainer = fit(lit, images(), eval_size=4)
    vae, step = lit.eval().vae, trainer.global_step
    figures = estimates.objective_metrics(vae, lit.objective, levels()[:10], "dev", lit.seed, step, batch=3)
    logged = trainer.callback_metrics
    for name in ("loss", "reconstruction", "kl", "beta"):
        assert figures[f"dev/{name}"] == pytest.approx(logged[f"dev/{name}"].item(), rel=1e-5), name


def test_dropout_is_off_in_evaluation_and_on_in_training() -> None:
    lit, x = lit_vae(), images()
    logged = fit(lit, x)
    assert lit.training
    first, second = (lit.eval().vae.encode(x).mean for _ in range(2))
    assert torch.equal(first, second)
    first, second = (lit.train().vae.encode(x).mean for _ in range(2))
    assert not torch.equal(first, second)
    assert logged.callback_metrics["train_eval/loss"] != logged.callback_metrics["train/loss"]


@pytest.mark.parametrize("change", [["data.eval_batch_size=170"], ["data.num_workers=1"]], ids=str)
def test_epoch_does_not_change_with_how_images_come(change: list[str]) -> None:
    base = (*SMALL, "data.eval_batch_size=1000", "data.dev_size=250", "likelihood=gaussian")
    found = []
    for overrides in ([], change):
        lit, data = build(settings_of(*base, *overrides))
        trainer = build_trainer(limit_train_batches=3)
        trainer.fit(lit, datamodule=data)
        found.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[1]["train/loss"] == found[0]["train/loss"]


# --- what is not finite -----------------------------------------------------------------------------------------------


def infinite_kl(lit: LitVAE) -> None:
    """Means of 1e25, whose square overflows; their images are finite."""
    encoder: Any = lit.vae.encoder
    encoder.out.bias.data[:LATENTS] = 1e25


def infinite_reconstruction(lit: LitVAE) -> None:
    decoder: Any = lit.vae.decoder
    decoder.out.bias.data[0] = 1e25


@pytest.mark.parametrize(("damage", "term"), [(infinite_kl, "kl = inf"), (infinite_reconstruction, "reconstruction")])
def test_loss_that_is_not_finite_stops_the_run(damage: Any, term: str) -> None:
    lit = lit_vae(SquaredErrorHead("mean", "linear" if term == "reconstruction" else "sigmoid"))
    damage(lit)
    before = {name: value.clone() for name, value in lit.state_dict().items()}
    with pytest.raises(RunFailed) as caught:
        fit(lit, images())
    line = str(caught.value)
    assert "\n" not in line
    assert term in line
    assert ("kl" in line) is (term == "kl = inf")
    assert "at step 0 (epoch 1)" in line
    assert "no step before it was finite" in line
    assert "optimizer.lr=0.001" in line
    assert all(torch.equal(value, before[name]) for name, value in lit.state_dict().items())


def test_last_finite_loss_is_named_and_no_weight_takes_the_other_in() -> None:
    def broken(vae: VAE, x: Tensor, step: int) -> Terms:
        terms, factor = ELBO()(vae, x, step), math.nan if step == 2 else 1.0
        return replace(terms, loss=terms.loss * factor, log_px=terms.log_px * factor, kl=terms.kl * factor)

    x, seen, lit = images(), Seen(), lit_vae(objective=broken)
    with pytest.raises(RunFailed) as caught:
        fit(lit, x, seen)
    line = str(caught.value)
    assert "the loss is nan at step 2 (epoch 1): reconstruction = nan and kl = nan is not finite" in line
    assert f"last finite loss {seen.per_image_loss[1].item():.6g} at step 1" in line
    assert all(torch.equal(value, seen.weights[2][name]) for name, value in lit.state_dict().items())


def test_weights_that_diverge_in_the_last_step_end_no_run_as_finished() -> None:
    """No training step is left to meet them: validation does."""
    with pytest.raises(RunFailed) as caught:
        fit(lit_vae(SquaredErrorHead("mean", "linear"), lr=1e30), images(7))
    assert "dev/loss" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_sums_of_an_epoch_travel_in_a_checkpoint() -> None:
    lit, meter = lit_vae(), Meter()
    for count in SIZES:
        lit.meters["train"].add(terms(count))
        meter.add(terms(count))
    lit.grad_norms, lit.last_finite = [torch.tensor(2.5)], (3.5, 8)
    checkpoint: dict[str, Any] = {}
    lit.on_save_checkpoint(checkpoint)
    other = lit_vae()
    other.on_load_checkpoint(checkpoint)
    assert other.means("train") == meter.means("train", normalised=True)
    assert (other.grad_norms, other.last_finite) == ([torch.tensor(2.5)], (3.5, 8))


def test_plateau_scheduler_watches_dev_loss() -> None:
    lit = lit_vae()
    lit.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau
    assert lit.configure_optimizers()["lr_scheduler"]["monitor"] == "dev/loss"
    lit.scheduler = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2)
    found = lit.configure_optimizers()["lr_scheduler"]
    assert "monitor" not in found
    assert found["interval"] == "epoch"


# --- Lightning's own Trainer ------------------------------------------------------------------------------------------


def own_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"max_epochs": 2, "logger": False, "enable_progress_bar": False}
    more = {"enable_model_summary": False, "default_root_dir": folder, "accelerator": "cpu"}
    return Trainer(**defaults | more | options, callbacks=list(callbacks))


@pytest.mark.parametrize("loaders", [0, 1, 2])
def test_lightnings_own_trainer_takes_any_usual_number_of_validation_loaders(loaders: int, tmp_path: Path) -> None:
    x, lit = images(), lit_vae()
    trainer = own_trainer(tmp_path, enable_checkpointing=False)
    trainer.fit(lit, loader(x), [loader(x[:10]), loader(x)][:loaders] or None)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {"train/loss", "lr", "train/grad_norm"} <= logged.keys()
    assert ("dev/loss" in logged, "train_eval/loss" in logged) == (loaders > 0, loaders > 1)
    assert logged["train/neg_elbo"] == pytest.approx(logged["train/loss"])
    if loaders:
        (again,) = own_trainer(tmp_path).validate(lit, loader(x[:10]), verbose=False)
        assert again["dev/loss"] == logged["dev/loss"]


def test_a_third_validation_loader_is_refused(tmp_path: Path) -> None:
    x = images()
    with pytest.raises(InputError, match=r"^3 validation loaders: LitVAE takes one of dev images"):
        own_trainer(tmp_path, num_sanity_val_steps=0).fit(lit_vae(), loader(x), [loader(x), loader(x), loader(x)])


def test_lightnings_own_callbacks_find_the_metrics(tmp_path: Path) -> None:
    """EarlyStopping, ModelCheckpoint, weight averaging and fast_dev_run, with one validation loader."""
    x, lit = images(), lit_vae(lr=0.0)
    stop = EarlyStopping("dev/loss", patience=1)
    best = ModelCheckpoint(tmp_path, "best", "dev/loss")
    trainer = own_trainer(tmp_path, stop, best, max_epochs=9)
    trainer.fit(lit, loader(x), loader(x[:10]))
    assert trainer.current_epoch == 2  # nothing is learnt
    assert best.best_model_score == trainer.callback_metrics["dev/loss"]
    own_trainer(tmp_path, fast_dev_run=True).fit(lit_vae(), loader(x), loader(x))
    own_trainer(tmp_path, StochasticWeightAveraging(1e-3, swa_epoch_start=1)).fit(lit_vae(), loader(x), loader(x))
    with pytest.raises(InputError, match="was trained without a configuration"):
        load_run(best.best_model_path)


class Dicts(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": images(4)[index]}


def test_batches_may_be_bare_images_and_never_dicts(tmp_path: Path) -> None:
    x, losses = images(), []
    for dataset in (TensorDataset(x, torch.zeros(len(x))), TensorDataset(x), Bare(x)):
        trainer = own_trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
        trainer.fit(lit_vae(), DataLoader(dataset, 7))
        losses.append(trainer.callback_metrics["train/loss"].item())
    assert len(set(losses)) == 1
    with pytest.raises(InputError, match=r"^a batch of type dict: LitVAE takes images \(B, C, H, W\) or pairs"):
        own_trainer(tmp_path).fit(lit_vae(), DataLoader(Dicts(), 2))


class Bare(Dataset[Tensor]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index]


# --- a device without float64 -----------------------------------------------------------------------------------------


class WithoutFloat64(TorchDispatchMode):
    """All tensors are on such a device, but those that `.cpu()` has fetched, or that were made from numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.host: dict[int, Tensor] = {}

    def fetch(self, x: Tensor) -> Tensor:
        x = x.detach().clone()
        self.host[id(x)] = x
        return x

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func is torch.ops.aten.lift_fresh.default  # by torch.tensor, from numbers
        on_host = made or all(id(x) in self.host for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        results = func(*args, **kwargs or {})
        for x in tree_leaves(results):
            if isinstance(x, Tensor) and on_host:
                self.host[id(x)] = x
            elif isinstance(x, Tensor) and x.dtype == torch.float64:
                raise TypeError(f"{func}: the device has no float64")
        return results


def test_training_and_validation_need_no_float64_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit(lit_vae(), images(), max_epochs=2).callback_metrics
    device = WithoutFloat64()
    monkeypatch.setattr(Tensor, "cpu", lambda x: device.fetch(x))
    x, lit = images(), lit_vae()
    with device:
        with pytest.raises(TypeError, match="no float64"):
            x.double()
        logged = fit(lit, x, max_epochs=2).callback_metrics
    assert logged == expected
