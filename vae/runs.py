"""A run directory and what is built from its configuration: the one way in, for training, commands and notebooks."""

import ctypes
import gc
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vae import checkpoints, settings
from vae.callbacks import EpochLine, History, Pictures, QuietBar, on_a_terminal
from vae.checkpoints import DurableCheckpointIO, SaveBest, SaveLast
from vae.command import in_a_child, log_to
from vae.data import ImageDataModule, as_floats
from vae.errors import InputError
from vae.lit import LitVAE
from vae.loop import StepLoop
from vae.model import VAE
from vae.objectives import ELBO, IWAE
from vae.seeds import derive
from vae.signals import GracefulStop

log = logging.getLogger(__name__)
Settings = dict[str, Any]

if not torch.cuda.is_available():
    # Lightning has set it to 1, and Adam asks in each step for a GPU: 0.1 ms to look for its driver, or 1 us
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"

# Keys that may differ between two sittings of a run, because no result depends on them.
FREE = (
    "run_dir", "threads", "compile", "checkpoint", "trainer.accelerator", "trainer.enable_progress_bar",
    "data.root", "data.mirrors", "data.timeout", "data.num_workers", "data.eval_batch_size", "data.resident",
    "callbacks.checkpoint_minutes", "callbacks.figures_every", "evaluation.cache_dir",
)  # fmt: skip
GROWS = "trainer.max_epochs"
CHECKPOINT_BYTES = 2**24  # what must be free before the first epoch; a checkpoint of the report's model has 6 MB


# --- what is built ----------------------------------------------------------------------------------------------------


def build(cfg: DictConfig | Settings) -> tuple[LitVAE, ImageDataModule]:
    """The model and its data, set up (reads the files); raises InputError for what cannot be used or does not fit."""
    s = settings.check(cfg) if isinstance(cfg, DictConfig) else cfg
    data = build_data(s)
    return build_model(s, data), data


def made(group: str, node: Settings) -> Any:
    """The object that a group describes; raises InputError for keys that do not belong to the option chosen.

    Hydra checks keys against the files of a group, not those that a recipe left behind under another option.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        given = ", ".join(f"{group}.{key}" for key in node if not key.startswith("_"))
        raise InputError(
            f"{group}: {node['_target_']} does not take these keys ({given}): {error.__cause__}; choose the option on "
            f"the command line without a recipe that sets other keys of {group}"
        ) from error


def build_data(s: Settings) -> ImageDataModule:
    data = made("data", s["data"])
    data.prepare_data()
    data.setup()
    return data


def build_model(s: Settings, data: ImageDataModule) -> LitVAE:
    """Weights are a function of the seed; the images are checked against the likelihood's support."""
    decoder = dict(s["model"]["decoder"])
    init_bias = decoder.pop("init_bias")
    torch.default_generator.manual_seed(derive(s["seed"], "weights"))
    vae = VAE(
        encoder=made("model.encoder", s["model"]["encoder"]),
        decoder=made("model.decoder", decoder),
        likelihood=made("likelihood", s["likelihood"]),
        latent_dim=s["latent_dim"],
        image_shape=data.image_shape,
    )
    vae.likelihood.check(as_floats(data.dev.images))
    if init_bias == "data":
        start_at_mean(vae, data.train.images)
    if s["compile"]:
        vae.encoder.compile(mode=s["compile"])
        vae.decoder.compile(mode=s["compile"])
    has_schedule = s["scheduler"]["_target_"] is not None
    return LitVAE(
        vae,
        objective=build_objective(s),
        optimizer=made("optimizer", s["optimizer"]),
        scheduler=made("scheduler", s["scheduler"]) if has_schedule else None,
        seed=s["seed"],
        settings=s,
        monitor=plateau_watches(s),
    )


def build_objective(s: Settings) -> ELBO | IWAE:
    return made("objective", s["objective"])


@torch.no_grad()
def start_at_mean(vae: VAE, images: Tensor) -> None:
    """The last bias gives the training mean at the start: per pixel in an MLP, per channel in a convolution."""
    mean = images.double().mean(0).div(255).float()  # (C, H, W)
    bias: Tensor = vae.decoder.out.bias  # type: ignore[union-attr, assignment]  # every decoder ends in a layer `out`
    if bias.numel() % mean.numel():
        mean = mean.mean((1, 2))
    bias[: mean.numel()] = vae.likelihood.inverse_mean(mean).flatten()


# --- the directory ----------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A directory that belongs to one configuration, and to one process at a time."""

    directory: Path
    settings: Settings

    @property
    def checkpoint_directory(self) -> Path:
        return self.directory / "checkpoints"

    def checkpoint(self, which: str) -> Path:
        return self.checkpoint_directory / f"{which}.ckpt"

    @property
    def metrics(self) -> dict[str, Any] | None:
        """What metrics.json says, or None before the run has ended."""
        path = self.directory / "metrics.json"
        try:
            found = json.loads(path.read_text()) if path.exists() else None
            if found is not None and not {"epochs", "best_epoch", "stopped_early"} <= dict(found).keys():
                raise ValueError("not the metrics of a run")
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); remove it, and the same command writes it anew"
            ) from error
        return found

    @property
    def finished(self) -> bool:
        metrics = self.metrics
        if metrics is None:
            return False
        return metrics["epochs"] >= self.settings["trainer"]["max_epochs"] or bool(metrics["stopped_early"])

    @property
    def begun(self) -> bool:
        """Whether it holds more than what a process killed before its first file leaves behind."""
        files = (p for p in self.directory.rglob("*") if p.is_file())
        return any(p.name != ".lock" and p.suffix != ".part" for p in files)

    @property
    def resume_from(self) -> Path | None:
        """The checkpoint where it goes on, or None for a run that never wrote one."""
        which = self.settings["checkpoint"]
        path = self.checkpoint(which)
        if path.exists():
            return path
        other = "best" if which == "last" else "last"
        if self.checkpoint(other).exists():
            raise InputError(
                f"{path}: missing, though {other}.ckpt is there; continue from that with checkpoint={other}, "
                "or start anew in another run_dir"
            )
        return None

    def check(self) -> None:
        """Raises InputError if the directory holds something else than a run of this configuration."""
        path = self.directory / "config.yaml"
        if path.exists():
            self._compare(read_settings(path))
            if not self.finished:
                _ = self.resume_from  # which refuses a directory whose checkpoint is gone
        elif self.begun:
            raise InputError(
                f"run_dir={self.directory}: is not empty and not a run (no config.yaml); name a new folder, "
                "for example run_dir=outputs/mine"
            )

    def _compare(self, saved: Settings) -> None:
        differ = differences(saved, self.settings)
        metrics = self.metrics
        if metrics is None:  # it has still to be evaluated: how, may be changed, so that it can end where it could not
            differ = {key: pair for key, pair in differ.items() if not key.startswith("evaluation.")}
        if differ.keys() == {GROWS}:
            old, new = differ[GROWS]
            if new >= old or (metrics is not None and new >= metrics["epochs"]):
                return
        if differ:
            raise InputError(
                f"run_dir={self.directory}: belongs to another configuration, which differs in {listed(differ)}; "
                "give the same command to continue it, or another run_dir" + self._hint(differ)
            )

    def _hint(self, differ: dict[str, tuple[Any, Any]]) -> str:
        if all(key.startswith("evaluation.") for key in differ):
            return f"; to evaluate it anew, vae evaluate {self.directory}"
        lengths = [key for key in differ if key in ("scheduler.T_max", "scheduler.epochs")]
        if GROWS not in differ or not lengths or "OneCycle" in str(self.settings["scheduler"]["_target_"]):
            return ""
        return f"; to train on, keep the schedule's length: {lengths[0]}={differ[lengths[0]][0]}"

    @contextmanager
    def opened(self, cfg: DictConfig | None = None) -> Iterator[None]:
        """Created, locked and described by config.yaml, while the block runs; the log goes to train.log.

        Raises InputError if another process works in it or it cannot be created, RunFailed if nothing can be written.
        In a process that Lightning started for another device, the first one has done so.
        """
        if in_a_child():
            yield
            return
        check_device(self.settings)
        with self.locked():
            self.check()
            self.checkpoint_directory.mkdir(exist_ok=True)
            for folder in (self.directory, self.checkpoint_directory, self.directory / "figures"):
                checkpoints.sweep_parts(folder)
            checkpoints.writable(self.checkpoint_directory, CHECKPOINT_BYTES)
            write(self.directory / "config.yaml", yaml.safe_dump(self.settings, sort_keys=False))
            if cfg is not None:
                self._describe(cfg)
            log_to(self.directory / "train.log")
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For one process at a time; the lock dies with its holder."""
        lock = FileLock(self.directory / ".lock")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"run_dir={self.directory}: another process is working in it; wait for it or name another run_dir"
            ) from None
        except OSError as error:
            raise InputError(
                f"run_dir={self.directory}: cannot be written ({error.strerror}); name a folder that can be"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _describe(self, cfg: DictConfig) -> None:
        """What Hydra would have put in `.hydra` before anything was checked."""
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        write(self.directory / ".hydra" / "config.yaml", OmegaConf.to_yaml(cfg))
        write(self.directory / ".hydra" / "hydra.yaml", OmegaConf.to_yaml(hydra))
        write(self.directory / ".hydra" / "overrides.yaml", yaml.safe_dump(list(hydra.overrides.task)))


def differences(saved: Settings, now: Settings) -> dict[str, tuple[Any, Any]]:
    """The keys on which results depend and that two configurations set differently, with both values."""
    old, new = (dict(settings.leaves(s)) for s in (saved, now))
    given_first = sorted({*old, *new}, key=lambda key: (key.count("."), key))  # others may only follow from those
    keys = [key for key in given_first if key not in FREE and old.get(key) != new.get(key)]
    return {key: (old.get(key, "absent"), new.get(key, "absent")) for key in keys}


def listed(differ: dict[str, tuple[Any, Any]]) -> str:
    shown = ", ".join(f"{key} ({old} there, {new} now)" for key, (old, new) in list(differ.items())[:6])
    return shown + (f" and {len(differ) - 6} more" if len(differ) > 6 else "")


def check_device(s: Settings) -> None:
    """Raises InputError where the run asks for a GPU that this machine has not."""
    wanted = s["trainer"]["accelerator"]
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(f"trainer.accelerator={wanted}: torch finds no GPU here; take trainer=cpu or trainer=default")


def read_settings(path: Path) -> Settings:
    try:
        loaded = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); restore it or take another run_dir"
        ) from error
    if not isinstance(loaded, dict) or "latent_dim" not in loaded:
        raise InputError(
            f"{path}: is not the configuration of a run of this project; restore it or take another run_dir"
        )
    return loaded


def write(path: Path, text: str) -> None:
    """The whole file or the old one, whatever happens in between."""
    checkpoints.replace(path, text.encode())


def load_run(directory: str | os.PathLike[str], which: str = "best") -> tuple[LitVAE, ImageDataModule, Run]:
    """A trained model in eval mode with its data, from its directory; `which` is `best` or `last`.

    Raises InputError, one line, for a directory that is no run and a checkpoint that is missing, damaged or foreign.
    """
    run = Run(Path(directory), {})
    if not (run.directory / "config.yaml").exists():
        raise InputError(f"{directory}: is not a run (no config.yaml); name a folder that train.py wrote")
    run.settings = settings.verify(read_settings(run.directory / "config.yaml"))
    lit, data = build(run.settings)
    load_weights(lit, run.checkpoint(which))
    return lit.eval(), data, run


def load_weights(lit: LitVAE, path: Path) -> dict[str, Any]:
    checkpoint = checkpoints.load(path)
    checkpoints.check_architecture(checkpoint["state_dict"], lit)
    check_origin(path, checkpoint["vae"]["settings"], lit.settings)
    lit.load_state_dict(checkpoint["state_dict"])
    return checkpoint


# --- training ---------------------------------------------------------------------------------------------------------


def caption(s: Settings) -> str:
    """What every figure says of its data: the set and, since nats depend on it, how it was binarised."""
    grey = s["data"]["binarize"]
    return f"{s['data']['name']}, {'grey levels' if grey == 'none' else f'{grey} binarisation'}"


def monitored(s: Settings) -> tuple[str, str]:
    """The metric that the best epoch is best by, and `min` or `max`.

    Where beta has a schedule, the loss of two epochs does not compare: `dev/bound`, with beta 1, takes its place.
    """
    name = s["callbacks"]["monitor"]
    beta = s["objective"].get("beta", 1.0)
    if name == "dev/loss" and isinstance(beta, dict) and {"steps", "period"} & beta.keys():
        name = "dev/bound"
    return name, "max" if name == "dev/elbo" else "min"


def plateau_watches(s: Settings) -> str:
    """What the plateau scheduler waits for: the lower, the better."""
    name, mode = monitored(s)
    return "dev/bound" if mode == "max" else name


class Unprofiled(PassThroughProfiler):
    """Nothing is measured; Lightning's own still makes a generator for each of sixty hooks a step."""

    nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]  # as it is used
        return self.nothing


class Events(TensorBoardLogger):
    """TensorBoard's events alone: config.yaml says what hparams.yaml would."""

    def save(self) -> None:
        self.experiment.flush()


def trainer_of(run: Run, history: History, pictures: Pictures, stop: GracefulStop, last: SaveLast) -> Trainer:
    s = run.settings
    options = dict(s["trainer"])
    bar = options.pop("enable_progress_bar")
    bar = on_a_terminal() if bar is None else bar
    monitor, mode = monitored(s)
    callbacks: list[Callback] = [history, EpochLine(history), pictures]
    callbacks += [QuietBar()] if bar else []
    if s["callbacks"]["early_stopping"]:
        # what is not finite is caught in the step, with its cause
        patience = s["callbacks"]["early_stopping"]
        callbacks.append(EarlyStopping(monitor, patience=patience, mode=mode, check_finite=False))
    best = SaveBest(run.checkpoint_directory, monitor, mode)
    trainer = Trainer(
        **options,
        callbacks=[*callbacks, best, last, stop],
        logger=Events(run.directory, name="", version="", default_hp_metric=False, purge_step=_purge(run)),
        plugins=[DurableCheckpointIO()],
        profiler=Unprofiled(),
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10**9,  # nothing is logged by the step
        use_distributed_sampler=False,
        default_root_dir=run.directory,
    )
    trainer.fit_loop.epoch_loop = StepLoop(trainer)
    return trainer


def _purge(run: Run) -> int | None:
    """Hides the events that a sitting wrote after its last checkpoint: the resumed one writes them again."""
    path = run.resume_from
    return None if path is None else checkpoints.load(path)["global_step"] + 1


@contextmanager
def training(run: Run, lit: LitVAE, data: ImageDataModule) -> Iterator[tuple[Trainer, History]]:
    """A trainer for where the directory stands; signals stop it between two steps while the block runs."""
    s = run.settings
    if s["threads"]:
        torch.set_num_threads(s["threads"])
    start = run.resume_from
    if start is not None:
        saved = checkpoints.load(start)
        checkpoints.check_architecture(saved["state_dict"], lit)
        check_origin(start, saved["vae"]["settings"], s)
        log.info("continuing from %s", start)
    state = 3 * sum(value.nbytes for value in lit.state_dict().values())  # weights, and Adam's two moments
    checkpoints.writable(run.checkpoint_directory, 2 * state if start is None else state)  # best and last, or one anew
    history, last = History(), SaveLast(run.checkpoint_directory, s["callbacks"]["checkpoint_minutes"])
    pictures = Pictures(s["callbacks"]["figures_every"], s["seed"], caption(s), lambda: anchors(s, data))
    with GracefulStop(last.save) as stop:
        yield trainer_of(run, history, pictures, stop, last), history


def check_origin(path: Path, saved: Settings, now: Settings) -> None:
    """Raises InputError for a checkpoint of the same shapes that another configuration trained."""
    own = (GROWS, "evaluation.", "callbacks.")  # what may have grown or changed since it was written
    differ = {key: pair for key, pair in differences(saved, now).items() if not key.startswith(own)}
    if differ:
        other = "best" if path.name == "last.ckpt" else "last"
        raise InputError(
            f"{path}: was written under another configuration, which differs in {listed(differ)}; put this run's own "
            f"file back, or continue from the other one (checkpoint={other})"
        )


def anchors(s: Settings, data: ImageDataModule) -> dict[str, float]:
    """What trivial models leave of dev's squared error: the mean training image, and PCA with as many components."""
    if "SquaredError" not in s["likelihood"]["_target_"]:
        return {}
    mean, axes = data.principal
    wanted = [n for n in sorted({2, 4, 8, 16, 32, s["latent_dim"]}) if n < axes.shape[1]]
    whole, kept = torch.zeros((), dtype=torch.float64), torch.zeros(wanted[-1], dtype=torch.float64)
    for part in data.dev.images.split(1000):
        centred = as_floats(part).flatten(1).double() - mean
        whole += centred.square().sum() / len(data.dev)
        kept += (centred @ axes[:, : wanted[-1]]).square().sum(0) / len(data.dev)
    by_first = kept.cumsum(0).tolist()
    return {"mean image": whole.item()} | {f"PCA {n}": whole.item() - by_first[n - 1] for n in wanted}


def provenance(s: Settings, data: ImageDataModule, device: torch.device) -> dict[str, Any]:
    names = ("torch", "lightning", "torchvision", "numpy", "hydra-core", "scikit-learn")
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "seed": s["seed"],
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "data_md5": data.md5,
        "device": cuda or f"{device.type}, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "command": " ".join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
    }


def git_commit() -> str | None:
    """The project's commit, with `+changes` where the tree differs from it; None outside a git checkout."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def finished(run: Run, lit: LitVAE, data: ImageDataModule, trainer: Trainer, history: History) -> float:
    """Evaluates, draws and writes down the best checkpoint; returns the best epoch's monitored metric."""
    from vae import results  # with matplotlib, scikit-learn and TensorBoard: not before the first step

    if not trainer.is_global_zero:
        return 0.0
    give_back()
    result = results.finish(run, lit, data, history, trainer)
    give_back()
    return result


def give_back() -> None:
    """Freed memory goes back to the system: glibc keeps it, and the evaluation's would come on top of training's."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # other systems' libraries have no such call, and no such need
        ctypes.CDLL(None).malloc_trim(0)


def shown(run: Run) -> float:
    from vae import results

    return results.show(run)
