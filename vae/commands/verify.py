"""`vae verify RUN`: a run's first steps and its evaluation again; what differs that may explain other numbers."""

import math
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from vae.errors import InputError, RunFailed
from vae.run import settings
from vae.run.directory import Run, describe_differences, differences, read_settings
from vae.run.find import find_directory, require_checkpoint
from vae.run.load import TrainedRun, load_run, refuse_untrusted
from vae.run.process import log_to
from vae.run.provenance import provenance
from vae.run.results import evaluate, history_of, training_metrics
from vae.run.train import train
from vae.training import checkpoints
from vae.training.lit import LitVAE

ROUNDING = 1e-5  # relative: what another number of threads or another processor moves a sum by
CAUSES = ("git_commit", "device", "processor", "threads")
LATER = ("samples/", "accuracy")  # metrics that take long; parts of their names
SAMPLED = ("elbo", "rate", "distortion", "nll", "bits_per_dimension")  # on test, from the importance samples' draws


@dataclass
class Report:
    """`differences` may explain other numbers, `wrong` are the numbers that came out otherwise."""

    differences: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    exact: bool = True
    whole: bool = True  # whether all was there to be compared

    def say(self, what: str, difference: str, same: str = "") -> None:
        print(f"{what:<15} {difference or f'same{same}'}", flush=True)
        if difference:
            self.differences.append(f"{what}: {difference}")

    def say_numbers(self, what: str, before: dict[str, float], now: dict[str, float]) -> None:
        bad = {name: (old, now[name]) for name, old in before.items() if not close(old, now[name])}
        exact = all(old == now[name] or old != old for name, old in before.items())
        self.exact &= exact
        line = f"same{'' if exact else ' but for rounding'} ({len(before)} numbers)"
        if bad:
            line = ", ".join(f"{name} {old:.8g} there, {new:.8g} now" for name, (old, new) in list(bad.items())[:4])
            line += f" and {len(bad) - 4} more" if len(bad) > 4 else ""
            self.wrong.append(f"{what} ({', '.join(list(bad)[:4])})")
        print(f"{what:<15} {line}", flush=True)

    def finish(self) -> None:
        """The last line; raises RunFailed, with what may explain it, unless all numbers are the same."""
        causes = "; ".join(self.differences)
        if self.wrong:
            unexplained = "nothing else differs, so metrics.json or a checkpoint was changed"
            explanation = f"what differs beside them: {causes}" if causes else unexplained
            raise RunFailed(f"not the same: {', '.join(self.wrong)}; {explanation}")
        if causes.startswith(("configuration", "data")):
            raise RunFailed(f"not the same: {self.differences[0]}")
        extent = "" if self.whole else ", as far as it goes"
        reservation = ", in spite of these differences" if causes else ""
        print(f"{'same' if self.exact else 'the same but for rounding'}{extent}{reservation}")


def close(old: float, new: float) -> bool:
    return old == new or math.isclose(old, new, rel_tol=ROUNDING, abs_tol=ROUNDING) or (old != old and new != new)


def verify(path: str, trust: list[str] | None) -> None:
    """Prints what is the same and what is not; raises RunFailed, with the likely cause, where numbers differ."""
    log_to(None)
    found, report = find_directory(path), Report()
    require_checkpoint(found, "best")
    saved = checkpoints.load(found.directory / "checkpoints" / "best.ckpt")
    plain = read_settings(found.directory / "config.yaml")
    refuse_untrusted(plain, tuple(trust or ()))
    changed = differences(saved["vae"]["settings"], plain)
    changed.pop("trainer.max_epochs", None)
    report.say("configuration", describe_differences(changed))
    if not changed:
        repeat(load_run(found.directory, trust=tuple(trust or ())), saved, report)
    report.finish()


def repeat(run: TrainedRun, saved: dict[str, Any], report: Report) -> None:
    before = (run.metrics or {}).get("provenance", {})
    torch.set_num_threads(run.settings.threads or before.get("threads") or torch.get_num_threads())
    if not compare_origin(run, saved, before, report):
        return
    losses = saved["vae"].get("first_losses", [])
    numbers = [{f"step {k}": float(x) for k, x in enumerate(each)} for each in (losses, first_losses(run, len(losses)))]
    report.say_numbers("first steps", *numbers)
    if run.metrics is None:
        print(f"{'evaluation':<15} not repeated: the run is not finished")
        report.whole = False
        return
    compare_metrics(run, saved, report)


def compare_origin(run: TrainedRun, saved: dict[str, Any], before: dict[str, Any], report: Report) -> bool:
    """Data, packages and machine, against what the run wrote down; whether the data are there."""
    try:
        now = provenance(run.settings, run.data, torch.device("cpu"))
    except InputError as error:
        report.say("data", str(error))
        return False
    md5 = saved["vae"].get("data", {}).get("md5") or before.get("data_md5")
    changed = f"the images in {run.data.place} have changed (md5 {str(md5)[:8]} there, {now['data_md5'][:8]} now)"
    report.say("data", changed if md5 not in (None, now["data_md5"]) else "", f" (md5 {now['data_md5'][:8]})")
    if not before:
        print(f"{'packages':<15} unknown: the run is not finished")
        return True
    versions = [
        describe_change(name, old, now["versions"].get(name, old)) for name, old in before.get("versions", {}).items()
    ]
    report.say("packages", ", ".join(filter(None, versions)))
    causes = [describe_change(name, before.get(name), now[name]) for name in CAUSES]
    trained = before.get("training_commits", [])
    if set(trained) - {now["git_commit"]}:
        causes.append(f"training_commits {', '.join(trained)} there, {now['git_commit']} now")
    machine = f" ({now['device']}, {now['processor']}, {now['threads']} threads)"
    report.say("machine, code", ", ".join(filter(None, causes)), machine)
    return True


def describe_change(name: str, old: Any, new: Any) -> str:
    return "" if old == new else f"{name} {old} there, {new} now"


class Stop(Exception):
    """Enough steps were repeated."""


class StopAfter(Callback):
    """Keeps the losses of the first `count` steps, and stops there."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LitVAE)
        self.losses = pl_module.first_losses
        if len(self.losses) >= self.count:
            raise Stop


def first_losses(run: TrainedRun, count: int) -> list[Tensor]:
    """The losses of the run's first steps, retrained in a temporary folder."""
    if not count:  # a run of several processes keeps none
        return []
    first = StopAfter(count)
    with tempfile.TemporaryDirectory() as folder:
        again = Run(Path(folder) / "run", settings.read({**run.settings.plain, "run_dir": folder}))
        with suppress(Stop):
            train(again, callbacks=[first], evaluate=False)
        log_to(None)  # the folder, and the log in it, go
    return first.losses


def compare_metrics(run: TrainedRun, saved: dict[str, Any], report: Report) -> None:
    """metrics.json against the checkpoint's own record of training, and a new evaluation without its long parts."""
    assert run.metrics is not None
    plain = run.settings.plain
    quick = plain["evaluation"] | {"samples": 0, "features": False, "probes": False}
    now, _ = evaluate(run.lit, run.data, settings.read({**plain, "evaluation": quick}), saved["global_step"])
    history = history_of(run)
    now |= training_metrics(history, saved["epoch"] + 1)
    now |= {"best_epoch": saved["epoch"] + 1, "epochs": len(history.rows)}
    now |= {"parameters": run.vae.parameter_count}
    sampled = [name for name in run.metrics if name.removeprefix("test/").removesuffix("_error") in SAMPLED]
    sampled = sampled if "test/nll" in run.metrics else []
    before = {name: value for name, value in run.metrics.items() if name in now and name not in sampled}
    report.say_numbers("evaluation", before, now)
    left = [*sampled, *(name for name in run.metrics if name not in now and any(part in name for part in LATER))]
    if left:
        print(f"{'not repeated':<15} {', '.join(left)}: vae evaluate {run.directory} does")
