"""A trial that looks hopeless ends early."""

from lightning import Callback, LightningModule, Trainer
from optuna import Trial, TrialPruned

from vae.training.history import find_history


class Pruning(Callback):
    """Tells the study of each epoch, also of those before a resume.

    Where its pruner says so, training ends after the epoch, its checkpoint is written, and TrialPruned is raised.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.told: set[int] = set()
        self.pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for epoch, value in find_history(trainer).curve(self.metric):
            if epoch not in self.told:
                self.trial.report(value, epoch)
                self.told.add(epoch)
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if not last and self.trial.should_prune():
            self.pruned = trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.pruned:
            raise TrialPruned(f"pruned after epoch {trainer.current_epoch}")
