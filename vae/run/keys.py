"""Every key of the configuration, written once: its type, its range, its meaning. Its default stands in `conf/`.

Validation, `--help` and docs/keys.md read this table. Imports no torch.
"""

import difflib
import functools
import inspect
import json
import math
import os
import re
import types
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Len, Lt, MinLen
from pydantic import BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from vae.errors import InputError

PACKAGE = Path(__file__).resolve().parent.parent
# in a wheel inside the package, in a checkout beside it
CONF = str(PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf")
Plain = dict[str, Any]
PLACES = ("run_dir", "data.root", "data.path", "evaluation.cache_dir")  # keys that hold a path
LONGEST_NAME = 255  # bytes of a file's name that file systems take
MOST_LATENTS = 256  # of posterior=full: with 1,000 the encoder would put out half a million numbers

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Lt(2**63)]
Share = Annotated[float, Ge(0), Lt(1)]
Fraction = Annotated[float, Gt(0), Lt(1)]
Portion = Annotated[float, Gt(0), Le(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Text = Annotated[str, MinLen(1)]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "softplus", "sigmoid"]


def key(meaning: str, example: Any = None) -> Any:
    """A key that every run has; `example` is what a refusal proposes where the type alone says too little."""
    return Field(description=meaning, examples=[example])


def option(meaning: str, example: Any = None) -> Any:
    """A key that some options of its group have."""
    return Field(None, description=meaning, examples=[example])


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True)


class Part(Section):
    """What Hydra builds: `_target_` names the class or function."""

    target: str | None = Field(None, alias="_target_")
    partial: bool = Field(False, alias="_partial_")


class OwnPart(Part):
    """A part from outside the project; its constructor's signature says which keys it takes."""

    model_config = ConfigDict(extra="allow")


class Network(Part):
    hidden: list[Count] = option("widths of the hidden layers; any depth, also []", [200, 200])
    activation: Activation = option("after every hidden layer")
    dropout: Share = option("of the hidden layers", 0.3)
    channels: Annotated[list[Count], MinLen(1)] = option("of the convolutions, in the encoder's order", [16, 32])
    kernel_size: Count = option("of the convolutions", 3)
    stride: Count = option("of the convolutions", 2)
    padding: CountOrZero = option("of the convolutions", 1)
    pool: Literal["none", "max", "avg"] = option("after every convolution, by two")
    norm: Literal["none", "batch", "group", "layer"] = option("after every convolution")


class Decoder(Network):
    init_bias: Literal["data"] | None = option("data: the last bias starts where the mean image is train's mean")


class Likelihood(Part):
    reconstruct: Literal["sample", "mean"] = option(
        "squared error of a sampled image, as in the report, or of the mean"
    )
    mean: Literal["sigmoid", "linear"] = option("link from the decoder's output to the mean")
    sigma: Positive | Literal["shared", "pixel", "optimal"] = option("standard deviation of a pixel", 0.1)
    min_sigma: Positive = option("floor of sigma=pixel", 0.01)
    min_scale: Positive = option("floor of a pixel's scale", 0.001)


class Prior(Part):
    components: Count = option("Gaussians of the mixture", 10)
    inputs: Count = option("pseudo-inputs, which start as training images", 500)
    layers: Count = option("couplings of the flow", 6)
    hidden: Count = option("width of the couplings' nets", 100)


class Posterior(Part):
    layers: Count = option("autoregressive flows after the Gaussian", 2)
    hidden: Count = option("width of the flows' nets, and of the context that the encoder gives them", 100)


class Beta(Part):
    value: NotNegative = option("weight of the KL", 1)
    start: NotNegative = option("weight of the KL at the start", 0)
    end: NotNegative = option("weight of the KL after the rise", 1)
    steps: Count = option("length of the rise", 10_000)
    period: Count = option("steps from one rise to the next", 10_000)
    ramp: Portion = option("share of a period in which beta rises", 0.5)


@functools.cache
def targets() -> frozenset[str | None]:
    """The parts that the files of conf/ name: those of the project, whose keys stand in this file."""
    files = Path(CONF).rglob("*.yaml")
    named = (re.findall(r"^ *_target_: ((?:vae|torch)\.\S+|null)", file.read_text(), re.MULTILINE) for file in files)
    return frozenset(None if name == "null" else name for names in named for name in names if name != "???")


def _kind(node: Any) -> str:
    target = node.get("_target_") if isinstance(node, dict) else getattr(node, "target", None)
    return "ours" if target in targets() or not isinstance(node, dict | Part) else "own"


def _part(kind: Any) -> Any:
    return Annotated[Annotated[kind, Tag("ours")] | Annotated[OwnPart, Tag("own")], Discriminator(_kind)]


class Objective(Part):
    samples: Count = option("draws of z for each image", 1)
    free_bits: NotNegative = option("nats that each latent is charged at least", 0.1)
    gradient: Literal["plain", "dreg"] = option("estimator of the encoder's gradient")
    alpha: Annotated[float, Le(1)] = option("of InfoVAE: the KL has weight 1 - alpha", 0.0)
    mmd: NotNegative = option("weight of the discrepancy between q(z) and the prior", 1000.0)
    beta: NotNegative | _part(Beta) = option("weight of the KL (tc: of its correlation): a number or a schedule", 1)  # type: ignore[valid-type]


class Data(Part):
    path: Text | None = option("your images: a folder of PNG or JPEG files, or an .npz or .npy file", "pictures")
    size: Count | Annotated[list[Count], Len(2, 2)] | None = option(
        "side of the images, or [height, width]: their largest centred part, resized; null: as they are", 28
    )
    mode: Literal["L", "RGB"] | None = option("grey or colour; null: as the files are")
    grid: Annotated[list[Count], Len(5, 5)] = option(
        "values of the sprites' shape (at most 3), scale, rotation, x, y", [3, 6, 40, 32, 32]
    )
    count: Count | None = option("sprites drawn from the grid by split_seed; null: all of it", 10_000)
    root: Text = option("folder of the files; they are downloaded when absent", "data")
    batch_size: Count = option("images a batch, over all devices", 100)
    eval_batch_size: Count = option("images at once in validation; moves no metric", 1000)
    dev_size: Count | None = option(
        "images held out of the training set; null: 10,000, digits 300, your own a tenth", 10_000
    )
    test_size: Count | None = option("images held out as the test set where none is given; null: a tenth", 1000)
    split: Literal["last", "random"] = option("which of the training images are dev")
    split_seed: Seed = option("of split=random, and of the sprites", 0)
    binarize: Literal["none", "threshold", "static", "dynamic"] = option(
        "grey levels as 0 and 1; dynamic: at each visit"
    )
    num_workers: CountOrZero = option("processes that load batches", 0)
    repeat: Count = option("length of an epoch, in training sets", 1)
    resident: bool | None = option("images on the device; null: on a GPU without workers", True)
    mirrors: list[Text] | None = option("other addresses to download from", ["https://example.org/"])
    timeout: Positive = option("seconds that a download may stall", 30)
    seed: Seed = option("of order and binarisation", 0)


class Optimizer(Part):
    lr: Positive = option("learning rate", 0.001)
    weight_decay: NotNegative = option("coupled, as in the report; adamw: decoupled", 1e-5)
    betas: Annotated[list[Share], Len(2, 2)] = option("decay of the two moments", [0.9, 0.999])
    eps: Positive = option("added to the root of the second moment", 1e-8)
    fused: bool | None = option("one kernel for all weights", True)
    alpha: Share = option("decay of the second moment", 0.99)
    momentum: Share = option("of the gradient", 0.9)
    nesterov: bool = option("momentum looked ahead", True)
    lr_decay: NotNegative = option("decay of the learning rate", 0.0)


class Scheduler(Part):
    T_max: Count = option("epochs to the lowest rate", 70)
    eta_min: NotNegative = option("the lowest rate", 0.0)
    warmup: Count = option("epochs of rising rate", 5)
    epochs: Count = option("length of the schedule", 70)
    max_lr: Positive = option("the highest rate", 0.001)
    pct_start: Fraction = option("share of the steps in which the rate rises", 0.3)
    div_factor: Positive = option("highest rate over the first", 25)
    final_div_factor: Positive = option("first rate over the last", 1e4)
    cycle_momentum: bool = option("momentum falls while the rate rises", False)
    start_factor: Portion = option("first rate over the highest", 0.01)
    step_size: Count = option("epochs between two falls", 30)
    milestones: Annotated[list[Count], MinLen(1)] = option("epochs at which the rate falls", [30, 60])
    gamma: Positive = option("factor of a fall", 0.1)
    factor: Fraction = option("factor of a fall", 0.5)
    patience: CountOrZero = option("epochs without a better metric before a fall", 5)
    min_lr: NotNegative = option("the lowest rate", 1e-6)


class Trainer(Section):
    max_epochs: Count = key("epochs; may grow later", 70)
    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = key("where the run computes")
    devices: Count | Annotated[list[CountOrZero], MinLen(1)] | Literal["auto"] = key("how many devices, or which", 1)
    strategy: Literal["auto", "ddp", "ddp_spawn", "ddp_fork"] = key("how several devices share a batch")
    num_nodes: Count = key("machines", 1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = key("of weights and activations")
    gradient_clip_val: Positive | None = key("greatest norm of the gradient", 1.0)
    accumulate_grad_batches: Count = key("batches a step", 1)
    deterministic: bool = key("only algorithms that repeat to the bit on a GPU", True)
    limit_train_batches: Count | None = key("batches an epoch at most", 100)
    enable_progress_bar: bool | None = key("null: on a terminal only", False)
    fast_step: bool = key("plain steps past Lightning's loop; the numbers are the same", True)


class Callbacks(Section):
    monitor: Literal["dev/loss", "dev/neg_elbo", "dev/unweighted_loss", "dev/elbo", "dev/reconstruction", "dev/kl"] = (
        key("what the best epoch is best by; under a schedule of beta, dev/loss gives way to the unweighted loss")
    )
    early_stopping: Count | None = key("epochs of patience", 10)
    checkpoint_minutes: Positive = key("minutes between two writings of last.ckpt in mid-epoch", 10)
    figures_every: CountOrZero = key("epochs between two drawings for TensorBoard; 0: at the end only", 10)
    extra: dict[str, OwnPart] = key("your own callbacks: callbacks.extra.NAME._target_=mypkg.MyCallback", {})


class Evaluation(Section):
    samples: CountOrZero = key("importance samples of the NLL; 0: none", 500)
    annealing: CountOrZero = key("temperatures of a second NLL, by annealed importance sampling; 0: none", 500)
    annealed: Count = key("test images of that NLL", 100)
    features: bool = key("a small classifier for samples: Frechet distance, precision, recall, classes", True)
    generated: CountOrZero = key("prior samples that it sees", 10_000)
    cache_dir: Text = key("where the classifier is kept", "outputs/.cache")
    probes: bool = key("kNN and a linear probe on the posterior means", True)
    figures: bool | None = key("pictures at the end; null: not of a sweep's runs, `vae evaluate RUN` draws them", True)
    formats: Annotated[list[Literal["png", "svg", "pdf"]], MinLen(1)] = key("of the figures' files", ["png", "svg"])
    dpi: Annotated[int, Ge(32), Le(1200)] | None = key("of the figures; null: 128, where a pixel is a pixel", 300)


class Halves(Section):
    conditional: bool = key("both halves are given the label of an image", True)
    encoder: _part(Network)  # type: ignore[valid-type]
    decoder: _part(Decoder)  # type: ignore[valid-type]


class Settings(Section):
    """A run's configuration, usable as it stands; `plain` is the same in plain containers, which files hold."""

    latent_dim: Count = key("size of z", 4)
    dropout: Share = key("of the encoder's hidden layers; model.decoder.dropout is the decoder's", 0.3)
    seed: Seed = key("of weights, noise and the order of the images: the same command gives the same numbers", 0)
    threads: Count | None = key("CPU threads; null: all cores, shared between the parallel jobs of a sweep", 2)
    compile: Literal["default", "reduce-overhead"] | None = key("torch.compile of both halves")
    checkpoint: Literal["last", "best"] = key("where an unfinished run goes on; best when last is damaged")
    run_dir: Text = key("where the run goes; the same command again continues it", "outputs/mine")
    model: Halves
    prior: _part(Prior)  # type: ignore[valid-type]
    posterior: _part(Posterior)  # type: ignore[valid-type]
    likelihood: _part(Likelihood)  # type: ignore[valid-type]
    objective: _part(Objective)  # type: ignore[valid-type]
    data: _part(Data)  # type: ignore[valid-type]
    optimizer: _part(Optimizer)  # type: ignore[valid-type]
    scheduler: _part(Scheduler)  # type: ignore[valid-type]
    trainer: Trainer
    callbacks: Callbacks
    logger: dict[str, OwnPart] = key(
        "where metrics go: logger=[tensorboard,csv], or your own: logger.NAME._target_=mypkg.MyLogger", {}
    )
    evaluation: Evaluation

    _plain: Plain = PrivateAttr(default_factory=dict)

    @property
    def plain(self) -> Plain:
        return self._plain


class Key(NamedTuple):
    kind: Any  # its type, with its range
    meaning: str
    example: str

    @property
    def allowed(self) -> str:
        return describe(self.kind)

    def accepts(self, value: Any) -> bool:
        return fits(self.kind, value)


def describe(kind: Any) -> str:
    """A type in words: `Annotated[int, Ge(1)]` is "a whole number of at least 1"."""
    base, limits = (get_args(kind)[0], get_args(kind)[1:]) if get_origin(kind) is Annotated else (kind, ())
    if any(isinstance(limit, Discriminator) for limit in limits):
        return "a part with a _target_"
    origin, inner = get_origin(base), get_args(base)
    if origin in (Union, types.UnionType):
        return ", or ".join(describe(one) for one in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner)) if len(inner) > 1 else str(inner[0])
    if origin in (list, tuple, Sequence):
        of = f", each {describe(inner[0])}" if inner else ""
        return f"a list{_bounds(limits)}{of}"
    if origin is dict or base is dict:
        return "a group of keys"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(base, getattr(base, "__name__", str(base))) + _bounds(limits)


def _bounds(limits: Collection[Any]) -> str:
    said = []
    for limit in limits:
        match limit:
            case Len(min_length=low, max_length=high) if low == high:
                said.append(f" of {low}")
            case MinLen(min_length=low):
                said.append(", not empty")
            case Ge(ge=low):
                said.append(f" of at least {low}")
            case Gt(gt=low):
                said.append(f" above {low}")
            case Le(le=high):
                said.append(" and" * bool(said) + f" at most {high}")
            case Lt(lt=high):
                said.append(" and" * bool(said) + (" below 2^63" if high == 2**63 else f" below {high}"))
    return "".join(said)


def fits(kind: Any, value: Any) -> bool:
    """Whether a value from a configuration is of this type; a type that pydantic does not know takes any value.

    Strict as JSON is: a list may be a tuple, and a text a path, but no text is a number.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
    except PydanticUserError:
        return True
    try:
        adapter.validate_json(json.dumps(value))
    except ValidationError:
        return False
    return True


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Key]]:
    for name, info in section.model_fields.items():
        if name in ("target", "partial"):
            continue
        kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        for inner in _sections(kind):
            yield from _keys(inner, f"{prefix}{name}.")
        if info.description:
            yield f"{prefix}{name}", Key(kind, info.description, _example(kind, (info.examples or [None])[0]))


def _sections(kind: Any) -> list[type[BaseModel]]:
    """The models of the project's own parts in a type."""
    if inspect.isclass(kind) and issubclass(kind, Section):
        return [] if kind is OwnPart else [kind]
    return [found for inner in get_args(kind) if get_origin(kind) is not dict for found in _sections(inner)]


def _example(kind: Any, example: Any) -> str:
    if example is None:
        choices = [value for one in (kind, *get_args(kind)) if get_origin(one) is Literal for value in get_args(one)]
        example = choices[0] if choices else True
    return show(example)


def as_plain(value: Any) -> Any:
    """A number of NumPy's or torch's, an array, a tuple or a path as the plain value that it stands for."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def expand_place(path: str) -> str:
    """A path with `~` as the home; raises InputError for one that no file system takes."""
    expanded = os.path.expanduser(path)
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


@functools.cache
def known_keys() -> dict[str, Key]:
    """Dotted name -> what it may be; in the order of `Settings`."""
    return dict(_keys(Settings))


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


def nearest(name: str, known: Collection[str]) -> str:
    """The known key that a mistyped one most likely meant, matched whole or by its last part."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        last = {k.rpartition(".")[2]: k for k in known}
        close = [last[k] for k in difflib.get_close_matches(name.rpartition(".")[2], list(last), n=1, cutoff=0.6)]
    return f"did you mean {close[0]}?" if close else "`python train.py --help` lists the keys"
