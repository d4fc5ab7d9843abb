"""The search of `vae tune`: any number of workers share a study in one folder, and none loses a trial.

A worker holds a lock in that folder, which dies with it: others know at once that its trial is free. Optuna's own
heartbeat tells so only after a while, and only under `study.optimize` and in databases.
"""

import json
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from filelock import FileLock, Timeout

from vae.errors import InputError, ending, is_known
from vae.run.compose import compose
from vae.run.directory import Run
from vae.run.keys import show
from vae.run.process import log_to
from vae.run.runner import finish
from vae.run.search_space import Search

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

PAUSE = 1.0  # seconds between two looks at what the other workers do
LIVES = 5  # of a configuration whose workers die: it may be what kills them
START = 5  # trials that end before one is pruned


@dataclass(frozen=True)
class Tuning:
    """A study, as each of its workers knows it."""

    search: Search
    overrides: list[str]  # of the command line, the same in every trial
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


# --- where a study is saved -------------------------------------------------------------------------------------------


def open_study(tuning: Tuning) -> "Study":
    """Created or found again; raises InputError where the folder holds another search or cannot be written."""
    optuna = import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        (tuning.folder / ".workers").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run_dir={tuning.folder}: cannot be written ({error.strerror}); choose another") from error
    settings = {"space": tuning.search.plain, "overrides": tuning.overrides}
    with tuning.lock:
        study = optuna.create_study(
            storage=open_storage(tuning),
            study_name=tuning.folder.name,
            directions=list(tuning.search.objectives.values()),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=START) if tuning.search.prune else None,
            load_if_exists=True,
        )
        saved = study.user_attrs.get("settings")
        if saved is None:
            study.set_user_attr("settings", settings)
        elif saved != settings:
            raise InputError(
                f"run_dir={tuning.folder}: holds another search, of {show(saved['space'])} "
                f"{' '.join(saved['overrides'])}; give the same space and keys to continue it, or another run_dir"
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

    if tuning.storage is None:
        journal = tuning.folder / "journal.log"
        journal.touch()
        lock: Any = JournalLock(journal)
        check_journal(journal, lock)
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
    try:
        return RDBStorage(tuning.storage)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        line = f"--storage {tuning.storage}: cannot be opened ({reason}); give an Optuna URL"
        raise InputError(hide_password(line, tuning.storage)) from None  # the cause has the URL too


def hide_password(text: str, url: str) -> str:
    """The text without the password of a database's URL, or parts of it, which drivers repeat."""
    passwords = re.findall(r"://[^:/@]*:(.*)@", url) + re.findall(r"[?&]\w*pass\w*=([^&]*)", url, re.IGNORECASE)
    pieces = [piece for password in passwords for piece in re.split("[@:/?]", password) if len(piece) > 2]
    for secret in sorted({*passwords, *map(unquote, passwords), *pieces}, key=len, reverse=True):
        text = text.replace(secret, "***") if secret else text
    return text


class JournalLock:
    """Optuna's lock of a journal, as one that dies with its holder: Optuna's own outlives it by 30 seconds.

    Whoever takes it drops what a worker that was killed half wrote, since nothing could be read after that.
    """

    def __init__(self, journal: Path) -> None:
        self.journal, self._lock = journal, FileLock(journal.with_name(".journal.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        with open(self.journal, "rb+") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                file.truncate(end)
                torn = len(content) - end
                log.warning("%s: its last line was cut off; these %d bytes were dropped", self.journal, torn)
        return True

    def release(self) -> None:
        self._lock.release()


def check_journal(journal: Path, lock: JournalLock) -> None:
    """Drops a torn last line; raises InputError for a line that no Optuna wrote."""
    lock.acquire()
    lines = journal.read_bytes().splitlines()
    lock.release()
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except ValueError as error:
            line_is_damaged = f"{journal}: line {number} cannot be read; restore it or choose another run_dir"
            raise InputError(line_is_damaged) from error


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
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if len(counted(study)) >= tuning.total and not waiting:
            return None
        study.sampler = TPESampler(seed=tuning.seed + len(trials))  # by the trials so far, whoever asks
        trial = study.ask()
        trial.set_user_attr("worker", worker)
        trial.set_user_attr("overrides", [*tuning.overrides, *tuning.search.suggest(trial)])
        trial.set_user_attr("folder", trial.user_attrs.get("folder", name_folder(trial.number)))
        return trial


def run_again(trials: Sequence["FrozenTrial"]) -> set[int]:
    """The numbers of the trials that killed workers left: they go on under another, and do not count themselves."""
    return {trial.user_attrs["again"] for trial in trials if "again" in trial.user_attrs}


def counted(study: "Study") -> list["FrozenTrial"]:
    """The study's trials so far, one for each configuration."""
    trials = study.get_trials(deepcopy=False)
    again = run_again(trials)
    return [trial for trial in trials if trial.state.name != "WAITING" and trial.number not in again]


def requeue_orphans(tuning: Tuning, study: "Study") -> None:
    """Trials whose worker died go on as new ones, in the same folder with the same values; they resume there."""
    from optuna.trial import TrialState

    again = run_again(study.get_trials(deepcopy=False))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_alive(tuning, trial.user_attrs.get("worker", "none")):
            continue
        lives = trial.user_attrs.get("lives", LIVES) - 1
        if lives and trial.number not in again:  # else a worker died between these two steps
            folder = trial.user_attrs.get("folder", name_folder(trial.number))
            study.enqueue_trial(trial.params, user_attrs={"lives": lives, "folder": folder, "again": trial.number})
        study.tell(trial.number, state=TrialState.FAIL)


def name_folder(number: int) -> str:
    return f"trial_{number:03d}"


# --- a trial ----------------------------------------------------------------------------------------------------------


def work(tuning: Tuning) -> "Study":
    """Runs trials until the study has its number; returns it when no other worker has one left either."""
    from optuna.trial import TrialState

    log_to(None)
    study = open_study(tuning)
    with as_worker(tuning) as worker:
        while True:
            trial = next_trial(tuning, study, worker)
            if trial is not None:
                run_trial(tuning, study, trial)
                log_to(None)  # not to the run's own log any longer
                log.info(progress(tuning, study))
            elif study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
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
        run = Run(folder, compose([*overrides, f"run_dir={folder}"]), one_of_many=True)
        study.tell(trial, values_of(train_trial(run, trial, tuning.search), tuning.search))
    except TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except Exception as error:
        trial.set_user_attr("failed", ending(error)[1])
        log.error("trial %d failed: %s", trial.number, ending(error)[1], exc_info=not is_known(error))
        study.tell(trial, state=TrialState.FAIL)


def train_trial(run: Run, trial: "Trial", search: Search) -> dict[str, Any]:
    """The run's metrics; what an earlier worker has done of it is kept. Raises TrialPruned."""

    def callbacks() -> list[Any]:
        from vae.training.pruning import Pruning

        return [Pruning(trial, next(iter(search.objectives)))] if search.prune else []

    finish(run, callbacks=callbacks)
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
    trials = [trial for trial in counted(study) if trial.state.is_finished()]
    words = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
    states = Counter(words[trial.state.name] for trial in trials)
    counts = ", ".join(f"{states[word]} {word}" for word in words.values() if states[word])
    best = [] if len(tuning.search.objectives) > 1 else best_trials(study)
    name = next(iter(tuning.search.objectives))
    end = f"; best {name} {best[0].value:.6g} in {best[0].user_attrs['folder']}" if best else ""
    return f"{len(trials)} of {tuning.total} trials: {counts}{end}"


def best_trials(study: "Study") -> list["FrozenTrial"]:
    """The best one, or with several objectives those that no other beats in all of them."""
    from optuna.trial import TrialState

    return study.best_trials if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) else []
