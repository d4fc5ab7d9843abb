"""The search of `vae tune`: any number of workers share a study in one folder, and none loses a trial.

All workers of a study see its folder: a worker's lock in it dies with the worker, which tells at once that its trial
is nobody's. Optuna's own heartbeat knows it only after a while, and only under `study.optimize` and in databases.
"""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from vae.errors import InputError, ending, is_known
from vae.run.directory import Run
from vae.run.keys import Settings, show
from vae.run.process import log_to
from vae.run.space import Search

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

PAUSE = 1.0  # seconds between two looks at what the other workers do
LIVES = 5  # of a configuration whose worker dies: it may be what kills it
START = 5  # trials that end before one is pruned


@dataclass(frozen=True)
class Tuning:
    """A study, as each of its workers knows it."""

    search: Search
    given: list[str]  # the overrides of the command line, the same in every trial
    folder: Path
    total: int
    storage: str | None = None  # an Optuna URL; None: a journal in the folder
    seed: int = 0

    @property
    def lock(self) -> FileLock:
        """For choosing a trial: one worker at a time."""
        return FileLock(self.folder / ".study.lock")

    def lock_of(self, worker: str) -> FileLock:
        return FileLock(self.folder / ".workers" / f"{worker}.lock")


def open_study(tuning: Tuning) -> "Study":
    """Created or found again; raises InputError where the folder holds another search, or without Optuna."""
    optuna = import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (tuning.folder / ".workers").mkdir(parents=True, exist_ok=True)
    asked = {"space": tuning.search.plain, "given": tuning.given}
    with tuning.lock:
        study = optuna.create_study(
            storage=open_storage(tuning),
            study_name=tuning.folder.name,
            directions=list(tuning.search.objectives.values()),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=START) if tuning.search.prune else None,
            load_if_exists=True,
        )
        saved = study.user_attrs.get("asked")
        if saved is None:
            study.set_user_attr("asked", asked)
        elif saved != asked:
            raise InputError(
                f"run_dir={tuning.folder}: holds another search, of {show(saved['space'])} {' '.join(saved['given'])}; "
                "give the same space and keys to continue it, or another run_dir"
            )
    return study


def import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError("vae tune: needs Optuna; pip install 'vae-lightning[sweep]'") from None
    return optuna


def open_storage(tuning: Tuning) -> Any:
    """A journal in the folder, or the database at an Optuna URL."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if tuning.storage is not None:
        try:
            return RDBStorage(tuning.storage)
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(f"--storage {tuning.storage}: cannot be opened ({said}); give an Optuna URL") from error

    # Optuna's own lock outlives a killed holder by 30 seconds
    lock: Any = FileLock(tuning.folder / ".journal.lock")
    return JournalStorage(JournalFileBackend(str(tuning.folder / "journal.log"), lock_obj=lock))


@contextmanager
def as_worker(tuning: Tuning) -> Iterator[str]:
    """A name whose lock is held as long as the process lives."""
    name = uuid.uuid4().hex[:12]
    with tuning.lock_of(name):
        yield name


def is_alive(tuning: Tuning, worker: str) -> bool:
    try:
        with tuning.lock_of(worker).acquire(timeout=0):
            return False
    except Timeout:
        return True


# --- which trial is next ----------------------------------------------------------------------------------------------


def next_trial(tuning: Tuning, study: "Study", worker: str) -> "Trial | None":
    """A trial of this worker's own with its overrides chosen; None where all are taken."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    with tuning.lock:
        requeue_orphans(tuning, study)
        trials = study.get_trials(deepcopy=False)
        waiting = any(one.state == TrialState.WAITING for one in trials)
        if len(counted(study)) >= tuning.total and not waiting:
            return None
        study.sampler = TPESampler(seed=tuning.seed + len(trials))  # by what is there, whoever asks
        trial = study.ask()
        trial.set_user_attr("worker", worker)
        trial.set_user_attr("overrides", [*tuning.given, *tuning.search.suggest(trial)])
        trial.set_user_attr("folder", trial.user_attrs.get("folder", name_folder(trial.number)))
        return trial


def run_again(trials: Sequence["FrozenTrial"]) -> set[int]:
    """The numbers of the trials that killed workers left: they go on under another, and do not count themselves."""
    return {one.user_attrs["again"] for one in trials if "again" in one.user_attrs}


def counted(study: "Study") -> list["FrozenTrial"]:
    """The study's trials so far, one for each configuration."""
    trials = study.get_trials(deepcopy=False)
    again = run_again(trials)
    return [one for one in trials if one.state.name != "WAITING" and one.number not in again]


def requeue_orphans(tuning: Tuning, study: "Study") -> None:
    """Trials whose worker died go on as new ones, in the same folder with the same values; they resume there."""
    from optuna.trial import TrialState

    again = run_again(study.get_trials(deepcopy=False))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_alive(tuning, trial.user_attrs.get("worker", "none")):
            continue
        lives = trial.user_attrs.get("lives", LIVES) - 1
        if lives and trial.number not in again:  # it is there where a worker died between these two steps
            folder = trial.user_attrs.get("folder", name_folder(trial.number))
            study.enqueue_trial(trial.params, user_attrs={"lives": lives, "folder": folder, "again": trial.number})
        study.tell(trial.number, state=TrialState.FAIL)


def name_folder(number: int) -> str:
    return f"trial_{number:03d}"


# --- a trial ----------------------------------------------------------------------------------------------------------


def work(tuning: Tuning) -> "Study":
    """Runs trials until the study has its number; returns it when no other worker has one left either."""
    from optuna.trial import TrialState

    study = open_study(tuning)
    with as_worker(tuning) as worker:
        log_to(None)
        while True:
            trial = next_trial(tuning, study, worker)
            if trial is not None:
                run_trial(tuning, study, trial)
                log_to(None)  # not to the run's own log any longer
                log.info(progress(tuning, study))
            elif any(one.state == TrialState.RUNNING for one in study.get_trials(deepcopy=False)):
                time.sleep(PAUSE)  # another worker may die, and leave its trial to this one
            else:
                return study


def run_trial(tuning: Tuning, study: "Study", trial: "Trial") -> None:
    """Trains, evaluates and tells the study; a configuration that fails is one of its results."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    overrides = trial.user_attrs["overrides"]
    log.info("trial %d: %s", trial.number, " ".join(overrides))
    try:
        folder = tuning.folder / trial.user_attrs["folder"]
        run = Run(folder, settings_of([*overrides, f"run_dir={folder}"]))
        study.tell(trial, values_of(train_trial(run, trial, tuning.search), tuning.search))
    except TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except Exception as error:
        trial.set_user_attr("failed", ending(error)[1])
        log.error("trial %d failed: %s", trial.number, ending(error)[1], exc_info=not is_known(error))
        study.tell(trial, state=TrialState.FAIL)


def settings_of(overrides: Sequence[str]) -> Settings:
    """The configuration, checked; raises InputError."""
    from vae.run.compose import compose

    return compose(overrides)


def train_trial(run: Run, trial: "Trial", search: Search) -> dict[str, Any]:
    """The run's metrics; what an earlier worker has done of it is kept. Raises TrialPruned."""
    from vae.run.process import import_torch_and_lightning

    run.check()
    if not run.is_finished:
        import_torch_and_lightning()
        from vae.run.train import train
        from vae.training.pruning import Pruning

        train(run, callbacks=[Pruning(trial, next(iter(search.objectives)))] if search.prune else [])
    assert run.metrics is not None
    return run.metrics


def values_of(metrics: dict[str, Any], search: Search) -> list[float]:
    missing = [name for name in search.objectives if name not in metrics]
    if missing:
        numbers = ", ".join(name for name, value in metrics.items() if isinstance(value, int | float))
        raise InputError(f"{search.name}: {missing[0]}: the runs have no such metric; they have {numbers}")
    return [float(metrics[name]) for name in search.objectives]


def progress(tuning: Tuning, study: "Study") -> str:
    """`12 of 24 trials: 9 finished, 3 pruned; best dev/loss 31.02 in trial_007`."""
    trials = [one for one in counted(study) if one.state.is_finished()]
    words = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
    states = Counter(words[one.state.name] for one in trials)
    said = ", ".join(f"{states[word]} {word}" for word in words.values() if states[word])
    best = [] if len(tuning.search.objectives) > 1 else best_trials(study)
    name = next(iter(tuning.search.objectives))
    end = f"; best {name} {best[0].value:.6g} in {best[0].user_attrs['folder']}" if best else ""
    return f"{len(trials)} of {tuning.total} trials: {said}{end}"


def best_trials(study: "Study") -> list["FrozenTrial"]:
    """The best one, or with several objectives those that no other beats in all of them."""
    return study.best_trials if any(one.state.name == "COMPLETE" for one in study.get_trials(deepcopy=False)) else []
