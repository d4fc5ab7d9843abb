"""LitVAE: the steps of training and evaluation around a VAE and an objective, for Lightning's trainer."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vae.errors import RunFailed
from vae.model import VAE
from vae.noise import RepeatedNoise, SharedNoise, derive, fixed_noise
from vae.objectives import Terms
from vae.training.checkpoints import FORMAT
from vae.training.finiteness import NonFiniteWatch
from vae.training.meters import Meter

GRAD_NORM_EVERY = 50  # steps; a norm of all gradients each step would cost a hundredth of it

SEEDS_AHEAD = 32


class LitVAE(LightningModule):
    """`objective(vae, x, step) -> Terms`; `optimizer` and `scheduler` are torch's own, given as partials.

    All that a training step draws is a function of (seed, rank, step), all that an evaluation draws one of (seed,
    split, place of the image): so a resumed run repeats an undisturbed one to the bit.
    """

    def __init__(
        self,
        vae: VAE,
        objective: Callable[[VAE, Tensor, int], Terms],
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None = None,
        seed: int = 0,
        settings: dict[str, Any] | None = None,
        monitor: str = "dev/loss",
    ) -> None:
        super().__init__()
        self.vae, self.objective, self.seed = vae, objective, seed
        self.optimizer, self.scheduler = optimizer, scheduler
        self.settings, self.monitor = settings or {}, monitor
        self.meters = {split: Meter() for split in ("train", "dev", "train_eval", "test")}
        self.noise: dict[str, RepeatedNoise] = {}
        self.grad_norms: list[Tensor] = []
        self.last_finite = (math.nan, -1)  # loss, step
        self.seeds: dict[tuple[int, int], int] = {}  # by (step, batch of the epoch)
        self.look = False  # whether this step's gradient norm is taken
        self.late = NonFiniteWatch()

    def __setattr__(self, name: str, value: Any) -> None:
        """Notes are made in every step: a string, flag or tuple needs none of nn.Module's questions."""
        if isinstance(value, (str, bool, tuple)):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

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
        step = self.global_step
        self._seed_step(step, batch_idx)
        with self._shared_noise(step, batch_idx):
            terms = self.objective(self.vae, x, step)
        if terms.p is not None:
            self.vae.likelihood.after_step(terms.p)
        self._watch(terms, step)
        self.look = step % GRAD_NORM_EVERY == 0 or batch_idx < self._batches_a_step
        self.meters["train"].add(terms)
        return terms.loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(("dev", "train_eval")[dataloader_idx], batch[0], batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("test", batch[0], batch_idx)

    def _evaluate(self, split: str, x: Tensor, batch_idx: int) -> None:
        if batch_idx == 0:
            self.meters[split] = Meter()
            if split not in self.noise:
                self.noise[split] = RepeatedNoise(derive(self.seed, f"evaluation {split}"), self.device)
            self.noise[split].start()
        with fixed_noise(self.noise[split]):
            self.meters[split].add(self.objective(self.vae, x, self.global_step))

    def on_validation_epoch_end(self) -> None:
        """Training's sums too: validation closes the epoch, and checkpoints and figures want all of it."""
        self.check_finite()
        self._require_finite_dev()
        metrics = self.means("dev") | {"train_eval/loss": self.means("train_eval")["train_eval/loss"]}
        train = self.meters["train"]
        if (totals := train.totals) is not None:
            train.totals = self._over_ranks(totals)
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
        if self.late.bad is not None:
            for p in self.parameters():
                if p.grad is not None:
                    p.grad = torch.where(self.late.broken, 0, p.grad)
        if self.look:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).detach()
            scaler = self._scaler
            if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
                norm = norm / scaler.get_scale()  # a fused optimizer takes the scale off in its step
            if scaler is None or norm.isfinite():  # a step whose gradients overflowed is left out
                self.grad_norms.append(norm)

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        return None if self._trainer is None else getattr(self.trainer.precision_plugin, "scaler", None)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning refuses a fused optimizer under bf16 too, where no scaler forbids to clip its gradients by norm."""
        if not gradient_clip_val:
            return
        if self._scaler is None and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _seed_step(self, step: int, batch_idx: int) -> None:
        seed = self._step_seed(step, batch_idx)
        # not torch.manual_seed, which formats a stack trace for every accelerator that is not there
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    @property
    def _batches_a_step(self) -> int:
        return 1 if self._trainer is None else self.trainer.accumulate_grad_batches

    def _step_seed(self, step: int, batch_idx: int) -> int:
        """Found for many batches at once, since NumPy takes three times as long in the midst of a step."""
        if (step, batch_idx) not in self.seeds:
            each = self._batches_a_step
            ahead = ((step + (batch_idx + i) // each - batch_idx // each, batch_idx + i) for i in range(SEEDS_AHEAD))
            self.seeds = {place: derive(self.seed, "step", self.global_rank, *place) for place in ahead}
        return self.seeds[step, batch_idx]

    def _shared_noise(self, step: int, batch_idx: int) -> AbstractContextManager[None]:
        """Several processes draw z and x for the images that they share as one process would: dropout is their own."""
        if self._trainer is None or self.trainer.world_size == 1:
            return nullcontext()
        seed = derive(self.seed, "step", 0, step, batch_idx)
        return fixed_noise(SharedNoise(seed, self.global_rank, self.trainer.world_size, self.device))

    def _watch(self, terms: Terms, step: int) -> None:
        """Stops before the weights take in a loss that is not finite; an accelerator is only read now and then."""
        if self.device.type != "cpu":
            self.late.add(terms, step)
            if step % GRAD_NORM_EVERY == 0:
                self.check_finite()
            return
        loss = terms.loss.item()
        if not math.isfinite(loss):
            raise RunFailed(self._divergence(terms, step))
        self.last_finite = (loss, step)

    def _require_finite_dev(self) -> None:
        """The last step of an epoch may have broken the weights behind a finite loss: no checkpoint may hold them."""
        bad = [f"{name} = {value}" for name, value in self.means("dev").items() if not math.isfinite(value)]
        if bad:
            value, when = self.last_finite
            raise RunFailed(
                f"after step {self.global_step - 1} (epoch {self.current_epoch}) {bad[0]} is not finite; last finite "
                f"loss {value:.6g} at step {when}; lower optimizer.lr={self._lr():g} or set "
                "trainer.gradient_clip_val=1; the last good checkpoint is kept"
            )

    def check_finite(self) -> None:
        """Raises RunFailed if a step on an accelerator met a loss that was not finite."""
        if self.late.bad is None:
            return
        if bool(self.late.broken):
            raise RunFailed(
                f"in the {GRAD_NORM_EVERY} steps before step {self.global_step} (epoch {self.current_epoch}): "
                f"{self.late.words()}; no weight has taken it in; lower optimizer.lr={self._lr():g} or set "
                "trainer.gradient_clip_val=1; the last good checkpoint is kept"
            )
        assert self.late.last is not None
        loss, step = self.late.last.tolist()
        self.last_finite = (loss, int(step))

    def _divergence(self, terms: Terms, step: int) -> str:
        parts = {"reconstruction": -terms.log_px.mean().item(), "kl": terms.kl.sum(-1).mean().item()}
        bad = [f"{name} = {value}" for name, value in parts.items() if not math.isfinite(value)]
        value, when = self.last_finite
        last = f"last finite loss {value:.6g} at step {when}" if when >= 0 else "no step before it was finite"
        return (
            f"the loss is {terms.loss.item()} at step {step} (epoch {self.current_epoch}): "
            f"{' and '.join(bad) or 'the weighted sum'} is not finite; {last}; lower optimizer.lr={self._lr():g} or "
            "set trainer.gradient_clip_val=1; the last good checkpoint is kept"
        )

    def _lr(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What an epoch has summed up so far travels along, so that one resumed in its middle reports all of it."""
        self.check_finite()
        broken = [name for name, value in self.vae.state_dict().items() if not value.isfinite().all()]
        if broken:
            raise RunFailed(
                f"vae.{broken[0]} is not finite after step {self.global_step - 1} (epoch {self.current_epoch}); lower "
                f"optimizer.lr={self._lr():g} or set trainer.gradient_clip_val=1; the last good checkpoint is kept"
            )
        train = self.meters["train"]
        totals = train.totals
        sums = None if totals is None else self._over_ranks(totals)
        checkpoint["vae"] = {
            "format": FORMAT,
            "settings": self.settings,
            "image_shape": list(self.vae.image_shape),
            "sums": None if sums is None else sums.cpu(),
            "beta": train.beta,
            "grad_norms": [g.cpu() for g in self.grad_norms],
            "last_finite": list(self.last_finite),
        }

    def _over_ranks(self, sums: Tensor) -> Tensor:
        alone = self._trainer is None or self.trainer.world_size == 1
        return sums if alone else self.trainer.strategy.reduce(sums.clone(), reduce_op="sum")  # type: ignore[return-value]  # a tensor for a tensor

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["vae"]
        # Lightning moves the module to its device after this
        device = self.device if self._trainer is None else self.trainer.strategy.root_device
        train = self.meters["train"] = Meter()
        if state["sums"] is not None:  # all ranks' sums, which rank 0 alone goes on with
            train.totals = state["sums"].to(device) * (self.global_rank == 0)
        train.beta = state["beta"]
        self.grad_norms = [g.to(device) for g in state["grad_norms"]]
        self.last_finite = tuple(state["last_finite"])
