"""The keys that every run has; how a key is read from a signature, checked, described and written.

`conf/` holds the defaults of these keys; those of a part stand at its constructor (vae/run/parts.py). Imports no torch.
"""

import difflib
import functools
import inspect
import json
import math
import os
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Len, Lt, MinLen
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from vae.errors import InputError
from vae.files import expand
from vae.types import Count, CountOrZero, Plain, Positive, Rate, Seed, Text

PACKAGE = Path(__file__).resolve().parent.parent
# in a wheel inside the package, in a checkout beside it
CONF = str(PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf")
PLACES = ("run_dir", "data.root", "data.path", "data.cache_dir", "evaluation.cache_dir")  # keys that hold a path
LONGEST_NAME = 255  # bytes of a file's name that file systems take

Monitor = Literal["dev/loss", "dev/neg_elbo", "dev/unweighted_loss", "dev/elbo", "dev/reconstruction", "dev/kl"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]


@dataclass(frozen=True)
class Halves:
    conditional: Annotated[bool, "give both halves the label of an image"]
    encoder: Plain
    decoder: Plain


@dataclass(frozen=True)
class Trainer:
    max_epochs: Annotated[Count, "epochs; may grow later"]
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "cuda", "mps"], "where the run computes"]
    devices: Annotated[
        Count | Annotated[list[CountOrZero], MinLen(1)] | Literal["auto"], "number of devices, or a list of them"
    ]
    strategy: Annotated[Literal["auto", "ddp", "ddp_spawn", "ddp_fork"], "how several devices share a batch"]
    num_nodes: Annotated[Count, "machines"]
    precision: Annotated[Precision, "precision of weights and activations"]
    gradient_clip_val: Annotated[Positive | None, "largest norm of the gradient; null: no clipping"]
    accumulate_grad_batches: Annotated[Count, "batches per step"]
    deterministic: Annotated[bool, "use only algorithms that repeat to the bit on a GPU"]
    limit_train_batches: Annotated[Count | None, "batches per epoch at most; null: all"]
    enable_progress_bar: Annotated[bool | None, "null: on a terminal only"]


@dataclass(frozen=True)
class Callbacks:
    monitor: Annotated[
        Monitor, "metric that chooses the best epoch; with a schedule of beta, dev/loss becomes the unweighted loss"
    ]
    early_stopping: Annotated[Count | None, "epochs without improvement after which the run ends; null: never"]
    checkpoint_minutes: Annotated[Positive, "minutes between two writes of last.ckpt within an epoch"]
    figures_every: Annotated[CountOrZero, "epochs between two drawings for TensorBoard; 0: only at the end"]
    extra: Annotated[Plain, "your own callbacks: callbacks.extra.NAME._target_=mypkg.MyCallback"]


@dataclass(frozen=True)
class Evaluation:
    samples: Annotated[CountOrZero, "importance samples of the NLL; 0: no NLL"]
    annealing: Annotated[CountOrZero, "temperatures of a second NLL, by annealed importance sampling; 0: none"]
    annealed: Annotated[Count, "test images of the annealed NLL"]
    features: Annotated[bool, "judge samples by a small classifier: Frechet distance, precision, recall, classes"]
    generated: Annotated[CountOrZero, "prior samples that the classifier sees"]
    cache_dir: Annotated[Text, "folder of the trained classifier"]
    probes: Annotated[bool, "kNN and a linear probe on the posterior means"]
    figures: Annotated[bool | None, "draw figures at the end; null: not in a sweep, `vae evaluate RUN` draws them"]
    formats: Annotated[list[Literal["png", "svg", "pdf"]], MinLen(1), "file formats of the figures"]
    dpi: Annotated[Annotated[int, Ge(32), Le(1200)] | None, "dpi of the figures; null: 128, where a pixel is a pixel"]


@dataclass(frozen=True)
class Settings:
    """A run's configuration, checked. `plain` is the same in plain containers, which files and checkpoints hold."""

    latent_dim: Annotated[Count, "size of z"]
    dropout: Annotated[Rate, "dropout of the encoder's hidden layers; model.decoder.dropout is the decoder's"]
    seed: Annotated[Seed, "seed of weights, noise and the order of the images; the same command repeats its numbers"]
    threads: Annotated[Count | None, "CPU threads; null: all cores, shared between the parallel jobs of a sweep"]
    compile: Annotated[Literal["default", "reduce-overhead"] | None, "torch.compile both halves"]
    checkpoint: Annotated[Literal["last", "best"], "where an unfinished run resumes; best if last is damaged"]
    run_dir: Annotated[Text, "folder of the run; the same command again continues it"]
    model: Halves
    prior: Plain
    posterior: Plain
    likelihood: Plain
    objective: Plain
    data: Plain
    optimizer: Plain
    scheduler: Plain
    trainer: Trainer
    callbacks: Callbacks
    logger: Annotated[Plain, "where metrics go: logger=[tensorboard,csv], or logger.NAME._target_=mypkg.MyLogger"]
    evaluation: Evaluation
    plain: Plain = field(default_factory=dict, compare=False, repr=False)


SECTIONS: dict[str, Any] = {"model": Halves, "trainer": Trainer, "callbacks": Callbacks, "evaluation": Evaluation}


# --- a key ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """One parameter of a constructor: its type with its range, its meaning, its default unless it is required."""

    kind: Any
    meaning: str = ""
    default: Any = inspect.Parameter.empty

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def allowed(self) -> str:
        return describe(self.kind)

    @functools.cached_property
    def _adapter(self) -> "TypeAdapter[Any] | None":
        try:
            return TypeAdapter(self.kind, config=ConfigDict(strict=True, allow_inf_nan=False))
        except PydanticUserError:  # a type that pydantic does not know takes any value
            return None

    def accepts(self, value: Any) -> bool:
        """Strict as JSON is: a list may be a tuple, and a string a path, but no string is a number."""
        try:
            return self._adapter is None or bool(self._adapter.validate_json(json.dumps(value)) or True)
        except ValidationError:
            return False


def key_of(annotation: Any, default: Any = inspect.Parameter.empty) -> Key:
    """The key that `Annotated[type, "meaning"] = default` describes; without a type it takes any value."""
    texts = [text for text in getattr(annotation, "__metadata__", ()) if isinstance(text, str)]
    return Key(Any if annotation is inspect.Parameter.empty else annotation, texts[0] if texts else "", default)


@functools.cache
def keys_of_section(section: type) -> dict[str, Key]:
    hints = get_type_hints(section, include_extras=True)
    kinds = {name: Plain if kind in SECTIONS.values() else kind for name, kind in hints.items() if name != "plain"}
    return {name: key_of(kind) for name, kind in kinds.items()}


def check_keys(
    place: str, keys: Mapping[str, Key], node: Plain, explain: Callable[[str], str], takes_others: bool = False
) -> None:
    """Raises InputError for the first key that is unknown, missing or has a value that it may not have.

    `explain` says of an unknown key what may have been meant.
    """
    for name, value in node.items():
        if name not in keys and not (takes_others and not name.startswith("_")):
            raise InputError(f"{place}{name}={show(value)}: {explain(name)}")
        if name in keys and not keys[name].accepts(value):
            raise InputError(f"{place}{name}={show(value)}: must be {keys[name].allowed}")
    for name, key in keys.items():
        if key.is_required and name not in node:
            raise InputError(f"{place}{name}: is missing; give {place}{name}=..., {key.allowed}")


def describe(kind: Any) -> str:
    """A type in words: `Annotated[int, Ge(1)]` is "an integer >= 1"."""
    base, limits = (get_args(kind)[0], get_args(kind)[1:]) if get_origin(kind) is Annotated else (kind, ())
    origin, inner = get_origin(base), get_args(base)
    if origin in (Union, types.UnionType):
        return ", or ".join(map(describe, inner))
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner)) if len(inner) > 1 else str(inner[0])
    if origin is dict or base is dict:
        return "a group of keys"
    if origin in (list, tuple, Sequence):
        return f"a list{_bounds(limits)}{f', each {describe(inner[0])}' if inner else ''}"
    if isinstance(origin, type) and issubclass(origin, Callable):  # type: ignore[arg-type]  # an abstract class
        return "a part with a _target_"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    return words.get(base, getattr(base, "__name__", str(base))) + _bounds(limits)


def _bounds(limits: Collection[Any]) -> str:
    signs = []
    for limit in limits:
        match limit:
            case Len(min_length=low, max_length=high) if low == high:
                return f" of {low}"
            case MinLen():
                return ", not empty"
            case Ge(ge=low):
                signs.append(f" >= {low}")
            case Gt(gt=low):
                signs.append(f" > {low}")
            case Le(le=high):
                signs.append(f" <= {high}")
            case Lt(lt=high):
                signs.append(" < 2^63" if high == 2**63 else f" < {high}")
    return " and".join(signs)


def nearest(name: str, known: Collection[str]) -> str:
    """The known key that a mistyped one most likely meant, matched whole or by its last part."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        last = {key.rpartition(".")[2]: key for key in known}
        close = [last[k] for k in difflib.get_close_matches(name.rpartition(".")[2], list(last), n=1, cutoff=0.6)]
    return f"did you mean {close[0]}?" if close else "`python train.py --help` lists the keys"


# --- values -----------------------------------------------------------------------------------------------------------


def as_plain(value: Any) -> Any:
    """A number of NumPy's or torch's, an array, a tuple or a path as the plain value that it stands for."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def expand_place(path: str) -> str:
    """A path with `~` as the home; raises InputError for one that no file system takes."""
    expanded = os.fspath(expand(path)) if path else path
    try:
        longest = max(len(name.encode()) for name in expanded.split(os.sep))
    except UnicodeEncodeError as error:
        raise InputError(f"{path!r}: is not a path in UTF-8; rename the folder") from error
    if longest > LONGEST_NAME:
        raise InputError(f"{path}: has a name of {longest} bytes, and at most {LONGEST_NAME} are allowed; shorten it")
    if "\0" in path:
        raise InputError(f"{path!r}: a path cannot hold a null byte; give another")
    return expanded


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    value = as_plain(value)
    if isinstance(value, str) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip().replace(", ", ",")
    )


def leaves(node: Plain, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value; a list is a value."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def walk(node: Any, *place: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key with its value, groups among them, in groups and in lists; the key as its path."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        yield (*place, str(name)), value
        yield from walk(value, *place, str(name))


@functools.cache
def targets() -> frozenset[str | None]:
    """What the files of conf/ build of the project and of torch."""
    texts = (file.read_text() for file in Path(CONF).rglob("*.yaml"))
    named = (re.findall(r"^ *_target_: ((?:vae|torch)\.\S+|null)", text, re.MULTILINE) for text in texts)
    return frozenset(None if name == "null" else name for names in named for name in names)
