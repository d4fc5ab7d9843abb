"""A trial that looks hopeless ends early."""

from typing import TYPE_CHECKING

from lightning import Callback, LightningModule, Trainer

from vae.training.history import History

if TYPE_CHECKING:
    from optuna import Trial


class Pruning(Callback):
    """Tells the study of each epoch, also of those before a resume, and stops where its pruner says so."""

    def __init__(self, trial: "Trial", metric: str, history: History) -> None:
        self.trial, self.metric, self.history = trial, metric, history
        self.told: set[int] = set()
        self.stopped = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for epoch, value in self.history.curve(self.metric):
            if epoch not in self.told:
                self.trial.report(value, epoch)
                self.told.add(epoch)
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if not last and self.trial.should_prune():
            self.stopped = trainer.should_stop = True
