"""LitVAE: the steps of training and evaluation around a VAE and an objective, for Lightning's trainer."""

import math
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vae.errors import InputError, RunFailed
from vae.files import FORMAT
from vae.model import VAE
from vae.noise import RepeatedNoise, StepSeeds, derive, fixed_noise, seed_generators, shared_noise
from vae.objectives import Objective, Terms, terms_of
from vae.training.meters import Meter

FIRST_STEPS = 5  # whose losses checkpoints keep, so that `vae verify` can repeat them
LOOK_EVERY = 50  # steps; to take the norm of all gradients in each would cost 1 % of the time, to wait for a GPU more


Batch = Tensor | Sequence[Tensor]


def images_and_labels(batch: Batch) -> Sequence[Tensor]:
    """Images (B, C, H, W) and, if the batch has them, labels (B,); raises InputError for another kind of batch."""
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, tuple | list) and len(batch) in (1, 2) and all(isinstance(part, Tensor) for part in batch):
        return batch
    raise InputError(
        f"a batch of type {type(batch).__name__}: LitVAE takes images (B, C, H, W) or pairs (images, labels); "
        "give a DataLoader whose data set returns these"
    )


class LitVAE(LightningModule):
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
        self.last_finite = (math.nan, -1)  # loss, step
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

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, *y = images_and_labels(batch)  # (B, C, H, W) in [0, 1], (B,)
        step, rank, ranks = self.global_step, self.global_rank, self.world_size
        seed_generators(self.step_seeds(rank, step, batch_idx, self.batches_a_step), self.device)
        with shared_noise(self.seed, step, batch_idx, rank, ranks, self.device):
            terms = terms_of(self.objective, self.vae, x, step, *y)
        if terms.p is not None:
            self.vae.likelihood.after_step(terms.p)
        if step < FIRST_STEPS:
            self.first_losses.append(terms.loss.detach())
        if self.device.type == "cpu" or step % LOOK_EVERY == 0:  # reading an accelerator's loss waits for it
            self.require_finite(terms, step)
        self.takes_grad_norm = step % LOOK_EVERY == 0 or batch_idx < self.batches_a_step
        self.meters["train"].add(terms)
        return terms.loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The first loader is `dev`, a second one `train_eval`; raises InputError for a third."""
        if dataloader_idx > 1:
            raise InputError(
                f"{dataloader_idx + 1} validation loaders: LitVAE takes one of dev images and, at most, one of "
                "training images to compare them with; evaluate other sets with trainer.test"
            )
        self._evaluate(("dev", "train_eval")[dataloader_idx], batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, split: str, batch: Batch, batch_idx: int) -> None:
        x, *y = images_and_labels(batch)
        if batch_idx == 0:
            self.meters[split] = Meter()
            if split not in self.noise:
                self.noise[split] = RepeatedNoise(derive(self.seed, f"evaluation {split}"), self.device)
            self.noise[split].start()
        with fixed_noise(self.noise[split]):
            self.meters[split].add(terms_of(self.objective, self.vae, x, self.global_step, *y))

    def on_validation_epoch_end(self) -> None:
        """Logs training's means too: validation closes the epoch, and checkpoints and pictures read them afterwards."""
        metrics = self.means("dev")
        if self.meters["train_eval"].sums is not None:
            metrics["train_eval/loss"] = self.means("train_eval")["train_eval/loss"]
        # the epoch's last step may have broken the weights behind a finite loss, and no checkpoint may hold them
        self.require_all_finite({f"{k} = {v}": math.isfinite(v) for k, v in metrics.items() if k.startswith("dev/")})
        self._log_means(metrics | self._training_means())

    def on_train_epoch_end(self) -> None:
        self._log_means(self._training_means())  # where no validation has closed the epoch

    def _training_means(self) -> dict[str, float]:
        """Of the steps since the last call."""
        train, norms, metrics = self.meters["train"], self.grad_norms, dict[str, float]()
        if (totals := train.totals) is not None:
            train.totals = self.sum_over_ranks(totals)
            metrics = self.means("train") | {"lr": self._lr()}
        if norms:
            metrics["train/grad_norm"] = torch.stack([norm.cpu() for norm in norms]).mean().item()
        self.meters["train"], self.grad_norms = Meter(), []
        return metrics

    def _log_means(self, metrics: dict[str, float]) -> None:
        self.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()})

    def on_fit_end(self) -> None:
        self.noise = {}  # 60 MB for the report's model, and no validation comes after

    def on_test_epoch_end(self) -> None:
        self._log_means(self.means("test"))

    def means(self, split: str) -> dict[str, float]:
        return self.meters[split].means(split, self.vae.likelihood.normalised)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.takes_grad_norm:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norm = self.unscaled(torch.nn.utils.get_total_norm(gradients).detach(), optimizer)
            if self.scaler is None or norm.isfinite():  # a scaler leaves out a step whose gradients overflowed
                self.grad_norms.append(norm)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips a fused optimizer's gradients under bf16 too: Lightning refuses, though no scaler forbids it."""
        if not gradient_clip_val:
            return
        if self.scaler is None and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # --- what is not finite -------------------------------------------------------------------------------------------

    def require_finite(self, terms: Terms, step: int) -> None:
        """Raises RunFailed, which names the terms, before any weight takes in a loss that is not finite."""
        if math.isfinite(loss := terms.loss.item()):
            self.last_finite = (loss, step)
            return
        values = {"reconstruction": -terms.log_px.mean().item(), "kl": terms.kl.sum(-1).mean().item()}
        bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        parts = " and ".join(bad) or "the weighted sum"
        raise self.failure(f"the loss is {loss} at step {step} (epoch {self.current_epoch + 1}): {parts}")

    def require_all_finite(self, finite: dict[str, bool]) -> None:
        """Raises RunFailed for the first name that is not: weights may have diverged behind a finite loss."""
        if bad := [name for name, good in finite.items() if not good]:
            raise self.failure(f"{bad[0]} after step {self.global_step - 1} (epoch {self.current_epoch + 1})")

    def failure(self, what: str) -> RunFailed:
        """The one message of every run that diverges."""
        loss, step = self.last_finite
        last = f"last finite loss {loss:.6g} at step {step}" if step >= 0 else "no step before it was finite"
        lr = f"={self._lr():g}" if self.trainer.optimizers else ""
        return RunFailed(
            f"{what} is not finite; {last}; lower optimizer.lr{lr} or set trainer.gradient_clip_val=1; "
            "the last good checkpoint is kept"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning notes the name of each hook; nn.Module's search for parameters would cost 0.1 ms per step."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # --- the trainer, and the answers of a single process where there is none -----------------------------------------

    @property
    def world_size(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size

    @property
    def batches_a_step(self) -> int:
        return 1 if self._trainer is None else self.trainer.accumulate_grad_batches

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        return None if self._trainer is None else getattr(self.trainer.precision_plugin, "scaler", None)

    def unscaled(self, norm: Tensor, optimizer: Optimizer) -> Tensor:
        """The norm of gradients without the loss's scale, which a fused optimizer removes only within its step."""
        scaled = self.scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        return norm / self.scaler.get_scale() if self.scaler is not None and scaled else norm

    def sum_over_ranks(self, sums: Tensor) -> Tensor:
        """On the CPU, as the sums of one process are."""
        if self.world_size == 1:
            return sums
        strategy = self.trainer.strategy
        total: Any = strategy.reduce(sums.to(strategy.root_device, copy=True), reduce_op="sum")
        return total.cpu()

    def _lr(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds the epoch's sums so far: a run resumed in the middle of an epoch reports all of it."""
        self.require_all_finite({f"vae.{k}": bool(v.isfinite().all()) for k, v in self.vae.state_dict().items()})
        train = self.meters["train"]
        totals = train.totals
        checkpoint["vae"] = {
            "format": FORMAT,
            "settings": self.settings,
            "image_shape": list(self.vae.image_shape),
            "data": self.data_facts,
            "sums": None if totals is None else self.sum_over_ranks(totals),
            "beta": train.beta,
            "grad_norms": [g.cpu() for g in self.grad_norms],
            "last_finite": list(self.last_finite),
            "first_losses": [loss.cpu() for loss in self.first_losses] if self.world_size == 1 else [],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["vae"]
        train = self.meters["train"] = Meter()
        if state["sums"] is not None:  # the sums of all ranks, which rank 0 alone takes over
            train.totals = state["sums"] * (self.global_rank == 0)
        train.beta = state["beta"]
        self.grad_norms = list(state["grad_norms"])
        self.last_finite = tuple(state["last_finite"])
        self.first_losses = list(state["first_losses"])
