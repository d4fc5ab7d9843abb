"""Everything that uses Lightning's private interface; a new Lightning should need changes only here."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from vae.data.batches import Batch
from vae.errors import RunFailed

try:
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
except ImportError:  # `missing_insides` says so
    _TrainingEpochLoop = object  # type: ignore[assignment, misc]

log = logging.getLogger(__name__)

STEP_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")

REPLACED_HOOKS = ("backward", "optimizer_step", "optimizer_zero_grad", "on_train_batch_start")

TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device")

COUNTS = ("increment_ready", "increment_started", "increment_completed")

OPTIMIZER_PROGRESS = "fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer"

# What this module uses of a trainer and its LightningModule.
INSIDES = (
    *(f"_logger_connector.{name}" for name in ("on_batch_start", "on_batch_end", "update_train_step_metrics")),
    "_data_connector._datahook_selector",  # None before the run starts
    *(f"fit_loop.epoch_loop.batch_progress.{name}" for name in (*COUNTS, "increment_processed", "current.ready")),
    *(f"{OPTIMIZER_PROGRESS}.{part}.{name}" for part in ("step", "zero_grad") for name in COUNTS),
    *(f"fit_loop.epoch_loop.{name}" for name in ("on_run_start", "advance", "restarting", "val_loop.restarting")),
    *(f"fit_loop.epoch_loop.{name}" for name in ("_results", "_num_ready_batches_reached", "update_lr_schedulers")),
    "fit_loop._load_combined_loader_states",
    "lightning_module._current_fx_name",
)

Hooks = list[Callable[..., Any]]


class BaseModule(LightningModule):
    """LitVAE's access to its trainer, with the answers of a single process where there is none."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a string or a flag directly: nn.Module's search for parameters would cost time in every step."""
        if isinstance(value, (str, bool)):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def world_size(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size

    @property
    def batches_a_step(self) -> int:
        return 1 if self._trainer is None else self.trainer.accumulate_grad_batches

    @property
    def root_device(self) -> torch.device:
        """Where the module will be: Lightning moves it there only after it has loaded a checkpoint."""
        return self.device if self._trainer is None else self.trainer.strategy.root_device

    def sum_over_ranks(self, sums: Tensor) -> Tensor:
        return sums if self.world_size == 1 else self.trainer.strategy.reduce(sums.clone(), reduce_op="sum")  # type: ignore[return-value]  # a tensor for a tensor

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        return None if self._trainer is None else getattr(self.trainer.precision_plugin, "scaler", None)

    def unscaled(self, norm: Tensor, optimizer: Optimizer) -> Tensor:
        """The norm of gradients without the loss's scale, which a fused optimizer removes only within its step."""
        scaled = self.scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        return norm / self.scaler.get_scale() if self.scaler is not None and scaled else norm

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


def overrides_hook(owner: Any, hook: str) -> bool:
    """Whether a callback or a (data) module does something of its own in this hook, by its class or on itself."""
    base = next(kind for kind in (Callback, LightningModule, LightningDataModule) if isinstance(owner, kind))
    return getattr(getattr(owner, hook), "__func__", None) is not getattr(base, hook)


def takes_fast_path(trainer: Trainer) -> bool:
    """One process, float32 or bf16, each batch a step of its own, and no hook that replaces a part of the step."""
    lit, data, precision = trainer.lightning_module, trainer.datamodule, trainer.precision_plugin  # type: ignore[attr-defined]  # Lightning sets it
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # the same
    return (
        data is not None
        and type(trainer.strategy) is SingleDeviceStrategy
        and type(precision) in (Precision, MixedPrecision)
        and getattr(precision, "scaler", None) is None
        and lit.automatic_optimization
        and trainer.accumulate_grad_batches == 1
        and not any(overrides_hook(lit, hook) for hook in REPLACED_HOOKS)
        and not any(overrides_hook(owner, hook) for owner in (lit, data) for hook in TRANSFER_HOOKS)
        and not any(overrides_hook(callback, hook) for callback in callbacks for hook in STEP_HOOKS)
    )


def missing_insides(trainer: Trainer, lit: LightningModule) -> list[str]:
    """The names that `StepLoop` uses and that this Lightning does not have."""
    if _TrainingEpochLoop is object:
        return ["_TrainingEpochLoop"]
    return [name for name in INSIDES if not _has(lit if name.startswith("lightning_module.") else trainer, name)]


def _has(owner: Any, name: str) -> bool:
    try:
        attrgetter(name.removeprefix("lightning_module."))(owner)
    except AttributeError:
        return False
    return True


def install_fast_loop(trainer: Trainer, lit: LightningModule) -> None:
    """Puts `StepLoop` in the place of Lightning's loop, or says in one line why that loop stays."""
    if missing := missing_insides(trainer, lit):
        log.warning(
            "lightning %s has no %s: training goes through its own loop, with the same numbers and slower steps "
            "(trainer.fast_step=false turns this line off)", lightning.__version__, missing[0],
        )  # fmt: skip
        return
    loop = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = StepLoop(trainer, loop.min_steps, loop.max_steps)


def restore_loader_states(trainer: Trainer) -> None:
    """Tells the loaders where a resumed run stands.

    A scheduler that asks for the number of steps sets the loaders up before the loop has read its position. Lightning
    would then begin the epoch anew with the counts of its middle.
    """
    restore = getattr(trainer.fit_loop, "_load_combined_loader_states", None)
    if restore is not None:
        restore()
    elif trainer.fit_loop.restarting:
        raise RunFailed(f"lightning {lightning.__version__} cannot continue this run; install lightning 2.6")


def end_restart(trainer: Trainer) -> None:
    """Lets the plateau scheduler see the epoch in whose middle a run resumed.

    Lightning calls the loop restarting until that epoch ends, and skips the scheduler for want of a metric. The metric
    is there once validation is over.
    """
    if not trainer.sanity_checking:
        trainer.fit_loop.restarting = False


def close_announced_epoch(checkpoint: dict[str, Any]) -> None:
    """Makes a checkpoint of `on_train_epoch_start` say that the epoch before is complete, and no more.

    There Lightning has announced an epoch and not begun it. A run resumed from there would count an empty epoch.
    """
    loop = checkpoint["loops"]["fit_loop"]
    for counts in (loop["epoch_progress"]["total"], loop["epoch_progress"]["current"]):
        if counts["ready"] > counts["started"]:
            counts["ready"] = counts["started"]
            loop["state_dict"].pop("combined_loader", None)


def relocated(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The state of a ModelCheckpoint that keeps one file, as if it had always been at `path`.

    Lightning forgets the best score when the path has changed, and would let a worse epoch take its place.
    """
    models = dict(zip([str(path)], state["best_k_models"].values(), strict=False))  # one at most
    paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), str(path))
    return state | paths | {"dirpath": str(path.parent), "best_k_models": models}


class StepLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, with a shorter way through a step where `takes_fast_path` holds.

    Lightning looks for some sixty hooks in every step and runs each under a profiler. That takes one to two
    milliseconds, a seventh of the step of the report's model. The short way calls only the hooks that somebody
    overrides, in Lightning's order, and moves Lightning's counters as Lightning does, since checkpoints hold them.
    Every other step, and the first one after a restart, goes through Lightning's own `advance`.

    The short way needs a DataModule whose batches are pairs, a `training_step` that returns the loss () and an
    optimizer without a closure. It calls no profiler.
    """

    fast = False

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        trainer = self.trainer
        self.fast = takes_fast_path(trainer)
        self.lit: Any = trainer.lightning_module
        self.optimizer, self.device = trainer.optimizers[0], trainer.strategy.root_device
        precision = trainer.precision_plugin
        self.context = nullcontext if type(precision) is Precision else precision.train_step_context
        selector: Any = trainer._data_connector._datahook_selector
        self.after_transfer = selector.get_instance("on_after_batch_transfer").on_after_batch_transfer
        self.hooks = {name: self._hooks(name) for name in ("on_train_batch_start", "on_train_batch_end", *STEP_HOOKS)}

    def _hooks(self, name: str) -> Hooks:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets the list
        owners = [c for c in callbacks if overrides_hook(c, name)]
        hooks: Hooks = [partial(getattr(owner, name), self.trainer, self.lit) for owner in owners]
        return [*hooks, getattr(self.lit, name)] if overrides_hook(self.lit, name) else hooks

    def _call(self, name: str, *arguments: Any) -> None:
        if hooks := self.hooks[name]:
            before, self.lit._current_fx_name = self.lit._current_fx_name, name  # for `self.log`
            for hook in hooks:
                hook(*arguments)
            self.lit._current_fx_name = before

    def advance(self, data_fetcher: Any) -> None:
        if self.restarting or not self.fast:
            super().advance(data_fetcher)
            return
        progress, connector = self.batch_progress, self.trainer._logger_connector
        self.val_loop.restarting = False
        batch, batch_idx = next(data_fetcher)[0], progress.current.ready
        progress.is_last_batch = data_fetcher.done
        batch = self._on_device(batch)
        progress.increment_ready()
        connector.on_batch_start(batch)
        self._call("on_train_batch_start", batch, batch_idx)
        progress.increment_started()
        loss = self._step(batch, batch_idx)
        progress.increment_processed()
        self._schedule()
        self._call("on_train_batch_end", {"loss": loss}, batch, batch_idx)
        if self._results:  # of `self.log`
            connector.on_batch_end()
        progress.increment_completed()
        if self._results:
            connector.update_train_step_metrics()

    def _on_device(self, batch: Batch) -> Batch:
        if self.device.type != "cpu":
            images, labels = (tensor.to(self.device, non_blocking=self.device.type == "cuda") for tensor in batch)
            batch = images, labels
        return self.after_transfer(batch, 0)

    def _step(self, batch: Batch, batch_idx: int) -> Tensor:
        lit, progress = self.lit, self.automatic_optimization.optim_progress.optimizer
        progress.step.increment_ready()
        lit._current_fx_name = "training_step"
        with self.context():
            loss = lit.training_step(batch, batch_idx)
        progress.zero_grad.increment_ready()
        self._call("on_before_zero_grad", self.optimizer)
        progress.zero_grad.increment_started()
        self.optimizer.zero_grad()
        progress.zero_grad.increment_completed()
        self._call("on_before_backward", loss)
        loss.backward()
        self._call("on_after_backward")
        self._call("on_before_optimizer_step", self.optimizer)
        trainer = self.trainer
        value, how = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        lit.configure_gradient_clipping(self.optimizer, gradient_clip_val=value, gradient_clip_algorithm=how)
        self.optimizer.step()
        lit._current_fx_name = None
        progress.step.increment_completed()
        return loss.detach()

    def _schedule(self) -> None:
        """Moves the schedulers of the step and, at its end, of the epoch; the plateau's waits for validation."""
        if self.trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)


class NullProfiler(PassThroughProfiler):
    """Measures nothing; Lightning's own, which measures nothing either, makes a generator for each hook of a step."""

    nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]  # as it is used
        return self.nothing
