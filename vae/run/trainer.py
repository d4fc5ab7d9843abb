"""Builds Lightning's Trainer with its callbacks and loggers; a run already begun continues from its checkpoint."""

import logging
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import sha256
from inspect import signature
from typing import Any, TypeVar

import torch
import yaml
from hydra.utils import get_object
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler

from vae.data.module import ImageDataModule
from vae.device import choose_device, describe_device, keeps_denormals
from vae.errors import InputError
from vae.evaluation.baselines import baselines
from vae.files import read_yaml, writable
from vae.run.build import instantiate_part
from vae.run.directory import NOT_IDENTITY, Run
from vae.run.load import check_data, check_origin
from vae.run.process import git_commit
from vae.run.settings import caption, monitored
from vae.training import checkpoints
from vae.training.callbacks import EpochLine, QuietBar, SlowdownWatch
from vae.training.checkpoints import DurableCheckpointIO, SaveBest, SaveLast
from vae.training.dashboard import Dashboard
from vae.training.history import History
from vae.training.hparams import Sheet
from vae.training.lit import LitVAE
from vae.training.signals import GracefulStop

log = logging.getLogger(__name__)

T = TypeVar("T")


class NoProfiler(PassThroughProfiler):
    """Lightning's own, which measures nothing either, makes a generator for each of the 70 hooks of a step: 0.1 ms."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]  # as it is used
        return nullcontext()


def build_parts(group: str, nodes: dict[str, Any], kind: type[T], **offered: Any) -> list[T]:
    """The objects that a group's nodes describe, in their order; each gets what its signature asks for of `offered`.

    Raises InputError for a part that is no `kind`.
    """
    parts = []
    for name, node in nodes.items():
        asked = signature(get_object(node["_target_"])).parameters.keys()
        part = instantiate_part(f"{group}.{name}", {key: offered[key] for key in offered.keys() & asked} | node)
        if not isinstance(part, kind):
            raise InputError(f"{group}.{name}._target_={node['_target_']}: must be a {kind.__module__}.{kind.__name__}")
        parts.append(part)
    return parts


def build_trainer(
    run: Run, lit: LitVAE, history: History, dashboard: Dashboard, stop: GracefulStop, last: SaveLast
) -> Trainer:
    settings = run.settings
    options = dict(settings.plain["trainer"])
    bar, options["accelerator"] = options.pop("enable_progress_bar"), choose_device(options["accelerator"])
    bar = sys.stdout.isatty() if bar is None else bar
    monitor, mode = monitored(settings.plain, lit.vae.likelihood.normalised)
    callbacks: list[Callback] = [history, EpochLine(history), SlowdownWatch(), dashboard]
    callbacks += [QuietBar()] if bar else []
    if patience := settings.callbacks.early_stopping:
        # LitVAE stops at a loss that is not finite, and names its cause
        callbacks.append(EarlyStopping(monitor, patience=patience, mode=mode, check_finite=False))
    callbacks += build_parts("callbacks.extra", settings.plain["callbacks"]["extra"], Callback)
    best = SaveBest(run.checkpoint_directory, monitor, mode)
    # a resumed run goes on in the same event files, and under the same name at Weights & Biases
    name = sha256(str(run.directory.resolve()).encode()).hexdigest()[:16]
    offered = {"save_dir": str(run.directory), "purge_step": _purge(run), "id": name}
    return Trainer(
        **options,
        callbacks=[*callbacks, best, last, stop],  # those that save and stop come last
        logger=build_parts("logger", settings.plain["logger"], Logger, **offered),  # type: ignore[type-abstract]  # for isinstance
        plugins=[DurableCheckpointIO()],
        profiler=NoProfiler(),
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10**9,  # nothing is logged by the step
        use_distributed_sampler=False,
        default_root_dir=run.directory,
    )


def _purge(run: Run) -> int | None:
    """The step from which TensorBoard hides events: a resumed run writes those after its checkpoint again."""
    path = run.resume_from
    return None if path is None else checkpoints.load(path)["global_step"] + 1


def describe(lit: LitVAE) -> str:
    """The model in one line."""
    vae = lit.vae
    parts = ", ".join(type(part).__name__ for part in (vae.encoder, vae.decoder, vae.likelihood))
    return f"VAE of {parts}: {vae.latent_dim} latents, {vae.parameter_count:,} parameters"


@contextmanager
def prepared_trainer(
    run: Run, lit: LitVAE, data: ImageDataModule, more: Sequence[Callback] = ()
) -> Iterator[tuple[Trainer, History]]:
    """A trainer that begins or continues the run; inside the block, signals stop it between two steps.

    Its callbacks end with `more`: when an epoch starts, the checkpoint of the one before has been written.
    """
    settings = run.settings
    history = History(git_commit())  # asked now: the checkout may change in the hours that follow
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if keeps_denormals():
        log.warning(
            "this processor computes with denormal numbers (below 1e-38), which may slow training down manyfold"
        )
    start = run.resume_from
    if start is not None:
        saved = checkpoints.load(start)
        checkpoints.check_architecture(saved["state_dict"], lit)
        check_origin(start, saved["vae"]["settings"], settings.plain)
        check_data(start, saved["vae"], data)
        log.info("continuing from %s", start)
    state = 3 * sum(value.nbytes for value in lit.state_dict().values())  # weights, and Adam's two moments
    writable(run.checkpoint_directory, 2 * state if start is None else state)  # best and last, or one of them again
    batches = len(data.train_dataloader())
    batches = min(batches, settings.trainer.limit_train_batches or batches)
    steps = math.ceil(batches / settings.trainer.accumulate_grad_batches)
    sizes = f"{len(data.train):,} training and {len(data.dev):,} dev images"
    log.info("%s; %s, %d steps per epoch", describe(lit), sizes, steps)
    last = SaveLast(run.checkpoint_directory, settings.callbacks.checkpoint_minutes)
    dashboard = Dashboard(
        history,
        settings.callbacks.figures_every,
        settings.seed,
        caption(settings.plain, data.image_shape[0]),
        lambda: baselines(lit.vae, data),
        texts(run),
        sheet_of(run),
    )
    with GracefulStop(last.save) as stop:
        trainer = build_trainer(run, lit, history, dashboard, stop, last)
        log.info("on %s", describe_device(trainer.strategy.root_device))
        trainer.callbacks.extend(more)  # type: ignore[attr-defined]  # Lightning sets the list
        yield trainer, history


def texts(run: Run) -> dict[str, str]:
    """What was trained, as Markdown for TensorBoard's Text tab."""
    command = shlex.join(["python", "train.py", *(f"{key}={value}" for key, value in given(run).items())])
    return {
        "command": indented(command),
        "configuration": indented(yaml.safe_dump(run.settings.plain, sort_keys=False)),
    }


def indented(text: str) -> str:
    """A block of code in Markdown, whatever characters it holds."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def given(run: Run) -> dict[str, str]:
    """The keys of the run's command line with their values, as its folder records them."""
    record = run.directory / ".hydra" / "overrides.yaml"
    overrides = read_yaml(record) if record.exists() else []
    return {key.lstrip("+"): value for key, _, value in (one.partition("=") for one in overrides or [])}


def sheet_of(run: Run) -> Sheet:
    """The run's row in HPARAMS: keys that change no result say nothing there."""
    aside = ("evaluation", "callbacks", "logger", "hydra")
    kept = {k: v for k, v in given(run).items() if k not in NOT_IDENTITY and not k.startswith(aside)}
    return Sheet(run.settings.plain, kept, run.directory.name)
