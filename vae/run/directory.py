"""A run directory belongs to one configuration: its identity, its lock, its files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from vae.errors import InputError
from vae.files import FORMAT, read_json, read_yaml, remove_leftovers, replace, writable
from vae.run.keys import Plain, Settings, leaves, show
from vae.run.process import alone, in_a_child, log_to
from vae.run.settings import read

# Keys that may differ between two sittings of a run, because no result depends on them.
NOT_IDENTITY = (
    "run_dir", "threads", "compile", "checkpoint",
    "trainer.accelerator", "trainer.enable_progress_bar",
    "data.root", "data.mirrors", "data.timeout", "data.num_workers", "data.eval_batch_size", "data.resident",
    "data.cache_dir",
    "callbacks.checkpoint_minutes", "callbacks.figures_every", "evaluation.cache_dir",
    "evaluation.figures", "evaluation.formats", "evaluation.dpi",
)  # fmt: skip

GROUPS = ("model", "likelihood", "data", "trainer", "callbacks", "evaluation")
MAY_GROW = "trainer.max_epochs"

# what a list of runs relies on, in any version's configuration
ESSENTIAL: dict[str, type] = {
    "latent_dim": int, "seed": int, "trainer.max_epochs": int, "callbacks.monitor": str,
    "prior._target_": str, "posterior._target_": str,
    "likelihood._target_": str, "objective._target_": str, "data._target_": str,
}  # fmt: skip


class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # the one in C is ten times as fast
    def ignore_aliases(self, data: Any) -> bool:
        """Never an alias: a list that stands in two places is written out, and `read_yaml` takes none."""
        return True


FAILURE = "failure.txt"  # the line that the last sitting failed with, until the run goes on
FAILED_EVENTS = ".failed"  # at the end of the name of an event file that says so in TensorBoard

CHECKPOINT_BYTES = 2**24  # what must be free before the first epoch; a checkpoint of the report's model has 6 MB


class Origin(TypedDict, total=False):
    """What metrics.json says of where its numbers come from, as far as others rely on it."""

    format: int
    git_commit: str | None
    training_commits: list[str]
    versions: dict[str, str]
    data_md5: str
    threads: int
    command: str


@dataclass
class Run:
    """A directory that belongs to one configuration, and to one process at a time."""

    directory: Path
    settings: Settings
    one_of_many: bool = False  # a job's: what is told and drawn at the end is of all of them

    @property
    def checkpoint_directory(self) -> Path:
        return self.directory / "checkpoints"

    def checkpoint(self, which: str) -> Path:
        return self.checkpoint_directory / f"{which}.ckpt"

    @property
    def metrics(self) -> dict[str, Any] | None:
        """What metrics.json says, or None before the run has ended."""
        return read_metrics(self.directory / "metrics.json")

    @property
    def is_finished(self) -> bool:
        return is_complete(self.metrics, self.settings.trainer.max_epochs)

    @property
    def has_begun(self) -> bool:
        """Whether it holds more than what a process killed before its first file leaves behind."""
        files = (p for p in self.directory.rglob("*") if p.is_file())
        return any(p.name != ".lock" and p.suffix != ".part" for p in files)

    @property
    def resume_from(self) -> Path | None:
        """The checkpoint where it goes on, or None for a run that never wrote one."""
        which = self.settings.checkpoint
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
            if not self.is_finished:
                _ = self.resume_from  # which refuses a directory whose checkpoint is gone
        elif self.has_begun:
            raise InputError(
                f"run_dir={self.directory}: is not empty and not a run (no config.yaml); name a new folder, "
                "for example run_dir=outputs/mine"
            )

    def _compare(self, saved: Plain) -> None:
        differ = differences(saved, self.settings.plain)
        metrics = self.metrics
        if metrics is None:  # it has still to be evaluated: how, may be changed, so that it can end where it could not
            differ = {key: pair for key, pair in differ.items() if not key.startswith("evaluation.")}
        if differ.keys() == {MAY_GROW}:
            old, new = differ[MAY_GROW]
            if new >= old or (metrics is not None and new >= metrics["epochs"]):
                return
        if differ:
            raise InputError(
                f"run_dir={self.directory}: belongs to another configuration, which differs in "
                f"{describe_differences(differ)}; give the same command to continue it, or another run_dir"
                + self._hint(differ)
            )

    def _hint(self, differ: dict[str, tuple[Any, Any]]) -> str:
        if all(key.startswith("evaluation.") for key in differ):
            return f"; to evaluate it anew, vae evaluate {self.directory}"
        lengths = [key for key in differ if key in ("scheduler.T_max", "scheduler.epochs")]
        if MAY_GROW not in differ or not lengths or "pct_start" in self.settings.plain["scheduler"]:
            return ""
        return f"; to train on, keep the schedule's length: {lengths[0]}={differ[lengths[0]][0]}"

    @contextmanager
    def open(self, cfg: DictConfig | None = None) -> Iterator[None]:
        """Created, locked and described by config.yaml, while the block runs; the log goes to train.log.

        Raises InputError if another process works in it or it cannot be created, RunFailed if nothing can be written.
        In a process that Lightning started for another device, the first one has done so.
        """
        with alone(self.settings.trainer):
            if in_a_child():
                yield
                return
            with self._opened(cfg):
                yield

    @contextmanager
    def _opened(self, cfg: DictConfig | None) -> Iterator[None]:
        from vae.device import choose_device  # not at the top: a list of runs needs no torch

        choose_device(self.settings.trainer.accelerator)  # refuses one that is absent
        with self.lock():
            self.check()
            self.checkpoint_directory.mkdir(exist_ok=True)
            for folder in (self.directory, *(self.directory / name for name in ("checkpoints", "figures", ".hydra"))):
                remove_leftovers(folder)
            writable(self.checkpoint_directory, CHECKPOINT_BYTES)
            write_yaml(self.directory / "config.yaml", self.settings.plain)
            if cfg is not None:
                self.record(cfg)
            for path in (self.directory / FAILURE, *self.directory.glob(f"events.out.tfevents.*{FAILED_EVENTS}")):
                path.unlink(missing_ok=True)
            log_to(self.directory / "train.log")
            yield

    @contextmanager
    def lock(self) -> Iterator[None]:
        """For one process at a time; the lock dies with its holder."""
        lock = FileLock(self.directory / ".lock")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=1)  # a list of runs holds it for a moment, to see whether it is free
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

    def record(self, cfg: DictConfig) -> None:
        """What Hydra would have put in `.hydra` before anything was checked; `cfg` holds Hydra's own part."""
        plain = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        write_yaml(self.directory / ".hydra" / "config.yaml", OmegaConf.to_container(plain, enum_to_str=True))
        write_yaml(self.directory / ".hydra" / "hydra.yaml", OmegaConf.to_container(cfg.hydra, enum_to_str=True))
        write_yaml(self.directory / ".hydra" / "overrides.yaml", list(cfg.hydra.overrides.task))


def as_settings(plain: Plain, directory: Path) -> Settings:
    """What a run's config.yaml says, typed; raises InputError where another version wrote it, with its commit."""
    try:
        return read(plain)
    except InputError as error:
        origin = (read_metrics(directory / "metrics.json") or {}).get("provenance", {})
        advice = writer_of(origin)
        raise InputError(f"{directory / 'config.yaml'}: does not fit this version ({error}); {advice}") from error


def identity(plain: Plain) -> dict[str, Any]:
    """The keys on which results depend; one of the upper levels first: the lower ones may follow from it."""
    given_first = sorted(leaves(plain), key=lambda pair: (pair[0].count("."), pair[0]))
    return {key: value for key, value in given_first if key not in NOT_IDENTITY and not key.startswith("logger.")}


def differences(saved: Plain, now: Plain) -> dict[str, tuple[Any, Any]]:
    """The keys on which results depend and that two configurations set differently, with both values."""
    old, new = identity(saved), identity(now)
    keys = sorted({*old, *new}, key=lambda key: (key.count("."), key))
    keys = [key for key in keys if old.get(key) != new.get(key)]
    return {key: (old.get(key, "absent"), new.get(key, "absent")) for key in keys}


def describe_differences(differ: dict[str, tuple[Any, Any]]) -> str:
    said = ", ".join(f"{key} ({show(old)} there, {show(new)} now)" for key, (old, new) in list(differ.items())[:6])
    return said + (f" and {len(differ) - 6} more" if len(differ) > 6 else "")


def read_settings(path: Path) -> Plain:
    """A run's config.yaml, not yet checked against this version's keys; raises InputError for any other file."""
    try:
        plain = read_yaml(path)
    except InputError as error:
        raise InputError(f"{error}; restore it or choose another run_dir") from error
    groups = [plain.get(group) for group in GROUPS] if isinstance(plain, dict) else [None]
    advice = "is not the configuration of a run of this project; restore it or choose another run_dir"
    if not all(isinstance(group, dict) for group in groups):
        raise InputError(f"{path}: {advice}")
    values = dict(leaves(plain))
    if odd := [key for key, kind in ESSENTIAL.items() if type(values.get(key)) is not kind]:
        raise InputError(f"{path}: {odd[0]}={values.get(odd[0])}: {advice}")
    return dict(plain)


def read_metrics(path: Path) -> dict[str, Any] | None:
    """A run's metrics.json, or None before the run has ended; raises InputError for any other file."""
    if not path.exists():
        return None
    advice = "remove it, and the same command writes it again"
    try:
        metrics = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; {advice}") from error
    numbers = dict(metrics) if isinstance(metrics, dict) else {}
    origin = numbers.pop("provenance", {})
    try:
        TypeAdapter(dict[str, float]).validate_python(numbers, strict=True)
        TypeAdapter(Origin).validate_python(origin, strict=True)
        if not {"epochs", "best_epoch", "stopped_early"} <= numbers.keys():
            raise ValueError
    except ValueError as error:
        raise InputError(f"{path}: does not hold the metrics of a run of this project; {advice}") from error
    if origin.get("format", 1) != FORMAT:
        version = f"has format {origin.get('format', 1)}, and this version reads format {FORMAT}"
        raise InputError(f"{path}: {version}; {writer_of(origin)}")
    return dict(metrics)


def writer_of(origin: dict[str, Any]) -> str:
    """How to read what another version wrote, by its provenance."""
    commit = origin.get("git_commit")
    return f"check out commit {commit[:12]}, which wrote it" if commit else "use the version that wrote it"


def is_complete(metrics: dict[str, Any] | None, max_epochs: int) -> bool:
    """Whether these are the metrics of a run that has nothing left to train."""
    return metrics is not None and (metrics["epochs"] >= max_epochs or bool(metrics["stopped_early"]))


def write(path: Path, text: str) -> None:
    """The whole file or the old one, whatever happens in between."""
    replace(path, text.encode())


def write_yaml(path: Path, content: Any) -> None:
    write(path, yaml.dump(content, Dumper=Dumper, sort_keys=False))
