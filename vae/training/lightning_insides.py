"""All that stands on Lightning's private parts: the next Lightning is this file's work."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from vae.data.batches import Batch

HOOKS_IN_A_STEP = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")

REPLACES_A_STEP = ("backward", "optimizer_step", "optimizer_zero_grad", "on_train_batch_start")

TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device")

Hooks = list[Callable[..., Any]]


def overrides_hook(owner: Any, hook: str) -> bool:
    """Whether a callback or a (data) module does something of its own in this hook, by its class or on itself."""
    base = next(kind for kind in (Callback, LightningModule, LightningDataModule) if isinstance(owner, kind))
    return getattr(getattr(owner, hook), "__func__", None) is not getattr(base, hook)


def takes_fast_path(trainer: Trainer) -> bool:
    """One process, float32 or bf16, each batch a step of its own, and nobody who does one of its parts otherwise."""
    lit, data, precision = trainer.lightning_module, trainer.datamodule, trainer.precision_plugin  # type: ignore[attr-defined]  # Lightning sets it
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # the same
    return (
        data is not None
        and type(trainer.strategy) is SingleDeviceStrategy
        and type(precision) in (Precision, MixedPrecision)
        and getattr(precision, "scaler", None) is None
        and lit.automatic_optimization
        and trainer.accumulate_grad_batches == 1
        and not any(overrides_hook(lit, hook) for hook in REPLACES_A_STEP)
        and not any(overrides_hook(owner, hook) for owner in (lit, data) for hook in TRANSFER)
        and not any(overrides_hook(callback, hook) for callback in callbacks for hook in HOOKS_IN_A_STEP)
    )


class StepLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, in which a plain step (`takes_fast_path`) goes straight through.

    Sixty questions a step, a closure in a closure and a profiler around each take one to two milliseconds, a seventh of
    the report's model's step. Hooks that somebody fills are called in Lightning's order, and all that its checkpoints
    count is counted as it counts; what is not plain, and the step after a restart, is left to it. A plain step asks for
    a DataModule whose batches are pairs, a `training_step` that returns the loss () and an optimizer without a closure;
    no profiler is called.
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
        self.hooks = {
            name: self._hooks(name) for name in ("on_train_batch_start", "on_train_batch_end", *HOOKS_IN_A_STEP)
        }

    def _hooks(self, name: str) -> Hooks:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets the list
        filled: Hooks = [
            partial(getattr(c, name), self.trainer, self.lit) for c in callbacks if overrides_hook(c, name)
        ]
        return [*filled, getattr(self.lit, name)] if overrides_hook(self.lit, name) else filled

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
        """By the step, and at the end of the epoch, but for the plateau's, which waits for validation."""
        if self.trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)


class NullProfiler(PassThroughProfiler):
    """Nothing is measured; Lightning's own still makes a generator for each of sixty hooks a step."""

    nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]  # as it is used
        return self.nothing
