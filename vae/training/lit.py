"""LitVAE: the steps of training and evaluation around a VAE and an objective, for Lightning's trainer."""

import math
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vae.files import FORMAT
from vae.model import VAE
from vae.noise import RepeatedNoise, StepSeeds, derive, fixed_noise, seed_generators, shared_noise
from vae.objectives import Objective, terms_of
from vae.training.finiteness import NonFiniteWatch
from vae.training.lightning_insides import BaseModule
from vae.training.meters import Meter

FIRST_STEPS = 5  # whose losses checkpoints keep, so that `vae verify` can repeat them
GRAD_NORM_EVERY = 50  # steps; taking the norm of all gradients in each step would cost a hundredth of the step


class LitVAE(BaseModule):
    """`objective(vae, x, step[, y]) -> Terms`; `optimizer` and `scheduler` are torch's own, given as partials.

    The noise of a training step depends on (seed, rank, step, batch) alone, that of an evaluation on (seed, split,
    place of the image) alone. So a resumed run repeats an undisturbed one to the bit.
    """

    def __init__(
        self,
        vae: VAE,
        objective: Objective,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None = None,
        seed: int = 0,
        settings: dict[str, Any] | None = None,
        monitor: str = "dev/loss",
        data_facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.vae, self.objective, self.seed = vae, objective, seed
        self.optimizer, self.scheduler = optimizer, scheduler
        self.settings, self.monitor = settings or {}, monitor
        self.data_facts = data_facts or {}  # what a checkpoint keeps of the data, plain
        self.meters = {split: Meter() for split in ("train", "dev", "train_eval", "test")}
        self.noise: dict[str, RepeatedNoise] = {}
        self.step_seeds = StepSeeds(seed)
        self.grad_norms: list[Tensor] = []
        self.takes_grad_norm = False  # in this step
        self.watch = NonFiniteWatch()
        self.first_losses: list[Tensor] = []

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        by_step = "steps_per_epoch" in signature(self.scheduler).parameters
        steps = {}
        if by_step:
            steps["steps_per_epoch"] = int(self.trainer.estimated_stepping_batches) // (self.trainer.max_epochs or 1)
        schedule = {"scheduler": self.scheduler(optimizer, **steps), "interval": "step" if by_step else "epoch"}
        if isinstance(schedule["scheduler"], ReduceLROnPlateau):
            schedule["monitor"] = self.monitor
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x = batch[0]  # (B, C, H, W) in [0, 1]
        step, rank, ranks = self.global_step, self.global_rank, self.world_size
        seed_generators(self.step_seeds(rank, step, batch_idx, self.batches_a_step), self.device)
        with shared_noise(self.seed, step, batch_idx, rank, ranks, self.device):
            terms = terms_of(self.objective, self.vae, x, step, *batch[1:])
        if terms.p is not None:
            self.vae.likelihood.after_step(terms.p)
        if step < FIRST_STEPS:
            self.first_losses.append(terms.loss.detach())
        self.watch.add(terms, step)
        if self.device.type == "cpu" or step % GRAD_NORM_EVERY == 0:
            self.check_finite()
        self.takes_grad_norm = step % GRAD_NORM_EVERY == 0 or batch_idx < self.batches_a_step
        self.meters["train"].add(terms)
        return terms.loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(("dev", "train_eval")[dataloader_idx], batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, split: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if batch_idx == 0:
            self.meters[split] = Meter()
            if split not in self.noise:
                self.noise[split] = RepeatedNoise(derive(self.seed, f"evaluation {split}"), self.device)
            self.noise[split].start()
        with fixed_noise(self.noise[split]):
            self.meters[split].add(terms_of(self.objective, self.vae, batch[0], self.global_step, *batch[1:]))

    def on_validation_epoch_end(self) -> None:
        """Logs training's means too: validation closes the epoch, and checkpoints and pictures read them afterwards."""
        metrics = self.means("dev") | {"train_eval/loss": self.means("train_eval")["train_eval/loss"]}
        # the epoch's last step may have broken the weights behind a finite loss, and no checkpoint may hold them
        self.check_finite({f"{k} = {v}": math.isfinite(v) for k, v in metrics.items() if k.startswith("dev/")})
        train = self.meters["train"]
        if (totals := train.totals) is not None:
            train.totals = self.sum_over_ranks(totals)
            metrics |= self.means("train") | {"lr": self._lr()}
        if self.grad_norms:
            metrics["train/grad_norm"] = torch.stack(self.grad_norms).mean().item()
        self.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()})
        self.meters["train"], self.grad_norms = Meter(), []

    def on_fit_end(self) -> None:
        self.noise = {}  # 60 MB for the report's model, and no validation comes after

    def on_test_epoch_end(self) -> None:
        self.log_dict({name: torch.tensor(v, dtype=torch.float64) for name, v in self.means("test").items()})

    def means(self, split: str) -> dict[str, float]:
        return self.meters[split].means(split, self.vae.likelihood.normalised)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.watch.protect(self.parameters())
        if self.takes_grad_norm:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norm = self.unscaled(torch.nn.utils.get_total_norm(gradients).detach(), optimizer)
            if self.scaler is None or norm.isfinite():  # a scaler leaves out a step whose gradients overflowed
                self.grad_norms.append(norm)

    def check_finite(self, finite: dict[str, bool] | None = None) -> None:
        """Raises RunFailed if a training step met a loss that was not finite, or for the first name that is not."""
        if self.watch.failed():  # all that most steps ask
            raise self.watch.failure(self.watch.describe(self.current_epoch + 1), self._lr())
        if bad := [name for name, good in (finite or {}).items() if not good]:
            where = f"after step {self.global_step - 1} (epoch {self.current_epoch + 1})"
            raise self.watch.failure(f"{bad[0]} {where}", self._lr())

    def _lr(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds the epoch's sums so far: a run resumed in the middle of an epoch reports all of it."""
        self.check_finite({f"vae.{k}": bool(v.isfinite().all()) for k, v in self.vae.state_dict().items()})
        train = self.meters["train"]
        totals = train.totals
        checkpoint["vae"] = {
            "format": FORMAT,
            "settings": self.settings,
            "image_shape": list(self.vae.image_shape),
            "data": self.data_facts,
            "sums": None if totals is None else self.sum_over_ranks(totals).cpu(),
            "beta": train.beta,
            "grad_norms": [g.cpu() for g in self.grad_norms],
            "last_finite": list(self.watch.last_finite),
            "first_losses": [loss.cpu() for loss in self.first_losses] if self.world_size == 1 else [],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["vae"]
        train = self.meters["train"] = Meter()
        if state["sums"] is not None:  # the sums of all ranks, which rank 0 alone takes over
            train.totals = state["sums"].to(self.root_device) * (self.global_rank == 0)
        train.beta = state["beta"]
        self.grad_norms = [g.to(self.root_device) for g in state["grad_norms"]]
        self.watch.last_finite = tuple(state["last_finite"])
        self.first_losses = list(state.get("first_losses", []))
