"""A training step without what Lightning's loop spends on asking who wants to be called in it."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from vae.data import Batch

IN_A_STEP = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
OWN_WAYS = ("backward", "optimizer_step", "optimizer_zero_grad", "on_train_batch_start")


def fills(owner: Callback | LightningModule, hook: str) -> bool:
    """Whether a callback or a module does something of its own in this hook."""
    base = Callback if isinstance(owner, Callback) else LightningModule
    return getattr(type(owner), hook) is not getattr(base, hook)


def is_plain(trainer: Trainer) -> bool:
    """One process, float32 or bf16, each batch a step of its own, and nobody who does one of its parts otherwise."""
    lit, precision = trainer.lightning_module, trainer.precision_plugin
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(precision) in (Precision, MixedPrecision)
        and getattr(precision, "scaler", None) is None
        and lit.automatic_optimization
        and trainer.accumulate_grad_batches == 1
        and not any(fills(lit, hook) for hook in OWN_WAYS)
        and not any(fills(callback, hook) for callback in trainer.callbacks for hook in IN_A_STEP)  # type: ignore[attr-defined]  # Lightning sets the list
    )


class StepLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, in which a plain step (`is_plain`) goes straight through.

    Sixty questions a step, a closure in a closure and a profiler around each take one to two milliseconds, a seventh of
    the report's model's step. Hooks that somebody fills are called in Lightning's order, and all that its checkpoints
    count is counted as it counts; what is not plain, and the step after a restart, is left to it.
    """

    plain = False

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        trainer = self.trainer
        self.plain = is_plain(trainer)
        self.lit: Any = trainer.lightning_module
        self.optimizer, self.device = trainer.optimizers[0], trainer.strategy.root_device
        precision = trainer.precision_plugin
        self.context = nullcontext if type(precision) is Precision else precision.train_step_context
        self.batch_start, self.batch_end = self._hooks("on_train_batch_start"), self._hooks("on_train_batch_end")
        hooks: Any = trainer._data_connector._datahook_selector
        self.after_transfer = hooks.get_instance("on_after_batch_transfer").on_after_batch_transfer
        self.in_a_step = {hook: getattr(self.lit, hook) for hook in IN_A_STEP if fills(self.lit, hook)}

    def _hooks(self, name: str) -> list[Callable[..., Any]]:
        trainer, lit = self.trainer, self.lit
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets the list
        filled: list[Callable[..., Any]] = [
            partial(getattr(c, name), trainer, lit) for c in callbacks if fills(c, name)
        ]
        return [*filled, getattr(lit, name)] if fills(lit, name) else filled

    def advance(self, data_fetcher: Any) -> None:
        if self.restarting or not self.plain:
            super().advance(data_fetcher)
            return
        progress, connector = self.batch_progress, self.trainer._logger_connector
        self.val_loop.restarting = False
        batch, batch_idx = next(data_fetcher)[0], progress.current.ready
        progress.is_last_batch = data_fetcher.done
        batch = self._on_device(batch)
        progress.increment_ready()
        connector.on_batch_start(batch)
        for hook in self.batch_start:
            hook(batch, batch_idx)
        progress.increment_started()
        loss = self._step(batch, batch_idx)
        progress.increment_processed()
        self._schedule()
        for hook in self.batch_end:
            hook({"loss": loss}, batch, batch_idx)
        if self._results:  # of `self.log`
            connector.on_batch_end()
        progress.increment_completed()
        if self._results:
            connector.update_train_step_metrics()

    def _on_device(self, batch: Batch) -> Batch:
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        return self.after_transfer((images, labels), 0)

    def _step(self, batch: Batch, batch_idx: int) -> Tensor:
        lit, progress = self.lit, self.automatic_optimization.optim_progress.optimizer
        progress.step.increment_ready()
        lit._current_fx_name = "training_step"  # `self.log` wants to know
        with self.context():
            loss = lit.training_step(batch, batch_idx)
        progress.zero_grad.increment_ready()
        self._filled("on_before_zero_grad", self.optimizer)
        progress.zero_grad.increment_started()
        self.optimizer.zero_grad()
        progress.zero_grad.increment_completed()
        self._filled("on_before_backward", loss)
        loss.backward()
        self._filled("on_after_backward")
        self._filled("on_before_optimizer_step", self.optimizer)
        if (value := self.trainer.gradient_clip_val) is not None:
            lit.configure_gradient_clipping(self.optimizer, value, self.trainer.gradient_clip_algorithm)
        self.optimizer.step()
        progress.step.increment_completed()
        lit._current_fx_name = None
        return loss.detach()

    def _filled(self, hook: str, *arguments: Any) -> None:
        if hook in self.in_a_step:
            self.in_a_step[hook](*arguments)

    def _schedule(self) -> None:
        """By the step, and at the end of the epoch, but for the plateau's, which waits for validation."""
        if self.trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
