"""best.ckpt of the best epoch, last.ckpt to go on from: written whole, checked, read without executing anything."""

import io
import logging
import os
import pickle
import re
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NotRequired

import torch
from annotated_types import Ge, Len
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from pydantic import InstanceOf, StrictInt, TypeAdapter, ValidationError
from torch import Tensor, nn
from typing_extensions import TypedDict

from vae.errors import InputError, RunFailed
from vae.files import FORMAT, replace, require_plain, require_values

HANDED_OVER = ".temp.ckpt"  # bare weights that Lightning's ddp_fork and ddp_spawn pass to the process that waits

logger = logging.getLogger(__name__)


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, whatever kills the process; reads one through `load`.

    Lightning's own plugin swallows a PermissionError (`_atomic_save`, lightning #21800), so that a run ends as finished
    with no file; and it moves the file from $TMPDIR, which is no atomic act across file systems. Raises RunFailed when
    the file cannot be written: the file that was there before is then as it was.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r} is not supported: checkpoints are local files")
        buffer = io.BytesIO()  # in memory first: what cannot be pickled leaves no trace on the disk
        torch.save(checkpoint, buffer)
        try:
            replace(Path(path), buffer.getbuffer())
        except OSError as error:
            before = "the previous checkpoint is intact; " if Path(path).is_file() else ""
            raise RunFailed(
                f"cannot write the checkpoint {path}: {error.strerror or error}; {before}"
                "make room or make the directory writable, then give the same command again to continue"
            ) from error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        location = "cpu" if map_location is None else map_location
        return read(path, location) if Path(path).name == HANDED_OVER else load(path, location)


Count = Annotated[StrictInt, Ge(0)]


class DataFacts(TypedDict):
    """Of the images, where the data module tells."""

    md5: NotRequired[str]
    class_names: NotRequired[list[str]]


class Facts(TypedDict):
    """What every checkpoint says under `vae`; other keys may stand beside these."""

    settings: dict[str, Any]
    image_shape: Annotated[list[Annotated[StrictInt, Ge(1)]], Len(3, 3)]
    data: NotRequired[DataFacts]
    first_losses: NotRequired[list[InstanceOf[Tensor]]]


class Epochs(TypedDict):
    """What the callback History keeps."""

    rows: list[dict[str, float]]
    kl: list[float]
    seconds: float
    images: StrictInt
    commits: NotRequired[list[str]]


class Callbacks(TypedDict):
    """Of the states of callbacks, the one that is read outside training."""

    History: NotRequired[Epochs]


class Contents(TypedDict):
    """What every checkpoint holds; Lightning's parts stand beside these."""

    state_dict: dict[str, InstanceOf[Tensor]]
    epoch: Count
    global_step: Count
    callbacks: Callbacks
    vae: Facts


def load(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint that this project wrote, whole and without code; raises InputError with one line if it is not."""
    checkpoint: dict[str, Any] = read(path, map_location)
    facts = checkpoint.get("vae") if isinstance(checkpoint, dict) else None
    if not isinstance(facts, dict) or "pytorch-lightning_version" not in checkpoint:
        raise _refusal(path, "is no checkpoint of this project")
    if str(facts.get("format")) != str(FORMAT):  # a tensor compares as one
        version = f"has format {facts.get('format')!r}, this version reads format {FORMAT}"
        raise _refusal(path, f"{version}; the version that wrote it can read it")
    try:
        TypeAdapter(Contents).validate_python(checkpoint)
        require_values(facts["settings"])
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise _refusal(path, f"is damaged: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    except ValueError as error:
        raise _refusal(path, f"is damaged: vae.settings: {error}") from None
    return checkpoint


def read_history(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The history of the epochs until then, as History.load_state_dict takes it; raises InputError without one."""
    callbacks: dict[str, Any] = load(path)["callbacks"]
    if "History" not in callbacks:
        raise _refusal(path, "holds no history of its epochs")
    return dict(callbacks["History"])


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """The content of a file that torch.save wrote, every byte that matters checked first; raises InputError."""
    if not os.path.exists(path):
        raise _refusal(path, "does not exist")
    try:
        with open(require_plain(path), "rb") as file:  # opened once: what was checked is what is loaded
            _verify(path, file)
            file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=True, mmap=False)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        # The checksums were right, so this is no damage. Torch's advice to switch the check off stays with torch.
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({name[1]})" if name else ""
        raise _refusal(path, f"holds code{what}: refused, nothing was executed") from None
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror or type(error).__name__})") from None
    except Exception as error:  # torch answers an archive that is not its own with anything
        raise _refusal(path, f"cannot be read as a checkpoint ({type(error).__name__})") from None


def _verify(path: str | os.PathLike[str], file: BinaryIO) -> None:
    """Raises InputError unless `file` is a zip archive, as torch writes it, in which every checksum is right.

    Torch itself compares no checksums. Of the fields that no checksum covers, those are compared by which it reads:
    the tensor of an entry marked as a directory, for one, it leaves as the memory was.
    """
    start = file.read(4)
    if not start:
        raise _refusal(path, "is empty")
    try:
        if not zipfile.is_zipfile(file):
            raise _refusal(path, "is truncated" if start == b"PK\x03\x04" else "is no checkpoint of this project")
        with zipfile.ZipFile(file) as archive:
            # Nothing is compressed: so no archive unpacks to terabytes, either.
            odd = [m.filename for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED or m.external_attr]
            damaged = odd[0] if odd else archive.testzip()
    except (InputError, OSError):
        raise
    except Exception as error:  # zipfile answers damage with BadZipFile, struct.error, RuntimeError and others
        raise _refusal(path, f"is damaged: {error}") from None
    if damaged is not None:
        raise _refusal(
            path, f"is damaged: member {damaged} {'is not as torch writes it' if odd else 'fails its checksum'}"
        )


def _refusal(path: str | os.PathLike[str], what: str) -> InputError:
    other = {"last.ckpt": "best", "best.ckpt": "last"}.get(Path(path).name)
    advice = (
        f"continue from the other one (checkpoint={other}), or remove the run directory"
        if other
        else "give a checkpoint that a run of this project wrote"
    )
    return InputError(f"{os.fspath(path)} {' '.join(what.split())}; {advice}")


def check_architecture(state_dict: Mapping[str, Tensor], module: nn.Module) -> None:
    """Raises InputError, naming the first tensor that `module` has and `state_dict` lacks, or the reverse, or both with
    different shapes."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state_dict.items()}
    for key in [*expected, *found]:
        if expected.get(key) != found.get(key):
            raise InputError(
                f"the checkpoint does not fit the configured model: {key} is {found.get(key, 'missing')} in the "
                f"checkpoint and {expected.get(key, 'missing')} in the model; use the configuration it was trained with"
            )


def resumable(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a checkpoint written in `on_train_batch_end` of this batch lets a resumed run go on with the next batch.

    Not amid accumulated gradients, which no checkpoint holds; nor when validation or the end of the epoch comes next:
    Lightning would take them as done. `on_train_epoch_start` and `on_train_end` are the places for those.
    """
    every = trainer.val_check_batch  # None where validation goes by the clock
    position = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    validation_next = every is not None and (position + 1) % every == 0
    accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
    return not (trainer.is_last_batch or validation_next or accumulating)


class SaveBest(ModelCheckpoint):
    """Keeps `best.ckpt`, the epoch of the best `monitor`, also in a run directory that was moved or renamed."""

    on_train_batch_end = Callback.on_train_batch_end  # Lightning's asks in every step whether to save; we never do

    def __init__(self, directory: str | os.PathLike[str], monitor: str, mode: str) -> None:
        super().__init__(
            Path(directory), "best", monitor, mode=mode, enable_version_counter=False, auto_insert_metric_name=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As if the file had always been here: Lightning would forget the best score of a directory that was moved."""
        path = Path(self.dirpath or ".") / "best.ckpt"
        models = dict(zip([str(path)], state_dict["best_k_models"].values(), strict=False))  # one at most
        paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), str(path))
        super().load_state_dict(state_dict | paths | {"dirpath": str(path.parent), "best_k_models": models})


class SaveLast(Checkpoint):
    """Keeps `last.ckpt`, from which a run continues as if it had never stopped.

    Written at the start, after every epoch and every `minutes` in its middle. "After" is the start of the next epoch
    or the end of training: at `on_validation_end` and `on_train_epoch_end` the plateau scheduler has not yet seen the
    epoch, and a run resumed from there would never show it.
    """

    def __init__(self, directory: str | os.PathLike[str], minutes: float = 10.0) -> None:
        self.path = Path(directory) / "last.ckpt"
        self.seconds = 60 * minutes
        self._saved_at = time.monotonic()
        self._batches: int | None = None  # taken when last saved
        self._stopped = False

    def save(self, trainer: Trainer) -> None:
        """Writes `last.ckpt`, on every rank at once, at a place that `resumable` names; nothing if nothing is new."""
        batches = trainer.fit_loop.total_batch_idx + 1
        if batches != self._batches and not getattr(trainer, "fast_dev_run", 0):
            self._stopped = trainer.should_stop
            trainer.save_checkpoint(self.path, weights_only=False)
            self._batches, self._saved_at = batches, time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning forgets that training was stopped early: without this line a resumed run trains another epoch.
        trainer.should_stop = trainer.should_stop or self._stopped

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A scheduler that asks for the number of steps sets the loaders up before the loop knows its position. Without
        # this line, the one use of Lightning's private interface, the epoch would begin anew with its middle's counts.
        trainer.fit_loop._load_combined_loader_states()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = time.monotonic() - self._saved_at >= self.seconds
        if (due or trainer.world_size > 1) and resumable(trainer, batch_idx):
            if trainer.strategy.reduce_boolean_decision(due, all=False):
                self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning calls a loop that resumed in mid-epoch restarting until the epoch ends, and keeps the plateau
        # scheduler from it for want of a metric, which is there now.
        if not trainer.sanity_checking:
            trainer.fit_loop.restarting = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Makes a checkpoint of `on_train_epoch_start` say that the epoch before is complete, and no more.

        There Lightning has announced an epoch and not begun it. A run resumed from there would count an empty epoch.
        """
        loop = checkpoint["loops"]["fit_loop"]
        for counts in (loop["epoch_progress"]["total"], loop["epoch_progress"]["current"]):
            if counts["ready"] > counts["started"]:
                counts["ready"] = counts["started"]
                loop["state_dict"].pop("combined_loader", None)

    def state_dict(self) -> dict[str, Any]:
        return {"stopped": self._stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stopped = state_dict["stopped"]
